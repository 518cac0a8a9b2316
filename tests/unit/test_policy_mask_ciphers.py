"""`encrypt`: who holds the key reads the value again, where it belongs and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.policy.ciphers import CIPHER_KEY_BYTES, cipher_name, decrypt_fields, leads_to
from mesh.policy.mask import Masking
from mesh.policy.masktable import MaskTable
from mesh.policy.model_masks import MaskLine, With
from mesh.policy.paths import ANY_ITEM, Path
from tests.unit.policy_world import Keys, event

KEYS = Keys()
MODES = ["deterministic", "random"]
TENANT = "acme"
SCALARS = st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()


def view(mode: str, *paths: str, teams: tuple[str, ...] = ("billing",), tenant: str = TENANT) -> Masking:
    """A view that encrypts what stands at *paths* for *teams*."""
    params: Any = {"mode": mode, "readers": teams}
    line = MaskLine(tags=("t",), action="encrypt", params=With(**params))
    return Masking([(Path.parse(path), ("t",)) for path in paths], MaskTable([line], "redact"), tenant=tenant)


def keys(mode: str, *, teams: str = "billing") -> dict[str, bytes]:
    """What a reader among *teams* holds."""
    name = f"{teams}.{mode}"
    return {name: KEYS.cipher(name)}


@pytest.mark.parametrize("mode", MODES)
@given(value=SCALARS)
def test_what_was_encrypted_opens_again(mode: str, value: Any) -> None:
    """Every scalar comes back as it was, through JSON, for who holds the key."""
    sealed = json.loads(json.dumps(view(mode, "data.a").apply(event({"a": value}), KEYS)))
    opened = decrypt_fields(sealed, keys(mode), TENANT)["data"]["a"]
    assert (opened, type(opened)) == (value, type(value))
    assert sealed["data"]["a"].startswith("e")


@pytest.mark.parametrize("mode", MODES)
def test_a_string_that_is_no_text_is_redacted(mode: str) -> None:
    """A lone surrogate has no UTF-8: the string cannot be encrypted, and so does not show."""
    assert view(mode, "data.a").apply(event({"a": "x\ud800"}), KEYS)["data"] == {"a": "[REDACTED]"}


@pytest.mark.parametrize("mode", MODES)
def test_places_of_every_kind_open(mode: str) -> None:
    """Attributes, members, items and any depth: each opens where its path leads, and null stays null."""
    paths = ("subject", "data.a", "data.l[*].b", "**.iban", 'data."first name"', "data.n[*]")
    data = {"a": 1, "l": [{"b": "x"}, {"b": None}], "c": {"d": [{"iban": "DE1"}]}, "first name": "Anna", "n": [1, 2]}
    original = event(data, subject="customers/1")
    sealed = view(mode, *paths).apply(original, KEYS)
    assert decrypt_fields(sealed, keys(mode), TENANT) == original
    assert sealed["data"]["l"][1] == {"b": None}
    assert all(value in json.dumps(sealed) for value in ("e-1", "/crm"))
    assert not any(value in json.dumps(sealed) for value in ("customers", "DE1", "Anna"))


def test_deterministic_keeps_equality_of_one_path_alone() -> None:
    """Equal values at one path are equal also from event to event; at another path, type or tenant they are not."""
    one = view("deterministic", "data.a", "data.b")
    first = one.apply(event({"a": "x", "b": "x"}), KEYS)["data"]
    assert one.apply(event({"a": "x"}, id="e-2"), KEYS)["data"]["a"] == first["a"]
    others = [
        one.apply(event({"a": "y"}), KEYS),
        one.apply(event({"a": "x"}, type="crm.contact.updated.v2"), KEYS),
        view("deterministic", "data.a", tenant="other").apply(event({"a": "x"}), KEYS),
        view("deterministic", "data.a", teams=("support",)).apply(event({"a": "x"}), KEYS),
    ]
    assert len({first["a"], first["b"], *(other["data"]["a"] for other in others)}) == 6


def test_random_hides_equality() -> None:
    """Equal values differ inside one event and between events; the same event gives the same text."""
    one = view("random", "data[*]")
    first = one.apply(event(["x", "x", "x"]), KEYS)["data"]
    others = [
        one.apply(event(["x", "x", "x"], id="e-2"), KEYS)["data"],
        one.apply(event(["x", "x", "x"], source="/crm/eu"), KEYS)["data"],
        one.apply(event(["x", "x", "x"], type="crm.contact.updated.v2"), KEYS)["data"],
    ]
    assert len({token for data in (first, *others) for token in data}) == 12
    assert one.apply(event(["x", "x", "x"]), KEYS)["data"] == first


def test_a_nonce_never_meets_two_texts() -> None:
    """Whatever of value, place, type and event differs, the nonce differs with it."""
    one = view("random", "data.a", "data.b")
    nonces = [
        token.rpartition(".")[2][:16]
        for fields in (
            event({"a": "x", "b": "x"}),
            event({"a": "y", "b": "x"}),
            event({"b": "x", "a": "x"}),
            event({"a": "x", "b": "x"}, type="crm.contact.updated.v2"),
            event({"a": "x", "b": "x"}, id="e-1", source="/crm/e"),
        )
        for token in one.apply(fields, KEYS)["data"].values()
    ]
    assert len(set(nonces)) == 9, "only `b`, second in the same event with the same value, is the same text again"


def test_a_changed_audience_is_another_key() -> None:
    """A key's name says who may read and how: the order of teams does not count, everything else does."""
    both = With(mode="random", readers=("support", "billing"))
    assert cipher_name(both) == "billing+support.random"
    assert cipher_name(With(mode="random", readers=("billing", "support", "billing"))) == "billing+support.random"
    assert cipher_name(With(mode="deterministic", readers=("billing",))) == "billing.deterministic"
    many = [cipher_name(With(mode="random", readers=tuple(f"team-{n}" for n in range(m)))) for m in (40, 41)]
    assert many[0] != many[1]
    assert all(name.startswith("_") and name.endswith(".random") and len(name) < 60 for name in many)


