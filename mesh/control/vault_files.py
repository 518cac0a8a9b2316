"""Which files of a data directory are the state of a control plane: made once, and the same for every replica.

key files    made by `mesh control init`, given to every replica by whoever runs it, never sent anywhere
state        everything else that is made once: a replica without it would make another one
the rest     made from the two at each start, or a process's own
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import msgspec

from mesh.control.datadir import write_if_changed
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CONTROL_ACCOUNT = "_control"  # where lease and state lie; no tenant can be called so

KEY_FILES = (
    "admin/state.key",
    "admin/root.crt",
    "admin/root.key",
    "admin/trust.key",
    "admin/policy.key",
    "admin/enrol.key",
    "admin/operator.key",
    "nats/keys/operator.operator.nk",
    "nats/keys/system.account.nk",
    "nats/keys/system.user.nk",
    f"nats/keys/{CONTROL_ACCOUNT}.account.nk",
    f"nats/keys/{CONTROL_ACCOUNT}/control.user.nk",
)
OPTIONAL_KEY_FILES = ("admin/root.key",)  # may be kept elsewhere: see `Hierarchy`

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_STATE = re.compile(
    "|".join(
        (
            r"admin/ca\.(crt|key)",
            rf"admin/{_NAME}\.creds",
            rf"admin/bundles/{_NAME}\.bundle",
            rf"admin/trust/{_NAME}\.statement",
            rf"admin/standing/{_NAME}\.json",
            rf"admin/enrol/{_NAME}/{_NAME}\.json",
            rf"admin/(domains|ciphers)/{_NAME}/{_NAME}\.key",
            r"trust/(ca\.crt|(trust|policy|enrol)\.pub)",
            rf"nats/keys/({_NAME}/)?{_NAME}\.nk",
            rf"agents/{_NAME}/(token|dedupe\.key|enrol\.token|nats\.creds)",
            rf"agents/{_NAME}/((domains|ciphers)/{_NAME}\.key|webhooks/{_NAME}\.secret)",
            rf"teams/{_NAME}/(nats\.creds|ciphers/{_NAME}\.key)",
        )
    )
)
MAX_STATE_BYTES = 64 * 1024 * 1024  # unpacked; a thousand agents have 3 MiB
_ROOTS = ("admin", "trust", "nats/keys", "agents", "teams")


def is_state(name: str) -> bool:
    """Whether a file, by its path below the data directory, is state."""
    return _STATE.fullmatch(name) is not None and name not in KEY_FILES


def missing_keys(root: Path) -> list[str]:
    """The key files that a data directory lacks."""
    needed = (name for name in KEY_FILES if name not in OPTIONAL_KEY_FILES)
    return [name for name in needed if not (root / name).is_file()]


def read_state(root: Path) -> dict[str, bytes]:
    """The state below a data directory, by path."""
    return {name: path.read_bytes() for name, path in _found(root)}


def write_state(root: Path, files: Mapping[str, bytes]) -> int:
    """Make the state below a data directory be exactly *files*; returns how many files that changed.

    Raises:
        ConfigError: A name among them is none of a state file; nothing was written.
        OSError: A file cannot be written.
    """
    if strange := sorted(name for name in files if not is_state(name)):
        raise ConfigError(
            f"{len(strange)} files of the state have no place in a data directory",
            expected="what a control plane of this version keeps",
            got=", ".join(strange[:3]),
            next="run the same version in every replica",
        )
    changed = sum(write_if_changed(root / name, content) for name, content in files.items())
    for name, path in list(_found(root)):
        if name not in files:
            path.unlink()
            changed += 1
    return changed


def pack_state(root: Path) -> bytes:
    """The state below a data directory; the same bytes for the same files."""
    return zlib.compress(msgspec.msgpack.encode(read_state(root), order="sorted"))


def unpack_state(packed: bytes) -> dict[str, bytes]:
    """The files of a state, by path.

    Raises:
        ConfigError: They are too large.
    """
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(packed, MAX_STATE_BYTES)
    if unpacking.unconsumed_tail:
        raise ConfigError("the state of the control plane is too large", expected=f"{MAX_STATE_BYTES} bytes at most")
    return msgspec.msgpack.decode(data, type=dict[str, bytes])


def _found(root: Path) -> Iterator[tuple[str, Path]]:
    for top in _ROOTS:
        for path in sorted((root / top).rglob("*")):
            name = path.relative_to(root).as_posix()
            if is_state(name) and path.is_file():
                yield name, path
