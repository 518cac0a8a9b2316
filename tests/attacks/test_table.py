"""Nothing is left out: every row of both tables has a test, and every test says who tries what, and what stops him."""

from __future__ import annotations

import pytest

from tests.attacks import table
from tests.attacks.mutate import unmutated

SAID = ("Holds:", "Tries:", "Stopped:")
WITHOUT = {"test_bundle_attacks.py", "test_table.py"}  # one table of attacks of its own; and this


@pytest.mark.parametrize(("source", "name", "pairs"), list(table.rows()))
def test_every_row_has_tests(source: str, name: str, pairs: list[tuple[str, str]]) -> None:
    """What a row names is there."""
    assert pairs
    assert [pair for pair in pairs if pair not in table.tests()] == []


def test_every_test_has_a_row() -> None:
    """No attack is in no table."""
    named = {pair for _, _, pairs in table.rows() for pair in pairs}
    assert sorted(pair for pair in table.tests() if pair not in named and pair[0] != "test_table.py") == []


def test_every_test_says_who_tries_what() -> None:
    """Each docstring has the attacker's means, the act, and what stops it."""
    told = {pair: text for pair, text in table.tests().items() if pair[0] not in WITHOUT}
    assert len(told) >= 40
    assert [pair for pair, text in told.items() if not all(word in text.split() for word in SAID)] == []


def test_the_readme_has_the_table() -> None:
    """`python -m tests.attacks.table` wrote it."""
    assert table.written() in (table.HERE / "README.md").read_text()


def test_every_grant_has_a_mutant() -> None:
    """`make mutate-grants` widens every pattern that the product makes."""
    assert unmutated() == []
