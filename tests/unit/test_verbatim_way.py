"""The way out of an event's text: whatever it gives is what comes of taking the event apart."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import outbound as agent_outbound
from agent.outbound import Outbound as AgentOutbound
from agent.settings import AgentSettings
from benchmarks.meshes import event as measured_event
from benchmarks.policy_sets import POLICIES
from mesh import event as events
from mesh import journey, native, verbatim
from mesh.errors import ExpressionError, InputError, MeshError, NoDomainKey
from mesh.event import Limits, decode, encode, fields_from_structured, refuse_expired
from mesh.journey import Departures, Outbound
from mesh.policy import mask
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.decide import LastingView, PublisherPlans, ViewPlan
from mesh.policy.expressions import Condition, compile_condition
from mesh.policy.load import load
from mesh.policy.rules import ROOTS_PUBLISH, ROOTS_ROWS, Rule
from mesh.subjects import Pattern
from tests.unit.policy_world import Keys, access, document, masking, plans
from tests.unit.random_conditions import Grammar
from tests.unit.random_masks import CLASSES, DATAS, MASKS, OTHERWISE, Fields, Lines
from tests.unit.test_expressions_fuzz import dirty

DEDUPE = bytes(range(32))
NOW_MS = 1_795_300_000_000
LATER, EARLIER = "2027-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
TYPE = "crm.contact.updated.v1"
LIMITS = Limits(max_event_bytes=4096, max_batch_bytes=6000, max_depth=6)
OUTGOING = native.IN_PYTHON["Outgoing"].__struct_fields__
KEYS = Keys()


# --- in Python -------------------------------------------------------------------------------------------------------


_STRING = re.compile(rb'("(?:[^"\\]|\\[^u])*")|[ \t\r\n]+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]{0,17})|-?[0-9]{1,7}\.[0-9]{1,8}")


def proved(body: bytes, depth: int) -> bytes | None:
    """What `verbatim` says, and of a few texts more."""
    try:
        text = encode(decode(body, max_depth=min(depth, verbatim.MAX_NESTING)))
    except InputError:
        return None
    if text != _STRING.sub(lambda found: found[1] or b"", body):
        return None
    numbers = re.findall(rb"[-0-9][^],}]*", _STRING.sub(b"", text))
    return text if all(_NUMBER.fullmatch(number) for number in numbers) else None


def in_order(fields: dict[str, Any], *_: object) -> bool:
    """What `plain` says, wherever that is so."""
    left = dict(fields)
    try:
        events._check(left)
    except InputError:
        return False
    return left == fields


@contextmanager
def looked_at_in_python() -> Iterator[None]:
    """The way as it would be if Python were fast enough, cut as it was built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journey, "native", SimpleNamespace(compiled=object()))
        patch.setattr(events, "plain", in_order)
        patch.setattr(events, "verbatim", proved)
        patch.setattr(journey, "text_from_structured", native.IN_PYTHON["text_from_structured"])
        yield


@contextmanager
def in_python() -> Iterator[None]:
    """The same, with nothing compiled in it."""
    with looked_at_in_python(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "glimpse", native.IN_PYTHON.get("glimpse", verbatim.glimpse))
        patch.setattr(mask, "masked", native.IN_PYTHON.get("masked", verbatim.masked))
        patch.setattr(journey, "cut", native.IN_PYTHON["cut"])
        yield


COMPILED = native.compiled is not None
Built = Callable[[], AbstractContextManager[None]]
ALL: list[Built] = [in_python, looked_at_in_python, nullcontext]
EACH = pytest.mark.parametrize("built", ALL, ids=["python", "cut as built", "as built"])


def is_taken(built: Built) -> bool:
    """Whether the short way can be taken at all."""
    return built is not nullcontext or COMPILED


# --- policies at random ----------------------------------------------------------------------------------------------


class View(NamedTuple):
    """A view of every type."""

    name: str
    fields: Fields
    masks: Lines
    otherwise: str
    rows: tuple[Condition, ...]
    until_ms: int | None

    def made(self) -> LastingView:
        """Its plan, which nothing shares."""
        plan = ViewPlan(self.name, masking(self.fields, self.masks, self.otherwise), self.rows)
        return LastingView(plan, self.until_ms)


