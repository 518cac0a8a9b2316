"""The NATS keys of a control plane, as files: operator, system account, each tenant's account, each workload's."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Literal

from mesh.control.datadir import write_private
from mesh.jetstream.accounts import Nkey

if TYPE_CHECKING:
    from pathlib import Path

_ACCOUNT = ".account.nk"


class NkeyFiles:
    """Keys by name, made on first use and kept, so that accounts and credentials outlive a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, kind: Literal["operator", "account", "user"], name: str) -> Nkey:
        """The key of *name*, made where there is none; a `/` in it is a directory.

        Raises:
            IdentityError: The file holds no seed.
        """
        return self.find(kind, name) or self.renew(kind, name)

    def find(self, kind: Literal["operator", "account", "user"], name: str) -> Nkey | None:
        """The key of *name*; None where there is none.

        Raises:
            IdentityError: The file holds no seed.
        """
        try:
            return Nkey(self._path(kind, name).read_text().strip())
        except FileNotFoundError:
            return None

    def renew(self, kind: Literal["operator", "account", "user"], name: str) -> Nkey:
        """Give *name* a new key in place of the one it has, and return it.

        A user's old key goes on opening its account until the account's JWT revokes it. The order that survives a crash
        and leaves no gap: `Standing.revoke_user` with the public key that `find` gives, `renew`, write the credentials,
        `Accounts.refresh`, which cuts the old ones off.
        """
        key = Nkey.from_random(kind, secrets.token_bytes(32))
        write_private(self._path(kind, name), key.seed.encode() + b"\n")
        return key

    def accounts(self, tenant: str) -> list[str]:
        """Every workload of *tenant* that was ever given an account."""
        return sorted(path.name.removesuffix(_ACCOUNT) for path in (self._directory / tenant).glob(f"*{_ACCOUNT}"))

    def names(self) -> dict[str, str]:
        """The name of every account that was ever made, by its public key.

        Raises:
            IdentityError: A file holds no seed.
        """
        found = {}
        for path in self._directory.rglob(f"*{_ACCOUNT}"):
            name = path.relative_to(self._directory).as_posix().removesuffix(_ACCOUNT)
            found[self.get("account", name).public] = name
        return found

    def _path(self, kind: str, name: str) -> Path:
        return self._directory / f"{name}.{kind}.nk"
