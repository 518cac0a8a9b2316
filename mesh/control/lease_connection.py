"""A connection of the replica that leads: it sends nothing as soon as another one may lead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from mesh.jetstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.tls import TlsFiles


class LeaderConnection(Connection):
    """One connection to NATS, good for one term.

    A process that was stopped goes on in the middle of what it did, with requests in its hands that are old. Here is
    the one place through which all of it has to go.
    """

    guard: Callable[[], None] | None = None

    @classmethod
    async def lead(
        cls, url: str, name: str, creds: bytes | None, guard: Callable[[], None], *, tls: TlsFiles | None = None
    ) -> Self:
        """Connect.

        Args:
            url: As for `Connection.open`.
            name: As for `Connection.open`.
            creds: As for `Connection.open`.
            guard: Asked before each write; raises Deposed when the term is over.
            tls: As for `Connection.open`.

        Raises:
            ConfigError, Disconnected: As `Connection.open`.
        """
        connection = await cls.open(url, name=name, creds=creds, tls=tls)
        connection.guard = guard
        return connection

    def write(self, frames: bytes) -> None:
        """Send frames.

        Raises:
            Deposed: The term is over.
            Disconnected: There is no link.
        """
        if self.guard is not None:
            self.guard()
        super().write(frames)
