"""Sealing at egress: which signature and id an event carries at which age, and which acks count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mesh.errors import BadSubject, UnknownKey
from mesh.jetstream.former import Former
from mesh.jetstream.outgoing import Outgoing
from mesh.jetstream.sealing import ACK_COUNTS_MS, MAX_BATCH, RESIGN_AFTER_MS, Sealer
from mesh.jetstream.wire import FrameReader, event_headers

START_MS = 1_795_300_000_000


def _nothing(*_: Any) -> None:
    pass


def item(subject: str = "ev.local.clear.s00.crm.a.v1", name: str = "1") -> Outgoing:
    """An event."""
    return Outgoing(subject=subject, stream="EV", body=b"{}", source="/crm", event_id=name, on_done=_nothing)


def named(subject: str = "ev.local.clear.s00.crm.a.v1", name: str = "1") -> Outgoing:
    """An event that comes with its id, as an agent's do."""
    made = item(subject, name)
    made.base_id = f"{name}.0"
    return made


class Bench:
    """A sealer with a seal that numbers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str, bytes]]] = []
        self.kid = ""
        self.former = Former()
        self.sealer = Sealer(
            self.seal,
            lambda each: f"{each.event_id}.{each.generation}",
            inbox="_INBOX.x.1.",
            former=self.former,
        )

    def seal(self, items: Sequence[tuple[str, str, bytes]]) -> list[str]:
        """`<batch>:<index>` for each; behind `1.<kid>.` where it matters which key seals."""
        self.batches.append(list(items))
        start = f"1.{self.kid}." if self.kid else ""
        return [f"{start}{len(self.batches)}:{i}" for i in range(len(items))]

    def sent(self, items: list[Outgoing], now_ms: int) -> list[tuple[str, str, str | None]]:
        """Reply, id and signature of each frame that `frames` makes."""
        return read(self.sealer.frames(items, now_ms))


def read(frames: bytes) -> list[tuple[str, str, str | None]]:
    """Reply, id and signature of each frame."""
    found: list[tuple[str, str, str | None]] = []

    def deliver(_sid: int, _subject: bytes, reply: bytes, headers: bytes | None, _data: bytes) -> None:
        ids, signature = event_headers(headers)
        found.append((reply.decode(), ids[0], signature))

    reader = FrameReader(deliver)
    while frames:
        line, _, rest = frames.partition(b"\r\n")
        _, subject, reply, *sizes = line.split(b" ")
        end = int(sizes[1]) + 2
        reader.feed(b" ".join([b"HMSG", subject, b"1", reply, *sizes]) + b"\r\n" + rest[:end])
        frames = rest[end:]
    return found


@pytest.mark.parametrize("made", [item, named])
def test_a_batch_is_sealed_once_and_each_event_has_its_own_ack_subject(made: Callable[..., Outgoing]) -> None:
    """One signature for the batch; frames in the order given; the next batch's tokens go on from there."""
    bench = Bench()
    items = [made(name=str(n)) for n in range(6)]
    for batch, some in enumerate((items[:3], items[3:])):
        sent = read(bench.sealer.admit(some, some, START_MS))
        first = 3 * batch
        assert sent == [(f"_INBOX.x.1.{first + n + 1}", f"{first + n}.0", f"{batch + 1}:{n}") for n in range(3)]
    assert list(bench.sealer.by_token.items()) == list(enumerate(items, 1))


@pytest.mark.parametrize("other", ["without an id", "of a later generation"])
@pytest.mark.parametrize("at", range(4))
def test_events_that_come_with_an_id_and_others_are_one_batch(other: str, at: int) -> None:
    """Wherever the other one stands: each has its own id and token, which go on rising."""
    bench = Bench()
    items = [named(name=str(n)) for n in range(4)]
    if other == "without an id":
        items[at].base_id = ""
    else:
        items[at].generation = 2
    generations = [each.generation for each in items]
    later = [named(name="4"), named(name="5")]
    sent = read(bench.sealer.admit(items, items, START_MS)) + read(bench.sealer.admit(later, later, START_MS))
    ids = [f"{n}.{generation}" for n, generation in enumerate([*generations, 0, 0])]
    assert [each[:2] for each in sent] == [(f"_INBOX.x.1.{n}", id_) for n, id_ in enumerate(ids, 1)]
    assert [each.base_id for each in items] == [f"{n}.0" for n in range(4)]
    assert list(bench.sealer.by_token.items()) == list(enumerate(items + later, 1))


