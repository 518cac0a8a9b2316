"""Who hears what: subscription ids, the callbacks behind them, and the one place where a message meets a callback.

Callbacks run in the read loop, one by one. Whatever a message holds and whatever a callback raises, reading goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from mesh import logs
from mesh.errors import Unavailable
from mesh.jetstream import wire
from mesh.telemetry import counter

MALFORMED = counter("mesh.nats.malformed", unit="{frame}", watch="above 0: a publisher sends what no reader should see")
CALLBACK_ERRORS = counter("mesh.nats.callback_errors", unit="{error}", watch="above 0: a defect of ours; see the log")

log = logs.get("nats")

Callback = Callable[[str, str, "bytes | None", bytes], None]
"""`callback(subject, reply, headers, data)`, called in the read loop: it must be quick, and may not block."""


class Listener:
    """Interest in a subject, until closed."""

    __slots__ = ("_close", "callback", "on_malformed", "run", "sid", "subject")

    def __init__(
        self,
        sid: int,
        subject: str,
        callback: Callback,
        on_malformed: Callable[[bytes], None] | None,
        close: Callable[[Listener], None],
    ) -> None:
        self.sid = sid
        self.subject = subject
        self.callback = callback
        self.on_malformed = on_malformed
        self.run: wire.Run | None = None
        self._close = close

    @property
    def sub(self) -> bytes:
        """The frame that tells a server of it."""
        return b"SUB %b %d\r\n" % (self.subject.encode(), self.sid)

    @property
    def unsub(self) -> bytes:
        """The frame that ends it at the server."""
        return b"UNSUB %d\r\n" % self.sid

    def close(self) -> None:
        """Hear nothing more, at once. Closing twice is fine."""
        self._close(self)


class Listeners:
    """The listeners of one connection, by subscription id."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._by_sid: dict[int, Listener] = {}
        self._runs: tuple[wire.Run, ...] = ()
        self._last_sid = 0

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_sid.values())

    def add(
        self,
        subject: str,
        callback: Callback,
        on_malformed: Callable[[bytes], None] | None,
        run_of: Callable[[int], wire.Run] | None = None,
    ) -> Listener:
        """A new listener, known to the server from now on."""
        wire.checked_subject(subject)
        self._last_sid += 1
        listener = Listener(self._last_sid, subject, callback, on_malformed, self._remove)
        if run_of is not None:
            listener.run = run_of(listener.sid)
        self._by_sid[listener.sid] = listener
        self._know_runs()
        self._tell_server(listener.sub)
        return listener

    def _remove(self, listener: Listener) -> None:
        if self._by_sid.pop(listener.sid, None) is not None:
            self._know_runs()
            self._tell_server(listener.unsub)

    def _know_runs(self) -> None:
        self._runs = tuple(listener.run for listener in self._by_sid.values() if listener.run is not None)

    def _tell_server(self, frame: bytes) -> None:
        with suppress(Unavailable):  # the next link begins with every listener there is
            self._write(frame)

    def run(self, data: bytes, position: int) -> int:
        """Have the listeners that read many messages at once look at *position*: where those end that one took."""
        for run in self._runs:
            end = run(data, position)
            if end > position:
                return end
        return position

    def deliver(self, sid: int, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        """Hand a message to its listener; never raises."""
        listener = self._by_sid.get(sid)
        if listener is None:
            return
        if subject.isascii() and reply.isascii() and (headers is None or wire.headers_sound(headers)):
            try:  # as `guarded`, without a call more for every event
                listener.callback(subject.decode(), reply.decode(), headers, data)
            except Exception as error:  # noqa: BLE001 - as in `guarded`
                callback_failed(error)
            return
        MALFORMED.add(1)
        log.warning("nats_frame_malformed", listener=listener.subject)
        guarded(listener.on_malformed or self._terminate, reply)

    def _terminate(self, reply: bytes) -> None:
        if reply.startswith(b"$JS.ACK.") and reply.isascii():
            self._write(wire.ack_frame(reply.decode(), b"+TERM malformed"))


def guarded(callback: Callable[..., object], *arguments: object) -> None:
    """Call *callback*; an exception is counted and logged, and stays here, because others depend on going on."""
    try:
        callback(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is
        callback_failed(error)


def callback_failed(error: Exception) -> None:
    """Count and log what a callback raised."""
    CALLBACK_ERRORS.add(1)
    log.exception("callback_failed", error)  # noqa: LOG004, PLE1205 - called by handlers; ours takes the error
