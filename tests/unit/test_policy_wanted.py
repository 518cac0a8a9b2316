"""What conditions read of an event's data: without the rest they answer the same."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest

from mesh.errors import ExpressionError
from mesh.policy.expressions import Condition, ConditionFailed, compile_condition
from mesh.policy.wanted import wanted
from mesh.verbatim import Wanted
from tests.unit.random_conditions import Grammar
from tests.unit.test_expressions_fuzz import dirty

ROOTS = frozenset({"event", "data", "principal"})
CONDITIONS, EVENTS, SEEDS = 1500, 12, 4


def condition(text: str) -> Condition:
    """*text*, compiled."""
    return compile_condition(text, roots=ROOTS)


@pytest.mark.parametrize(
    ("texts", "reads"),
    [
        ((), {}),
        (("event.type == 'a' && principal.team == 'crm'",), {}),
        (("event.datacontenttype == 'a' && has(event.dataschema)",), {}),
        (("data.a > 1",), {"a": None}),
        (("data.a > 1", "data.b > 1", "data.a > 2"), {"a": None, "b": None}),
        (("has(data.a.b)",), {"a": {"b": None}}),
        (("data.a.b == 1 && data.a.c == 1",), {"a": {"b": None, "c": None}}),
        (("data.a.b == 1", "size(data.a) > 1"), {"a": None}),
        (("size(data.a) > 1", "data.a.b == 1"), {"a": None}),
        (("event['data'].a == 1 && event['data']['b'] == 1",), {"a": None, "b": None}),
        (("data['a'].b == 1",), {"a": {"b": None}}),
        (("data.items.exists(i, i.sku == 'x')",), {"items": None}),
        (("data.items.exists(i, data.o[i] == 'x')",), {"items": None, "o": None}),
        (("data.items.filter(i, i.a > 1).map(i, i.b) == [data.c.d]",), {"items": None, "c": {"d": None}}),
        (("data.l[0] == 1 && data.o[data.s] == 1",), {"l": None, "o": None, "s": None}),
        (("(data.b ? data.x : data.y).z == 1",), {"b": None, "x": None, "y": None}),
        (("'a' in data.o && !('b' in data.p.q)",), {"o": None, "p": {"q": None}}),
        (("data.o == {'a': data.p.q}",), {"o": None, "p": {"q": None}}),
        (("[data.a, data.b.c][0].d == 1",), {"a": None, "b": {"c": None}}),
        (("dyn(data.a).b == 1",), {"a": None}),
        (("data.a.`b c` == 1 && data.a.d == 1",), {"a": None}),
        (("data.a.b[0].c == 1",), {"a": {"b": None}}),
        *[
            ((text, "data.a == 1"), None)
            for text in (
                "size(data) > 1", "data.exists(k, k == 'a')", "'a' in data", "data == {}", "data[event.type] == 1",
                "data['a b'] == 1", "event == {}", "size(event) > 1", "'data' in event", "event[event.type] == 1",
                "dyn(event).data.a == 1", "event['data'] == 1", "[data][0].a == 1",
                "(event.type == '' ? data : event).a == 1",
                "[data].exists(d, d.a == 1)", "dyn(data).a == 1", "event.exists(k, k == 'id')",
            )
        ],
    ],
)  # fmt: skip
def test_a_condition_says_what_it_reads(texts: tuple[str, ...], reads: Wanted) -> None:
    """Members by name; the whole of what it picks from, and of what it takes as one value."""
    assert wanted([condition(text) for text in texts]) == reads
    assert wanted([condition(text) for text in reversed(texts)]) == reads


def only(value: Any, reads: Wanted) -> Any:
    """*value* with nothing in it but what *reads* names."""
    if reads is None or not isinstance(value, dict):
        return value
    return {name: only(item, reads[name]) for name, item in value.items() if name in reads}


def answer(asked: Condition, bindings: dict[str, Any], *, exactly: bool) -> bool | str:
    """What *asked* says, or how it fails."""
    try:
        return asked.exactly(bindings) if exactly else asked(bindings)
    except ConditionFailed as failed:
        return failed.reason


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_is_not_wanted_makes_no_difference(seed: int) -> None:
    """Any condition, any event: the same answer, the same failure, in the fast form and by the interpreter."""
    random = Random(seed)
    partly = 0
    for _ in range(CONDITIONS):
        text = Grammar(random).condition(3)
        if random.random() < 0.3:
            text = re.sub(r"\bdata(?=[.\[])", "event['data']", text)
        try:
            asked = condition(text)
        except ExpressionError:
            continue
        reads = wanted([asked])
        partly += reads is not None
        for _ in range(EVENTS):
            bindings = dirty(random)
            bindings["event"]["data"] = bindings["data"]
            less = only(bindings["data"], reads)
            fewer = {**bindings, "event": bindings["event"] | {"data": less}, "data": less}
            for exactly in (False, True):
                said = answer(asked, bindings, exactly=exactly)
                assert answer(asked, fewer, exactly=exactly) == said, (text, bindings)
    assert partly > CONDITIONS // 3
