"""Gets an agent its event key, and the next one in time: at half its life, and at once when it or its issuer is named.

The old key signs until the next one is in hand. What the control plane refuses is asked for again, ever more seldom,
and at once after a connect or news of trust.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from agent import metrics
from mesh import logs
from mesh.errors import BadCertificate, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.enrolment import Enroller
    from agent.used_keys import UsedKeys
    from mesh.identity import Signer
    from mesh.jetstream.connection import Connection

RENEW_AT = 0.5  # of a certificate's life
JITTER = 0.1  # of that: agents that started together do not renew together
RENEW_GAP_S = 30.0  # between two renewals by age, whatever a clock says; a key that is named is renewed at once
ASK_AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts to enrol while there is no key to go on with
RENEW_AGAIN_S = (1.0, 5.0, 15.0, 60.0)  # ... while there is one
MAX_WAIT_S = 120.0  # that a control plane may ask us to wait
LOOK_S = 30.0  # a clock may be set, and a machine may sleep

log = logs.get("agent")


class Renewal:
    """Enrols one agent whenever a key is due.

    Args:
        source: Gives keys.
        connection: The agent's.
        used: The keys so far.
        now_ms: The server's time as well as we know it, Unix milliseconds.
        take: Gets each new key, before the next is asked for.

    Attributes:
        problem: Why the last attempt gave no key; None where it gave one.
    """

    def __init__(
        self,
        source: Enroller,
        connection: Connection,
        used: UsedKeys,
        *,
        now_ms: Callable[[], int],
        take: Callable[[Signer], None],
    ) -> None:
        self._source = source
        self._connection = connection
        self._used = used
        self._now_ms = now_ms
        self._take = take
        self._renew_ms = 0
        self._renewed_at = 0.0
        self._woken = asyncio.Event()
        self.problem: MeshError | None = None

    def wake(self) -> None:
        """Look now whether a key is due: there is a connect, or news of trust."""
        self._woken.set()

    async def run(self) -> None:
        """Get a key whenever one is due, until cancelled."""
        failures = 0
        while True:
            await self._due()
            self._woken.clear()
            try:
                signer = await self._source.enrol(self._connection)
                if self._used.cut_ms(signer) is not None:
                    raise BadCertificate("the certificate we were given is revoked already", got=signer.kid)
            except MeshError as error:
                pause = self._failed(error, failures)
                failures += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
            else:
                failures = 0
                self._enrolled(signer)

    async def _due(self) -> None:
        """Return when there is a connection to ask over, and a reason to."""
        while True:
            self._woken.clear()
            now_ms = self._now_ms()
            if self._connection.connected and self._needs_key(now_ms):
                return
            pause = LOOK_S if self._used.signer is None else max(self._renew_ms - now_ms, 50) / 1000
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LOOK_S)):
                    await self._woken.wait()

    def _needs_key(self, now_ms: int) -> bool:
        signer = self._used.signer
        if signer is None or self._used.cut_ms(signer) is not None:
            return True
        return now_ms >= self._renew_ms and time.monotonic() - self._renewed_at >= RENEW_GAP_S

    def _enrolled(self, signer: Signer) -> None:
        self._renewed_at = time.monotonic()
        metrics.ENROLMENTS.add(1, code="ok")
        log.info("enrolled", kid=signer.kid, issuer=signer.issuer_kid, until_ms=signer.not_after_ms)
        self.problem = None
        life_ms = signer.not_after_ms - signer.not_before_ms
        share = RENEW_AT * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._renew_ms = signer.not_before_ms + int(life_ms * share)
        self._take(signer)

    def _failed(self, error: MeshError, failures: int) -> float:
        """Say so; seconds to wait before the next attempt."""
        self.problem = error
        metrics.ENROLMENTS.add(1, code=error.code)
        if failures & (failures - 1) == 0:  # the 1st, 2nd, 3rd, 5th, 9th, ...
            said = {"code": error.code, "error": error.message, "next": error.next}
            left_s = round(self._used.left_s(self._now_ms()))
            log.warning("enrolment_failed", attempt=failures + 1, left_s=left_s, **said)
        pauses = ASK_AGAIN_S if self._used.signer is None or self._used.is_cut else RENEW_AGAIN_S
        pause = pauses[min(failures, len(pauses) - 1)] * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return max(pause, min(float(error.details.get("retry_after_s", 0.0)), MAX_WAIT_S))
