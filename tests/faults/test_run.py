"""The short version of `make faults`: fixed seeds, one server and a cluster, and three bugs that have to be found."""

from __future__ import annotations

import pytest

from tests.faults.run import failures, run
from tests.faults.schedule import Fault, Shape, schedule
from tests.faults.world import READERS, WITHOUT_READERS, Size

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # a run takes half a minute; a busy machine takes its time

SEEDS: dict[Shape, int] = {"single": 5, "cluster": 9}
FAULTS: dict[Shape, int] = {"single": 6, "cluster": 5}
SIZES: dict[Shape, Size] = {
    "single": Size(controls=1),
    "cluster": Size(controls=2),
}
PACE_S = 1.0
SOON_S = 6.0  # what is missing of a run with a planted bug is missing early


@pytest.mark.parametrize("shape", SEEDS)
async def test_nothing_is_lost_or_done_twice(shape: Shape) -> None:
    """Whatever is killed, stopped, cut or filled: every must of a run is 0."""
    faults = schedule(SEEDS[shape], shape, FAULTS[shape], pace_s=PACE_S)
    result = await run(shape, faults, events=1000, per_s=250, size=SIZES[shape])
    assert failures(result) == {}
    assert result["delivered"] == len(READERS) * result["accepted"] >= len(READERS) * 1000


def _fault(kind: str, *, target: int = 0, for_s: float = 0.0) -> Fault:
    return Fault(number=1, kind=kind, target=target, wait_s=0.2, for_s=for_s, chance=0.5)


PLANTED = {
    "answer-before-fsync": ("lost", WITHOUT_READERS, [_fault("agent_kill_away", for_s=6)]),
    "ack-before-handling": (
        "lost",
        Size(controls=1, readers=READERS[:1]),
        [_fault("consumer_kill", target=number) for number in range(6)],
    ),
    "unmasked-on-drain": ("unmasked", WITHOUT_READERS, [_fault("server_away", for_s=4)]),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_a_planted_bug_is_found(name: str) -> None:
    """A harness that finds nothing proves nothing: each bug makes its count rise."""
    count, size, faults = PLANTED[name]
    result = await run("single", faults, events=500, per_s=250, size=size, plant=name, quiet_s=SOON_S)
    assert failures(result).get(count, 0) > 0
