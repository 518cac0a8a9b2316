"""What one running agent consists of, and how it is put together; what each does is in its own module."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent.enrolment import Enroller, KeyFiles
from agent.identity import UNREAD, Identity
from agent.keys import CREDENTIALS, Keys, clock_ms, read
from agent.outbound import Outbound
from agent.policies import PolicySide
from mesh.anchors import open_keyring
from mesh.bundles import policy_key
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Publisher
from mesh.jetstream.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.settings import AgentSettings
    from mesh.policy.compile import Plans


class Parts(NamedTuple):
    """One agent's, from the connection upwards."""

    connection: Connection
    publisher: Publisher
    policies: PolicySide
    identity: Identity
    outbound: Outbound


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
        creds = partial(read, base / s.creds_file, CREDENTIALS) if s.creds_file else None
        connection = await Connection.open(s.nats_url, name=s.name, creds=creds, tls=self._tls(), wait=False)
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
        outbound = Outbound(s, self.keys, publisher, audit=policies.audit, shadow=policies.shadow)
        identity = Identity(
            self._source,
            connection,
            self._keyring,
            keys=self.keys,
            publisher=publisher,
            now_ms=policies.server_ms,
            file_check_s=s.file_check_s,
        )
        return Parts(connection, publisher, policies, identity, outbound)

    def _tls(self) -> TlsFiles | None:
        s, base = self._settings, self._base
        if not s.nats_ca_file:
            return None
        return TlsFiles(base / s.nats_ca_file, base / s.nats_cert_file, base / s.nats_key_file)
