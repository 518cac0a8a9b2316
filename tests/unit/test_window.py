"""Ordered recovery: what a lane sends, and when, after a 503, a missed deadline or a lost connection."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import MeshError, StreamUnavailable, SubjectRefused
from mesh.jetstream.acks import PubAck
from mesh.jetstream.outgoing import NEVER, Outgoing, marked_sent
from mesh.jetstream.probing import WITNESS_AFTER
from mesh.jetstream.window import NO_CONNECTION, Lane, Rules

RULES = Rules()
A, B = "ev.local.clear.s00.crm.a.v1", "ev.local.clear.s00.crm.b.v1"


def item(subject: str = A, name: str = "1") -> Outgoing:
    """An event."""
    return Outgoing(subject=subject, stream="EV", body=b"", source="/crm", event_id=name, on_done=_nothing)


def _nothing(*_: Any) -> None:
    pass


class Bench:
    """A lane with a clock, and a record of what it sent."""

    def __init__(self, *, online: bool = True, rules: Rules = RULES) -> None:
        self.now = 100.0
        self.handed: list[list[Outgoing]] = []
        self.lane = Lane("EV", rules, offline="" if online else NO_CONNECTION, now=self.now)
        self.stored = 0
        self.sent: list[Outgoing] = []
        self.failed: list[tuple[Outgoing, MeshError]] = []
        self.witnesses: list[str] = []

    def submit(self, *items: Outgoing) -> None:
        """As the publisher does."""
        for each in items:
            if self.lane.extend([each], self.now):
                self._send(each)

    def ack(self, *items: Outgoing) -> list[Outgoing]:
        """The stream acknowledges them, and stored them in this order; what is sent again."""
        again: list[Outgoing] = []
        for each in items:
            self.stored += 1
            again += self.lane.acked(each, self.now, PubAck("EV", self.stored))
        for each in again:
            self._send(each)
        return again

    def reject(self, each: Outgoing, *, by_stream: bool = False) -> None:
        """A 503 comes for it."""
        self.failed += self.lane.rejected(each, self.now, by_stream=by_stream)

    def pass_time(self, seconds: float) -> list[Outgoing]:
        """Let the lane do everything that falls due; what it sent."""
        before, end = len(self.sent), self.now + seconds
        while (due := self.lane.due_at()) <= end:
            self.now = max(self.now, due)
            step = self.lane.step(self.now)
            self.failed += step.failed
            if step.witness:
                self.witnesses.append(step.witness)
            if step.handed:
                self.handed.append(step.handed)
            for each in step.send:
                self._send(each)
            assert step.send or step.failed or step.handed or self.lane.due_at() > self.now, (
                "a lane that is due does something"
            )
        self.now = end
        return self.sent[before:]

    def _send(self, each: Outgoing) -> None:
        self.sent.append(each)
        marked_sent([each], self.now)


def test_a_flowing_lane_sends_at_once() -> None:
    """Nothing waits while acks come."""
    bench = Bench()
    items = [item() for _ in range(3)]
    bench.submit(*items)
    assert bench.sent == items
    assert bench.ack(*items) == []
    assert bench.lane.due_at() == NEVER


def test_the_first_503_stops_sending() -> None:
    """After it new events wait; the oldest is probed after 50 ms, then at doubling intervals up to half a second."""
    bench = Bench()
    first, second = item(), item()
    bench.submit(first)
    bench.reject(first)
    bench.submit(second)
    assert bench.sent == [first]
    times = []
    for _ in range(7):
        due = bench.lane.due_at()
        times.append(round(due - bench.now, 3))
        assert bench.pass_time(due - bench.now) == [first]
        bench.reject(first)
    assert times == [0.05, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_the_probes_ack_lets_the_window_follow_in_order() -> None:
    """Everything behind the probe is sent again, oldest first, the waiting ones last; then the lane flows."""
    bench = Bench()
    old = [item() for _ in range(4)]
    bench.submit(*old)
    bench.reject(old[1])
    new = [item() for _ in range(2)]
    bench.submit(*new)
    assert bench.pass_time(0.05) == [old[0]]
    assert bench.ack(old[0]) == [*old[1:], *new]
    last = item()
    bench.submit(last)
    assert bench.sent[-1] is last


def test_acks_of_the_former_sends_still_count() -> None:
    """A late ack takes its event out; only the probe's own ends the recovery."""
    bench = Bench()
    items = [item() for _ in range(4)]
    bench.submit(*items)
    bench.reject(items[3])
    assert bench.ack(items[0], items[2]) == []
    assert bench.pass_time(0.05) == [items[1]]
    assert bench.ack(items[1]) == [items[3]]


