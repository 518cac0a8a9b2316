"""`masked`, compiled: the text it splices is the one that decoding, `shown` and encoding make."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.attributes import MAX_STRING_CHARS
from mesh.jsontext import MAX_DEPTH, decode, encode
from mesh.policy.actions import DROPPED, REDACTED
from mesh.policy.mask import Masking
from mesh.policy.walkers import UNMET, as_it_is, unmet
from tests.unit import policy_world
from tests.unit.native_twins import PYTHON, SETS, compares, compiled, hostile, outcome, running
from tests.unit.native_walks import (
    ACTS,
    EVERY_PLACE,
    PLACES,
    YES_OR_NO,
    Number,
    OddError,
    Place,
    Text,
    Walks,
    node,
    node_of,
    raising,
    walk_of,
    walkers,
)
from tests.unit.random_masks import ACTIONS, CLASSES, DATAS, MASKS, NAMES, OTHERWISE, Fields, Lines
from tests.unit.test_native_text import COMPACT, EVENT, OTHER, PROVEN, PROVEN_SCALARS, proven

KEYS = policy_world.Keys()
INSTEAD = st.dictionaries(
    st.sampled_from([*NAMES, "subject", "id", "not there"]),
    st.sampled_from([*PROVEN_SCALARS, "x" * 1025, 1e300, "\x1f", [1], {"a": {}}]),
    max_size=2,
)
NOTHING: dict[str, Any] = {}


def _each(use: Callable[[Any], Any]) -> list[tuple[str, Any]]:
    """What *use* does with all in Python, and with all compiled."""
    did = []
    for twins in SETS:
        with running(twins):
            did.append(outcome(use, twins))
    return did


def _same(use: Callable[[Any], Any]) -> bytes | None:
    """Assert that the compiled twin answers as the Python one, or leaves it to today's way; what it answers."""
    python, c = _each(use)
    assert c in (python, ("answers", None)), (python, c)
    return c[1]  # type: ignore[no-any-return]  # bytes or None


def _answered(use: Callable[[Any], Any]) -> bytes:
    """Likewise, and assert that it does answer."""
    text = _same(use)
    assert type(text) is bytes, text
    return text


def _by_one(
    text: bytes, act: Any, on_dict: Any = unmet, on_list: Any = unmet, instead: Any = NOTHING
) -> Callable[[Any], Any]:
    """All fields lead to one node."""
    return lambda twins: twins("masked")(text, instead, {}, node_of(twins, act, on_dict, on_list), None)


# --- automata --------------------------------------------------------------------------------------------------------

FIELDS = st.dictionaries(st.sampled_from([*NAMES, "subject", "data"]), PROVEN, max_size=5)


@compares("masked")
@settings(max_examples=2 * settings().max_examples)
@given(
    st.dictionaries(st.sampled_from([*NAMES, "data"]), st.none() | PLACES, max_size=3),
    PLACES,
    st.sampled_from(sorted(ACTS)),
    FIELDS,
    INSTEAD,
)
def test_masked_by_any_automaton(
    top: dict[str, Place | None], elsewhere: Place, otherwise: str, fields: dict[str, Any], instead: dict[str, Any]
) -> None:
    """Of any shape, with masks that answer anything; the same refusal where one raises."""
    text = proven(fields)

    def use(twins: Any) -> Any:
        nodes = {name: None if place is None else node(place, twins) for name, place in top.items()}
        other = node(elsewhere, twins)
        made = [twins("masked")(text, instead, nodes, other, ACTS[otherwise]) for _ in range(2)]
        assert made[0] == made[1]
        return made[0]

    _same(use)


SMALL: list[Any] = [
    *({}, {"a": 1}, {"b": 1}, {"a": {}}, {"b": {}}, {"a": []}, {"b": ["x"]}, {"a": 1, "b": {"c": 1}}, {"b": 1, "a": 2}),
    *([], [1], [{}], [[]], [{"a": 1}], [1, {"b": []}, "x"], [[[]], {}], 1, "x", None),
]