@pytest.mark.parametrize("made", [item, named])
def test_a_token_is_given_once(made: Callable[..., Outgoing]) -> None:
    """An ack for a batch that failed to be admitted is for nobody of the next."""
    bench = Bench()
    seal, bench.sealer._seal = bench.sealer._seal, _fail
    failed = [made(name=str(n)) for n in range(3)]
    with pytest.raises(UnknownKey):
        bench.sealer.admit(failed, failed, START_MS)
    bench.sealer._seal = seal
    after = made(name="after")
    assert read(bench.sealer.admit([after], [after], START_MS)) == [("_INBOX.x.1.4", "after.0", "1:0")]
    assert bench.sealer.by_token == {4: after}


@pytest.mark.parametrize("made", [item, named])
def test_what_waits_is_not_sealed_yet(made: Callable[..., Outgoing]) -> None:
    """An event that is not sent now gets its signature when it is."""
    bench = Bench()
    waiting = made()
    assert bench.sealer.admit([waiting], [], START_MS) == b""
    assert bench.batches == []
    assert bench.sent([waiting], START_MS + 50_000) == [("_INBOX.x.1.1", "1.0", "1:0")]
    assert waiting.first_signed_ms == START_MS + 50_000


@pytest.mark.parametrize(
    ("age_ms", "signature", "msg_id", "token"),
    [
        (0, "1:0", "1.0", "1"),
        (RESIGN_AFTER_MS, "1:0", "1.0", "1"),
        (RESIGN_AFTER_MS + 1, "2:0", "1.0", "1"),
        (ACK_COUNTS_MS, "2:0", "1.0", "1"),
        (ACK_COUNTS_MS + 1, "2:0", "1.1", "2"),
    ],
)
def test_a_resend_by_age(age_ms: int, signature: str, msg_id: str, token: str) -> None:
    """Young: the same bytes. Over 30 s: a new signature. Over 100 s: the next generation, with its own ack subject."""
    bench = Bench()
    only = item()
    bench.sealer.admit([only], [only], START_MS)
    assert bench.sent([only], START_MS + age_ms) == [(f"_INBOX.x.1.{token}", msg_id, signature)]
    assert list(bench.sealer.by_token) == [int(token)]


def test_the_age_counts_from_the_first_signature_under_an_id() -> None:
    """Signing anew makes the event no younger: the first, stale copy may be the one that was stored."""
    bench = Bench()
    only = item()
    bench.sealer.admit([only], [only], START_MS)
    for age_ms in (40_000, 80_000):
        bench.sent([only], START_MS + age_ms)
    assert bench.sealer.ack_counts(only, START_MS + ACK_COUNTS_MS)
    assert not bench.sealer.ack_counts(only, START_MS + ACK_COUNTS_MS + 1)
    bench.sent([only], START_MS + ACK_COUNTS_MS + 1)
    assert (only.generation, only.first_signed_ms) == (1, START_MS + ACK_COUNTS_MS + 1)
    assert (bench.sealer.resealed, bench.sealer.new_ids) == (3, 1)


def test_a_batch_never_mixes_views_nor_grows_over_its_limit() -> None:
    """Proofs carry the siblings' hashes, so each view is sealed by itself; the sending order stays."""
    bench = Bench()
    views = itertools.cycle(["clear", "pseudonymous"])
    items = [item(f"ev.local.{next(views)}.s00.crm.a.v1", str(n)) for n in range(2 * MAX_BATCH + 4)]
    bench.sealer.admit(items, [], START_MS)
    sent = bench.sent(items, START_MS)
    assert [msg_id for _, msg_id, _ in sent] == [f"{n}.0" for n in range(len(items))]
    assert [len(batch) for batch in bench.batches] == [MAX_BATCH, 2, MAX_BATCH, 2]
    assert all(len({subject for subject, _, _ in batch}) == 1 for batch in bench.batches)