class World(NamedTuple):
    """What one publisher may do, and what becomes of its events."""

    allows: list[Rule]
    denies: list[Rule]
    views: list[View]

    def departures(self) -> Departures:
        """A way out, which nothing shares."""
        views = tuple(view.made() for view in self.views)
        principal = {"agent": "a", "team": "crm", "tenant": "acme", "id": "x"}
        made = PublisherPlans("crm", self.allows, self.denies, principal=principal, views_of=lambda _: views)
        return Departures(made, KEYS, site="local", tenant="acme", revision=7, dedupe_key=DEDUPE)


def conditions(random: Random, most: int, roots: frozenset[str]) -> tuple[Condition, ...]:
    """Up to *most* conditions."""
    found: list[Condition] = []
    for _ in range(random.randint(0, most)):
        text = Grammar(random).condition(2)
        try:
            found.append(compile_condition(text, roots=roots))
        except ExpressionError:
            continue
    return tuple(found)


def rules(random: Random, when: Sequence[Condition | None]) -> list[Rule]:
    """A line for each condition, of some types, some of which end."""
    ends = (None, None, None, None, NOW_MS - 1, NOW_MS + 1)
    patterns = ("crm.>", "crm.>", "crm.contact.>")
    return [
        Rule(
            f"r{number}", "publish", None, None, (Pattern.parse(random.choice(patterns)),), when=one,
            expires_ms=random.choice(ends),
        )
        for number, one in enumerate(when)
    ]  # fmt: skip


def world(random: Random, shown: list[tuple[Fields, Lines, str]]) -> World:
    """Rules with conditions at random, and views that mask like *shown*."""
    when: list[Condition | None] = [*conditions(random, 2, ROOTS_PUBLISH)]
    denies = [] if random.random() < 0.5 else [*conditions(random, 2, ROOTS_PUBLISH)]
    views = [
        View(
            f"v{number}", {**fields, "subject": ["t0"]} if random.random() < 0.3 else fields, lines, otherwise,
            conditions(random, 2, ROOTS_ROWS) if random.random() < 0.4 else (),
            random.choice((None, None, None, NOW_MS, NOW_MS + 1)),
        )
        for number, (fields, lines, otherwise) in enumerate(shown)
    ]  # fmt: skip
    return World(rules(random, [*when, None]), rules(random, denies), views)


# --- events at random ------------------------------------------------------------------------------------------------

MAYBE: dict[str, tuple[Any, ...]] = {  # what an attribute is now and then
    "time": ("2026-03-01T00:00:00Z", "2026-03-01T00:00:00.25+01:00", "2024-02-29T00:00:00Z", "2026-02-29T00:00:00Z"),
    "datacontenttype": ("application/json", "application/json", "text/json", None),
    "correlationid": ("c-1", "c-1", "", 7),
    "subject": ("a subject", 'of "quotes" and \\', "größer", "a\nb", "x" * 1024),
    "partitionkey": ("k-1", 'k "2" ü', "k" * 200),
    "traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-nothing"),
    "tracestate": ("a=1",),
    "expirytime": (LATER, EARLIER),
    "causationid": ("e-0",),
    "dataschema": ("https://example.com/schema",),
    "iban": (7, True, "a value", None, 1.5),
    "view": ("clear",),
    "data_base64": ("AAAA",),
}


