"""Real publishers over a model of a stream, and what can happen to them.

Only the connection and the server behind it are made up (`stream_model.py`). What a process wrote into a connection is
read in its order, whenever the server comes to it; that of a connection that is gone at any time after, or never.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import cast

from mesh.errors import MeshError
from mesh.jetstream.acks import PubAck
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Outgoing, Publisher
from tests.unit.stream_model import FULL, LARGE, STREAM, SUBJECT, TOO_LARGE, Frame, Line, Stream

FILLED = 12  # places at once, at most
FOREVER_S = 1e9


class Process:
    """A publisher with a line to the stream. It notes in `wrong` what it was promised and did not get."""

    def __init__(self, name: str, bench: Bench) -> None:
        self.name, self.stream, self.bench = name, bench.stream, bench
        self.line = Line(name)
        self.old: list[deque[Frame]] = []  # what was in connections that are gone
        self.answers: deque[tuple[str, bytes]] = deque()
        self.items: list[Outgoing] = []
        self.results: dict[Outgoing, PubAck | MeshError] = {}
        self.wrong: list[str] = []  # what `on_done` saw; what it raises is nobody's
        self.goes_on = 0  # so many acks submit more at once
        self.publisher = Publisher(
            cast("Connection", self.line),
            seal=_seal,
            message_id=_message_id,
            clock_ms=bench.clock_ms,
            give_up_s=FOREVER_S,
        )
        self.sending = self.publisher._sending
        self.sending.now = lambda: bench.now

    def fresh(self, count: int) -> list[str]:
        """Names of new events."""
        return [f"{self.name}-{len(self.items) + n}" for n in range(count)]

    def submit(self, ids: list[str], body: bytes = b"{}") -> None:
        """One batch; *body* is that of the middle one."""
        bodies = [body if n == len(ids) // 2 else b"{}" for n in range(len(ids))]
        batch = [
            Outgoing(
                subject=SUBJECT,
                stream=STREAM,
                body=body,
                source="/crm",
                event_id=name,
                base_id=name if len(self.items) % 2 else "",
                on_done=self._done,
            )
            for name, body in zip(ids, bodies, strict=True)
        ]
        self.items += batch
        self.publisher.submit(batch)

    def _done(self, item: Outgoing, result: PubAck | MeshError) -> None:
        if item in self.results:
            self.wrong.append(f"{item.event_id} ended twice")
        self.results[item] = result
        if isinstance(result, PubAck):
            ids, place = self.stream.ids, result.sequence
            found = ids[place - 1] if 0 < place <= len(ids) else "nothing"
            if found != item.msg_id:
                self.wrong.append(f"{item.event_id} was acknowledged at {place}, where {found} is")
        elif result.details.get("err_code") not in ((TOO_LARGE,) if item.body == LARGE else (FULL,)):
            self.wrong.append(f"{item.event_id} ended with {result}")
        if self.goes_on:
            self.goes_on -= 1
            self.submit(self.fresh(4))

    def work(self, count: int, wire: deque[Frame], *, there: bool = True) -> None:
        """The server reads so many frames; where it is not *there*, nobody is and nothing is stored."""
        for _ in range(min(count, len(wire))):
            frame = wire.popleft()
            body = self.stream.answer(frame) if there else b""
            if frame.reply and self.line.connected:  # else nobody listens any more
                self.answers.append((frame.reply, body))

    def read(self, count: int) -> None:
        """So many answers arrive together."""
        some = [self.answers.popleft() for _ in range(min(count, len(self.answers)))]
        if self.line.connected:
            self.line.hear(some)
            self.sending._step()

    def cut(self) -> None:
        """The connection ends; what was written may still be read, and what was answered is lost."""
        if self.line.connected:
            self.line.connected = False
            self.old.append(self.line.wire)
            self.line.wire = deque()
            self.answers.clear()
            self.sending.offline()

    def connect(self) -> None:
        """There is one again."""
        if not self.line.connected:
            self.line.connected = True
            self.sending.online()
            self.sending._step()


class Bench:
    """Processes, a stream and a clock.

    Args:
        processes: How many.
        ages: Whether what events were signed with gets old, and the stream forgets message ids.
    """

    def __init__(self, processes: int = 1, *, ages: bool = False) -> None:
        self.now = 1000.0
        self._ages = ages
        self.stream = Stream((lambda: self.now) if ages else None)
        self.others = 0
        self.theirs: set[str] = set()  # events of ours that somebody else published
        self.processes = [Process(name, self) for name in "ab"[:processes]]

    def clock_ms(self) -> int:
        """What seals go by."""
        return 1_795_300_000_000 + int(1000 * self.now) * self._ages

    @property
    def wrong(self) -> list[str]:
        """What was promised and is not so."""
        return [what for process in self.processes for what in process.wrong]

    def other(self) -> None:
        """Somebody else publishes something."""
        self.others += 1
        self.stream.store(f"other-{self.others}")

    def aim(self, nth: int, short: int) -> Frame | None:
        """Somebody else's events fill the stream up to where a linked frame wants it, or *short* of it."""
        wires = [wire for process in self.processes for wire in (process.line.wire, *process.old)]
        frames = [frame for wire in wires for frame in wire if frame.after]
        frame = frames[nth % len(frames)] if frames else None
        if frame is None or not 0 <= frame.behind - short - len(self.stream.ids) <= FILLED:
            return None
        while len(self.stream.ids) < frame.behind - short:
            self.other()
        return frame

    def theirs_too(self, name: str) -> None:
        """Somebody else publishes an event of ours."""
        self.theirs.add(name)
        if not self.stream.knows(name):
            self.stream.store(name)

    def pass_time(self, seconds: float) -> None:
        """All that is due is done."""
        end = self.now + seconds
        lanes = [(process.sending, process.sending.lanes) for process in self.processes]
        for _ in range(10_000):
            due = min((lane.due_at() for _, some in lanes for lane in some.values()), default=math.inf)
            if due > end:
                break
            self.now = max(self.now, due)
            for sending, _ in lanes:
                sending._step()
        else:
            raise AssertionError("a lane that is due does something")
        self.now = end

    def finish(self) -> None:
        """Nothing goes wrong any more."""
        self.stream.full_for = 0
        for process in self.processes:
            process.goes_on = 0
            process.connect()
        for _ in range(400):
            for process in self.processes:
                process.work(1_000, process.line.wire)
                process.read(1_000)
            self.pass_time(0.3)
            if not any(process.publisher.in_flight for process in self.processes):
                break
        assert [process.publisher.in_flight for process in self.processes] == [0] * len(self.processes)

    def close(self) -> None:
        """The end."""
        for process in self.processes:
            process.publisher.close()