@compares("masked")
def test_masked_by_every_small_automaton() -> None:
    """What counts as met, what is left out, of all automata of two places: chance seldom makes the few that tell."""
    text = proven({f"v{i}": value for i, value in enumerate(SMALL)})
    every = [
        Walks(drops, shows, classified, "drop" if shows else "clear", (("a", named),), other, named)
        for named, other, drops, shows, classified in product(EVERY_PLACE, EVERY_PLACE, YES_OR_NO, YES_OR_NO, YES_OR_NO)
    ]

    def use(twins: Any) -> Any:
        made = [node_of(twins, None, *walkers(walks, twins)) for walks in every]
        acts = [ACTS[act] for act in ("clear", "drop", "null")]
        return [[twins("masked")(text, {}, {"v0": None}, place, act) for act in acts] for place in made]

    (_, python), (_, c) = _each(use)
    for walks, left, right in zip(every, python, c, strict=True):
        assert right == left, walks


@compares("masked")
def test_masked_keeps_the_order_of_what_it_walks() -> None:
    """Of the text; under `dropping_dict` that only looks for some, of what it looks for."""
    text = proven({"data": {"a": 1, "b": 2, "c": 3, "iban": 4, "": 5}, "type": "t", "id": "i"})

    def use(names: str, act: Any, *, listed: bool) -> Callable[[Any], Any]:
        def of(twins: Any) -> Any:
            clear = node_of(twins)
            other = clear if not listed else twins("Node")(frozenset(), unmet)
            named = {name: node_of(twins, act) for name in names.split()}
            walk = twins("dropping_dict")(named, other, classified=False)
            return twins("masked")(text, {}, {"data": node_of(twins, None, walk)}, clear, None)

        return of

    assert _answered(use("iban a gone b", None, listed=True)) == b'{"data":{"iban":4,"a":1,"b":2},"type":"t","id":"i"}'
    for names, listed, act in product(("", "c a", "gone", "b b iban a c"), (False, True), (None, str, raising)):
        _same(use(names, act, listed=listed))


@compares("masked")
def test_masked_knows_names_of_every_length() -> None:
    """One name is masked, and all that differ from it in one byte, or in length, are not."""
    for size in range(36):
        name = "".join(chr(97 + i % 26) for i in range(size))
        near = [name[:at] + "-" + name[at + 1 :] for at in range(size)]
        names = [*near, name, name + "x", "x" + name, "é" + name[1:], "é" + name[2:], name[:-1], name[:-2] + "é"]
        text = proven({"data": dict.fromkeys(names, "x"), **{f"{each}!": 1 for each in names}})
        for hidden in (name, names[0], names[-1]):

            def use(twins: Any, text: bytes = text, hidden: str = hidden, size: int = size) -> Any:
                some = [f"other {i}" for i in range(size % 7)]  # tables of several sizes
                masks = dict.fromkeys([*some, hidden, "\ud800"], node_of(twins, lambda value: DROPPED))
                shows = dict.fromkeys([*some, hidden], node_of(twins))
                clear, nowhere = node_of(twins), twins("Node")(frozenset(), unmet)
                walks = [
                    twins("masking_dict")(masks, clear, classified=True, shows=True),
                    twins("dropping_dict")(masks, clear, classified=True),
                    twins("dropping_dict")(shows, nowhere, classified=True),
                ]
                top = {f"{hidden}!": node_of(twins, lambda value: DROPPED)}
                return [
                    twins("masked")(text, {}, top | {"data": node_of(twins, None, walk)}, clear, None) for walk in walks
                ]

            python, c = _each(use)
            assert c == python
            assert None not in c[1]


# --- views -----------------------------------------------------------------------------------------------------------


def _shown(view: Masking, twins: Any, text: bytes, instead: dict[str, Any]) -> Any:
    """*text* by *view*, as `Masking.apply` goes about it."""
    if view.ciphers:
        view._current.begin(decode(text))
    return twins("masked")(text, instead, view._top, view._elsewhere, view._otherwise)


def _by_view(
    texts: list[bytes], fields: Fields, mask: Lines, otherwise: str, instead: Any = NOTHING
) -> list[bytes | None]:
    """Several events in turn by one view of each twin: the first ones build its nodes."""
    did: list[list[Any]] = []
    for twins in SETS:
        with running(twins):
            view = policy_world.masking(fields, mask, otherwise)
            view.bind(KEYS)
            did.append([outcome(_shown, view, twins, text, instead) for text in texts])
    for python, c, text in zip(*did, texts, strict=True):
        assert c in (python, ("answers", None)), (python, c, text)
        assert python[0] == "answers"
    return [c for _, c in did[1]]


