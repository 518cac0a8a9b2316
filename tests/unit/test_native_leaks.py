"""Thousands of calls of each compiled twin leave nothing behind, those that are refused included."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.attributes import SOURCES, TYPES
from mesh.jetstream.acks import AckSubject
from mesh.jetstream.outgoing import NEVER
from mesh.policy.actions import DROPPED, REDACTED
from mesh.policy.walkers import UNMET, as_it_is, unmet
from mesh.signing import Received
from mesh.subjects import Physical
from tests.unit.native_twins import GIVEN, PYTHON, SETS, compared, compiled, outcome
from tests.unit.native_walks import KINDS, node_of, raising, value_of, walk_of

CALLS = 3_000
LEAST = 200  # of each use: what comes and goes by itself is a few dozen blocks
ROUNDS = 4


def _item(subject: Any = "orders", id: Any = "A" * 22, body: Any = b"body") -> tuple[Any, ...]:
    return subject, id, body


def _events(count: int, **more: Any) -> list[Any]:
    required = {"subject": "s", "stream": "t", "body": b"b", "source": "r", "event_id": "e"}
    return [compiled().Outgoing(**required | more) for _ in range(count)]


class _Uncomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


def _received(header: Any = "", **more: Any) -> Received:
    header = header or f"1.kid.{2**40}.{'A' * 22}.0.1..signature"
    fields = {"subject": "s", "body": b"b", "msg_ids": ("A" * 22,), "signature": header, "stream_ms": 2**40}
    rest = {"stream": "t", "sequence": 1, "deliveries": 1, "reply": ""}
    return Received(**fields | rest | more)


def _acked(name: str) -> Any:
    """Events that nothing else holds, acknowledged: what keeps one keeps memory."""
    events, sequences = _events(2, sends=1, token=2**40), [2**40, 2**40 + 1]
    if name == "settled":
        return compiled().settled(deque(events), events, sequences, 0, NEVER)
    by_token = {2**40: events[0]}
    if name == "found":
        return compiled().found([2**40], sequences[:1], by_token, 0)
    return compiled().forgotten(events[:1], by_token)


def _masked(kind: str, act: Any, part: Any) -> Callable[[], Any]:
    walk = walk_of(kind, SETS[1], node_of(SETS[1], act, act or as_it_is, act or as_it_is))
    return partial(walk, value_of(kind, lambda i: part))


def _made(name: str, *arguments: Any, **named: Any) -> Callable[[], Any]:
    return partial(getattr(compiled(), name), *arguments, **named)


def _delivery(numbers: str = "1.2.3") -> bytes:
    head = b"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: %b\r\nMesh-Signature: 1.x\r\n\r\n"
    head %= b"A" * 22
    line = f"HMSG ev.x 7 $JS.ACK.EV.d.{numbers}.4.5 {len(head)} {len(head) + 2}\r\n"
    return line.encode() + head + b"{}\r\n"


class Breaks(AckSubject):
    """Its plain subjects are nobody's, and of all others it says nothing."""

    def __init__(self) -> None:
        super().__init__("none", "none")

    def parse(self, reply: str) -> Any:
        """Not at all."""
        raise ZeroDivisionError(reply)


TEXT = (
    b'{"id":"i","data":{"a":"x\\n\xc3\xa9","b":[1,{"a":49.9}],"c":{},"d":[],"name 1":{"a":true,"b":null}},"time":"t"}'
)

EVENT = {"id": "i", "source": "/s", "type": "t"}


def _cut(
    look: Any = None,
    *,
    rows: Any = None,
    more: Any = b"",
    text: Any = TEXT,
    keys: Any = None,
    splice: Any = None,
    **fields: Any,
) -> Callable[[], Any]:
    """The copies for two stops, the first of everything and the second of what is said here."""
    address = "v", ("subject",) * 16, "stream", b',"view":"v"}'
    everything: Any = None, {}, node_of(SETS[1], None, as_it_is, as_it_is), None
    stops = [
        (SimpleNamespace(look=each, splice=splice), asks, address) for each, asks in ((everything, None), (look, rows))
    ]
    hashes = tuple(compiled().Keyed(b"key", 16, person) for person in (b"a", b"b", b""))
    given = {name: value for name, value in (EVENT | fields).items() if value is not DROPPED}
    return lambda: compiled().cut(text, more, dict(given), tuple(stops), hashes, keys)


