"""The servers of a cluster, asked all at once through a user of the system account.

A server that starts again has another id: whoever knows which ids it has dealt with knows who is new.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mesh import logs
from mesh.errors import Unavailable
from mesh.jetstream.requests import NO_RESPONDERS
from mesh.jetstream.wire import status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection

STATISTICS = "$SYS.SERVER.*.STATSZ"  # each server says so when it joins, milliseconds after its start, then every 10 s
PING = "$SYS.REQ.SERVER.PING"
SILENT_S = 1.0  # for a server that others are connected to and that does not answer: an answer takes a millisecond
ALONE_S = 4.0  # more, where no server has answered: nothing can go on without one, and a busy machine takes its time

_numbers = itertools.count()

log = logs.get("control")


async def ask_all(
    connection: Connection,
    subject: str,
    payload: bytes,
    *,
    enough: Callable[[list[bytes]], bool],
    timeout_s: float,
) -> list[bytes]:
    """Ask every server and collect the answers: a request would end with the first.

    Args:
        connection: Of a user of the system account.
        subject: Of the question.
        payload: Of the question.
        enough: Told all answers so far after each; True ends the wait.
        timeout_s: After which fewer have to do.

    Raises:
        Unavailable: Nobody serves this: it is no user of the system account, or the servers are not in operator mode.
        Disconnected: There is no link.
    """
    answers: list[bytes] = []
    served = True
    done = anyio.Event()

    def collect(_subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        nonlocal served
        status = None if data else status_of(headers)
        if status is not None and status.code == NO_RESPONDERS:
            served = False
        else:
            answers.append(data)
        if not served or enough(answers):
            done.set()

    inbox = f"{connection.inbox}.all.{next(_numbers)}"
    listener = connection.listen(inbox, collect)
    try:
        await connection.publish(subject, payload, reply=inbox)
        with anyio.move_on_after(timeout_s):
            await done.wait()
    finally:
        listener.close()
    if not served:
        raise Unavailable(
            f"no server answers {subject}",
            expected="servers in operator mode, asked by a user of the system account",
            reason="no-responders",
        )
    return answers


async def present(connection: Connection) -> dict[str, str]:
    """The servers that answer now: name by id.

    A server without a connection to the others is not waited for. One that is connected and silent is, for `SILENT_S`;
    then it is left out, and said in the log. The first to answer is waited for longer, `ALONE_S`.

    Raises:
        Unavailable: None answers.
    """
    found: dict[str, str] = {}
    known: set[str] = set()

    def all_here(answers: list[bytes]) -> bool:
        answer = msgspec.json.decode(answers[-1])
        found[answer["server"]["id"]] = answer["server"]["name"]
        known.update(route["name"] for route in answer["statsz"].get("routes", ()) if route.get("name"))
        return known <= set(found.values())

    await ask_all(connection, PING, b"", enough=all_here, timeout_s=SILENT_S)
    if not found:
        await ask_all(connection, PING, b"", enough=all_here, timeout_s=ALONE_S)
    if not found:
        raise Unavailable(f"no server answered within {SILENT_S + ALONE_S:.0f} s", next="see that nats-server runs")
    if silent := known - set(found.values()):
        log.warning("servers_silent", servers=sorted(silent), answered=sorted(found.values()))
    return found


async def ask_each(
    connection: Connection, subject: str, payload: dict[str, Any], *, servers: int, timeout_s: float
) -> list[dict[str, Any]]:
    """As `ask_all`, of JSON, until so many *servers* have answered.

    Raises:
        Unavailable: As `ask_all`, or fewer answered in time.
    """
    answers = await ask_all(
        connection,
        subject,
        msgspec.json.encode(payload),
        enough=lambda found: len(found) >= servers,
        timeout_s=timeout_s,
    )
    if len(answers) < servers:
        raise Unavailable(f"{len(answers)} of {servers} servers answered {subject}", next="ask again")
    return [msgspec.json.decode(answer) for answer in answers]
