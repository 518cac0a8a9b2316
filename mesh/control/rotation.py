"""Replacing the event keys of agents that run: their keys get a cut a while ahead, and each enrols another one before.

The cut holds whether or not they do: who has no other key by then goes on when it has.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from mesh.control.reconcile import now_ms, team_workload
from mesh.control.rollout import LIVE_S
from mesh.errors import BadAttribute, NotFound, WorkloadBarred
from mesh.reports import read_reports

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from mesh.control.trust_requests import Asked
    from mesh.control.truststore import TrustStore
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants

LEAD_MS = 15_000  # from a rotation to its cut: two reads of the trust statement, should its notice be lost
WAIT_S = LEAD_MS / 1000
# How long the NATS user before is good where others carry the files: whoever rotates has to apply a Secret, the kubelet
# brings it into pods within two minutes (sync period and cache), agents look every 5 s; and people are interrupted.
OVERLAP_S = 900.0
MAX_OVERLAP_S = 86_400.0
LOOK_S = 0.05  # between two looks at who has enrolled


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rotation is to replace, checked.

    Attributes:
        agents: Whose event keys: the SPIFFE id of each by name.
        workloads: Whose NATS users.
        ca: The mesh CA; with *revoke_old* none of before certifies anybody any more.
        store: The encryption key of the server's store.
        skipped: Agents that are barred: among all, they are left out.
    """

    agents: Mapping[str, str]
    workloads: tuple[str, ...]
    ca: bool
    revoke_old: bool
    store: bool
    skipped: tuple[str, ...]

    @classmethod
    def of(cls, asked: Asked, grants: Grants, barred: frozenset[str]) -> Wanted:
        """What *asked* means.

        Args:
            asked: The request.
            grants: In force.
            barred: Workloads that get no key: not among all, and an error where one is named.

        Raises:
            BadAttribute, NotFound, WorkloadBarred: See `TrustService.rotate`.
        """
        teams = [team_workload(team) for team in asked.teams]
        named = [*asked.agents, *teams]
        if not (named or asked.everybody or asked.ca or asked.store):
            raise BadAttribute("say what is to be rotated", expected="agents, teams, all agents, the CA, or the store")
        if asked.revoke_old and not asked.ca:
            raise BadAttribute("the old mesh CA goes only where there is a new one", next="give --ca as well")
        check_known("agent", asked.agents, grants.agents)
        check_known("team", asked.teams, grants.teams)
        _check_admitted(asked, barred)
        all_agents = asked.everybody or asked.revoke_old
        agents = [name for name in grants.agents if all_agents and name not in barred] or list(asked.agents)
        credentials = [*(agents if asked.credentials else ()), *teams]
        return cls(
            agents={name: grants.agents[name].spiffe_id for name in agents},
            workloads=tuple(sorted(credentials)),
            ca=asked.ca,
            revoke_old=asked.revoke_old,
            store=asked.store,
            skipped=tuple(sorted(barred & grants.agents.keys())) if all_agents else (),
        )


def _check_admitted(asked: Asked, barred: frozenset[str]) -> None:
    out = [(f"the agent {name}", name) for name in asked.agents if name in barred]
    out += [(f"the team {name}", f"--team {name}") for name in asked.teams if team_workload(name) in barred]
    for who, how in out:
        raise WorkloadBarred(f"{who} was revoked", next=f"`mesh trust admit {how}`")


def check_known(noun: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises NotFound where *names* (of agents or teams, as *noun* says) has one that is not *known*."""
    if missing := sorted(set(names) - set(known)):
        raise NotFound(
            f"the policies know no {noun} {missing[0][:64]}", expected=", ".join(sorted(known)), got=missing[0][:64]
        )


class Rotation:
    """The event keys of some agents, old and new.

    Args:
        connection: The control plane's, in the tenant account.
        store: The tenant's trust store.
        agents: The SPIFFE id of each by name.
    """

    def __init__(self, connection: Connection, store: TrustStore, agents: Mapping[str, str]) -> None:
        self._connection = connection
        self._store = store
        self._agents = agents
        self._old: set[str] = set()
        self._revoked: Counter[str] = Counter()

    async def revoke(self, cut_ms: int, issuers: Container[str] = ()) -> None:
        """Revoke every key they have from *cut_ms* (Unix ms) on.

        Args:
            cut_ms: A key that is revoked from an earlier time stays so.
            issuers: Mesh CAs that are revoked as well: the keys they certified need no revocation of their own.

        Raises:
            TooLarge, ConfigError, RequestFailed, Unavailable: See `TrustStore.revoke`.
        """
        wanted = set(self._agents.values())
        held = [one for one in self._store.present(now_ms()) if one.spiffe_id in wanted]
        self._old = {one.kid for one in held}
        self._revoked = Counter(str(one.spiffe_id) for one in held if one.kid not in self._store.revoked)
        await self._store.revoke({one.kid: cut_ms for one in held if one.issuer_kid not in issuers})

    async def wait(self) -> list[dict[str, Any]]:
        """Wait until every instance that runs has another key, for `WAIT_S` at most.

        Returns:
            Of each agent, by name: how many keys were `revoked`, how many it has `enrolled` since, and its `state`:
            `renewed`; `late`, which runs and has none yet; or `silent`, of which no instance runs.

        Raises:
            RequestFailed, Unavailable: The reports of the agents cannot be read.
        """
        if not self._agents:
            return []
        live_ms = now_ms() - int(LIVE_S * 1000)
        reports = await read_reports(self._connection)
        live = Counter(one.name for one in reports if one.kind == "agent" and one.at_ms >= live_ms)
        with anyio.move_on_after(WAIT_S):
            while any(one["state"] == "late" for one in self._found(live)):  # noqa: ASYNC110 - no event to wait for
                await anyio.sleep(LOOK_S)
        return self._found(live)

    def _found(self, live: Mapping[str, int]) -> list[dict[str, Any]]:
        new = Counter(str(one.spiffe_id) for one in self._store.present(now_ms()) if one.kid not in self._old)
        found = []
        for name, spiffe_id in sorted(self._agents.items()):
            enrolled, running = new[spiffe_id], live.get(name, 0)
            state = "renewed" if enrolled and enrolled >= running else "late" if running else "silent"
            counts = {"revoked": self._revoked[spiffe_id], "enrolled": enrolled}
            found.append({"agent": name, "spiffe_id": spiffe_id, **counts, "state": state})
        return found
