"""Numbers and marks: what an agent counts, what it says of it, and how that is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent import counting, sequences
from agent.counting import MAX_NAMED_VOIDS, Counting
from agent.sequences import MARK_S, MAX_MARK_S, Sequences
from mesh import audit
from mesh.base64url import unb64u
from mesh.ca import MeshCA
from mesh.errors import MeshError, NotEnrolled
from mesh.identity import Signer, SpiffeId
from mesh.jetstream.acks import PubAck
from mesh.jetstream.outgoing import Outgoing
from mesh.jsontext import decode, encode
from mesh.marks import Mark, Row, Void
from mesh.sequences import Number, began_ms, event_name, member_of, new_epoch, number_of, numbered, read
from mesh.statements import verify_ed25519

NOW_MS = 1_795_300_000_000
EPOCH = new_epoch(NOW_MS, b"\0\0\0\7")
CA = MeshCA.create("mesh.local", now_ms=NOW_MS, lifetime_s=86_400)
SEED = bytes(range(32))
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
SIGNER = Signer.from_seed(SEED, CA.issue(SpiffeId.for_agent("mesh.local", "acme", "crm"), PUBLIC, now_ms=NOW_MS))
OTHER = new_epoch(NOW_MS + 1, b"\0\0\0\0")


# --- numbers ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**48), st.integers(0, 2**48), st.binary(min_size=4, max_size=4))
def test_epochs_order_as_their_beginnings(one: int, other: int, chance: bytes) -> None:
    """Names of epochs order as strings do, and say when they began."""
    assert began_ms(new_epoch(one, chance)) == one
    if one < other:
        assert new_epoch(one, b"\xff" * 4) < new_epoch(other, b"\0" * 4)


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        EPOCH,
        f"{EPOCH}-1",
        f"{EPOCH}-000000000000",
        f"{EPOCH.lower()}-000000000001",
        f"{EPOCH}-00000000000x",
    ],
)
def test_what_is_no_sequence_is_none(text: object) -> None:
    """Only what `numbered` writes is read."""
    assert read(text) is None


def test_a_sequence_is_the_last_member_of_its_event() -> None:
    """It is added to the encoded event, read back without parsing, and found where somebody wrote the event anew."""
    fields = {"id": "1", "data": {"sequence": f"{OTHER}-000000000009"}}
    copy = Outgoing("s", "S", encode(fields), "/crm", "1")
    assert numbered([copy], 0, member_of(EPOCH), 12) == 1
    body = copy.body
    assert decode(body) == {**fields, "sequence": f"{EPOCH}-000000000012"}
    assert number_of(body) == Number(EPOCH, 12)
    assert number_of(encode({**decode(body), "more": 1})) == Number(EPOCH, 12)
    assert number_of(encode(fields)) is None
    assert number_of(encode({"id": "1", "previous": f"{EPOCH}-000000000012"})) is None


# --- counting --------------------------------------------------------------------------------------------------------


def next_of(count: Counting, source: str, view: str) -> int:
    """The next number of a source in a view."""
    counter = count.counter(source, view)
    counter.last += 1
    return counter.last


def test_each_source_counts_in_each_view() -> None:
    """Numbers of a source and view rise from 1, whatever others do."""
    count = Counting(EPOCH)
    given_ = [next_of(count, source, view) for source, view in (("/a", "v"), ("/a", "w"), ("/b", "v"), ("/a", "v"))]
    assert given_ == [1, 1, 1, 2]


def test_a_mark_says_what_moved_since_the_last() -> None:
    """A row for each source and view that counted on; then nothing more."""
    count = Counting(EPOCH)
    next_of(count, "/a", "v")
    next_of(count, "/b", "v")
    assert [row.plain() for row in count.rows()] == [[EPOCH, "/a", "v", 1], [EPOCH, "/b", "v", 1]]
    assert not count.moved
    next_of(count, "/b", "v")
    assert [row.plain() for row in count.rows()] == [[EPOCH, "/b", "v", 2]]
    assert count.rows() == []


def test_void_numbers_in_a_row_are_one_entry() -> None:
    """What is given up one after another is a range; a duplicate names its place; another epoch has its own row."""
    count = Counting(EPOCH)
    for _ in range(9):
        next_of(count, "/a", "v")
    for n in (2, 3, 4, 6):
        count.void(Number(EPOCH, n), "/a", "v")
    count.void(Number(EPOCH, 7), "/a", "v", stream="EV_local_a", at=5, event=event_name("x"))
    count.void(Number(OTHER, 3), "/a", "v")
    ours, others = (row.plain() for row in count.rows())
    assert ours == [EPOCH, "/a", "v", 9, "2-4", "6", f"7@EV_local_a:5:{event_name('x')}"]
    assert others == [OTHER, "/a", "v", 0, "3"]


def test_too_many_void_numbers_are_counted() -> None:
    """A flood of duplicates fills no audit trail: beyond so many the rest is a range and how many of it are meant."""
    count = Counting(EPOCH)
    for n in range(1, 1001):
        next_of(count, "/a", "v")
        if n % 2:
            count.void(Number(EPOCH, n), "/a", "v", stream="S", at=n, event=event_name(str(n)))
    (row,) = count.rows()
    assert len(row.voids) == MAX_NAMED_VOIDS
    assert row.voids[-1] == Void(119, 999, 441)
    assert sum(void.meant for void in row.voids) == 500


def test_a_mark_fits_an_audit_record() -> None:
    """However much there is to say, it is said in pieces that the audit trail takes whole."""
    count = Counting(EPOCH)
    for number in range(300):
        source = f"/{'x' * 240}/{number}"
        for n in range(1, 41):
            next_of(count, source, "v" * 40)
            count.void(Number(EPOCH, n), source, "v" * 40, stream="EV_" + "y" * 100, at=10**18, event=event_name("e"))
    pieces = list(iter(count.rows, []))
    assert sum(map(len, pieces)) == 300
    for rows in pieces:
        mark = _mark(tuple(rows))
        record = audit.read(audit.Chain("a.b").append(audit.SEQUENCE_MARK, NOW_MS, mark.facts() | {"signature": "s"}))
        assert Mark.parse(record.facts) == (mark, "s")


def _mark(rows: tuple[Row, ...]) -> Mark:
    return Mark(epoch=EPOCH, index=1, rows=rows, waiting=0, ends=False, kid="k" * 22, signed_ms=NOW_MS)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_void_numbers_read_back(first: int, more: int, meant: int) -> None:
    """What is written is what is read."""
    for void in (Void(first, first + more, more + 1), Void(first, first, 1, "S", more + 1, event_name("e"))):
        assert Void.parse(str(void)) == void
    if meant <= more:
        assert Void.parse(str(Void(first, first + more, meant))) == Void(first, first + more, meant)


@pytest.mark.parametrize(
    "text", [None, 1, "", "0", "-1", "3-2", "1-", "1~2", "1~2:0", "1@S:1:short", "1@S S:1:" + "a" * 16]
)
def test_what_names_no_void_numbers_is_refused(text: object) -> None:
    """Marks come through the broker: each entry has one spelling."""
    with pytest.raises(ValueError, match="void"):
        Void.parse(text)


FACTS = _mark((Row(EPOCH, "/a", "v", 3, (Void(1, 1, 1),)),)).facts() | {"signature": "s"}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "short"},
        {"index": "1"},
        {"rows": [[EPOCH, "/a", "v"]]},
        {"rows": [["short", "/a", "v", 3]]},
        {"rows": [[EPOCH, "/a", "v", 3, "x"]]},
        {"rows": "none"},
        {"signature": None},
        {"ends": 1},
    ],
)
def test_what_is_no_mark_is_refused(change: dict[str, Any]) -> None:
    """A record that only calls itself a mark is none."""
    with pytest.raises(ValueError, match=r"mark|void"):
        Mark.parse(FACTS | change)


# --- the agent's -----------------------------------------------------------------------------------------------------


class World:
    """An agent's sequences with a clock and a key of the test's."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waiting = 0
        self.signer: Signer | None = SIGNER
        self.written: list[dict[str, Any]] = []
        chance = itertools.count()
        self.sequences = Sequences(
            self._sign,
            self._record,
            clock_ms=lambda: NOW_MS + int(self.now_s * 1000),
            waiting=lambda: self.waiting,
            clock_s=lambda: self.now_s,
            chance=lambda size: next(chance).to_bytes(size),
        )

    def _sign(self) -> Signer:
        if self.signer is None:
            raise NotEnrolled("no key")
        return self.signer

    def _record(self, kind: str, **facts: Any) -> None:
        assert kind == audit.SEQUENCE_MARK
        self.written.append(facts)

    def publish(self, source: str = "/crm", *, count: int = 1, view: str = "clear") -> list[Outgoing]:
        """Stamp copies and hand them over as the lanes get them."""
        copies = [_copy(source, view, f"e{number}") for number in range(count)]
        self.sequences.stamp(copies)
        return [_outgoing(copy) for copy in copies]

    def marks(self) -> Iterator[Mark]:
        """What was written, each with a signature that verifies."""
        for facts in self.written:
            mark, signature = Mark.parse(facts)
            assert verify_ed25519(PUBLIC, mark.signed(SIGNER.spiffe_id), unb64u(signature))
            assert not verify_ed25519(PUBLIC, mark.signed("spiffe://mesh.local/other"), unb64u(signature))
            yield mark

    def rows(self) -> list[list[list[str | int]]]:
        """The rows of each mark, without the epoch."""
        return [[row.plain()[1:] for row in mark.rows] for mark in self.marks()]


