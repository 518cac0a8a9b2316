"""What a door answers: responses of ours, and errors as problem documents."""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.web_response import Response

from agent import metrics, problems
from mesh import logs
from mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SERVER = "mesh-agent"
JSON = "application/json"
ACCEPTED = 202

log = logs.get("agent")


class Answer(Response):
    """A response of ours.

    Attributes:
        again: Takes the body of a later request with the same head, and returns the body of its 202. None where a head
            alone does not say how the request is to be answered.
    """

    again: Callable[[bytes], Awaitable[bytes]] | None = None


def new_instance() -> str:
    """A name for one occurrence of a problem."""
    return token_hex(8)


def answer(status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> Answer:
    """A response of ours."""
    fields = {"Content-Type": content_type, "Server": SERVER, **(headers or {})}
    return Answer(status=status, body=body, headers=fields)


def refusal(error: BaseException, *, retry_after_s: int, door: str) -> Answer:
    """The problem document of *error* as a response, logged and counted."""
    instance = new_instance()
    document = problems.document(error, instance=instance)
    metrics.refused(door, document["code"])
    if isinstance(error, MeshError):
        log.info("request_refused", door=door, code=error.code, status=error.status, instance=instance)
    else:
        log.exception("request_failed", error, door=door, instance=instance)  # noqa: LOG004, PLE1205 - ours
    fields = problems.headers(error, retry_after_s=retry_after_s)
    return answer(document["status"], problems.encode(document), problems.CONTENT_TYPE, fields)


def accepted(body: bytes) -> bytes:
    """A whole 202 in JSON, as aiohttp writes one."""
    head = (
        f"HTTP/1.1 {ACCEPTED} Accepted\r\nContent-Type: {JSON}\r\nServer: {SERVER}\r\n"
        f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n"
    )
    return head.encode() + body


def whole(response: Response, *, close: bool) -> bytes:
    """A response written by hand: there is no request of aiohttp's to answer."""
    body = response.body if isinstance(response.body, bytes) else b""
    fields = {**response.headers, "Content-Length": str(len(body)), "Date": rfc822_formatted_time()}
    if close:
        fields["Connection"] = "close"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode() + body
