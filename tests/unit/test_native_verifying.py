"""The compiled loops of verifying do what the Python ones say; see `test_native.py`."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.base64url import b64u, unb64u
from mesh.merkle import tree
from mesh.signing import Received
from mesh.subjects import Physical
from tests.unit.native_twins import PYTHON, SETS, both, compares, compiled, hostile, outcome, same
from tests.unit.native_walks import VALUES, Number, Text
from tests.unit.test_native import BODIES, IDS, SUBJECTS

KID, SIGNED, SIGNATURE = "k" * 22, "1767225600000", "s" * 86
FULL = 256


def received(subject: str, body: Any, msg_ids: Any, header: Any, stream_ms: Any = 0) -> Received:
    """An event as it was pulled."""
    return Received(subject, body, msg_ids, header, "EV_local_crm", 1, stream_ms, 1, "")


def batch_of(items: list[tuple[str, str, bytes]], *, signature: str = SIGNATURE) -> list[Received]:
    """These, under one signature."""
    salts = hashlib.shake_128(signature.encode()).digest(16 * len(items))
    _, middles = PYTHON["batch"](items, salts)
    headers = [f"1.{KID}.{SIGNED}.{middle}{signature}" for middle in middles]
    return [received(subject, body, (id,), header) for (subject, id, body), header in zip(items, headers, strict=True)]


def some(size: int, *, signature: str = SIGNATURE) -> list[Received]:
    """A batch of that many."""
    return batch_of([("orders.eu", b64u(b"%16d" % i), b"%d" % i) for i in range(size)], signature=signature)


# --- neighbours ------------------------------------------------------------------------------------------------------

ODD_PARTS: list[list[str]] = [
    ["1", "0", "2", "01", "", "1\n"],
    [KID, "", "\ud800"],
    [SIGNED, "", "1" * 300],
    ["A" * 22, "A" * 21, "A" * 21 + "B", "A" * 23, "A" * 21 + "é", "A" * 21 + "\n", ""],
    ["0", "1", "2", "3", "9", "10", "255", "256", "00", "01", "-1", "+1", " 1", "\u0661", "1_0", "1" * 400, ""],
    ["1", "2", "3", "4", "9", "10", "99", "255", "256", "257", "999", "0", "02", "-2", "\u0664", "1e1", ""],
    ["", "AAAA", "é", "x" * 700, "=", "."],
    [SIGNATURE, "", "other"],
]
HEADERS = st.tuples(*(st.sampled_from([*parts[:1] * 6, *parts]) for parts in ODD_PARTS)).map(
    ".".join
) | st.sampled_from([None, "", "." * 7, "." * 8, "." * 100_000, "1" * 1025, "1.2.3.4.5.6.7", b"1", 1, Text("1")])
MSG_IDS: st.SearchStrategy[Any] = IDS.map(lambda each: (each,)) | st.sampled_from(
    [
        (),
        ("A" * 22,) * 2,
        ("A" * 21,),
        ("A" * 21 + "\ud800",),
        ("A" * 21 + "é",),
        (1,),
        (Text("A" * 22),),
        ["A" * 22],
        None,
    ]
)
ODD_EVENTS = st.builds(
    received,
    st.just("orders.eu"),
    st.sampled_from([b"{}"] * 5 + [b" " * 1_048_576, b" " * 1_048_577, "{}", bytearray(b"{}"), None]),
    MSG_IDS,
    HEADERS,
)


@compares("neighbours")
@given(st.lists(ODD_EVENTS, max_size=8))
def test_neighbours_of_any_kind(events: list[Received]) -> None:
    """Headers with odd parts, too few or too many; ids and bodies that are none."""
    same("neighbours", events)


@compares("neighbours")
def test_neighbours_of_one_odd_event() -> None:
    """One part of one header is another: it is in no run, or in one of its own."""
    events = some(8)
    for at in (0, 3, 7):
        for part, odd in ((part, odd) for part, values in enumerate(ODD_PARTS) for odd in values):
            parts = (events[at].signature or "").split(".")
            parts[part] = odd
            changed = msgspec.structs.replace(events[at], signature=".".join(parts))
            same("neighbours", [*events[:at], changed, *events[at + 1 :]])
        for msg_id in ("A" * 21, "A" * 23, "A" * 21 + "B", "A" * 21 + "\n", "A" * 21 + "é", "A" * 20 + ".A", ""):
            changed = msgspec.structs.replace(events[at], msg_ids=(msg_id,))
            runs = same("neighbours", [*events[:at], changed, *events[at + 1 :]])
            assert sum(len(salts) for *_, salts, _ in runs) == 7


@compares("neighbours")
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 8, 33, FULL]), st.integers(0, FULL), st.integers(1, 9)), max_size=5)
)
def test_neighbours_of_batches_that_were_cut(cuts: list[tuple[int, int, int]]) -> None:
    """A run begins where a batch does, and where an event is missing."""
    parts = [some(size, signature=f"of {size}")[at % size :][:count] for size, at, count in cuts]
    runs = same("neighbours", [event for part in parts for event in part])
    assert sum(len(salts) for *_, salts, _ in runs) == sum(len(part) for part in parts)
    assert len(runs) <= len(parts)


@compares("neighbours")
@given(st.permutations(range(9)), st.lists(st.integers(0, 8), max_size=3))
def test_neighbours_out_of_order(order: list[int], gone: list[int]) -> None:
    """Each that does not follow the one before begins a run."""
    events = [
        event if at not in gone else msgspec.structs.replace(event, signature="") for at, event in enumerate(some(9))
    ]
    same("neighbours", [events[at] for at in order])


@compares("neighbours")
def test_neighbours_are_events() -> None:
    """In a list; anything else has no signature."""
    for twin in both("neighbours"):
        assert outcome(twin, [some(1)[0], None]) == ("raises", AttributeError)
        assert outcome(twin, None) == ("raises", TypeError)


# --- agreed ----------------------------------------------------------------------------------------------------------

PLACE = Physical("eu1", "clear", 0, "crm.contact.v1")
FIELDS = {"type": PLACE.type, "view": "clear", "specversion": "1.0", "tenant": "acme", "source": "/crm", "id": "1"}
BOUNDS = (-30_000, 120_000)
TIMES = st.sampled_from(
    [*BOUNDS, 0, 0, 0, -30_001, 120_001, 2**63, -(2**63), 10**40, -(10**40), 1.5, float("nan"), True]
)
GONE = st.sampled_from([None] * 5 + [*FIELDS])
ODD_FIELDS = st.dictionaries(
    st.sampled_from(sorted(FIELDS)),
    st.sampled_from([None, "", 1, 1.0, True, [], {}, "é", "\ud800", "1.0", "other", "x" * 5000]) | VALUES,
    max_size=1,
)
CONTENTS = st.none() | st.tuples(
    st.builds(received, st.just("s"), st.just(b""), st.just(()), st.none(), TIMES),
    st.builds(lambda odd, gone: {name: v for name, v in (FIELDS | odd).items() if name != gone}, ODD_FIELDS, GONE),
    st.sampled_from(
        [PLACE] * 5 + [PLACE._replace(view="masked"), PLACE._replace(type="crm.other.v1"), PLACE._replace(slot=9)]
    ),
)


@compares("agreed")
@settings(max_examples=3 * settings().max_examples)
@given(
    st.lists(CONTENTS, max_size=6),
    st.integers(0, 6),
    st.sampled_from([BOUNDS, BOUNDS, (10**30, 10**31), (-(10**30), 10**30), (1, 0)]),
    st.sampled_from([None, "acme", "acme", "other", ""]),
)
def test_agreed(contents: list[Any], start: int, stored: tuple[int, int], tenant: str | None) -> None:
    """Up to the same event, and the same is said by those before it."""
    did = []
    for twin in both("agreed"):
        said: set[Any] = set()
        did.append((outcome(twin, contents, min(start, len(contents)), stored, tenant, said), said))
    assert did[0] == did[1]


@compares("agreed")
@given(st.sampled_from(sorted(FIELDS)), st.booleans())
def test_agreed_misses_what_is_not_there(gone: str, tenant: bool) -> None:
    """Every member is needed; the tenant only by a consumer that has one."""
    fields = {name: value for name, value in FIELDS.items() if name != gone}
    event = received("s", b"", (), None)
    contents = [(event, FIELDS, PLACE), (event, fields, PLACE), (event, FIELDS, PLACE)]
    end = same("agreed", contents, 0, BOUNDS, "acme" if tenant else None, set())
    assert end == (3 if gone == "tenant" and not tenant else 1)


@compares("agreed")
def test_agreed_has_both_bounds_in_it() -> None:
    """The first and the last millisecond; none before or behind."""
    for ms, end in ((BOUNDS[0] - 1, 0), (BOUNDS[0], 1), (BOUNDS[1], 1), (BOUNDS[1] + 1, 0)):
        event = received("s", b"", (), None, ms)
        assert same("agreed", [(event, FIELDS, PLACE)], 0, BOUNDS, None, set()) == end


@compares("agreed")
def test_agreed_takes_times_that_compare() -> None:
    """Others raise, as in Python."""
    event = received("s", b"", (), None, "now")
    assert same("agreed", [(event, FIELDS, PLACE)], 0, BOUNDS, None, set()) is TypeError
    assert same("agreed", [(event, FIELDS, PLACE)], 0, ("a", "z"), None, set()) == 1


# --- common_root -----------------------------------------------------------------------------------------------------


def cut(events: list[Received], start: int, end: int) -> tuple[list[Received], list[str], list[str], int]:
    """What `common_root` takes of them."""
    parts = [(event.signature or "").split(".") for event in events[start:end]]
    return events[start:end], [part[3] for part in parts], [part[6] for part in parts], start


@compares("common_root")
def test_common_root_of_every_part() -> None:
    """Of small trees, whole and cut anywhere: the root of all."""
    for size in (*range(1, 10), 13, 16, 17):
        events, roots = some(size), set()
        for start in range(size):
            for end in range(start + 1, size + 1):
                roots.add(same("common_root", *cut(events, start, end), size))
        assert len(roots) == 1
        assert None not in roots


@compares("common_root")
@given(st.integers(1, FULL), st.integers(0, FULL), st.integers(0, FULL))
def test_common_root_of_a_part(size: int, start: int, count: int) -> None:
    """Of trees of any size."""
    start %= size
    assert same("common_root", *cut(some(size), start, start + 1 + count), size) is not None


@compares("common_root")
@given(st.lists(st.tuples(SUBJECTS, IDS, BODIES), min_size=1, max_size=12), st.integers(0, 11), st.integers(1, 12))
def test_common_root_of_any_event(items: list[Any], start: int, count: int) -> None:
    """Leaves of all lengths, hashed in twos."""
    start %= len(items)
    assert same("common_root", *cut(batch_of(items), start, start + count), len(items)) is not None


PROOFS = st.one_of(
    st.sampled_from(
        ["", "A", "é", "\ud800", "=", "A" * 43, "A" * 42, "A" * 86, "A" * 341, "A" * 342, "A" * 343, "A" * 999]
    ),
    st.integers(0, 9).map(lambda hashes: b64u(bytes(32 * hashes))),
    st.text("AQgw-_+/=.\n", max_size=90),
    st.binary(max_size=290).map(b64u),
)


@compares("common_root")
@settings(max_examples=3 * settings().max_examples)
@given(st.data(), st.sampled_from([1, 2, 3, 7, 8, 9, 33, 255, FULL]), st.booleans())
def test_common_root_with_another_proof(draw: st.DataObject, size: int, swapped: bool) -> None:
    """Of another length, no base64, in another spelling, or a true one of another leaf: None but for what it was."""
    start = draw.draw(st.integers(0, size - 1))
    events, salts, proofs, _ = cut(some(size), start, start + draw.draw(st.integers(1, 9)))
    at = draw.draw(st.integers(0, len(events) - 1))
    was = proofs[at]
    if swapped:
        other = draw.draw(st.integers(0, len(events) - 1))
        proofs[at], proofs[other] = proofs[other], proofs[at]
    elif was and draw.draw(st.booleans()):
        place = draw.draw(st.integers(0, len(was) - 1))
        proofs[at] = was[:place] + draw.draw(st.sampled_from(["", "A", "Q", "-", "+", "\n"])) + was[place + 1 :]
    else:
        proofs[at] = draw.draw(PROOFS)
    led = same("common_root", events, salts, proofs, start, size)
    if proofs[at] != was and len(events) > 1:
        assert led is None


@compares("common_root")
@given(st.integers(2, 9), st.sampled_from([0, 1, 31, 33, 63, 64, 256, 300]))
def test_common_root_takes_no_proof_of_another_length(size: int, length: int) -> None:
    """Of one event alone, whose proof nobody else's confirms: as many hashes as the tree has levels there."""
    events, salts, proofs, _ = cut(some(size), 0, 1)
    right = len(unb64u(proofs[0]))
    assert right == 32 * (size - 1).bit_length()
    if length != right:
        assert same("common_root", events, salts, [b64u(bytes(length))], 0, size) is None
    assert len(same("common_root", events, salts, [b64u(bytes(right))], 0, size)) == 32


