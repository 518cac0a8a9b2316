"""Replays against the real server: what they deliver, to whom, until when, and what ends them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mesh.control import replay as replay_module
from mesh.control import replay_reach, replay_requests
from mesh.control.door import ControlDoor
from mesh.control.replay import Replays
from mesh.control.replay_reach import Point
from mesh.errors import BadAttribute, NotFound, ReplayOpen, Unavailable
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import PIN_GROUP
from mesh.jetstream.transition import filters_of
from mesh.policy.texts import instant_text
from tests.contract.policy_mesh import CRM, DURABLE, SITE, PolicyMesh, policies, reads, take, until

pytestmark = pytest.mark.anyio

HR = "EV_local_hr"
CONTACT, DEAL, PERSON = "crm.contact.updated.v1", "crm.deal.won.v1", "hr.person.hired.v1"
REPLAY = f"{DURABLE}--replay"
ALL, NOW = Point(), Point()
SUBSCRIPTION = """
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["%s"], start: new%s}
"""


class World:
    """A mesh, its replays, and what is heard of them."""

    def __init__(self, mesh: PolicyMesh) -> None:
        self.mesh = mesh
        self.replays = self.another()
        self.notices: list[dict[str, Any]] = []
        mesh.control.listen("ctl.notice", self._heard)

    def another(self) -> Replays:
        """Those of a control plane that starts now."""
        return Replays(self.mesh.policies, lambda kind, **facts: self.mesh.audited.append((kind, facts)))

    def _heard(self, _subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        said = msgspec.json.decode(data)
        if said["kind"] == "replay":
            self.notices.append(said)

    async def start(self, begin: Point = ALL, end: Point = NOW, **more: Any) -> dict[str, Any]:
        """Replay to support's contacts."""
        return await self.replays.start("support", "contacts", begin, end, **more)

    async def subscribed(self, types: str = "crm.>", more: str = "", access: str = reads("masked", ">")) -> None:
        """Have support read *types*."""
        await self.mesh.apply(access, more=SUBSCRIPTION % (types, more))

    async def store(self, *types: str, view: str = "masked") -> list[int]:
        """Store copies; their sequences."""
        return [await self.mesh.store_event(view, type_) for type_ in types]

    async def take(self, name: str = REPLAY, stream: str = CRM, *, group: str = "") -> list[tuple[int, str, str]]:
        """What a durable delivers to support, acked: sequence, type, ack subject."""
        support = await self.mesh.team("support")
        got = await take(support, name, stream, group=group)
        for _, _, reply in got:
            await support.request(reply, b"+ACK")
        return got

    async def durables(self, stream: str = CRM) -> set[str]:
        """Those in a stream."""
        return {name for at, name in (await manage.read_actual(self.mesh.control)).consumers if at == stream}

    async def one(self) -> dict[str, Any]:
        """The replay that began last, as `list` tells it."""
        return (await self.replays.runs())[0]

    async def told(self, to: dict[str, int], streams: list[str]) -> dict[str, Any]:
        """The newest notice, once it is one of a replay that goes so far, and is to be pulled from *streams*."""

        async def heard() -> bool:
            return bool(self.notices) and (self.notices[-1]["to"], self.notices[-1]["stream"]) == (to, streams)

        await until(heard)
        return self.notices[-1]

    def audited(self) -> list[str]:
        """What the trail says of replays."""
        return [kind for kind, _ in self.mesh.audited if kind.startswith("replay-")]