@compares("masked")
@settings(max_examples=3 * settings().max_examples)
@given(st.tuples(DATAS, DATAS), CLASSES, MASKS, OTHERWISE, INSTEAD)
def test_masked_by_a_view(
    datas: tuple[Any, Any], fields: Fields, mask: Lines, otherwise: str, instead: dict[str, Any]
) -> None:
    """Whole events by a whole view, several in a row, and none of them is left to today's way."""
    data, more = datas
    original = policy_world.event(data, subject="<the subject>", customerref="<a reference>", sampled=True)
    other = policy_world.event([data, {"a": more, "b": [more]}], partitionkey="p")
    texts = [proven(each) for each in (original, other, original, policy_world.event(more), policy_world.event())]
    shown = _by_view(texts, fields, mask, otherwise, instead)
    assert None not in shown
    assert shown[0] == shown[2]


@compares("masked")
@given(st.lists(FIELDS, min_size=1, max_size=4), CLASSES, MASKS, OTHERWISE)
def test_masked_of_any_events_by_a_view(
    events: list[dict[str, Any]], fields: Fields, mask: Lines, otherwise: str
) -> None:
    """Scalars, arrays and objects as attributes and as data."""
    texts = [proven(each) for each in events]
    _by_view([*texts, *texts], fields, mask, otherwise)


@compares("masked")
def test_masked_by_what_is_usual() -> None:
    """Each action on each kind of value, each way to name a place, under each `otherwise`: all of it is answered."""
    data = EVENT["data"] | {
        "iban": "DE89370400440532013000",
        "mail": "anna@mail.example.com",
        "at": "2031-07-14",
        "ip": "10.1.2.3",
    }
    texts = [
        proven(EVENT | {"data": each}) for each in (data, {"in": [data, data]}, {}, [], [data], "text", None, 49.9)
    ]
    texts += [COMPACT, proven({name: value for name, value in EVENT.items() if name != "data"})]
    paths = [
        "data.name",
        "data.lines[*].sku",
        "data.lines[*].*",
        "data.lines.**",
        "**.name",
        "**.iban",
        "**.lines",
        "data.*",
        "data.**",
    ]
    paths += [
        "**.n.**",
        "data.in[*].note",
        "data.in[*].**",
        "data.gone",
        "data.total.**",
        "data.lines",
        "subject",
        "data",
    ]
    for action, otherwise in product(ACTIONS, ("clear", "redact", "drop")):
        mask = [{"tags": ["t0"], **action}, {"tags": ["public"], "as": "clear"}]
        for path in paths:
            shown = _by_view(texts, {path: ["t0"], "data.paid": ["public"]}, mask, otherwise)
            assert None not in shown
        assert None not in _by_view(
            texts, {path: ["t0"] for path in paths}, mask, otherwise, {"time": "now", "gone": 1}
        )


@compares("masked")
def test_masked_says_nothing_of_binary_data() -> None:
    """What hides it changes the name of the field."""
    for text in (b'{"id":"1","data_base64":"QQ=="}', b'{"data_base64":null,"id":"1"}'):
        for act in (None, as_it_is, lambda value: DROPPED):
            for instead in ({}, {"data_base64": "x"}):
                assert _same(_by_one(text, act, instead=instead)) is None


# --- what a mask answers ---------------------------------------------------------------------------------------------

CONTROLS = "".join(map(chr, range(0x20)))
ANSWERS: list[Any] = [
    *(None, True, False, 0, 1, -1, 10**17, 2**31, 2**63 - 1, 2**63),
    *(-(2**63), 2**64 - 1, 2**64, -(2**64), 10**40, 10**400),
    *(0.0, -0.0, 1.0, 1.5, 49.9, 1e15, 1e16, 1e22, 1e300, 5e-324, 0.1 + 0.2, float("nan"), float("inf"), float("-inf")),
    *("", "a", REDACTED, '"', "\\", "/", "\x7f", "\x80", "é", "\u2028", "😀"),
    *("\ud800", "a\udfffb", CONTROLS, '\\"' * 50, "é" * 100),
    *([], {}, [1], {"a": 1}, [{"a": ["\n"]}], {"é": {"": None}}, [1.5, "x", None], {"a": 1, "b": [{}, []]}, [DROPPED]),
    *((), (1, "x"), b"x", bytearray(b"x"), Text("t"), Text(REDACTED)),
    *(Text("x" * 1025), Number(3), frozenset({1}), {1: 2}),
    *(DROPPED, UNMET, object(), 1j, Exception, len, "x" * 1024, "x" * 1025),
    *("é" * 1024, "é" * 1025, "😀" * 1024, "😀" * 1025),
]  # fmt: skip


