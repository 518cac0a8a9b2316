"""Which faults come when: derived from a seed and the shape of the mesh alone, so any run can be had again. Pure.

A fault has a target by its number among those of its kind; `acting.py` says what each kind does.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Shape = Literal["single", "cluster"]
SHAPES: tuple[Shape, ...] = ("single", "cluster")
TARGETS = 60  # numbers of targets to choose from: divisible by 2 to 6, so that each target is as likely


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        weight: How often it comes, against the others; by shape, 0 for never.
        low_s, high_s: Between which it lasts.
    """

    name: str
    single: int
    cluster: int
    low_s: float = 0.0
    high_s: float = 0.0

    def weight(self, shape: Shape) -> int:
        """How often it comes in a mesh of that shape."""
        return self.single if shape == "single" else self.cluster


KINDS = (
    Kind("agent_kill", 6, 4, 0.0, 2.0),  # SIGKILL, and started again after so long
    Kind("agent_stop", 2, 2, 0.5, 4.0),  # SIGSTOP, SIGCONT
    Kind("agent_term", 2, 1, 0.0, 1.0),  # SIGTERM
    Kind("consumer_kill", 5, 4, 0.0, 2.0),
    Kind("consumer_stop", 3, 2, 0.5, 8.0),
    Kind("consumer_term", 2, 1, 0.0, 1.0),
    Kind("control_kill", 2, 2, 0.0, 3.0),
    Kind("control_stop", 1, 1, 0.5, 12.0),
    Kind("control_term", 1, 1, 0.0, 1.0),
    Kind("server_kill", 4, 4, 0.0, 1.0),
    Kind("server_stop", 2, 2, 0.5, 4.0),
    Kind("server_term", 2, 1, 0.0, 0.5),
    Kind("server_away", 3, 0, 4.0, 12.0),  # killed, and back only then: the spool's time
    Kind("agent_kill_away", 3, 1, 3.0, 6.0),  # the agent killed while no server answers
    Kind("leader_kill", 0, 5, 0.0, 2.0),
    Kind("leader_moved", 0, 2),
    Kind("rolling_restart", 0, 1),
    Kind("quorum_lost", 0, 2, 3.0, 8.0),  # two of three servers killed
    Kind("cut", 4, 3),  # every connection of one process
    Kind("refused", 2, 1, 0.5, 4.0),  # cut, and none is let through for so long
    Kind("silent", 2, 2, 0.5, 4.0),  # connected, and nothing comes through
    Kind("slow", 2, 1, 1.0, 5.0),  # 20 to 300 ms more in each direction
    Kind("stream_full", 2, 1, 1.0, 6.0),  # an event stream takes nothing more
    Kind("clock_start", 2, 1, 2.0, 5.0),  # an agent starts with a clock that is minutes off, then again
    Kind("clock_drift", 2, 1, 2.0, 6.0),  # the clock of a running agent is set by up to 15 s
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: begins *wait_s* after the one before it began."""

    number: int
    kind: str
    target: int
    wait_s: float
    for_s: float
    chance: float  # 0 to 1, for what else the kind has to choose

    def __str__(self) -> str:
        return f"{self.number:3d} +{self.wait_s:4.1f} s  {self.kind:<16} {self.target:2d}  {self.for_s:4.1f} s"


def schedule(
    seed: int, shape: Shape, runs: int, *, pace_s: float = 4.0, only: Collection[str] = ()
) -> tuple[Fault, ...]:
    """*runs* faults, about *pace_s* seconds from one to the next; every kind comes before one comes twice.

    Args:
        seed: The same gives the same.
        shape: Of the mesh.
        runs: How many.
        pace_s: Seconds, on average.
        only: Names of kinds; all of that shape, where there are none.
    """
    chance = random.Random(f"{seed} {shape}")
    kinds = [kind for kind in KINDS if (kind.name in only if only else kind.weight(shape))]
    weights = [kind.weight(shape) or 1 for kind in kinds]
    first = chance.sample(kinds, len(kinds))
    chosen = [*first, *chance.choices(kinds, weights, k=max(0, runs - len(first)))][:runs]
    return tuple(
        Fault(
            number=number,
            kind=kind.name,
            target=chance.randrange(TARGETS),
            wait_s=round(chance.uniform(0.2, 2 * pace_s), 2),
            for_s=round(chance.uniform(kind.low_s, kind.high_s), 2),
            chance=round(chance.random(), 4),
        )
        for number, kind in enumerate(chosen, 1)
    )