@compares("common_root")
@given(st.integers(1, 8), st.integers(-2, 9), st.integers(-2, 300), st.integers(-1, 1), st.integers(-1, 1))
def test_common_root_of_what_is_not_in_the_tree(count: int, place: int, size: int, salts: int, proofs: int) -> None:
    """Sizes and places of other trees lead elsewhere; those that cannot be are refused, and so are odd counts."""
    events, some_salts, some_proofs, _ = cut(some(count), 0, count)
    fits = 0 <= place <= size - count and size <= FULL and not salts and not proofs
    led = same(
        "common_root", events, (some_salts * 2)[: count + salts], (some_proofs * 2)[: count + proofs], place, size
    )
    assert (led is ValueError) == (not fits)
    assert same("common_root", [], [], [], 0, 1) is ValueError


@compares("common_root")
def test_common_root_refuses_what_is_no_text() -> None:
    """A lone surrogate in a part of a statement."""
    events, salts, proofs, _ = cut(some(4), 0, 4)
    for change in ({"subject": "\ud800"}, {"msg_ids": ("\ud800",)}):
        for at in (0, 1, 3):
            changed = [*events[:at], msgspec.structs.replace(events[at], **change), *events[at + 1 :]]
            assert same("common_root", changed, salts, proofs, 0, 4) is UnicodeEncodeError
    assert same("common_root", events, [*salts[:3], "\ud800"], proofs, 0, 4) is UnicodeEncodeError
    for odd in (None, 1, "é", "\ud800"):
        assert same("common_root", events, salts, [proofs[0], odd, *proofs[2:]], 0, 4) is None