WANTED: list[Any] = [None, {}, {"a": None, "b": {"a": None}}, {"name 1": {"b": {}}}]


def _spliced(answer: Any, kind: str, otherwise: Any = None, **instead: Any) -> Callable[[], Any]:
    """A text masked by a node whose scalars, and the containers it does not walk, become *answer*."""

    def act(value: Any) -> Any:
        return answer(value) if callable(answer) else answer

    inside = node_of(SETS[1], act, act, act)
    if kind != "item_list":
        inside.on_list = walk_of("item_list", SETS[1], node_of(SETS[1], act))
    walk = node_of(SETS[1], act, walk_of(kind, SETS[1], inside), act)
    return partial(compiled().masked, TEXT, instead, {"data": walk, "time": None}, node_of(SETS[1], act), otherwise)


WON = "crm.deal.won.v1"
SENT = (
    b'{"specversion":"1.0","id":"i-1234","source":"/crm","type":"crm.deal.won.v1","time":"2026-01-01T00:00:00Z",'
    b'"iban":"x","retries":70000,"correlationid":"c","datacontenttype":"application/json","data":{"a":"text","b":[1,2.5]}}'
)
SPACED = SENT.replace(b",", b" , ")
TYPE = b'"type":"crm.deal.won.v1",'
BEHIND = SENT.replace(b'"data":{', b'"subject":"s","data":{').replace(TYPE, b"")[:-1] + b"," + TYPE[:-1] + b"}"
BARE = b'{"specversion":"1.0","id":"i-1234","source":"/crm","type":"crm.deal.won.v1"}'


def _read(
    body: bytes, known: Any, reads: Any = lambda _: {"b": None}, *, now_ms: Any = 2**40, max_body: Any = 9999,
    max_depth: Any = 64, max_event: Any = 9999,
) -> Callable[[], Any]:  # fmt: skip
    """An event's text, as a process that has seen such events reads it."""
    assert SOURCES["/crm"]
    assert TYPES[WON]
    return _made("text_from_structured", body, now_ms, max_body, max_depth, max_event, known, reads)


def _cycle() -> Any:
    """A node that leads to itself, as one of `**.name` does."""
    node = node_of(SETS[1])
    node.on_dict = walk_of("masking_dict", SETS[1], node)
    node.on_list = walk_of("item_list", SETS[1], node)
    return compiled().tokens("p", node.on_dict, node.on_list)


