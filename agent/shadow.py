"""A candidate bundle tried on this agent's events, beside the one in force. Whatever it does, nothing else changes.

An event is compared after its copies are on their way (or its refusal is certain), so a candidate delays no copy, and
comparing may take a tenth of the agent's time: what does not fit is skipped, and counted. A candidate that fails on an
event is logged once; the event has long been decided.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from mesh import logs
from mesh.policy.shadow import Shadow
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.policy.compile import Plans
    from mesh.shadow_watch import Trial

DISAGREED = counter(
    "mesh.policy.shadow", "{event}", "by kind: the candidate decides otherwise; see `mesh policy shadow report`"
)

SHARE = 0.1  # of the agent's time; an event takes 30 to 300 us, so the whole of 300 to 3,000 events/s
BURST_S = 0.25  # of it that may be taken at once

log = logs.get("agent")


class Budget:
    """Seconds of our own processor time that may be spent: some at once, then a share of what passes."""

    def __init__(self, share: float = SHARE, burst_s: float = BURST_S) -> None:
        self._share = share
        self._burst_s = self._left_s = burst_s
        self._at_s = time.monotonic()

    @property
    def left(self) -> bool:
        """Whether there is any."""
        now_s = time.monotonic()
        self._left_s = min(self._burst_s, self._left_s + self._share * (now_s - self._at_s))
        self._at_s = now_s
        return self._left_s > 0

    def spend(self, taken_s: float) -> None:
        """It took so many seconds."""
        self._left_s -= taken_s


class ShadowRun:
    """The trial of one agent.

    Args:
        agent: Its name.

    Attributes:
        on_news: Called after a look at the store that found our report changed since it was last asked for.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._active: Plans | None = None
        self._trial: Trial | None = None
        self._shadow: Shadow | None = None
        self._refused = ""
        self._failed = self._skipped = 0
        self._budget = Budget()
        self._told: tuple[object, ...] = ()
        self.on_news: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        """Whether events are compared: ask before handing one over."""
        return self._shadow is not None

    def in_force(self, plans: Plans) -> None:
        """Compare with *plans* from now on; counting begins anew."""
        self._active = plans
        self._begin()

    def adopt(self, trial: Trial | None, refused: str = "") -> None:
        """Try *trial* from now on; None ends it. *refused* is the code of the error that kept one out."""
        self._trial, self._refused = trial, refused
        self._begin()

    def looked(self) -> None:
        """The store was looked at: let the report be sent where it has changed."""
        if self._state() != self._told:
            self.on_news()

    def compare(self, fields: Mapping[str, Any], now_ms: int) -> None:
        """Compare one event if it is one of the sample; never raises.

        Args:
            fields: As accepted; read, never changed.
            now_ms: Unix milliseconds, when it was decided.
        """
        shadow = self._shadow
        if shadow is None:
            return
        try:
            if not shadow.chosen(fields["id"]):
                return
            if not self._budget.left:
                self._skipped += 1
                return
            begun_s = time.thread_time()
            for kind in {found.kind for found in shadow.compare(fields, now_ms=now_ms)}:
                DISAGREED.at(kind=kind).value += 1
            self._budget.spend(time.thread_time() - begun_s)
        except Exception as error:  # a candidate may not harm
            self._failed += 1
            if self._failed == 1:
                log.exception("shadow_failed", error)  # noqa: PLE1205, TRY401 - ours takes the error

    def report(self) -> dict[str, Any] | None:
        """What was found so far, for the agent's report; None where there is no candidate."""
        self._told = self._state()
        if self._refused:
            return {"refused": self._refused}
        if self._trial is None or self._shadow is None:
            return None
        candidate = self._trial.candidate
        facts = {
            "key": candidate.key,
            "revision": candidate.bundle.revision,
            "digest": candidate.bundle.digest,
            "sample": candidate.head.sample,
            "failed": self._failed,
            "skipped": self._skipped,
        }
        tally: dict[str, Any] = msgspec.to_builtins(self._shadow.tally())
        return facts | tally

    def _state(self) -> tuple[object, ...]:
        shadow = self._shadow
        return (shadow, self._refused, self._failed, self._skipped, None if shadow is None else shadow.compared)

    def _begin(self) -> None:
        self._shadow, self._failed, self._skipped = None, 0, 0
        active, trial = self._active, self._trial
        if active is None or trial is None:
            return
        if trial.candidate.bundle.revision <= active.bundle.revision:
            self._refused = ""
            return  # it was applied, or another one was: the trial is over
        try:
            self._shadow = Shadow(active, trial.plans, self._agent, sample=trial.candidate.head.sample)
        except Exception as error:
            log.exception("shadow_failed", error)  # noqa: PLE1205, TRY401 - ours takes the error
            self._refused = "shadow-failed"