@pytest.mark.parametrize("fault", ["seal", "subject"])
@pytest.mark.parametrize("made", [item, named])
def test_admitting_is_all_or_nothing(fault: str, made: Callable[..., Outgoing]) -> None:
    """When sealing fails or a subject cannot be sent, no event of the batch is left waiting for an ack."""
    bench = Bench()
    items = [made(), made(subject="a b" if fault == "subject" else "ev.local.clear.s00.x")]
    if fault == "seal":
        bench.sealer._seal = _fail
    with pytest.raises(UnknownKey if fault == "seal" else BadSubject):
        bench.sealer.admit(items, items, START_MS)
    assert bench.sealer.by_token == {}


def _fail(_: Sequence[tuple[str, str, bytes]]) -> list[str]:
    raise UnknownKey("no key")


# --- a key that is revoked -------------------------------------------------------------------------------------------


def test_what_a_revoked_key_sealed_goes_out_anew() -> None:
    """From the cut on no ack of such a copy counts: the next generation, sealed by the next key. Others stay."""
    bench = Bench()
    old, young = item(name="old"), item(name="young")
    bench.kid = "k1"
    bench.sealer.admit([old], [old], START_MS)
    bench.kid = "k2"
    bench.sealer.admit([young], [young], START_MS)
    assert bench.sealer.distrust("k1") == [old]
    assert [bench.sealer.ack_counts(each, START_MS) for each in (old, young)] == [False, True]
    sent = bench.sent([old, young], START_MS + 1)
    assert [each[1:] for each in sent] == [("old.1", "1.k2.3:0"), ("young.0", "1.k2.2:0")]
    assert bench.sealer.ack_counts(old, START_MS + 1)
    assert (bench.sealer.new_ids, old.kids) == (1, ("k2",))


@pytest.mark.parametrize("revoked", ["k1", "k2"])
def test_every_key_that_sealed_under_an_id_counts(revoked: str) -> None:
    """Sealed anew by the next key under the same id: the stream may hold either copy, so each key can spoil it."""
    bench = Bench()
    only = item()
    bench.kid = "k1"
    bench.sealer.admit([only], [only], START_MS)
    bench.kid = "k2"
    later_ms = START_MS + RESIGN_AFTER_MS + 1
    assert bench.sent([only], later_ms)[0][1:] == ("1.0", "1.k2.2:0")
    bench.sealer.distrust(revoked)
    assert not bench.sealer.ack_counts(only, later_ms)


def test_an_event_that_was_not_sent_is_under_no_key() -> None:
    """It was never sealed, so there is nothing to send anew, and its first signature is the next key's."""
    bench = Bench()
    waits = item()
    bench.kid = "k1"
    bench.sealer.admit([waits], [], START_MS)
    assert bench.sealer.distrust("k1") == []
    bench.kid = "k2"
    assert bench.sent([waits], START_MS)[0][1:] == ("1.0", "1.k2.1:0")


@pytest.mark.parametrize("revoked", ["k1", "k2"])
def test_of_two_submissions_at_once_each_ones_key_is_remembered(revoked: str) -> None:
    """Both were in flight when they were given up: the stream may hold either copy."""
    bench = Bench()
    both = [item(), item()]
    for each, bench.kid in zip(both, ("k1", "k2"), strict=True):
        bench.sealer.admit([each], [each], START_MS)
    for each in both:
        bench.former.given_up(each)
    bench.sealer.distrust(revoked)
    again = item()
    assert read(bench.sealer.admit([again], [again], START_MS))[0][1] == "1.1"


@pytest.mark.parametrize("times", [1, 2])
def test_a_revoked_key_is_remembered_of_an_event_that_was_given_up(times: int) -> None:
    """The caller who posts it again gets no `duplicate` of a copy that may have been stored after the cut."""
    bench = Bench()
    for bench.kid in ("k1", "k2")[:times]:
        first = item()
        bench.sealer.admit([first], [first], START_MS)
        bench.former.given_up(first)
        bench.sealer.forget(first)
    bench.sealer.distrust("k1")
    bench.kid = "k3"
    again = item()
    assert read(bench.sealer.admit([again], [again], START_MS + 1))[0][1] == "1.1"