def failing(which: str) -> Callable[..., Awaitable[dict[str, Any]]]:
    """The API of JetStream, but that nobody answers to *which*."""
    real = manage.api

    async def api(connection: Connection, verb: str, body: Any = None) -> dict[str, Any]:
        if verb == which:
            raise Unavailable("here")
        return await real(connection, verb, body)

    return api


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A tenant in which support may read everything, masked, since the beginning."""
    monkeypatch.setattr(replay_module, "LOOK_S", 0.05)
    async with PolicyMesh.running(tmp_path) as mesh:
        world = World(mesh)
        await world.subscribed()
        world.replays = world.another()
        yield world


@asynccontextmanager
async def looked_after(replays: Replays) -> AsyncIterator[None]:
    """*replays* run for the length of the block."""
    async with anyio.create_task_group() as group:
        group.start_soon(replays.run)
        yield
        group.cancel_scope.cancel()


# --- what it delivers ------------------------------------------------------------------------------------------------


async def test_a_replay_delivers_stored_copies_again_beside_the_live_position(world: World) -> None:
    """From a sequence to another, as they are stored; what is live goes on; then it is over, and leaves nothing."""
    await world.store(CONTACT, DEAL, CONTACT, DEAL)
    assert [seq for seq, _, _ in await world.take(DURABLE)] == [1, 2, 3, 4]
    begun = await world.start(Point(seq=2), Point(seq=3), author="ada", reason="again")
    assert (begun["streams"][CRM], begun["state"]) == ({"first": 2, "last": 3, "count": 2, "left": 2}, "open")
    assert begun["bound_ms"] == 0
    assert await world.told({CRM: 3}, [CRM]) == {
        "kind": "replay", "team": "support", "subscription": "contacts", "run": begun["run"],
        "to": {CRM: 3}, "stream": [CRM],
    }  # fmt: skip
    await world.store(CONTACT)
    assert [(seq, type_) for seq, type_, _ in await world.take()] == [(2, DEAL), (3, CONTACT), (4, DEAL), (5, CONTACT)]
    assert [seq for seq, _, _ in await world.take(DURABLE)] == [5]
    assert (await world.one())["state"] == "finished"
    assert await world.durables() == {DURABLE}
    assert world.audited() == ["replay-started", "replay-finished"]
    facts = world.mesh.audited[-2][1]
    assert (facts["streams"], facts["copies"], facts["author"], facts["reason"]) == ({CRM: [2, 3]}, 2, "ada", "again")


async def test_notices_go_on_until_it_is_settled(world: World) -> None:
    """Whoever starts later hears of it too; nothing is said any more once all is settled."""
    await world.store(CONTACT)
    async with looked_after(world.replays):
        await world.start()

        async def told_often() -> bool:
            return len(world.notices) > 3

        await until(told_often)
        await world.take()

        async def over() -> bool:
            return await world.durables() == {DURABLE}

        await until(over)
    assert world.audited() == ["replay-started", "replay-finished"]


async def test_times_are_places_in_the_stream(world: World) -> None:
    """From the first that was stored then or later, to the last before; a dry run counts, and begins nothing."""
    await world.store(CONTACT, CONTACT)
    await anyio.sleep(0.005)  # the server's clock is this one, and events lie at least a millisecond apart
    middle = time.time_ns() // 1_000_000
    await anyio.sleep(0.005)
    await world.store(DEAL, DEAL, CONTACT)
    later = Point(ms=middle + 86_400_000)
    for begin, end, types, expected in (
        (Point(ms=middle), NOW, (), (3, 5, 3)),
        (ALL, Point(ms=middle), (), (1, 2, 2)),
        (Point(ms=1), later, (), (1, 5, 5)),
        (ALL, NOW, ("crm.contact.>",), (1, 5, 3)),
        (Point(ms=middle), NOW, ("*.contact.>", "hr.>"), (3, 5, 1)),
        (Point(seq=4), Point(seq=400), (), (4, 5, 2)),
    ):
        found = await world.start(begin, end, types=types, dry_run=True)
        part = found["streams"][CRM]
        assert (part["first"], part["last"], part["count"]) == expected
        assert found["run"] == ""
    for begin, end in (
        (later, NOW),
        (Point(seq=6), NOW),
        (Point(seq=3), Point(seq=2)),
        (Point(ms=middle), Point(ms=1)),
    ):
        assert (await world.start(begin, end, dry_run=True))["count"] == 0
        with pytest.raises(NotFound, match="nothing is stored there"):
            await world.start(begin, end)
    assert await world.durables() == {DURABLE}
    assert world.audited() == []


async def test_what_is_stored_meanwhile_hides_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More arrives between two questions than the replay takes: the stream is not left out, nor is it too much."""
    await world.store(CONTACT, CONTACT, CONTACT)
    real = replay_reach._matching

    async def busy(*arguments: Any) -> int:
        count = await real(*arguments)
        await world.store(CONTACT, CONTACT, CONTACT, CONTACT)
        return count

    monkeypatch.setattr(replay_reach, "_matching", busy)
    assert (await world.start(Point(seq=1), Point(seq=3), dry_run=True))["streams"][CRM]["count"] == 3


