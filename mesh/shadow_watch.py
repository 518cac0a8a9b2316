"""The candidate bundle that agents try beside the one in force, kept current like the bundle itself.

It lies under a key of its own. Nothing about it can change what an agent does: one that does not hold up is refused
loudly and not tried, and no candidate is the usual case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.errors import MeshError
from mesh.jetstream.store import KeyValue
from mesh.policy.candidate import open_candidate
from mesh.policy.compile import Plans
from mesh.watch import POLICY_BUCKET, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection
    from mesh.policy.candidate import Candidate

SHADOW_KEY = "shadow"

log = logs.get("watch")


class Trial:
    """A candidate made ready to decide with.

    Attributes:
        candidate: What was sealed.
        plans: Its bundle's.
    """

    __slots__ = ("candidate", "plans")

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.plans = Plans(candidate.bundle)


class ShadowWatch:
    """Keeps the candidate.

    Args:
        connection: With the right to read the key.
        policy_key: The public key that bundles and candidates are signed with, 32 bytes.
        on_change: Called with the trial, None where there is none (any more), and the code of a refusal, else empty.
        on_look: Called after each look, changed or not.
    """

    def __init__(
        self,
        connection: Connection,
        policy_key: bytes,
        *,
        on_change: Callable[[Trial | None, str], None],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = KeyValue(connection, POLICY_BUCKET)
        self._watch = Watch(connection, self.refresh, name="shadow")
        self._policy_key = policy_key
        self._on_change = on_change
        self._on_look = on_look
        self._seen = 0  # the store's revision of what we hold; 0 for nothing

    async def refresh(self) -> None:
        """Look once.

        Raises:
            MeshError: The store cannot be read; what we hold stays.
        """
        entry = await self._store.get(SHADOW_KEY)
        seen = entry.revision if entry is not None and entry.value else 0
        if entry is not None and seen != self._seen:
            trial, code = self._open(entry.value) if entry.value else (None, "")
            self._seen = seen
            self._on_change(trial, code)
        elif entry is None and self._seen:
            self._seen = 0
            self._on_change(None, "")
        self._on_look()

    def _open(self, value: bytes) -> tuple[Trial | None, str]:
        try:
            trial = Trial(open_candidate(value, self._policy_key))
        except MeshError as error:
            log.error("candidate_refused", code=error.code, error=str(error))
            return None, error.code
        bundle = trial.candidate.bundle
        log.info("candidate_tried", tenant=bundle.tenant, revision=bundle.revision)
        return trial, ""

    async def run(self) -> None:
        """Run until cancelled."""
        await self._watch.run()
