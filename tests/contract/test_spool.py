"""The spool against a real server: what got 202 with the stream away arrives once, in order, as policy says then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import metrics
from agent.core import Agent
from agent.identity import CLOCK, ENDED
from agent.policies import PolicySide
from agent.settings import load
from agent.spool.database import Database
from agent.spool.record import NOT_SENT, Sent
from mesh.audit_log import AuditLog
from mesh.errors import ConfigError, NotEnrolled, SpoolFull, Unavailable
from mesh.jetstream import manage
from mesh.policy.compile import Plans
from mesh.signing import Verified
from tests.contract.agent_mesh import (
    POLICIES,
    STREAM,
    Control,
    Http,
    Streams,
    event,
    judged,
    now_ms,
    sidecar,
    until,
    write_directory,
)

pytestmark = pytest.mark.anyio

AFTER_S = 0.2  # a stream's silence until its copies are spooled, where it is away
PATIENT_S = 60.0  # where it is there, however busy the machine is
DEAL = {"type": "crm.deal.won.v1", "data": {"amount": 1}}  # one copy, in the view `clear`


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle; every test leaves the server running."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An agent's directory."""
    return write_directory(tmp_path / "agent")


@pytest.fixture
async def control(streams: Streams, base: Path) -> AsyncIterator[Control]:
    """The control plane for that agent, answering."""
    made = await Control.of(streams, base)
    async with made.answering():
        yield made


def agent_of(base: Path, url: str, **settings: object) -> Agent:
    """An agent that enrols, not yet started."""
    patience = {"spool_after_s": PATIENT_S, "give_up_s": PATIENT_S}
    settings = {"event_key_file": "", "event_cert_file": "", "nats_url": url, **patience, **settings}
    environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
    return Agent(load((base / "agent.toml").read_text(), environ).settings, base)


@asynccontextmanager
async def started(agent: Agent) -> AsyncIterator[Agent]:
    """Started and closed, without a drain; it may not be ready."""
    await agent.start()
    try:
        yield agent
    finally:
        await agent.close()


def have_patience(agent: Agent, seconds: float) -> None:
    """Let a stream be silent for so long."""
    if agent.spool is not None:
        publisher = agent.spool.publisher
        sending = publisher._sending
        sending.rules = sending.rules._replace(hand_over_s=seconds)
        for lane in sending.lanes.values():
            lane._rules = sending.rules


@asynccontextmanager
async def away(streams: Streams, *agents: Agent) -> AsyncIterator[None]:
    """The server is away for the length of the block; these agents, and who starts now, do not wait long for it."""
    streams.server.kill()
    for agent in agents:
        have_patience(agent, AFTER_S)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.policies.FIRST_CONNECT_S", 0.05)
            yield
    finally:
        await streams.server.restart()
        await until(lambda: streams.connection.connected)
        for agent in agents:
            have_patience(agent, PATIENT_S)


async def publish(agent: Agent, *ids: str, **changes: Any) -> list[str]:
    """One event each, at once; where each rests."""
    receipts = await asyncio.gather(*(agent.publish(event(id=id_, **(DEAL | changes))) for id_ in ids))
    return [receipt.durable for receipt in receipts]


async def drained(agent: Agent) -> None:
    """Until the spool is empty."""
    assert agent.spool is not None
    spool = agent.spool
    await until(lambda: not spool.copies and not spool.state()["streams"])


def numbered(name: str, count: int) -> list[str]:
    """Ids that sort as they are published."""
    return [f"{name}-{n:04d}" for n in range(count)]


async def seen(streams: Streams, base: Path, after: int, *, view: str = "clear") -> list[str]:
    """The ids that consumers take, in the order of the stream; what they refuse is shown."""
    verdicts = await judged(streams, base, after=after, view=view)
    return [str(v.fields["id"]) if isinstance(v, Verified) else f"refused: {v.code}" for v in verdicts]


async def last(streams: Streams) -> int:
    """The last sequence of the stream."""
    return int((await manage.stream_info(streams.connection, STREAM))["state"]["last_seq"])


# --- an outage -------------------------------------------------------------------------------------------------------