def an_event(random: Random, data: Any) -> dict[str, Any]:
    """Fields as an adapter sends them, most of them in order; *data* has what classifications name."""
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": random.choice(("e-1", f"e-{random.random()}", "x" * 256)),
        "source": random.choice((*6 * ("/crm/eu",), "/crm", "/crm/../hr", "/hr")),
        "type": random.choice((*6 * (TYPE,), "crm.deal.won.v1", "hr.raised.v1")),
    }
    for name, values in MAYBE.items():
        if random.random() < (0.4 if name in {"time", "subject", "partitionkey"} else 0.04):
            fields[name] = random.choice(values[:1] if random.random() < 0.8 else values)
    if random.random() < 0.9:
        more = dirty(random)["data"]  # what conditions name
        if random.random() < 0.7 and isinstance(data, dict) and isinstance(more, dict):
            more.pop("edge", None)  # often numbers that are spelled in many ways
            data = {**data, **more, "when": random.choice((0.5, 1e300, 10, 10**17, 12.75, True))}
        fields["data"] = data
    if random.random() < 0.3:
        names = random.sample(list(fields), len(fields))
        fields = {name: fields[name] for name in names}
    return fields


def twice(fields: dict[str, Any]) -> bytes:
    """With a name that is there twice, of which the last counts."""
    return b'{"id":"first","data":{"n":5},' + encode(fields)[1:]


FORMS: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    encode,
    encode,
    lambda fields: json.dumps(fields).encode(),
    lambda fields: json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(),
    lambda fields: b"\r\n" + json.dumps(fields, ensure_ascii=False, indent=2).encode() + b" ",
    twice,
    lambda fields: encode(fields).replace(b".5", b".50"),
    lambda fields: encode(fields).replace(b"2.", b"2e0."),
    lambda fields: encode(fields).replace(b"a", b"\\u0061"),
    lambda fields: encode(fields).replace(b"/", b"\\/"),
    lambda fields: encode(fields)[:-1],
    lambda fields: b"\xef\xbb\xbf" + encode(fields),
    lambda fields: encode({**fields, "data": [[[[[[1]]]]]]}),
    lambda fields: encode({**fields, "data": {"n": 1, "text": "x" * 3800}}),
    lambda fields: encode(fields) + b" " * 6000,
    lambda _: b"[]",
)


# --- what comes out --------------------------------------------------------------------------------------------------


def seen(made: Outbound) -> tuple[object, ...]:
    """All of what was made of an event."""
    decision = made.decision
    copies = [tuple(getattr(copy, name) for name in OUTGOING) for copy in made.copies]
    views = [view.name for view in decision.views]
    return made.event_id, decision.allowed, decision.rule, decision.reason, views, copies


def taken_apart(way: Departures, body: bytes, limits: Limits) -> tuple[object, ...] | MeshError:
    """What becomes of *body* when it is read."""
    try:
        fields = fields_from_structured(body, NOW_MS, limits)
        if "expirytime" in fields:
            refuse_expired(fields, NOW_MS)
        return seen(way.of(fields, NOW_MS))
    except MeshError as error:
        return error


def check(way: Departures, other: Departures, body: bytes, limits: Limits = LIMITS) -> bool:
    """Send *body* both ways. Whether the short one was taken."""
    expected = taken_apart(other, body, limits)
    made = way.of_text(body, NOW_MS, limits)
    if made is None:
        taken_apart(way, body, limits)
        return False
    assert seen(made) == expected
    return True


SHOWN = st.lists(st.tuples(CLASSES, MASKS, OTHERWISE), min_size=1, max_size=3)


@EACH
def test_both_ways_end_alike(built: Built) -> None:
    """Any policies, any event in any spelling: nothing, or the same decision and the same copies."""
    taken = sent = 0

    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
    @given(SHOWN, st.lists(DATAS, min_size=1, max_size=4), st.integers(0, 2**32))
    def run(shown: list[tuple[Fields, Lines, str]], datas: list[Any], seed: int) -> None:
        nonlocal taken, sent
        random = Random(seed)
        made = world(random, shown)
        way, other = made.departures(), made.departures()
        for _ in range(20):
            body = random.choice(FORMS if random.random() < 0.3 else FORMS[:4])(an_event(random, random.choice(datas)))
            sent += 1
            taken += check(way, other, body)

    with built():
        run()
    assert not is_taken(built) or taken > sent // 20, (taken, sent)


