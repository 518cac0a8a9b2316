"""The event keys that an agent has used: when each is cut, and what of theirs may be refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from agent.used_keys import CUT_MARGIN_MS, KEPT_KEYS, UsedKeys

if TYPE_CHECKING:
    from mesh.identity import Keyring, Signer

CUT_MS = 1_000_000


def signer(kid: str, issuer: str = "ca") -> Signer:
    """A key, as far as it is looked at."""
    return cast("Signer", SimpleNamespace(kid=kid, issuer_kid=issuer, not_after_ms=2 * CUT_MS))


def keys(*used: Signer, **revoked: int) -> UsedKeys:
    """Keys in the order of their use, under a trust statement."""
    found = UsedKeys(cast("Keyring", SimpleNamespace(statement=SimpleNamespace(revoked=revoked))))
    for each in used:
        found.add(each)
    return found


def test_a_key_is_cut_once_and_a_margin_early() -> None:
    """Before that the time to look again is known; after it there is nothing more to do."""
    one = signer("one")
    used = keys(one, one=CUT_MS)
    due_ms = CUT_MS - CUT_MARGIN_MS
    assert (used.cut(due_ms - 1), used.is_cut) == (([], [due_ms]), False)
    assert (used.cut(due_ms), used.is_cut) == (([(one, CUT_MS)], []), True)
    assert used.cut(due_ms) == ([], [])
    assert used.left_s(due_ms) == 0.0


def test_the_next_key_is_not_cut_with_the_one_before() -> None:
    """It is in use from then on, whatever became of the others."""
    used = keys(signer("one"), one=CUT_MS)
    used.cut(CUT_MS)
    used.add(signer("two"))
    assert (used.is_cut, used.left_s(CUT_MS)) == (False, CUT_MS / 1000)


@pytest.mark.parametrize(
    ("revoked", "cut_ms"),
    [
        ({}, None),
        ({"other": 5}, None),
        ({"one": 5}, 5),
        ({"ca": 7}, 7),
        ({"one": 5, "ca": 7}, 5),
        ({"one": 9, "ca": 7}, 7),
    ],
)
def test_the_earlier_cut_counts(revoked: dict[str, int], cut_ms: int | None) -> None:
    """That of the key, or that of whoever issued it."""
    assert keys(**revoked).cut_ms(signer("one")) == cut_ms


@pytest.mark.parametrize(
    ("kid", "signed_ms", "revoked", "refused"),
    [
        ("one", 1, {}, False),
        ("one", 9, {"one": 5}, True),
        ("one", 9, {"ca": 5}, True),
        ("one", 1, {"other": 5}, False),
        ("former", 1, {"other": 5}, True),
        ("former", 9, {"other": 5}, False),
    ],
)
def test_what_a_strange_key_signed_may_be_refused_since_any_cut(
    kid: str, signed_ms: int, revoked: dict[str, int], *, refused: bool
) -> None:
    """Of a key of ours the issuer is known; of one of a process before this nothing is."""
    assert keys(signer("one"), **revoked).revoked([kid], signed_ms) is refused


def test_only_the_last_keys_are_remembered() -> None:
    """What an older one sealed is settled long since."""
    used = keys(*(signer(f"k{n}") for n in range(KEPT_KEYS + 1)), k0=1, k1=1)
    assert [each.kid for each, _ in used.cut(CUT_MS)[0]] == ["k1"]