def test_silence_stops_sending() -> None:
    """A second without any ack is a missed deadline: the oldest event alone is sent again, at once."""
    bench = Bench()
    items = [item() for _ in range(3)]
    bench.submit(*items)
    assert bench.pass_time(0.999) == []
    assert bench.pass_time(0.002) == [items[0]]
    late = item()
    bench.submit(late)
    assert bench.sent[-1] is items[0]


def test_a_busy_stream_is_not_silent() -> None:
    """Acks that come late but in order extend the deadline, so load alone starts no recovery."""
    bench = Bench()
    items = [item() for _ in range(40)]
    bench.submit(*items)
    for each in items:
        assert bench.pass_time(0.2) == []
        bench.ack(each)
    assert bench.lane.flowing


def test_a_gap_in_the_acks_is_a_missed_deadline() -> None:
    """When events behind it are acknowledged, the oldest has its own deadline: its frame or its ack is lost."""
    bench = Bench()
    items = [item() for _ in range(20)]
    bench.submit(*items)
    sent = []
    for each in items[1:8]:
        sent += bench.pass_time(0.2)
        bench.ack(each)
    assert sent[0] is items[0]


def test_a_lost_connection_stops_everything_until_the_next() -> None:
    """Offline nothing is sent; online the oldest goes first, alone, and the rest follows its ack."""
    bench = Bench()
    items = [item() for _ in range(3)]
    bench.submit(*items)
    bench.lane.offline()
    waiting = item()
    bench.submit(waiting)
    bench.lane.interrupt(bench.now)
    assert bench.pass_time(3.0) == []
    bench.lane.online(bench.now)
    assert bench.pass_time(0.0) == [items[0]]
    assert bench.ack(items[0]) == [items[1], items[2], waiting]


@pytest.mark.parametrize("because", [NO_CONNECTION, "trust was not read since the connect"])
def test_what_is_given_up_offline_says_why(because: str) -> None:
    """A lane that is held says so; one without a connection says that."""
    bench = Bench()
    bench.lane.offline(because)
    bench.submit(item())
    assert bench.pass_time(RULES.give_up_s) == []
    [(_, error)] = bench.failed
    assert error.got == because


def test_a_lane_born_offline_waits() -> None:
    """Events submitted before the first connection go out once there is one."""
    bench = Bench(online=False)
    only = item()
    bench.submit(only)
    assert bench.pass_time(2.0) == []
    bench.lane.online(bench.now)
    assert bench.pass_time(0.0) == [only]


def test_a_lane_that_emptied_while_stopped_probes_with_the_next_event() -> None:
    """A recovery that gave up everything is still one: the next event is sent alone."""
    bench = Bench()
    first = item()
    bench.submit(first)
    bench.reject(first)
    bench.pass_time(RULES.give_up_s)
    second, third = item(), item()
    bench.submit(second, third)
    assert bench.pass_time(bench.lane.due_at() - bench.now) == [second]
    assert bench.ack(second) == [third]


