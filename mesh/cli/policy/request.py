"""Asking the control plane: one request at its door, and its answer, or the problem as the error it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from rich.markup import escape

from mesh.cli.output import errors
from mesh.errors import MeshError, Unavailable, catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.cli.operator import OperatorConnection
    from mesh.jetstream.connection import Connection

ANSWER_S = 30.0  # for what the control plane does while somebody waits at a terminal

_CLASSES = {error.code: error for error in catalogue()}
_SAID = ("code", "message", "expected", "got", "next")


async def ask(
    connection: OperatorConnection,
    verb: str,
    body: dict[str, Any],
    *,
    noun: str = "policy",
    timeout_s: float = ANSWER_S,
) -> dict[str, Any]:
    """Send `ctl.<noun>.<verb>` and return the answer.

    Args:
        connection: The operator's.
        verb: Of the door, such as `status`.
        body: Sent as JSON.
        noun: Which of the control plane's doors.
        timeout_s: For the answer.

    Raises:
        MeshError: What the control plane answered instead; of the class that it was.
        Unavailable: No control plane runs, or it did not answer in time.
    """
    subject, data = f"ctl.{noun}.{verb}", msgspec.json.encode(body)
    try:
        reply = await connection.request(subject, data, headers=connection.proof(subject, data), timeout_s=timeout_s)
    except Unavailable as error:
        if error.details.get("reason") != "no-responders":
            raise
        raise Unavailable(
            "no control plane runs in this mesh",
            expected="`mesh up`, or a control plane",
            next="start it, then ask again",
        ) from None
    answer: dict[str, Any] = msgspec.json.decode(reply.data, type=dict)
    if problem := answer.get("error"):
        raise problem_error(problem)
    return answer


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
