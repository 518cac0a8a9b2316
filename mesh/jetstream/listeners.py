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

_SID_CHARS = 20  # a subscription id is a number, counted up from 1

Callback = Callable[[str, str, "bytes | None", bytes], None]
"""`callback(subject, reply, headers, data)`, called in the read loop: it must be quick, and may not block."""


class Listener:
    """Interest in a subject, until closed."""

    __slots__ = ("_close", "callback", "on_malformed", "sid", "subject")

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
        self._runs: dict[bytes, wire.Run] = {}  # by subscription id, as it stands in their lines
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
            self._runs[b"%d" % listener.sid] = run_of(listener.sid)
        self._by_sid[listener.sid] = listener
        self._tell_server(listener.sub)
        return listener

    def _remove(self, listener: Listener) -> None:
        if self._by_sid.pop(listener.sid, None) is not None:
            self._runs.pop(b"%d" % listener.sid, None)
            self._tell_server(listener.unsub)

    def _tell_server(self, frame: bytes) -> None:
        with suppress(Unavailable):  # the next link begins with every listener there is
            self._write(frame)

    def run(self, data: bytes, position: int) -> int:
        """Have the listener of the message at *position* take it with all behind it, if it reads many at once.

        Returns:
            Where those end that it took; *position* where there are none.
        """
        far = position + wire.MAX_LINE_BYTES
        at = data.find(b" ", data.find(b" ", position, far) + 1, far) + 1  # `MSG <subject> <sid> ...`, and HMSG
        run = self._runs.get(data[at : data.find(b" ", at, at + _SID_CHARS)])
        if run is None:
            return position
        try:
            return run(data, position)
        except Exception as error:  # noqa: BLE001 - a defect of ours: the message is delivered by itself
            callback_failed(error)
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
