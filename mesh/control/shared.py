"""What the tenants of one mesh have in common: on one machine, or under a control plane of several replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import Sizes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from mesh.control.attest import Attestor
    from mesh.control.datadir import DataDirectory
    from mesh.control.reconcile import Operator
    from mesh.control.tls_files import MeshTls
    from mesh.control.trust import Authority
    from mesh.control.truststore import TrustStore


GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `mesh up` was asked for."""

    data: Path
    policies: Path
    site: str = "local"
    trust_domain: str = "mesh.local"
    nats_port: int = 0
    base_port: int = 0  # agents take base, base+1, ... three each, in the order of their names; 0: free ports
    tls: bool = False  # from here on, in this directory: TLS 1.3 to NATS, both sides show a certificate
    encrypt: bool = False  # from here on, in this directory: JetStream's files are encrypted
    on_demand: bool = False  # an agent starts when `LocalWorkloads.want` asks for it, not with the mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Leading:
    """That this process is the one of several replicas that leads, and agents and servers are others' to run.

    Attributes:
        term: Its number: higher than that of every leader before. Account JWTs carry it.
        connect: Makes a connection that sends nothing when it leads no more: a name, and the content of a creds file.
        save: Puts what changed in the data directory where the next leader finds it. Raises as `Vault.save`.
        streams: Replicas of each stream.
        event_gib: How much each domain's stream of events may hold.
        attestor: Says whose an enrolment token is; None: tokens are files that we write.
    """

    term: int
    connect: Callable[[str, bytes], Awaitable[Connection]]
    save: Callable[[], Awaitable[None]]
    streams: int = 1
    event_gib: int = 1
    attestor: Attestor | None = None


class Shared:
    """What the tenants of one mesh have in common.

    Args:
        data: The data directory.
        operator, authority: Sign accounts, and certificates and bundles.
        system: A connection of the system account.
        nats_url: Of the server.
        options: What was asked for.
        changed: Called when agents, teams or subscriptions are other ones than before.
        tls: Keeps everybody's TLS files; None for a mesh without TLS, and where others keep them.
        renew_store: Gives the server's store another encryption key; None where it is not encrypted.
        leading: Of a control plane that runs neither servers nor agents; None on one machine.
    """

    def __init__(  # noqa: PLR0917 - each of another type
        self,
        data: DataDirectory,
        operator: Operator,
        authority: Authority,
        system: Connection,
        nats_url: str,
        options: Options,
        changed: Callable[[], Awaitable[None]],
        *,
        tls: MeshTls | None = None,
        renew_store: Callable[[], Awaitable[None]] | None = None,
        leading: Leading | None = None,
    ) -> None:
        self.data = data
        self.operator = operator
        self.authority = authority
        self.system = system
        self.nats_url = nats_url
        self.options = options
        self.changed = changed
        self.tls = tls
        self.renew_store = renew_store
        self.leading = leading
        self.taken: dict[str, str] = {}
        self.stores: dict[str, TrustStore] = {}  # of each tenant that is up: they share the mesh CA
        base = options.base_port
        self.ports: Iterator[int] | None = iter(range(base, base + 10_000)) if base else None

    @property
    def term(self) -> int:
        """Of the leader; 0 where there is only one control plane."""
        return 0 if self.leading is None else self.leading.term

    @property
    def sizes(self) -> Sizes:
        """Of the streams."""
        if self.leading is None:
            return Sizes()
        return Sizes(event_bytes=self.leading.event_gib * GIB, replicas=self.leading.streams)

    async def save(self) -> None:
        """Have what was made below the data directory where the next leader finds it.

        Raises:
            Deposed, RequestFailed, Unavailable: As `Vault.save`.
        """
        if self.leading is not None:
            await self.leading.save()

    async def connect(self, name: str, creds: bytes) -> Connection:
        """A connection of the control plane.

        Raises:
            ConfigError, Disconnected: As `Connection.open`.
        """
        if self.leading is not None:
            return await self.leading.connect(name, creds)
        tls = None if self.tls is None else self.tls.control
        return await Connection.open(self.nats_url, name=name, creds=creds, tls=tls)