def _seal(items: Sequence[tuple[str, str, bytes]]) -> list[str]:
    return [f"1.k1.1795300000000.{n}" for n in range(len(items))]


def _message_id(item: Outgoing) -> str:
    return f"{item.event_id}.{item.generation}" if item.generation else item.event_id


def move(bench: Bench, who: int, what: str, count: int, chance: list[int]) -> None:
    """One thing happens, to one process or to all."""
    process = bench.processes[who % len(bench.processes)]
    wire = process.line.wire
    fresh = process.fresh(max(count, 1))
    match what:
        case "submit":
            process.submit(fresh)
        case "large":
            process.submit(fresh, LARGE)
        case "known":  # some were published by another process, and are not the stream's last
            for name in dict.fromkeys(fresh[n % len(fresh)] for n in chance):
                bench.theirs_too(name)
            bench.other()
            process.submit(fresh)
        case "again" | "same":  # some of the last ones, its own or those of all processes, among new ones
            last = process.items if what == "again" else [item for some in bench.processes for item in some.items[-6:]]
            for n in chance[: len(last)]:
                fresh[n % len(fresh)] = last[-1 - n % min(12, len(last))].event_id
            process.submit(fresh)
        case "settle":  # all is well for a while
            for _ in range(3):
                process.connect()
                process.work(1_000, process.line.wire)
                process.read(1_000)
                bench.pass_time(0.02)
        case "once more":  # some that are stored and nowhere on their way
            unsure = {item.event_id for item in process.items if item not in process.results}
            names = dict.fromkeys(item.event_id for item in process.items if item.event_id not in unsure)
            for n, name in zip(chance, reversed(names), strict=False):
                fresh[n % len(fresh)] = name
            process.submit(fresh)
        case "goes on":
            process.goes_on = count
        case "work":
            process.work(count, wire)
        case "late" if process.old:
            process.work(count, process.old[chance[0] % len(process.old)])
        case "read":
            process.read(count)
        case "lose" | "lose linked":  # on its way
            wires = [wire, *process.old] if what == "lose" else [wire]
            wire = wires[chance[0] % len(wires)]
            if count < len(wire) and (what == "lose" or wire[count].linked):
                del wire[count]
        case "away" | "away linked":  # nobody is there for so many
            while count and wire and (what == "away" or wire[0].linked):
                process.work(1, wire, there=False)
                count -= 1
        case "lose answers":
            process.answers.clear()
        case "lose answer" if count < len(process.answers):
            del process.answers[count]
        case "other":
            for _ in range(1 + count % 3):
                bench.other()
        case "aim":
            bench.aim(chance[0], count % 2)
        case "aim theirs":
            aimed = bench.aim(chance[0], 1)
            if aimed is not None and not aimed.after.startswith("other"):
                bench.theirs_too(aimed.after)
        case "theirs" if process.publisher.in_flight:
            waiting = [item for item in process.items if item not in process.results]
            bench.theirs_too(waiting[count % len(waiting)].event_id)
        case "full":
            bench.stream.full_for = count
        case "cut":
            process.cut()
        case "connect":
            process.connect()
        case "time":
            bench.pass_time(count / 1000)
