"""No promise is without a test, and what the README says of them is so."""

from __future__ import annotations

import pytest

from tests.faults import table


@pytest.mark.parametrize("promise", table.PROMISES, ids=lambda promise: promise.fault)
def test_every_promise_has_tests(promise: table.Promise) -> None:
    """What a row names is there."""
    assert table.named(promise)
    assert [test for test in table.named(promise) if not table.is_there(*test)] == []


def test_the_readme_has_the_table() -> None:
    """`python -m tests.faults.table` wrote it."""
    assert table.written() in (table.HERE / "README.md").read_text()
