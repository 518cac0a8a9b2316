"""What the tenants of one mesh on one machine have in common, and what `mesh up` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from mesh.control.datadir import DataDirectory
    from mesh.control.reconcile import Operator
    from mesh.control.tls_files import MeshTls
    from mesh.control.trust import Authority
    from mesh.control.truststore import TrustStore
    from mesh.jetstream.connection import Connection


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


class Shared:
    """What the tenants of one mesh have in common.

    Args:
        data: The data directory.
        operator, authority: Sign accounts, and certificates and bundles.
        system: A connection of the system account.
        nats_url: Of the server.
        options: What was asked for.
        changed: Called when agents, teams or subscriptions are other ones than before.
        tls: Keeps everybody's TLS files; None for a mesh without TLS.
        renew_store: Gives the server's store another encryption key; None where it is not encrypted.
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
        self.taken: dict[str, str] = {}
        self.stores: dict[str, TrustStore] = {}  # of each tenant that is up: they share the mesh CA
        base = options.base_port
        self.ports: Iterator[int] | None = iter(range(base, base + 10_000)) if base else None