def test_events_are_given_up_when_their_time_is_over() -> None:
    """After `give_up_s` an event leaves with StreamUnavailable, oldest first, also while offline."""
    bench = Bench()
    first = item()
    bench.submit(first)
    bench.lane.offline()
    bench.pass_time(5.0)
    second = item()
    bench.submit(second)
    bench.pass_time(5.0)
    assert [(each, type(error)) for each, error in bench.failed] == [(first, StreamUnavailable)]
    assert first.done
    bench.pass_time(5.0)
    assert [each for each, _ in bench.failed] == [first, second]
    assert bench.lane.due_at() == NEVER


def test_an_error_for_one_event_is_the_streams_answer() -> None:
    """When the probe itself is refused for good, the stream is there: the rest of the window follows."""
    bench = Bench()
    items = [item() for _ in range(3)]
    bench.submit(*items)
    bench.reject(items[0])
    bench.pass_time(0.05)
    assert bench.lane.drop(items[0]) == items[1:]
    assert bench.lane.flowing


def _reject_probe(bench: Bench, each: Outgoing, times: int) -> None:
    for _ in range(times):
        bench.pass_time(max(0.0, bench.lane.due_at() - bench.now))
        bench.reject(each)


def test_a_refused_subject_leaves_the_window() -> None:
    """Its probe stays 503 while the stream answers on another subject: its events fail, the others go on in order."""
    bench = Bench()
    known = item(B)
    bench.submit(known)
    bench.ack(known)
    items = [item(A), item(B), item(A), item(B)]
    bench.submit(*items)
    bench.reject(items[0])
    bench.reject(items[2])
    _reject_probe(bench, items[0], WITNESS_AFTER)
    bench.pass_time(bench.lane.due_at() - bench.now)
    assert bench.witnesses == [B]
    bench.lane.witnessed(B, bench.now)
    bench.reject(items[0])
    assert bench.failed == [], "the answer came after this probe was sent"
    assert bench.pass_time(0.0) == [items[0]]
    bench.reject(items[0])
    assert [(each, type(error)) for each, error in bench.failed] == [
        (items[0], SubjectRefused),
        (items[2], SubjectRefused),
    ]
    assert bench.pass_time(0.0) == [items[1]]
    assert bench.ack(items[1]) == [items[3]]


def test_no_real_event_is_sent_ahead_of_the_probe() -> None:
    """However long the probe is rejected, only it is sent: an event sent ahead would be stored ahead."""
    bench = Bench()
    items = [item(A), item(B)]
    bench.submit(*items)
    bench.reject(items[0])
    _reject_probe(bench, items[0], 12)
    assert set(bench.sent[2:]) == {items[0]}


def test_a_stream_that_is_away_refuses_nobody() -> None:
    """Without a witness a 503 means that the stream is away: events stay until they are given up."""
    bench = Bench()
    known = item(B)
    bench.submit(known)
    bench.ack(known)
    only = item(A)
    bench.submit(only)
    bench.reject(only)
    _reject_probe(bench, only, 12)
    assert bench.failed == []
    assert len(bench.witnesses) > 2


def test_overload_is_not_refusal() -> None:
    """A 503 or 429 that the stream itself answers stops and probes, but never refuses the subject."""
    bench = Bench()
    known = item(B)
    bench.submit(known)
    bench.ack(known)
    only = item(A)
    bench.submit(only)
    bench.reject(only, by_stream=True)
    for _ in range(6):
        bench.pass_time(max(0.0, bench.lane.due_at() - bench.now))
        bench.lane.witnessed(B, bench.now)
        bench.reject(only, by_stream=True)
    assert bench.failed == []


def _refused() -> Bench:
    bench = Bench()
    known, bad = item(B), item(A)
    bench.submit(known)
    bench.ack(known)
    bench.submit(bad)
    bench.reject(bad)
    _reject_probe(bench, bad, 1)
    bench.lane.witnessed(B, bench.now)
    _reject_probe(bench, bad, 1)
    assert len(bench.failed) == 1
    good = item(B)
    bench.submit(good)
    bench.pass_time(0.0)
    bench.ack(good)
    assert bench.lane.flowing
    return bench