async def test_types_narrow_what_is_delivered(world: World) -> None:
    """Only those; a pattern of nothing that the subscription reads is refused."""
    await world.store(CONTACT, DEAL, CONTACT)
    await world.start(types=["crm.deal.>"])
    assert [type_ for _, type_, _ in await world.take()] == [DEAL]
    with pytest.raises(NotFound, match="reads nothing of github"):
        await world.start(types=["github.>"])


async def test_several_streams_are_replayed_together(world: World) -> None:
    """Each to its own end; a part that is settled says nothing more, and a sequence would mean nothing."""
    await world.subscribed(">")
    await world.store(CONTACT, PERSON, PERSON)
    with pytest.raises(BadAttribute, match="several streams"):
        await world.start(Point(seq=1))
    assert (await world.start(Point(seq=1), types=["hr.>"], dry_run=True))["count"] == 2
    begun = await world.start()
    assert {stream: part["count"] for stream, part in begun["streams"].items()} == {CRM: 1, HR: 2}
    await world.take()
    await world.store(CONTACT)
    assert (await world.one())["left"] == 2
    await world.told({CRM: 1, HR: 2}, [HR])
    assert await world.take() == []  # paused: what comes now is live alone
    await world.take(stream=HR)
    assert (await world.one())["state"] == "finished"
    assert (await world.durables(), await world.durables(HR)) == ({DURABLE}, {DURABLE})


async def test_an_ordered_subscription_is_replayed_by_one_at_a_time(world: World) -> None:
    """Its replay has no slots, and is pinned as they are."""
    await world.store(CONTACT, DEAL)
    await world.subscribed(more=", order_by: partitionkey")
    await world.start()
    config = (await manage.consumer_info(world.mesh.control, CRM, REPLAY))["config"]
    assert (config["priority_groups"], config["priority_policy"]) == ([PIN_GROUP], "pinned_client")
    assert filters_of(config) == (f"ev.{SITE}.masked.*.crm.>",)
    assert [seq for seq, _, _ in await world.take(group=PIN_GROUP)] == [1, 2]
    assert (await world.one())["state"] == "finished"


# --- one at a time, and what ends it ---------------------------------------------------------------------------------


async def test_a_subscription_has_one_replay_at_a_time(world: World) -> None:
    """The second is told which is open; once that is cancelled it may begin, and nothing of the first is left."""
    await world.store(CONTACT)
    first = await world.start()
    with pytest.raises(ReplayOpen) as refused:
        await world.start()
    assert refused.value.got == f"run {first['run']}"
    ended = await world.replays.cancel(first["run"], author="ada", reason="wrong")
    assert (ended["state"], ended["left"]) == ("cancelled", 1)
    with pytest.raises(NotFound):
        await world.replays.cancel(first["run"])
    assert await world.durables() == {DURABLE}
    second = await world.start()
    told = {run["run"]: run["state"] for run in await world.replays.runs()}
    assert told == {first["run"]: "cancelled", second["run"]: "open"}
    assert world.audited() == ["replay-started", "replay-cancelled", "replay-started"]
    assert world.mesh.audited[-2][1]["reason"] == "wrong"


