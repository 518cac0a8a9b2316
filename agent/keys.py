"""The files an agent holds: event key and certificate, the keys of its ids and pseudonyms, its token.

A file that is replaced while we run (a rotated certificate, a new token) is read again; one that cannot be read or does
not check leaves the last good one in force, and the log says so.
"""

from __future__ import annotations

import hmac
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import logs
from mesh.errors import ConfigError, MeshError, NoDomainKey, OutsideCertificate, SignerExpired
from mesh.identity import Signer, SpiffeId, check_certificate, seed_from_pem
from mesh.policy.ciphers import CIPHER_KEY_BYTES
from mesh.signing import message_id, seal
from mesh.statements import SALT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agent.settings import AgentSettings
    from mesh.jetstream.outgoing import Outgoing

KEY_BYTES = 32
MIN_TOKEN_CHARS = 32  # 128 bits in hexadecimal, and more in base64url
MIN_SECRET_BYTES = 16  # a webhook secret that is typed by hand is too short
MAX_FILE_BYTES = 65_536

log = logs.get("agent")


def clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Secrets:
    """One or more secrets in files, read again when a file changes.

    Args:
        paths: One secret a file; white space at the end does not count.
        min_bytes: A shorter secret is refused.
        check_s: Seconds between looks at the files.
        clock: Monotonic seconds.

    Raises:
        ConfigError: A file cannot be read, or its secret is too short.
    """

    def __init__(
        self, paths: Sequence[Path], *, min_bytes: int, check_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = tuple(paths)
        self._min_bytes = min_bytes
        self._check_s = check_s
        self._clock = clock
        self._stamp = _stamp(self._paths)
        self._values = self._read()
        self._next = clock() + check_s

    def values(self) -> tuple[bytes, ...]:
        """The secrets in force."""
        now = self._clock()
        if now >= self._next:
            self._next = now + self._check_s
            self._refresh()
        return self._values

    def fits(self, given: bytes) -> bool:
        """Whether *given* is one of the secrets; the time this takes says nothing about them."""
        return any([hmac.compare_digest(value, given) for value in self.values()])  # noqa: C419 - a list: no early end

    def _refresh(self) -> None:
        stamp = _stamp(self._paths)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._values = self._read()
            log.info("secret_reloaded", files=[path.name for path in self._paths])
        except ConfigError as error:
            log.error("secret_not_reloaded", code=error.code, error=error.message)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(self._secret(path) for path in self._paths)

    def _secret(self, path: Path) -> bytes:
        secret = read(path, "a secret").strip()
        if len(secret) < self._min_bytes:
            raise ConfigError(
                f"the secret in {path.name} is too short",
                expected=f"{self._min_bytes} characters or more",
                got=f"{len(secret)}",
                next="make a random one",
            )
        return secret


class MaskingKeys:
    """What this agent masks with: pseudonym keys by domain, `encrypt` keys by cipher name."""

    def __init__(self, domains: Mapping[str, bytes], ciphers: Mapping[str, bytes] | None = None) -> None:
        self._domains = dict(domains)
        self._ciphers = dict(ciphers or {})

    def domain(self, name: str) -> bytes:
        """The 32-byte key of a pseudonym domain.

        Raises:
            NoDomainKey: We hold none: the control plane hands keys only to agents that mask with them.
        """
        if name not in self._domains:
            raise _no_key("pseudonym domain", name, "domains_dir")
        return self._domains[name]

    def cipher(self, name: str) -> bytes:
        """The 64-byte key of `encrypt` for one set of readers and one mode. Raises NoDomainKey as well."""
        if name not in self._ciphers:
            raise _no_key("cipher", name, "ciphers_dir")
        return self._ciphers[name]

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The domains among *names* that we hold no key of."""
        return sorted(set(names) - self._domains.keys())

    def lacking_ciphers(self, names: Iterable[str]) -> list[str]:
        """The ciphers among *names* that we hold no key of."""
        return sorted(set(names) - self._ciphers.keys())


def _no_key(what: str, name: str, setting: str) -> NoDomainKey:
    return NoDomainKey(
        f"this agent has no key for the {what} {name}",
        expected=f"{name}.key in {setting}",
        next="have the control plane hand out the key; it is read as soon as it is there",
        domain=name,
    )


class Keys:
    """What an agent masks, addresses and seals with.

    Args:
        settings: Which files.
        base: The directory of `agent.toml`; relative paths start there.

    Raises:
        ConfigError: A file is missing, malformed, or belongs to somebody else.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        self._settings = settings
        self._base = base
        self.dedupe = hex_key(self.path(settings.dedupe_key_file))
        self.masks = self._masks()
        self._stamp = self._signing_stamp()
        self.signer = self._signer()

    def in_force(self, now_ms: int) -> bool:
        """Whether our certificate is in force, so that others believe what we seal."""
        return self.signer.not_before_ms <= now_ms <= self.signer.not_after_ms

    def expired(self) -> SignerExpired:
        """The error for an agent whose certificate is not in force."""
        return SignerExpired(
            "the event key's certificate is not in force, and nobody would believe what it seals",
            expected="a certificate in force, and a clock that is right",
            next=f"have the control plane renew {self._settings.event_cert_file}; it is read as soon as it is there",
        )

    def seal(self, items: Sequence[tuple[str, str, bytes]]) -> list[str]:
        """Sign a batch of (subject, message id, body) now, with fresh salts: `Mesh-Signature` for each.

        Raises:
            SignerExpired: Our certificate is not in force.
        """
        chance = os.urandom(SALT_BYTES * len(items))
        salts = [chance[i : i + SALT_BYTES] for i in range(0, len(chance), SALT_BYTES)]
        try:
            return seal(items, self.signer, signed_ms=clock_ms(), salts=salts)
        except OutsideCertificate:
            raise self.expired() from None

    def message_id(self, outgoing: Outgoing) -> str:
        """The `Nats-Msg-Id` of one copy: the same for the same event, whoever of our replicas sends it."""
        o = outgoing
        return message_id(self.dedupe, o.source, o.event_id, o.subject, o.generation)

    def path(self, name: str) -> Path:
        """A file of the settings."""
        return self._base / name

    def refresh(self) -> None:
        """Read a replaced event key or certificate, and new keys to mask with; keep the last good ones."""
        stamp = self._signing_stamp()
        if stamp == self._stamp:
            return
        try:
            self.masks = self._masks()
            self.signer = self._signer()
            self._stamp = stamp
            log.info("keys_reloaded", kid=self.signer.kid)
        except ConfigError as error:  # perhaps the key is replaced and the certificate not yet: look again next time
            log.error("keys_not_reloaded", code=error.code, error=error.message)

    def _signing_stamp(self) -> tuple[int, ...]:
        settings = self._settings
        names = (settings.event_key_file, settings.event_cert_file, settings.domains_dir, settings.ciphers_dir)
        return _stamp([self.path(name) for name in names])

    def _masks(self) -> MaskingKeys:
        domains, ciphers = self.path(self._settings.domains_dir), self.path(self._settings.ciphers_dir)
        return MaskingKeys(
            {file.stem: hex_key(file) for file in sorted(domains.glob("*.key"))},
            {file.stem: hex_key(file, CIPHER_KEY_BYTES) for file in sorted(ciphers.glob("*.key"))},
        )

    def _signer(self) -> Signer:
        settings = self._settings
        key, certificate = self.path(settings.event_key_file), self.path(settings.event_cert_file)
        try:
            der = x509.load_pem_x509_certificate(read(certificate, "a certificate")).public_bytes(Encoding.DER)
            signer = Signer.from_seed(seed_from_pem(read(key, "an event key")), der)
            root = self.path(settings.trust_dir) / "ca.crt"
            if root.exists():
                check_certificate(der, [root.read_bytes()])
        except (ValueError, MeshError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{key.name} and {certificate.name} do not make an identity: {error}",
                expected="an Ed25519 key and its certificate, issued by the CA in trust_dir",
                next="have the control plane issue a certificate again",
            ) from error
        ours = settings.spiffe_id or str(SpiffeId.for_agent(settings.trust_domain, settings.tenant, settings.name))
        if str(signer.spiffe_id) != ours:
            raise ConfigError(
                f"{certificate.name} is somebody else's",
                expected=ours,
                got=str(signer.spiffe_id),
                next="compare name, tenant and trust_domain with the certificate",
            )
        return signer


def read(path: Path, what: str) -> bytes:
    """A small file of ours.

    Raises:
        ConfigError: It cannot be read, or is no small file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error.__class__.__name__}",
            expected=what,
            next="check the setting that names it, and its owner and mode",
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is no {what}", expected=f"at most {MAX_FILE_BYTES} bytes", got=f"{len(content)}")
    return content


def hex_key(path: Path, length: int = KEY_BYTES) -> bytes:
    """A key of *length* bytes, kept as twice as many hexadecimal characters.

    Raises:
        ConfigError: Something else is in the file.
    """
    try:
        key = bytes.fromhex(read(path, "a key").decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != length:
        raise ConfigError(
            f"{path} is not a key", expected=f"{2 * length} hexadecimal characters", next="restore or issue it again"
        )
    return key


def _stamp(paths: Sequence[Path]) -> tuple[int, ...]:
    """What changes when a file does: inode, size and time of each."""
    stamp: list[int] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            stamp.append(-1)
        else:
            stamp.extend((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(stamp)
