"""The event keys that one process has sealed with: from when each is cut, and what may still be believed of it.

The trust statement says what is cut; it comes with the keyring. Times are the server's, Unix milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from mesh.identity import Keyring, Signer

CUT_MARGIN_MS = 250  # before a cut: our reckoning of the server's clock is off by a round trip, and drifts
KEPT_KEYS = 8  # that copies in flight may still be sealed with; a copy counts for 100 s


class UsedKeys:
    """The keys of one agent, and which of them are cut.

    Args:
        keyring: Whom we believe; has the trust statement.

    Attributes:
        signer: The one in use; None before the first.
        is_cut: Whether the one in use is; another is needed at once.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._used: list[Signer] = []
        self._cut: set[str] = set()
        self.signer: Signer | None = None
        self.is_cut = False

    def add(self, signer: Signer) -> None:
        """From now on this one is in use."""
        self._used = [*self._used, signer][-KEPT_KEYS:]
        self.signer, self.is_cut = signer, signer.kid in self._cut

    def cut(self, now_ms: int) -> tuple[list[tuple[Signer, int]], list[int]]:
        """Cut the keys whose time has come.

        Returns:
            Those keys, each with its cut, and when to look again for the sake of others.
        """
        come: list[tuple[Signer, int]] = []
        ahead: list[int] = []
        for signer in self._used:
            cut_ms = self.cut_ms(signer)
            if cut_ms is None or signer.kid in self._cut:
                continue
            if cut_ms - CUT_MARGIN_MS > now_ms:
                ahead.append(cut_ms - CUT_MARGIN_MS)
                continue
            self._cut.add(signer.kid)
            come.append((signer, cut_ms))
        self.is_cut = self.signer is not None and self.signer.kid in self._cut
        return come, ahead

    def cut_ms(self, signer: Signer) -> int | None:
        """Stream time from which nobody takes what *signer* seals; None where that is not known to end."""
        statement = self._keyring.statement
        if statement is None:
            return None
        named = [ms for kid in (signer.kid, signer.issuer_kid) if (ms := statement.revoked.get(kid)) is not None]
        return min(named, default=None)

    def revoked(self, kids: Collection[str], signed_ms: int) -> bool:
        """Whether what one of *kids* signed then may be refused: the trust statement names it, or its issuer.

        Who issued the key of a process before this one is not known here: any cut since counts for it.
        """
        statement = self._keyring.statement
        if statement is None:
            return False
        issuers = {signer.kid: signer.issuer_kid for signer in self._used}
        named = statement.revoked
        strange = any(kid not in issuers for kid in kids) and any(ms >= signed_ms for ms in named.values())
        return strange or any(kid in named or issuers.get(kid) in named for kid in kids)

    def left_s(self, now_ms: int) -> float:
        """Seconds that the certificate in use is still in force; 0 without one, or with one that is cut."""
        if self.signer is None or self.is_cut:
            return 0.0
        return max(0.0, (self.signer.not_after_ms - now_ms) / 1000)
