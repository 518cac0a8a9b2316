"""The NATS keys of a control plane, as files: operator, system account, each tenant's account, each workload's."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Literal

from mesh.control.datadir import write_private
from mesh.jetstream.accounts import Nkey

if TYPE_CHECKING:
    from pathlib import Path


class NkeyFiles:
    """Keys by name, made on first use and kept, so that accounts and credentials outlive a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, kind: Literal["operator", "account", "user"], name: str) -> Nkey:
        """The key of *name*; a `/` in it is a directory.

        Raises:
            IdentityError: The file holds no seed.
        """
        path = self._directory / f"{name}.{kind}.nk"
        if not path.exists():
            write_private(path, Nkey.from_random(kind, secrets.token_bytes(32)).seed.encode() + b"\n")
        return Nkey(path.read_text().strip())

    def accounts(self, tenant: str) -> list[str]:
        """Every workload of *tenant* that was ever given an account."""
        suffix = ".account.nk"
        return sorted(path.name.removesuffix(suffix) for path in (self._directory / tenant).glob(f"*{suffix}"))
