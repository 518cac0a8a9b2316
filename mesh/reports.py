"""Who runs which policies: each agent and each reading team says so on `report.<workload>.<instance>`.

A report is sent at the start, whenever a bundle is adopted or refused, and every `EVERY_S`. The stream `REPORTS` keeps
the last one of each instance; its time stamp is the server's, so an instance that has gone silent shows as that,
whatever its own clock says. `mesh policy status` and an apply that waits for its agents read them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec
from msgspec.structs import replace

from mesh import __version__, logs
from mesh.errors import MeshError, RequestFailed, Unavailable
from mesh.jetstream import wire

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

STREAM = "REPORTS"
EVERY_S = 20.0
AGAIN_S = 5.0  # after a report that was not stored
ANSWER_S = 2.0  # storing takes a millisecond
PAGE = 500  # reports a request
PAGE_S = 5.0  # for one page of answers
TEAM_PREFIX = "team-"  # a team's own workload; no agent's name begins with it

_END = (204, 404)  # Direct Get: the end of a batch; no message

log = logs.get("reports")

Kind = Literal["agent", "team"]


class Refused(msgspec.Struct, frozen=True):
    """The last bundle or candidate that was refused: why, and which revision it said it was (0 where unreadable)."""

    code: str
    revision: int = 0


class PolicyState(msgspec.Struct, frozen=True, kw_only=True):
    """What policies somebody runs.

    Attributes:
        revision: Of the bundle in force; 0 before the first.
        digest: Its SHA-256 in hex.
        adopted_ms: When it was adopted, by the reporter's clock.
        refused: What was refused since; None once a good one came after it.
    """

    revision: int = 0
    digest: str = ""
    adopted_ms: int = 0
    refused: Refused | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, as it last said.

    Attributes:
        name: Of the agent, or of the team (without the prefix of its workload).
        instance: 8 hexadecimal characters, new with each process.
        kind: `agent` or `team`.
        version: Of its software.
        clock_ms: Its clock when it sent this.
        revision, digest, adopted_ms, refused: See `PolicyState`.
        shadow: What its shadow evaluation found; None without a candidate.
        stopped: True in the last report of a process that ends in order.
        at_ms: The server's clock when the report was stored; 0 before it is.
    """

    name: str
    instance: str
    kind: Kind
    version: str = ""
    clock_ms: int = 0
    revision: int = 0
    digest: str = ""
    adopted_ms: int = 0
    refused: Refused | None = None
    shadow: dict[str, Any] | None = None
    stopped: bool = False
    at_ms: int = 0

    @property
    def workload(self) -> str:
        """Whose NATS account it was sent from."""
        return workload_of(self.kind, self.name)


def workload_of(kind: Kind, name: str) -> str:
    """The workload of an agent or a team."""
    return name if kind == "agent" else f"{TEAM_PREFIX}{name}"


