"""Keeps what the agent seals believed: its event key certified and renewed, and nothing sent under a key that is cut.

    trust read since this connect? ─ no ──────────────► held: our key may have been revoked while we were away
    a key, and its cut not yet come? ─ no ────────────► held: what is accepted waits for the next key
    its certificate in force, our clock right? ─ no ──► held: nobody would believe what is sealed now
    ─ yes ────────────────────────────────────────────► released

Held, the publisher sends nothing; what it takes meanwhile is sealed when it is sent, so a change of keys leaves no gap.
A key is renewed at half its life, and at once when the trust statement names it or its issuer. It signs until the next
one is in hand or its cut comes; then no ack of a copy that it sealed counts any more, for nobody can tell whether that
copy was stored before the cut, and the event goes out anew. The control plane announces a cut ahead of time, so that an
honest agent has its next key by then.

Times are the server's, by our clock and its measured offset: certificates and cuts are judged by it everywhere else.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agent import metrics
from agent.enrolment import Enroller, KeyFiles
from agent.keys import clock_ms
from mesh import logs
from mesh.errors import BadCertificate, MeshError, NotEnrolled, StaleTrust
from mesh.trust_watch import TrustWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.keys import Keys
    from mesh.identity import Keyring, Signer
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.publisher import Publisher

RENEW_AT = 0.5  # of a certificate's life
JITTER = 0.1  # of that: agents that started together do not renew together
RENEW_GAP_S = 30.0  # between two renewals by age, whatever a clock says; a key that is named is renewed at once
CUT_MARGIN_MS = 250  # before a cut: our reckoning of the server's clock is off by a round trip, and drifts
READ_AGAIN_S = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts to read the trust statement; the last one repeats
ASK_AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts to enrol while there is no key to go on with
RENEW_AGAIN_S = (1.0, 5.0, 15.0, 60.0)  # ... while there is one
MAX_WAIT_S = 120.0  # that a control plane may ask us to wait
LOOK_S = 30.0  # a clock may be set, and a machine may sleep
KEPT_KEYS = 8  # that copies in flight may still be sealed with; a copy counts for 100 s

UNREAD = "trust was not read since the connect"
NO_KEY = "no event key yet"
CUT = "the event key is revoked, and the next one not yet in hand"
ENDED = "the event key's certificate is not in force"
CLOCK = "our clock is far from the server's"

log = logs.get("agent")


class Identity:
    """The event key of one running agent, and whether it may be used.

    Args:
        source: Gives keys.
        connection: The agent's.
        keyring: Whom we believe; gets the trust statement.
        keys: Seals with what we hand it.
        publisher: Held and released here; made to be held at each connect.
        now_ms: The server's time as well as we know it, Unix milliseconds.
        clock_wrong: Whether our own clock, which signs, is far from that; call `settle` when that changes.
        file_check_s: How often managed files are looked at.
    """

    def __init__(
        self,
        source: Enroller | KeyFiles,
        connection: Connection,
        keyring: Keyring,
        *,
        keys: Keys,
        publisher: Publisher,
        now_ms: Callable[[], int],
        file_check_s: float,
        clock_wrong: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock_wrong = clock_wrong
        self._source = source
        self._connection = connection
        self._keyring = keyring
        self._keys = keys
        self._publisher = publisher
        self._now_ms = now_ms
        self._file_check_s = file_check_s
        self._trust = TrustWatch(connection, keyring, on_change=self._trust_changed)
        self._used: list[Signer] = []  # the one in use is the last
        self._cut: set[str] = set()
        self._renew_ms = 0
        self._renewed_at = 0.0
        self._links = 0
        self._linked = asyncio.Event()
        self._trusted = False
        self._woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.enrolled = asyncio.Event()  # set for good with the first key
        self.problem: MeshError | None = None  # why the last attempt gave no key
        if isinstance(source, KeyFiles):
            self._use(source.signer)

    # --- what others ask ---------------------------------------------------------------------------------------------

    def check(self, now_ms: int) -> None:
        """Raise unless what is taken now will be sealed by a key that is believed.

        While the first attempt at a key after a cut is under way nothing is raised: it takes milliseconds, and what is
        accepted meanwhile waits for it.

        Raises:
            NotEnrolled: There is no key, or it is cut and no other to be had.
            SignerExpired: Its certificate is not in force by our own clock, *now_ms*, which signs.
        """
        self._keys.check(now_ms)
        managed = isinstance(self._source, KeyFiles)
        if self._used[-1].kid in self._cut and (managed or self.problem is not None):
            raise NotEnrolled(
                "the agent's event key is revoked, and it has no other",
                expected="other key files" if managed else "a certificate from the control plane",
                got="" if self.problem is None else self.problem.code,
                next="" if self.problem is None else self.problem.next,
            )

    @property
    def hopeful(self) -> bool:
        """Whether a key that is believed comes by itself, or is there: what is accepted meanwhile can wait for it.

        It does not where the control plane refuses us one, and where whoever manages our key files has to act.
        """
        if isinstance(self._source, KeyFiles):
            return self._used[-1].kid not in self._cut
        return self.problem is None or self.problem.retryable

    def state(self) -> dict[str, Any]:
        """Facts for people who look at a probe."""
        return {
            "kid": self._used[-1].kid if self._used else "",
            "certificate_left_s": round(self.left_s()),
            "trust_read": self._trusted,
            "refused": None if self.problem is None else self.problem.code,
        }

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

    def left_s(self) -> float:
        """Seconds that our certificate is still in force; 0 without one, or with one that is cut."""
        if not self._used or self._used[-1].kid in self._cut:
            return 0.0
        return max(0.0, (self._used[-1].not_after_ms - self._now_ms()) / 1000)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep it so until cancelled."""
        forget = [self._connection.on_connect(self._up), self._connection.on_disconnect(self._down)]
        if self._connection.connected:
            self._up()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._trust.run(), name="trust")
                group.create_task(self._read_trust(), name="first trust")
                if isinstance(self._source, Enroller):
                    group.create_task(self._enrol(self._source), name="enrolment")
                else:
                    group.create_task(self._follow(self._source), name="key files")
        finally:
            for each in forget:
                each()
            if self._timer is not None:
                self._timer.cancel()

    def _up(self) -> None:
        self._links += 1
        self._linked.set()
        self._woken.set()

    def _down(self) -> None:
        self._trusted = False  # and the publisher has stopped by itself

    def _trust_changed(self) -> None:
        self._woken.set()
        self.settle()

    async def _read_trust(self) -> None:
        """Read the trust statement once after each connect, trying again until there is one and it can be read.

        A mesh has one as soon as its control plane ran: where none is stored, it is withheld or still to come.
        """
        while True:
            await self._linked.wait()
            self._linked.clear()
            attempt = 0
            while self._connection.connected and not self._trusted:
                link = self._links
                try:
                    await self._trust.refresh()
                    if self._keyring.statement is None:
                        raise StaleTrust("the mesh has no trust statement yet", next="is the control plane running?")
                except MeshError as error:
                    if not attempt:
                        log.warning("trust_not_read", code=error.code, error=error.message)
                else:  # what was read before the link fell and returned says nothing of the time between
                    self._trusted = link == self._links and self._connection.connected
                    self.settle()
                if not self._trusted:
                    await asyncio.sleep(READ_AGAIN_S[min(attempt, len(READ_AGAIN_S) - 1)])
                    attempt += 1

    # --- the one decision --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Cut the keys whose time has come; then hold or release, and come back at the next cut."""
        now_ms = self._now_ms()
        ahead: list[int] = []
        for signer in self._used:
            cut_ms = self._cut_ms(signer)
            if cut_ms is None or signer.kid in self._cut:
                continue
            if cut_ms - CUT_MARGIN_MS > now_ms:
                ahead.append(cut_ms - CUT_MARGIN_MS)
                continue
            self._cut.add(signer.kid)
            anew = self._publisher.distrust(signer.kid)
            metrics.ANEW.add(anew)
            say = log.warning if anew or signer is self._used[-1] else log.info  # else it was replaced in time
            say("event_key_cut", kid=signer.kid, from_ms=cut_ms, late_ms=max(0, now_ms - cut_ms), anew=anew)
        because = self._because()
        if because:
            self._publisher.hold(because)
        else:
            self._publisher.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ahead += self._ends(now_ms)
        if ahead:
            pause = min((min(ahead) - now_ms) / 1000, LOOK_S)
            self._timer = asyncio.get_running_loop().call_later(pause, self.settle)

    def _ends(self, now_ms: int) -> list[int]:
        """When to look again for the sake of our certificate: at its end, and now and then once it is not in force."""
        if not self._used:
            return []
        left_ms = self._used[-1].not_after_ms - clock_ms()
        return [now_ms + (left_ms + 1 if left_ms >= 0 else int(LOOK_S * 1000))]

    def _because(self) -> str:
        """Why nothing may be sent now; empty where it may."""
        if not self._trusted:
            return UNREAD
        if not self._used:
            return NO_KEY
        signer = self._used[-1]
        if signer.kid in self._cut:
            return CUT
        if self._clock_wrong():
            return CLOCK
        return "" if signer.not_before_ms <= clock_ms() <= signer.not_after_ms else ENDED

    def _cut_ms(self, signer: Signer) -> int | None:
        """Stream time from which nobody takes what *signer* seals; None where that is not known to end."""
        statement = self._keyring.statement
        if statement is None:
            return None
        named = [ms for kid in (signer.kid, signer.issuer_kid) if (ms := statement.revoked.get(kid)) is not None]
        return min(named, default=None)

    # --- keys --------------------------------------------------------------------------------------------------------

    async def _enrol(self, source: Enroller) -> None:
        """Get a key whenever one is due."""
        failures = 0
        while True:
            await self._due()
            self._woken.clear()
            try:
                signer = await source.enrol(self._connection)
                if self._cut_ms(signer) is not None:
                    raise BadCertificate("the certificate we were given is revoked already", got=signer.kid)
            except MeshError as error:
                pause = self._failed(error, failures)
                failures += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()  # a connect, or news of trust
            else:
                failures = 0
                self._renewed_at = time.monotonic()
                metrics.ENROLMENTS.add(1, code="ok")
                log.info("enrolled", kid=signer.kid, issuer=signer.issuer_kid, until_ms=signer.not_after_ms)
                self._use(signer)

    async def _due(self) -> None:
        """Return when there is a connection to ask over, and a reason to."""
        while True:
            self._woken.clear()
            now_ms = self._now_ms()
            if self._connection.connected and self._needs_key(now_ms):
                return
            pause = max(self._renew_ms - now_ms, 50) / 1000 if self._used else LOOK_S
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LOOK_S)):
                    await self._woken.wait()

    def _needs_key(self, now_ms: int) -> bool:
        if not self._used or self._cut_ms(self._used[-1]) is not None:
            return True
        return now_ms >= self._renew_ms and time.monotonic() - self._renewed_at >= RENEW_GAP_S

    def _failed(self, error: MeshError, failures: int) -> float:
        """Say so; seconds to wait before the next attempt."""
        self.problem = error
        metrics.ENROLMENTS.add(1, code=error.code)
        if failures & (failures - 1) == 0:  # the 1st, 2nd, 3rd, 5th, 9th, ...
            said = {"code": error.code, "error": error.message, "next": error.next}
            log.warning("enrolment_failed", attempt=failures + 1, left_s=round(self.left_s()), **said)
        pauses = RENEW_AGAIN_S if self._used and self._used[-1].kid not in self._cut else ASK_AGAIN_S
        pause = pauses[min(failures, len(pauses) - 1)] * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return max(pause, min(float(error.details.get("retry_after_s", 0.0)), MAX_WAIT_S))

    async def _follow(self, source: KeyFiles) -> None:
        """Take what others put into the files."""
        while True:
            await asyncio.sleep(max(self._file_check_s, 1.0))
            if source.refresh():
                log.info("event_key_reloaded", kid=source.signer.kid)
                self._use(source.signer)

    def _use(self, signer: Signer) -> None:
        self.problem = None
        self._used = [*self._used, signer][-KEPT_KEYS:]
        life_ms = signer.not_after_ms - signer.not_before_ms
        share = RENEW_AT * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._renew_ms = signer.not_before_ms + int(life_ms * share)
        self._keys.seal_with(signer)
        self.enrolled.set()
        self.settle()
