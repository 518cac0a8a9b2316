"""A candidate tried by a real agent on what it publishes: reported, without any effect; and refusals on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.core import Agent
from agent.settings import load as load_settings
from mesh import audit
from mesh.audit_check import Verification
from mesh.control.door import pack
from mesh.control.shadow import ShadowTrial
from mesh.control.trail import stored_trail
from mesh.errors import BadAttribute, Denied, NotFound, PolicyError, PolicyErrors
from mesh.event import encode
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.policy.candidate import Candidate, seal_candidate
from mesh.policy.compile import Plans
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, POLICY_SEED, Streams, event, until, write_directory

pytestmark = pytest.mark.anyio

STRICTER = (
    POLICIES
    + """\
    - {id: only-germany, who: {teams: [crm]}, publish: ["crm.>"], when: "data.country != 'DE'"}
"""
)


def packed(policies: str) -> str:
    """As the command line sends them."""
    return pack({"policies.yaml": policies}, {})


class Signing:
    """The part of the control plane's authority that a trial needs."""

    policy_public = POLICY_KEY

    def seal_candidate(self, candidate: Candidate) -> bytes:
        """With the test's policy key."""
        return seal_candidate(candidate, POLICY_SEED)


class Live:
    """The live policies of a tenant, as a trial sees them."""

    tenant = "acme"

    def __init__(self, connection: Connection, plans: Plans) -> None:
        self.connection = connection
        self.plans = plans
        self.told: list[tuple[str, dict[str, Any]]] = []

    def audit(self, kind: str, **facts: Any) -> None:
        """Kept."""
        self.told.append((kind, facts))


