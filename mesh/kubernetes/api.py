"""The one door to the Kubernetes API server: JSON in and out over TLS, and bodies that are read line by line.

CA and token are files that the kubelet replaces while we run, so each call reads them. Nothing is cached, no redirect
is followed, and every answer has a size that it may not pass.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from mesh.errors import ApiServerRefused, ConfigError, MeshError, NotFound, RequestFailed, Unavailable, VersionExpired

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds its own
TIMEOUT_S = 10.0  # of one call; most take milliseconds
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a page of 500 objects; etcd takes 1.5 MiB each, ours have a few KiB
MAX_LINE_BYTES = 4 * 1024 * 1024  # one event of a watch: an object, with the record of who owns its fields
_CHUNK_BYTES = 65_536
_SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said."""

    status: int
    content: bytes = field(repr=False)

    def json(self) -> Any:
        """The body.

        Raises:
            Unavailable: It is no JSON: something else answered in the API server's place.
        """
        try:
            return msgspec.json.decode(self.content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(
                "the API server's answer is no JSON", got=f"HTTP {self.status}, {len(self.content)} bytes"
            ) from error

    def require(self) -> Any:
        """The body of a call that went well.

        Raises:
            NotFound: There is no such object, or no such resource.
            VersionExpired: 410.
            ApiServerRefused: 401 or 403.
            RequestFailed: The call was wrong: 400, 409, 422.
            Unavailable: Anything else: try again.
        """
        if self.status in {200, 201, 202}:
            return self.json()
        raise failure(self.status, self._said())

    def _said(self) -> str:
        try:
            said = msgspec.json.decode(self.content, type=_Status)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return f"{len(self.content)} bytes"
        return said.message[:_SHOWN_CHARS]


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


def failure(code: int, said: str) -> MeshError:
    """The error that HTTP status *code* is, also within a watch."""
    got = f"HTTP {code}: {said[:_SHOWN_CHARS]}"
    match code:
        case 404:
            return NotFound("the API server has no such object", got=got, next="apply deploy/k8s/base/crds")
        case 410:
            return VersionExpired("the API server has forgotten that version", got=got, next="nothing: we read again")
        case 401 | 403:
            return ApiServerRefused(
                "the API server does not let us", got=got, next="bind the control plane's ClusterRoles to its account"
            )
        case 400 | 409 | 415 | 422:
            return RequestFailed("the API server refused a request", got=got, next="see its message")
        case _:
            return Unavailable("the API server could not answer", got=got, next="nothing: we ask again")


class Api:
    """An API server, and who we are to it.

    Args:
        url: `https://host:port`.
        ca_file: Its CA, PEM; nothing else vouches for it.
        token_file: Our own service-account token.

    Raises:
        ConfigError: *url* is not `https://`.
    """

    def __init__(self, url: str, *, ca_file: Path, token_file: Path) -> None:
        if not url.startswith("https://"):
            raise ConfigError(
                "the API server is asked over TLS alone", expected="https://<host>:<port>", got=url.partition(":")[0]
            )
        self._url = url.rstrip("/")
        self._ca_file = ca_file
        self._token_file = token_file

    @classmethod
    def in_cluster(cls, environ: Mapping[str, str] | None = None) -> Api:
        """The one of the cluster that we run in.

        Raises:
            ConfigError: We run in no pod.
        """
        known = os.environ if environ is None else environ
        host, port = known.get("KUBERNETES_SERVICE_HOST", ""), known.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ConfigError("there is no API server", expected="KUBERNETES_SERVICE_HOST", next="run in a pod")
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        return cls(url, ca_file=SERVICE_ACCOUNT / "ca.crt", token_file=SERVICE_ACCOUNT / "token")

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        *,
        content_type: str = "application/json",
        timeout_s: float = TIMEOUT_S,
        most: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One call, whatever status it is answered with.

        Args:
            method: Of the call.
            path: From the root of the server.
            body: Sent as JSON; None for none.
            params: Of the query.
            content_type: Of *body*.
            timeout_s: Seconds, for all of it.
            most: Bytes of an answer; of a larger one *most* and one more are given.

        Raises:
            Unavailable: It cannot be asked, or did not answer.
        """
        headers = {} if body is None else {"Content-Type": content_type}
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            self._session(timeout, f"an answer within {timeout_s:.0f} s") as session,
            session.request(
                method, self._url + path, data=data, params=params, headers=headers, allow_redirects=False
            ) as response,
        ):
            content = b""
            while len(content) <= most and (more := await response.content.read(most + 1 - len(content))):
                content += more
            return Answer(response.status, content)

    async def lines(self, path: str, params: Mapping[str, str], *, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of a body that the server goes on writing, until it ends it.

        Raises:
            Unavailable: It cannot be asked, broke off, fell silent for *timeout_s*, or wrote an endless line.
            MeshError: As `Answer.require` where it is answered with another status than 200.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=timeout_s)
        async with (
            self._session(timeout, f"a line within {timeout_s:.0f} s") as session,
            session.get(self._url + path, params=params, allow_redirects=False) as response,
        ):
            if response.status != 200:  # noqa: PLR2004 - HTTP
                Answer(response.status, await response.content.read(_CHUNK_BYTES)).require()
            rest = b""
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in filter(None, whole):
                    yield line
                if len(rest) > MAX_LINE_BYTES:
                    raise Unavailable("the API server's line has no end", got=f"{len(rest)} bytes")
            if rest.strip():
                raise Unavailable("the API server broke off within a line", got=f"{len(rest)} bytes")

    @asynccontextmanager
    async def _session(self, limits: aiohttp.ClientTimeout, expected: str) -> AsyncIterator[aiohttp.ClientSession]:
        try:
            headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Accept": "application/json"}
            context = ssl.create_default_context(cafile=str(self._ca_file))
        except OSError as error:  # ssl.SSLError is one
            raise Unavailable(
                f"the API server cannot be asked: {error.strerror or type(error).__name__}",
                expected="a readable CA file and token file",
                next="mount the service account's projected volume in the control plane",
            ) from error
        connector = aiohttp.TCPConnector(ssl=context)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=limits, headers=headers) as session:
                yield session
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"the API server did not answer: {type(error).__name__}",
                expected=expected,
                next="check its address, its CA file and the network policies; we ask again",
            ) from error
