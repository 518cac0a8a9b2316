"""An agent's HTTP door, as the application beside it knocks: one session, over TCP or a Unix socket.

The token is a file that may be replaced at any time. It is read again when the file changed, and once more when the
agent answers 401; the agent looks at the file once a second, so until it does, the token it took last still fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import anyio

from mesh import spans
from mesh.errors import ConfigError, Unavailable
from mesh.event import CONTENT_TYPE

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from mesh.context import AgentAddress

PUBLISH_TIMEOUT_S = 30.0  # the agent answers within its own deadline of 10 s, or the connection is dead
UNIX_PREFIX = "unix:"
UNAUTHORIZED = 401


class AgentDoor:
    """One agent's `/v1/events`.

    Args:
        address: Where it listens, and its token's file.
        stack: Closes the session in the end.
    """

    def __init__(self, address: AgentAddress, stack: AsyncExitStack) -> None:
        self._address = address
        self._stack = stack
        self._http: aiohttp.ClientSession | None = None
        self._token = ""
        self._accepted = ""
        self._version: tuple[int, int, int] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Post one structured event.

        Returns:
            The answer's status and body.

        Raises:
            Unavailable: The agent cannot be reached. It may have taken the event: posting the same id again is safe.
            ConfigError: The token's file cannot be read.
        """
        session = self._session()
        token = await self._current_token()
        status, answer = await self._post(session, body, token)
        if status == UNAUTHORIZED:
            self._version = None  # whatever the file's times say
            others = (await self._current_token(), self._accepted)
            for other in others:
                if other not in {"", token}:
                    for candidate in (other, token):  # the agent may have looked at its file between two posts
                        status, answer = await self._post(session, body, candidate)
                        if status != UNAUTHORIZED:
                            token = candidate
                            break
                    break
        if status != UNAUTHORIZED:
            self._accepted = token
        return status, answer

    async def _post(self, session: aiohttp.ClientSession, body: bytes, token: str) -> tuple[int, bytes]:
        headers = {"Content-Type": CONTENT_TYPE, "Authorization": f"Bearer {token}"}
        if spans.tracer is not None:
            spans.tracer.inject(headers)
        try:
            async with session.post("/v1/events", data=body, headers=headers) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"the agent at {self._address.url} cannot be reached: {error.__class__.__name__}",
                expected="a running agent",
                next="start it; publishing the same id again is safe",
            ) from error

    def _session(self) -> aiohttp.ClientSession:
        """The session; nothing is awaited between looking and opening, so two first posts at once share one."""
        if self._http is None:
            url, connector = self._address.url, None
            if url.startswith(UNIX_PREFIX):
                connector = aiohttp.UnixConnector(url.removeprefix(UNIX_PREFIX))
                url = "http://localhost"  # the name under which the agent expects requests there
            timeout = aiohttp.ClientTimeout(total=PUBLISH_TIMEOUT_S)
            self._http = aiohttp.ClientSession(base_url=url, connector=connector, timeout=timeout)
            self._stack.push_async_callback(self._http.close)
        return self._http

    async def _current_token(self) -> str:
        """The token; the file is read only where it is another one than before, or was written since."""
        file = anyio.Path(self._address.token_file)
        try:
            status = await file.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._version:
                self._token = (await file.read_text()).strip()
                self._version = version
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the token of the agent's door cannot be read: {error.__class__.__name__}",
                expected=self._address.token_file,
                next="run as the user who owns it, or start `mesh up` again",
            ) from error
        return self._token
