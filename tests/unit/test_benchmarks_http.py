"""The pool of connections that the load on the door goes through: nothing is lost unsaid, or repeated uncounted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from benchmarks.http_pool import TRIES, Exchange, Pool
from benchmarks.validity import InvalidRun

pytestmark = pytest.mark.anyio

_REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
_GIVEN_UP = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Door:
    """A door that gives each connection the next of *answers* to its first request; an empty one just closes."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)
        self.url = ""
        self.said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(self._answers))
        writer.close()

    def answered(self, _: Exchange, answer: bytes) -> None:
        self.said.set_result(answer)

    def failed(self, error: Exception) -> None:
        self.said.set_exception(error)


@asynccontextmanager
async def _pool(*answers: bytes) -> AsyncIterator[tuple[Pool, asyncio.Future[bytes]]]:
    door = _Door(*answers)
    server = await asyncio.start_server(door.serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Pool(url, limit=2, answered=door.answered, failed=door.failed) as pool:
            with anyio.fail_after(60):
                yield pool, door.said


@pytest.mark.parametrize("gone", [_GIVEN_UP, b""], ids=["408", "closed"])
async def test_what_a_connection_took_with_it_goes_out_again_and_is_counted(gone: bytes) -> None:
    """A request whose connection the door gave up is answered on another one, and the repetition is in the count."""
    async with _pool(gone, _ACCEPTED) as (pool, said):
        pool.send(Exchange(_REQUEST, 0.0))
        assert await said == _ACCEPTED
        assert pool.repeated == 1


async def test_a_request_that_is_never_answered_is_lost() -> None:
    """A door that takes requests and answers none makes the run invalid, with the reason."""
    async with _pool(*[b""] * TRIES) as (pool, said):
        pool.send(Exchange(_REQUEST, 0.0))
        with pytest.raises(InvalidRun, match="lost: a request was given up 3 times"):
            await said


async def test_a_free_connection_that_is_given_up_costs_nothing() -> None:
    """A connection that ends while it is free is forgotten, and nothing is repeated."""
    async with _pool(_ACCEPTED) as (pool, said):
        pool.send(Exchange(_REQUEST, 0.0))
        assert await said == _ACCEPTED
        while pool.free:
            await anyio.sleep(0.001)
        assert pool.repeated == 0
