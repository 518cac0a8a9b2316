"""The compiled `Outgoing`, the loops over many of them, and their frames do what the Python ones say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.jetstream.outgoing import NEVER, unheard
from tests.unit.native_twins import PYTHON, SETS, alike, compares, compiled, hostile, outcome
from tests.unit.native_walks import VALUES, WORDS

Twins = Callable[[str], Any]
Fields = dict[str, Any]

NAMES: tuple[str, ...] = PYTHON["Outgoing"].__struct_fields__
REQUIRED = ("subject", "stream", "body", "source", "event_id")
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=60)
NUMBERS = st.integers(0, 2**60)
EVENTS = st.fixed_dictionaries(
    dict.fromkeys(REQUIRED, WORDS) | {"body": st.binary(max_size=200)},
    optional=dict.fromkeys(("base_id", "view", "type", "route", "msg_id", "signature"), LINES)
    | dict.fromkeys(("generation", "first_signed_ms", "signed_ms", "token", "order", "sends", "place"), NUMBERS)
    | {
        "traceparent": st.sampled_from([None, "", "00-a-b-01"]) | LINES,
        "kids": st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(tuple),
    }
    | {"sent_at": st.floats(0, 1e9), "give_up_at": st.floats(0, 1e9), "done": st.booleans(), "origin": VALUES},
)
BATCHES = st.lists(EVENTS, max_size=6)


def made(twins: Twins, events: list[Fields]) -> list[Any]:
    """These events, of these twins."""
    return [twins("Outgoing")(**fields) for fields in events]


def state(item: Any) -> Fields:
    """All that an event knows."""
    return {name: getattr(item, name) for name in NAMES}


# --- Outgoing --------------------------------------------------------------------------------------------------------


@compares("Outgoing")
@given(EVENTS, st.permutations(range(len(NAMES))), st.integers(0, 10))
def test_outgoing(fields: Fields, order: list[int], by_position: int) -> None:
    """Made by position and by name, in whatever order; what is not given has the same default."""

    def use(twins: Twins) -> Any:
        whole = {name: fields.get(name, value) for name, value in state(twins("Outgoing")(**fields)).items()}
        names = [name for name in (NAMES[at] for at in order) if name not in NAMES[:by_position]]
        item = twins("Outgoing")(
            *(whole[name] for name in NAMES[:by_position]), **{name: whole[name] for name in names}
        )
        return (
            state(item),
            state(twins("Outgoing")(**fields)),
            repr(item),
            [item].count(item),
            item == fields,
            bool(item),
        )

    assert alike(use)[0].keys() == set(NAMES)


@compares("Outgoing")
def test_outgoing_has_defaults() -> None:
    """Of everything but the first five."""
    item = state(compiled().Outgoing("s", "t", b"b", "r", "e"))
    assert item == state(PYTHON["Outgoing"]("s", "t", b"b", "r", "e"))
    assert (item["on_done"], item["sent_at"], item["kids"], item["done"]) == (unheard, NEVER, (), False)


@compares("Outgoing")
@given(EVENTS, st.sampled_from(REQUIRED), st.sampled_from(NAMES))
def test_outgoing_refuses(fields: Fields, gone: str, name: str) -> None:
    """Too few arguments, too many, one twice, one it has not; an attribute it has not; numbers that are none."""
    few = {other: value for other, value in fields.items() if other != gone}
    assert alike(lambda twins: twins("Outgoing")(**few)) is TypeError
    assert alike(lambda twins: twins("Outgoing")(*range(len(NAMES) + 1))) is TypeError
    assert alike(lambda twins: twins("Outgoing")("s", **fields)) is TypeError
    assert alike(lambda twins: twins("Outgoing")(**fields, other=1)) is TypeError
    assert alike(lambda twins: twins("Outgoing")()) is TypeError
    assert alike(lambda twins: setattr(twins("Outgoing")(**fields), "other", 1)) is AttributeError
    assert alike(lambda twins: twins("Outgoing")(**fields).other) is AttributeError
    for odd in ("1", None, 10**30, 1.5):
        assert outcome(setattr, compiled().Outgoing(**fields), "token", odd)[0] == "raises"
    assert outcome(compiled().Outgoing, **fields | {"order": "1"}) == ("raises", TypeError)


# --- the loops -------------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("entered"), NUMBERS),
    st.tuples(st.just("signed"), st.lists(LINES, min_size=6, max_size=6), st.sampled_from("abc"), NUMBERS),
    st.tuples(st.just("ordered"), NUMBERS, st.floats(0, 1e9)),
    st.tuples(st.just("marked_sent"), st.floats(0, 1e9)),
    st.tuples(st.just("set"), st.sampled_from(["base_id", "generation", "msg_id", "kids", "first_signed_ms"])),
)


@compares("entered", "signed", "ordered", "marked_sent")
@settings(max_examples=2 * settings().max_examples)
@given(BATCHES, st.lists(STEPS, max_size=6))
def test_loops(events: list[Fields], steps: list[Any]) -> None:
    """One after the other over the same events, which some of them change in between."""

    def use(twins: Twins) -> Any:
        items, answers = made(twins, events), []
        by_token: dict[int, Any] = {}
        for step, *how in steps:
            match step, how:
                case "entered", [last]:
                    answers.append(twins(step)(items, by_token, last))
                case "signed", [signatures, kid, now_ms]:
                    answers.append(twins(step)(items, signatures[: len(items)], kid, now_ms))
                case "set", [name]:
                    for item in items[::2]:
                        setattr(item, name, {"generation": 0, "kids": ("b",), "first_signed_ms": 0}.get(name, "id"))
                case _:
                    answers.append(twins(step)(items, *how))
        places = {token: items.index(item) for token, item in by_token.items()}
        return [state(item) for item in items], places, answers

    alike(use)


MEMBERS = st.sampled_from([b"", b',"sequence":"01KA-'])


@compares("numbered")
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.sampled_from("ab"), st.sampled_from("ab")), max_size=8),
    st.integers(0, 8),
    MEMBERS,
    st.integers(0, 10**13),
)
def test_numbered(copies: list[tuple[bytes, str, str]], at: int, member: bytes, n: int) -> None:
    """Numbers of fewer digits than there are, as many, and more; up to another source or view, or the end."""

    def use(twins: Twins) -> Any:
        items = [twins("Outgoing")("s", "t", body, f"{source}/", "e", view=f"{view}/") for body, source, view in copies]
        return twins("numbered")(items, at, member, n), [item.body for item in items]

    alike(use)


@compares("boarded")
@given(st.lists(st.sampled_from("abc"), max_size=8), st.sets(st.sampled_from("abc")))
def test_boarded(views: list[str], known: set[str]) -> None:
    """Who hears of each, and which it is; up to one whose view nobody hears of."""

    def use(twins: Twins) -> Any:
        items = [twins("Outgoing")("s", "t", b"b", "r", "e", view=view) for view in views]
        did = outcome(twins("boarded"), items, print, {view: view.upper() for view in sorted(known)})
        return did, [(item.on_done, item.together, item.place) for item in items]

    alike(use)


@compares("signed")
@given(BATCHES, st.integers(-1, 1))
def test_signed_has_a_signature_for_each(events: list[Fields], more: int) -> None:
    """One too few, one too many: refused."""
    refused = alike(lambda twins: twins("signed")(made(twins, events), ["s"] * (len(events) + more), "k", 1))
    assert refused is (ValueError if more and len(events) + more >= 0 and (events or more > 0) else None)


@compares("found")
@given(BATCHES, st.lists(st.integers(-1, 7), max_size=8), NUMBERS | st.sampled_from([0, -1]))
def test_found(events: list[Fields], tokens: list[int], oldest_ms: int) -> None:
    """All of them, or as many as are known and young enough."""

    def use(twins: Twins) -> Any:
        items = made(twins, events)
        some = twins("found")(tokens, dict(enumerate(items)), oldest_ms)
        return [items.index(item) for item in some]

    alike(use)


@compares("forgotten")
@given(BATCHES, st.lists(st.integers(0, 5), max_size=6), st.sets(st.integers(0, 5), max_size=1))
def test_forgotten(events: list[Fields], which: list[int], gone: set[int]) -> None:
    """Some of them, in whatever order; one that is not there, or no more."""

    def use(twins: Twins) -> Any:
        items = made(twins, [fields | {"token": token} for token, fields in enumerate(events)])
        by_token = {item.token: item for item in items if item.token not in gone}
        did = outcome(twins("forgotten"), [items[at] for at in which if at < len(items)], by_token)
        return did, list(by_token)

    alike(use)


IN_FLIGHT = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 0, 2]), st.sampled_from([False] * 4 + [True])), max_size=7)


@compares("settled")
@settings(max_examples=5 * settings().max_examples)
@given(
    IN_FLIGHT,
    st.integers(0, 2),
    st.lists(st.integers(0, 6), max_size=3),
    st.lists(st.sampled_from([1, 1, 1, 2, 0, -1]), max_size=8),
    st.sampled_from([NEVER, NEVER, 2.0, 5.0, 6.0]),
)
def test_settled(flight: list[Any], skipped: int, others: list[int], rises: list[int], before: float) -> None:
    """Acks in order and out of it, of what was sent twice or is done, up to what is held; places that fall back."""
    sequences = [10 + sum(rises[:at]) for at in range(len(rises))]

    def use(twins: Twins) -> Any:
        required = {"subject": "s", "stream": "t", "body": b"b", "source": "r", "event_id": "e"}
        flying = [{"sends": sends, "done": done, "order": order} for order, (sends, done) in enumerate(flight)]
        items = made(twins, [required | fields for fields in flying])
        queue = deque(items)
        acked = items[skipped:] + [items[at] for at in others if at < len(items)]
        did = twins("settled")(queue, acked, sequences, 10, before)
        return did, [items.index(item) for item in queue], [item.done for item in items]

    alike(use)


# --- frames ----------------------------------------------------------------------------------------------------------

HEADERS = ("msg_id", "signature", "traceparent")


@compares("frames")
@given(BATCHES, WORDS, st.sampled_from([1, 1, 1, 50]))
def test_frames(events: list[Fields], inbox: str, times: int) -> None:
    """The same bytes for 0 to 300 events."""
    assert isinstance(alike(lambda twins: twins("frames")(made(twins, events * times), inbox)), bytes)


@compares("frames")
@given(st.lists(EVENTS, min_size=1, max_size=4), st.data(), st.sampled_from("\r\n"), LINES, LINES)
def test_frames_refuse_a_line_break(events: list[Fields], draw: st.DataObject, line: str, a: str, b: str) -> None:
    """Whichever header value has it, wherever."""
    draw.draw(st.sampled_from(events))[draw.draw(st.sampled_from(HEADERS))] = a + line + b
    assert alike(lambda twins: twins("frames")(made(twins, events), "_INBOX.")) is None


def _framed(events: list[Fields], twins: Twins) -> Any:
    return twins("frames")(made(twins, events), "_INBOX.")


@compares("frames")
@given(st.lists(EVENTS, min_size=1, max_size=4), st.data(), st.sampled_from([b"x", 1, [], "\ud800", None]))
def test_frames_refuse_what_is_no_text(events: list[Fields], draw: st.DataObject, odd: Any) -> None:
    """A header value of another type, or with a lone surrogate; a subject that cannot be written; a body of text."""
    name = draw.draw(st.sampled_from(HEADERS[:2] if odd in (None, []) else HEADERS))
    at = draw.draw(st.integers(0, len(events) - 1))
    for wrong in ({name: odd}, {"subject": "\ud800"}, {"body": "text"}, {"body": None}):
        some = [*events[:at], events[at] | wrong, *events[at + 1 :]]
        assert alike(partial(_framed, some)) in (TypeError, UnicodeEncodeError)
    assert alike(lambda twins: twins("frames")(made(twins, events), "\ud800")) is UnicodeEncodeError


# --- what hurts ------------------------------------------------------------------------------------------------------


@hostile
@given(st.lists(VALUES, min_size=5, max_size=13), VALUES, st.sampled_from(NAMES))
def test_events_of_anything(parts: list[Any], odd: Any, gone: str) -> None:
    """Every part is of some other type, or is not there at all: each loop answers or raises."""
    item = compiled().Outgoing(*parts)
    outcome(setattr, item, "msg_id", odd)
    outcome(setattr, item, "kids", odd)
    for attempt in range(2):
        calls: list[Callable[[], Any]] = [
            lambda: compiled().frames([item], "i"),
            lambda: compiled().entered([item], {}, 1),
            lambda: compiled().signed([item], [odd], "k", 1),
            lambda: compiled().ordered([item], 1, 1.0),
            lambda: compiled().marked_sent([item], 1.0),
            lambda: compiled().found([1, odd], {1: item, 2: odd}, 0),
            lambda: compiled().settled(deque([item, odd]), [item, item], [1, odd], 0, NEVER),
            lambda: compiled().settled(odd, [item], [1], 0, 5.0),
            lambda: compiled().forgotten([item], {1: item}),
            lambda: [outcome(repr, item), outcome(state, item)],
        ]
        for call in calls:
            outcome(call)
        if attempt == 0:
            outcome(delattr, item, gone)


@hostile
def test_loops_take_events_alone() -> None:
    """Anything else in the list, or no list, is refused; those before it have been seen to, as in Python."""
    twins = SETS[1]
    item = twins("Outgoing")("s", "t", b"b", "r", "e", base_id="i")
    python = PYTHON["Outgoing"]("s", "t", b"b", "r", "e", base_id="i")
    calls: list[Callable[[Any], Any]] = [
        lambda items: twins("entered")(items, {}, 1),
        lambda items: twins("signed")(items, ["s"] * 2, "k", 1),
        lambda items: twins("ordered")(items, 1, 1.0),
        lambda items: twins("marked_sent")(items, 1.0),
        lambda items: twins("frames")(items, "i"),
    ]
    for call in calls:
        lists: list[Any] = [[item, None], [item, python], [python, item], [item, object()], (item, item), None, {}]
        for items in lists:
            assert outcome(call, items) == ("raises", TypeError)
    assert (item.token, item.order, item.sends) == (2, 2, 3)  # three lists begin with it


@hostile
def test_loops_refuse_to_count_past_64_bits() -> None:
    """The last number is given; there is none behind it, and it does not begin anew."""
    last = 2**63 - 1
    items = made(SETS[1], [dict.fromkeys(REQUIRED, "s") | {"base_id": "i"}] * 2)
    for item in items:
        item.sends = last
    by_token: dict[int, Any] = {}
    calls: list[Callable[[], Any]] = [
        lambda: compiled().entered(items, by_token, last - 1),
        lambda: compiled().ordered(items, last - 1, 1.0),
        lambda: compiled().marked_sent(items[1:], 1.0),
    ]
    for call in calls:
        assert outcome(call) == ("raises", OverflowError)
    assert by_token == {last: items[0]}
    assert [(item.token, item.order, item.sends) for item in items] == [(last, last, 0), (0, 0, last)]
    assert outcome(compiled().entered, [], {}, last) == ("answers", 0)


class Empties:
    """A number that empties lists while it is looked at."""

    def __init__(self, *lists: list[Any]) -> None:
        self.lists = lists

    def __index__(self) -> int:
        for some in self.lists:
            some.clear()
        return 7


@hostile
def test_settled_holds_what_it_looks_at() -> None:
    """Both lists are empty before the first event is done; one that is not next has no number looked at."""
    items = made(SETS[1], [dict.fromkeys(REQUIRED, "s") | {"sends": 1}] * 2)
    queue, sequences = deque(items), list[Any]()
    sequences += [Empties(items, sequences), 8]
    assert outcome(compiled().settled, queue, items, sequences, 0, NEVER) == ("answers", (1, 7))
    assert outcome(compiled().settled, deque(), list(queue), ["odd"], 3, NEVER) == ("answers", (0, 3))
    assert outcome(compiled().settled, queue, list(queue), ["odd"], 3, NEVER) == ("raises", TypeError)
    assert len(queue) == 1


class Spoils:
    """Empties a list when it is compared, or let go of."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        self.items.clear()
        return False

    def __hash__(self) -> int:
        return 1

    def __del__(self) -> None:
        self.items.clear()


@hostile
def test_a_list_that_is_emptied_on_the_way() -> None:
    """By what is compared or replaced in its events."""
    calls: list[Callable[[Any], Any]] = [
        lambda items: compiled().entered(items, {}, 1),
        lambda items: compiled().signed(items, ["s"] * 3, "k", 1),
    ]
    for call in calls:
        for name in ("kids", "msg_id", "signature"):
            items: list[Any] = []
            items += made(SETS[1], [{"subject": "s", "stream": "t", "body": b"b", "source": "r", "event_id": "e"}] * 3)
            for item in items:
                item.base_id = "id"
                setattr(item, name, (Spoils(items),) if name == "kids" else Spoils(items))
            del item
            outcome(call, items)
