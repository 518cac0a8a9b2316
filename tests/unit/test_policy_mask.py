"""Masking: what a view hides is nowhere in what it shows, and what it was given is never changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.errors import BadPattern, ConfigError
from mesh.policy.actions import key_id, pseudonym
from mesh.policy.mask import Masking
from mesh.policy.model_masks import STRICTNESS, With
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, MAX_PATH_CHARS, MAX_STEPS, Path
from tests.conftest import ROOT
from tests.unit.policy_world import Keys, event, masking

ROWS = json.loads((ROOT / "tests/tables/policy_masks.json").read_text())
KEYS = Keys()


def shown(data: Any, fields: dict[str, list[str]], mask: list[dict[str, Any]], otherwise: str) -> Any:
    """The data of an event as a view shows it; an event without data gives the string `absent`."""
    return masking(fields, mask, otherwise).apply(event(data), KEYS).get("data", "absent")


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_view_shows_what_its_row_says(row: dict[str, Any]) -> None:
    """Classification, mask lines and `otherwise` together make exactly this of the data."""
    assert shown(row["data"], row["fields"], row["mask"], row["otherwise"]) == row["shown"]


def test_actions_are_ordered_by_strictness() -> None:
    """The order of the actions is the documented one."""
    assert sorted(STRICTNESS, key=lambda a: (STRICTNESS[a], a)) == [
        "clear", "encrypt", "pseudonym", "partial", "generalize", "truncate-ip", "redact", "drop",
    ]  # fmt: skip
    assert STRICTNESS["generalize"] == STRICTNESS["truncate-ip"]


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps", "deep", "subtree"),
    [
        ("data", ("data",), False, False),
        ("data.contact.e-mail_1+", ("data", "contact", "e-mail_1+"), False, False),
        ("data.items[*].sku", ("data", "items", ANY_ITEM, "sku"), False, False),
        ("data[*][*]", ("data", ANY_ITEM, ANY_ITEM), False, False),
        ("data.*[*]", ("data", ANY_MEMBER, ANY_ITEM), False, False),
        ("**.iban", ("iban",), True, False),
        ("**.a.**", ("a",), True, True),
        ("data.**", ("data",), False, True),
        ('data."a.b"."c\\"d".e', ("data", "a.b", 'c"d', "e"), False, False),
        ('"x y".**', ("x y",), False, True),
    ],
)
def test_paths_read(text: str, steps: tuple[object, ...], *, deep: bool, subtree: bool) -> None:
    """A path reads to its steps and its two ends, and remembers how it was written."""
    path = Path.parse(text)
    assert (path.steps, path.deep, path.subtree, str(path)) == (steps, deep, subtree, text)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "data.", ".data", "data..a", "**", "data.**.a", "**.**", "data[0]", "data[*]a", "[*].a", "data.a b",
        "data.ä", 'data."a', 'data."a"b', "data.a[", "data. a", 'data."\\q"',
        "a" * (MAX_PATH_CHARS + 1), ".".join("a" * (MAX_STEPS + 1)),
    ],
)  # fmt: skip
def test_paths_outside_the_grammar_are_refused(text: str) -> None:
    """What is no path is an error, never a path that matches nothing."""
    with pytest.raises(BadPattern):
        Path.parse(text)


# --- attributes ------------------------------------------------------------------------------------------------------


def test_attributes_are_alike_in_every_view() -> None:
    """The attributes that the journey needs show in the strictest view as they are, and partitionkey is left alone."""
    fields = {name: f"v-{name}" for name in ATTRIBUTES_NEVER_MASKED} | {"partitionkey": "k"}
    assert masking({"**.a": ["t"]}, [], "drop").apply(fields, KEYS) == fields


@pytest.mark.parametrize(
    ("mask", "value", "expected"),
    [
        ([{"tags": ["t"], "as": "clear"}], "a/1", "a/1"),
        ([{"tags": ["t"], "as": "drop"}], "a/1", None),
        ([{"tags": ["t"], "as": "redact"}], "a/1", None),
        ([{"tags": ["t"], "as": "partial", "with": {"first": 1}}], "a/1", "a***"),
        ([{"tags": ["t"], "as": "partial", "with": {"first": 5}}], "a/1", None),
        ([{"tags": ["t"], "as": "pseudonym", "with": {"domain": "d"}}], 7, pseudonym(With(domain="d"), KEYS)(7)),
        ([{"tags": ["t"], "as": "redact"}], 7, None),
        ([], "a/1", None),
    ],
)
@pytest.mark.parametrize("name", ["subject", "customerref"])
def test_subject_and_extensions_are_fields(
    name: str, mask: list[dict[str, Any]], value: object, expected: object
) -> None:
    """`subject` and extensions are masked under their own name, and left out where dropped or redacted."""
    view = masking({name: ["t"]}, mask, "redact")
    assert view.apply(event(**{name: value}), KEYS).get(name) == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [("clear", {"data_base64": "AAEC"}), ("drop", {}), ("redact", {"data": "[REDACTED]"})],
)
def test_binary_data_is_one_field(action: str, expected: dict[str, str]) -> None:
    """`data_base64` shows whole or not at all, and what is hidden is no longer called base64."""
    fields = {"id": "1", "data_base64": "AAEC"}
    masked = masking({"data": ["t"]}, [{"tags": ["t"], "as": action}], "redact").apply(fields, KEYS)
    assert masked == {"id": "1"} | expected


def test_partial_of_binary_data_shows_nothing() -> None:
    """The characters of base64 are the data's own bits: no part of them is shown."""
    view = masking({"data": ["t"]}, [{"tags": ["t"], "as": "partial", "with": {"first": 4}}], "redact")
    assert view.apply({"data_base64": "AAECAwQFBgc="}, KEYS) == {"data": "[REDACTED]"}


