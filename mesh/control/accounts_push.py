"""Account JWTs to the servers: push, wait for every server, read back. Through a user of the system account.

A pushed import list is live within milliseconds and disconnects nobody.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mesh.errors import MeshError, RequestFailed, Unavailable
from mesh.jetstream.accounts import claims_of, grants_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.jetstream.connection import Connection

PUSH_TIMEOUT_S = 5.0  # one push takes 0.6 ms
AT_ONCE = 32  # pushes under way; with accounts of 5 KB 160 KB

_numbers = itertools.count()


async def push(connection: Connection, tokens: Iterable[str], *, servers: int = 1, again: bool = False) -> list[str]:
    """Make the servers' accounts be as *tokens* say.

    Accounts that export go first: a running workload's import of an exporter that the server does not know yet gets no
    answers until it is pushed again (measured).

    Args:
        connection: Of a user of the system account.
        tokens: Account JWTs, one an account.
        servers: How many must confirm: all of the cluster.
        again: Also push what the servers already have, for one that came back with old files.

    Returns:
        The public keys of the accounts that were pushed; empty when all were already so.

    Raises:
        RequestFailed: A server refused a JWT, or holds another one afterwards.
        Unavailable: Too few servers confirmed in time.
    """
    changed: list[str] = []
    errors: list[MeshError] = []
    gate = anyio.CapacityLimiter(AT_ONCE)

    async def one(token: str) -> None:
        async with gate:
            try:
                if again or not await _live(connection, token):
                    await _push_one(connection, token, servers)
                    changed.append(claims_of(token)["sub"])
            except MeshError as error:
                errors.append(error)

    tokens = list(tokens)
    for exports in (True, False):
        async with anyio.create_task_group() as group:
            for token in tokens:
                if ("exports" in claims_of(token)["nats"]) is exports:
                    group.start_soon(one, token)
        if errors:
            raise errors[0]
    return changed


async def lookup(connection: Connection, account: str) -> str | None:
    """The JWT that a server holds for *account* (a public key); None where it knows none."""
    reply = await connection.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", timeout_s=PUSH_TIMEOUT_S)
    return reply.data.decode() or None


async def _live(connection: Connection, token: str) -> bool:
    live = await lookup(connection, claims_of(token)["sub"])
    return live is not None and grants_of(live) == grants_of(token)


async def _push_one(connection: Connection, token: str, servers: int) -> None:
    """Push and collect one answer a server: a request would end with the first."""
    account = claims_of(token)["sub"]
    answers: list[dict[str, Any]] = []
    enough = anyio.Event()

    def collect(_subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        answers.append(msgspec.json.decode(data) if data else {})
        if len(answers) >= servers:
            enough.set()

    inbox = f"{connection.inbox}.claims.{next(_numbers)}"
    listener = connection.listen(inbox, collect)
    try:
        await connection.publish("$SYS.REQ.CLAIMS.UPDATE", token.encode(), reply=inbox)
        with anyio.move_on_after(PUSH_TIMEOUT_S):
            await enough.wait()
    finally:
        listener.close()
    for answer in answers:
        if "data" not in answer:
            reason = answer.get("error", {}).get("description", "no server in operator mode listens")
            raise RequestFailed(f"the account {account} was refused: {reason}", err_code=0)
    if len(answers) < servers:
        raise Unavailable(
            f"{len(answers)} of {servers} servers confirmed the account {account}",
            next="push again when all servers run; the others already use it",
        )
    if await lookup(connection, account) != token:
        raise RequestFailed(f"the server holds another JWT for {account} than the one pushed", err_code=0)