async def test_an_outage_costs_nothing_and_reorders_nothing(streams: Streams, base: Path, control: Control) -> None:
    """Through two outages under load: every event 202, stored once, in order, believed; then direct again."""
    after, spooled = await last(streams), metrics.SPOOLED.total()
    sent: list[str] = []
    places: list[str] = []

    async def load_(name: str, count: int) -> None:
        for id_ in numbered(name, count):  # one after another, as one source does
            sent.append(id_)
            places.extend(await publish(agent, id_))

    async with agent_of(base, streams.server.url) as agent:
        await load_("a", 20)
        for name in ("b", "c"):
            async with away(streams, agent):
                await load_(name, 60)
            await load_(f"{name}-back", 60)
        await drained(agent)
        assert await publish(agent, "z") == ["stream"]
        assert agent.not_ready() == []
        facts = agent.state()["spool"]
        assert (facts["copies"], facts["bytes"], facts["streams"], facts["refused"]) == (0, 0, {}, 0)
    assert await seen(streams, base, after) == [*sent, "z"]
    assert places[:20] == ["stream"] * 20
    assert places[20:80] == ["spool"] * 60
    assert metrics.SPOOLED.total() - spooled >= 120


async def test_what_was_in_flight_goes_first(streams: Streams, base: Path, control: Control) -> None:
    """What was published at once when the server went is spooled in its order, and what came later is behind it."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        await publish(agent, "first")
        async with away(streams, agent):
            early = asyncio.gather(*(publish(agent, id_) for id_ in numbered("early", 300)))
            assert {place for places in await early for place in places} == {"spool"}
            assert await publish(agent, *numbered("late", 5)) == ["spool"] * 5
        await drained(agent)
    assert await seen(streams, base, after) == ["first", *numbered("early", 300), *numbered("late", 5)]


async def test_what_is_lost_in_a_drain_is_not_overtaken(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that leaves can take a flight with it, and not a word comes back: what follows waits for it."""
    after, lost = await last(streams), 0
    async with agent_of(base, streams.server.url) as agent:
        assert agent.spool is not None
        connection = agent.spool.publisher._connection
        write = connection.write

        def loses_one_flight(frames: bytes) -> None:
            nonlocal lost
            copies = frames.count(b"HPUB ev.")
            if copies > 1 and not lost:
                lost = copies
            else:
                write(frames)

        async with away(streams, agent):
            await publish(agent, *numbered("e", 600))
            monkeypatch.setattr(connection, "write", loses_one_flight)
        await drained(agent)
        assert lost > 1
    assert await seen(streams, base, after) == numbered("e", 600)


async def test_the_same_event_again_is_stored_once(streams: Streams, base: Path, control: Control) -> None:
    """Posted before, during and after an outage, it has one message id: one copy in the stream."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        await publish(agent, "same")
        async with away(streams, agent):
            assert await publish(agent, "same", "other", "same") == ["spool"] * 3
        await drained(agent)
        again = await agent.publish(event(id="other", **DEAL))
        assert (again.durable, again.duplicate) == ("stream", True)
    assert await seen(streams, base, after) == ["same", "other"]


async def test_a_receipt_says_where_each_copy_rests(streams: Streams, base: Path, control: Control) -> None:
    """At the door too: 202 with `durable: spool`, every view's copy, and sequence 0, which no stream has."""
    settings = {"event_key_file": "", "event_cert_file": "", "spool_after_s": AFTER_S}
    async with sidecar(base, streams.server.url, **settings) as running:
        await until(lambda: not running.agent.not_ready())
        http = Http(running.intake.url, (base / "token").read_text().strip())
        async with away(streams):
            answer = await http.post(
                [event(id="one"), event(id="two")], headers={"Content-Type": "application/cloudevents-batch+json"}
            )
            assert answer.status == 202
            for receipt in answer.json["events"]:
                assert (receipt["durable"], receipt["duplicate"]) == ("spool", False)
                assert sorted(copy["view"] for copy in receipt["copies"]) == ["clear", "service"]
                assert {(copy["stream"], copy["seq"]) for copy in receipt["copies"]} == {(STREAM, 0)}
            assert running.agent.not_ready() == []
        await drained(running.agent)