def test_a_refused_subject_is_tried_again_after_a_while_by_one_event() -> None:
    """For two seconds it is refused unsent; then one event tries, and its 503 stops nobody else."""
    bench = _refused()
    assert bench.lane.refuses(A, bench.now)
    assert not bench.lane.refuses(B, bench.now)
    bench.pass_time(RULES.refused_for_s)
    assert not bench.lane.refuses(A, bench.now)
    assert bench.lane.refuses(A, bench.now), "only one tries"
    trial = item(A)
    bench.submit(trial)
    bench.reject(trial)
    assert bench.failed[-1][0] is trial
    assert bench.lane.flowing


def test_a_subject_that_is_granted_again_flows() -> None:
    """The first ack on it lifts the refusal."""
    bench = _refused()
    bench.pass_time(RULES.refused_for_s)
    assert not bench.lane.refuses(A, bench.now)
    trial = item(A)
    bench.submit(trial)
    bench.ack(trial)
    assert not bench.lane.refuses(A, bench.now)
    assert not bench.lane.refuses(A, bench.now)


def test_a_new_connection_forgets_refusals() -> None:
    """Rights may have changed with it."""
    bench = _refused()
    bench.lane.offline()
    bench.lane.online(bench.now)
    assert not bench.lane.refuses(A, bench.now)


class Stream:
    """A stream that may be away for a while, and stores each id once: the promise the lane has to keep is its order."""

    def __init__(self) -> None:
        self.stored: list[Outgoing] = []
        self.wire: list[Outgoing] = []

    def take(self, count: int, *, up: bool, answers: bool) -> list[tuple[Outgoing, bool]]:
        """Process frames from the wire; answers are (event, stored)."""
        taken, self.wire = self.wire[:count], self.wire[count:]
        for each in taken:
            if up and each not in self.stored:
                self.stored.append(each)
        return [(each, up) for each in taken] if answers else []


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(["submit", "work", "lose-acks", "down", "up", "drop", "time"]),
            st.integers(min_value=1, max_value=6),
        ),
        max_size=120,
    )
)
def test_nothing_acknowledged_is_missing_and_order_is_kept(moves: list[tuple[str, int]]) -> None:
    """Through lost acks, lost connections and absences that begin between frames, every event is stored in order.

    An absence here begins and ends while the wire is empty of frames sent before it, as a server's restart does; a
    stream that came back between two frames of one burst could store the second alone, whatever a publisher does.
    """
    bench, stream = Bench(), Stream()
    submitted: list[Outgoing] = []
    up, position = True, 0

    def transmit() -> None:
        nonlocal position
        stream.wire += bench.sent[position:]
        position = len(bench.sent)

    def answer(replies: list[tuple[Outgoing, bool]]) -> None:
        for each, stored in replies:
            if each.done:
                continue
            if stored:
                bench.ack(each)
            else:
                bench.reject(each)

    for move, count in [*moves, ("up", 1), *[("time", 6), ("work", 6)] * 60]:
        transmit()
        match move:
            case "submit":
                items = [item() for _ in range(count)]
                submitted += items
                bench.submit(*items)
            case "work":
                answer(stream.take(count, up=up, answers=True))
            case "lose-acks":
                stream.take(count, up=up, answers=False)
            case "down" | "up":
                answer(stream.take(10**6, up=up, answers=True))
                up = move == "up"
            case "drop":
                stream.wire.clear()
                bench.lane.offline()
                bench.lane.online(bench.now)
            case "time":
                bench.pass_time(count / 10)
        if bench.failed:
            return  # somebody's ten seconds are over: it is the caller's again
    assert [each for each in submitted if not each.done] == []
    assert stream.stored == submitted


# --- handing over ----------------------------------------------------------------------------------------------------

