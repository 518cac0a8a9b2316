"""`cut`, compiled: the copies it cuts out of an event's text are those that its Python twin cuts, or there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import cutting, journey
from mesh.cutting import Address, Hashes, Stop
from mesh.jsontext import decode, encode
from mesh.policy.mask import Masking
from mesh.policy.walkers import as_it_is
from mesh.subjects import SLOTS
from tests.unit.native_twins import PYTHON, SETS, compares, compiled, hostile, outcome, running
from tests.unit.native_walks import OddError, node_of, raising
from tests.unit.policy_world import Keys, masking
from tests.unit.random_masks import DATAS
from tests.unit.test_verbatim_way import DEDUPE, FIELDS, KEYS, OUTGOING, SHOWN, TYPE, an_event, world

MORE = b',"correlationid":"more"'
CLASSIFIED = {"data.name": ["t0"], "data.email": ["t1"], "data.x.y.a": ["t1"]}
MASK: list[dict[str, Any]] = [
    {"tags": ["t0"], "as": "pseudonym", "with": {"domain": "d"}},
    {"tags": ["t1"], "as": "redact"},
]
ENCRYPTED: list[dict[str, Any]] = [{"tags": ["t0"], "as": "encrypt", "with": {"for": ["support"]}}]
Use = Callable[[Any], Any]


def drawn(copies: Any) -> Any:
    """All of what was cut, with its types."""
    if type(copies) is not list or not all(hasattr(copy, "base_id") for copy in copies):
        return copies
    return [tuple((type(value), value) for value in (getattr(copy, name) for name in OUTGOING)) for copy in copies]


def each(use: Use) -> list[tuple[str, Any]]:
    """What *use* does with all in Python, and with all compiled; it is given the twins."""
    did = []
    for twins in SETS:
        with running(twins):
            how, what = outcome(use, twins)
            assert what is not AssertionError, use(twins)
            did.append((how, drawn(what)))
    return did


def same(use: Use) -> Any:
    """Assert that both do the same; what they do."""
    python, c = each(use)
    assert c == python
    return c[1]


def hashes() -> Hashes:
    """Of the twins in use."""
    keyed = vars(journey)["Keyed"]
    return Hashes(*(keyed(DEDUPE, 16, person) for person in (b"slot", b"partition", b"")))


def an_address(view: str = "v", **more: Any) -> Any:
    """Where copies in *view* go."""
    subjects = tuple(f"ev.local.{view}.s{slot:02d}.{TYPE}" for slot in range(SLOTS))
    return Address(view, subjects, "EV_local_crm", b',"tenant":"acme","view":"%b"}' % view.encode())._replace(**more)


def a_stop(shows: Any, rows: Any = None, **address: Any) -> Any:
    """A view that shows events like *shows*."""
    return Stop(shows, rows, an_address(**address))


def bound(otherwise: str = "clear", mask: Any = MASK, keys: Any = KEYS, fields: Any = FIELDS) -> Any:
    """A masking that has shown an event."""
    made = masking(CLASSIFIED, mask, otherwise)
    made.apply(dict(fields), keys)
    return made


def cut(twins: Any, *stops: Any, fields: Any = FIELDS, more: bytes = b"", keys: Any = KEYS, text: Any = None) -> Any:
    """What is cut for *stops* out of the event *fields*."""
    text = encode(fields) if text is None else text
    return twins("cut")(text, more, decode(encode(fields)), stops, hashes(), keys)


def one(**named: Any) -> Use:
    """One copy, which masks."""
    return lambda twins: cut(twins, a_stop(bound()), **named)


def noting(asked: list[Any], answer: Any) -> Callable[..., Any]:
    """What answers so, and notes what it was given."""

    def call(*given: Any) -> Any:
        asked.append(given)
        return answer

    return call


# --- any event -------------------------------------------------------------------------------------------------------


@compares("cut")
def test_cut_of_any_event_under_any_policies() -> None:
    """The same copies, which are those of the event that was taken apart; the compiled one may cut nothing."""
    made = taken = 0

    @settings(deadline=None, max_examples=100)
    @given(SHOWN, st.lists(DATAS, min_size=1, max_size=4), st.integers(0, 2**32))
    def run(shown: Any, datas: list[Any], seed: int) -> None:
        nonlocal made, taken
        random = Random(seed)
        policies = world(random, shown)
        sent = [an_event(random, random.choice(datas)) for _ in range(4)]
        events = [fields for fields in sent if compiled().verbatim(encode(fields), 64) is not None]
        more = random.choice((b"", MORE))

        def copies(twins: Any, short: Any) -> Iterator[Any]:
            way = policies.departures()
            for number, fields in enumerate(events):
                views = tuple(view.plan for view in way.plans._views_of(TYPE))  # of all, who may read them or not
                stops = way._way(fields["type"], views)[1]
                behind = b"" if "correlationid" in fields else more
                whole = decode(encode(fields)[:-1] + behind + b"}")
                if number and short:
                    yield drawn(twins("cut")(encode(fields), behind, whole, stops, way._hashes, way.keys))
                found = way._copies(whole, views, "")
                if number and not short:
                    yield drawn(found)

        for short in (True, False):
            for twins in SETS:
                with running(twins):
                    did.append(outcome(lambda t=twins, s=short: [*copies(t, s)]))
        (_, python), (_, c), (_, long), (_, other) = did
        did.clear()
        assert long == other
        for one, two, whole in zip(python, c, long, strict=True):
            assert two is None or two == one
            assert one is None or one == whole
            made += one is not None
            taken += two is not None

    did: list[tuple[str, Any]] = []
    run()
    assert taken > made // 2 > 0, (taken, made)


@compares("cut")
def test_cut_fills_in_every_field_of_a_copy() -> None:
    """With what goes behind, with a partition key and a trace, of each slot."""
    slots = set()
    for number in range(99):
        event = FIELDS | {"id": f"e-{number}"}
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        for fields in (event, event | {"partitionkey": f"k-{number % 5}", "traceparent": trace}):
            for more in (b"", MORE):
                (copy,) = same(one(fields=fields, more=more))
                found = {name: value for name, (_, value) in zip(OUTGOING, copy, strict=True)}
                slots.add(found["subject"])
                body = decode(found["body"])
                assert (found["traceparent"], found["type"]) == (fields.get("traceparent"), TYPE)
                assert (found["source"], found["event_id"], found["route"]) == (fields["source"], fields["id"], "")
                assert body["correlationid"] == ("more" if more else "c-1")
                assert ("partitionkey" in body) is ("partitionkey" in fields)
                assert body.get("partitionkey") != fields.get("partitionkey", "")
                assert (body["data"]["email"], body["tenant"]) == ("[REDACTED]", "acme")
    assert len(slots) == SLOTS


@compares("cut")
def test_cut_for_the_views_that_show_the_event() -> None:
    """None, one, all; in their order; each asked once, with the event."""
    for seed in range(64):
        answers = [bool(seed >> bit & 1) for bit in range(4)]

        def copies(twins: Any, seed: int = seed, answers: list[bool] = answers) -> Any:
            asked: list[Any] = []

            stops = [a_stop(bound(), noting(asked, each), view=f"v{n}") for n, each in enumerate(answers)]
            stops.insert(seed // 16, a_stop(bound("redact"), view="all"))
            made = cut(twins, *stops)
            assert asked == 4 * [(FIELDS,)]
            assert [copy.view for copy in made if copy.view != "all"] == [f"v{n}" for n in range(4) if answers[n]]
            assert type(made) is list
            return made

        assert len(same(copies)) == 1 + sum(answers)
    assert same(cut) == []
    for odd in ([], [0], "", "x", None, 0.0):
        rows = noting([], odd)
        assert len(same(lambda twins, rows=rows: cut(twins, a_stop(bound(), rows)))) == bool(odd)  # type: ignore[misc]


# --- where it is not cut ---------------------------------------------------------------------------------------------


@compares("cut")
def test_cut_asks_for_the_long_way() -> None:
    """For masks that were never made, or made with other keys, and where an event has made too many places."""
    other = Keys()
    deep = FIELDS | {"data": {"name": "Ada", "x": {"y": {"a": 1}}}}

    def growing(twins: Any) -> Any:
        """One that has too many places after the first of two events."""
        made = bound()
        made._max_nodes = len(made._nodes)
        stop, known = a_stop(made), [made.look is not None]
        first, second = (cut(twins, stop, fields=deep) for _ in range(2))
        assert (len(first), second) == (1, None)
        known.append(made.look is not None)
        made.apply(dict(FIELDS), KEYS)  # it begins anew
        known.append(made.look is not None)
        made._max_nodes = len(made._nodes)
        assert cut(twins, stop, a_stop(made), fields=deep) is None  # the second cannot be cut any more
        assert known == [True, False, True]
        return first

    def bound_while_crowded(twins: Any) -> Any:
        made = masking(CLASSIFIED, MASK, "clear")
        made._max_nodes = 1
        made.apply(dict(FIELDS), KEYS)
        return cut(twins, a_stop(made))

    def unbound() -> Masking:
        return masking(CLASSIFIED, MASK, "clear")

    assert same(lambda twins: cut(twins, a_stop(unbound()))) is None
    assert same(lambda twins: cut(twins, a_stop(bound()), a_stop(unbound()), a_stop(bound()))) is None
    assert same(one(keys=other)) is None
    assert same(one(keys=None)) is None
    assert same(lambda twins: cut(twins, a_stop(bound(keys=other)))) is None
    assert len(same(lambda twins: cut(twins, a_stop(bound(keys=other)), keys=other))) == 1
    assert same(bound_while_crowded) is None
    assert len(same(growing)) == 1
    assert same(one(fields=FIELDS | {"data_base64": "AAAA"})) is None
    assert same(lambda twins: cut(twins, a_stop(unbound(), lambda _: False))) == []  # nobody asks how it shows


@compares("cut")
def test_cut_where_everything_shows() -> None:
    """Whatever keys are held, and before anything else was shown."""
    for keys, key, more in product((KEYS, Keys(), None), (None, "k"), (b"", MORE)):
        fields = FIELDS if key is None else FIELDS | {"partitionkey": key}

        def copies(twins: Any, keys: Any = keys, fields: Any = fields, more: bytes = more) -> Any:
            shows = masking({}, [], "clear")
            assert shows.identity
            assert shows.look is not None  # so nothing is asked
            before = cut(twins, a_stop(shows), keys=keys, fields=fields, more=more)
            if keys is not None:
                shows.bind(Keys())
            after = cut(twins, a_stop(shows), keys=keys, fields=fields, more=more)
            assert drawn(before) == drawn(after)
            assert decode(before[0].body)["data"] == FIELDS["data"]
            return before

        assert len(same(copies)) == 1


@compares("cut")
def test_cut_of_what_is_encrypted() -> None:
    """Each event under its own binding, as `splice` has it."""

    def copies(twins: Any) -> Any:
        shows = bound(mask=ENCRYPTED)
        assert shows.ciphers
        assert shows.look is None
        bodies = []
        for number in range(4):
            fields = FIELDS | {"id": f"e-{number}"} | ({"partitionkey": "k"} if number % 2 else {})
            (copy,) = cut(twins, a_stop(shows), a_stop(bound(), lambda _: False), fields=fields, more=MORE)
            whole = shows.apply(fields | {"correlationid": "more"}, KEYS)
            assert decode(copy.body)["data"] == whole["data"]
            bodies.append(copy.body)
        return bodies

    assert len(set(same(copies))) == 4


@compares("cut")
def test_cut_with_what_it_holds_replaced() -> None:
    """Masks that are made anew, and an event that is emptied, while they are asked."""

    def copies(twins: Any) -> Any:
        shows = bound()
        fields = dict(FIELDS)

        def anew(value: Any) -> Any:
            shows.look = None
            shows._top = {}
            shows._elsewhere = None
            fields.clear()
            return f"was {value}"

        node = node_of(twins, anew, as_it_is, as_it_is)
        shows._top = {"data": node_of(twins, None, as_it_is, as_it_is), "correlationid": node}
        shows._elsewhere = node
        shows._keys = KEYS
        shows._show()
        stop = a_stop(shows)
        emptied = a_stop(bound(), lambda given: given.clear() or True)
        made = twins("cut")(encode(FIELDS), b"", fields, (emptied, stop), hashes(), KEYS)
        return drawn(made)

    (_, copy) = same(copies)
    assert b'"was c-1"' in dict(zip(OUTGOING, copy, strict=True))["body"][1]


# --- errors ----------------------------------------------------------------------------------------------------------


@compares("cut")
def test_cut_raises_what_it_meets() -> None:
    """What is not there, what is no text, and what rows, masks and keys raise."""
    for name in ("id", "source", "type"):
        fields = {key: value for key, value in FIELDS.items() if key != name}
        assert same(one(fields=fields)) is KeyError
    text = encode(FIELDS)
    for name, value, found in (
        ("id", "\ud800", UnicodeEncodeError),
        ("source", "\ud800", UnicodeEncodeError),
        ("partitionkey", "\ud800", UnicodeEncodeError),
        ("source", 1, TypeError),
        ("source", None, TypeError),
    ):

        def odd(twins: Any, name: str = name, value: Any = value) -> Any:
            return twins("cut")(text, b"", FIELDS | {name: value}, (a_stop(bound()),), hashes(), KEYS)

        assert same(odd) is found, name

    def no_key(twins: Any) -> Any:
        return twins("cut")(text, b"", FIELDS | {"partitionkey": None}, (a_stop(bound()),), hashes(), KEYS)

    assert len(same(no_key)) == 1
    assert same(lambda twins: cut(twins, a_stop(bound(), raising))) is OddError
    assert same(lambda twins: cut(twins, a_stop(bound()), a_stop(bound(), raising))) is OddError

    class Odd:
        def __bool__(self) -> bool:
            raise OddError

    assert same(lambda twins: cut(twins, a_stop(bound(), lambda _: Odd()))) is OddError

    class Clashes:
        """A key that is looked at in the place of the one of this name, and cannot be compared."""

        def __init__(self, name: str) -> None:
            self._hash = hash(name)

        def __hash__(self) -> int:
            return self._hash

        def __eq__(self, other: object) -> bool:
            raise OddError

    for name in ("id", "source", "type", "partitionkey", "traceparent"):
        left = {key: value for key, value in FIELDS.items() if key != name}

        def clashing(twins: Any, name: str = name, left: Any = left) -> Any:
            return twins("cut")(text, b"", {Clashes(name): 1} | left, (a_stop(bound()),), hashes(), KEYS)

        assert same(clashing) is OddError, name

    def mask_raises(twins: Any) -> Any:
        shows = bound()
        shows._top = {"correlationid": node_of(twins, raising)}
        shows._show()
        return cut(twins, a_stop(bound()), a_stop(shows))

    assert same(mask_raises) is OddError

    def splice_raises(twins: Any) -> Any:
        return cut(twins, a_stop(SimpleNamespace(look=None, splice=raising)))

    assert [how for how, _ in each(splice_raises)] == 2 * ["raises"]


@compares("cut")
def test_cut_hands_splice_what_it_was_given() -> None:
    """All of it, with what goes behind in one."""

    def copies(twins: Any) -> Any:
        asked: list[Any] = []
        shows = SimpleNamespace(look=None, splice=noting(asked, b"the body"))
        for fields in (FIELDS, FIELDS | {"partitionkey": "k"}):
            for more in (b"", MORE):
                (copy,) = cut(twins, a_stop(shows), fields=fields, more=more)
                assert copy.body == b"the body"
                text, behind, token, given, keys = asked[-1]
                assert (text, behind, given, keys) == (encode(fields), more + an_address().marks, fields, KEYS)
                assert keys is KEYS
                assert token == (hashes().partition.token("k") if "partitionkey" in fields else None)
        return [each[:3] for each in asked]

    assert len(same(copies)) == 4


@hostile
def test_cut_takes_nothing_else() -> None:
    """Whatever is of another type or shape is refused."""
    with running(SETS[1]):
        _refuses(compiled())


def _refuses(c: Any) -> None:
    stop = a_stop(bound())
    good: list[Any] = [encode(FIELDS), b"", dict(FIELDS), (stop,), Hashes(*(c.Keyed(b"k", 16) for _ in range(3))), KEYS]
    (copy,) = c.cut(*good)
    assert ".s00." not in copy.subject  # so one subject is too few
    assert outcome(c.cut) == outcome(c.cut, *good[:-1]) == outcome(c.cut, *good, None) == ("raises", TypeError)
    odds: list[Any] = [
        None,
        1,
        "text",
        bytearray(b"{}"),
        object(),
        [stop],
        (None,),
        (None,) * 3,
        (None,) * 4,
        [good[4]],
    ]
    for place in range(5):
        for odd in odds:
            if place == 3 and odd == ():
                continue
            assert outcome(c.cut, *good[:place], odd, *good[place + 1 :]) == ("raises", TypeError), (place, odd)
    for place in range(3):
        odd = (*good[4][:place], KEYS, *good[4][place + 1 :])
        assert outcome(c.cut, *good[:4], odd, KEYS) == ("raises", TypeError)
    node = c.Node((), as_it_is)
    looks: list[Any] = [1, (), (None, {}, 1, None), (None, [], node, None), (None, {}, node)]
    stops: list[Any] = [
        None, (), tuple(stop)[:2], (*stop, None), [*stop],
        stop._replace(address=None), stop._replace(address=tuple(stop.address)[:3]), stop._replace(rows=1),
        a_stop(stop.masking, subjects=None), a_stop(stop.masking, subjects=[*stop.address.subjects]),
        a_stop(stop.masking, subjects=()), a_stop(stop.masking, subjects=("s",)),
        a_stop(stop.masking, marks="text"), a_stop(stop.masking, marks=None),
        a_stop(stop.masking, subjects=(None,) * SLOTS), a_stop(stop.masking, subjects=(b"",) * SLOTS),
        *(a_stop(SimpleNamespace(look=look)) for look in looks),
        *(a_stop(SimpleNamespace(look=None, splice=lambda *_, odd=odd: odd)) for odd in (1, "text", bytearray())),
        a_stop(SimpleNamespace(look=None, splice=lambda: None)), a_stop(SimpleNamespace(look=None, splice=None)),
    ]  # fmt: skip
    for odd in stops:
        assert outcome(c.cut, *good[:3], (stop, odd), *good[4:]) == ("raises", TypeError), odd
    for absent in (SimpleNamespace(), None, SimpleNamespace(look=None)):
        assert outcome(c.cut, *good[:3], (a_stop(absent),), *good[4:]) == ("raises", AttributeError)
    for text in (b"", b"{", b'{"id"', b"[]", encode(FIELDS)[:-1], encode(FIELDS) + b"}", b"\xff" * 99):
        assert outcome(c.cut, text, *good[1:]) == ("answers", None), text


def test_no_other_twin_is_in_the_way() -> None:
    """The way out calls the one that was built."""
    assert vars(journey)["cut"] is cutting.cut
    assert PYTHON["cut"].__module__ == "mesh.cutting"