# --- what is taken, and what is not ----------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "specversion": "1.0", "id": "e-1", "source": "/crm/eu", "type": TYPE, "time": "2026-03-01T00:00:00Z",
    "datacontenttype": "application/json", "correlationid": "c-1",
    "data": {"name": "Ada Lindqvist", "email": "ada@example.com", "country": "DE", "more": {"a": [1, 2.5, None]}},
}  # fmt: skip


def departures(*documents: str, keys: Any = KEYS) -> Departures:
    """The way out of the base publisher's events under the base and *documents*."""
    publisher = plans(*documents).publisher("crm-adapter")
    return Departures(publisher, keys, site="local", tenant="acme", revision=7, dedupe_key=DEDUPE)


def pair(*documents: str) -> tuple[Departures, Departures]:
    """Two of them, which have sent an event."""
    both = departures(*documents), departures(*documents)
    for way in both:
        way.of(dict(FIELDS), NOW_MS)
    return both


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled, so there is one way")
def test_the_event_that_is_measured_goes_the_short_way() -> None:
    """Else the benchmark would measure the other one."""
    made = compile_bundles(load({"a.yaml": POLICIES}), revision=1, site="local", trust_domain="m", created_ms=0)
    publisher = [Plans(made["bench"]).publisher("shop") for _ in range(2)]
    one, other = [
        Departures(each, KEYS, site="local", tenant="bench", revision=1, dedupe_key=DEDUPE) for each in publisher
    ]
    taken = [check(one, other, measured_event(number, "run"), Limits()) for number in range(20)]
    assert taken == [False] + 19 * [True]  # the masks are made for the first


@EACH
@pytest.mark.parametrize(
    "fields",
    [
        FIELDS,
        {name: value for name, value in FIELDS.items() if name not in ("time", "datacontenttype", "correlationid")},
        {name: value for name, value in FIELDS.items() if name != "time"},
        {name: value for name, value in FIELDS.items() if name != "data"},
        {name: FIELDS[name] for name in reversed(FIELDS)},
        FIELDS | {"subject": "a subject"},
        FIELDS | {"partitionkey": "k-1"},
        {"partitionkey": "k-1"} | FIELDS | {"data": [1, {"email": "a"}]},
        FIELDS | {"data": "ada@example.com"},
        FIELDS | {"data": {}},
    ],
)
@pytest.mark.parametrize("spaced", [False, True])
def test_a_usual_event_goes_the_short_way(built: Built, fields: dict[str, Any], *, spaced: bool) -> None:
    """To a view of everything and to one that masks, whatever the sender left out."""
    if not is_taken(built):
        return
    body = json.dumps(fields, separators=None if spaced else (",", ":")).encode()
    with built():
        assert check(*pair(), body)


@EACH
def test_what_conditions_read_is_read_for_each_type(built: Built) -> None:
    """Events of two types whose rules read different members, one after the other."""
    lines = [
        {"id": "small", "who": {"teams": ["crm"]}, "publish": ["crm.deal.>"], "when": "data.country == 'DE'"},
        {"id": "named", "who": {"teams": ["crm"]}, "publish": ["crm.contact.>"], "when": "data.more.a[1] == 2.0"},
    ]
    ways = pair(access("no", deny=lines))
    deal = FIELDS | {"type": "crm.deal.won.v1"}
    contact_2, deal_fr = {**FIELDS["data"], "more": {"a": [1, 2]}}, FIELDS["data"] | {"country": "FR"}
    sent = [FIELDS, deal, FIELDS | {"data": contact_2}, deal | {"data": deal_fr}, FIELDS, deal | {"data": None}, FIELDS]
    with built():
        taken = [check(*ways, encode(each)) for each in sent]
    if is_taken(built):
        assert taken == [True, False, False, True, True, False, True]


def read_in(view: str, spec: dict[str, Any]) -> tuple[str, str]:
    """A view of contacts and deals, and a grant of it."""
    reads = {"id": view, "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": view}
    return document("View", view, spec), access(view, allow=[reads])


