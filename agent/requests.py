"""What every door checks before it looks at a body, and how a body is read: bounded in bytes and in time.

The order is cheapest first, and nothing of a request is believed before its step: Host and Origin (a browser was made
to call us), header fields, path and method, who is asking, how the body is encoded, how long it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp.http_writer import HttpVersion10, HttpVersion11

from mesh.errors import (
    BadHeader,
    CrossOrigin,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    RequestTimeout,
    TooLarge,
    TooManyHeaders,
    Unauthorized,
    UnsupportedMediaType,
    WrongHost,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from aiohttp.web_request import BaseRequest

    from agent.keys import Secrets
    from agent.settings import AgentSettings

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESERVED = frozenset({b"status", b"description", b"mesh-signature"})  # a consumer's client reads these from NATS
_RESERVED_PREFIX = b"nats-"
_VERSIONS = (HttpVersion10, HttpVersion11)
_BEARER = "bearer "


def check_version(request: BaseRequest) -> None:
    """Refuse what the parser lets through: HTTP/0.9, and 2.0 spelt out in a request line.

    Raises:
        BadHeader: Another version than 1.0 or 1.1.
    """
    if request.version not in _VERSIONS:
        raise BadHeader("this door speaks HTTP/1.1", expected="HTTP/1.1 or HTTP/1.0", got="another version")


def check_origin(request: BaseRequest, hosts: Collection[str]) -> None:
    """Refuse a request that a web page could have caused.

    Args:
        request: As parsed.
        hosts: What `Host` may say; an entry without a port stands for any port.

    Raises:
        WrongHost: Another name: DNS rebinding, or a proxy that does not rewrite it.
        CrossOrigin: A browser says that a page sent it.
    """
    headers = request.headers
    host = headers.get("Host", "").lower()
    if host not in hosts and without_port(host) not in hosts:
        raise WrongHost(
            "Host is not one of this door's names",
            expected=", ".join(sorted(hosts)),
            got=f"{len(host)} other characters" if host else "none",
            next="use one of the expected names in the URL",
        )
    if "Origin" in headers or headers.get("Sec-Fetch-Site", "none") != "none":
        raise CrossOrigin(
            "a browser sent this for a page; the doors are for programs",
            expected="no Origin and no Sec-Fetch-Site",
            next="call from the application's server side",
        )


def without_port(host: str) -> str:
    """The host of `host:port`; brackets of an IPv6 address stay."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def check_fields(request: BaseRequest, settings: AgentSettings) -> None:
    """Refuse header fields that are too many, too long, or named as only the mesh may name them.

    Raises:
        TooManyHeaders: Over the limit, in bytes.
        BadHeader: A reserved name.
    """
    size = 0
    for name, value in request.raw_headers:
        size += len(name) + len(value)
        lowered = name.lower()
        if lowered.startswith(_RESERVED_PREFIX) or lowered in _RESERVED:
            raise BadHeader(
                "a header field has a name that only the mesh may use",
                expected="no Nats-*, Status, Description or Mesh-Signature",
                got=f"a name of {len(name)} characters",
                next="leave it out; the agent sets what a consumer reads",
            )
    if size > settings.max_header_bytes:
        raise TooManyHeaders(
            f"{size} bytes of header fields, limit {settings.max_header_bytes}",
            next="send fewer or shorter header fields",
            limit=settings.max_header_bytes,
            size=size,
        )


def check_method(request: BaseRequest, allowed: str) -> None:
    """Refuse another method than *allowed*.

    Raises:
        MethodNotAllowed: `allow` names the right one.
    """
    if request.method != allowed:
        raise MethodNotAllowed(
            f"this door takes {allowed}", expected=allowed, got="another method", next=f"use {allowed}", allow=allowed
        )


def check_token(request: BaseRequest, token: Secrets) -> None:
    """Refuse who does not hold the bearer token.

    Raises:
        Unauthorized: None, or another one.
    """
    if not request.headers.get("Authorization"):
        raise _unauthorized("none")
    check_bearer(bearer(request), token)


