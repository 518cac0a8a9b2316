"""What is said of copies that may not be sent any more: counted, audited one by one, and logged once a second."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from agent import metrics
from mesh import audit, logs
from mesh.subjects import parse_physical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.spool.database import Row
    from agent.spool.record import Copy, RefusedRow
    from mesh.audit_log import AuditLog

FORGOTTEN = "forgotten"  # refused for another reason before, and gone from where it was kept: too many came after it
SAY_S = 1.0  # between lines in the log

log = logs.get("spool")


class Aside:
    """The voice of refused copies.

    Args:
        trail: Where each of them is recorded.
    """

    def __init__(self, trail: AuditLog | None) -> None:
        self._trail = trail
        self._unsaid: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def refused(self, rows: Sequence[Row], reason: str) -> None:
        """Copies may not be sent any more."""
        self._tell([row.copy for row in rows], reason)

    def forgotten(self, rows: Sequence[RefusedRow]) -> None:
        """Refused copies are kept no longer."""
        self._tell([row.refused.copy for row in rows], FORGOTTEN)

    def close(self) -> None:
        """Say what was not said yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._say()

    def _tell(self, copies: Sequence[Copy], reason: str) -> None:
        if not copies:
            return
        metrics.SPOOL_REFUSED.add(len(copies), reason=reason)
        if self._trail is not None:
            for copy in copies:
                place = parse_physical(copy.subject)
                facts = {"event": copy.event_id, "type": place.type, "source": copy.source, "view": place.view}
                self._trail.write(audit.SPOOL_REFUSED, **facts, reason=reason)
        self._unsaid[reason] += len(copies)
        if self._timer is None:
            self._say()
            self._timer = asyncio.get_running_loop().call_later(SAY_S, self._again)

    def _again(self) -> None:
        self._timer = None
        if self._unsaid:
            self._say()
            self._timer = asyncio.get_running_loop().call_later(SAY_S, self._again)

    def _say(self) -> None:
        if self._unsaid:
            log.warning("spool_refused", copies=self._unsaid.total(), reasons=",".join(sorted(self._unsaid)))
            self._unsaid.clear()