@EACH
def test_what_rows_read_is_read(built: Built) -> None:
    """Though no rule reads it."""
    ways = pair(*read_in("regional", {"otherwise": "redact", "rows": "data.country == 'DE' && !has(data.more.b)"}))
    datas = [FIELDS["data"], {"country": "FR"}, {"country": "DE"}, {"country": "DE", "more": {"b": 1}}, "DE"]
    with built():
        for data in datas:
            body = encode(FIELDS | {"data": data})
            assert check(*ways, body) is is_taken(built)
            views = {copy.view for copy in ways[1].of(decode(body), NOW_MS).copies}
            assert ("regional" in views) is (data is datas[0])


@EACH
@pytest.mark.parametrize("mode", ["random", "deterministic"])
def test_what_is_encrypted_is_bound_to_its_event(built: Built, mode: str) -> None:
    """Events of two types, one after the other."""
    line = {"tags": ["pii.name", "pii.contact.email"], "as": "encrypt", "with": {"mode": mode, "for": ["support"]}}
    documents = read_in("sealed", {"otherwise": "redact", "mask": [line]})
    ways = pair(*documents)
    with built():
        for number in range(4):
            fields = FIELDS | {"id": f"e-{number}", "type": (TYPE, "crm.deal.won.v1")[number % 2]}
            assert check(*ways, encode(fields)) is is_taken(built)


def route() -> str:
    """A route that copies nothing of ours."""
    line = {"id": "tee", "match": {"types": ["crm.deal.>"]}, "effect": "copy", "to": TYPE}
    return document("Route", "routes", {"routes": [line]})


@EACH
@pytest.mark.parametrize(
    ("documents", "fields", "limits"),
    [
        ((route(),), {}, LIMITS),
        ((), {"expirytime": LATER}, LIMITS),
        ((), {"data_base64": "AAAA"}, LIMITS),
        ((), {"type": "hr.raised.v1"}, LIMITS),
        ((), {"source": "/hr"}, LIMITS),
        ((), {"time": None}, LIMITS),
        ((), {"view": "clear"}, LIMITS),
        ((), {"id": ""}, LIMITS),
        ((), {}, Limits(max_event_bytes=250)),
        ((), {}, Limits(max_batch_bytes=250)),
        ((), {}, Limits(max_depth=3)),
    ],
)
def test_what_is_not_sure_or_refused_goes_the_long_way(
    built: Built, documents: tuple[str, ...], fields: dict[str, Any], limits: Limits
) -> None:
    """There alone it is said what is wrong, and there alone are new events made."""
    ways = pair(*documents)
    with built():
        if not documents:
            assert check(*ways, encode(FIELDS)) is is_taken(built)
        assert not check(*ways, encode({**FIELDS, **fields}), limits)


@EACH
@pytest.mark.parametrize("missing", [(), ("time",), ("time", "correlationid", "datacontenttype")])
def test_the_limit_is_of_what_the_event_becomes(built: Built, missing: tuple[str, ...]) -> None:
    """To the byte, with what the sender left out."""
    fields = {name: value for name, value in FIELDS.items() if name not in missing}
    size = len(encode(fields_from_structured(encode(fields), NOW_MS, Limits())))
    with built():
        taken = [check(*pair(), encode(fields), Limits(max_event_bytes=size + more)) for more in (-1, 0)]
    if is_taken(built):
        assert taken == [False, True]


@EACH
def test_keys_are_asked_for_in_one_place(built: Built) -> None:
    """Without a key, or with another object that holds them, the masks are made where that can be refused."""
    lines = [{"tags": ["pii.name"], "as": "pseudonym", "with": {"domain": "d"}}]
    documents = read_in("tokens", {"mask": lines, "otherwise": "redact"})
    way, body = departures(*documents), encode(FIELDS)
    with built():
        assert way.of_text(body, NOW_MS, LIMITS) is None
        assert check(way, departures(*documents), body) is False
        assert check(way, departures(*documents), body) is is_taken(built)
        way.keys = Keys()
        assert way.of_text(body, NOW_MS, LIMITS) is None