SPOOLED = Rules(hand_over_s=2.0)


def test_a_silent_stream_is_taken_over_from_whole_and_in_order() -> None:
    """So long after its last ack everything in flight is handed over, and nothing is given up."""
    bench = Bench(rules=SPOOLED)
    items = [item(name=str(n)) for n in range(5)]
    bench.submit(*items[:4])
    bench.pass_time(1.5)
    bench.ack(items[0])
    bench.submit(items[4])
    bench.pass_time(1.9)
    assert bench.handed == []
    bench.pass_time(0.2)
    assert bench.handed == [items[1:]]
    assert bench.failed == []
    assert bench.lane.due_at() == NEVER


def test_without_a_connection_it_is_taken_over_from_too() -> None:
    """What came while nothing could be sent, and was sent before: all of it, in order."""
    bench = Bench(rules=SPOOLED)
    first, second = item(name="1"), item(name="2")
    bench.submit(first)
    bench.lane.offline()
    bench.pass_time(1)
    bench.submit(second)
    bench.pass_time(1.1)
    assert bench.handed == [[first, second]]


def test_a_stream_that_acks_too_slowly_is_taken_over_from() -> None:
    """Acks of others put it off, but nobody waits longer than `give_up_s`."""
    bench = Bench(rules=SPOOLED)
    items = [item(name=str(n)) for n in range(40)]
    bench.submit(*items)
    acked = 0
    while not bench.handed:
        acked += 1
        bench.ack(items[-acked])
        bench.pass_time(0.5)
    assert bench.now == pytest.approx(100 + SPOOLED.give_up_s, abs=0.5)
    assert bench.handed == [items[:-acked]]


def test_after_a_hand_over_the_next_one_is_the_probe() -> None:
    """It goes out alone; with its ack the lane flows, and nothing that was handed over is sent."""
    bench = Bench(rules=SPOOLED)
    bench.submit(item(name="1"))
    bench.pass_time(3)
    assert len(bench.handed) == 1
    before = len(bench.sent)
    probe, behind = item(name="2"), item(name="3")
    bench.submit(probe, behind)
    bench.pass_time(0.01)
    assert bench.sent[before:] == [probe]
    assert bench.ack(probe) == [behind]
    assert bench.lane.flowing


def test_an_idle_stream_is_not_silent() -> None:
    """An event that comes long after the last ack has its whole time."""
    bench = Bench(rules=SPOOLED)
    bench.pass_time(100)
    bench.submit(item())
    bench.pass_time(1.9)
    assert bench.handed == []


def test_nothing_new_is_sent_behind_silence() -> None:
    """An event that comes while acks are overdue waits until everything before it has its ack, then goes at once."""
    bench = Bench()
    due = [item() for _ in range(3)]
    bench.submit(*due)
    bench.pass_time(RULES.hold_s + 0.01)
    late = [item() for _ in range(2)]
    bench.submit(*late)
    assert bench.ack(*due[:2]) == []
    bench.submit(another := item())
    assert bench.sent == due
    assert bench.ack(due[2]) == [*late, another]
    bench.submit(item())
    assert len(bench.sent) == 7


def test_a_server_far_away_is_not_silent() -> None:
    """Where every ack takes 100 ms, an event is sent while those before it are under way."""
    bench = Bench()
    for _ in range(20):
        bench.submit(each := item())
        bench.pass_time(0.1)
        bench.ack(each)
    for _ in range(3):
        bench.submit(item())
        bench.pass_time(0.04)
    assert len(bench.sent) == 23


def test_what_waits_behind_silence_is_sent_in_turn_after_a_recovery() -> None:
    """The deadline of what was sent first begins it; nothing waits twice."""
    bench = Bench()
    bench.submit(lost := item())
    bench.pass_time(RULES.hold_s + 0.01)
    bench.submit(*(late := [item() for _ in range(2)]))
    bench.pass_time(RULES.ack_deadline_s)
    assert set(bench.sent) == {lost}
    assert bench.ack(lost) == late
    assert bench.ack(*late) == []
    assert bench.lane.due_at() == NEVER