@compares("common_root")
def test_common_root_is_that_of_the_tree() -> None:
    """Not only the same in both."""
    items = [("orders.eu", b64u(b"%16d" % i), b"%d" % i) for i in range(7)]
    events = batch_of(items)
    statements = [
        f"\0mesh-event-v1\n{event.subject}\n{event.msg_ids[0]}\n{salt}\n".encode() + event.body
        for event, salt in zip(events, cut(events, 0, 7)[1], strict=True)
    ]
    root, _ = tree([hashlib.sha256(statement).digest() for statement in statements])
    assert same("common_root", *cut(events, 2, 5), 7) == root


# --- what hurts ------------------------------------------------------------------------------------------------------


@hostile
@given(st.lists(VALUES, min_size=11, max_size=11), VALUES, st.integers(-(2**65), 2**65))
def test_events_of_anything(parts: list[Any], odd: Any, number: int) -> None:
    """Every part is of some other type: each loop answers or raises."""
    event = Received(*parts)
    for events in ([event], [some(1)[0], event, event]):
        outcome(compiled().neighbours, events)
        contents = [(each, dict(FIELDS), PLACE) for each in events]
        outcome(compiled().agreed, contents, 0, (odd, number), odd, set())
        outcome(compiled().agreed, [*contents, (event, FIELDS, tuple(parts[:4])), odd], number, BOUNDS, None, set())
        for text in ("A" * 22, odd):
            outcome(compiled().common_root, events, [text] * len(events), [text] * len(events), 0, 4)
            outcome(compiled().common_root, events, ["A"] * len(events), ["A"] * len(events), number, number)