@compares("masked")
def test_masked_writes_whatever_a_mask_answers() -> None:
    """As the encoder does: in an attribute, as the data, in an object, in an array; and what it refuses is refused."""
    text = proven({"subject": "s", "data": {"a": "x", "b": [1, None], "c": 1.5}, "z": True, "n": None})
    scalar = proven({"subject": "s", "data": 49.9})
    for answer in ANSWERS:
        for kind in ("masking_dict", "dropping_dict"):

            def use(twins: Any, answer: Any = answer, kind: str = kind) -> Any:
                inside = node_of(twins, lambda value: answer)
                inside.on_list = walk_of("item_list", twins, inside)
                top = {"data": node_of(twins, None, walk_of(kind, twins, inside))}
                return twins("masked")(text, {}, top, node_of(twins), None)

            _same(use)
        for each in (text, scalar):
            _same(_by_one(each, lambda value, answer=answer: answer))
            _same(_by_one(each, None, lambda value, answer=answer: answer, lambda value, answer=answer: answer))
            _same(_by_one(each, None, instead={"subject": answer, "gone": answer}))
            _same(_by_one(each, None, instead={"data": answer}))
        for otherwise in (lambda value, answer=answer: answer,):
            _same(lambda twins: twins("masked")(text, {}, {}, twins("Node")(frozenset(), unmet), otherwise))  # noqa: B023


@compares("masked")
def test_masked_writes_strings_as_the_encoder_does() -> None:
    """Each character, at each place of strings of each length up to some blocks."""
    text, answers = proven({"data": "x"}), []
    for character in [*map(chr, range(0x100)), "\u07ff", "\u0800", "\u2028", "\ud7ff", "\uffff", "😀", "\U0010ffff"]:
        answers += [
            character,
            character * 2,
            "x" * 7 + character,
            character + "x" * 8,
            "é" + character,
            "😀" + character,
        ]
    for size in range(40):
        answers += [
            fill * at + odd + fill * (size - at) for fill in "xé" for odd in '"\\\n\x01\x7f/' for at in range(size + 1)
        ]
    for answer in answers:
        expected = encode({"data": answer})
        assert compiled().masked(text, {}, {}, node_of(SETS[1], lambda value, answer=answer: answer), None) == expected
        assert compiled().masked(text, {"data": answer}, {}, node_of(SETS[1]), None) == expected


@compares("masked")
def test_masked_hands_out_what_decoding_gives() -> None:
    """To a mask, and to a walker that is none of ours: the same values, of the same types."""
    texts = [
        proven({"a": value, "data": {"a": value, "b": [value]}})
        for value in [*PROVEN_SCALARS, [], {}, [[{}]], {"a": {"b": "\n"}}]
    ]
    for text in [*texts, COMPACT, OTHER]:

        def use(twins: Any, text: bytes = text) -> str:
            seen: list[Any] = []

            def see(value: Any) -> Any:
                seen.append(value)
                return value

            inside = node_of(twins, see, see, see)
            walk = node_of(twins, see, walk_of("masking_dict", twins, inside), walk_of("item_list", twins, inside))
            for place in (inside, walk):
                assert twins("masked")(text, {}, {}, place, None) == text
            return repr(seen)

        python, c = _each(use)
        assert c == python
        assert c[0] == "answers"


ATTRIBUTES: list[Any] = [
    *("s", "", REDACTED, "x" * MAX_STRING_CHARS, "x" * (MAX_STRING_CHARS + 1), None, True, 7, 1.5, [], [REDACTED]),
]
SHORT_ANSWERS: list[Any] = [
    *(None, "", REDACTED, "[REDACTED ]", "x" * 1024, "x" * 1025, "é" * 1024, "é" * 1025, "😀" * 1024, "😀" * 1025),
    *("\n" * 1024, "\n" * 1025, "\x01" * 1024),
]


