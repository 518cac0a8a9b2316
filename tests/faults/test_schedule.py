"""A seed is a schedule."""

from __future__ import annotations

import pytest

from tests.faults.acting import ACTS
from tests.faults.schedule import KINDS, SHAPES, Shape, schedule


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_faults_again_and_another_gives_others(shape: Shape) -> None:
    """Replayable, and different."""
    assert schedule(1, shape, 50) == schedule(1, shape, 50)
    assert schedule(1, shape, 50) != schedule(2, shape, 50)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_comes_before_one_comes_twice(shape: Shape) -> None:
    """A run of fifty leaves no kind out."""
    kinds = {kind.name for kind in KINDS if kind.weight(shape)}
    faults = schedule(7, shape, 50)
    assert {fault.kind for fault in faults[: len(kinds)]} == kinds
    assert [fault.number for fault in faults] == list(range(1, 51))


def test_a_run_may_be_of_some_kinds_only() -> None:
    """To find out what one does, on its own."""
    assert {fault.kind for fault in schedule(1, "single", 9, only=["cut", "slow"])} == {"cut", "slow"}


def test_every_kind_is_done_by_something() -> None:
    """And nothing is there that no schedule knows."""
    assert ACTS.keys() == {kind.name for kind in KINDS}
