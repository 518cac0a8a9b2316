"""Writing the audit trail: records queue here and go out in order, several to a message, each until it is stored.

`write` is called where decisions are made, so it neither waits nor fails. What finds no room is dropped and counted in
one metric, and the next record that does find room says how many were lost. A flood of equal refusals becomes one
record a second that counts them (`audit_fold.py`): no adapter's loop fills the stream.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from mesh import audit, logs
from mesh.audit_fold import Folding
from mesh.errors import MeshError, RequestFailed
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection

MAX_WAITING = 10_000  # records, about 4 MB: a minute of 160 denials a second while NATS is away
MESSAGE_BYTES = 65_536  # of one message: a verifier holds one at a time
ACK_S = 5.0  # for the stream to say that a message is stored
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts, the last for ever; a reconnect ends the wait

LOST = counter("mesh.audit.lost", "{record}", "audit records dropped: NATS was away for long, or AUDIT is full")

log = logs.get("audit")


class AuditLog:
    """One writer's audit trail.

    Args:
        connection: With the right to publish on `audit.<name>`.
        name: The workload's: an agent's, `team-<team>`, or `mesh.audit.CONTROL`.
        instance: Of this process: no two share one, or the chain forks.
        max_waiting: Records that may wait to be stored.
        clock: Seconds that never go back: how fast records come.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        instance: str,
        *,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._subject = audit.SUBJECT + name
        self._chain = audit.Chain(f"{name}.{instance}")
        self._max_waiting = max_waiting
        self._clock = clock
        self._folding = Folding()
        self._waiting: deque[bytes] = deque()
        self._sending: list[bytes] = []
        self._lost = 0
        self._came = asyncio.Event()
        self._stored = asyncio.Event()
        self._up = asyncio.Event()
        self._failing = ""

    def __len__(self) -> int:
        """Records that are not stored yet."""
        return self._queued + len(self._folding)

    @property
    def _queued(self) -> int:
        return len(self._waiting) + len(self._sending)

    def write(self, kind: str, **facts: Any) -> None:
        """Record *kind* with *facts*; returns at once and never raises.

        Args:
            kind: One of `mesh.audit.KINDS`.
            facts: Names, ids, counts and the policy's paths; never a value of an event. None leaves a fact out.
        """
        try:
            if self._folding.take(kind, facts, self._clock()):
                self._append(kind, facts)
        except Exception as error:  # whatever a fact is, the decision it is about goes on
            self._lose(1)
            log.exception("audit_record_lost", error, kind=kind)  # noqa: PLE1205, TRY401 - ours takes the error
        self._came.set()

    def _append(self, kind: str, facts: dict[str, Any]) -> None:
        if self._queued >= self._max_waiting:
            self._lose(1)
            return
        at_ms = time.time_ns() // 1_000_000
        if self._lost:
            self._waiting.append(self._chain.append(audit.LOST, at_ms, {"lost": self._lost}))
            self._lost = 0
        self._waiting.append(self._chain.append(kind, at_ms, facts))

    def _lose(self, count: int) -> None:
        self._lost += count
        LOST.add(count)

    def _release(self, *, early: bool = False) -> None:
        """Queue the folded records that are due; without room they stay where they are, and go on counting."""
        while self._queued < self._max_waiting and (due := self._folding.release(self._clock(), early=early)):
            kind, facts, count = due
            try:
                self._append(kind, facts)
            except Exception as error:
                self._lose(count)
                log.exception("audit_record_lost", error, kind=kind)  # noqa: PLE1205, TRY401 - ours takes the error

    async def run(self) -> None:
        """Store what was written, in order, until cancelled."""
        forget = self._connection.on_connect(self._up.set)
        try:
            while True:
                self._release()
                if not self._waiting:
                    await self._something()
                    continue
                await self._store(self._take())
                self._sending = []
                self._stored.set()
        finally:
            self._waiting.extendleft(reversed(self._sending))
            self._sending = []
            forget()

    async def _something(self) -> None:
        """Wait until a record comes, or a folded one is due."""
        self._came.clear()
        due_s = self._folding.due_s
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._clock())):
                await self._came.wait()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything written so far is stored, while `run` runs; False where that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self):
                    self._release(early=True)
                    self._came.set()
                    self._stored.clear()
                    await self._stored.wait()
        except TimeoutError:
            log.warning("audit_not_flushed", waiting=len(self))
            return False
        return True

    def _take(self) -> bytes:
        """The next message: as many lines as fit, in order."""
        size = 0
        while self._waiting and (not self._sending or size + len(self._waiting[0]) < MESSAGE_BYTES):
            line = self._waiting.popleft()
            size += len(line) + 1
            self._sending.append(line)
        return b"\n".join(self._sending)

    async def _store(self, body: bytes) -> None:
        """Send the same bytes until the stream has them. The id is random: nobody can take it before us."""
        headers = {"Nats-Msg-Id": secrets.token_urlsafe(16)}
        attempt = 0
        while True:
            self._up.clear()
            try:
                reply = await self._connection.request(self._subject, body, headers=headers, timeout_s=ACK_S)
                _check(reply.data)
            except (MeshError, msgspec.MsgspecError) as error:
                self._complain(getattr(error, "code", type(error).__name__))
            else:
                self._failing = ""
                return
            try:
                async with asyncio.timeout(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                    await self._up.wait()
            except TimeoutError:
                attempt += 1

    def _complain(self, code: str) -> None:
        if code != self._failing:
            log.warning("audit_not_stored", code=code, waiting=len(self))
            self._failing = code


class _AckError(msgspec.Struct):
    err_code: int = 0


class _Ack(msgspec.Struct):
    stream: str = ""
    error: _AckError | None = None


def _check(data: bytes) -> None:
    """Whether the stream says that it has the message.

    Raises:
        RequestFailed: It refused, or another stream answered.
        msgspec.MsgspecError: That is no acknowledgement.
    """
    ack = msgspec.json.decode(data, type=_Ack)
    if ack.error is not None or ack.stream != audit.STREAM:
        code = ack.error.err_code if ack.error is not None else 0
        raise RequestFailed(f"{audit.STREAM} did not take the records", got=ack.stream, err_code=code)
