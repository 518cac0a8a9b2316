"""A table of ours in an application's PostgreSQL, written in the application's own transactions and made on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

UNDEFINED_TABLE = "42P01"  # PostgreSQL, appendix A


class PostgresTable:
    """One table, in the first schema of the connection's search path.

    It is looked for before it is made: who may write to it need not have the right to make one.

    Args:
        name: Its name.
        create: The statements that make it, where it is missing.
    """

    def __init__(self, name: str, create: Sequence[str]) -> None:
        self.name = name
        self._create = tuple(create)
        self._there = False

    async def execute(self, connection: asyncpg.Connection, statement: str, *arguments: object) -> str:
        """Execute *statement* in the open transaction; returns PostgreSQL's word for what was done.

        Raises:
            ConfigError: No transaction is open.
        """
        if not connection.is_in_transaction():
            raise ConfigError(
                f"{self.name} is written in the transaction of what belongs with it, and none is open",
                expected="`async with connection.transaction():`",
                next="open one around both",
            )
        await self.make(connection)
        try:
            return str(await connection.execute(statement, *arguments))
        except Exception as error:
            if getattr(error, "sqlstate", "") == UNDEFINED_TABLE:  # made in a transaction that was rolled back
                self._there = False
            raise

    async def make(self, connection: asyncpg.Connection) -> None:
        """Make it in the open transaction, if it is missing; whoever makes it too waits for the end of that."""
        if self._there:
            return
        self._there = bool(await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", self.name))
        if not self._there:
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", self.name)
            for statement in self._create:
                await connection.execute(statement)
