"""Asking the control plane: one request at its door, and its answer, or the problem as the error it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import MeshError, Unavailable, catalogue

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

ANSWER_S = 30.0  # for what the control plane does while somebody waits at a terminal

_CLASSES = {error.code: error for error in catalogue()}
_SAID = ("code", "message", "expected", "got", "next")


async def ask(
    connection: Connection, verb: str, body: dict[str, Any], *, timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    """Send `ctl.policy.<verb>` and return the answer.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        verb: Of the door, such as `status`.
        body: Sent as JSON.
        timeout_s: For the answer.

    Raises:
        MeshError: What the control plane answered instead; of the class that it was.
        Unavailable: No control plane runs, or it did not answer in time.
    """
    try:
        reply = await connection.request(f"ctl.policy.{verb}", msgspec.json.encode(body), timeout_s=timeout_s)
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