@compares("masked")
def test_masked_leaves_out_attributes_that_say_nothing() -> None:
    """Null, `[REDACTED]`, a string that is too long: where a mask makes that of an attribute, and only there."""
    for value in ATTRIBUTES:
        fields = dict.fromkeys(["subject", "dat", "datas", "datacontenttype", "xata", "Data", "d", ""], value)
        text = proven({"id": "1", **fields, "data": value, "time": "t"})
        for name, on in product(("redact", "drop"), (unmet, as_it_is, None)):

            def use(twins: Any, text: bytes = text, name: str = name, on: Any = on) -> Any:
                act = twins(name)
                return _by_one(text, act if on else None, on or act, on or act)(twins)

            _answered(use)
        acts = [*(lambda value, a=a: a for a in SHORT_ANSWERS), as_it_is, lambda value: [value]]
        for act in acts:
            _answered(_by_one(text, act, act, act))
            _answered(_by_one(text, act, as_it_is, as_it_is))
        for answer in SHORT_ANSWERS:
            assert _answered(_by_one(text, raising, raising, raising, dict.fromkeys(decode(text), answer)))


@compares("masked")
def test_masked_grows_and_shrinks_as_much_as_it_must() -> None:
    """Thousands of short values that become long, and one that is longer than the whole; long ones that are gone."""
    values: list[Any] = [
        [""] * 3000,
        {f"member {i}": 0 for i in range(100)},
        [["", {"a": ""}]] * 500,
        "x" * 30_000,
        ["x" * 5000] * 9,
    ]
    for value in values:
        text = proven({"id": "1", "data": value, "time": "t"})
        long = "y" * 300_000 if type(value) is str else "y" * 100
        for answer in (REDACTED, long, "\x01" * 99, DROPPED, None, 1e300, ["z" * 99]):

            def use(twins: Any, text: bytes = text, answer: Any = answer) -> Any:
                inside = node_of(twins, lambda value: answer)
                inside.on_list = walk_of("item_list", twins, inside)
                inside.on_dict = walk_of("masking_dict", twins, inside)
                return twins("masked")(text, {"time": "now" * 99}, {"id": None}, inside, None)

            _answered(use)


# --- masks with a mistake in them ------------------------------------------------------------------------------------


@compares("masked")
def test_masked_passes_on_what_a_mask_raises() -> None:
    """From an attribute, from the data, from inside it, from a walker, from `otherwise`."""
    text = proven({"id": "1", "data": {"a": 1, "b": [1], "c": {"d": "x"}}})
    for kind, otherwise in product(("masking_dict", "dropping_dict", "listed"), (None, raising)):
        for acts in ((raising, unmet, unmet), (None, raising, unmet), (None, unmet, raising), (None, unmet, unmet)):

            def use(twins: Any, kind: str = kind, acts: Any = acts, otherwise: Any = otherwise) -> Any:
                top = {"data": node_of(twins, None, walk_of(kind, twins, node_of(twins, *acts)))}
                return twins("masked")(text, {}, top, twins("Node")(frozenset(), unmet), otherwise)

            _same(use)
    assert outcome(_by_one(text, raising), SETS[1]) == ("raises", OddError)
    assert outcome(_by_one(text, None, raising), SETS[1]) == ("raises", OddError)


@compares("masked")
def test_masked_by_a_mask_that_replaces_itself() -> None:
    """What is called is held until it has answered, though its node has another by then; and that one is next."""

    class Once:
        def __init__(self, node: Any, answer: Any) -> None:
            self.node, self.answer = node, answer

        def __call__(self, _value: Any) -> Any:
            self.node.act, self.node.on_dict, self.node.on_list = None, as_it_is, as_it_is
            return self.answer

    twins = SETS[1]
    inner = [[1, 2], {"a": 1, "b": "x"}, [{"a": 1}, {"a": 2}], [[1], [2]], {"a": {"b": 1}, "c": {"d": []}}, "x", 1]
    for value, answer in product(inner, ("text", ["a", "list"], DROPPED, UNMET, None)):
        text = proven({"id": "1", "data": value, "time": value})
        for kind in ("masking_dict", "dropping_dict", "listed"):

            def made(kind: str = kind, answer: Any = answer) -> list[dict[str, Any]]:
                place = node_of(twins)
                place.act, place.on_dict, place.on_list = (Once(place, answer) for _ in range(3))
                walk = node_of(twins, place.act, walk_of(kind, twins, place), walk_of("item_list", twins, place))
                return [{"data": place}, {"data": walk}, dict.fromkeys(["id", "data", "time"], walk)]

            with running(twins):  # a walker in Python knows from the start what masks the members
                for left, right in zip(made(), made(), strict=True):
                    today = outcome(PYTHON["masked"], text, {}, left, node_of(twins), None)
                    assert outcome(twins("masked"), text, {}, right, node_of(twins), None) in (today, ("answers", None))