def test_a_view_names_the_keys_it_needs() -> None:
    """A masking and its table name their ciphers; without the key nothing is shown at all."""
    masking = view("random", "data.a", teams=("support", "billing"))
    assert masking.ciphers == {"billing+support.random"}
    with pytest.raises(ConfigError, match=r"no usable key for the cipher `billing\+support.random`"):
        masking.apply(event({"b": 1}), Keys("other"))
    assert view("random").ciphers == frozenset()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "change",
    ["other-key", "other-mode", "other-type", "other-tenant", "other-place", "deeper", "bit", "cut", "path", "key-id"],
)
def test_a_value_out_of_its_place_does_not_open(mode: str, change: str) -> None:
    """With another key, type, tenant or place, or altered anywhere, a value stays the text that it is."""
    sealed = view(mode, "data.a").apply(event({"a": "anna"}), KEYS)
    ours, tenant = keys(mode), TENANT
    token = sealed["data"]["a"]
    begins, path, text = token.split(".")
    place: Any = {"a": token}
    match change:
        case "other-key":
            ours = {f"billing.{mode}": bytes(CIPHER_KEY_BYTES)}
        case "other-mode":
            ours = {f"billing.{MODES[1 - MODES.index(mode)]}": ours[f"billing.{mode}"]}
        case "other-type":
            sealed["type"] = "crm.contact.updated.v2"
        case "other-tenant":
            tenant = "other"
        case "other-place":
            place = {"b": token}
        case "deeper":
            place = {"a": {"a": token}}
        case "bit":
            place = {"a": f"{begins}.{path}.{'B' if text[0] == 'A' else 'A'}{text[1:]}"}
        case "cut":
            place = {"a": token[:-4]}
        case "path":
            place = {"a": f"{begins}.ZGF0YS4q.{text}"}  # data.*, which leads here as well
        case "key-id":
            place = {"a": f"e0000.{path}.{text}"}
    sealed["data"] = place
    assert decrypt_fields(sealed, ours, tenant) == sealed


