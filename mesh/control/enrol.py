"""The enrolment door: certificates of a day for agents that show who they are, as NATS requests on `ctl.enrol.<agent>`.

Nothing here trusts the broker. NATS says which agent asks, by the one subject that its account imports; the token in
the request, which only we can open, says it again; and the certificate is for the key that signed the request. So
whoever holds the connection can neither enrol as somebody else nor learn a token. The id is the one the policies give
that agent: what a request says about names is ignored.

A certificate is in the trust store before anybody holds it, so that no event outruns it. A key is enrolled once: a
request that is sent again is refused, and an agent that got no answer asks with another key.
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
MAX_WAIT_S = 3.0  # in that queue; an agent waits 5 s for its answer, and what comes later is work for nobody
BURST = 60  # requests of one agent at once: as many replicas as may start together
REFILL_S = 60.0  # then one more each minute; an agent needs two a day

log = logs.get("enrol")


@dataclass(slots=True)
class _Bucket:
    """How many more requests one agent may make, as of a time in seconds."""

    at_s: float
    left: float = BURST

    def take(self, now_s: float) -> None:
        """One request. Raises Overloaded where there is none left."""
        self.left = min(BURST, self.left + (now_s - self.at_s) / REFILL_S)
        self.at_s = now_s
        if self.left < 1:
            raise Overloaded(
                "too many requests for a certificate",
                expected=f"{BURST}, then one each {REFILL_S:.0f} s",
                next="ask again later; find out why the agent asks so often",
                retry_after_s=round((1 - self.left) * REFILL_S, 1),
            )
        self.left -= 1


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
        self._buckets: dict[str, _Bucket] = {}
        self._room = anyio.CapacityLimiter(AT_ONCE)
        self._waiting = 0
        self._drops = 0

    async def run(self) -> None:
        """Answer until cancelled."""
        prefix = f"{ENROL_SUBJECT}."
        async with anyio.create_task_group() as group:

            def on_request(subject: str, reply: str, _headers: bytes | None, data: bytes) -> None:
                if not reply:
                    return
                if self._waiting >= MAX_WAITING or len(data) > MAX_MESSAGE_BYTES:
                    self._dropped()
                    return
                self._waiting += 1
                group.start_soon(self._answer, subject.removeprefix(prefix), reply, data, self._clock())

            listener = self._connection.listen(f"{prefix}*", on_request)
            try:
                await anyio.sleep_forever()
            finally:
                listener.close()

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
            self._waiting -= 1
        try:
            await self._connection.publish(reply, encode_answer(answer))
        except MeshError as error:
            log.warning("enrolment_answer_not_sent", workload=workload, code=error.code)

    def _dropped(self) -> None:
        """One request gets no answer: whoever asked asks again. Said rarely, for it may be a flood."""
        self._drops += 1
        if self._drops & (self._drops - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning("enrolment_dropped", dropped=self._drops, waiting=self._waiting)

    async def enrol(self, workload: str, data: bytes) -> bytes:
        """The chain for the key that *data* proves, published already.

        Args:
            workload: Who asks, as NATS has it.
            data: The sealed request.

        Raises:
            NotFound: The policies know no such agent.
            Overloaded: It asks too often.
            BadEnrolment, WeakKey, BadCertificate: The request cannot be read, proves no key, or brings one that was
                seen before.
            NotAttested, WorkloadBarred: It is not who it says, or gets no certificate.
            Unavailable: The attestor or the trust store does not answer; nothing was issued.
        """
        agent = agent_of(self._agents(), workload)
        now_s = self._clock()
        self._buckets.setdefault(workload, _Bucket(now_s)).take(now_s)
        try:
            chain, attested, kid = await self._enrol(agent, data)
        except MeshError as error:
            log.warning("enrolment_refused", workload=workload, code=error.code, error=error.message)
            self._told(audit.ENROLMENT_REFUSED, workload=workload, code=error.code)
            raise
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

    async def _enrol(self, agent: AgentGrants, data: bytes) -> tuple[bytes, Attested, str]:
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
        chain = await self._issuer.certify(agent, public_key)
        return chain, attested, key_id(public_key)