def _uses() -> dict[str, list[Callable[[], Any]]]:
    """Calls of each twin, of those that are refused too."""
    c = compiled()
    keyed, run, node = c.Keyed(b"key", 16, b"person"), c.AckRun("_INBOX.", 7), node_of(SETS[1])
    flying = [*_events(1, sends=1, token=2**40), *_events(1, sends=1, token=2**40 + 1)]
    own = AckSubject("EV", "d")
    digits = c.last_digits(2, 7, 15, "+")
    ack = b'MSG _INBOX.1234567 7 33\r\n{"stream":"orders","seq":7654321}\r\n'
    assert run.read(ack, 0)[1] is not None
    walked = [
        (kind, act, part)
        for kind in KINDS
        for act in (None, lambda part: DROPPED, lambda part: UNMET, lambda part: [part], raising)
        for part in ("scalar", {"a": 1}, [1], (1,))
    ]
    walks = {kind: [_masked(kind, act, part) for other, act, part in walked if other == kind] for kind in KINDS}
    place = Physical("eu1", "clear", 0, "t.v1")
    said = {"type": "t.v1", "view": "clear", "specversion": "1.0", "tenant": "acme", "source": "/s", "id": "1"}
    content, stored = (_received(), said, place), (0, 2**41)
    fields = {
        "specversion": "1.0",
        "id": "i",
        "source": "/s",
        "type": "t",
        "time": "2026-01-01T00:00:00Z",
        "subject": "s",
    }
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "a=1,b=2"}
    return {
        "plain": [
            _made("plain", fields, {"/s": True}, {"t": True}),
            _made("plain", fields | {"id": ""}, {}, {}),
            _made("plain", None, {}, {}),
            _made("plain", fields | {"a": 1}, {"/s": True}, {"t": True}),
            _made("plain", fields | {"source": "/s.t", "a": "ü", "b": 2**40}, {"/s.t": True}, {"t": True}),
            _made("plain", fields | trace | {"dataschema": "a:b"}, {"/s": True}, {"t": True}),
        ],
        "Outgoing": [
            partial(_events, 1),
            _made("Outgoing", "s", "t", b"b", "r", "e", "trace", "base", "v", "ty", "ro", print, [], {}, 1),
            _made("Outgoing", "s"),
            _made("Outgoing", *["s"] * 30),
            _made("Outgoing", "s", subject="s"),
            _made("Outgoing", "s", other=[]),
            _made("Outgoing", "s", "t", b"b", "r", "e", order="no number"),
            partial(repr, *_events(1)),
            partial(setattr, _events(1)[0], "kids", [1]),
            partial(setattr, _events(1)[0], "order", "no number"),
        ],
        "entered": [
            lambda: c.entered(_events(3, base_id="base"), {}, 2**40),
            partial(c.entered, _events(3, base_id="base"), {}, 2**40),
            partial(c.entered, [*_events(1), None], {}, 1),
            partial(c.entered, _events(3), {}, 1),
            partial(c.entered, None, {}, 1),
        ],
        "numbered": [
            *(partial(lambda n: c.numbered(_events(3), 0, b"x", n), n) for n in (1, -1, 10**30, 2**63 - 2, "n")),
            lambda: c.numbered([*_events(1), *_events(1, source="other"), None], 0, b"x", 1),
            lambda: c.numbered([*_events(1), None], 0, b"x", 1),
            lambda: c.numbered(_events(2, source=["fresh"], view=["fresh"]), 0, b"x", 1),
            lambda: c.numbered(_events(2, body="x"), 0, b"x", 1),
            lambda: c.numbered([_events(1, source=_Uncomparable())[0] for _ in range(2)], 0, b"x", 1),
        ],
        "boarded": [
            lambda: c.boarded(_events(3), print, {"": []}),
            partial(c.boarded, _events(3), print, {"": []}),
            partial(c.boarded, _events(1), print, {}),
            partial(c.boarded, _events(1, view=[]), print, {}),
            partial(c.boarded, [*_events(1), None], print, {"": []}),
            partial(c.boarded, None, print, {}),
        ],
        "signed": [
            lambda: c.signed(_events(2, kids=("other",)), ["one", "two"], "kid", 2**40),
            partial(c.signed, _events(2), ["one", "two"], "kid", 2**40),
            partial(c.signed, _events(2), ["one"], "kid", 2**40),
            partial(c.signed, [*_events(1), None], ["one", "two"], "kid", 1),
            partial(c.signed, _events(1, kids=[]), ["one"], "kid", 1),
        ],
        "ordered": [partial(c.ordered, _events(2), 2**40, 1.5), partial(c.ordered, [*_events(1), None], 1, 1.5)],
        "marked_sent": [partial(c.marked_sent, _events(2), 1.5), partial(c.marked_sent, [*_events(1), None], 1.5)],
        "found": [
            partial(c.found, [1, 2, 3], dict(enumerate(_events(3))), 0),
            partial(c.found, [1], dict(enumerate(_events(3))), 2**40),
            partial(c.found, [1, 2], {1: _events(1)[0], 2: None}, 0),
            partial(c.found, [[]], {}, 0),
        ],
        "settled": [
            partial(_acked, "settled"),
            lambda: c.settled(deque(flying), flying, [2**40, 2**40 + 1], 0, NEVER),
            partial(c.settled, deque(_events(2, sends=2)), flying, [1, 2], 0, 5.0),
            partial(c.settled, deque([None]), flying, [1], 0, 5.0),
            partial(c.settled, deque(flying), flying, [None], 0, 5.0),
            partial(c.settled, None, flying, [1], 0, 5.0),
        ],
        "forgotten": [
            partial(_acked, "forgotten"),
            lambda: c.forgotten(flying, dict(zip([2**40, 2**40 + 1], flying, strict=True))),
            partial(c.forgotten, _events(1, token=2**40), {}),
            partial(c.forgotten, _events(1, body=1), {}),
            partial(c.forgotten, [None], {}),
        ],
        "frames": [
            partial(c.frames, _events(2, signature="é", traceparent="t"), "i"),
            partial(c.frames, [*_events(1), *_events(1, msg_id="\n")], "i"),
            *(
                partial(c.frames, [*_events(1), *_events(1, **{name: []})], "i")
                for name in ("subject", "msg_id", "body")
            ),
            partial(c.frames, [*_events(1), object()], "i"),
            partial(c.frames, [], "\ud800"),
        ],
        "verbatim": [
            _made("verbatim", TEXT, 64),
            _made("verbatim", TEXT.replace(b",", b" , "), 64),
            _made("verbatim", TEXT.replace(b",", b" , ") + b"}", 64),
            *(
                _made("verbatim", *odd)
                for odd in ((TEXT[:-1], 64), (TEXT, 1), (TEXT, 10**30), ("{}", 64), (b"{}", "n"))
            ),
        ],
        "glimpse": [
            *(_made("glimpse", TEXT, wanted) for wanted in WANTED),
            *(_made("glimpse", TEXT[:end], wanted) for end in (-1, 40, 30, 20, 5) for wanted in WANTED[:3]),
            _made("glimpse", TEXT, {"\ud800": None}),
            _made("glimpse", TEXT, {"a": None, "name 1": 7}),
            _made("glimpse", TEXT, {1: None}),
            _made("glimpse", TEXT.replace(b"49.9", b"\xff"), None),
            _made("glimpse", TEXT.replace(b"49.9", b'"\xff"'), None),
            _made("glimpse", "{}", None),
        ],
        "text_from_structured": [
            *(
                _read(event, known)
                for event in (SENT, SPACED, SENT[:-1], SENT.replace(b"/crm", b"/.."), BEHIND, BARE)
                for known in ((WON, {}), (WON, {"a": None}), ("other", None), (WON, {"\ud800": None}), (WON, 7))
            ),
            *(_read(event, ("other", {}), reads) for event in (SENT, BEHIND) for reads in (raising, len, None)),
            *(_read(SENT, (WON, {}), max_event=size) for size in (1, len(SENT), 10**30)),
            *(_read(SENT, (WON, {}), **{name: odd}) for name in ("max_body", "max_depth") for odd in (1, "n")),
            *(_read(BARE, (WON, {}), now_ms=odd) for odd in (2**40, 10**30, None)),
            _read(SENT, (WON,)),
            _made("text_from_structured", SENT),
        ],
        "masked": [
            *(
                _spliced(answer, kind)
                for kind in ("masking_dict", "dropping_dict", "listed", "item_list")
                for answer in (
                    "text",
                    "\n\xe9",
                    2**40,
                    1.5,
                    None,
                    DROPPED,
                    UNMET,
                    raising,
                    as_it_is,
                    lambda value: [value],
                )
            ),
            _spliced("\ud800", "masking_dict"),
            _spliced(object(), "masking_dict"),
            _spliced("x" * 5000, "masking_dict", str),
            _spliced(as_it_is, "masking_dict", raising, id="other", data=["new"], gone=1),
            _spliced(as_it_is, "masking_dict", id="\ud800"),
            *(
                partial(c.masked, text, {}, {"data": node_of(SETS[1], None, on, on)}, node_of(SETS[1]), otherwise)
                for text in (TEXT, TEXT[:-1], TEXT[:50], TEXT.replace(b"49.9", b"1e5"), b'{"data_base64":""}')
                for on in (as_it_is, unmet, walk_of("masking_dict", SETS[1], node_of(SETS[1], str, str, str)))
                for otherwise in (None, c.redact, c.drop, raising)
            ),
            _made("masked", TEXT, {}, {"id": 1}, node, None),
            _made("masked", TEXT, {}, {}, node),
        ],
        "cut": [
            *(
                _cut((None, {"id": None}, node_of(SETS[1], answer, answer, answer), None), more=b',"a":1', **fields)
                for answer in (str, raising, as_it_is, lambda value: [value])
                for fields in ({}, {"partitionkey": "k", "traceparent": "t"})
            ),
            *(
                _cut((None, {}, node, None), rows=rows)
                for rows in (raising, lambda fields: fields.clear(), lambda _: [1], 1)
            ),
            *map(_cut, ((), (None, {}, 1, None), (2**40, {}, node, None))),
            *(
                _cut(splice=splice, more=b",", partitionkey=key)
                for splice in (raising, lambda *_: b"made" * 9, lambda *_: "made" * 9, lambda *_: None, None)
                for key in (None, "k")
            ),
            *(_cut(**{name: value}) for name in EVENT for value in (DROPPED, 1, "\ud800")),
            *(_cut(partitionkey=value) for value in (1, "\ud800")),
            *(_cut(text=text) for text in (TEXT[:-1], b'{"data_base64":""}', "text")),
            _cut(more="text"),
            _made("cut", TEXT),
        ],
        "extended": [_made("extended", b"{}", b"x" * 20), _made("extended", "", b"")],
        "brackets_exceed": [_made("brackets_exceed", b"[" * 999, 5), _made("brackets_exceed", b"[", "n")],
        "batch": [
            _made("batch", [_item()] * 5, bytes(80)),
            _made("batch", [_item(), _item(id="no")], bytes(32)),
            _made("batch", [_item(), _item("\n")], bytes(32)),
            _made("batch", [_item(), _item("\ud800")], bytes(32)),
            _made("batch", [_item(), _item(body="text")], bytes(32)),
            _made("batch", [], b""),
        ],
        "neighbours": [
            partial(
                c.neighbours, [_received(), _received(), _received("no"), _received(body=None), _received(msg_ids=())]
            ),
            partial(c.neighbours, [_received(), None]),
            partial(c.neighbours, None),
        ],
        "agreed": [
            lambda: c.agreed([content] * 3, 0, stored, "acme", set()),
            lambda: c.agreed([content, None], 0, stored, None, set()),
            *(
                partial(c.agreed, [content, (_received(**event), said | more, place)], 0, stored, "acme", set())
                for event, more in (
                    ({}, {"id": 1}),
                    ({}, {"tenant": []}),
                    ({"stream_ms": 2**42}, {}),
                    ({"stream_ms": "now"}, {}),
                )
            ),
            partial(c.agreed, [(_received(), said | {"source": "\ud800"}, place)], 0, stored, "acme", set()),
            partial(c.agreed, [(None, said, place)], 0, stored, "acme", set()),
            partial(c.agreed, [(None, None, None)], 0, stored, "acme", set()),
            partial(c.agreed, [content], -1, stored, "acme", set()),
            partial(c.agreed, None, 0, stored, "acme", set()),
        ],
        "common_root": [
            *(
                partial(c.common_root, [_received()] * 3, ["A" * 22] * 3, [proof] * 3, 1, 9)
                for proof in ("", "A" * 171, None)
            ),
            partial(c.common_root, [_received()], ["A" * 22], [""], 0, 1),
            partial(c.common_root, [_received()] * 2, ["A" * 22, "\ud800"], ["", ""], 0, 2),
            partial(c.common_root, [_received(), _received(body="text")], ["A" * 22] * 2, ["", ""], 0, 2),
            partial(c.common_root, [_received(), _received(msg_ids=())], ["A" * 22] * 2, ["", ""], 0, 2),
            partial(c.common_root, [_received(), None], ["A" * 22] * 2, ["", ""], 0, 2),
            partial(c.common_root, [], [], [], 0, 1),
            partial(c.common_root, None, [], [], 0, 1),
        ],
        "Keyed": [
            _made("Keyed", b"key", 16, b"person"),
            _made("Keyed", b"k" * 65, 16),
            _made("Keyed", "key"),
            *(partial(hash, text) for hash in (keyed.digest, keyed.token) for text in ("té", 1, "\ud800")),
            *(partial(keyed.token, "line", text) for text in ("té", 1, "\ud800")),
        ],
        "AckRun": [
            _made("AckRun", "_INBOX.", 7),
            _made("AckRun", "\ud800", 7),
            _made("AckRun", "i", 10**30),
            *(partial(run.read, data, at) for data in (ack * 3, b"", None) for at in (0, 1, 10**4, "at")),
        ],
        "DeliveryRun": [
            _made("DeliveryRun", own, "EV", 7),
            *(_made("DeliveryRun", *odd) for odd in ((own, "EV", 10**30), (own, b"EV", 7), (None, "EV", 7), (own,))),
            *(
                partial(c.DeliveryRun(each, "EV", 7).read, data, at)
                for each in (own, AckSubject("EV", "other"), Breaks())
                for data in (_delivery() * 3, _delivery("5.x.5"), _delivery(f"{10**30}.1.5"), b"", None)
                for at in (0, 1, 10**4, "at")
            ),
        ],
        "redact": [_made("redact", "text"), _made("redact", 1)],
        "drop": [_made("drop", "text")],
        "last_digits": [
            _made("last_digits", 2, 7, 15, "+"),
            _made("last_digits", 2, 1, 0, "+"),
            *(partial(digits, value) for value in ("+1234567", "é", 1, "12x")),
        ],
        "tokens": [
            _made("tokens", "p", str, str),
            _made("tokens", 1, 2, 3),
            *(
                partial(c.tokens("p", token, str), value)
                for value in ("text", 12.5, None, "\ud800")
                for token in (lambda text: text + "-", keyed.token, raising, len)
            ),
        ],
        "Node": [_made("Node", frozenset(), unmet), _made("Node", 1), lambda: setattr(node, "classified", "odd")],
        "masking_dict": [
            *walks["masking_dict"],
            _made("masking_dict", {"a": node}, node, classified=1, shows=0),
            _made("masking_dict", {"a": 1}, node, classified=1, shows=0),
            _cycle,
        ],
        "dropping_dict": [
            *walks["dropping_dict"],
            *walks["listed"],
            _made("dropping_dict", {"a": node}, node, classified=1),
            _made("dropping_dict", {"a": 1}, node, classified=1),
        ],
        "item_list": [
            *walks["item_list"],
            _made("item_list", node, None, classified=True),
            _made("item_list", 1, None, classified=True),
        ],
        "shown": [
            *walks["shown"],
            _made("shown", {}, {}, node, None),
            _made("shown", {"a": 1}, {"a": 1}, node, None, print),
        ],
    }