@pytest.mark.parametrize(
    "text",
    [
        "e", "e5c1f..", "east wind", "e{id}.!!.AAAAAAAAAAAAAAAAAAAAAAAA", "e{id}.ZGF0.AAAAAAAAAAAAAAAAAAAAAAAAA",
        "e{id}.LmRhdGE.AAAAAAAAAAAAAAAAAAAAAAAA", "e{id}.gICA.AAAAAAAAAAAAAAAAAAAAAAAA",
        "e{id}.ZGF0YS5h.AAAAAAAAAAAAAAAAAAAAAA", "e{id}.ZGF0YS5h.AAAAAAAAAAAAAAAAAAAAAAA",
        "e{id}.ZGF0YS5h.AAAAAAAAAAAAAAAAAAAAAAAAA",
        "e{id}.ZGF0YS5h.AAAAAAAAAAAAAAAAAAAAAA\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_text_that_only_looks_encrypted_stays(mode: str, text: str) -> None:
    """Whatever else stands in an event is handed back as it is, and nothing raises."""
    made = view(mode, "data.a").apply(event({"a": "x"}), KEYS)["data"]["a"]
    fields = event({"a": text.replace("{id}", made[1:5])})
    assert decrypt_fields(fields, keys(mode), TENANT) == fields


def test_two_keys_of_one_id_are_both_tried() -> None:
    """Key ids are short: where two keys share one, the right one still opens."""
    mine = keys("random")
    seen = {made: name for name in (f"t{n}" for n in range(400)) if (made := view_id(name))}
    assert len(seen) > 390
    both = {"billing.deterministic": mine["billing.random"], **mine}
    sealed = view("random", "data.a").apply(event({"a": "x"}), KEYS)
    assert decrypt_fields(sealed, both, TENANT)["data"] == {"a": "x"}


def view_id(team: str) -> str:
    """The key id that values for *team* carry."""
    made: str = view("random", "data.a", teams=(team,)).apply(event({"a": "x"}), KEYS)["data"]["a"]
    return made[1:5]


def test_opening_changes_nothing_else() -> None:
    """Without keys the copy equals the original, and the original is never changed."""
    sealed = view("random", "data.l[*]").apply(event({"l": ["x"]}), KEYS)
    text = json.dumps(sealed)
    assert decrypt_fields(sealed, {}, TENANT) == sealed
    assert decrypt_fields(sealed, keys("random"), TENANT)["data"] == {"l": ["x"]}
    assert json.dumps(sealed) == text


def test_of_several_paths_one_is_bound_whatever_their_order() -> None:
    """A value that several paths lead to opens, and its text does not depend on the order of documents."""
    paths = ("data.iban", "**.iban", "data.*")
    sealed = [view("deterministic", *p).apply(event({"iban": "x"}), KEYS) for p in (paths, tuple(reversed(paths)))]
    assert sealed[0] == sealed[1]
    assert decrypt_fields(sealed[0], keys("deterministic"), TENANT)["data"] == {"iban": "x"}


def test_an_attribute_that_would_be_too_long_is_left_out() -> None:
    """No attribute has more than 1,024 characters, also encrypted; in data there is no such limit."""
    sealed = view("random", "subject", "data.a").apply(event({"a": "x" * 1024}, subject="x" * 1024), KEYS)
    assert "subject" not in sealed
    assert decrypt_fields(sealed, keys("random"), TENANT)["data"] == {"a": "x" * 1024}
    assert "subject" in view("random", "subject").apply(event(subject="x" * 512), KEYS)


@pytest.mark.parametrize(
    ("path", "place", "leads"),
    [
        ("data.a", ("data", "a"), True),
        ("data.a", ("data",), False),
        ("data.a", ("data", "a", "b"), False),
        ("data.a", ("c", "data", "a"), False),
        ("data.*", ("data", "a"), True),
        ("data.*", ("data", ANY_ITEM), False),
        ("data[*]", ("data", ANY_ITEM), True),
        ("data[*]", ("data", "a"), False),
        ("**.a", ("a",), True),
        ("**.a", ("data", ANY_ITEM, "a"), True),
        ("**.a[*]", ("data", "a"), False),
        ("data.**", ("data",), False),
    ],
)
def test_a_path_leads_to_its_scalars(path: str, place: tuple[object, ...], *, leads: bool) -> None:
    """A path leads to the places of scalars that the masking takes it to; `.**` is never encrypted."""
    assert leads_to(Path.parse(path), place) is leads
