"""What tools are told of a masking: its words, its answer for a place, and its trace of an event."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.check_masks import check_mask
from mesh.policy.masktable import CLEAR, DROP, REDACT, MaskTable, describe, mask_of
from mesh.policy.model_masks import MaskLine
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER
from mesh.policy.traces import PathTrace
from tests.unit.policy_world import Keys, event, masking
from tests.unit.random_masks import (
    ACTIONS,
    CLASSES,
    DATAS,
    MASKS,
    OTHERWISE,
    Fields,
    Lines,
    actions_at,
    leaves,
    shows,
    strictest,
    tags_at,
)

KEYS = Keys()


def mask(action: str, **params: Any) -> MaskLine:
    """A mask line of the tag `t`."""
    return msgspec.convert({"tags": ["t"], "as": action, "with": params}, MaskLine)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (mask("clear"), "clear"),
        (mask("drop"), "drop"),
        (mask("redact"), "redact"),
        (mask("partial", style="email"), "partial email"),
        (mask("partial", first=2), "partial first 2, last 0"),
        (mask("pseudonym", domain="customer-contact"), "pseudonym customer-contact"),
        (mask("pseudonym", domain="d", bits=256), "pseudonym d (blake2b, 256 bits)"),
        (mask("pseudonym", domain="d", algorithm="hmac-sha256"), "pseudonym d (hmac-sha256, 128 bits)"),
        (mask("encrypt", mode="random", **{"for": ["support", "billing"]}), "encrypt random for billing, support"),
        (mask("generalize", date="month"), "generalize date month"),
        (mask("generalize", number=[0.5, 1234567]), "generalize number 0.5, 1234567"),
        (mask("generalize", geo=2), "generalize geo 2"),
        (mask("truncate-ip"), "truncate-ip v4 24, v6 48"),
        (mask("truncate-ip", v4=0, v6=32), "truncate-ip v4 0, v6 32"),
    ],
)
def test_a_mask_is_told_in_the_words_of_a_policy(line: MaskLine, words: str) -> None:
    """Every action is described with what tells it from others of its kind."""
    assert describe(mask_of(line)) == words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mask("encrypt", mode="random", **{"for": ["a", "b"]}), mask("encrypt", mode="random", **{"for": ["b", "a"]})),
        (mask("truncate-ip"), mask("truncate-ip", v4=24)),
        (mask("partial", first=2), mask("partial", first=2, last=0)),
    ],
)
def test_two_ways_to_write_a_mask_do_not_contradict(one: MaskLine, other: MaskLine) -> None:
    """Masks that do the same are the same, however they are written."""
    assert mask_of(one) == mask_of(other)
    assert len(MaskTable([one, other], "redact").choose(["t"], [])) == 1


# --- the checks of one line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "where", "message"),
    [
        (mask("encrypt", **{"for": ["a"]}), (), "`encrypt` needs a mode"),
        (mask("encrypt", mode="random"), (), "`encrypt` needs the teams that may open it"),
        (mask("encrypt", mode="random", **{"for": ["a", "a"]}), ("with", "for", 1), "`a` is named twice"),
        (mask("generalize"), (), "`generalize` needs one of date, number and geo, and has 0"),
        (mask("generalize", geo=1, date="day"), (), "`generalize` needs one of date, number and geo, and has 2"),
        (mask("generalize", number=[1, 1]), ("with", "number"), "the edges of the buckets do not rise"),
        (mask("generalize", number=[2, 1]), ("with", "number"), "the edges of the buckets do not rise"),
        (mask("generalize", number=[1, float("inf")]), ("with", "number"), "the edges of the buckets do not rise"),
        (mask("truncate-ip", mode="random"), ("with",), "`truncate-ip` takes no `mode`"),
        (mask("redact", **{"for": ["a"]}), ("with",), "`redact` takes no `for`"),
        (mask("partial"), (), "`partial` needs a style, or first and last"),
        (mask("partial", style="pan", first=0), (), "`partial` needs a style, or first and last"),
        (mask("pseudonym"), (), "`pseudonym` needs a domain"),
    ],
)
def test_a_mask_line_lacks_nothing(line: MaskLine, where: tuple[object, ...], message: str) -> None:
    """Each parameter that is missing, stray or without sense is noted once, where it stands, with a fix."""
    found: list[tuple[Any, str]] = []
    check_mask(line, (), lambda at, text, fix: found.append((at, text)) if fix else None)
    assert found == [(where, message)]


@pytest.mark.parametrize("tag", ["secret", "secret.token", "secret.*"])
def test_no_part_of_a_secret_shows(tag: str) -> None:
    """A partial of a secret is refused where a line names it, and redacts where a pattern reaches it."""
    found: list[str] = []
    line = msgspec.convert({"tags": [tag], "as": "partial", "with": {"last": 4}}, MaskLine)
    check_mask(line, (), lambda _at, text, _fix: found.append(text))
    assert found == [f"`partial` shows a part of what is tagged `{tag}`"]
    line = msgspec.convert({"tags": ["**"], "as": "partial", "with": {"last": 4}}, MaskLine)
    table = MaskTable([line], "clear")
    assert table.candidates(tag) == (REDACT,)
    assert describe(table.candidates("secrets")[0]) == "partial first 0, last 4"


def test_every_action_of_a_line_that_is_fine_is_silent() -> None:
    """Complete lines are noted for nothing."""
    for line in msgspec.convert([{"tags": ["t"], **action} for action in ACTIONS], list[MaskLine]):
        check_mask(line, (), lambda _at, text, _fix: pytest.fail(text))


# --- at a place ------------------------------------------------------------------------------------------------------

FIELDS: Fields = {
    "data.name": ["t0"], "data.items[*].sku": ["public"], "**.iban": ["t1"], "data.open.**": ["public"],
    "data.shut.**": ["t0"], "subject": ["public"], "data.*.code": ["public"], "data.pair": ["t0", "public"],
}  # fmt: skip
LINES: Lines = [
    {"tags": ["public"], "as": "clear"},
    {"tags": ["t0"], "as": "partial", "with": {"first": 1}},
    {"tags": ["t1"], "as": "drop"},
]


@pytest.mark.parametrize(
    ("steps", "tags", "chosen"),
    [
        (("data", "name"), ("t0",), "partial first 1, last 0"),
        (("data", "name", "part"), ("t0",), "redact"),
        (("data", "items", ANY_ITEM, "sku"), ("public",), "clear"),
        (("data", "items", "sku"), (), "redact"),
        (("data", "items", ANY_ITEM, "iban"), ("t1",), "drop"),
        (("data", "open"), ("public",), "clear"),
        (("data", "open", "deep", ANY_ITEM), ("public",), "clear"),
        (("data", "open", "iban"), ("t1", "public"), "drop"),
        (("data", "shut", "deep"), ("t0",), "redact"),
        (("data", "other", "code"), ("public",), "clear"),
        (("data", ANY_MEMBER, "code"), ("public",), "clear"),
        (("data", "pair"), ("t0", "public"), "partial first 1, last 0"),
        (("subject",), ("public",), "clear"),
        (("customerref",), (), "redact"),
        (("partitionkey",), (), "clear"),
        (("id",), (), "clear"),
        (("data",), (), "redact"),
        (("data_base64",), (), "redact"),
    ],
)
def test_a_place_tells_what_a_scalar_there_gets(steps: tuple[object, ...], tags: Any, chosen: str) -> None:
    """The tags that meet at a place and the mask that wins, as the masking itself would decide."""
    judged = masking(FIELDS, LINES, "redact").at(steps)
    assert (judged.tags, describe(judged.chosen)) == (tags, chosen)
    assert judged.chosen in judged.masks or judged.container == judged.chosen


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_what_a_place_tells_is_what_happens(data: Any, fields: Fields, lines: Lines, otherwise: str) -> None:
    """A scalar shows only where `at` says clear; and `at` is as strict as the strictest mask there or above."""
    view = masking(fields, lines, otherwise)
    if view.identity:
        return
    text = json.dumps(view.apply(event(data), KEYS))
    for place, value in leaves(data):
        judged = view.at([ANY_ITEM if isinstance(step, int) else step for step in place])
        if shows(value, text):
            assert judged.chosen == CLEAR
        if judged.container is None or judged.chosen != judged.container:
            actions = actions_at(tags_at(fields, place), lines, otherwise)
            assert strictest({judged.chosen[0]}) >= strictest(actions)


# --- the trace of an event -------------------------------------------------------------------------------------------


def test_a_trace_names_the_paths_of_the_policy() -> None:
    """One entry for each different answer, in the event's order; no name or value that only the event has."""
    data = {
        "name": "Anna", "other": 1, "items": [{"sku": 1, "colour": 2}, {"sku": 2}], "more": {"deep": [1]},
        "open": {"iban": "x", "any": 1}, "shut": {"any": 1}, "x": {"code": 1},
    }  # fmt: skip
    partial, hidden = "partial first 1, last 0", ("redact",)
    assert masking(FIELDS, LINES, "redact").trace(event(data, subject="s", partitionkey="p")) == [
        PathTrace("subject", ("public",), ("clear",), "clear"),
        PathTrace("data.name", ("t0",), (partial,), partial),
        PathTrace("unclassified", (), hidden, "redact"),
        PathTrace("data.items[*].sku", ("public",), ("clear",), "clear"),
        PathTrace("**.iban + data.open.**", ("t1", "public"), ("drop", "clear"), "drop"),
        PathTrace("data.open.**", ("public",), ("clear",), "clear"),
        PathTrace("data.shut.**", ("t0",), ("redact",), "redact"),
        PathTrace("data.*.code", ("public",), ("clear",), "clear"),
    ]


