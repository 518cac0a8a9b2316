"""How far the clock that stamps events is from ours: cuts lie in stream time, and that clock is the server's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mesh import logs
from mesh.control.reconcile import now_ms

if TYPE_CHECKING:
    from mesh.jetstream.store import KeyValue

ALARM_MS = 1_000  # as far as the default cut lies ahead: a server that is further off would cut off the honest
MAX_OFFSET_MS = 60_000  # a broker is not trusted: by its stamps alone it moves a cut no further

log = logs.get("control")


class _Put(NamedTuple):
    key: str
    revision: int
    before_ms: int
    after_ms: int


class StreamClock:
    """Measures by what it puts: the server stamps each value, between our sending it and its answer.

    Args:
        store: Where it puts.
        tenant: Named in the log.
    """

    def __init__(self, store: KeyValue, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self._last: _Put | None = None
        self._off_ms = 0

    @property
    def offset_ms(self) -> int:
        """What to add to our time to get the server's, `MAX_OFFSET_MS` at most; 0 before the first `measure`."""
        return max(-MAX_OFFSET_MS, min(self._off_ms, MAX_OFFSET_MS))

    async def put(self, key: str, value: bytes) -> None:
        """Store *value*, for `measure` to look at.

        Raises:
            RequestFailed, Unavailable: See `KeyValue.put`.
        """
        self._last, before_ms = None, now_ms()
        revision = await self._store.put(key, value)
        self._last = _Put(key, revision, before_ms, now_ms())

    async def measure(self) -> None:
        """Read the stamp of what was put last. One that lies within the time of the put shows no difference.

        Raises:
            RequestFailed, Unavailable: The store refused or does not answer; what was measured before stays.
        """
        last = self._last
        entry = None if last is None else await self._store.get(last.key)
        if last is None or entry is None or entry.revision != last.revision or not entry.at_ms:
            return  # a replica that lags, or somebody put again
        before, stamp = self._off_ms, entry.at_ms
        self._off_ms = min(stamp - last.before_ms, 0) + max(stamp - last.after_ms, 0)
        if abs(self._off_ms) > ALARM_MS >= abs(before):
            log.error("server_clock_off", tenant=self._tenant, offset_ms=self._off_ms, followed_ms=self.offset_ms)