class Spoils:
    """An event that empties lists when it is looked at."""

    def __init__(self, *lists: list[Any]) -> None:
        self.lists = lists

    def __getattr__(self, name: str) -> Any:
        for each in self.lists:
            each.clear()
        return getattr(some(1)[0], name)


class Spoiling(Number):
    """A time that empties lists when it is compared."""

    lists: tuple[list[Any], ...] = ()

    def __le__(self, other: object) -> bool:
        for each in self.lists:
            each.clear()
        return True


@hostile
def test_lists_that_are_emptied_on_the_way() -> None:
    """By an event that is none: what is looked at is held, and what is gone is not."""
    for twins in SETS:
        events: list[Any] = []
        events += [some(1)[0], Spoils(events), some(1)[0]]
        assert outcome(twins("neighbours"), events)[0] == "answers"
        for at in range(3):
            lists: tuple[list[Any], ...] = ([], ["A" * 22] * 3, ["A"] * 3)
            lists[0].extend(some(3))
            lists[0][at] = Spoils(*lists)
            outcome(twins("common_root"), *lists, 0, 3)
        contents: list[Any] = []
        event, first = received("s", b"", (), None), Spoiling(0)
        first.lists = (contents,)
        contents += [(event, dict(FIELDS), PLACE)] * 3
        assert outcome(twins("agreed"), contents, 0, (first, 9), None, set())[0] in ("answers", "raises")


@hostile
def test_members_that_are_no_names() -> None:
    """A body with a name that empties it when it is compared."""

    class Evil(str):
        __slots__ = ()
        fields: dict[Any, Any]

        def __eq__(self, other: object) -> bool:
            self.fields.clear()
            return False

        def __hash__(self) -> int:
            return str.__hash__(self)

    for name in FIELDS:
        Evil.fields = {Evil(name): "evil", **{key: value for key, value in FIELDS.items() if key != name}}
        for twin in both("agreed"):
            outcome(twin, [(received("s", b"", (), None), Evil.fields, PLACE)], 0, BOUNDS, "acme", set())
