"""A candidate on live traffic, from the control plane's side: hand it out, gather what the agents found, end it.

It lies in the tenant's KV bucket beside the bundle, signed as what it is. The agents try it on what they publish anyway
and tell in their reports how often, and in what, it disagrees with the bundle in force.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import msgspec

from mesh import audit
from mesh.control.door import unpack
from mesh.control.reconcile import notice, now_ms
from mesh.errors import BadAttribute, BadBundle, NotFound, PolicyError
from mesh.jetstream.store import KeyValue
from mesh.policy.bundle import FORMAT, Bundle, ordered
from mesh.policy.candidate import Candidate, Head, open_candidate
from mesh.policy.history import lineage, since
from mesh.policy.load import load
from mesh.policy.shadow import Disagreement
from mesh.reports import EVERY_S, read_reports
from mesh.shadow_watch import SHADOW_KEY
from mesh.watch import POLICY_BUCKET

if TYPE_CHECKING:
    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.reports import Report

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

MAX_AUTHOR_CHARS = 200
LIVE_MS = round(2.5 * EVERY_S * 1000)  # an instance silent for longer has ended, or is cut off
GATHER_S = 2.0  # for the agents to answer a notice with a fresh report; they take milliseconds
LOOK_S = 0.1  # between two looks at the reports


class Policies(Protocol):
    """What a trial needs of the live policies of its tenant."""

    tenant: str
    connection: Connection

    @property
    def audit(self) -> Callable[..., None]:
        """Told each start and stop."""

    @property
    def plans(self) -> Plans:
        """Of the bundle in force. Raises NoBundle before the first."""


def handlers(policies: Policies, authority: Authority) -> dict[str, Handler]:
    """What the control plane's door answers, by verb.

    Args:
        policies: Of the tenant.
        authority: Signs the candidate.
    """
    trial = ShadowTrial(policies, authority)
    return {"shadow-start": trial.start, "shadow-stop": trial.stop, "shadow-report": trial.report}


class ShadowTrial:
    """The one candidate that a tenant's agents may be trying."""

    def __init__(self, policies: Policies, authority: Authority) -> None:
        self._policies = policies
        self._authority = authority
        self._store = KeyValue(policies.connection, POLICY_BUCKET)

    async def start(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Have the agents try a candidate; the one before ends.

        Args:
            asked: `files` (packed, as for an apply), `sample` (above 0, at most 1; 1 unless given), `author`.

        Raises:
            PolicyErrors: They do not load.
            PolicyError: None of them is this tenant's.
            BadAttribute, TooLarge: The request is malformed: no such sample, no packed files.
            NoBundle: Nothing is in force to compare with.
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        current = self._policies.plans.bundle
        sample = _sample(asked.get("sample", 1.0))
        files, _ = unpack(asked.get("files"))
        bundle = await anyio.to_thread.run_sync(_next_bundle, current, files)
        author = str(asked.get("author", ""))[:MAX_AUTHOR_CHARS]
        candidate = Candidate(Head(sample=sample, started_ms=now_ms(), author=author), bundle)
        await self._store.put(SHADOW_KEY, self._authority.seal_candidate(candidate))
        await notice(self._policies.connection, "shadow", bundle.revision)
        facts = {"revision": bundle.revision, "digest": bundle.digest, "sample": sample, "author": author}
        self._policies.audit(audit.SHADOW_STARTED, **facts)
        return {**_said(candidate), "same": bundle.policies == current.policies}

    async def stop(self, asked: dict[str, Any]) -> dict[str, Any]:
        """End the trial; says what was tried, and `stopped` False where nothing was.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        candidate = await self._candidate()
        await self._store.delete(SHADOW_KEY)
        await notice(self._policies.connection, "shadow", 0)
        if candidate is None:
            return {"stopped": False}
        revision, author = candidate.bundle.revision, str(asked.get("author", ""))[:MAX_AUTHOR_CHARS]
        self._policies.audit(audit.SHADOW_STOPPED, revision=revision, digest=candidate.bundle.digest, author=author)
        return {"stopped": True, **_said(candidate)}

    async def report(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """What the agents found so far, each asked for a fresh report first.

        Raises:
            NotFound: No candidate is being tried.
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        candidate = await self._candidate()
        in_force = self._policies.plans.bundle
        if candidate is None or candidate.bundle.revision <= in_force.revision:
            raise NotFound(
                "no candidate is being tried" + ("" if candidate is None else ": policies were applied since"),
                expected="a candidate",
                next="start one with `mesh policy shadow start --policies DIR`",
            )
        reports = await self._gather(candidate)
        return {**_said(candidate), "against": in_force.revision, **merged(reports, candidate.key)}

    async def _candidate(self) -> Candidate | None:
        entry = await self._store.get(SHADOW_KEY)
        if entry is None or not entry.value:
            return None
        try:
            return open_candidate(entry.value, self._authority.policy_public)
        except BadBundle:
            return None  # not ours: agents refuse it too

    async def _gather(self, candidate: Candidate) -> list[Report]:
        """The live agents' reports, once all of them try the candidate and none says more, or time is up."""
        connection = self._policies.connection
        await notice(connection, "shadow", candidate.bundle.revision)
        before: list[Report] = []
        live: list[Report] = []
        with anyio.move_on_after(GATHER_S):
            while True:
                await anyio.sleep(LOOK_S)
                live = [r for r in await read_reports(connection) if r.kind == "agent" and _live(r)]
                if live and live == before and all(_tries(report, candidate.key) for report in live):
                    break
                before = live
        return live


def merged(reports: list[Report], key: str) -> dict[str, Any]:
    """What several agents found, as one: sums, and the counts of equal disagreements added up.

    Args:
        reports: Of live agents.
        key: Of the candidate; what a report says of another one does not count.
    """
    totals = dict.fromkeys(("compared", "disagreed", "failed", "skipped", "other"), 0)
    found: dict[Disagreement, tuple[int, str, set[str]]] = {}
    agents = []
    for report in reports:
        said = report.shadow or {}
        mine = said if said.get("key") == key else {}
        numbers = {name: _number(mine.get(name)) for name in totals}
        state = "trying" if mine else f"refused: {said['refused']}" if said.get("refused") else "not yet"
        agents.append({"agent": report.name, "instance": report.instance, "state": state, **numbers})
        for name, number in numbers.items():
            totals[name] += number
        for one, count, event in _read(mine):
            before, _, names = found.get(one, (0, "", set()))
            found[one] = (before + count, event, names | {report.name})
    ordered_found = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    return {
        **totals,
        "agents": agents,
        "found": [
            {**msgspec.structs.asdict(one), "count": count, "event": event, "agents": sorted(names)}
            for one, (count, event, names) in ordered_found
        ],
    }


def _read(said: Mapping[str, Any]) -> list[tuple[Disagreement, int, str]]:
    found = []
    for item in said.get("found", ()):
        try:
            one = msgspec.convert(item["found"], Disagreement)
        except (msgspec.ValidationError, KeyError, TypeError):
            continue  # of another version
        found.append((one, _number(item.get("count")), str(item.get("event", ""))))
    return found


def _number(value: Any) -> int:
    return value if type(value) is int else 0


def _live(report: Report) -> bool:
    return now_ms() - report.at_ms < LIVE_MS


def _tries(report: Report, key: str) -> bool:
    said = report.shadow or {}
    return said.get("key") == key or "refused" in said


def _said(candidate: Candidate) -> dict[str, Any]:
    head, bundle = candidate.head, candidate.bundle
    return {
        "tenant": bundle.tenant,
        "revision": bundle.revision,
        "digest": bundle.digest,
        "sample": head.sample,
        "started_ms": head.started_ms,
        "author": head.author,
    }


def _sample(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise BadAttribute("`sample` is no part of the events", expected="a number above 0, at most 1", got=str(value)[:20])


def _next_bundle(current: Bundle, files: Mapping[str, str]) -> Bundle:
    """What an apply of *files* would hand out after *current*."""
    policies = load(files)
    if current.tenant not in policies.tenants:
        raise PolicyError(
            f"the files hold no policies of the tenant {current.tenant}",
            expected=f"a Tenant document named {current.tenant}",
            got=", ".join(policies.tenants),
            next="name the directory of this tenant's policies",
        )
    documents = ordered(d.value for d in policies.of(current.tenant))
    return Bundle(
        tenant=current.tenant,
        revision=current.revision + 1,
        site=current.site,
        trust_domain=current.trust_domain,
        created_ms=now_ms(),
        policies=documents,
        previous=current.digest,
        lineage=lineage(current, current.created_ms, now_ms()),
        since=since(current, documents, current.revision + 1),
        format=FORMAT,
    )