async def test_a_run_is_announced_before_its_durable_and_taken_back_before_it_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs share a name: whoever pulls by it has heard by then whose it is."""
    await world.store(CONTACT)
    told: list[tuple[str, str, list[str]]] = []
    real = manage.api

    async def api(connection: Connection, verb: str, body: Any = None) -> dict[str, Any]:
        if verb.endswith(f".{CRM}.{REPLAY}") and not verb.startswith("CONSUMER.INFO"):
            await world.mesh.control.flush(10)
            last: dict[str, Any] = world.notices[-1] if world.notices else {"run": "", "stream": [""]}
            told.append((verb.split(".")[1], last["run"], last["stream"]))
        return await real(connection, verb, body)

    monkeypatch.setattr(manage, "api", api)
    first = (await world.start())["run"]
    await world.told({CRM: 1}, [CRM])
    await world.replays.cancel(first)
    second = (await world.start())["run"]
    await world.told({CRM: 1}, [CRM])
    await world.take()
    assert (await world.one())["state"] == "finished"
    assert told == [(verb, run, []) for run in (first, second) for verb in ("CREATE", "DELETE")]


async def test_whoever_leads_next_goes_on_with_what_is_open(world: World) -> None:
    """All that a replay is stands on its durables."""
    await world.store(CONTACT)
    begun = await world.start(author="ada", reason="again")
    first = await world.told({CRM: 1}, [CRM])
    world.notices.clear()
    world.replays = world.another()
    with pytest.raises(ReplayOpen):
        await world.start()
    assert await world.replays.runs() == [
        {key: value for key, value in begun.items() if key not in {"bound_ms", "client"}}
    ]
    assert await world.told({CRM: 1}, [CRM]) == first
    await world.take()
    assert (await world.one())["state"] == "finished"


async def test_a_replay_that_was_made_in_part_is_ended(world: World) -> None:
    """A control plane died between two durables: half of it would look like all."""
    await world.subscribed(">")
    await world.store(CONTACT, PERSON)
    await world.start()
    await manage.api(world.mesh.control, f"CONSUMER.DELETE.{HR}.{REPLAY}")
    world.replays = world.another()
    assert await world.replays.runs() == [{**await world.one(), "state": "cancelled"}]
    assert await world.durables() == {DURABLE}


async def test_a_replay_that_lost_a_durable_is_not_finished(world: World) -> None:
    """Whatever of it was settled: what the other would have brought was not, and the trail says so."""
    await world.subscribed(">")
    await world.store(CONTACT, PERSON, PERSON)
    await world.start()
    await manage.api(world.mesh.control, f"CONSUMER.DELETE.{HR}.{REPLAY}")
    await world.take()
    ended = await world.one()
    assert (ended["state"], ended["left"], ended["streams"][HR]["left"]) == ("cancelled", 2, 2)
    assert world.audited() == ["replay-started", "replay-cancelled"]
    facts = world.mesh.audited[-1][1]
    assert (facts["left"], facts["reason"]) == (2, f"incomplete: its durable is gone from {HR}")
    assert await world.durables() == {DURABLE}


async def test_a_replay_that_is_finished_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not answer as its durables are removed: the rest goes later, and it was no less finished."""
    await world.subscribed(">")
    await world.store(CONTACT, PERSON)
    await world.start()
    await world.take()
    await world.take(stream=HR)
    with monkeypatch.context() as patch:
        patch.setattr(manage, "api", failing(f"CONSUMER.DELETE.{HR}.{REPLAY}"))
        with pytest.raises(Unavailable):
            await world.replays.runs()
    assert await world.durables() == {DURABLE}
    assert (await world.one())["state"] == "finished"
    assert await world.durables(HR) == {DURABLE}
    assert world.audited() == ["replay-started", "replay-finished"]