@compares("masked")
def test_masked_builds_nodes_as_it_goes() -> None:
    """As `Masking` does: a walker that puts the right one in its place, and calls that."""
    texts = [
        proven({"data": value})
        for value in ({"a": {"a": [1, "x"]}}, [{"a": 1}, {"a": [2]}], {"a": {}, "b": {"a": 1}}, [])
    ]

    def use(twins: Any) -> Any:
        def later(level: int) -> Any:
            place = node_of(twins, lambda value: REDACTED)

            def enter(value: Any) -> Any:
                inside = later(level + 1)
                place.on_dict = twins("masking_dict")({"a": inside}, node_of(twins), classified=False, shows=True)
                place.on_list = twins("item_list")(inside, None, classified=False)
                return (place.on_dict if type(value) is dict else place.on_list)(value)

            place.on_dict = place.on_list = enter
            return place

        top = later(0)
        return [twins("masked")(text, {}, {}, top, None) for text in texts * 2]

    python, c = _each(use)
    assert c == python
    assert None not in c[1]


@hostile
def test_masked_by_a_mask_that_spoils_what_it_is_called_from() -> None:
    """It empties every dict and replaces every node that there is: nothing is freed that is still in use."""
    text = proven({"id": "1", "data": {"a": "x", "b": [{"a": "y"}], "c": {"a": ["z"]}}, "subject": "s", "time": "t"})
    twins = SETS[1]
    for answer, kind, where in product(
        ("masked", DROPPED, UNMET, [1.5], raising), ("masking_dict", "dropping_dict", "listed"), range(4)
    ):
        nodes: list[Any] = []
        top: dict[str, Any] = {}
        names: dict[str, Any] = {}
        instead: dict[str, Any] = {"subject": "other", "time": ["a list", "of its own"]}

        def spoil(value: Any, answer: Any = answer, held: tuple[Any, ...] = (nodes, top, names, instead)) -> Any:
            nodes, top, names, instead = held
            for each in nodes:
                each.act, each.on_dict, each.on_list, each.places = None, unmet, unmet, frozenset()
            for each in (top, names, instead):
                each.clear()
                each.update({f"{i}": None for i in range(100)})
            nodes.clear()
            return answer(value) if answer is raising else answer

        inside = node_of(twins, spoil, spoil, spoil) if where % 2 else node_of(twins, spoil)
        names |= dict.fromkeys("abc", inside) | {f"name {i}": inside for i in range(9)}
        if kind == "masking_dict":
            on_dict = twins(kind)(names, node_of(twins), classified=True, shows=True)
        else:
            other = twins("Node")(frozenset(), unmet) if kind == "listed" else node_of(twins)
            on_dict = twins("dropping_dict")(names, other, classified=False)
        walk = node_of(twins, spoil, on_dict, walk_of("item_list", twins, inside))
        if where > 1:
            inside.on_dict, inside.on_list = walk.on_dict, walk.on_list
        nodes += [inside, walk]
        top |= {"data": walk, "id": inside}
        del inside, walk, on_dict
        outcome(compiled().masked, text, instead, top, node_of(twins), spoil)


# --- bounds ----------------------------------------------------------------------------------------------------------


def _cyclic(twins: Any, drops: bool, act: Any) -> Any:
    """A node that leads to itself, as one of `**.name` does."""
    place = node_of(twins, act)
    names = {"a": place}
    place.on_list = twins("item_list")(place, None, classified=True)
    if drops:
        place.on_dict = twins("dropping_dict")(names, place, classified=True)
    else:
        place.on_dict = twins("masking_dict")(names, place, classified=True, shows=True)
    return place


