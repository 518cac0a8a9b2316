"""What a team needs to read: a connection, trust, the bundle in force, and somebody to tell what it runs and unmasks.

Opened by `Mesh` once for all its subscriptions, and by an agent that consumes for its application. The last good
bundle, the last trust statement and the certificates in use are kept in a directory of the reader's, where it can be
written: so a reader begins, and verifies, with what it knew, and takes nothing older.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from mesh import audit, logs
from mesh.anchors import open_keyring
from mesh.audit_log import AuditLog
from mesh.bundles import policy_key
from mesh.context import SubscriptionAddress
from mesh.errors import ConfigError, MeshError, NoBundle, NotFound, Unavailable
from mesh.jetstream.connection import Connection
from mesh.policy.ciphers import CIPHER_KEY_BYTES, decrypt_fields
from mesh.pullers import places_of
from mesh.reports import Reporter, workload_of
from mesh.subscription import Subscription
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from mesh.inbound import Admitted
    from mesh.jetstream.tls import TlsFiles

FIRST_STATE_S = 15.0  # for the first bundle and trust statement
STOP_S = 1.0  # for the last audit records and the last report

log = logs.get("client")


class ReadingTeam(NamedTuple):
    """Who reads, what it is checked against, and where what is known is kept.

    Attributes:
        tenant: Whose policies these are.
        team: The reader.
        trust: The directory of `ca.crt`, `trust.pub` and `policy.pub`.
        files: Where `bundle.last` and `trust/` are kept, made by whoever owns it.
        ciphers: The directory of the `<name>.key` that open what was encrypted for the team.
    """

    tenant: str
    team: str
    trust: Path
    files: Path
    ciphers: Path


class TeamReader:
    """One team's way in. Made by `open_team`, or by an agent for its application.

    Args:
        who: The team, and its files.
        connection: With the team's credentials.

    Raises:
        ConfigError: A file of `who.trust` is missing or malformed.
    """

    def __init__(self, who: ReadingTeam, connection: Connection) -> None:
        self._who = who
        self.connection = connection
        keyring = open_keyring(who.trust, tenant=who.tenant)
        self.trust = TrustWatch(connection, keyring, directory=who.files / "trust")
        self.reporter = Reporter(connection, who.team, kind="team", state=lambda: self.bundle.state)
        self.bundle = BundleWatch(
            connection,
            policy_key(who.trust),
            tenant=who.tenant,
            file=who.files / "bundle.last",
            on_news=self.reporter.wake,
        )
        self.audit = AuditLog(connection, self.reporter.workload, self.reporter.instance)

    @property
    def works(self) -> tuple[tuple[str, Callable[[], Coroutine[Any, Any, None]]], ...]:
        """What has to run, each until cancelled, for the reader to stay current: names and coroutines."""
        return (
            ("bundle", self.bundle.run),
            ("trust", self.trust.run),
            ("reports", self.reporter.run),
            ("audit", self.audit.run),
        )

    @property
    def names(self) -> frozenset[str]:
        """The team's subscriptions that are active in the bundle in force; none before the first."""
        plans = self.bundle.plans
        if plans is None:
            return frozenset()
        declared = (s.metadata.name for s in plans.tenancy.subscriptions if s.metadata.team == self._who.team)
        return frozenset(name for name in declared if self.address(name) is not None)

    def unmasked(self, event: Admitted) -> None:
        """Record that an event was handed over by a grant that expires."""
        self.audit.write(
            audit.UNMASKED,
            event=event.id,
            source=event.source,
            type=event.type,
            view=event.view,
            rule=event.rule,
            revision=self.bundle.state.revision,
        )

    def address(self, name: str) -> SubscriptionAddress | None:
        """Where the subscription *name* is, as the bundle in force has it; None where none of that name is active."""
        plans = self.bundle.plans
        if plans is None:
            return None
        try:
            grant = plans.subscription(self._who.team, name, now_ms=time.time_ns() // 1_000_000)
        except NotFound:
            return None
        streams = tuple(dict.fromkeys(stream for stream, _ in places_of(grant, plans.bundle.site)))
        if not streams:
            return None
        return SubscriptionAddress(stream=streams[0], durable=grant.durable, view=grant.view, streams=streams)

    def subscription(
        self, name: str, address: SubscriptionAddress, *, max_in_flight: int | None = None
    ) -> Subscription:
        """The team's subscription *name*, not opened yet."""
        return Subscription(
            self.connection,
            team=self._who.team,
            name=name,
            address=address,
            bundle=self.bundle,
            trust=self.trust,
            max_in_flight=max_in_flight,
            on_unmask=self.unmasked,
        )

    def reveal(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """*fields* with every value opened that was encrypted for our team.

        Raises:
            ConfigError: A key file of ours is malformed.
        """
        return decrypt_fields(fields, cipher_keys(self._who.ciphers), self._who.tenant)

    def load(self) -> None:
        """Begin with what is kept on disk."""
        self.bundle.load()
        self.trust.load()

    async def first_state(self) -> None:
        """Begin with what is kept on disk; wait for a bundle and a trust statement where there is none.

        Of both, newer ones are read where they can be. Without a trust statement in time subscriptions wait for one.

        Raises:
            NoBundle: None came in time, or none that holds up.
        """
        self.load()
        with anyio.move_on_after(FIRST_STATE_S):
            await first_state(self.bundle, self.trust)
        if self.bundle.plans is None:
            refused = self.bundle.state.refused
            raise NoBundle(
                f"no valid policy bundle after {FIRST_STATE_S:.0f} s",
                expected="one from the control plane",
                got="none" if refused is None else f"one that is refused: {refused.code}",
                next="`mesh status` shows whether the control plane runs",
            )

    async def stop(self) -> None:
        """Say good-bye, while `audit.run` still runs: the last audit records, and a report that nobody waits for us."""
        if not self.connection.connected:
            return
        with anyio.move_on_after(STOP_S, shield=True), suppress(MeshError):
            if len(self.audit):
                await self.audit.flush(STOP_S)
            await self.reporter.send(stopped=True)


@asynccontextmanager
async def open_team(
    who: ReadingTeam, *, nats_url: str, creds: bytes | Callable[[], bytes] | None, tls: TlsFiles | None
) -> AsyncIterator[TeamReader]:
    """Connect with the team's credentials, wait for the first state, keep it current for the length of the block.

    Args:
        who: The team, and its files.
        nats_url: Where the server listens.
        creds: The team's, as `Connection.open` takes them.
        tls: Where the server asks for it.

    Raises:
        ConfigError: A file is missing or malformed.
        Disconnected: NATS cannot be reached.
        NoBundle: No valid bundle came in time.
    """
    async with AsyncExitStack() as stack:
        connection = await Connection.open(nats_url, name=workload_of("team", who.team), creds=creds, tls=tls)
        stack.push_async_callback(connection.close)
        reader = TeamReader(who, connection)
        await reader.first_state()
        await stack.enter_async_context(beside(*(work for _, work in reader.works)))
        stack.push_async_callback(reader.stop)
        yield reader


@asynccontextmanager
async def beside(*works: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run *works* beside the block; what the block raises passes as it is, where a task group would wrap it."""
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(work)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below
            raised = error
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def first_state(bundle: BundleWatch, trust: TrustWatch) -> None:
    """Read both until there is a bundle and a trust statement; what was kept of either counts."""
    while True:
        for read in (trust.look, bundle.refresh):
            with suppress(Unavailable):  # the server or the control plane is still coming up
                await read()
        if bundle.plans is not None and trust.keyring.statement is not None:
            return
        await anyio.sleep(0.1)


def cipher_keys(directory: Path) -> dict[str, bytes]:
    """The keys that open what was encrypted for a team, by name: one `<name>.key` each.

    Raises:
        ConfigError: A file is no key.
    """
    keys = {}
    for file in sorted(directory.glob("*.key")):
        try:
            key = bytes.fromhex(file.read_text().strip())
        except (OSError, ValueError):
            key = b""
        if len(key) != CIPHER_KEY_BYTES:
            raise ConfigError(
                f"{file.name} is not a key",
                expected=f"{2 * CIPHER_KEY_BYTES} hexadecimal characters",
                next="have the control plane hand it out again",
            )
        keys[file.name.removesuffix(".key")] = key
    return keys
