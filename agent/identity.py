"""Keeps what the agent seals believed: nothing goes out under a key that is cut, or of which we cannot know it.

    trust read since this connect? ─ no ──────────────► held: our key may have been revoked while we were away
    a key, and its cut not yet come? ─ no ────────────► held: what is accepted waits for the next key
    its certificate in force, our clock right? ─ no ──► held: nobody would believe what is sealed now
    ─ yes ────────────────────────────────────────────► released

Held, the publisher sends nothing; what it takes meanwhile is sealed when it is sent, so a change of keys leaves no gap.
A key signs until the next one is in hand (`renewal`) or its cut comes; then no ack of a copy that it sealed counts any
more, for nobody can tell whether that copy was stored before the cut, and the event goes out anew. The control plane
announces a cut ahead of time, so that an honest agent has its next key by then.

Times are the server's, by our clock and its measured offset: certificates and cuts are judged by it everywhere else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent import metrics
from agent.enrolment import Enroller, KeyFiles
from agent.keys import clock_ms
from agent.renewal import LOOK_S, Renewal
from agent.used_keys import UsedKeys
from mesh import logs
from mesh.errors import MeshError, NotEnrolled, StaleTrust
from mesh.trust_watch import TrustWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.keys import Keys
    from mesh.identity import Keyring, Signer
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.publisher import Publisher

READ_AGAIN_S = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts to read the trust statement; the last one repeats

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

    Attributes:
        used: Our keys until now.
        enrolled: Set for good with the first key.
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
        self._links = 0
        self._linked = asyncio.Event()
        self._trusted = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: Renewal | None = None  # none where somebody else keeps our key in files
        self.used = UsedKeys(keyring)
        self.enrolled = asyncio.Event()
        if isinstance(source, KeyFiles):
            self._use(source.signer)
        else:
            self._renewal = Renewal(source, connection, self.used, now_ms=now_ms, take=self._use)

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
        if not self.used.is_cut:
            return
        managed, problem = self._renewal is None, self.problem
        if managed or problem is not None:
            raise NotEnrolled(
                "the agent's event key is revoked, and it has no other",
                expected="other key files" if managed else "a certificate from the control plane",
                got="" if problem is None else problem.code,
                next="" if problem is None else problem.next,
            )

    @property
    def problem(self) -> MeshError | None:
        """Why the last attempt gave no key; None where it gave one, or where keys are in files."""
        return None if self._renewal is None else self._renewal.problem

    @property
    def hopeful(self) -> bool:
        """Whether a key that is believed comes by itself, or is there: what is accepted meanwhile can wait for it.

        It does not where the control plane refuses us one, and where whoever manages our key files has to act.
        """
        renewal = self._renewal
        if renewal is None:
            return not self.used.is_cut
        return renewal.problem is None or renewal.problem.retryable

    def state(self) -> dict[str, Any]:
        """Facts for people who look at a probe."""
        signer, problem = self.used.signer, self.problem
        return {
            "kid": "" if signer is None else signer.kid,
            "certificate_left_s": round(self.left_s()),
            "trust_read": self._trusted,
            "refused": None if problem is None else problem.code,
        }

    def left_s(self) -> float:
        """Seconds that our certificate is still in force; 0 without one, or with one that is cut."""
        return self.used.left_s(self._now_ms())

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
                if isinstance(self._source, KeyFiles):
                    group.create_task(self._follow(self._source), name="key files")
                if self._renewal is not None:
                    group.create_task(self._renewal.run(), name="enrolment")
        finally:
            for each in forget:
                each()
            if self._timer is not None:
                self._timer.cancel()

    def _up(self) -> None:
        self._links += 1
        self._linked.set()
        self._wake()

    def _down(self) -> None:
        self._trusted = False  # and the publisher has stopped by itself

    def _trust_changed(self) -> None:
        self._wake()
        self.settle()

    def _wake(self) -> None:
        if self._renewal is not None:
            self._renewal.wake()

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
        come, ahead = self.used.cut(now_ms)
        for signer, cut_ms in come:
            anew = self._publisher.distrust(signer.kid)
            metrics.ANEW.add(anew)
            say = log.warning if anew or signer is self.used.signer else log.info  # else it was replaced in time
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
        signer = self.used.signer
        if signer is None:
            return []
        left_ms = signer.not_after_ms - clock_ms()
        return [now_ms + (left_ms + 1 if left_ms >= 0 else int(LOOK_S * 1000))]

    def _because(self) -> str:
        """Why nothing may be sent now; empty where it may."""
        if not self._trusted:
            return UNREAD
        signer = self.used.signer
        if signer is None:
            return NO_KEY
        if self.used.is_cut:
            return CUT
        if self._clock_wrong():
            return CLOCK
        return "" if signer.not_before_ms <= clock_ms() <= signer.not_after_ms else ENDED

    # --- keys --------------------------------------------------------------------------------------------------------

    async def _follow(self, source: KeyFiles) -> None:
        """Take what others put into the files."""
        while True:
            await asyncio.sleep(max(self._file_check_s, 1.0))
            if source.refresh():
                log.info("event_key_reloaded", kid=source.signer.kid)
                self._use(source.signer)

    def _use(self, signer: Signer) -> None:
        self.used.add(signer)
        self._keys.seal_with(signer)
        self.enrolled.set()
        self.settle()