def test_values_that_repeat_are_read_as_they_are() -> None:
    """Whatever stood under the same name in the event before: longer, shorter, spelled with escapes, or no string."""
    values = ["", "/crm", "/crm/eu", "a\\", 'a"', "a\\b", "a\nb", "\u00e9", "x" * 64, "x" * 65, "null", None, 7]
    chance = Random(3)
    for _ in range(2000):
        fields = {name: chance.choice(values) for name in ("source", "type", "specversion", "datacontenttype", "id")}
        assert verbatim.glimpse(encode(fields), {}) == fields


def test_without_the_compiled_loops_there_is_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking would take longer there."""
    way, _ = pair()
    monkeypatch.setattr(journey, "native", SimpleNamespace(compiled=None))
    monkeypatch.setattr(journey, "text_from_structured", lambda *_: pytest.fail("looked"))
    assert way.of_text(encode(FIELDS), NOW_MS, LIMITS) is None


# --- what an agent says ----------------------------------------------------------------------------------------------


class NoKeys:
    """Of an agent that was handed none."""

    def domain(self, name: str) -> bytes:
        """Raises NoDomainKey."""
        raise NoDomainKey(f"no key of {name}")

    cipher = domain


def answers(sent: list[bytes], documents: tuple[str, ...], keys: Any) -> tuple[list[Any], list[object]]:
    """What an agent makes of requests of one event and of two, what it refuses how, and what it records."""
    records: list[object] = []
    held = SimpleNamespace(masks=keys, dedupe=DEDUPE)
    audit = SimpleNamespace(write=lambda kind, **facts: records.append((kind, facts)))
    got: list[Any] = []

    async def run() -> None:
        nothing: Any = None
        agent = AgentOutbound(
            AgentSettings(name="crm-adapter", tenant="acme", max_event_bytes=256 * 1024),
            held, nothing, nothing, audit=audit,  # type: ignore[arg-type]  # all of them that is used here
        )  # fmt: skip
        agent.adopt(plans(*documents))
        for body in sent:
            for request in ([body], [sent[0], body], [body, sent[0]]):
                decided: list[Outbound] = []
                try:
                    agent._decide_some(request, *agent._in_force(), decided)
                except MeshError as error:
                    got.append((type(error), error.as_dict(), error.details))
                got.append([seen(made) for made in decided])

    asyncio.run(run())
    return got, records


@EACH
@pytest.mark.parametrize("keys", [KEYS, NoKeys()])
def test_an_agent_answers_the_same_either_way(built: Built, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same refusals with the same index and the same records, whatever way the events before them went."""
    monkeypatch.setattr(agent_outbound, "clock_ms", lambda: NOW_MS)
    lines = [{"tags": ["pii.name"], "as": "pseudonym", "with": {"domain": "d"}}]
    tokens = document("View", "tokens", {"mask": lines, "otherwise": "redact"})
    reads = {"id": "t", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "tokens"}
    deny = {"id": "no-fr", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.country == 'FR'"}
    classified = {"types": ["crm.>"], "fields": {"data.names[*]": ["pii.name"]}}
    documents = tokens, access("t", allow=[reads], deny=[deny]), document("Classification", "names", classified)
    sent = [
        encode({**FIELDS, **more})
        for more in (
            {"type": "crm.deal.won.v1"},
            {},
            {"id": ""},
            {"data": {"country": "FR"}},
            {"data": {"country": "DE", "names": ["a"] * 20_000}},  # too long once masked
            {"data": "x" * 262_000},
            {"data": {"names": ["x" * 70_000] * 3, "country": "DE"}},
            {"type": "hr.raised.v1"},
            {"expirytime": EARLIER},
            {"expirytime": LATER},
        )
    ]
    sent += [b"[]", b"{", json.dumps(FIELDS).encode()]
    with built():
        either = answers(sent, documents, keys)
    monkeypatch.setattr(Departures, "of_text", lambda *_: None)
    assert answers(sent, documents, keys) == either
    refused = {each[1]["code"] for each in either[0] if isinstance(each, tuple)}
    assert refused >= {"denied", "not-json", "no-domain-key" if keys is not KEYS else "too-large"}