async def test_a_replay_that_cannot_be_looked_at_keeps_no_other_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again each time; once that works it ends too."""
    more = (SUBSCRIPTION + SUBSCRIPTION.replace("name: contacts", "name: others")) % ("crm.>", "", "crm.>", "")
    await world.mesh.apply(reads("masked", ">"), more=more)
    await world.store(CONTACT)
    others = "support--others"
    first = await world.start()
    second = await world.replays.start("support", "others", ALL, NOW)

    async def state(run: str) -> str:
        return next(str(one["state"]) for one in await world.replays.runs() if one["run"] == run)

    async def gone(name: str) -> bool:
        return name not in await world.durables()

    async with looked_after(world.replays):
        with monkeypatch.context() as patch:
            patch.setattr(manage, "api", failing(f"CONSUMER.INFO.{CRM}.{REPLAY}"))
            await world.take()
            await world.take(f"{others}--replay")
            await until(lambda: gone(f"{others}--replay"))
            assert not await gone(REPLAY)
        await until(lambda: gone(REPLAY))
    assert [await state(run["run"]) for run in (first, second)] == ["finished"] * 2


async def test_a_replay_that_cannot_be_made_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stream's durable fails: the first one's is removed again."""
    await world.subscribed(">")
    await world.store(CONTACT, PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(manage, "api", failing(f"CONSUMER.CREATE.{HR}.{REPLAY}"))
        with pytest.raises(Unavailable):
            await world.start()
    assert await world.durables() == {DURABLE}
    assert (await world.start())["count"] == 2


# --- rights ----------------------------------------------------------------------------------------------------------


async def test_what_a_team_could_not_read_is_not_replayed(world: World) -> None:
    """A right that came later opens nothing of before, to a plain client either; `since` does."""
    await world.store(CONTACT)
    await world.mesh.apply(reads("masked", "hr.>"), more="")
    await world.store(CONTACT)
    await world.subscribed()
    (after,) = await world.store(CONTACT)
    found = await world.start(dry_run=True)
    assert (found["streams"][CRM]["first"], found["count"]) == (after, 1)
    assert found["bound_ms"] > 0
    at_ms = time.time_ns() // 1_000_000 - 3_600_000
    await world.subscribed(access=reads("masked", "crm.>", since=instant_text(at_ms)))
    found = await world.start(dry_run=True)
    assert (found["count"], found["bound_ms"]) == (3, at_ms)


async def test_what_was_skipped_on_purpose_is_not_replayed(world: World) -> None:
    """`--skip-backlog` ends a replay that is open, and no later one reaches back before it, in the same view either."""
    await world.store(CONTACT, CONTACT)
    await world.start()
    stricter = {
        name: text.replace("otherwise: redact", "otherwise: drop")
        for name, text in policies(reads("masked", ">"), more=SUBSCRIPTION % ("crm.>", "")).items()
    }
    await world.mesh.policies.apply(stricter, {}, author="ada", skip_backlog=True)
    assert (await world.one())["state"] == "cancelled"
    assert await world.durables() == {DURABLE}
    assert (await world.start(dry_run=True))["count"] == 0
    (after,) = await world.store(CONTACT)
    found = await world.start(dry_run=True)
    assert found["streams"][CRM] == {"first": after, "last": after, "count": 1, "left": 1}
    await world.subscribed(more=", order_by: partitionkey")
    assert (await world.start(dry_run=True))["streams"] == found["streams"]  # the bound goes on with the durables


async def test_rights_that_go_are_taken_from_a_replay_too(world: World) -> None:
    """Fewer types narrow it, none silence it; a subscription that comes back goes on with it."""
    await world.store(CONTACT, DEAL)
    await world.start()
    await world.subscribed("crm.contact.>")
    assert await world.mesh.filters(REPLAY) == {"masked crm.contact.>"}
    await world.mesh.apply(reads("masked", "hr.>"), more=SUBSCRIPTION % ("crm.contact.>", ""))
    assert await world.mesh.paused(REPLAY)
    assert (await world.one())["state"] == "paused"
    await world.subscribed("crm.contact.>")
    assert not await world.mesh.paused(REPLAY)
    assert [type_ for _, type_, _ in await world.take()] == [CONTACT]
    assert (await world.one())["state"] == "finished"


async def test_an_old_view_is_replayed_as_far_as_its_types_are_read(world: World) -> None:
    """A change of view while a replay is open leaves it what it had; one that begins later takes copies of the new."""
    await world.store(CONTACT)
    await world.start()
    await world.subscribed(access=reads("bare", ">"))
    await world.store(CONTACT, view="bare")
    assert [seq for seq, _, _ in await world.take()] == [1]
    assert (await world.one())["state"] == "finished"
    assert (await world.start(dry_run=True))["streams"][CRM]["first"] == 2


# --- the door --------------------------------------------------------------------------------------------------------


async def test_the_door_answers_about_replays(world: World) -> None:
    """`start`, `list` and `cancel`, for who proves to be an operator; what is malformed says so."""
    await world.store(CONTACT)
    door = ControlDoor(world.mesh.control, replay_requests.handlers(world.replays), world.mesh.proofs(), noun="replay")

    async def ask(verb: str, **body: Any) -> dict[str, Any]:
        return await world.mesh.ask(f"replay.{verb}", msgspec.json.encode(body))

    async with anyio.create_task_group() as group:
        group.start_soon(door.run)
        begun = await ask("start", team="support", subscription="contacts", from_seq=1, author="ada")
        assert begun["count"] == 1
        assert [run["run"] for run in (await ask("list"))["runs"]] == [begun["run"]]
        assert (await ask("cancel", run=begun["run"]))["state"] == "cancelled"
        for body, code in (
            ({"team": "support", "subscription": "contacts", "from_seq": 0}, "bad-attribute"),
            ({"team": "support"}, "bad-attribute"),
            ({"team": "support", "subscription": "none"}, "not-found"),
            ({"team": "support", "subscription": "contacts", "types": ["a.>.b"]}, "bad-pattern"),
        ):
            assert (await ask("start", **body))["error"]["code"] == code
        group.cancel_scope.cancel()
