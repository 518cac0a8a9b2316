"""Asking the control plane: one request at its door, and its answer, or the problem as the error it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from rich.markup import escape

from mesh.cli.output import errors
from mesh.errors import Disconnected, MeshError, Unavailable, catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.cli.operator import OperatorConnection
    from mesh.jetstream.connection import Connection

CHANGE_S = 30.0  # for what the control plane does while somebody waits at a terminal
READS_S = {
    "list": 5.0,
    "show": 5.0,
    "status": 5.0,
    "history": 5.0,
    "store-status": 5.0,
    "export": 15.0,
    "audit": 15.0,  # asks every server of a cluster
    "shadow-report": 15.0,  # asks every agent
}  # what changes nothing, by verb

_AGAIN = {
    "trust": "`mesh trust list` says whether; asking again is safe",
    "policy": "`mesh policy status` says whether; asking again is safe",
    "policy rollback": "`mesh policy status` says whether; then roll back to a revision by its number, which is safe",
    "replay": "`mesh replay list` says whether",
    "dlq": "`mesh dlq list` says whether; asking again is safe",
    "policy shadow-start": "`mesh policy shadow report` says whether; asking again is safe",
    "policy shadow-stop": "`mesh policy shadow report` says whether; asking again is safe",
}  # what to do about a change nobody answered for, by noun, or noun and verb
_CLASSES = {error.code: error for error in catalogue()}
_SAID = ("code", "message", "expected", "got", "next")


async def ask(
    connection: OperatorConnection,
    verb: str,
    body: dict[str, Any],
    *,
    noun: str = "policy",
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Send `ctl.<noun>.<verb>` and return the answer.

    Args:
        connection: The operator's.
        verb: Of the door, such as `status`.
        body: Sent as JSON.
        noun: Which of the control plane's doors.
        timeout_s: For the answer; what is usual for the verb unless given.

    Raises:
        MeshError: What the control plane answered instead; of the class that it was.
        Unavailable: No control plane runs, or it did not answer in time: a change may be done all the same.
    """
    subject, data = f"ctl.{noun}.{verb}", msgspec.json.encode(body)
    within_s = READS_S.get(verb, CHANGE_S) if timeout_s is None else timeout_s
    try:
        reply = await connection.request(subject, data, headers=connection.proof(subject, data), timeout_s=within_s)
    except Unavailable as error:
        raise _unanswered(error, noun, verb, within_s) from None
    answer: dict[str, Any] = msgspec.json.decode(reply.data, type=dict)
    if problem := answer.get("error"):
        raise problem_error(problem)
    return answer


def _unanswered(error: Unavailable, noun: str, verb: str, within_s: float) -> Unavailable:
    """What a request that got no answer leaves: nothing, or a change of which nobody knows."""
    if error.details.get("reason") == "no-responders":
        return Unavailable(
            "no control plane runs in this mesh",
            expected="`mesh up`, or a control plane",
            next="start it, then ask again",
        )
    lost = isinstance(error, Disconnected)
    what = "the connection to NATS ended" if lost else f"the control plane gave no answer within {within_s:g} s"
    kind, facts = Disconnected if lost else Unavailable, error.details
    if verb in READS_S:
        return kind(
            what, got=error.got, next="ask again" if lost else "look at the log of `mesh up`, then ask again", **facts
        )
    again = _AGAIN.get(f"{noun} {verb}", _AGAIN[noun])
    return kind(f"{what}: it is not known whether this was done", got=error.got, next=again, **facts)


@contextmanager
def progress(connection: Connection, steps: Mapping[str, str], *, quiet: bool) -> Iterator[str]:
    """An inbox whose messages are names of steps; each is said on standard error as it begins, in the words of *steps*.

    Args:
        connection: That the request goes out on.
        steps: What to say, by name.
        quiet: Say nothing.
    """
    inbox = connection.new_inbox()

    def said(_subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        step = data.decode(errors="replace")
        if not quiet:
            errors.print(f"[dim]  {escape(steps.get(step, step))}[/]")

    listener = connection.listen(inbox, said)
    try:
        yield inbox
    finally:
        listener.close()


def problem_error(problem: dict[str, Any]) -> MeshError:
    """The error that a problem document says."""
    known = _CLASSES.get(str(problem.get("code", "")), MeshError)
    error = known.__new__(known)  # PolicyErrors is made from its errors, and these are told already
    MeshError.__init__(
        error,
        str(problem.get("message", "the control plane failed")),
        expected=str(problem.get("expected", "")),
        got=str(problem.get("got", "")),
        next=str(problem.get("next", "")),
        **{name: value for name, value in problem.items() if name not in _SAID},
    )
    return error