def test_all_clear_is_the_identity() -> None:
    """A view in which every mask is clear shows the event whole, containers where scalars were classified included."""
    view = masking({"data.a": ["t"]}, [{"tags": ["t"], "as": "clear"}], "clear")
    assert view.identity
    fields = event({"a": {"b": 1}}, subject="s")
    masked = view.apply(fields, KEYS)
    assert masked == fields
    assert masked is not fields


# --- pseudonyms ------------------------------------------------------------------------------------------------------


def token(value: object, domain: str = "d", **params: Any) -> Any:
    """The pseudonym of *value*."""
    return pseudonym(With(domain=domain, **params), KEYS)(value)


def test_a_token_names_its_key_and_hides_its_value() -> None:
    """A token is `p`, four characters of key id, `_`, and 128 bits in unpadded base64url."""
    made = token("anna@example.com")
    assert made[:6] == f"p{key_id(KEYS.domain('d'))}_"
    assert len(made) == 6 + 22
    assert token("anna@example.com") == made
    assert token("anna@example.org") != made


def test_tokens_join_only_inside_a_domain() -> None:
    """Equal values have equal tokens in one domain, and unrelated ones in another."""
    assert token("x", "one")[6:] != token("x", "two")[6:]


def test_numbers_and_booleans_are_masked_by_their_json_text() -> None:
    """A number has the token of its JSON text; null stays null."""
    assert [token(v) for v in (7, -1.5, True, None)] == [token("7"), token("-1.5"), token("true"), None]


@pytest.mark.parametrize(("bits", "characters"), [(64, 11), (128, 22), (136, 23), (144, 24), (256, 43)])
@pytest.mark.parametrize("algorithm", ["blake2b", "hmac-sha256"])
def test_a_token_is_as_long_as_its_bits(bits: int, characters: int, algorithm: Any) -> None:
    """Every length gives unpadded base64url of exactly its bits."""
    made = token("x", bits=bits, algorithm=algorithm).partition("_")[2]
    assert len(made) == characters
    assert "=" not in made


def test_the_algorithms_differ() -> None:
    """HMAC-SHA256 and BLAKE2b give different tokens under one key."""
    assert token("x", algorithm="hmac-sha256") != token("x")


def test_a_lone_surrogate_is_redacted() -> None:
    """A string that has no UTF-8 cannot be read, and so does not show."""
    assert token("\ud800") == "[REDACTED]"


@pytest.mark.parametrize("keys", [Keys("other"), type("Short", (), {"domain": lambda _self, _name: b"short"})()])
def test_a_missing_key_stops_the_view(keys: Any) -> None:
    """Without the domain's key nothing is shown at all: no other mask steps in."""
    view = masking({"data.a": ["t"]}, [{"tags": ["t"], "as": "pseudonym", "with": {"domain": "d"}}], "redact")
    assert view.domains == {"d"}
    with pytest.raises(ConfigError, match="no usable key for the pseudonym domain `d`"):
        view.apply(event({"b": 1}), keys)