async def test_nobody_hears_of_a_copy_before_it_is_synced(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the disk takes: until the commit returns there is no 202."""
    begun, gate = threading.Event(), threading.Event()
    commit = Database.commit

    def slow(database: Database) -> None:
        begun.set()
        assert gate.wait(20)
        commit(database)

    async with agent_of(base, streams.server.url) as agent:
        async with away(streams, agent):
            monkeypatch.setattr(Database, "commit", slow)
            publishing = asyncio.create_task(publish(agent, "one"))
            try:
                await until(begun.is_set)
                for _ in range(100):  # whatever is due now happens
                    await asyncio.sleep(0)
                assert not publishing.done()
            finally:
                gate.set()
            assert await publishing == ["spool"]
        await drained(agent)


async def test_a_full_stream_is_spooled_for_and_drained_once_it_has_room(tmp_path: Path) -> None:
    """A stream that says it is full is taken over from at once; with room again it gets everything, in order."""
    base = write_directory(tmp_path / "agent")
    async with Streams.running(tmp_path / "nats") as streams:
        control = await Control.of(streams, base)

        async def limit(messages: int) -> None:
            config = (await manage.stream_info(streams.connection, STREAM))["config"] | {"max_msgs": messages}
            reply = await streams.connection.request(f"$JS.API.STREAM.UPDATE.{STREAM}", msgspec.json.encode(config))
            assert "error" not in msgspec.json.decode(reply.data)

        async with control.answering(), agent_of(base, streams.server.url, spool_after_s=60, give_up_s=60) as agent:
            await limit(3)
            places = [(await publish(agent, id_))[0] for id_ in numbered("e", 8)]
            assert places == ["stream"] * 3 + ["spool"] * 5
            await limit(-1)
            await drained(agent)
        assert await seen(streams, base, 0) == numbered("e", 8)


# --- starts and ends -------------------------------------------------------------------------------------------------


async def test_started_without_nats_it_masks_and_spools_and_seals_later(
    streams: Streams, base: Path, control: Control
) -> None:
    """With its last good bundle an agent takes events that its successor sends, and a third finds nothing left."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        await publish(agent, "before")
    async with away(streams):
        for name in ("one", "two"):
            async with started(agent_of(base, streams.server.url, spool_after_s=AFTER_S)) as agent:
                await until(lambda: not agent.not_ready())
                with pytest.raises(NotEnrolled):
                    _ = agent.keys.signer
                places = await publish(agent, *numbered(name, 20), type="crm.contact.created.v1", data={"name": "Ada"})
                assert places == ["spool"] * 20
                assert await agent.drain(20), "what is in the spool is durable"
    async with agent_of(base, streams.server.url) as agent:
        await drained(agent)
        assert await publish(agent, "after") == ["stream"]
    ids = [*numbered("one", 20), *numbered("two", 20)]
    assert await seen(streams, base, after) == ["before", *ids, "after"]
    assert await seen(streams, base, after, view="service") == ids
    masked = [
        v.fields["data"] for v in await judged(streams, base, after=after, view="service") if isinstance(v, Verified)
    ]
    assert masked == [{}] * 40


async def test_a_drain_goes_on_to_streams_that_take_it(streams: Streams, base: Path, control: Control) -> None:
    """On SIGTERM what is on disk goes to the streams while they take it: a pod's disk may end with the pod."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        async with away(streams, agent):
            assert set(await publish(agent, *numbered("e", 400))) == {"spool"}
        assert agent.spool is not None
        spool = agent.spool
        await until(lambda: not spool.copies or any(b.progressing for b in spool._backlogs.values()))
    assert await seen(streams, base, after) == numbered("e", 400)


async def test_a_start_that_fails_leaves_the_spool(base: Path) -> None:
    """Without its credentials an agent does not start; the next try finds the spool free."""
    kept: list[BaseException] = []  # with all that their tracebacks hold
    for _ in range(2):
        with pytest.raises(ConfigError) as failed:
            await agent_of(base, "nats://127.0.0.1:1", creds_file="none.creds").start()
        kept.append(failed.value)
        assert "none.creds" in failed.value.message


# --- no room ---------------------------------------------------------------------------------------------------------


async def test_full_means_503_and_nothing_half_done(streams: Streams, base: Path, control: Control) -> None:
    """Beyond its bound the spool refuses a request whole, says when to come back; drained, it takes more."""
    after = await last(streams)
    big = {"type": "crm.deal.won.v1", "data": {"text": "x" * 100_000}}
    async with agent_of(base, streams.server.url, spool_max_bytes=1 << 20) as agent:
        accepted: list[str] = []
        refused: SpoolFull | None = None
        async with away(streams, agent):
            for id_ in numbered("e", 20):
                try:
                    await agent.publish(event(id=id_, **big))
                except SpoolFull as full:
                    refused = full
                    break
                accepted.append(id_)
            assert 5 <= len(accepted) <= 11
            assert refused is not None
            assert (refused.status, refused.retryable) == (503, True)
            with pytest.raises(SpoolFull):
                await agent.publish_many([event(id=f"batch-{n}", **big) for n in range(9)])
            assert (await publish(agent, "small")) == ["spool"], "a small one still fits"
        await drained(agent)
        assert agent.not_ready() == []
        assert await publish(agent, "after") == ["stream"]
    assert await seen(streams, base, after) == [*accepted, "small", "after"]


async def test_without_a_spool_it_is_given_up(streams: Streams, base: Path, control: Control) -> None:
    """An empty `spool_file` leaves what there was before: 503 after `give_up_s`, and no file."""
    async with agent_of(base, streams.server.url, spool_file="", give_up_s=0.2) as agent:
        async with away(streams, agent):
            with pytest.raises(Unavailable):
                await publish(agent, "given-up")
        assert agent.state()["spool"] is None
    assert not list(base.glob("spool*"))


# --- policy ----------------------------------------------------------------------------------------------------------


class Recorded:
    """What was written to the audit trail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[dict[str, Any]] = []
        write = AuditLog.write

        def both(log: AuditLog, kind: str, **facts: Any) -> None:
            self.records.append({"kind": kind, **facts})
            write(log, kind, **facts)

        monkeypatch.setattr(AuditLog, "write", both)

    def refused(self) -> list[tuple[str, str, str]]:
        """Event, view and reason of each copy that was put aside."""
        return [(r["event"], r["view"], r["reason"]) for r in self.records if r["kind"] == "spool-refused"]


async def test_what_is_stricter_today_is_applied_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies made under yesterday's policies: tightened, put aside where they may not be sent, and sent otherwise."""
    recorded = Recorded(monkeypatch)
    base = write_directory(tmp_path / "agent")
    contact = {"type": "crm.contact.created.v1", "data": {"country": "DE", "email": "a@example.org", "name": "Ada"}}
    async with Streams.running(tmp_path / "nats") as streams:
        control = await Control.of(streams, base)
        async with control.answering():
            async with agent_of(base, streams.server.url) as agent:
                await publish(agent, "before")
            hurried = agent_of(base, streams.server.url, spool_after_s=AFTER_S)
            async with away(streams), started(hurried) as agent:
                await until(lambda: not agent.not_ready())
                await agent.publish(event(id="tightened", **contact))
                await publish(agent, "withdrawn")
                await publish(agent, "expired", type="crm.contact.created.v1", expirytime="2199-01-01T00:00:00Z")
            stricter = POLICIES.replace("{tags: [public], as: clear}", "{tags: [public], as: redact}")
            stricter = stricter.replace('publish: ["crm.>", "github.>"]', 'publish: ["crm.contact.>", "github.>"]', 1)
            await streams.hand_out(policies=stricter.replace('"crm.contact.>", "crm.deal.>"', '"crm.contact.>"'))
            monkeypatch.setattr("agent.spool.spool.clock_ms", lambda: 8_000_000_000_000)
            monkeypatch.setattr("agent.spool.spool.Spool.next_sent", lambda _self, sent: sent)
            after = await last(streams)
            async with agent_of(base, streams.server.url) as agent:
                await drained(agent)
                assert agent.state()["spool"]["refused"] == 1, "of what expired nothing is kept"
        assert sorted(recorded.refused()) == [
            ("expired", "clear", "event-expired"),
            ("expired", "service", "event-expired"),
            ("withdrawn", "clear", "publisher-not-allowed"),
        ]
        verdicts = await judged(streams, base, after=after, view="service")
        (copy,) = [verdict.fields for verdict in verdicts if isinstance(verdict, Verified)]
        assert (copy["id"], copy["policyrevision"]) == ("tightened", 1)
        assert copy["data"]["country"] != "DE"
        assert await seen(streams, base, after) == ["tightened"]


# --- keys and ids ----------------------------------------------------------------------------------------------------


async def test_without_a_key_it_spools_until_it_has_one(
    streams: Streams, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS is there and no control plane answers: 202 from the spool, sealed and sent once the agent is enrolled."""
    monkeypatch.setattr("agent.core.FIRST_KEY_S", 0.05)
    control, after = await Control.of(streams, base), await last(streams)
    async with started(agent_of(base, streams.server.url)) as agent:
        await until(lambda: not agent.not_ready())
        have_patience(agent, AFTER_S)
        assert await publish(agent, "one", "two") == ["spool"] * 2
        have_patience(agent, PATIENT_S)
        async with control.answering():
            await drained(agent)
            assert await publish(agent, "three") == ["stream"]
    assert await seen(streams, base, after) == ["one", "two", "three"]


async def test_nothing_is_sealed_that_nobody_would_believe(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate that ended, and with a clock that is wrong, copies wait on disk until that is put right."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        identity, policies = agent._identity, agent._policies
        assert agent.spool is not None
        assert identity is not None
        assert policies is not None
        publisher = agent.spool.publisher
        with monkeypatch.context() as later:
            later.setattr("agent.identity.clock_ms", lambda: now_ms() + 172_800_000)
            identity.settle()
            assert publisher.blocked == ENDED
            have_patience(agent, AFTER_S)
            assert await publish(agent, "ended") == ["spool"]
        policies.clock.offset_ms = 60_000
        policies.clock.on_change()
        assert publisher.blocked == CLOCK
        assert agent.spool.copies == 1
        policies.clock.offset_ms = 0
        policies.clock.on_change()
        await drained(agent)
    assert await seen(streams, base, after) == ["ended"]


@pytest.mark.parametrize(("age_ms", "stored"), [(5_000, 1), (200_000, 2)])
async def test_who_comes_after_knows_what_an_ack_is_worth(
    streams: Streams, base: Path, control: Control, age_ms: int, stored: int
) -> None:
    """A copy that an earlier process sent: young, the stream's `duplicate` proves it; old, it goes under another id."""
    after = await last(streams)
    async with agent_of(base, streams.server.url) as agent:
        await publish(agent, "sent")  # what the earlier process left in the stream
        async with away(streams, agent):
            assert await publish(agent, "sent") == ["spool"]
            await agent.close()
    database = Database(base / "spool.db", base / "spool.key", max_bytes=1 << 20)
    (row,) = database.rows()
    database.begin()
    database.mark_sent([(row.id, Sent(0, now_ms() - age_ms, ("earlier",)))])
    database.commit()
    database.close()
    async with agent_of(base, streams.server.url) as agent:
        await drained(agent)
    assert await seen(streams, base, after) == ["sent"] * stored


async def test_a_copy_is_remembered_before_it_is_sent(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a frozen server has a copy of the spool's in its socket, the disk says when it was signed, and by whom."""
    gate, today = asyncio.Event(), PolicySide.today

    async def late(side: PolicySide) -> Plans:
        plans = await today(side)
        await gate.wait()
        return plans

    monkeypatch.setattr(PolicySide, "today", late)
    async with started(agent_of(base, streams.server.url)) as agent:
        await agent.wait_ready(20)
        assert agent.spool is not None
        publisher = agent.spool.publisher
        async with away(streams, agent):
            await until(lambda: publisher.blocked)  # so that neither is signed by now
            assert await publish(agent, "one", "two") == ["spool"] * 2
        await until(lambda: not publisher.blocked)
        before, kid = now_ms(), agent.keys.signer.kid
        streams.server.pause()
        try:
            gate.set()
            await until(lambda: publisher.in_flight)
        finally:
            await agent.close()
            streams.server.resume()
    database = Database(base / "spool.db", base / "spool.key", max_bytes=1 << 20)
    one, two = database.rows()
    database.close()
    assert one.sent.kids == (kid,)
    assert before <= one.sent.first_signed_ms <= now_ms()
    assert two.sent == NOT_SENT, "one goes ahead as the probe"
