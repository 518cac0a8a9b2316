"""The root and the mesh CA of one control plane, as files.

    trust/ca.crt            every root that ours believe, PEM, the newest last: everybody reads it
    admin/root.crt|.key     our own root; the key signs mesh CAs alone, and whoever runs the mesh may keep it elsewhere
    admin/ca.crt|.key       the mesh CA, an intermediate that signs certificates of a day

A directory of an earlier version, whose root signed certificates itself (`trust/ca.key`), is carried over: its root
goes on to be believed, so that what is stored verifies, and its key is deleted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import logs
from mesh.ca import MeshCA, RootCA
from mesh.control.datadir import write_if_changed, write_private
from mesh.errors import BadCertificate, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

RENEW_AT = 0.5  # of the mesh CA's lifetime: half a year in which a failure to renew can be put right

log = logs.get("control")


class Hierarchy:
    """Our root and mesh CA; made on first use.

    Args:
        trust: The directory of what everybody may read.
        admin: The directory of what nobody else may.
        trust_domain: Of both.
        now_ms: Unix milliseconds.

    Attributes:
        ca: The mesh CA that signs today.
        roots: Every root that is believed, PEM, one each.

    Raises:
        ConfigError: A file of ours is missing or damaged, and nothing may stand in for it.
    """

    def __init__(self, trust: Path, admin: Path, *, trust_domain: str, now_ms: int) -> None:
        self._renewing = threading.Lock()
        self._root_crt, self._root_key = admin / "root.crt", admin / "root.key"
        self._ca_crt, self._ca_key = admin / "ca.crt", admin / "ca.key"
        if not self._root_crt.exists():
            self._make_root(trust_domain, now_ms)
        self.roots = _believe(trust / "ca.crt", self._root_crt.read_bytes())
        self.ca = self._held() or self._issue(now_ms)
        if self.ca.trust_domain != trust_domain:
            raise ConfigError(
                "the CA of this directory speaks for another trust domain",
                expected=self.ca.trust_domain,
                got=trust_domain,
                next="start with that trust domain, or on another directory",
            )
        (trust / "ca.key").unlink(missing_ok=True)  # last: its root is believed beside ours, and ours is complete
        self.renew(now_ms)

    def renew(self, now_ms: int, *, force: bool = False) -> bool:
        """Have the root sign a new mesh CA once half the life of ours is over, or at once; True where it did.

        Without the root's key it is said as an error, each time, until the key is there.

        Raises:
            ConfigError: *force*, and there is no root key; nothing was changed.
        """
        with self._renewing:  # the daily look and `mesh trust rotate --ca` come from threads
            return self._renew(now_ms, force=force)

    def _renew(self, now_ms: int, *, force: bool) -> bool:
        due_ms = self.ca.not_before_ms + RENEW_AT * (self.ca.not_after_ms - self.ca.not_before_ms)
        if not force and now_ms < due_ms:
            return False
        if self._root_key.exists():
            self.ca = self._issue(now_ms)
            return True
        if force:
            raise _no_root_key(self._root_key)
        left_s = max(0, self.ca.not_after_ms - now_ms) // 1000
        log.error("mesh_ca_not_renewed", kid=self.ca.kid, ends_in_s=left_s, next=f"put {self._root_key.name} back")
        return False

    def _make_root(self, trust_domain: str, now_ms: int) -> None:
        """Our own root; the certificate last, as its file says that it is complete."""
        if self._ca_crt.exists():
            raise ConfigError(
                f"{self._root_crt} is missing",
                expected="the root that signed ca.crt beside it",
                next="restore it; trust/ca.crt holds a copy of it",
            )
        made = RootCA.create(trust_domain, now_ms=now_ms)
        write_private(self._root_key, made.key_pem)
        write_private(self._root_crt, made.cert_pem)

    def _held(self) -> MeshCA | None:
        """The mesh CA of the files; None where there is none, or a crash left one half of a new one."""
        if not (self._ca_crt.exists() and self._ca_key.exists()):
            return None
        try:
            held = MeshCA.from_pem(self._ca_crt.read_bytes(), self._ca_key.read_bytes())
        except BadCertificate as error:
            log.error("mesh_ca_damaged", code=error.code, error=error.message)
            return None
        if not any(_issued(held.cert_pem, root) for root in self.roots):
            log.error("mesh_ca_of_no_root", kid=held.kid)
            return None
        return held

    def _issue(self, now_ms: int) -> MeshCA:
        """A new mesh CA, in its files. Nothing is lost with the one before: its certificates carry it with them."""
        if not self._root_key.exists():
            raise _no_root_key(self._root_key)
        made = RootCA.from_pem(self._root_crt.read_bytes(), self._root_key.read_bytes()).issue_ca(now_ms=now_ms)
        write_private(self._ca_key, made.key_pem)
        write_private(self._ca_crt, made.cert_pem)
        log.info("mesh_ca_issued", kid=made.kid)
        return made


def _issued(certificate_pem: bytes, root_pem: bytes) -> bool:
    """Whether this root signed this certificate."""
    certificate, root = (x509.load_pem_x509_certificate(pem) for pem in (certificate_pem, root_pem))
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _no_root_key(path: Path) -> ConfigError:
    return ConfigError(
        f"a new mesh CA needs the root's key, and {path} is missing",
        expected="the key of root.crt beside it",
        next="put it back from where you keep it for as long as this takes",
    )


def _believe(path: Path, root_pem: bytes) -> tuple[bytes, ...]:
    """The roots of `trust/ca.crt`, to which *root_pem* is added where it is not there yet."""
    try:
        known = x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []
        ours = x509.load_pem_x509_certificate(root_pem)
    except ValueError as error:
        raise ConfigError(
            f"{path} or root.crt holds no certificates", expected="PEM", next="restore them from a backup"
        ) from error
    roots = [*known, *(() if ours in known else (ours,))]
    texts = tuple(root.public_bytes(Encoding.PEM) for root in roots)
    write_if_changed(path, b"".join(texts))
    return texts
