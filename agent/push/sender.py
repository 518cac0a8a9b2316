"""The one door to a push target: a request in, a verdict out, whatever happens.

Connections are kept and used again, at most as many as requests may run at once. No redirect is followed: the target is
where the settings say. Nothing comes from the environment (no proxy, no netrc), no cookie is kept, certificates are
checked, and what a target answers beside its status is thrown away, little of it even read.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from agent.keys import Secrets
from agent.push.addresses import Addresses, AddressRefused
from agent.push.settings import STANDARD
from agent.push.signature import read_secret, sign
from agent.push.verdict import Failed, Later, judge
from mesh import __version__
from mesh.errors import ConfigError
from mesh.telemetry import counter, histogram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.push.requests import Request
    from agent.push.settings import PushTarget
    from agent.push.verdict import Verdict

CONNECT_S = 5.0  # name, TCP and TLS; on one machine they take a millisecond
KEEPALIVE_S = 4.0  # below the 5 s after which uvicorn and Node close an idle connection: we close it first
MAX_ANSWER_BYTES = 65_536  # of a body, read so that the connection can be used again; beyond it the connection goes
ANSWER_S = 1.0  # for that
MIN_TOKEN_CHARS = 16
_visible = re.compile(rb"[!-~]+").fullmatch

REQUESTS = counter(
    "mesh.agent.push.requests",
    "{request}",
    "by subscription and answer: 4xx become dead letters, 5xx and timeout are tried again, unreachable pauses",
)
DURATION = histogram(
    "mesh.agent.push.duration", "s", "by subscription: near timeout_s, the application is too slow for its events"
)


class Sender:
    """Posts to one target.

    Args:
        target: Where, and how.
        base: The directory of `agent.toml`; relative paths start there.
        check_s: Seconds between looks at the files of secrets.

    Raises:
        ConfigError: A file is missing or malformed.
    """

    def __init__(self, target: PushTarget, base: Path, *, check_s: float) -> None:
        self._target = target
        self._url = URL(target.url, encoded=True)
        self._token = self._signing = None
        if target.token_file:
            self._token = Secrets(
                [base / target.token_file], min_bytes=MIN_TOKEN_CHARS, check_s=check_s, check=_check_token
            )
        if target.mode == STANDARD:
            paths = [base / file for file in target.secret_files]
            self._signing = Secrets(paths, min_bytes=1, check_s=check_s, check=read_secret)
        self._texts: tuple[bytes, ...] = ()
        self._keys: list[bytes] = []  # what they hold
        self._socket = str(base / target.socket) if target.socket else ""
        self._tls = _tls(base / target.ca_file if target.ca_file else None) if target.parts.scheme == "https" else None
        self._http: aiohttp.ClientSession | None = None

    async def send(self, request: Request, message: str = "") -> Verdict:
        """Post *request*; the verdict on whatever comes back, or does not.

        Args:
            request: As `requests.py` makes it.
            message: Names the event, where the target has requests signed.
        """
        started = time.perf_counter()
        try:
            headers = [*request.headers, *self._secret_fields(request, message)]
            verdict = await self._post(headers, request.body)
        except aiohttp.ConnectionTimeoutError:
            verdict = Later("connect-timeout", unreachable=True)
        except aiohttp.ClientConnectorError as error:
            verdict = Later(_no_connection(error), unreachable=True)
        except TimeoutError:
            verdict = Failed("timeout")
        except aiohttp.ClientConnectionError:
            verdict = Failed("connection-lost")
        except (aiohttp.ClientError, ValueError):
            verdict = Failed("bad-answer")
        DURATION.record(time.perf_counter() - started, subscription=self._target.name)
        REQUESTS.add(1, subscription=self._target.name, answer=_label(verdict))
        return verdict

    async def close(self) -> None:
        """Close every connection."""
        if self._http is not None:
            await self._http.close()

    async def _post(self, headers: list[tuple[str, str]], body: bytes) -> Verdict:
        session = self._session()
        async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
            verdict = judge(
                response.status,
                response.headers.get("Retry-After"),
                now_s=time.time(),
                cap_s=self._target.max_pause_s,
            )
            if not await _read_away(response):
                response.close()
            return verdict

    def _secret_fields(self, request: Request, message: str) -> Iterator[tuple[str, str]]:
        if self._token is not None:
            yield "Authorization", f"Bearer {self._token.values()[0].decode('ascii')}"
        if self._signing is not None:
            yield from sign(message, request.body, self._in_force(self._signing), now_s=int(time.time()))

    def _in_force(self, signing: Secrets) -> list[bytes]:
        texts = signing.values()
        if texts is not self._texts:
            self._texts, self._keys = texts, [read_secret(text) for text in texts]
        return self._keys

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            target = self._target
            connector: aiohttp.BaseConnector
            if self._socket:
                connector = aiohttp.UnixConnector(self._socket, limit=target.concurrency, keepalive_timeout=KEEPALIVE_S)
            else:
                connector = aiohttp.TCPConnector(
                    resolver=Addresses(),
                    use_dns_cache=False,  # what is checked is what is connected to
                    ssl=self._tls or True,
                    limit=target.concurrency,
                    keepalive_timeout=KEEPALIVE_S,
                )
            self._http = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=target.timeout_s, connect=min(CONNECT_S, target.timeout_s)),
                headers={"User-Agent": f"mesh-agent/{__version__}", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._http


async def _read_away(response: aiohttp.ClientResponse) -> bool:
    """Read what is left of an answer; whether that was its end, and the connection can be used again."""
    size = 0
    try:
        async with asyncio.timeout(ANSWER_S):
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    return False
    except (TimeoutError, aiohttp.ClientError):
        return False  # the status was there before: it counts
    return True


def _check_token(text: bytes) -> None:
    if not _visible(text):
        raise ConfigError(
            "the token of a push target cannot stand in a header field",
            expected="visible ASCII characters",
            got="another text",
            next="look for a line break or a space in its file",
        )


def _no_connection(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    return "address-refused" if isinstance(error.os_error, AddressRefused) else "unreachable"


def _label(verdict: Verdict) -> str:
    """A reason as a metric shows it: HTTP's by their class."""
    reason = verdict.reason
    return f"{reason[5]}xx" if reason.startswith("http-") else reason


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Certificate and name are checked, TLS 1.2 or newer."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(
            f"{ca_file} cannot be used for TLS",
            expected="root certificates in PEM",
            got=error.__class__.__name__,
            next="check ca_file of the push target",
        ) from None