class Reporter:
    """Sends the reports of one instance.

    Args:
        connection: With the right to publish `report.<workload>.*`.
        name: Of the agent or the team.
        kind: Which of the two.
        state: Asked for each report.
        shadow: What the shadow evaluation found so far; asked for each report.
        clock_ms: Our clock, Unix milliseconds.
        instance: Made up where none is given.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        kind: Kind,
        state: Callable[[], PolicyState],
        shadow: Callable[[], dict[str, Any] | None] = lambda: None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        instance: str | None = None,
    ) -> None:
        self._connection = connection
        self._state = state
        self._clock_ms = clock_ms
        self._woken = anyio.Event()
        self.name = name
        self.kind: Kind = kind
        self.shadow = shadow
        self.instance = instance or new_instance()
        self.workload = workload_of(kind, name)
        self.subject = f"report.{self.workload}.{self.instance}"

    def report(self, *, stopped: bool = False) -> Report:
        """What there is to say now."""
        state = self._state()
        return Report(
            name=self.name,
            instance=self.instance,
            kind=self.kind,
            version=__version__,
            clock_ms=self._clock_ms(),
            revision=state.revision,
            digest=state.digest,
            adopted_ms=state.adopted_ms,
            refused=state.refused,
            shadow=self.shadow(),
            stopped=stopped,
        )

    def body(self, *, stopped: bool = False) -> bytes:
        """The report of now as it is sent."""
        return msgspec.json.encode(self.report(stopped=stopped))

    async def send(self, *, stopped: bool = False) -> int:
        """Store a report now; returns its sequence in `REPORTS`.

        Raises:
            RequestFailed: The stream refused it.
            Unavailable: Nobody answered.
        """
        ack = await self._connection.request(self.subject, self.body(stopped=stopped), timeout_s=ANSWER_S)
        return stored(ack.data)

    def wake(self) -> None:
        """There is news: report soon."""
        self._woken.set()

    async def run(self) -> None:
        """Report at each connect, at each `wake` and every `EVERY_S`, until cancelled."""
        forget = self._connection.on_connect(self.wake)
        try:
            while True:
                self._woken = anyio.Event()
                wait_s = EVERY_S
                if self._connection.connected:
                    try:
                        await self.send()
                    except MeshError as error:
                        log.warning("report_not_stored", code=error.code, error=str(error))
                        wait_s = AGAIN_S
                with anyio.move_on_after(wait_s):
                    await self._woken.wait()
        finally:
            forget()


def new_instance() -> str:
    """A name for one process: 8 hexadecimal characters."""
    return secrets.token_hex(4)


def stored(ack: bytes) -> int:
    """The sequence that a publish acknowledgement of `REPORTS` names.

    Raises:
        RequestFailed: It is none.
    """
    try:
        answer = msgspec.json.decode(ack, type=dict[str, Any])
        if answer.get("stream") == STREAM and "error" not in answer:
            return int(answer["seq"])
    except (msgspec.MsgspecError, KeyError, ValueError):
        pass
    raise RequestFailed(f"{STREAM} did not take the report", err_code=0)


async def read_reports(connection: Connection) -> list[Report]:
    """The last report of every instance that has not said it stops, by kind, name and instance.

    A report counts under the subject it came on, whatever its body says: NATS lets a workload use no other.

    Args:
        connection: The control plane's.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    found: dict[str, Report | None] = {}
    first = 1
    while True:
        page, last, pending = await _page(connection, first)
        found.update((message[0], _read(message)) for message in page)  # one sent again while we read: the later counts
        if not pending:
            break
        first = last + 1
    running = [report for report in found.values() if report is not None and not report.stopped]
    return sorted(running, key=lambda report: (report.kind, report.name, report.instance))


async def _page(connection: Connection, first: int) -> tuple[list[tuple[str, int, bytes]], int, int]:
    """(subject, stream time in ms, body) of up to `PAGE` messages from *first*; the last one's number; how many follow.

    The stream keeps one message a subject, so what it holds are the last ones.
    """
    came: asyncio.Queue[tuple[dict[str, str], int | None, bytes]] = asyncio.Queue()

    def on_reply(_subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        status = None if data else wire.status_of(headers)
        came.put_nowait((wire.parse_headers(headers), status and status.code, data))

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, on_reply)
    try:
        request = msgspec.json.encode({"seq": first, "next_by_subj": "report.>", "batch": PAGE})
        await connection.publish(f"$JS.API.DIRECT.GET.{STREAM}", request, reply=inbox)
        page: list[tuple[str, int, bytes]] = []
        last = pending = 0
        with anyio.move_on_after(PAGE_S):
            while True:
                headers, status, data = await came.get()
                fields = {name.lower(): value for name, value in headers.items()}
                if status in _END:
                    return page, last, pending
                if status is not None:
                    raise RequestFailed(f"{STREAM} cannot be read", got=f"status {status}", err_code=0)
                last, pending = int(fields["nats-sequence"]), int(fields["nats-num-pending"])
                page.append((fields["nats-subject"], _stamp_ms(fields["nats-time-stamp"]), data))
        raise Unavailable(f"{STREAM} did not answer within {PAGE_S:g} s", reason="timeout")
    finally:
        listener.close()


def _stamp_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _read(message: tuple[str, int, bytes]) -> Report | None:
    subject, at_ms, body = message
    workload, _, instance = subject.removeprefix("report.").rpartition(".")
    if not workload:
        return None  # of a version before instances reported apart
    kind: Kind = "team" if workload.startswith(TEAM_PREFIX) else "agent"
    try:
        report = msgspec.json.decode(body, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        log.warning("report_unreadable", workload=workload, size=len(body))
        return None
    return replace(report, name=workload.removeprefix(TEAM_PREFIX), instance=instance, kind=kind, at_ms=at_ms)