def test_a_trace_tells_what_becomes_of_a_container() -> None:
    """A container in the place of a scalar is traced as redacted, or as dropped where its mask drops."""
    fields = {"data.a": ["t0"], "data.iban": ["t1"], "data.c": ["public"]}
    data = {"a": {"x": 1}, "iban": [1], "c": [1]}
    chosen = [entry.chosen for entry in masking(fields, LINES, "redact").trace(event(data))]
    assert chosen == ["redact", "drop", "redact"]
    empty = masking(fields, LINES, "redact").trace(event({"e": {}}))
    assert empty == [PathTrace("unclassified", (), ("redact",), "redact")]
    clear = masking(fields, [], "clear")
    assert [entry.chosen for entry in clear.trace(event(data))] == ["clear", "clear", "clear"]


def test_binary_data_is_traced_as_data() -> None:
    """`data_base64` is the field `data` in a trace too."""
    view = masking({"data": ["t1"]}, LINES, "redact")
    assert view.trace({"data_base64": "AAEC"}) == [PathTrace("data", ("t1",), ("drop",), "drop")]
    assert view.at(("data_base64",)).chosen == DROP


@given(DATAS, CLASSES, MASKS, OTHERWISE, st.booleans())
def test_a_trace_never_holds_a_value(
    data: Any,
    fields: Fields,
    lines: Lines,
    otherwise: str,
    again: bool,
) -> None:
    """Traces of any event by any view are of the policy alone, and need no keys."""
    view = masking(fields, lines, otherwise)
    if again:
        view.apply(event(data), KEYS)
    entries = view.trace(event(data))
    text = json.dumps(msgspec.to_builtins(entries))
    assert not any(shows(value, text) for _, value in leaves(data))
    assert len(entries) == len(set(entries))
    assert {path for entry in entries for path in entry.path.split(" + ")} <= {*fields, "unclassified"}