def bearer(request: BaseRequest) -> bytes:
    """The token that a request holds; empty where there is none."""
    given = request.headers.get("Authorization", "")
    return given[len(_BEARER) :].encode(errors="replace") if given[: len(_BEARER)].lower() == _BEARER else b""


def check_bearer(given: bytes, token: Secrets) -> None:
    """Refuse another token than the one in force.

    Raises:
        Unauthorized: It is another, or none.
    """
    if not given or not token.fits(given):
        raise _unauthorized("another")


def _unauthorized(got: str) -> Unauthorized:
    return Unauthorized(
        "the bearer token is missing or wrong",
        expected="Authorization: Bearer and the content of the agent's token file",
        got=got,
        next="read the token file again; it may have been replaced",
    )


def check_encoding(request: BaseRequest) -> None:
    """Refuse a compressed body: no decompression, no bomb.

    Raises:
        UnsupportedMediaType: A Content-Encoding other than identity.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise UnsupportedMediaType(
            "the body is compressed",
            expected="Content-Encoding: identity, or none",
            got="another",
            next="send it uncompressed; this is loopback",
        )


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without parameters, in lower case; empty where there is none.

    Raises:
        UnsupportedMediaType: A charset other than UTF-8.
    """
    kind, _, parameters = headers.get("Content-Type", "").partition(";")
    for parameter in parameters.lower().split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("the charset is not UTF-8", expected="charset=utf-8, or none", got="another")
    return kind.strip().lower()


def no_such_path(expected: str, *, next: str = "correct the URL") -> NotFound:
    """The error for a path that no door has."""
    return NotFound("there is nothing at this path", expected=expected, got="another path", next=next)


def announced(request: BaseRequest, limit: int) -> int:
    """Bytes to set aside for a body before it is read: what it announces, else all it may have."""
    length = request.content_length
    return limit if length is None else min(length, limit)


async def read_body(
    request: BaseRequest, limit: int, *, timeout_s: float, charge: Callable[[int], Awaitable[None]] | None = None
) -> bytes:
    """The whole body.

    Args:
        request: Its header fields are checked; a client that waits for `100 Continue` gets it now.
        limit: Bytes. A longer body is refused by its Content-Length, else as soon as it passes the limit.
        timeout_s: Seconds for the whole of it.
        charge: Told the bytes of each part as it arrives; what it raises ends the reading.

    Raises:
        Overloaded: From *charge*.
        TooLarge: `limit` and `size` say how much; the rest is not read.
        RequestTimeout: It did not arrive in time.
        BadHeader: It is not framed as RFC 9112 says.
    """
    check_size(request.content_length or 0, limit)
    content = request.content
    if content.is_eof() and content.exception() is None:
        body = content.read_nowait()
        check_size(len(body), limit)
        if charge is not None:
            await charge(len(body))
        return body
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(CONTINUE)
        request.writer.output_size = 0  # nothing of the answer is sent yet
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await content.readany():
                size += len(chunk)
                check_size(size, limit)
                if charge is not None:
                    await charge(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise RequestTimeout(
            f"the body did not arrive within {timeout_s:g} s",
            expected=f"a whole body within {timeout_s:g} s",
            got=f"{size} bytes",
            next="send it at once",
        ) from None
    except ConnectionError:
        raise
    except Exception as error:
        if isinstance(error, TooLarge | Overloaded):
            raise
        raise BadHeader(
            "the body is not framed as its header says",
            expected="a Content-Length that holds, or well-formed chunks",
            next="let the HTTP library write Content-Length",
        ) from error
    return b"".join(chunks)


def check_size(size: int, limit: int) -> None:
    """Refuse a body that has, or announces, more than *limit* bytes.

    Raises:
        TooLarge: `limit` and `size` say how much.
    """
    if size > limit:
        raise TooLarge(
            f"the body has {size} bytes or more, limit {limit}",
            expected=f"at most {limit} bytes",
            got=f"{size} bytes or more",
            next="send less at once, or keep large content elsewhere and send a reference to it",
            limit=limit,
            size=size,
        )