def _copy(source: str, view: str, event_id: str) -> Outgoing:
    return Outgoing(
        view=view,
        subject=f"ev.local.{view}.s00.crm.contact.v1",
        stream="EV_local_crm",
        body=encode({"id": event_id, "source": source}),
        source=source,
        event_id=event_id,
        type="crm.contact.v1",
        traceparent=None,
    )


def _outgoing(copy: Outgoing) -> Outgoing:
    return Outgoing(
        subject=copy.subject,
        stream=copy.stream,
        body=copy.body,
        source=copy.source,
        event_id=copy.event_id,
        on_done=lambda *_: None,
    )


@pytest.fixture
def world() -> World:
    """A fresh one."""
    return World()


def test_copies_are_numbered_in_their_order(world: World) -> None:
    """Every copy gets the next number of its source and view."""
    copies = world.publish(count=3) + world.publish(view="service") + world.publish()
    assert [number_of(copy.body) for copy in copies] == [Number(world.sequences.epoch, n) for n in (1, 2, 3, 1, 4)]


def test_an_epoch_is_marked_every_minute_and_later_more_seldom(world: World) -> None:
    """A young epoch is marked each minute in which it moved, an old one every quarter of an hour."""
    for _ in range(10):
        world.now_s += MARK_S
        world.publish()
        world.sequences.mark()
        world.sequences.mark()  # nothing moved
    assert world.rows() == [[["/crm", "clear", n]] for n in range(1, 11)]
    world.now_s += 7 * 86_400
    world.sequences.mark()
    world.publish()
    world.sequences.mark()
    before = len(world.written)
    for _ in range(30):
        world.now_s += MARK_S
        world.publish()
        world.sequences.mark()
    assert len(world.written) - before == 30 * MARK_S / MAX_MARK_S