# --- the same event, submitted again ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("age_ms", "msg_id"), [(ACK_COUNTS_MS, "1.0"), (ACK_COUNTS_MS + 1, "1.1")])
@pytest.mark.parametrize("waits", [False, True])
def test_an_event_that_was_given_up_is_no_younger_when_it_comes_again(age_ms: int, msg_id: str, waits: bool) -> None:
    """The first signature of the first submission counts, also where the second waits before it is sent."""
    bench = Bench()
    first, again = item(), item()
    bench.sealer.admit([first], [first], START_MS)
    bench.former.given_up(first)
    now_ms = START_MS + age_ms
    if waits:
        bench.sealer.admit([again], [], START_MS + 20_000)
        sent = bench.sent([again], now_ms)
    else:
        sent = read(bench.sealer.admit([again], [again], now_ms))
    assert [each[1] for each in sent] == [msg_id]
    assert again.first_signed_ms == (START_MS if msg_id == "1.0" else now_ms)


def test_the_generation_that_was_acknowledged_is_the_one_repeated() -> None:
    """A plain repeat of an event that went out as generation 1 is that again, and so a duplicate of it."""
    bench = Bench()
    first, again = item(), item()
    bench.sealer.admit([first], [first], START_MS)
    bench.sent([first], START_MS + ACK_COUNTS_MS + 1)
    bench.former.stored(first)
    now_ms = START_MS + 2 * ACK_COUNTS_MS + 3
    assert [each[1] for each in read(bench.sealer.admit([again], [again], now_ms))] == ["1.1"]
    assert bench.sealer.ack_counts(again, now_ms)


def test_a_later_submission_never_makes_an_event_younger() -> None:
    """Of several that were given up, the oldest signature of the highest generation is kept."""
    bench = Bench()
    old, young, again = item(), item(), item()
    bench.sealer.admit([old], [old], START_MS)
    bench.sealer.admit([young], [young], START_MS + 5_000)
    for each in (young, old, young):
        bench.former.given_up(each)
    bench.sealer.admit([again], [], START_MS + 6_000)
    assert again.first_signed_ms == START_MS


def test_what_an_event_brings_with_it_is_not_forgotten() -> None:
    """One that a spool kept knows how it was sent itself: of that and what is remembered the worse counts."""
    former = Former()

    def known(generation: int = 0, first_ms: int = 0, kids: tuple[str, ...] = ()) -> Outgoing:
        made = item()
        made.base_id = "id"
        made.generation, made.first_signed_ms, made.kids = generation, first_ms, kids
        return made

    def resumed(made: Outgoing) -> tuple[int, int, set[str]]:
        former.resume(made)
        return made.generation, made.first_signed_ms, set(made.kids)

    assert resumed(known(1, 50, ("a",))) == (1, 50, {"a"})
    former.given_up(known(1, 40, ("b",)))
    assert resumed(known()) == (1, 40, {"b"})
    assert resumed(known(0, 30, ("a",))) == (1, 40, {"b"})
    assert resumed(known(1, 50, ("a",))) == (1, 40, {"a", "b"})
    assert resumed(known(2, 60, ("a",))) == (2, 60, {"a"})
    former.stored(known(3, 70, ("c",)))
    assert resumed(known()) == (3, 0, set())
    assert resumed(known(3, 70, ("c",))) == (3, 70, {"c"})


def test_what_is_remembered_is_bounded() -> None:
    """The oldest entry goes; an event that was never signed leaves none."""
    former = Former(limit=2)
    for n in range(4):
        each = item(name=str(n))
        each.base_id, each.first_signed_ms = each.event_id, START_MS if n else 0
        former.given_up(each)
    kept = []
    for n in range(4):
        again = item(name=str(n))
        again.base_id = again.event_id
        former.resume(again)
        kept.append(again.first_signed_ms)
    assert kept == [0, 0, START_MS, START_MS]
