"""Who should have which slot: evenly, alike for all, with few moves."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.slots import share_out

PLACES = [(stream, f"t--s--s{slot:02d}") for stream in ("EV_local_crm", "EV_local_erp") for slot in range(16)]
MEMBERS = ["m1", "m2", "m3", "m4", "m5"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_shares_are_even(count: int) -> None:
    """No two replicas differ by more than one slot."""
    loads = Counter(share_out(MEMBERS[:count], PLACES).values())
    assert sum(loads.values()) == len(PLACES)
    assert max(loads.values()) - min(loads.values()) <= 1


def test_all_reckon_alike() -> None:
    """Whatever order a replica knows them in."""
    assert share_out(MEMBERS, PLACES) == share_out(MEMBERS[::-1], PLACES[::-1])


def test_more_replicas_than_slots() -> None:
    """Some have none."""
    assert len(set(share_out(MEMBERS, PLACES[:2]).values())) == 2
    assert share_out(MEMBERS, []) == {}


def test_one_that_leaves_moves_little_else() -> None:
    """Its own slots have to move, and about as many more at most."""
    before, after = share_out(MEMBERS, PLACES), share_out(MEMBERS[:-1], PLACES)
    moved = sum(before[place] != after[place] for place in PLACES)
    assert moved <= 2.5 * sum(member == MEMBERS[-1] for member in before.values())