def test_void_numbers_are_marked_at_the_next_turn(world: World) -> None:
    """Whatever else is due: who verifies then knows why a number is not there."""
    world.now_s += 86_400
    first, second, third = world.publish(count=3)
    world.sequences.mark()
    world.written.clear()
    world.sequences.duplicate(first, PubAck("EV_local_crm", 7, duplicate=True))
    world.sequences.given_up(second)
    world.sequences.void(third, None)
    world.sequences.mark()
    assert world.rows() == [[["/crm", "clear", 3, f"1@EV_local_crm:7:{event_name('e0')}", "2-3"]]]


def test_the_last_mark_says_so(world: World) -> None:
    """An epoch ends with all it has to say, once; what comes after counts in another epoch."""
    epoch = world.sequences.epoch
    world.publish(count=2)
    world.waiting = 5
    world.sequences.finish()
    world.sequences.finish()
    (mark,) = world.marks()
    assert (mark.epoch, mark.ends, mark.waiting, [row.last for row in mark.rows]) == (epoch, True, 5, [2])
    assert number_of(world.publish()[0].body) == Number(world.sequences.epoch, 1)
    assert world.sequences.epoch != epoch


def test_of_several_last_marks_one_is_the_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an epoch has more to say than a mark holds, the end stands in the last of them."""
    monkeypatch.setattr(counting, "MAX_ROWS", 1)
    for number in range(3):
        world.publish(f"/crm/{number}")
    world.sequences.finish()
    assert [mark.ends for mark in world.marks()] == [False, False, True]


def test_an_agent_that_counted_nothing_writes_nothing(world: World) -> None:
    """A consumer's agent leaves no trace of numbers."""
    world.sequences.mark()
    world.sequences.finish()
    assert world.written == []


def test_without_a_key_marks_wait(world: World) -> None:
    """What there is to say is said once there is a key, and nothing of it is lost."""
    key, world.signer = world.signer, None
    world.publish(count=2)
    world.now_s += MARK_S
    world.sequences.mark()
    assert world.written == []
    world.signer = key
    world.sequences.mark()
    assert world.rows() == [[["/crm", "clear", 2]]]


def test_an_epoch_that_counts_too_many_sources_gives_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: another epoch begins, and the one that is left gets its last mark."""
    monkeypatch.setattr(counting, "MAX_COUNTERS", 3)
    copies = [world.publish(f"/crm/{number}")[0] for number in range(4)]
    epochs = [number.epoch for copy in copies if (number := number_of(copy.body))]
    assert len(set(epochs[:3])) == 1
    assert epochs[3] != epochs[0]
    world.sequences.mark()
    (mark,) = world.marks()
    assert (mark.epoch, mark.ends, len(mark.rows)) == (epochs[0], True, 3)


def test_marks_are_numbered_from_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one that is taken away shows; and in one turn no more are written than the loop can bear."""
    monkeypatch.setattr(counting, "MAX_ROWS", 1)
    monkeypatch.setattr(sequences, "MAX_MARKS_AT_ONCE", 2)
    for number in range(5):
        world.publish(f"/crm/{number}")
    for _ in range(3):
        world.now_s += MARK_S
        world.sequences.mark()
    assert [mark.index for mark in world.marks()] == [1, 2, 3, 4, 5]


def test_a_copy_without_a_number_is_left_alone(world: World) -> None:
    """The spool may hold copies of an agent that did not count; a body that cannot be read harms nobody."""
    plain = _outgoing(_copy("/crm", "clear", "e"))
    broken = _outgoing(_copy("/crm", "clear", "e"))
    broken.body = b"no json"
    world.sequences.given_up(plain)
    world.sequences.given_up(broken)
    world.now_s += MARK_S
    world.sequences.mark()
    assert world.written == []


def test_the_errors_of_numbers_are_ours() -> None:
    """What `number_of` raises is caught where it is called."""
    with pytest.raises(MeshError):
        number_of(msgspec.json.encode([1]))
