"""How far one feed relies on the trust statement that its process holds, as that one ages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.errors import StaleTrust
from mesh.staleness import Ruling, fresh_until_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import Keyring
    from mesh.staleness import Staleness

log = logs.get("feed")


class Reliance:
    """The ruling of the moment. A change of it is an alarm, or the end of one, and is said once.

    Args:
        keyring: Whose statement it is.
        on_turn: Called when the ruling has become another one.
        names: Of the feed, for the log.

    Attributes:
        fresh_until_ms: Until then the ruling is DELIVER, and nobody needs to ask.
    """

    __slots__ = ("_keyring", "_names", "_on_turn", "_ruling", "fresh_until_ms")

    def __init__(self, keyring: Keyring, on_turn: Callable[[], None], **names: str | None) -> None:
        self._keyring = keyring
        self._on_turn = on_turn
        self._names = names
        self._ruling = Ruling.DELIVER
        self.fresh_until_ms = 0

    def ask(self, staleness: Staleness, now_ms: int) -> Ruling:
        """What becomes of events now.

        Args:
            staleness: What the tenant wants.
            now_ms: Our clock, Unix milliseconds.
        """
        held = self._keyring.statement
        issued_ms = None if held is None else held.issued_ms
        ruling = staleness.ruling(issued_ms, now_ms)
        self.fresh_until_ms = fresh_until_ms(issued_ms) if issued_ms is not None and ruling is Ruling.DELIVER else 0
        if ruling is not self._ruling:
            self._ruling = ruling
            self._on_turn()
            self._say(ruling, staleness, None if issued_ms is None else (now_ms - issued_ms) // 1000)
        return ruling

    def _say(self, ruling: Ruling, staleness: Staleness, age_s: int | None) -> None:
        facts = {**self._names, "age_s": age_s, "limit_s": staleness.limit_s}
        if ruling is Ruling.DELIVER:
            log.info("trust_fresh_again", **facts)
        elif ruling is Ruling.MARK:
            log.error("trust_stale", code=StaleTrust.code, **facts)
        else:
            log.error("delivery_paused", code=StaleTrust.code, **facts)