def _types() -> set[type]:
    """Of the module; those of its masks and walks have no name in it."""
    c, node = compiled(), node_of(SETS[1])
    walks = (walk_of(kind, SETS[1], node) for kind in KINDS)
    made = {type(each) for each in (c.tokens("p", str, str), *walks)}
    return {each for each in (*vars(c).values(), *made) if isinstance(each, type) and each.__module__ == c.__name__}


def test_what_is_told_again_is_held_once() -> None:
    """And what was told before is let go of."""
    for name, told in GIVEN.items():
        held = [*told] * (2 * CALLS)  # one that is let go of too often would be gone, and could not be asked
        before = [sys.getrefcount(each) for each in told]
        for _ in range(CALLS):
            getattr(compiled(), name)(*told)
        after = [sys.getrefcount(each) for each in told]
        assert max(abs(now - then) for now, then in zip(after, before, strict=True)) < CALLS // 2, name
        held.clear()


def test_every_twin_is_looked_at_for_leaks() -> None:
    """A new one has a row below."""
    assert compared() == set(_uses())


@pytest.mark.parametrize("name", sorted(PYTHON))
def test_no_leaks(name: str) -> None:
    """Thousands of calls leave no memory behind, and no reference to what everybody shares; refused ones likewise."""
    shared = (None, True, False, DROPPED, UNMET, REDACTED, as_it_is, unmet, "", b"", TypeError, type(None), *_types())
    uses = _uses()[name]
    times = max(CALLS // len(uses), LEAST)

    def held() -> list[int]:
        gc.collect()
        return [sys.getallocatedblocks(), *(sys.getrefcount(each) for each in shared)]

    def grown() -> int:
        """By how many blocks or references a round leaves more, or fewer, behind than were there."""
        before = held()
        for use in uses:
            for _ in range(times):
                outcome(use)
        return max(abs(after - there) for after, there in zip(held(), before, strict=True))

    grown()  # caches fill
    # Other threads of this process hold things too, for a while; a leak is one for each call, in every round.
    assert min(grown() for _ in range(ROUNDS)) < times // 2
