"""Certificates for event keys, whoever asks: an agent at its door (`enrol.py`), or an operator for keys kept in files.

An agent's key ends with its process and is renewed by itself. What an operator asks for (`mesh trust issue`) may lie in
a file for a month, and renewing it is his task. Both go through the same checks: a workload that the policies know and
nobody barred, and a key that its holder proves and that was never seen before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh import audit, logs
from mesh.ca import LEAF_LIFETIME_S
from mesh.certificates import read_csr
from mesh.control.reconcile import now_ms
from mesh.control.trust_requests import MAX_HOURS
from mesh.errors import BadAttribute, BadEnrolment, MeshError, NotFound, WorkloadBarred
from mesh.keys import key_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.trust_requests import Asked, Policies
    from mesh.control.truststore import TrustStore
    from mesh.policy.grants import AgentGrants

HOUR_S = 3600
OPERATOR = "operator"  # where the trail names an attestor: an operator says whose the key is

log = logs.get("trust")


def agent_of(agents: Mapping[str, AgentGrants], name: str) -> AgentGrants:
    """The agent of that name.

    Raises:
        NotFound: The policies know none.
    """
    agent = agents.get(name)
    if agent is None:
        raise NotFound(f"the policies know no agent {name[:64]}", next="add it to the Tenant document")
    return agent


class Issuer:
    """What each certificate of one tenant goes through.

    Args:
        authority: Issues it.
        store: Where it is published.
        standing: Who is barred.
    """

    def __init__(self, authority: Authority, store: TrustStore, standing: Standing) -> None:
        self._authority = authority
        self._store = store
        self._standing = standing

    async def unseen_key(self, csr: bytes) -> bytes:
        """The public key, 32 bytes, that a request (PKCS#10, DER) proves.

        Raises:
            BadEnrolment, WeakKey: The request cannot be read, proves no key, or brings one that was seen before.
            RequestFailed, Unavailable: The trust store refused or does not answer.
        """
        public_key = read_csr(csr)
        kid = key_id(public_key)
        if await self._store.known(kid):
            raise BadEnrolment("this key was enrolled before", got=kid, next="ask with a new key: each has one request")
        return public_key

    async def certify(self, agent: AgentGrants, public_key: bytes, *, lifetime_s: float = LEAF_LIFETIME_S) -> bytes:
        """The chain for that key and the agent's own id, published already.

        Nothing is awaited until `publish` has the certificate among its own: a revocation sees it, and the same request
        once more, sent while somebody was asked about this one, is refused there.

        Raises:
            WorkloadBarred: It gets no certificate.
            BadCertificate, ConfigError, RequestFailed, Unavailable: See `TrustStore.publish`.
        """
        if agent.agent in self._standing.barred:
            raise WorkloadBarred(
                f"{agent.agent} was revoked", next=f"`mesh trust admit {agent.agent}` once it is in good hands again"
            )
        chain = self._authority.ca.issue(agent.spiffe_id, public_key, now_ms=now_ms(), lifetime_s=lifetime_s)
        await self._store.publish(chain)
        return chain


class IssueService:
    """`ctl.trust.issue` of one tenant.

    Args:
        policies: Of the tenant.
        issuer: Of the tenant.
    """

    def __init__(self, policies: Policies, issuer: Issuer) -> None:
        self._policies = policies
        self._issuer = issuer

    async def issue(self, asked: Asked) -> dict[str, Any]:
        """A certificate for a key that somebody keeps in files, as an operator says.

        Returns:
            With the `chain`, DER; it is in the trust store.

        Raises:
            NotFound: The policies know no such agent.
            BadAttribute: That is no lifetime.
            BadEnrolment, WeakKey, WorkloadBarred: See `Issuer`.
            MeshError: See `TrustStore.publish`.
        """
        agent = agent_of(self._policies.grants.agents, asked.agent)
        try:
            chain, kid = await self._issue(agent, asked)
        except MeshError as error:
            log.warning("issue_refused", workload=agent.agent, code=error.code, error=error.message)
            self._policies.audit(audit.ENROLMENT_REFUSED, workload=agent.agent, code=error.code, attested=OPERATOR)
            raise
        log.info("issued", workload=agent.agent, kid=kid, hours=asked.hours)
        facts = {"workload": agent.agent, "spiffe_id": agent.spiffe_id, "kid": kid, "attested": OPERATOR}
        self._policies.audit(audit.ENROLLED, **facts, hours=asked.hours, **asked.said)
        return {"tenant": self._policies.tenant, "agent": agent.agent, "kid": kid, "chain": chain}

    async def _issue(self, agent: AgentGrants, asked: Asked) -> tuple[bytes, str]:
        hours = asked.hours
        if not 1 <= hours <= MAX_HOURS:
            raise BadAttribute("that is no lifetime", expected=f"1 to {MAX_HOURS} hours", got=f"{hours} hours")
        public_key = await self._issuer.unseen_key(asked.csr)
        chain = await self._issuer.certify(agent, public_key, lifetime_s=hours * HOUR_S)
        return chain, key_id(public_key)
