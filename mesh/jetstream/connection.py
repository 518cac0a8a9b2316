"""The connection: listeners, writes and requests that outlive any single link to the server.

When a link ends, for whatever reason, a new one is made within 50 to 100 ms, then at growing intervals; every listener
is subscribed again before anybody is told. While there is no link a write raises `Disconnected`, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import Callable, Mapping

from mesh import logs
from mesh.errors import Closed, Disconnected, MeshError, TooLarge, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.link import Credentials, Link
from mesh.jetstream.listeners import Callback, Listener, Listeners, guarded
from mesh.jetstream.requests import Reply, Requests
from mesh.telemetry import counter, histogram

__all__ = ["Connection", "Listener", "Reply"]

CONNECT_TIMEOUT_S = 10.0
RETRY_FIRST_S = 0.05  # with nats-py's default of 2 s a policy change under load left a gap of 2.04 s (measured)
RETRY_LAST_S = 1.0  # a thousand agents at a server that returns: a thousand handshakes of 4 ms, spread by the jitter
STABLE_S = 5.0  # a link that lived shorter counts as a failed attempt: a server may take us and cut us at once
WATCH_INTERVAL_S = 5.0  # between two pings of the watchdog
RTT_LIMIT_S = 4.0  # without a byte from the server meanwhile; a loaded server answers late but keeps sending
CLOSE_FLUSH_S = 2.0
MAX_UNSENT_BYTES = 8 * 1024 * 1024  # `publish` waits above it: the server reads slower than we write

REBUILDS = counter("mesh.nats.rebuilds", unit="{link}", watch="rising: server restarts, cut lines, or expiring rights")
RTT = histogram("mesh.nats.rtt", unit="s", watch="rising: the network, or our own event loop, is busy")

log = logs.get("nats")


class Connection:
    """One connection to NATS for one identity. Made by `open`; used from one event loop."""

    def __init__(
        self,
        servers: list[str],
        *,
        name: str,
        credentials: Credentials | None,
        inbox_prefix: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._servers = servers
        self._name = name
        self._credentials = credentials
        self._tls = tls
        self._link: Link | None = None
        self._lost = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._on_connect: list[Callable[[], None]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._inboxes = 0
        self._listeners = Listeners(self.write)
        self.inbox = f"{inbox_prefix}.{secrets.token_hex(11)}"  # nobody can guess it, nor forge an answer
        self._requests = Requests(f"{self.inbox}.r.", self._write_one)
        self.connected = False
        self.closed = False
        self.max_payload = 1_048_576
        self.rtt_s = 0.0
        self.last_error = ""
        self.listen(f"{self.inbox}.r.*", self._requests.on_reply)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        name: str,
        creds: bytes | None = None,
        inbox_prefix: str | None = None,
        on_state: Callable[[bool], None] | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        wait: bool = True,
    ) -> Connection:
        """Connect, trying again until it works or time is up.

        Args:
            url: `nats://host:port`; several, separated by commas, for a cluster.
            name: Of this workload, as the server shows it; also names the inbox.
            creds: Content of a creds file; None for a server without authentication.
            inbox_prefix: What our rights allow us to hear, `_INBOX_<name>` unless given. A random token follows it.
            on_state: Called with True after each connect and with False after each loss.
            tls: For a server that requires TLS with a CA of its own.
            connect_timeout_s: For the first connect.
            wait: False returns at once; the first connect then happens behind, like every later one.

        Raises:
            ConfigError: *creds* is no creds file.
            Disconnected: No connection in time; says what the server or the system said last.
        """
        self = cls(
            [part.strip() for part in url.split(",")],
            name=name,
            credentials=None if creds is None else Credentials.parse(creds),
            inbox_prefix=inbox_prefix or f"_INBOX_{name}",
            tls=tls,
        )
        if on_state is not None:
            self.on_connect(lambda: on_state(True))  # noqa: FBT003 - the contract of the callback
            self.on_disconnect(lambda: on_state(False))  # noqa: FBT003
        self._supervisor = asyncio.create_task(self._supervise(), name="nats-connection")
        if wait:
            await self._first(connect_timeout_s)
        return self

    async def _first(self, timeout_s: float) -> None:
        up = asyncio.Event()
        forget = self.on_connect(up.set)
        try:
            async with asyncio.timeout(timeout_s):
                await up.wait()
        except TimeoutError:
            said = self.last_error
            await self.close()
            raise Disconnected(
                f"no connection to NATS within {timeout_s:.0f} s", got=said, next="check URL and credentials"
            ) from None
        except BaseException:
            await self.close()
            raise
        finally:
            forget()

    # --- who wants to know -------------------------------------------------------------------------------------------

    def on_connect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* after each connect, once every listener is subscribed; returns what takes that back."""
        return _register(self._on_connect, callback)

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* as soon as a link ends; returns what takes that back."""
        return _register(self._on_disconnect, callback)

    def listen(
        self, subject: str, callback: Callback, *, on_malformed: Callable[[bytes], None] | None = None
    ) -> Listener:
        """Hear *subject* from now on, over every link to come.

        Args:
            subject: May have wildcards.
            callback: Gets sound messages only: ASCII subject and reply, a header block every reader can rely on.
            on_malformed: Gets the reply of each message that is not sound. Unless given, an ack subject is answered
                with `+TERM`, so that a stored message does not come back for ever.
        """
        return self._listeners.add(subject, callback, on_malformed)

    async def drain(self, listener: Listener, timeout_s: float = CLOSE_FLUSH_S) -> None:
        """Have the server send nothing more to *listener*, hear what it had sent, then close it."""
        try:
            self.write(listener.unsub)
            await self.flush(timeout_s)
        except Unavailable:
            pass  # no link: nothing comes either
        finally:
            listener.close()

    def new_inbox(self) -> str:
        """A subject below our inbox that nobody else has; add tokens to it as needed."""
        self._inboxes += 1
        return f"{self.inbox}.{self._inboxes}"

    # --- out ---------------------------------------------------------------------------------------------------------

    def write(self, frames: bytes) -> None:
        """Send frames made by `wire`, in the order of the calls.

        Raises:
            Disconnected: There is no link, and nothing is kept for a later one.
        """
        if self._link is None:
            raise Disconnected("no connection to NATS", got=self.last_error, next="it is being made again")
        self._link.send(frames)

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one message, at most once. Waits while the server reads slower than we write.

        Raises:
            BadSubject, BadHeader: Something in it could not stand in a frame.
            TooLarge: Headers and payload are over the server's max_payload, at which it would cut us off.
            Disconnected: There is no link.
        """
        self._write_one(subject, payload, reply, headers)
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            await self.flush(RTT_LIMIT_S)

    def _write_one(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        frame = wire.publish_frame(subject, payload, reply, headers)
        if len(frame) > self.max_payload:  # a few bytes early: the line counts too
            raise TooLarge("message over the server's limit", limit=self.max_payload, size=len(frame))
        self.write(frame)

    async def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0
    ) -> Reply:
        """Send a message and wait for one answer.

        Raises:
            BadSubject, BadHeader, TooLarge: As for `publish`.
            Disconnected: There is no link, or it ended meanwhile: whether the request was served is unknown.
            Unavailable: Nobody serves *subject* for us (`reason` is `no-responders`), or no answer in time (`timeout`).
        """
        return await self._requests.ask(subject, payload, headers, timeout_s)

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return 0 if self._link is None else self._link.unsent_bytes

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has processed what was written so far.

        Raises:
            Disconnected: There is no link, or it ended meanwhile: what was written may be lost.
            Unavailable: No answer in time.
        """
        if self._link is None:
            raise Disconnected("no connection to NATS", got=self.last_error)
        pong = self._link.ping()
        await asyncio.wait([pong], timeout=timeout_s)
        if pong.cancelled():
            raise Disconnected("the connection to NATS ended", got=self.last_error)
        if not pong.done():
            pong.cancel()
            raise Unavailable(f"NATS did not answer within {timeout_s} s")

    # --- links come and go -------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        attempt = 0
        while True:
            link = Link(self._listeners.deliver, self._gone)
            started = time.monotonic()
            try:
                await link.dial(self._servers, name=self._name, credentials=self._credentials, tls=self._tls)
            except MeshError as error:
                self.last_error = error.got or error.message
                if attempt & (attempt - 1) == 0:  # the 1st, 2nd, 3rd, 5th, 9th, ...
                    log.warning("nats_unreachable", code=error.code, attempt=attempt + 1, error=self.last_error)
            else:
                self._up(link)
                await self._watch(link)
            if time.monotonic() - started > STABLE_S:
                attempt = 0
            await asyncio.sleep(_pause_s(attempt))
            attempt += 1

    def _up(self, link: Link) -> None:
        self._link = link
        self._lost.clear()
        self.connected = True
        self.max_payload = link.max_payload
        link.send(b"".join(listener.sub for listener in self._listeners))
        log.info("nats_connected", name=self._name)
        for callback in tuple(self._on_connect):
            guarded(callback)

    async def _watch(self, link: Link) -> None:
        """Return once *link* has ended; end it when it is silent."""
        while link is self._link:
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._lost.wait()
            except TimeoutError:
                if not await self._alive(link):
                    log.warning("nats_silent", limit_s=RTT_LIMIT_S)
                    await link.end()

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

    def _gone(self, link: Link) -> None:
        """Called by the link in the moment it ends."""
        if link is not self._link:
            return
        self._link = None
        self.connected = False
        self.last_error = link.reason or "the connection ended"
        if not self.closed:
            REBUILDS.add(1)
            log.warning("nats_disconnected", name=self._name, error=self.last_error)
        self._lost.set()
        self._requests.fail(Disconnected("the connection to NATS ended", next="ask again"))
        for callback in tuple(self._on_disconnect):
            guarded(callback)

    async def rebuild(self) -> None:
        """End the current link, so that a new one is made. For a peer that knows better than our watchdog."""
        if self._link is not None:
            await self._link.end()

    async def close(self) -> None:
        """Send what is written, for at most 2 s, and end for good. Closing twice is fine."""
        if self.closed:
            return
        self.closed = True
        if self._link is not None:
            try:
                await self.flush(CLOSE_FLUSH_S)
            except Unavailable:
                log.warning("nats_closed_unflushed", unsent_bytes=self.unsent_bytes)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        self._requests.fail(Closed("the connection was closed"))
        await self.rebuild()  # and nobody is left to make a new one
        self.last_error = "closed"


def _pause_s(attempt: int) -> float:
    longest = min(RETRY_FIRST_S * 2.0 ** min(attempt, 10), RETRY_LAST_S)
    return longest * random.uniform(1, 2)  # noqa: S311 - jitter


def _register(callbacks: list[Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
    callbacks.append(callback)

    def forget() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return forget
