"""What one running agent consists of, and how it is put together; what each does is in its own module."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent.enrolment import Enroller, KeyFiles, our_id
from agent.identity import UNREAD, Identity
from agent.keys import CREDENTIALS, Keys, clock_ms, read
from agent.outbound import Outbound
from agent.policies import PolicySide
from agent.sequences import Sequences
from agent.spool.egress import Egress
from agent.spool.opened import open_spool
from agent.spool.spool import Spool
from agent.spool.tools import SealingKeys
from mesh.anchors import open_keyring
from mesh.bundles import policy_key
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Publisher
from mesh.jetstream.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.settings import AgentSettings
    from agent.spool.opened import Opened
    from mesh.policy.compile import Plans


class Parts(NamedTuple):
    """One agent's, from the connection upwards."""

    connection: Connection
    publisher: Publisher
    policies: PolicySide
    identity: Identity
    outbound: Outbound
    sequences: Sequences
    spool: Spool | None


class Files:
    """What an agent reads before it connects, so that whatever is wrong with a file ends the start.

    Args:
        settings: The agent's.
        base: The directory of `agent.toml`; relative paths start there.

    Raises:
        ConfigError: A file is missing, malformed or somebody else's.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        trust = base / settings.trust_dir
        self._settings = settings
        self._base = base
        self._policy_key = policy_key(trust)
        self._keyring = open_keyring(trust, tenant=settings.tenant)
        self._source = (KeyFiles if settings.event_key_file else Enroller)(settings, base)
        self.keys = Keys(settings, base)

    async def assemble(self, clock: Callable[[], int], adopt: Callable[[Plans], None]) -> Parts:
        """Make everything, with a connection that is being made; nothing else runs yet.

        Args:
            clock: Ours, Unix milliseconds.
            adopt: Called with the plans of each bundle that comes into force.

        Raises:
            ConfigError: The files to connect with are missing or are not what they should be.
        """
        s, base = self._settings, self._base
        opened = await open_spool(s, base)
        try:
            return await self._assemble(opened, clock, adopt)
        except BaseException:
            if opened is not None:
                opened.database.close()
            raise

    async def _assemble(self, opened: Opened | None, clock: Callable[[], int], adopt: Callable[[Plans], None]) -> Parts:
        s, base = self._settings, self._base
        creds = partial(read, base / s.creds_file, CREDENTIALS) if s.creds_file else None
        connection = await Connection.open(s.nats_url, name=s.name, creds=creds, tls=tls_files(s, base), wait=False)
        publisher = Publisher(
            connection,
            seal=self.keys.seal,
            message_id=self.keys.message_id,
            clock_ms=clock_ms,
            window=s.publish_window,
            ack_deadline_s=s.ack_deadline_s,
            give_up_s=s.give_up_s,
            held=UNREAD,
        )
        policies = PolicySide(s, base, connection, policy_key=self._policy_key, clock_ms=clock, adopt=adopt)
        identity = Identity(
            self._source,
            connection,
            self._keyring,
            keys=self.keys,
            publisher=publisher,
            now_ms=policies.server_ms,
            clock_wrong=lambda: policies.clock.wrong,
            file_check_s=s.file_check_s,
        )
        policies.clock.on_change = identity.settle
        spool = None
        if opened is not None:
            spool = Spool(
                opened,
                publisher,
                policies,
                Egress(our_id(s), policies.past),
                SealingKeys(lambda: self.keys.signer.kid, identity.used.revoked),
                limit_bytes=s.spool_max_bytes,
                after_s=s.spool_after_s,
                audit=policies.audit,
            )
        waiting = (lambda: 0) if spool is None else (lambda: spool.copies)
        sequences = Sequences(lambda: self.keys.signer, policies.audit.write, clock_ms=clock, waiting=waiting)
        if spool is not None:
            spool.on_void = sequences.void
        window = publisher if spool is None else spool
        outbound = Outbound(s, self.keys, window, sequences, spool=spool, audit=policies.audit, shadow=policies.shadow)
        return Parts(connection, publisher, policies, identity, outbound, sequences, spool)


def tls_files(settings: AgentSettings, base: Path) -> TlsFiles | None:
    """What to dial NATS with; None where the server has no TLS."""
    s = settings
    if not s.nats_ca_file:
        return None
    return TlsFiles(base / s.nats_ca_file, base / s.nats_cert_file, base / s.nats_key_file)
