"""Account JWTs to the servers: compare with what each has, push, wait for every server, read back.

Through a user of the system account. A pushed import list is live within milliseconds and disconnects nobody. Servers
take an older JWT over a newer one, and a restarted server takes the one with the later time from the others: so the
time in an account's JWTs has to rise, and an older one is never pushed.

Where several control planes may lead, one after the other, each JWT carries the term of the leader that made it. The
first thing a leader does is to say every account again in its own term; whoever led before finds the higher one. Only
an account that exports stays as it is where nothing but the term is new: a server that takes it anew forgets the way
back of every pull that is open through its exports, whose events then go nowhere (measured on 2.15.1: consumers stood
still for 10 s at each change of leader). An account that imports may be pushed at any time. So the term keeps out a
deposed leader of another version, whose exporting account says something else, only from when on the leader of now has
pushed that account: while the stored one bears an older term, its own is not refused.

A server loads an account in a time that grows with the square of its imports (measured on 2.15.1: 0.09 s of its
processor for 372, 1.4 s for 1,422, which is a team with 200 subscriptions), and says nothing of any account meanwhile.
One that answers a ping is waited for; each attempt waits twice as long as the one before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec

from mesh import logs
from mesh.control.cluster import SILENT_S, ask_all, present
from mesh.errors import Deposed, MeshError, RequestFailed, Unavailable
from mesh.jetstream.accounts import claims_of, grants_of, term_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from mesh.jetstream.connection import Connection

PUSH_TIMEOUT_S = 60.0  # for the last server to confirm: most in 0.6 ms, one with 1,422 imports under load in 8 s
AT_ONCE = 32  # pushes under way; with accounts of 5 KB 160 KB

Resign = Callable[[str, int], str]

log = logs.get("control")


class Pushed(NamedTuple):
    """What became of a push: the accounts (public keys) that some server did not have so, and who confirmed (ids)."""

    accounts: list[str]
    servers: frozenset[str]


async def push(connection: Connection, tokens: Iterable[str]) -> list[str]:
    """Make every server's accounts be as *tokens* say: all servers that answer now.

    Args:
        connection: Of a user of the system account.
        tokens: Account JWTs, one an account.

    Returns:
        The public keys of the accounts that were pushed; empty when all were already so on every server.

    Raises:
        Deposed: A server has one of a later term.
        RequestFailed: A server refused a JWT, has a newer one, or holds another one afterwards.
        Unavailable: Too few servers confirmed in time.
    """
    tokens = list(tokens)
    return (await push_to(connection, tokens, await present(connection))).accounts if tokens else []


async def push_to(
    connection: Connection, tokens: Iterable[str], servers: Collection[str], *, resign: Resign | None = None
) -> Pushed:
    """As `push`, to certain servers.

    Accounts that export go first: a running workload's import of an exporter that the server does not know yet gets no
    answers until it is pushed again (measured).

    Args:
        connection: Of a user of the system account.
        tokens: Account JWTs, one an account.
        servers: Ids of those that must confirm. One that stops answering meanwhile is left out, and of the result too.
        resign: Gives the JWT of an account (a public key) anew with at least this time, where a server has one that is
            not older. Without it such a JWT is refused.

    Raises:
        Deposed, RequestFailed, Unavailable: As `push`.
    """
    pushing = _Push(connection, frozenset(servers), resign)
    tokens = list(tokens)
    for exports in (True, False):
        async with anyio.create_task_group() as group:
            for token in tokens:
                if _exports(token) is exports:
                    group.start_soon(pushing.one, token)
        if pushing.errors:
            raise pushing.errors[0]
    return Pushed(pushing.changed, pushing.servers)


async def lookup(connection: Connection, account: str, *, servers: int = 1) -> list[str]:
    """The JWTs that so many *servers* hold for *account* (a public key).

    A server that knows none adds nothing, and so does one that does not answer within `SILENT_S`.
    """
    return [answer.decode() for answer in await _looked_up(connection, account, servers, SILENT_S) if answer]


async def _looked_up(connection: Connection, account: str, servers: int, timeout_s: float) -> list[bytes]:
    return await ask_all(
        connection,
        f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP",
        b"",
        enough=lambda found: len(found) >= servers,
        timeout_s=timeout_s,
    )


def _waits_s() -> Iterator[float]:
    """How long each attempt waits for an answer: what a busy server is asked again adds to what it has to do."""
    return (SILENT_S * 2**attempt for attempt in itertools.count())


class _Push:
    """Some accounts on their way to the servers."""

    def __init__(self, connection: Connection, servers: frozenset[str], resign: Resign | None) -> None:
        self._connection = connection
        self._resign = resign
        self._gate = anyio.CapacityLimiter(AT_ONCE)
        self.servers = servers
        self.changed: list[str] = []
        self.errors: list[MeshError] = []

    async def one(self, token: str) -> None:
        """Push one account where a server has another; what fails is kept in `errors`, and ends what has not begun."""
        async with self._gate:
            if self.errors:
                return
            try:
                account = claims_of(token)["sub"]
                held = await self._held(account)
                term = not _exports(token)
                grants = grants_of(token, term=term)
                _check_term(token, held)
                if len(held) == len(self.servers) and all(grants_of(one, term=term) == grants for one in held):
                    return
                await self._send(account, self._newest(token, held))
                self.changed.append(account)
            except MeshError as error:
                self.errors.append(error)

    async def _held(self, account: str) -> list[str]:
        """What each server holds. One that does not say is waited for while it is there, up to `PUSH_TIMEOUT_S`."""
        answers: list[bytes] = []
        with anyio.move_on_after(PUSH_TIMEOUT_S):
            for wait_s in _waits_s():
                answers = await _looked_up(self._connection, account, len(self.servers), wait_s)
                if len(answers) < len(self.servers):
                    await self._look()
                if len(answers) >= len(self.servers):
                    break
                log.warning("account_not_read", account=account, waited_s=wait_s, why="a server is busy")
        return [answer.decode() for answer in answers if answer]

    async def _look(self) -> None:
        """Go on without the servers that do not answer any more: they are told when they are back."""
        self.servers &= frozenset(await present(self._connection))

    def _newest(self, token: str, held: list[str]) -> str:
        """*token*, or one like it that is newer than all that are *held*.

        Newer than the same one too: a server that lost its file takes no JWT that it remembers (measured).
        """
        claims = claims_of(token)
        last = max((claims_of(one)["iat"] for one in held), default=0)
        if self._resign is not None and last >= claims["iat"]:
            return self._resign(claims["sub"], last + 1)
        if last > claims["iat"]:
            raise RequestFailed(
                f"a server holds a newer JWT for the account {claims['sub']}",
                err_code=0,
                expected=f"one made at {last} or later",
                got=f"one made at {claims['iat']}",
                next="look whether another control plane runs, and at the clocks",
            )
        return token

    async def _send(self, account: str, token: str) -> None:
        """Push until all servers have confirmed, and hold it when they are asked."""
        confirmed: set[str] = set()
        with anyio.move_on_after(PUSH_TIMEOUT_S):
            for wait_s in _waits_s():
                confirmed |= await self._update(account, token, confirmed, wait_s)
                if not self.servers <= confirmed:
                    await self._look()
                    if not self.servers <= confirmed:
                        _late(account, token, wait_s)
                        continue
                held = await self._held(account)
                if any(one != token for one in held):
                    raise RequestFailed(f"a server holds another JWT for {account} than the one pushed", err_code=0)
                if len(held) >= len(self.servers):
                    return
        raise Unavailable(
            f"{len(self.servers & confirmed)} of {len(self.servers)} servers confirmed the account {account}",
            next="push again; the others already use it",
        )

    async def _update(self, account: str, token: str, confirmed: set[str], timeout_s: float) -> set[str]:
        """Push once; returns the ids of the servers that took it. Those in *confirmed* are not waited for."""
        answers = await ask_all(
            self._connection,
            "$SYS.REQ.CLAIMS.UPDATE",
            token.encode(),
            enough=lambda found: self.servers <= confirmed | {_server(one) for one in found},
            timeout_s=timeout_s,
        )
        for answer in map(msgspec.json.decode, answers):
            if "data" not in answer:
                reason = answer.get("error", {}).get("description", "no reason given")
                raise RequestFailed(f"the account {account} was refused: {reason}", err_code=0)
        return {_server(one) for one in answers}


def _late(account: str, token: str, waited_s: float) -> None:
    """Say why it takes so long."""
    imports = len(claims_of(token)["nats"].get("imports", ()))
    why = "a server loads one account at a time, in the square of its imports"
    log.warning("account_not_confirmed", account=account, imports=imports, waited_s=waited_s, why=why)


def _exports(token: str) -> bool:
    return "exports" in claims_of(token)["nats"]


def _check_term(token: str, held: list[str]) -> None:
    """Raise Deposed where a server has the account from a leader after us."""
    term, last = term_of(token), max(map(term_of, held), default=0)
    if last > term:
        raise Deposed(
            "a server has an account from a control plane that led after us",
            expected=f"term {term} or before",
            got=f"term {last}",
            next="nothing, where another replica leads; else look whether two meshes share these servers",
        )


def _server(answer: bytes) -> str:
    found: dict[str, Any] = msgspec.json.decode(answer)
    return str(found.get("server", {}).get("id", ""))