def test_an_ack_out_of_turn_stops_sending() -> None:
    """A stream acknowledges in order, so what was sent before is lost: the oldest event is sent again, alone."""
    bench = Bench()
    items = [item() for _ in range(4)]
    bench.submit(*items)
    assert bench.ack(items[1]) == []
    bench.submit(late := item())
    assert bench.pass_time(0) == [items[0]]
    assert bench.ack(items[0]) == [items[2], items[3], late]
    assert bench.lane.overtaken == 1


def test_the_ack_of_an_event_that_was_published_before_may_come_early() -> None:
    """A cluster answers it without asking the others; its place, of then, says nothing of the order."""
    bench = Bench()
    bench.submit(new := item(), again := item())
    assert bench.lane.acked(again, bench.now, PubAck("EV", 1, duplicate=True)) == []
    assert bench.lane.flowing
    assert bench.lane.acked(new, bench.now, PubAck("EV", 7)) == []
    assert bench.lane.overtaken == 0


def test_our_own_queue_does_not_make_a_stream_slow() -> None:
    """Acks of a lane that always has hundreds in flight take long, and silence is noticed as soon as ever."""
    bench = Bench()
    bench.submit(*(queue := [item() for _ in range(600)]))
    for _ in range(2000):
        bench.pass_time(0.001)
        bench.ack(queue.pop(0))
        bench.submit(each := item())
        queue.append(each)
    assert bench.sent[-1] is queue[-1], "nothing was held"
    bench.pass_time(RULES.hold_s + 0.001)
    bench.submit(late := item())
    assert late not in bench.sent


def test_one_ack_tells_how_far_a_server_is() -> None:
    """Eighty milliseconds are usual there from the first ack on; twice that is silence."""
    bench = Bench()
    bench.submit(first := item())
    bench.pass_time(0.08)
    bench.ack(first)
    bench.submit(item())
    bench.pass_time(0.15)
    bench.submit(soon := item())
    assert soon in bench.sent
    bench.pass_time(0.02)
    bench.submit(late := item())
    assert late not in bench.sent


def test_a_lost_ack_hides_nobody_who_was_overtaken() -> None:
    """The later event was stored first, and its ack was lost: the answer to it sent again tells its place."""
    bench = Bench()
    bench.submit(lost := item(), stored := item(), behind := item())
    assert bench.pass_time(RULES.ack_deadline_s + 0.1)[0] is lost
    assert bench.lane.acked(lost, bench.now, PubAck("EV", 200)) == [stored, behind]
    marked_sent([stored, behind], bench.now)
    bench.lane.acked(stored, bench.now, PubAck("EV", 101, duplicate=True))
    assert bench.lane.overtaken == 1
    bench.lane.acked(behind, bench.now, PubAck("EV", 201))
    assert bench.lane.overtaken == 1


def test_what_waits_behind_a_refused_event_goes_at_once() -> None:
    """No ack is to come that would let it go: it does not wait for a deadline of its own."""
    bench = _refused()
    bench.pass_time(RULES.refused_for_s)
    assert not bench.lane.refuses(A, bench.now)
    bench.submit(trial := item(A))
    bench.pass_time(RULES.hold_s + 0.01)
    bench.submit(*(waiting := [item(B), item(B)]))
    assert waiting[0] not in bench.sent
    bench.reject(trial)
    assert bench.pass_time(0) == waiting[:1]
    assert bench.ack(waiting[0]) == waiting[1:]


def test_what_waits_behind_an_event_that_is_given_up_goes_at_once() -> None:
    """The same where nobody answered it at all."""
    bench = Bench(rules=Rules(ack_deadline_s=30.0))
    bench.submit(silent := item())
    bench.pass_time(5)
    bench.submit(waiting := item())
    assert bench.pass_time(5) == [waiting]
    assert [each for each, _ in bench.failed] == [silent]


