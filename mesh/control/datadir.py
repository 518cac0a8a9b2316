"""The data directory of a mesh on one machine: every path in it, and every secret made once and kept.

Directories are 0700 and files 0600, whatever the umask. A secret is written to a new file that is then renamed, so a
crash leaves the old one or the new one, never half of either. A second start on the same directory finds everything.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import ConfigError
from mesh.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

CIPHER_BYTES = 64  # AES-SIV with two keys of 256 bits
KEY_BYTES = 32  # dedupe and domain keys: BLAKE2b takes up to 64, 32 are beyond guessing
TOKEN_BYTES = 32  # 43 characters of base64url
OPEN_TO_OTHERS = 0o077  # any right of group or others
LOCK_NAME = "mesh.lock"  # the first file of every mesh, and so the mark of a directory that is ours


def private_directory(path: Path) -> Path:
    """Make *path* and its parents, readable by their owner alone; those that are there already stay as they are."""
    if not path.parent.is_dir():
        private_directory(path.parent)  # `mkdir(parents=True)` would leave them to the umask
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o700)  # a strange umask takes even the owner's rights away
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace *path* whole by *content*, mode 0600."""
    private_directory(path.parent)
    replace_file(path, content)


def write_if_changed(path: Path, content: bytes) -> bool:
    """Like `write_private`, but leaves an equal file alone; True if it wrote."""
    if path.exists() and path.read_bytes() == content:
        return False
    write_private(path, content)
    return True


def hex_key(path: Path, size: int = KEY_BYTES) -> bytes:
    """A key of *size* bytes kept as hexadecimal characters; made on first use.

    Raises:
        ConfigError: The file holds something else.
    """
    if not path.exists():
        write_private(path, secrets.token_hex(size).encode() + b"\n")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != size:
        raise ConfigError(
            f"{path} is not a key",
            expected=f"{2 * size} hexadecimal characters",
            next="restore it from a backup; a new key makes new tokens and new message ids",
        )
    return key


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths below `--data`."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> DataDirectory:
        """Make the directory where it is missing. One that is there is never changed: it has to fit as it is.

        Raises:
            ConfigError: It exists and is not ours to use: a file, somebody else's, open to others, or full of other
                things.
        """
        try:
            private_directory(root)
            _check_ours(root)
        except (OSError, NotADirectoryError) as error:
            raise ConfigError(
                f"{root} cannot be the data directory: {error.strerror or error}",
                expected="a directory we may write",
                next="name another with --data or MESH_DATA_DIR",
            ) from error
        return cls(root.resolve())

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Hold the directory's lock; the kernel lets go of it when we end, however we end.

        Raises:
            ConfigError: Somebody holds it.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another mesh runs on {self.root}",
                    expected="a directory nobody uses",
                    next="stop it, or name another directory with --data",
                ) from None
            yield
        finally:
            os.close(descriptor)

    @property
    def mesh_file(self) -> Path:
        """`mesh.json`: written last, when everything is ready."""
        return self.root / "mesh.json"

    @property
    def lock_file(self) -> Path:
        """Held while a mesh runs on this directory."""
        return self.root / LOCK_NAME

    @property
    def admin(self) -> Path:
        """The control plane's own keys, credentials and copies: nobody else reads them."""
        return self.root / "admin"

    @property
    def nats(self) -> Path:
        """The server: its configuration, keys and store."""
        return self.root / "nats"

    @property
    def keys(self) -> Path:
        """Seeds of the operator, the accounts and their users."""
        return self.nats / "keys"

    @property
    def trust(self) -> Path:
        """What everybody may read and has to trust: roots and public keys."""
        return self.root / "trust"

    def bundle(self, tenant: str) -> Path:
        """The control plane's own copy of the bundle in force."""
        return self.admin / "bundles" / f"{tenant}.bundle"

    @property
    def bundled(self) -> list[str]:
        """The tenants of which there is such a copy."""
        return sorted(path.stem for path in (self.admin / "bundles").glob("*.bundle"))

    def statement(self, tenant: str) -> Path:
        """The control plane's own copy of the trust statement in force."""
        return self.admin / "trust" / f"{tenant}.statement"

    def standing(self, tenant: str) -> Path:
        """Which workloads are barred, and which NATS users are revoked."""
        return self.admin / "standing" / f"{tenant}.json"

    def enrolment(self, tenant: str) -> Path:
        """Digests of the agents' enrolment tokens."""
        return self.admin / "enrol" / tenant

    @property
    def log(self) -> Path:
        """One log file a process."""
        return self.root / "log"

    def agent(self, name: str) -> Path:
        """One agent's settings and keys."""
        return self.root / "agents" / name

    def team(self, name: str) -> Path:
        """One team's credentials."""
        return self.root / "teams" / name

    def admin_creds(self, tenant: str, tenants: list[str]) -> Path:
        """Our credentials in *tenant*: `nats.creds` for the first tenant, `nats-<tenant>.creds` for each other."""
        return self.admin / ("nats.creds" if tenant == min(tenants) else f"nats-{tenant}.creds")

    def token(self, agent: str) -> Path:
        """The bearer token of an agent's door; made on first use."""
        path = self.agent(agent) / "token"
        if not path.exists():
            write_private(path, urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=") + b"\n")
        return path

    def dedupe_key(self, agent: str) -> bytes:
        """The key of an agent's message ids, slots and partition tokens: the same for all its replicas and restarts."""
        return hex_key(self.agent(agent) / "dedupe.key")

    def domain_key(self, tenant: str, domain: str) -> bytes:
        """A pseudonym domain's key; agents that mask in the domain get a copy."""
        return hex_key(self.admin / "domains" / tenant / f"{domain}.key")

    def cipher_key(self, tenant: str, cipher: str) -> bytes:
        """An encryption key by the name of who may read; agents that encrypt for these, and these, get a copy."""
        return hex_key(self.admin / "ciphers" / tenant / f"{cipher}.key", CIPHER_BYTES)


def _check_ours(root: Path) -> None:
    """Refuse a directory in which our secrets would not be secret, or would lie among somebody's files."""
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{root} belongs to another user",
            expected="a directory of your own",
            next="name another with --data or MESH_DATA_DIR",
        )
    if stat.S_IMODE(status.st_mode) & OPEN_TO_OTHERS:
        raise ConfigError(
            f"{root} is open to other users, and would hold every key of the mesh",
            expected="mode 0700",
            got=f"mode {stat.S_IMODE(status.st_mode):04o}",
            next=f"chmod 700 {root}, or name a new directory with --data: it is made as it has to be",
        )
    lock = root / LOCK_NAME
    if not (lock.is_file() and not lock.is_symlink()) and any(root.iterdir()):
        raise ConfigError(
            f"{root} is not empty, and no mesh made it",
            expected=f"a new or empty directory, or one with the {LOCK_NAME} of an earlier start",
            next="name another with --data or MESH_DATA_DIR",
        )