@compares("masked")
def test_masked_as_deep_as_an_event_may_be() -> None:
    """All the way down, and what is deeper than any event is survived."""
    for drops, (begin, end) in product((False, True), (('{"a":', "}"), ("[", "]"), ('{"b":0,"a":[', "]}"))):
        for levels in range(0, MAX_DEPTH // len(end), 3):
            text = f'{{"data":{begin * levels}0{end * levels}}}'.encode()

            def use(twins: Any, text: bytes = text, drops: bool = drops) -> Any:
                return twins("masked")(text, {}, {}, _cyclic(twins, drops, lambda value: "masked"), None)

            if levels < MAX_DEPTH // len(end) - 1:
                assert b'"masked"' in _answered(use)
    for drops, far in product((False, True), (100, 5_000, 200_000)):
        for opens, closes in ((b'{"a":', b"}"), (b"[", b"]")):
            for text in (b'{"data":' + opens * far, b'{"data":' + opens * far + b"0" + closes * far + b"}"):
                outcome(compiled().masked, text, {}, {}, _cyclic(SETS[1], drops, None), None)
                outcome(compiled().masked, text, {}, {}, _cyclic(SETS[1], drops, str), None)


@hostile
def test_masked_reads_nothing_behind_the_end() -> None:
    """Of a text that nobody proved it makes something or nothing, and looks at no byte that is not its own."""
    twins, chance = SETS[1], Random(7)
    texts = [
        COMPACT,
        OTHER,
        b'{"data":{"a":{"b":"\\n\\"\xc3\xa9"},"c":[true,-1.5,null]}}',
        b"",
        b"{}",
        b"[]",
        b"1",
        b'"',
        b"{",
        b'{"',
    ]
    acts: list[Any] = [None, lambda value: value, lambda value: DROPPED, lambda value: "masked", lambda value: [value]]
    places = [_cyclic(twins, drops, act) for drops in (False, True) for act in acts]
    places += [node_of(twins, act, on, on) for act in acts[1:3] for on in (as_it_is, unmet, lambda value: [value])]
    nowhere = twins("Node")(frozenset(), unmet)
    listed = twins("dropping_dict")({"a": places[1], "gone": places[0], "data": places[0]}, nowhere, classified=True)
    places.append(node_of(twins, None, listed, listed))
    for text in texts:
        for end in range(len(text) + 1):
            for place in places:
                outcome(compiled().masked, text[:end], {"id": "x"}, {"time": None}, place, None)
        for _ in range(300):
            at, to = sorted(chance.choices(range(len(text) + 1), k=2))
            spoilt = chance.choice(
                [
                    text[at:],
                    text[:at] + text[to:],
                    text[:to] + bytes(chance.choices(b'{}[]:,"\\ 01n\x80\0', k=2)) + text[to:],
                ]
            )
            outcome(compiled().masked, spoilt, {}, {}, chance.choice(places), acts[2])


@hostile
def test_masked_takes_what_it_is_made_for() -> None:
    """Another type, or another number of arguments, is refused."""
    place = node_of(SETS[1])
    good: tuple[Any, ...] = (b'{"a":1,"data":[1]}', {}, {}, place, None)
    assert compiled().masked(*good) == good[0]
    rows: list[tuple[int, list[Any]]] = [
        (0, ["{}", bytearray(b"{}"), None]),
        (1, [None, [], "a"]),
        (2, [None, [], "a"]),
    ]
    for at, odds in [*rows, (3, [None, {}, len])]:
        for odd in odds:
            assert outcome(compiled().masked, *good[:at], odd, *good[at + 1 :]) == ("raises", TypeError), (at, odd)
    for arguments in (good[:4], (*good, None), ()):
        assert outcome(compiled().masked, *arguments) == ("raises", TypeError)
    assert outcome(compiled().masked, good[0], {}, {"a": 1}, place, None) == ("raises", TypeError)
    assert outcome(compiled().masked, good[0], {}, {}, node_of(SETS[1], 7), None) == ("raises", TypeError)
    assert json.loads(compiled().masked(b'{"a":1}', {"a": "é\n"}, {}, place, None)) == {"a": "é\n"}
