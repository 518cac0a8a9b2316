"""Conditions against Google's C++ CEL on random expressions and dirty events: the interpreter, and the fast form."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from cel_expr_python import cel

from mesh.errors import ExpressionError
from mesh.policy.cel.interpret import Scope, evaluate
from mesh.policy.cel.parser import parse
from mesh.policy.cel.values import CelError, Duration, Timestamp, UInt
from mesh.policy.expressions import Condition, ConditionFailed
from tests.unit.random_conditions import Grammar

ROOTS = frozenset({"event", "data", "principal"})
EXPRESSIONS, EVENTS, SEEDS = 600, 40, 4  # 96,000 evaluations, each by three engines
ERROR = "error"

# --- dirty events ----------------------------------------------------------------------------------------------------

EDGES = (
    2**53 - 1,
    2**53,
    2**53 + 1,
    2.0**53,
    2**63 - 1,
    2**63,
    2.0**63,
    -(2**63),
    -(2.0**63),
    2**64 - 1,
    2.0**64,
    0,
    False,
)
SCALARS: tuple[Any, ...] = (
    *(0, 1, 2, -1, 7, 1000, 1001, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1),
    *(0.0, -0.0, 1.0, 1.5, 2.5, 1e308, 9007199254740992.0, 9223372036854775808.0, float("nan"), float("inf")),
    *(True, False, None, None),
    *("", "a", "DE", "FR", "x", "crm.contact", "é", "1", "true", "1h"),
    *("2024-02-29T12:00:00Z", "1999-12-31T23:59:59.5+01:00"),
)  # fmt: skip


def value(random: Random, depth: int = 2) -> Any:
    """Any JSON value, small, often odd."""
    roll = random.random()
    if depth and roll < 0.12:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    if depth and roll < 0.24:
        return {
            random.choice(("x", "y", "sku", "qty", "a")): value(random, depth - 1) for _ in range(random.randrange(3))
        }
    return random.choice(SCALARS)


def dirty(random: Random) -> dict[str, Any]:
    """The roots of one event: what a producer would send, then some of it missing or of another type."""
    data: dict[str, Any] = {
        "n": random.choice((1, 2, 1000, 1001, 1.5)),
        "m": random.choice((1, 1.0, 7)),
        "s": random.choice(("a", "DE", "crm.contact")),
        "t": random.choice(("FR", "x")),
        "b": random.random() < 0.5,
        "z": None,
        "l": [random.choice(SCALARS) for _ in range(random.randrange(5))],
        "names": [random.choice(("DE", "FR", "a", "é")) for _ in range(random.randrange(4))],
        "items": [{"sku": random.choice(("a", "x")), "qty": random.randrange(4)} for _ in range(random.randrange(4))],
        "o": {"x": random.choice((1, "a")), "y": 2.5},
        "when": "2024-02-29T12:00:00.25Z",
        "a b": "x",
        "edge": random.choice(EDGES),
    }
    for name in list(data):
        roll = random.random()
        if roll < 0.12:
            del data[name]
        elif roll < 0.35:
            data[name] = value(random)
    event = {"type": random.choice(("crm.contact", "hr.person")), "time": "2024-03-01T00:00:00Z", "subject": "a"}
    if random.random() < 0.3:
        del event["subject"]
    bindings = {"event": event, "data": data, "principal": {"team": "crm"}}
    if random.random() < 0.05:
        bindings["data"] = value(random)
    return bindings


# --- broken texts ----------------------------------------------------------------------------------------------------

NOISE = "()[]{}.,?:!=<>&|+-*/% '\"\\`rRbuU01239exX\n\tabn_é/"


def mangled(random: Random, text: str) -> str:
    """*text* with one to three small edits."""
    letters = list(text)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(letters) + 1)
        if random.random() < 0.4:
            del letters[at : at + random.choice((1, 1, 2, 5))]
        else:
            letters.insert(at, random.choice(NOISE))
    return "".join(letters)


# --- the three engines -----------------------------------------------------------------------------------------------


def plain(found: object) -> object:
    """A value so that both engines' results compare by type and content."""
    match found:
        case float():
            return ("double", repr(found).lstrip("-") if found != found else repr(found))  # noqa: PLR0124 - NaN
        case UInt():
            return ("uint", int(found))
        case bool() | None | str():
            return found
        case int():
            return ("int", found) if found < 2**63 else ("uint", found)
        case list():
            return [plain(item) for item in found]
        case dict():
            return {key: plain(item) for key, item in found.items()}
        case Timestamp() | Duration():
            return (type(found).__name__.upper(), found.ns // 1000)
        case _:
            raise TypeError(type(found))


def googles(expression: Any, activation: Any) -> object:
    """The result of Google's CEL, as `plain`."""
    return google_plain(expression.eval(activation))


def google_plain(result: Any) -> object:
    """A result of Google's CEL, as `plain`."""
    kind = result.type().name()
    if kind == "ERROR":
        return ERROR
    if (
        kind == "NULL"
    ):  # not value(): cel-expr-python 0.1.3 gives None away without a reference, and Python aborts later
        return None
    found = result.value()
    if kind.startswith("LIST"):
        return [google_plain(item) for item in found]
    if kind.startswith("MAP"):
        return {key: google_plain(item) for key, item in found.items()}
    if kind == "UINT":
        return ("uint", found)
    return plain(found)


def ours(tree: Any, bindings: dict[str, Any]) -> object:
    """The interpreter's result, as `plain`."""
    try:
        return plain(evaluate(tree, Scope(bindings)))
    except CelError:
        return ERROR


def outcome(evaluate_: Any, bindings: dict[str, Any]) -> bool | str:
    """What a compiled form says: true, false, or the reason it failed."""
    try:
        return bool(evaluate_(bindings))
    except ConditionFailed as failed:
        return failed.reason


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def google() -> Any:
    """An environment of Google's CEL with our roots, of any type."""
    return cel.NewEnv(variables=dict.fromkeys(sorted(ROOTS), cel.Type.DYN))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_conditions_agree_with_google_cel(google: Any, seed: int) -> None:
    """On random conditions and dirty events, Google's CEL, the interpreter and the fast form give one result."""
    random = Random(seed)
    grammar = Grammar(random)
    events = [dirty(random) for _ in range(EVENTS)]
    activations = [google.Activation(event) for event in events]
    seen = {True: 0, False: 0, ERROR: 0}
    fast = 0
    for _ in range(EXPRESSIONS):
        text = grammar.condition(3) if random.random() < 0.85 else grammar.anything(3)
        tree, expression = parse(text, ROOTS), google.compile(text, disable_check=True)
        condition = condition_of(text, tree)
        for event, activation in zip(events, activations, strict=True):
            found = ours(tree, event)
            assert found == googles(expression, activation), (text, event)
            if found in (True, False, ERROR):
                seen[found] += 1
            if condition is not None:
                fast += 1
                expected = outcome(condition.exactly, event)
                assert outcome(condition.evaluate, event) == expected, (text, event)
    assert min(seen.values()) > EXPRESSIONS * EVENTS / 8, "the fuzz no longer reaches all three results"
    assert fast > EXPRESSIONS * EVENTS / 2


@pytest.mark.parametrize("seed", range(100, 100 + SEEDS))
def test_no_text_means_something_else_than_to_google(google: Any, seed: int) -> None:
    """A mangled condition that we take, Google's CEL takes too, and means the same."""
    random = Random(seed)
    grammar = Grammar(random, times=False)
    events = [dirty(random) for _ in range(4)]
    activations = [google.Activation(event) for event in events]
    taken = 0
    for _ in range(EXPRESSIONS):
        text = mangled(random, grammar.condition(2))
        try:
            tree = parse(text, ROOTS)
        except ExpressionError:
            continue
        taken += 1
        expression = google.compile(text, disable_check=True)
        for event, activation in zip(events, activations, strict=True):
            assert ours(tree, event) == googles(expression, activation), (text, event)
    assert taken > EXPRESSIONS / 20


def test_only_useless_conditions_are_refused_for_their_types(google: Any) -> None:
    """What the static check refuses, Google's checker refuses too, bad constants and results that are no bool apart."""
    random = Random(200)
    grammar = Grammar(random)
    refused = 0
    for _ in range(EXPRESSIONS * 4):
        text = f"({grammar.condition(2)}) == true"
        try:
            Condition(text, parse(text, ROOTS))
        except ExpressionError as error:
            if "constant" in error.message or error.got == "null":
                continue  # Google finds a bad constant only when it evaluates, and gives null for any wrapper
            refused += 1
            with pytest.raises(RuntimeError, match="INVALID_ARGUMENT"):
                google.compile(text)
    assert refused


def condition_of(text: str, tree: Any) -> Condition | None:
    """The condition, or None where the static check refuses it."""
    try:
        return Condition(text, tree)
    except ExpressionError:
        return None