# --- acks that come together -----------------------------------------------------------------------------------------


def _told(one: Lane, now: float) -> tuple[object, ...]:
    """All that a lane shows of itself."""
    opens = [one.open(now + pause) for pause in (0.0, 0.045, 0.055, 0.075, 0.085, 0.4)]
    return opens, one.flowing, one.due_at(), one.overtaken, [each.event_id for each in one.hand_over(0.0)]


@given(
    pauses=st.lists(st.sampled_from([0.0, 0.001, 0.06]), min_size=2, max_size=6),
    places=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    before=st.lists(st.integers(0, 5), max_size=2),
    order=st.just(range(6)) | st.permutations(range(6)),
    late=st.sampled_from([0.002, 0.04]),
)
def test_acks_read_together_mean_what_they_mean_one_by_one(
    pauses: list[float], places: list[int], before: list[int], order: list[int], late: float
) -> None:
    """Whatever the order and the places of acks, those a lane takes at once leave it as if each had come by itself."""
    count = len(pauses)
    told, agains, dones = [], [], []
    for together in (True, False):
        bench = Bench()
        items = [item((A, B)[n % 2], f"e-{n}") for n in range(count)]
        for each, pause in zip(items, pauses, strict=True):
            bench.now += pause
            bench.submit(each)
        bench.now += late
        for n in before:
            if n < count and items[n].sends and not items[n].done:
                bench.lane.acked(items[n], bench.now, PubAck("EV", 5))
        bench.now += 0.001
        acks = [(items[n], places[n]) for n in order if n < count and items[n].sends and not items[n].done]
        acked, at = [each for each, _ in acks], [place for _, place in acks]
        taken = bench.lane.acked_in_order(acked, at, bench.now) if together and acks else 0
        again: list[list[Outgoing]] = [[]] * taken + [
            bench.lane.acked(each, bench.now, PubAck("EV", place)) for each, place in acks[taken:]
        ]
        agains.append([[each.event_id for each in some] for some in again])
        dones.append([each.done for each in items])
        told.append(_told(bench.lane, bench.now))
    assert (told[0], agains[0], dones[0]) == (told[1], agains[1], dones[1])


def test_acks_in_order_are_all_taken_at_once() -> None:
    """While the lane flows, acks of its events from the oldest on need no second look."""
    bench = Bench()
    items = [item(name=str(n)) for n in range(5)]
    bench.submit(*items)
    bench.now += 0.001
    assert bench.lane.acked_in_order(items[:4], [1, 2, 3, 4], bench.now) == 4
    assert [each.done for each in items] == [True] * 4 + [False]


def test_what_is_held_behind_a_refused_event_goes_with_the_last_ack() -> None:
    """Where the stream refused the event before the held ones, the ack of the one before that lets them go."""
    bench = Bench()
    first, refused, held = (item(name=str(n)) for n in range(3))
    bench.submit(first, refused)
    bench.now += 0.2
    bench.submit(held)
    assert held.sends == 0
    assert bench.lane.drop(refused) == []
    assert bench.lane.acked_in_order([first], [1], bench.now) == 0
    assert bench.ack(first) == [held]


@pytest.mark.parametrize("odd", [(1, 2), (0, 1, 0), (0, 2)])
def test_an_ack_out_of_order_is_not_taken_with_others(odd: tuple[int, ...]) -> None:
    """An ack of a later event, or of one that is done, stops there: it may mean that something was lost."""
    bench = Bench()
    items = [item(name=str(n)) for n in range(3)]
    bench.submit(*items)
    expected = 0 if odd[0] else 2 if odd[1] == 1 else 1
    places = list(range(1, len(odd) + 1))
    assert bench.lane.acked_in_order([items[n] for n in odd], places, bench.now) == expected
