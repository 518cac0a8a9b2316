"""The control plane's own copy of a tenant's trust store: the statement in force, and every certificate not yet ended.

<tenant>.statement               as it was handed out, signed
<tenant>.certificates/<kid>      a certificate followed by its issuer, DER
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.certificates import check_chain
from mesh.control.datadir import private_directory, write_private
from mesh.errors import BadTrustStatement, ConfigError, IdentityError
from mesh.identity import TrustStatement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.control.trust import Authority
    from mesh.keys import Certificate

log = logs.get("control")


class TrustCopies:
    """The files of one tenant.

    Args:
        file: Of the statement.
        authority: Has the keys to check them by.
        tenant: Whose; a statement of another tenant is none here.
    """

    def __init__(self, file: Path, authority: Authority, tenant: str) -> None:
        self._file = file
        self._directory = file.with_suffix(".certificates")
        self._authority = authority
        self._tenant = tenant

    def opened(self, sealed: bytes) -> TrustStatement:
        """A statement that our trust key signed for this tenant.

        Raises:
            BadTrustStatement: It is none.
        """
        statement = TrustStatement.open(sealed, self._authority.trust_public)
        if statement.tenant != self._tenant:
            raise BadTrustStatement("of another tenant", expected=self._tenant, got=statement.tenant)
        return statement

    async def statement(self) -> TrustStatement | None:
        """The one we kept; None before the first.

        Raises:
            BadTrustStatement: The file holds something else.
            ConfigError: It cannot be read.
        """
        try:
            return self.opened(await anyio.Path(self._file).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self._file} cannot be read: {error.strerror}", next="restore it") from error
        except BadTrustStatement as error:
            raise BadTrustStatement(
                f"{self._file} is not the statement we wrote: {error.message}",
                next="restore it together with trust.key; without it the store is believed about who is revoked",
            ) from error

    async def keep_statement(self, sealed: bytes) -> None:
        """Replace the statement.

        Raises:
            ConfigError: It cannot be written.
        """
        await self._write(self._file, sealed)

    async def make_room(self) -> bool:
        """Make the place of the certificates; False where it was there already.

        Raises:
            ConfigError: It cannot be made.
        """
        if await anyio.Path(self._directory).is_dir():
            return False
        try:
            await anyio.to_thread.run_sync(private_directory, self._directory)
        except OSError as error:
            raise _not_written(self._directory, error) from error
        return True

    async def certificates(self, at_ms: int) -> list[Certificate]:
        """Those that have not ended at *at_ms*; the files of the others are removed. A bad one is logged and stays."""
        return await anyio.to_thread.run_sync(self._certificates, at_ms)

    def _certificates(self, at_ms: int) -> list[Certificate]:
        found = []
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith("."):
                continue  # a write that was cut off
            try:
                held = check_chain(path.read_bytes(), self._authority.roots)
            except IdentityError as error:
                log.error("kept_certificate_refused", tenant=self._tenant, kid=path.name, code=error.code)
                continue
            if held.not_after_ms > at_ms:
                found.append(held)
            else:
                path.unlink()
        return found

    async def keep_certificate(self, certificate: Certificate) -> None:
        """Keep it until it ends.

        Raises:
            ConfigError: It cannot be written.
        """
        await self._write(self._directory / certificate.kid, certificate.chain)

    def forget_certificate(self, kid: str) -> None:
        """It ended, or was never handed out.

        Raises:
            ConfigError: It cannot be removed.
        """
        file = self._directory / kid
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{file} cannot be removed: {error.strerror}", next="remove it") from error

    async def _write(self, file: Path, content: bytes) -> None:
        try:
            await anyio.to_thread.run_sync(write_private, file, content)
        except OSError as error:
            raise _not_written(file, error) from error


def _not_written(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror}",
        expected="room and the right to write it",
        next="make room: without a copy of our own, a store that goes back in time would be believed",
    )


def earliest(*statements: Mapping[str, int]) -> dict[str, int]:
    """Every key of *statements* with the earliest time that one of them gives."""
    found: dict[str, int] = {}
    for revoked in statements:
        for kid, from_ms in revoked.items():
            found[kid] = min(from_ms, found.get(kid, from_ms))
    return found
