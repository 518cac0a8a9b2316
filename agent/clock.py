"""Is our clock right? Measured against the server's, whose time stamps decide whether consumers believe what we sign.

A consumer refuses an event whose signature and stream time are far apart (V7), so a wrong clock loses all that was
answered with 202. The agent sends its report (`mesh.reports`) and reads it back: the stamp on it was made between the
two, on the server's clock. Where the report is not answered the last measurement stays in force. So measuring is also
how an agent reports, and `wake` is for news that cannot wait for the next one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from mesh import logs
from mesh.errors import ClockWrong, MeshError, RequestFailed
from mesh.reports import AGAIN_S, ANSWER_S, EVERY_S, STREAM, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection
    from mesh.reports import Reporter

MAX_OFFSET_MS = 20_000  # V7 takes 120 s from signing to storing, an ack counts for 100 s: this is the margin
EVERY_WRONG_S = 5.0  # while it is wrong: the door opens soon after it is set right

log = logs.get("agent")


class ServerClock:
    """How far our clock is from the server's, by the last measurement.

    Args:
        connection: With the rights to publish and read back `report.<name>.*`.
        reporter: The agent's.
        clock_ms: Our clock, the one that signs. Unix milliseconds.
    """

    def __init__(self, connection: Connection, reporter: Reporter, clock_ms: Callable[[], int]) -> None:
        self._connection = connection
        self._reporter = reporter
        self._clock_ms = clock_ms
        self._unanswered = False
        self._woken = asyncio.Event()
        self.offset_ms: int | None = None  # ours less the server's, at least; None before the first measurement
        self.on_change: Callable[[], None] = lambda: None  # after a measurement that made it wrong, or right again

    @property
    def wrong(self) -> bool:
        """Whether consumers may refuse what we sign now."""
        return self.offset_ms is not None and abs(self.offset_ms) > MAX_OFFSET_MS

    def error(self) -> ClockWrong:
        """The error while it is wrong."""
        offset_s = (self.offset_ms or 0) / 1000
        return ClockWrong(
            f"this machine's clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the server's",
            expected=f"at most {MAX_OFFSET_MS // 1000} s apart",
            got=f"{offset_s:+.3f} s",
            next=f"set the clocks right; the agent measures again within {EVERY_WRONG_S:g} s",
            retry_after_s=EVERY_WRONG_S,
        )

    def wake(self) -> None:
        """There is news to report: measure soon."""
        self._woken.set()

    async def run(self) -> None:
        """Measure on each connect, each `wake` and every `EVERY_S`, until cancelled."""
        forget = self._connection.on_connect(self.wake)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._woken.wait()
                self._woken.clear()
                if self._connection.connected:  # else the connection wakes us once there is one
                    await self.measure()
        finally:
            forget()

    def _pause_s(self) -> float:
        if self.wrong:
            return EVERY_WRONG_S
        return AGAIN_S if self._unanswered else EVERY_S

    async def measure(self) -> None:
        """Measure once; without an answer the last measurement stays in force, and the log says so once."""
        try:
            offset_ms = await self._offset_ms()
        except (MeshError, ValueError, KeyError, msgspec.MsgspecError) as error:  # a stamp or an ack that is none
            if not self._unanswered and self._connection.connected:
                log.warning("clock_not_measured", code=getattr(error, "code", type(error).__name__))
                self._unanswered = True
            return
        self._unanswered = False
        was_wrong, self.offset_ms = self.wrong, offset_ms
        if self.wrong and not was_wrong:
            log.error("clock_wrong", offset_ms=offset_ms, limit_ms=MAX_OFFSET_MS)
        elif was_wrong and not self.wrong:
            log.info("clock_right", offset_ms=offset_ms)
        if self.wrong != was_wrong:
            self.on_change()

    async def _offset_ms(self) -> int:
        """Zero where the stamp lies between our two looks at our clock, else the distance to the nearer one."""
        subject = self._reporter.subject
        before = self._clock_ms()
        ack = await self._connection.request(subject, self._reporter.body(), timeout_s=ANSWER_S)
        after = self._clock_ms()
        sequence = stored(ack.data)
        reply = await self._connection.request(f"$JS.API.DIRECT.GET.{STREAM}.{subject}", b"", timeout_s=ANSWER_S)
        headers = {name.lower(): value for name, value in reply.headers.items()}
        if headers.get("nats-subject") != subject or headers.get("nats-sequence") != str(sequence):
            raise RequestFailed(f"{STREAM} answered with another report", err_code=0)  # a replica that lags
        stamp = int(datetime.fromisoformat(headers["nats-time-stamp"]).timestamp() * 1000)
        if before > stamp:
            return before - stamp
        return min(0, after - stamp)