def test_no_keys_are_keys_of_nobody() -> None:
    """A caller that has no keys at all is shown no more than the view shows, before it was bound and after."""
    view = masking({"data.a": ["t"]}, [{"tags": ["t"], "as": "redact"}], "redact")
    nothing: Any = None
    for _ in range(2):
        assert view.apply(event({"a": "x"}), nothing)["data"]["a"] == "[REDACTED]"
        assert view.look is None
        assert view.splice(b'{"id":"1"}', b"", None, {}, nothing) is None
    view.apply(event({"a": "x"}), KEYS)
    assert view.look is not None


def test_other_keys_give_other_tokens() -> None:
    """A view follows the keys it is handed, also when they change."""

    class Rotated(Keys):
        def domain(self, name: str) -> bytes:
            return super().domain(name + "2")

    view = masking({"data.a": ["t"]}, [{"tags": ["t"], "as": "pseudonym", "with": {"domain": "d"}}], "redact")
    rotated = Rotated()
    first, second = (view.apply(event({"a": "x"}), k)["data"]["a"] for k in (KEYS, rotated))
    assert first != second
    assert first == view.apply(event({"a": "x"}), KEYS)["data"]["a"]


# --- bounds ----------------------------------------------------------------------------------------------------------


def _winding(turns: str) -> Any:
    """An object that nests by the names in *turns*, with something classified at its end."""
    data: Any = {"b": "secret"}
    for name in reversed(turns):
        data = {name: data}
    return data


def test_a_hostile_event_cannot_grow_the_automaton_without_bound() -> None:
    """Paths that remember many steps and an event made to visit all their states: bounded, and nothing more shows."""
    fields = {f"**.a{'.*' * n}.b": ["t"] for n in range(1, 10)}
    free, view = (masking(fields, [{"tags": ["t"], "as": "drop"}], "clear") for _ in range(2))
    assert view._max_nodes > 4000
    view._max_nodes = 40
    every = {f"x{n}": _winding(f"{n:09b}".replace("0", "y").replace("1", "a")) for n in range(512)}
    bounded, whole = (str(v.apply(event({"a": every}), KEYS)) for v in (view, free))
    assert bounded.count("secret") <= whole.count("secret") < 512
    assert len(free._nodes) > 500
    assert len(view._nodes) <= 2 * 40 + 3
    assert view.apply(event({"y": 1}), KEYS)["data"] == {"y": 1}
    assert len(view._nodes) <= 10, "the next event starts afresh"


def test_many_classified_members_are_quick_to_prepare() -> None:
    """A thousand classified members of one object cost a thousand steps, not a million."""
    fields = {f"data.f{n}": ["public"] for n in range(3000)}
    view = masking(fields, [{"tags": ["public"], "as": "clear"}], "drop")
    data = {f"f{n}": n for n in range(3001)}
    assert view.apply(event(data), KEYS)["data"] == {f"f{n}": n for n in range(3000)}


# --- odd ones -----------------------------------------------------------------------------------------------------


def test_a_contradiction_that_slipped_through_redacts() -> None:
    """Two masks of equal rank cannot be loaded; met all the same, they redact."""
    mask = [
        {"tags": ["x"], "as": "partial", "with": {"first": 3}},
        {"tags": ["y"], "as": "partial", "with": {"last": 3}},
    ]
    assert shown({"a": "abcdefgh", "b": "abcdefgh"}, {"data.a": ["x", "y"], "data.b": ["x"]}, mask, "redact") == {
        "a": "[REDACTED]",
        "b": "abc***",
    }


@pytest.mark.parametrize("otherwise", ["redact", "drop"])
def test_a_value_that_is_no_json_shows_nothing(otherwise: str) -> None:
    """What a decoder could not have made (here a tuple) is not passed on, whatever is in it."""
    fields = {"data.**": ["public"], "data.a.b": ["t"], "data.l[*].b": ["t"]}
    view = masking(fields, [{"tags": ["public"], "as": "clear"}], otherwise)
    odd = ({"b": "secret"},)
    assert view.apply(event({"a": {"c": odd}, "l": [odd]}), KEYS)["data"] == {"a": {"c": None}, "l": [None]}


def test_the_maskings_of_two_views_do_not_mix() -> None:
    """One event through two views gives each its own copy."""
    fields = {"data.a": ["t"], "data.b": ["public"]}
    one = masking(fields, [{"tags": ["t"], "as": "drop"}, {"tags": ["public"], "as": "clear"}], "redact")
    two = masking(fields, [{"tags": ["t"], "as": "clear"}, {"tags": ["public"], "as": "drop"}], "redact")
    source = event({"a": "x", "b": "y"})
    assert one.apply(source, KEYS)["data"] == {"b": "y"}
    assert two.apply(source, KEYS)["data"] == {"a": "x"}
    assert isinstance(one, Masking)
