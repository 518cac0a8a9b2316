"""What a process believes without being told by anybody: the roots and the trust key in a `trust/` directory.

The directory is handed out by the control plane and holds nothing secret. Whoever can write to it decides whom its
readers believe, so it belongs to the operator, not to the broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import ConfigError, IdentityError
from mesh.identity import Keyring

if TYPE_CHECKING:
    from pathlib import Path

ROOTS_FILE = "ca.crt"
TRUST_KEY_FILE = "trust.pub"


def open_keyring(trust: Path, *, tenant: str | None = None) -> Keyring:
    """A keyring with the roots and the trust key of a `trust/` directory.

    Args:
        trust: Holds `ca.crt`, one or more roots, and `trust.pub`.
        tenant: Whose trust statements count; None for whosever they are.

    Raises:
        ConfigError: A file is missing or is not what it should be.
    """
    try:
        roots = (trust / ROOTS_FILE).read_bytes()
        key = bytes.fromhex((trust / TRUST_KEY_FILE).read_text().strip())
        return Keyring([roots], key, tenant=tenant)
    except (OSError, ValueError, IdentityError) as error:
        raise ConfigError(
            f"{trust} holds no trust anchors: {error.__class__.__name__}",
            expected=f"{ROOTS_FILE} (PEM) and {TRUST_KEY_FILE} (64 hexadecimal characters)",
            next="copy them from the control plane",
        ) from error
