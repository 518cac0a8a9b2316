"""Masking, of whatever event by whatever view: what a view hides is nowhere in what it shows."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.ciphers import decrypt_fields
from mesh.policy.masktable import MaskTable
from mesh.policy.model_masks import STRICTNESS, MaskLine
from tests.unit.policy_world import Keys, event, masking
from tests.unit.random_masks import (
    CLASSES,
    DATAS,
    MASKS,
    OTHERWISE,
    PATHS,
    TAGS,
    Fields,
    Lines,
    actions_at,
    leaves,
    shows,
    strictest,
    tags_at,
)

KEYS = Keys()
CIPHERS = {name: KEYS.cipher(name) for name in ("billing.deterministic", "billing+support.random")}


def masked(data: Any, fields: Fields, mask: Lines, otherwise: str) -> dict[str, Any]:
    """An event with *data* as the view shows it."""
    return masking(fields, mask, otherwise).apply(event(data), KEYS)


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_no_value_survives_any_action_but_clear(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """More of a value than actions leave shows only if every mask on it, by a matcher of its own, is clear."""
    view = masking(fields, mask, otherwise)
    text = json.dumps(view.apply(event(data), KEYS))
    if view.identity:
        return
    for at, value in leaves(data):
        if shows(value, text):
            assert actions_at(tags_at(fields, at), mask, otherwise) == {"clear"}, (at, fields)


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_what_is_clear_through_and_through_shows(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """A scalar under clear shows unless a container above it is one that no path may enter or that is redacted."""
    text = json.dumps(masked(data, fields, mask, otherwise))
    for at, value in leaves(data):
        tags = tags_at(fields, at)
        above = [at[:n] for n in range(1, len(at))]
        if tags and actions_at(tags, mask, otherwise) == {"clear"} and not any(tags_at(fields, node) for node in above):
            assert shows(value, text), (at, fields)


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_masking_never_changes_its_input(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """The original event, deep inside too, is as it was, and the top of the result is not the original's."""
    original = event(data, subject="<the subject>", customerref="<a reference>")
    before = copy.deepcopy(original)
    shown = masking(fields, mask, otherwise).apply(original, KEYS)
    assert original == before
    assert shown is not original
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


def _replaced(value: Any, at: tuple[object, ...], put: Any) -> Any:
    """*value* with the scalar *at* these steps replaced."""
    if not at:
        return put
    inside = copy.copy(value)
    inside[at[0]] = _replaced(value[at[0]], at[1:], put)
    return inside


@given(DATAS, CLASSES, MASKS, OTHERWISE, st.data())
def test_masks_are_independent(data: Any, fields: Fields, mask: Lines, otherwise: str, draw: st.DataObject) -> None:
    """Another value at one place changes nothing at any other."""
    view = masking(fields, mask, otherwise)
    places = [at for at, value in leaves(data) if isinstance(value, str)]
    if not places:
        return
    changed = draw.draw(st.sampled_from(places))
    before = dict(_scalars(view.apply(event(data), KEYS).get("data"), ("data",)))
    other = view.apply(event(_replaced(data, changed[1:], "<another value>")), KEYS).get("data")
    after = dict(_scalars(other, ("data",)))
    assert before.keys() == after.keys()
    differing = [at for at in before if before[at] != after[at]]
    assert len(differing) <= 1
    assert all(at[-1] == changed[-1] or isinstance(changed[-1], int) for at in differing)


def _scalars(value: Any, at: tuple[object, ...]) -> Any:
    """Every scalar, null too, and every empty container, with the steps to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield at, value
    for step, item in list(items):
        yield from _scalars(item, (*at, step))


def _turned(value: Any) -> Any:
    """*value* with the members of every object in another order."""
    if isinstance(value, dict):
        return {name: _turned(item) for name, item in reversed(value.items())}
    return [_turned(item) for item in value] if isinstance(value, list) else value


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_order_does_not_matter(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """Members, classified paths, tags and mask lines in another order give the same, as its readers open it."""
    turned = {path: list(reversed(tags)) for path, tags in reversed(fields.items())}
    one = masked(data, fields, mask, otherwise)
    two = masked(_turned(data), turned, list(reversed(mask)), otherwise)
    assert decrypt_fields(one, CIPHERS, "") == decrypt_fields(two, CIPHERS, "")


@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_opening_shows_no_more_than_was_encrypted(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """Whoever holds every cipher key sees in addition exactly the values whose strictest mask is `encrypt`."""
    view = masking(fields, mask, otherwise)
    sealed = view.apply(event(data), KEYS)
    before, after = (json.dumps(f) for f in (sealed, decrypt_fields(sealed, CIPHERS, "")))
    for at, value in leaves(data):
        if shows(value, after) and not shows(value, before):
            actions = actions_at(tags_at(fields, at), mask, otherwise)
            assert strictest(actions) == STRICTNESS["encrypt"]


@given(DATAS, CLASSES, MASKS, OTHERWISE, st.tuples(PATHS, st.sampled_from(TAGS)))
def test_another_tag_never_shows_more(
    data: Any, fields: Fields, mask: Lines, otherwise: str, added: tuple[str, str]
) -> None:
    """Tags only add up: no path added to a classified place shows a value that place did not show."""
    path, tag = added
    before = json.dumps(masked(data, fields, mask, otherwise))
    after = json.dumps(masked(data, fields | {path: [*fields.get(path, []), tag]}, mask, otherwise))
    for at, value in leaves(data):
        if shows(value, after) and not shows(value, before):
            above = [at[:n] for n in range(1, len(at) + 1)]
            assert not all(tags_at(fields, node) for node in above)  # only what was unclassified can gain


@given(DATAS, CLASSES, MASKS, st.sampled_from(["redact", "drop"]))
def test_unclassified_shows_nowhere_but_under_otherwise_clear(
    data: Any, fields: Fields, mask: Lines, otherwise: str
) -> None:
    """Without `otherwise: clear` a value that no path names never shows."""
    text = json.dumps(masked(data, fields, mask, otherwise))
    for at, value in leaves(data):
        if not tags_at(fields, at):
            assert not shows(value, text)


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=4), MASKS, OTHERWISE)
def test_the_strictest_mask_wins(tags: list[str], mask: Lines, otherwise: str) -> None:
    """Whatever the order of tags and lines, the chosen mask is as strict as the strictest candidate."""
    lines = msgspec.convert(mask, list[MaskLine])
    chosen = MaskTable(lines, otherwise).choose(tags, [])
    other = MaskTable(list(reversed(lines)), otherwise).choose(list(reversed(tags)), [])
    assert set(chosen) == set(other)
    assert {STRICTNESS[action] for action, _ in chosen} == {strictest(actions_at(set(tags), mask, otherwise))}
