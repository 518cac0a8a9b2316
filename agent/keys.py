"""What an agent holds: its event key, the keys of its ids and pseudonyms, its token.

A file that is replaced while we run (a new token, the key of a new domain) is read again; one that cannot be read or
does not check leaves the last good one in force, and the log says so. The event key comes from `agent.enrolment`.
"""

from __future__ import annotations

import hmac
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import logs
from mesh.errors import ConfigError, NoDomainKey, NotEnrolled, OutsideCertificate, SignerExpired
from mesh.policy.ciphers import CIPHER_KEY_BYTES
from mesh.signing import seal
from mesh.statements import SALT_BYTES, MessageIds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agent.settings import AgentSettings
    from mesh.identity import Signer
    from mesh.jetstream.outgoing import Outgoing

KEY_BYTES = 32
MIN_TOKEN_CHARS = 32  # 128 bits in hexadecimal, and more in base64url
MIN_SECRET_BYTES = 16  # a webhook secret that is typed by hand is too short
MAX_FILE_BYTES = 65_536
TOKEN, CREDENTIALS = "an enrolment token", "NATS credentials"  # what the control plane hands out

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
        check: Raises ConfigError for a secret that is not of its form.

    Raises:
        ConfigError: A file cannot be read, or its secret is too short or not of its form.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        min_bytes: int,
        check_s: float,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[bytes], object] = bytes,
    ) -> None:
        self._paths = tuple(paths)
        self._min_bytes = min_bytes
        self._check_s = check_s
        self._clock = clock
        self._check = check
        self._stamp = stamp(self._paths)
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
        now = stamp(self._paths)
        if now == self._stamp:
            return
        self._stamp = now
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
        self._check(secret)
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
        self._domains = base / settings.domains_dir
        self._ciphers = base / settings.ciphers_dir
        self._stamp = stamp([self._domains, self._ciphers])
        self._signer: Signer | None = None
        self.dedupe = hex_key(base / settings.dedupe_key_file)
        self._message_ids = MessageIds(self.dedupe)
        self.masks = self._masks()

    @property
    def signer(self) -> Signer:
        """What seals now.

        Raises:
            NotEnrolled: There is none yet.
        """
        if self._signer is None:
            raise NotEnrolled(
                "the agent has no event key yet, and nobody would believe what it publishes",
                expected="a certificate from the control plane",
                next="send the same again; the agent goes on asking for one, and its log says what is wrong",
            )
        return self._signer

    def seal_with(self, signer: Signer) -> None:
        """Seal with *signer* from the next batch on; a batch is sealed by one key."""
        self._signer = signer

    def check(self, now_ms: int) -> None:
        """Raise unless others would believe what we seal now.

        Raises:
            NotEnrolled: There is no key yet.
            SignerExpired: Its certificate is not in force.
        """
        if not self.signer.not_before_ms <= now_ms <= self.signer.not_after_ms:
            raise _expired()

    def seal(self, items: list[tuple[str, str, bytes]]) -> list[str]:
        """Sign a batch of (subject, message id, body) now, with fresh salts: `Mesh-Signature` for each.

        Raises:
            NotEnrolled: There is no key yet.
            SignerExpired: Our certificate is not in force.
        """
        salts = os.urandom(SALT_BYTES * len(items))
        try:
            return seal(items, self.signer, signed_ms=clock_ms(), salts=salts)
        except OutsideCertificate:
            raise _expired() from None

    def message_id(self, outgoing: Outgoing) -> str:
        """The `Nats-Msg-Id` of one copy: the same for the same event, whoever of our replicas sends it."""
        o = outgoing
        return self._message_ids.of(o.source, o.event_id, o.subject, o.generation)

    def refresh(self) -> None:
        """Read new keys to mask with; keep the last good ones."""
        now = stamp([self._domains, self._ciphers])
        if now == self._stamp:
            return
        try:
            self.masks = self._masks()
            self._stamp = now
            log.info("masking_keys_reloaded")
        except ConfigError as error:
            log.error("masking_keys_not_reloaded", code=error.code, error=error.message)

    def _masks(self) -> MaskingKeys:
        return MaskingKeys(
            {file.stem: hex_key(file) for file in sorted(self._domains.glob("*.key"))},
            {file.stem: hex_key(file, CIPHER_KEY_BYTES) for file in sorted(self._ciphers.glob("*.key"))},
        )


def _expired() -> SignerExpired:
    return SignerExpired(
        "the event key's certificate is not in force, and nobody would believe what it seals",
        expected="a certificate in force, and a clock that is right",
        next="is the control plane running? A certificate is taken into use as soon as it is there",
    )


def read(path: Path, what: str) -> bytes:
    """A small file of ours.

    Raises:
        ConfigError: It cannot be read, or is no small file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error.__class__.__name__}",
            expected=what,
            next=_HANDED_OUT if missing and what in (TOKEN, CREDENTIALS) else _CHECK,
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is no {what}", expected=f"at most {MAX_FILE_BYTES} bytes", got=f"{len(content)}")
    return content


_CHECK = "check the setting that names it, and its owner and mode"
_HANDED_OUT = (
    "start `mesh up` again, which writes what is missing; where the agent was revoked, `mesh trust admit AGENT` writes "
    "another; where others keep the file, check the setting that names it"
)


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


def stamp(paths: Sequence[Path]) -> tuple[int, ...]:
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
