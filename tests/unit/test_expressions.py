"""Conditions: their results, what is refused and where, what they read, their bounds, and cel-spec's own tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ExpressionError
from mesh.policy.cel.check import Types
from mesh.policy.cel.generate import generate
from mesh.policy.cel.interpret import COST_LIMIT, Scope, evaluate
from mesh.policy.cel.parser import parse
from mesh.policy.cel.values import CelError, UInt, kind_of
from mesh.policy.expressions import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_NODES,
    Condition,
    ConditionFailed,
    compile_condition,
)

TABLES = Path(__file__).parent.parent / "tables"
ROWS = json.loads((TABLES / "cel_rows.json").read_text("utf-8"))
CONFORMANCE = json.loads((TABLES / "cel_conformance.json").read_text("utf-8"))
ROOTS = frozenset({"event", "data", "principal"})


def compiled(text: str) -> Condition:
    """The condition, with all roots."""
    return compile_condition(text, roots=ROOTS)


def outcome(function: Any, bindings: Any) -> bool | str:
    """What a condition says of an event: true, false, or the reason it failed."""
    try:
        found = function(bindings)
    except ConditionFailed as failed:
        return failed.reason
    assert found.__class__ is bool
    return bool(found)


@pytest.mark.parametrize(("text", "expected"), ROWS["results"])
def test_condition_has_its_cel_result(text: str, expected: bool | str) -> None:
    """A condition is true, false or failed with a reason, alike in the fast form and in the interpreter."""
    condition = compiled(text)
    assert outcome(condition, ROWS["event"]) == expected
    assert outcome(condition.exactly, ROWS["event"]) == expected


@pytest.mark.parametrize("text", ROWS["fast"])
def test_fast_form_needs_no_interpreter(text: str) -> None:
    """What policies are made of is decided without the interpreter, and the same with it."""
    tree = parse(text, ROOTS)

    def never(_bindings: Any) -> bool:
        pytest.fail("the interpreter was asked")

    assert generate(tree, Types(tree), never)(ROWS["event"]) is True
    assert compiled(text).exactly(ROWS["event"]) is True


@pytest.mark.parametrize(("text", "column", "message"), ROWS["refused"])
def test_refusal_names_column_and_fix(text: str, column: int, message: str) -> None:
    """What is no condition of the subset is refused when the policy loads, with the column and what to do."""
    with pytest.raises(ExpressionError) as refused:
        compiled(text)
    assert message in refused.value.message
    assert refused.value.details["column"] == column
    assert refused.value.expected
    assert refused.value.got
    assert refused.value.next


@pytest.mark.parametrize(("text", "fields", "unguarded"), ROWS["reads"])
def test_condition_says_what_it_reads(text: str, fields: list[str], unguarded: list[str]) -> None:
    """`fields` are the paths read, `unguarded` those that an event can lack without a `has()` saying so."""
    condition = compiled(text)
    assert sorted(condition.fields) == sorted(fields)
    assert sorted(condition.unguarded) == sorted(unguarded)


def test_principal_is_unknown_to_rows() -> None:
    """A row filter cannot read the publisher, and the error says where it is known."""
    with pytest.raises(ExpressionError, match="there is no name principal") as refused:
        compile_condition("principal.team == 'crm'", roots=frozenset({"event", "data"}))
    assert "publish rules" in refused.value.next


def test_trace_shows_every_part_without_values() -> None:
    """A trace lists the whole and each part that is a condition, with true, false or the reason it failed."""
    text = "data.amount > 1000 && !(data.country == 'FR') && (has(data.x) ? data.x > 1 : data.nope == 1)"
    assert compiled(text).trace(ROWS["event"]) == [
        (text, "no-such-key"),
        ("data.amount > 1000", True),
        ("!(data.country == 'FR')", True),
        ("data.country == 'FR'", False),
        ("has(data.x) ? data.x > 1 : data.nope == 1", "no-such-key"),
        ("has(data.x)", False),
        ("data.x > 1", "no-such-key"),
        ("data.nope == 1", "no-such-key"),
    ]


def test_failure_carries_no_value() -> None:
    """A failed condition names its reason and nothing of the event."""
    with pytest.raises(ConditionFailed) as failed:
        compiled("data.secret > 5")({"data": {"secret": "4929-1234"}})
    assert failed.value.as_dict() == {
        **failed.value.as_dict(),
        "code": "condition-failed",
        "reason": "no-such-overload",
    }
    assert "4929" not in str(failed.value.as_dict())
    assert failed.value.__suppress_context__


def test_missing_root_is_a_failure() -> None:
    """An event without data fails what reads it, unless the rest decides."""
    assert outcome(compiled("data.a == 1 && data.b == 1"), {"event": {}}) == "unbound-root"
    assert outcome(compiled("data.a == 1 || event.type == 'x' || data.b"), {"event": {"type": "x"}}) is True


def test_condition_leaves_the_event_alone() -> None:
    """Evaluating never changes what it is given."""
    before = json.dumps(ROWS["event"])
    for text, _ in ROWS["results"]:
        outcome(compiled(text), ROWS["event"])
    assert json.dumps(ROWS["event"]) == before


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_too_long_a_condition_is_refused() -> None:
    """A condition has at most 1,000 characters."""
    fitting = "data.flag" + " " * (MAX_CHARACTERS - 9)
    assert compiled(fitting)(ROWS["event"]) is True
    with pytest.raises(ExpressionError, match="1001 characters"):
        compiled(fitting + " ")


def test_too_many_parts_are_refused() -> None:
    """A condition has at most 200 operators, names and constants."""
    fitting = f"1 in [{', '.join(['1'] * (MAX_NODES - 3))}]"
    assert compiled(fitting)({}) is True
    with pytest.raises(ExpressionError, match="more than 200 parts"):
        compiled(fitting.replace("]", ", 1]"))


NESTS = [
    ("(", "true", ")"),
    ("!(", "data.flag", ")"),
    ("!(data.flag && ", "data.flag", ")"),
    ("data.flag || (data.flag && ", "data.flag", ")"),
    ("data.nope || (true ? ", "data.flag", " : data.flag)"),
    ("data[", "'flag'", "]"),
    ("dyn(", "data.flag", ")"),
    ("[", "data.flag", "][0]"),
    ("{'a': ", "data.flag", "}.a"),
    ("1 + (", "1", ")"),
    ("-(", "data.amount", ")"),
    ("data.amount > 1 == (", "true", ")"),
    ("data.amount < (", "1", ")"),
    ("data.amount in [", "1", "]"),
    ("", "data", ".a"),
    ("", "data.items", ".filter(i, i.qty > 1)"),
    ("", "data.items", ".map(i, i.qty > 1 && i.flag, i)"),
    ("", "data.flag", " == data.flag"),
    ("", "data.tags", " + data.tags"),
]


@pytest.mark.parametrize(("opening", "middle", "closing"), NESTS)
def test_nesting_is_bounded_before_python_is(opening: str, middle: str, closing: str) -> None:
    """However deep a condition nests, it either compiles, and both forms agree, or is refused as too deep."""
    refused = 0
    for depth in range(1, MAX_DEPTH + 20):
        text = f"{opening * depth}{middle}{closing * depth} == true"
        try:
            tree = parse(text, ROOTS)
            condition = Condition(text, tree)
        except ExpressionError as error:
            refused += "nests deeper" in error.message or "more than" in error.message
            continue
        assert not refused, "a deeper one was taken"
        assert outcome(condition, ROWS["event"]) == outcome(condition.exactly, ROWS["event"])
    assert refused or closing.startswith(".map")


def test_event_that_costs_too_much_fails_the_condition() -> None:
    """What an event may make a condition cost is bounded, and || does not absorb passing the bound."""
    condition = compiled("data.a.all(x, data.b.exists_one == 1 || x in data.b) || true")
    numbers = list(range(1000))
    event = {"data": {"a": numbers, "b": {"exists_one": 2}}}
    assert outcome(condition, event) is True
    quadratic = compiled("data.a.all(x, x in data.b) || true")
    assert outcome(quadratic, {"data": {"a": numbers, "b": [-1, *numbers]}}) == "too-costly"
    assert (
        outcome(compiled("data.a == data.b"), {"data": {"a": [0] * COST_LIMIT, "b": [0] * COST_LIMIT}}) == "too-costly"
    )


@pytest.mark.parametrize(
    "text",
    [
        "data.a.exists(x, x == -1)",
        "data.a.all(x, x >= 0 && x + 1 > 0)",
        "data.a.exists(x, data.text.contains('b') || data.text.contains('c') || data.text.contains('d'))",
        "data.a.filter(x, x in [1, 2, 3]).map(x, x + 1).exists(y, y == -1)",
        "data.a.all(x, !(x in data.b))",
        "data.a.exists(x, (data.text + 'b').size() == -1)",
        "data.a.exists(x, data.long.contains('b'))",
        "data.a.exists(x, (data.long + 'b').size() == -1)",
        "data.a.exists(x, (data.b + data.b).size() == -1)",
    ],
)
def test_fast_form_is_never_more_generous(text: str) -> None:
    """Whatever the fast form answers, the interpreter can afford as well: at every length both say the same."""
    condition = compiled(text)
    results = set()
    limit = condition.evaluate.__globals__["elements"].__closure__[0].cell_contents
    for length in (1, limit // 8, limit - 1, limit, limit + 1, 2 * limit, COST_LIMIT):
        event = {"data": {"a": [7] * length, "b": [-1] * 32, "text": "a" * 4096, "long": "a" * 262_144}}
        result = outcome(condition, event)
        assert result == outcome(condition.exactly, event), length
        results.add(result)
    assert "too-costly" in results
    assert len(results) == 2


def test_generated_code_reaches_no_builtins() -> None:
    """Names and strings of a condition stay data: none of them can reach Python."""
    event = {"data": {"__class__": "x", "__builtins__": 1, "a'] or stop() or x['": True, "stop": 2}}
    assert compiled("data.__class__ == 'x' && data.__builtins__ == 1 && data.stop == 2")(event) is True
    assert compiled("data[\"a'] or stop() or x['\"]")(event) is True
    assert outcome(compiled("data.`__class__`.__mro__ == 1"), event) == "no-such-overload"
    namespace = compiled("data.a == 1").evaluate.__globals__
    assert namespace["__builtins__"] == {}


# --- cel-spec --------------------------------------------------------------------------------------------------------


def untyped(typed: list[Any]) -> Any:
    """A value of the conformance table."""
    kind, content = typed
    match kind:
        case "list":
            return [untyped(item) for item in content]
        case "map":
            return {key: untyped(item) for key, item in content}
        case "int":
            return int(content)
        case "uint":
            return UInt(content)
        case "double":
            return float(content)
        case _:
            return content


def same(one: Any, other: Any) -> bool:
    """Equal in type and content; NaN is NaN."""
    if kind_of(one) != kind_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("row", CONFORMANCE["inside"], ids=lambda row: row["name"])
def test_cel_spec_conformance(row: dict[str, Any]) -> None:
    """Every row of cel-spec's simple tests that is inside the subset has the result that the row names."""
    bindings = {name: untyped(value) for name, value in row.get("bindings", {}).items()}
    tree = parse(row["expr"], frozenset(bindings))
    if row["expect"] == "error":
        with pytest.raises(CelError):
            evaluate(tree, Scope(bindings))
    else:
        assert same(evaluate(tree, Scope(bindings)), untyped(row["expect"]))
    try:
        Types(tree)
    except ExpressionError:
        return  # refused when the policy loads: no bool, or types that never fit
    condition = Condition(row["expr"], tree)
    assert outcome(condition, bindings) == outcome(condition.exactly, bindings)


def test_conformance_table_is_whole() -> None:
    """All 2,344 rows of the suites are accounted for: inside, or outside with a reason."""
    assert len(CONFORMANCE["inside"]) == 833
    assert sum(entry["rows"] for entry in CONFORMANCE["outside"].values()) == 2344 - 833
