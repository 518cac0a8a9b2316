"""TLS certificates of a mesh on one machine: made where they are lacking, made anew in good time.

Each workload has `tls.crt` (its chain) and `tls.key` in its own directory, the server in `nats/`, the control plane in
`admin/`. They are nobody's only proof: who somebody is in NATS, the JWT says. A new pair is in place once half of the
old one's life is over, or as soon as there is another mesh CA. Clients read it at their next dial; the server is told.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from cryptography import x509

from mesh import logs
from mesh.control.datadir import write_private
from mesh.control.reconcile import now_ms
from mesh.errors import ConfigError, MeshError
from mesh.jetstream.tls import TlsFiles, client_context
from mesh.keys import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from mesh.control.datadir import DataDirectory
    from mesh.control.trust import Authority

RENEW_AT = 0.5  # of the lifetime
CHECK_S = 10.0  # between two looks: a file that was lost, or issued by a mesh CA that was replaced, is back after that
SERVER_NAMES = ("127.0.0.1", "localhost")

log = logs.get("tls")


class MeshTls:
    """The TLS files below a data directory. Whoever is named once is kept in valid certificates while `run` runs.

    Args:
        data: The data directory.
        authority: Issues the certificates.
        trust_domain: Of the control plane's own name.
    """

    def __init__(self, data: DataDirectory, authority: Authority, trust_domain: str) -> None:
        self._data = data
        self._authority = authority
        self._control = SpiffeId.parse(f"spiffe://{trust_domain}/control")
        self._clients: dict[str, Mapping[Path, str]] = {}
        self._writing = threading.Lock()  # policies may name a client while it is being renewed in a thread
        self._untold = False  # whether the server has files that it has not read yet
        self.ca_file = data.trust / "ca.crt"

    def open(self) -> None:
        """Make what the server and the control plane need.

        Raises:
            IdentityError: The mesh CA is not valid now.
        """
        self.follow("control", {self._data.admin: self._control})
        self._renew_server()
        self._untold = False  # it is yet to start

    def follow(self, group: str, clients: Mapping[Path, str]) -> None:
        """Make what is lacking for *clients*, and from now on keep it valid.

        Args:
            group: Whose clients these are: they take the place of those it named before.
            clients: The SPIFFE id of each by its directory.

        Raises:
            IdentityError: The mesh CA is not valid now, or an id is not of its trust domain.
        """
        self._clients[group] = dict(clients)
        for directory, spiffe_id in clients.items():
            self._renew_client(directory, spiffe_id)

    def of(self, directory: Path) -> TlsFiles:
        """The files of whoever has *directory*."""
        return TlsFiles(self.ca_file, directory / "tls.crt", directory / "tls.key")

    @property
    def server(self) -> TlsFiles:
        """The server's."""
        return self.of(self._data.nats)

    @property
    def control(self) -> TlsFiles:
        """The control plane's."""
        return self.of(self._data.admin)

    async def run(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Renew what is due, until cancelled.

        Args:
            reload: Has the server read its files again; MeshError where it did not.
        """
        while True:
            await anyio.sleep(CHECK_S)
            await self.renew(reload)

    async def renew(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Renew what is due now. What fails is logged, and tried again at the next look; see `run`."""
        clients = [client for group in list(self._clients.values()) for client in group.items()]
        for directory, spiffe_id in clients:
            try:
                await anyio.to_thread.run_sync(self._renew_client, directory, spiffe_id)
            except (MeshError, OSError) as error:
                log.error("tls_not_renewed", workload=spiffe_id, error=str(error))
        try:
            await anyio.to_thread.run_sync(self._renew_server)
            if self._untold:
                await reload()
                self._untold = False
        except (MeshError, OSError) as error:
            log.error("tls_not_renewed", workload="nats-server", error=str(error))

    def _renew_client(self, directory: Path, spiffe_id: str) -> None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
        with self._writing:
            if self._due(self.of(directory), names):
                self._write(self.of(directory), *self._authority.ca.issue_tls_client(spiffe_id, now_ms=now_ms()))
                log.info("tls_renewed", workload=spiffe_id)

    def _renew_server(self) -> None:
        if self._due(self.server):
            self._write(self.server, *self._authority.ca.issue_tls_server(SERVER_NAMES, now_ms=now_ms()))
            self._untold = True
            log.info("tls_renewed", workload="nats-server")

    def _due(self, files: TlsFiles, names: x509.SubjectAlternativeName | None = None) -> bool:
        """Whether another pair is needed: there is none, it ends soon, is another's, or of another mesh CA."""
        try:
            client_context(files)
            chain = files.cert.read_bytes()
            leaf = x509.load_pem_x509_certificate(chain)
        except (ConfigError, OSError, ValueError):
            return True  # missing, damaged, or certificate and key of two pairs: a crash fell between their renames
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        began, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        old = now_ms() / 1000 >= began + RENEW_AT * (ends - began)
        return old or not chain.endswith(self._authority.ca.cert_pem) or (names is not None and held != names)

    @staticmethod
    def _write(files: TlsFiles, chain: bytes, key: bytes) -> None:
        """Replace both at once, or nearly: whoever reads in between reads again."""
        fresh = [(file.with_name(f"{file.name}.next"), file) for file in (files.key, files.cert)]
        for (made, _), content in zip(fresh, (key, chain), strict=True):
            write_private(made, content)
        for made, file in fresh:
            made.replace(file)
