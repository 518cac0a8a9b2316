"""The enrolment door: certificates of a day for agents that show who they are, as NATS requests on `ctl.enrol.<agent>`.

Nothing here trusts the broker. NATS says which agent asks, by the one subject that its account imports; the token in
the request, which only we can open, says it again; and the certificate is for the key that signed the request. So
whoever holds the connection can neither enrol as somebody else nor learn a token. The id is the one the policies give
that agent: what a request says about names is ignored.

A certificate is in the trust store before anybody holds it, so that no event outruns it. A key is enrolled once: a
request that is sent again is refused, and an agent that got no answer asks with another key.

Whoever holds an agent's connection may ask as fast as he likes. That costs the others nothing: an agent has few places
in the queue and few tries a second, and what is over is dropped unread. Nor does it lock the agent out: certificates
are counted once the token was attested, and tries come back so fast that one of its own is soon among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from mesh import audit, logs
from mesh.control.issuing import Issuer, agent_of
from mesh.enrolment import ENROL_SUBJECT, MAX_MESSAGE_BYTES, Answer, encode_answer
from mesh.errors import MeshError, NotAttested, Overloaded
from mesh.keys import key_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.control.attest import Attested, Attestor
    from mesh.control.change import Audit
    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.truststore import TrustStore
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import AgentGrants

AT_ONCE = 32  # requests under way: a mesh of a thousand agents that all start is through in seconds
MAX_WAITING = 1024  # requests held while those are under way, 64 MiB at most; whoever comes later asks again
WAITING_EACH = 16  # of those, one agent's: however fast it asks, there is room for the others
MAX_WAIT_S = 3.0  # in that queue; an agent waits 5 s for its answer, and what comes later is work for nobody
BURST = 256  # certificates of one agent at once: as many replicas as its NATS account has room for
REFILL_S = 60.0  # then one more a minute, 1,440 a day: those replicas renew twice and are rolled out three times
TRIES = 60  # requests of one agent that get none: whoever has its connection can send them, without its token
TRY_REFILL_S = 0.1  # then ten a second: few enough to cost us little, so many that its own request soon comes through
TOLD = 60  # refusals of one agent in log and trail
TELL_AGAIN_S = 60.0  # then one each minute, with the number of those between

log = logs.get("enrol")


@dataclass(slots=True)
class _Bucket:
    """So many at once, then one more each so many seconds; as of a time in seconds."""

    size: int
    refill_s: float
    at_s: float
    left: float

    @classmethod
    def full(cls, size: int, refill_s: float, now_s: float) -> _Bucket:
        """Nothing is taken yet."""
        return cls(size, refill_s, now_s, size)

    def has(self, now_s: float) -> bool:
        """Whether there is one to take."""
        self.left = min(self.size, self.left + (now_s - self.at_s) / self.refill_s)
        self.at_s = now_s
        return self.left >= 1

    def need(self, now_s: float, what: str) -> None:
        """Raises Overloaded where there is none to take; *what* there are too many of."""
        if not self.has(now_s):
            raise Overloaded(
                f"too many {what}",
                expected=f"{self.size}, then one each {self.refill_s:g} s",
                next="ask again later; find out why the agent asks so often, and who else has its credentials",
                retry_after_s=round((1 - self.left) * self.refill_s, 1),
            )

    def take(self, now_s: float, what: str) -> None:
        """One. Raises Overloaded as `need`."""
        self.need(now_s, what)
        self.left -= 1

    def give_back(self) -> None:
        """What was taken came to nothing."""
        self.left = min(self.size, self.left + 1)


class _Asking:
    """What one agent may ask for yet. Only who has its token can use up its certificates."""

    def __init__(self, now_s: float) -> None:
        self.certificates = _Bucket.full(BURST, REFILL_S, now_s)
        self.tries = _Bucket.full(TRIES, TRY_REFILL_S, now_s)
        self._told = _Bucket.full(TOLD, TELL_AGAIN_S, now_s)
        self._untold = 0

    def tells(self, now_s: float) -> int | None:
        """Whether a refusal is told: how many before it were not; None where it is one of those."""
        if not self._told.has(now_s):
            self._untold += 1
            return None
        self._told.left -= 1
        untold, self._untold = self._untold, 0
        return untold


class Enrolment:
    """Answers the requests of one tenant's agents.

    Args:
        connection: The control plane's, in the tenant account.
        authority: Opens requests and issues certificates.
        store: Where certificates are published.
        standing: Who is barred.
        attestor: Whose a token is.
        agents: The agents of the policies in force, by name. Raises NoBundle where there are none.
        told: Told who enrolled and who was refused: names and codes, never a token.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        connection: Connection,
        authority: Authority,
        store: TrustStore,
        standing: Standing,
        attestor: Attestor,
        *,
        agents: Callable[[], Mapping[str, AgentGrants]],
        told: Audit,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._connection = connection
        self._authority = authority
        self._issuer = Issuer(authority, store, standing)
        self._attestor = attestor
        self._agents = agents
        self._told = told
        self._clock = clock
        self._asking: dict[str, _Asking] = {}
        self._room = anyio.CapacityLimiter(AT_ONCE)
        self._waiting: dict[str, int] = {}  # by agent
        self._held = 0  # of all agents
        self._drops = 0

    async def run(self) -> None:
        """Answer until cancelled."""
        prefix = f"{ENROL_SUBJECT}."
        async with anyio.create_task_group() as group:

            def on_request(subject: str, reply: str, _headers: bytes | None, data: bytes) -> None:
                if not reply:
                    return
                workload, now_s = subject.removeprefix(prefix), self._clock()
                if len(data) > MAX_MESSAGE_BYTES or not self._has_room(workload, now_s):
                    self._dropped()
                    return
                self._held += 1
                self._waiting[workload] = self._waiting.get(workload, 0) + 1
                group.start_soon(self._answer, workload, reply, data, now_s)

            listener = self._connection.listen(f"{prefix}*", on_request)
            try:
                await anyio.sleep_forever()
            finally:
                listener.close()

    def _has_room(self, workload: str, now_s: float) -> bool:
        """Whether a request is looked at: without a task, for a flood may come as fast as the server passes it on."""
        if self._held >= MAX_WAITING or self._waiting.get(workload, 0) >= WAITING_EACH:
            return False
        asking = self._asking.get(workload)
        return asking is None or asking.tries.has(now_s)

    def _left(self, workload: str) -> None:
        self._held -= 1
        self._waiting[workload] -= 1
        if not self._waiting[workload]:
            del self._waiting[workload]

    async def _answer(self, workload: str, reply: str, data: bytes, came_s: float) -> None:
        try:
            async with self._room:
                if self._clock() - came_s > MAX_WAIT_S:
                    self._dropped()
                    return
                answer = Answer(chain=await self.enrol(workload, data))
        except MeshError as error:
            answer = Answer(error=error.as_dict())
        except Exception as error:
            log.exception("enrolment_failed", error, workload=workload)  # noqa: PLE1205, TRY401 - ours takes the error
            answer = Answer(error=MeshError("the control plane failed", next="read its log").as_dict())
        finally:
            self._left(workload)
        try:
            await self._connection.publish(reply, encode_answer(answer))
        except MeshError as error:
            log.warning("enrolment_answer_not_sent", workload=workload, code=error.code)

    def _dropped(self) -> None:
        """One request gets no answer: whoever asked asks again. Said rarely, for it may be a flood."""
        self._drops += 1
        if self._drops & (self._drops - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning("enrolment_dropped", dropped=self._drops, waiting=self._held)

    async def enrol(self, workload: str, data: bytes) -> bytes:
        """The chain for the key that *data* proves, published already.

        Args:
            workload: Who asks, as NATS has it.
            data: The sealed request.

        Raises:
            NotFound: The policies know no such agent.
            Overloaded: It asks too often, or somebody in its name does.
            BadEnrolment, WeakKey, BadCertificate: The request cannot be read, proves no key, or brings one that was
                seen before.
            NotAttested, WorkloadBarred: It is not who it says, or gets no certificate.
            Unavailable: The attestor or the trust store does not answer; nothing was issued.
        """
        agent = agent_of(self._agents(), workload)
        now_s = self._clock()
        asking = self._asking.setdefault(workload, _Asking(now_s))
        asking.tries.take(now_s, "requests that got no certificate")
        asking.certificates.need(now_s, "certificates")
        try:
            chain, attested, kid = await self._enrol(agent, data, asking)
        except MeshError as error:
            self._refused(workload, error, asking.tells(now_s))
            raise
        asking.tries.give_back()
        log.info("enrolled", workload=workload, kid=kid, by=attested.by)
        self._told(
            audit.ENROLLED,
            workload=workload,
            spiffe_id=agent.spiffe_id,
            kid=kid,
            attested=attested.by,
            **attested.facts,
        )
        return chain

    def _refused(self, workload: str, error: MeshError, untold: int | None) -> None:
        if untold is None:
            return
        more = {"untold": untold} if untold else {}
        log.warning("enrolment_refused", workload=workload, code=error.code, error=error.message, **more)
        self._told(audit.ENROLMENT_REFUSED, workload=workload, code=error.code, **more)

    async def _enrol(self, agent: AgentGrants, data: bytes, asking: _Asking) -> tuple[bytes, Attested, str]:
        request = self._authority.open_request(data)
        public_key = await self._issuer.unseen_key(request.csr)
        attested = await self._attestor.attest(request.token)
        if attested.spiffe_id != agent.spiffe_id:
            raise NotAttested(
                f"the enrolment token is not that of {agent.agent}",
                expected=agent.spiffe_id,
                got=attested.spiffe_id,
                next="give each agent its own token; `identities` in the Tenant document names other ids",
            )
        asking.certificates.take(self._clock(), "certificates")
        try:
            chain = await self._issuer.certify(agent, public_key)
        except BaseException:
            asking.certificates.give_back()
            raise
        return chain, attested, key_id(public_key)
