"""The connection: listeners, writes and requests that outlive any single link to the server.

When a link ends, for whatever reason, a new one is made within 50 to 100 ms, then at growing intervals; every listener
is subscribed again before anybody is told. While there is no link a write raises `Disconnected`, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Self

import anyio

from mesh import logs
from mesh.errors import Closed, ConfigError, Disconnected, MeshError, TooLarge, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.keeper import Account, Keeper
from mesh.jetstream.link import Link
from mesh.jetstream.listeners import Callback, Listener, Listeners, guarded
from mesh.jetstream.requests import Reply, Requests
from mesh.jetstream.tls import TlsFiles

__all__ = ["Connection", "Listener", "Reply"]

CONNECT_TIMEOUT_S = 10.0
FLUSH_S = 2.0
CANCEL_AGAIN_S = 0.2
MAX_UNSENT_BYTES = 8 * 1024 * 1024  # `publish` waits above it: the server reads slower than we write

log = logs.get("nats")


class Connection:
    """One connection to NATS for one identity. Made by `open`; used from one event loop."""

    def __init__(self, account: Account, *, inbox_prefix: str) -> None:
        self._listeners = Listeners(self.write)
        self._keeper = Keeper(account, self._listeners, self._up, self._down)
        self._running: asyncio.Task[None] | None = None
        self._on_connect: list[Callable[[], None]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._inboxes = 0
        self.inbox = f"{inbox_prefix}.{secrets.token_hex(11)}"  # nobody can guess it, nor forge an answer
        self._requests = Requests(f"{self.inbox}.r.", self._write_one)
        self.closed = False
        self.max_payload = 1_048_576
        self.listen(f"{self.inbox}.r.*", self._requests.on_reply)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        name: str,
        creds: bytes | Callable[[], bytes] | None = None,
        inbox_prefix: str | None = None,
        on_state: Callable[[bool], None] | None = None,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        wait: bool = True,
    ) -> Self:
        """Connect, trying again until it works or time is up.

        Args:
            url: `nats://host:port`; several, separated by commas, for a cluster.
            name: Of this workload, as the server shows it; also names the inbox.
            creds: Content of a creds file, or what reads it: then it is read anew at each dial. None for a server
                without authentication.
            inbox_prefix: What our rights allow us to hear, `_INBOX_<name>` unless given. A random token follows it.
            on_state: Called with True after each connect and with False after each loss.
            tls: Files for a server that requires TLS, read anew at each dial; None for one without.
            connect_timeout_s: For the first connect.
            wait: False returns at once; the first connect then happens behind, like every later one.

        Raises:
            ConfigError: *creds* is no creds file, or a file of *tls* is not what it should be.
            Disconnected: No connection in time; says what the server or the system said last.
        """
        servers = [part.strip() for part in url.split(",")]
        account = Account(servers, name, creds, tls)
        account.read()  # what is wrong with files is said at once, where somebody looks
        self = cls(account, inbox_prefix=inbox_prefix or f"_INBOX_{name}")
        if on_state is not None:
            self.on_connect(lambda: on_state(True))  # noqa: FBT003 - the contract of the callback
            self.on_disconnect(lambda: on_state(False))  # noqa: FBT003
        self._running = asyncio.create_task(self._keeper.run(), name="nats-connection")
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
            raise await self._given_up(timeout_s) from None
        except BaseException:
            await self.close()
            raise
        finally:
            forget()

    async def _given_up(self, timeout_s: float) -> Disconnected:
        said, failure = self._keeper.last_error, self._keeper.failure
        await self.close()
        return Disconnected(
            f"no connection to NATS within {timeout_s:.0f} s",
            got=said or "no answer yet",
            next=(failure and failure.next) or "check URL and credentials",
            **(failure.details if failure else {}),
        )

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""
        return self._keeper.link is not None

    @property
    def last_error(self) -> str:
        """Why the last link ended or could not be made; the server's or the system's words."""
        return self._keeper.last_error

    @property
    def refusal(self) -> MeshError | None:
        """Why the last attempt gave no link, where a person has to help; None in every other state.

        Either the server will not have us, and `reason` in the details says why (see `mesh.jetstream.refusals`), or a
        file of ours is wrong, a `ConfigError`. A server that is away comes back by itself.
        """
        failure = self._keeper.failure
        return failure if isinstance(failure, ConfigError) or (failure and "reason" in failure.details) else None

    @property
    def rtt_s(self) -> float:
        """Seconds the last ping of the watchdog took; 0 before the first."""
        return self._keeper.rtt_s

    # --- who wants to know -------------------------------------------------------------------------------------------

    def on_connect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* after each connect, once every listener is subscribed; returns what takes that back."""
        return _register(self._on_connect, callback)

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* as soon as a link ends; returns what takes that back."""
        return _register(self._on_disconnect, callback)

    def listen(
        self,
        subject: str,
        callback: Callback,
        *,
        on_malformed: Callable[[bytes], None] | None = None,
        run_of: Callable[[int], wire.Run] | None = None,
    ) -> Listener:
        """Hear *subject* from now on, over every link to come.

        Args:
            subject: May have wildcards.
            callback: Gets sound messages only: ASCII subject and reply, a header block every reader can rely on.
            on_malformed: Gets the reply of each message that is not sound. Unless given, an ack subject is answered
                with `+TERM`, so that a stored message does not come back for ever.
            run_of: From the subscription id in their lines, what reads many of them at once before *callback* is asked;
                it may take only messages that are sound, and must not raise.
        """
        return self._listeners.add(subject, callback, on_malformed, run_of)

    async def drain(self, listener: Listener, timeout_s: float = FLUSH_S) -> None:
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
        link = self._keeper.link
        if link is None:
            raise Disconnected("no connection to NATS", got=self._keeper.last_error, next="it is being made again")
        link.send(frames)

    def ack(self, reply: str) -> None:
        """As `write` of the frame that acks *reply*, for the many of a turn.

        Raises:
            Disconnected: There is no link.
        """
        link = self._keeper.link
        if link is None:
            raise Disconnected("no connection to NATS", got=self._keeper.last_error, next="it is being made again")
        link.ack(reply)

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
            await self.flush(FLUSH_S)

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
        return 0 if self._keeper.link is None else self._keeper.link.unsent_bytes

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has processed what was written so far.

        Raises:
            Disconnected: There is no link, or it ended meanwhile: what was written may be lost.
            Unavailable: No answer in time.
        """
        await self._keeper.flush(timeout_s)

    # --- links come and go -------------------------------------------------------------------------------------------

    def _up(self, link: Link) -> None:
        self.max_payload = link.max_payload
        link.send(b"".join(listener.sub for listener in self._listeners))
        for callback in tuple(self._on_connect):
            guarded(callback)

    def _down(self) -> None:
        self._requests.fail(Disconnected("the connection to NATS ended", next="ask again"))
        for callback in tuple(self._on_disconnect):
            guarded(callback)

    async def rebuild(self) -> None:
        """End the current link, so that a new one is made. For a peer that knows better than our watchdog."""
        await self._keeper.end_link()

    async def close(self) -> None:
        """Send what is written, for at most 2 s, and end for good. Closing twice is fine.

        Whoever is cancelled meanwhile is so at the end of it: nobody else would cut the link.
        """
        if self.closed:
            return
        self.closed = True
        with anyio.CancelScope(shield=True):
            await self._end()

    async def _end(self) -> None:
        if self.connected:
            try:
                await self.flush(FLUSH_S)
            except Unavailable:
                log.warning("nats_closed_unflushed", unsent_bytes=self.unsent_bytes)
        if self._running is not None:
            while not self._running.done():  # nats-py loses a cancellation where a server refuses us as we dial
                self._running.cancel()
                await asyncio.wait([self._running], timeout=CANCEL_AGAIN_S)
        self._requests.fail(Closed("the connection was closed"))
        await self.rebuild()  # and nobody is left to make a new one


def _register(callbacks: list[Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
    callbacks.append(callback)

    def forget() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return forget