class World:
    """One agent, the streams, and the control plane's side of a trial."""

    def __init__(self, streams: Streams, agent: Agent, live: Live) -> None:
        self.streams = streams
        self.agent = agent
        self.live = live
        self.trial = ShadowTrial(live, Signing())  # type: ignore[arg-type]

    async def start(self, policies: str = STRICTER, sample: float = 1.0) -> dict[str, Any]:
        """Begin a trial and wait until the agent has it."""
        said = await self.trial.start({"files": packed(policies), "sample": sample, "author": "ada"})
        await until(self.trying)
        return said

    def trying(self) -> bool:
        """Whether the agent compares."""
        assert self.agent.outbound is not None
        assert self.agent.outbound._shadow is not None
        return self.agent.outbound._shadow.running

    async def stopped(self) -> bool:
        """Whether it does not."""
        return not self.trying()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running agent under the policies of the door tests."""
    base = write_directory(tmp_path / "agent")
    async with Streams.running(tmp_path / "nats", bundle=False) as streams:
        bundle = await streams.hand_out()
        text = (base / "agent.toml").read_text()
        settings = load_settings(text, {"MESH_AGENT_NATS_URL": streams.server.url}).settings
        async with Agent(settings, base) as agent:
            yield World(streams, agent, Live(streams.connection, Plans(bundle)))


async def test_a_candidate_reports_and_changes_nothing(world: World) -> None:
    """What it would deny is published all the same, and told with rules, counts and an id."""
    said = await world.start()
    receipts = await world.agent.publish_many([encode(event(data={"country": c})) for c in ("DE", "FR", "AT")])
    await world.agent.publish(event(id="evt-last", data={"country": "IT"}))
    assert [len(receipt.copies) for receipt in receipts] == [2, 2, 2]
    assert await world.streams.stored() == 8
    report = await world.trial.report({})
    expected = {"revision": 2, "against": 1, "compared": 4, "disagreed": 3, "failed": 0, "skipped": 0, "other": 0}
    assert {name: report[name] for name in expected} == expected
    denied = next(found for found in report["found"] if found["kind"] == "would_deny")
    assert denied == {
        "kind": "would_deny", "type": "crm.contact.created.v1", "about": "", "path": "", "active": "crm-publishes",
        "candidate": "only-germany", "count": 3, "event": "evt-last", "agents": ["crm-adapter"],
    }  # fmt: skip
    assert [(one["agent"], one["state"]) for one in report["agents"]] == [("crm-adapter", "trying")]
    assert (said["revision"], said["same"]) == (2, False)


async def test_a_refusal_in_force_is_compared_too(world: World) -> None:
    """What is refused now and would be allowed shows, and stays refused."""
    wider = POLICIES.replace('publish: ["crm.>", "github.>"]', 'publish: ["crm.>", "github.>", "hr.>"]')
    await world.start(wider)
    with pytest.raises(Denied):
        await world.agent.publish(event(type="hr.person.created.v1"))
    report = await world.trial.report({})
    assert [(found["kind"], found["candidate"]) for found in report["found"]] == [("would_allow", "crm-publishes")]


async def test_only_the_sample_is_compared(world: World) -> None:
    """At a sample of next to nothing, nothing is compared."""
    await world.start(sample=0.000001)
    await world.agent.publish_many([event(id=f"evt-{number}") for number in range(50)])
    assert (await world.trial.report({}))["compared"] == 0


async def test_a_stopped_trial_is_over(world: World) -> None:
    """The agents let go of the candidate; start and stop are on record, and a second stop finds nothing."""
    await world.start()
    assert (await world.trial.stop({"author": "ada"}))["stopped"]
    await until(world.stopped)
    assert not (await world.trial.stop({}))["stopped"]
    with pytest.raises(NotFound):
        await world.trial.report({})
    assert [(kind, facts["revision"], facts["author"]) for kind, facts in world.live.told] == [
        (audit.SHADOW_STARTED, 2, "ada"),
        (audit.SHADOW_STOPPED, 2, "ada"),
    ]


async def test_an_apply_ends_the_trial(world: World) -> None:
    """Once revision 2 is in force there is nothing left to try."""
    await world.start()
    world.live.plans = Plans(await world.streams.hand_out(policies=STRICTER))
    await until(world.stopped)
    with pytest.raises(NotFound):
        await world.trial.report({})


async def test_a_candidate_that_is_not_signed_is_not_tried(world: World) -> None:
    """It ends the one before, is reported by its code, and events go on."""
    await world.start()
    await KeyValue(world.streams.connection, "mesh_policy").put("shadow", b"mesh-shadow-1.anything")
    await world.streams.connection.publish("ctl.notice", b"{}")
    await until(world.stopped)
    await world.agent.publish(event())
    assert world.agent.outbound is not None
    assert world.agent.outbound._shadow is not None
    assert world.agent.outbound._shadow.report() == {"refused": "bundle-signature"}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"files": packed("kind: Nothing")}, PolicyErrors),
        ({"files": packed(POLICIES.replace("acme", "other"))}, PolicyError),
        ({"files": {"a.yaml": POLICIES}}, BadAttribute),
        ({}, BadAttribute),
        ({"files": packed(POLICIES), "sample": 0}, BadAttribute),
        ({"files": packed(POLICIES), "sample": 1.5}, BadAttribute),
        ({"files": packed(POLICIES), "sample": True}, BadAttribute),
    ],
)
async def test_what_cannot_be_tried_is_refused(world: World, asked: dict[str, Any], error: type[Exception]) -> None:
    """Policies that do not load, another tenant's, and a sample outside 0 to 1 start nothing."""
    with pytest.raises(error):
        await world.trial.start(asked)
    assert await KeyValue(world.streams.connection, "mesh_policy").get("shadow") is None


async def test_each_refused_publish_is_on_record(world: World) -> None:
    """Event id, type, source, agent, rule, reason and revision of every denial; never a value."""
    for number in range(3):
        with pytest.raises(Denied):
            await world.agent.publish(event(id=f"evt-{number}", data={"account": "secret-test", "country": "DE"}))
    with pytest.raises(Denied):
        await world.agent.publish_many([event(), event(id="evt-in-batch", type="hr.person.created.v1")])
    assert world.agent._policies is not None
    assert await world.agent._policies.audit.flush(20)
    checking, records = Verification(), []
    async for stored in stored_trail(world.streams.connection):
        assert b"secret" not in stored.line
        records.append(checking.add(stored))
    assert checking.problems() == []
    facts = [record.facts for record in records if record is not None and record.kind == audit.DENIED]
    assert [(f["event"], f.get("rule"), f["reason"]) for f in facts] == [
        ("evt-0", "no-tests", "rule"),
        ("evt-1", "no-tests", "rule"),
        ("evt-2", "no-tests", "rule"),
        ("evt-in-batch", None, "no-allow-matched"),
    ]
    assert {(f["source"], f["principal"], f["revision"]) for f in facts} == {("/crm", "crm-adapter", 1)}
