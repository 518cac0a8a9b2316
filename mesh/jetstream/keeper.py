"""Makes links to the server, one after another, and ends those that fall silent or have newer credentials to use."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mesh import logs
from mesh.errors import ConfigError, Disconnected, MeshError, Unavailable
from mesh.jetstream.link import Credentials, Link
from mesh.jetstream.listeners import Listeners
from mesh.jetstream.tls import TlsFiles, client_context
from mesh.telemetry import counter, histogram

RETRY_FIRST_S = 0.05  # with nats-py's default of 2 s a policy change under load left a gap of 2.04 s (measured)
RETRY_LAST_S = 1.0  # a thousand agents at a server that returns: a thousand handshakes of 4 ms, spread by the jitter
STABLE_S = 5.0  # a link that lived shorter counts as a failed attempt: a server may take us and cut us at once
WATCH_INTERVAL_S = 5.0  # between two pings of the watchdog
RTT_LIMIT_S = 4.0  # without a byte from the server meanwhile; a loaded server answers late but keeps sending

REBUILDS = counter("mesh.nats.rebuilds", unit="{link}", watch="rising: server restarts, cut lines, or expiring rights")
RTT = histogram("mesh.nats.rtt", unit="s", watch="rising: the network, or our own event loop, is busy")

log = logs.get("nats")


class Account(NamedTuple):
    """Whom a link is made for, and where to."""

    servers: Sequence[str]
    name: str
    creds: bytes | Callable[[], bytes] | None
    tls: TlsFiles | None

    def read(self) -> tuple[Credentials | None, ssl.SSLContext | None]:
        """What to dial with, as the files say at this moment.

        Raises:
            ConfigError: A file is missing, or is not what it should be.
        """
        return self.credentials(), None if self.tls is None else client_context(self.tls)

    def credentials(self) -> Credentials | None:
        """The same without TLS.

        Raises:
            ConfigError: As above.
        """
        try:
            content = self.creds() if callable(self.creds) else self.creds
        except OSError as error:
            raise ConfigError(
                "the NATS credentials cannot be read",
                expected="a creds file that we may read",
                got=error.strerror or type(error).__name__,
                next="have the control plane write it again",
            ) from None
        return None if content is None else Credentials.parse(content)


class Keeper:
    """Keeps a link while `run` runs.

    Args:
        account: What to connect with.
        listeners: Get every message of every link.
        on_up: Called with each new link before anything else can be sent over it.
        on_down: Called in the moment a link ends, when there is none any more.
    """

    def __init__(
        self, account: Account, listeners: Listeners, on_up: Callable[[Link], None], on_down: Callable[[], None]
    ) -> None:
        self._account = account
        self._listeners = listeners
        self._on_up = on_up
        self._on_down = on_down
        self._lost = asyncio.Event()
        self._links = 0
        self._used: Credentials | None = None  # by the link
        self._refused = 0  # how often others, which the file holds now, were
        self.link: Link | None = None
        self.last_error = ""
        self.failure: MeshError | None = None  # of the last dial; None once there was a link
        self.rtt_s = 0.0

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        attempt = 0
        while True:
            link = Link(self._listeners, self._gone)
            started = time.monotonic()
            try:
                credentials, tls = self._account.read()
                await link.dial(self._account.servers, name=self._account.name, credentials=credentials, tls=tls)
            except MeshError as error:
                self.last_error, self.failure = error.got or error.message, error
                if attempt & (attempt - 1) == 0:  # the 1st, 2nd, 3rd, 5th, 9th, ...
                    _say(error, attempt + 1)
            else:
                self._used, self._refused = credentials, 0
                self._up(link)
                await self._watch(link)
            if time.monotonic() - started > STABLE_S:
                attempt = 0
            await asyncio.sleep(_pause_s(attempt))
            attempt += 1

    def _up(self, link: Link) -> None:
        self.link, self.failure = link, None
        self._lost.clear()
        self._links += 1
        if self._links > 1:
            REBUILDS.add(1)
        log.info("nats_connected", name=self._account.name)
        self._on_up(link)

    def _gone(self, link: Link) -> None:
        """Called by the link in the moment it ends."""
        if link is not self.link:
            return
        self.link = None
        self.last_error = link.reason or "the connection ended"
        log.info("nats_disconnected", name=self._account.name, error=self.last_error)
        self._lost.set()
        self._on_down()

    async def _watch(self, link: Link) -> None:
        """Return once *link* has ended; end it when it is silent, or when others are to be used."""
        while link is self.link:
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._lost.wait()
            except TimeoutError:
                if not await self._alive(link):
                    log.warning("nats_silent", limit_s=RTT_LIMIT_S)
                    await link.end()
                elif await self._replaced():
                    log.info("nats_credentials_replaced", name=self._account.name)
                    await link.end()  # a ping ago the server had all that was written

    async def _replaced(self) -> bool:
        """Whether our file holds other credentials than the link's, and the server takes these.

        So they are in use before the old ones are refused, and a file that is wrong costs nobody a link that works.
        """
        probe = Link(Listeners(lambda _: None), lambda _: None)
        try:
            if self._account.credentials() == self._used:
                return False
            credentials, tls = self._account.read()
            await probe.dial(self._account.servers, name=self._account.name, credentials=credentials, tls=tls)
        except MeshError as error:
            if self._refused & (self._refused - 1) == 0:
                _say(error, self._refused + 1)
            self._refused += 1
            return False
        await probe.end()
        return True

    async def _alive(self, link: Link) -> bool:
        before, started = link.bytes_in, time.monotonic()
        try:
            await self.flush(RTT_LIMIT_S)
        except Disconnected:
            return True  # ended by itself
        except Unavailable:
            await asyncio.sleep(RETRY_FIRST_S)  # if it was us who slept, what came meanwhile is read first
            return link.bytes_in != before
        self.rtt_s = time.monotonic() - started
        RTT.record(self.rtt_s)
        return True

    async def flush(self, timeout_s: float) -> None:
        """See `Connection.flush`."""
        if self.link is None:
            raise Disconnected("no connection to NATS", got=self.last_error)
        pong = self.link.ping()
        await asyncio.wait([pong], timeout=timeout_s)
        if pong.cancelled():
            raise Disconnected("the connection to NATS ended", got=self.last_error)
        if not pong.done():
            pong.cancel()
            raise Unavailable(f"NATS did not answer within {timeout_s} s")

    async def end_link(self) -> None:
        """End the present link, if there is one."""
        if self.link is not None:
            await self.link.end()


def _say(error: MeshError, attempt: int) -> None:
    """Somebody who is not there comes back by itself; whoever refuses us, or a file of ours, waits for a person."""
    if "reason" in error.details or isinstance(error, ConfigError):
        reason = error.details.get("reason", "")
        log.error(
            "nats_refused",
            code=error.code,
            reason=reason,
            attempt=attempt,
            error=error.got or error.message,
            next=error.next,
        )
    else:
        log.warning("nats_unreachable", code=error.code, attempt=attempt, error=error.got or error.message)


def _pause_s(attempt: int) -> float:
    longest = min(RETRY_FIRST_S * 2.0 ** min(attempt, 10), RETRY_LAST_S)
    return longest * random.uniform(1, 2)  # noqa: S311 - jitter
