"""A change of policies and the events stored before it: a real agent publishes, a real subscription reads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.lifecycle import Sidecar
from mesh.anchors import open_keyring
from mesh.context import SubscriptionAddress
from mesh.inbound import Admitted
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.judging import WITHHELD
from mesh.policy.bundle import Bundle
from mesh.pullers import Pullers
from mesh.subscription import Subscription
from mesh.telemetry import Counter
from mesh.trust_watch import TrustWatch
from mesh.unhandled import REJECTED
from mesh.watch import BundleWatch
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, Streams, event, now_ms, sidecar, until, write_directory
from tests.contract.consumer_mesh import sealed_statement

pytestmark = pytest.mark.anyio

DEADLINE_S = 30
TYPE = "crm.contact.created.v1"
STREAM = "EV_local_crm"
DURABLE = "support--contacts"
SUBSCRIPTION = """---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["crm.contact.>"], start: all}
"""
BASE = POLICIES + SUBSCRIPTION
READS = '{id: support-reads, who: {teams: [support]}, subscribe: ["crm.contact.>"], view: service}'
PSEUDONYM = "{tags: [pii.contact.email], as: pseudonym, with: {domain: customer}}"
PUBLISHES = '{id: crm-publishes, who: {teams: [crm]}, publish: ["crm.>", "github.>"], sources: ["/github/*"]}'


def changed(old: str, new: str, policies: str = BASE) -> str:
    """The policies with one line replaced."""
    assert policies.count(old) == 1
    return policies.replace(old, new)


CLEAR_EMAIL = changed(PSEUDONYM, "{tags: [pii.contact.email], as: clear}")
IN_AN_HOUR = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
GLASS = changed(READS, READS.replace("service}", f'service, expires: "{IN_AN_HOUR}", reason: "INC-1"}}')).replace(
    'types: ["crm.contact.>"], start: all', 'types: ["crm.contact.>"], view: service, start: all'
)


@dataclass
class Desk:
    """The team support, and what it reads from."""

    streams: Streams
    running: Sidecar
    connection: Connection
    bundle: BundleWatch
    trust: TrustWatch

    async def apply(self, policies: str) -> Bundle:
        """Hand out the next revision; returns once agent and team run it."""
        made = await self.streams.hand_out(policies=policies)
        await until(lambda: self.running.agent.state()["bundle_revision"] == made.revision)
        await self.bundle.refresh()
        assert self.bundle.state.revision == made.revision
        return made

    async def publish(self, *ids: str, **more: Any) -> None:
        """Publish events through the agent."""
        for id_ in ids:
            await self.running.agent.publish(event(id=id_, **more))

    @asynccontextmanager
    async def subscription(self, *, views: tuple[str, ...] = ("service",), **more: Any) -> AsyncIterator[Subscription]:
        """The subscription, with a durable over these views."""
        await self.durable(*views)
        reading = Subscription(
            self.connection,
            team="support",
            name="contacts",
            address=SubscriptionAddress(stream=STREAM, durable=DURABLE, view=views[0]),
            bundle=self.bundle,
            trust=self.trust,
            **more,
        )
        async with reading:
            yield reading

    async def durable(self, *views: str, domain: str = "crm", types: str = "crm.contact.>") -> None:
        """Make the durable, as the control plane does."""
        stream = f"EV_local_{domain}"
        config = {
            "durable_name": DURABLE,
            "name": DURABLE,
            "ack_policy": "explicit",
            "ack_wait": 30_000_000_000,
            "deliver_policy": "all",
            "filter_subjects": [f"ev.local.{view}.*.{types}" for view in views],
        }
        body = {"stream_name": stream, "config": config, "action": ""}
        await manage.api(self.connection, f"CONSUMER.CREATE.{stream}.{DURABLE}", body)

    async def settled(self, stream: str = STREAM) -> bool:
        """Whether everything stored was delivered and acked."""
        info = await manage.consumer_info(self.connection, stream, DURABLE)
        return bool(info["num_pending"] == 0 and info["num_ack_pending"] == 0)

    async def all_of(self, **more: Any) -> list[Admitted]:
        """Everything that the team is handed until nothing is left, in order."""
        got: list[Admitted] = []

        async def handle(handed: Admitted) -> None:
            got.append(handed)

        async with self.subscription(**more) as reading, anyio.create_task_group() as group:
            group.start_soon(lambda: reading.run(handle, concurrency=1))
            await until(self.settled, timeout_s=DEADLINE_S)
            group.cancel_scope.cancel()
        return got


@asynccontextmanager
async def desk_of(directory: Path, policies: str) -> AsyncIterator[Desk]:
    """A mesh with these policies as its first revision."""
    base = write_directory(directory / "agent")
    async with Streams.running(directory / "nats", bundle=False) as streams:
        await streams.hand_out(policies=policies)
        async with sidecar(base, streams.server.url) as running:
            await until(lambda: not running.agent.not_ready())
            signer = running.agent.keys.signer
            await KeyValue(streams.connection, "mesh_trust").put(f"cert.{signer.kid}", signer.certificate)
            connection = await Connection.open(streams.server.url, name="team-support")
            try:
                bundle = BundleWatch(connection, POLICY_KEY, tenant="acme")
                await bundle.refresh()
                trust = TrustWatch(connection, open_keyring(base / "trust", tenant="acme"))
                await trust.refresh()
                yield Desk(streams, running, connection, bundle, trust)
            finally:
                await connection.close()


class Since:
    """What a metric has counted since this was made."""

    def __init__(self, metric: Counter, **attributes: str) -> None:
        self._metric = metric
        self._attributes = attributes
        self._before = metric.value(**attributes)

    def __call__(self) -> float:
        """The count."""
        return self._metric.value(**self._attributes) - self._before


async def test_a_narrowed_mask_reaches_the_backlog(tmp_path: Path) -> None:
    """What was stored in clear is handed over redacted once its view masks it; newer copies come as they were made."""
    async with desk_of(tmp_path, CLEAR_EMAIL) as desk:
        await desk.publish("old-1", "old-2")
        await desk.apply(BASE)
        await desk.publish("new")
        got = await desk.all_of()
    assert [handed.id for handed in got] == ["old-1", "old-2", "new"]
    assert [handed.data["email"] for handed in got[:2]] == ["[REDACTED]"] * 2
    assert got[2].data["email"].startswith("p")
    assert [handed.fields["policyrevision"] for handed in got] == [1, 1, 2]
    assert all("ada@" not in repr(handed.fields) for handed in got)


async def test_a_widened_mask_shows_no_history(tmp_path: Path) -> None:
    """Copies are what they are: a pseudonym stays one."""
    async with desk_of(tmp_path, BASE) as desk:
        await desk.publish("old")
        await desk.apply(CLEAR_EMAIL)
        await desk.publish("new")
        got = await desk.all_of()
    assert got[0].data["email"].startswith("p")
    assert got[1].data["email"] == "ada@example.org"


async def test_a_change_of_view_neither_doubles_nor_skips(tmp_path: Path) -> None:
    """With both views in the durable each event comes once: in the old view before the change, in the new one after."""
    lake = POLICIES.replace("desk]}", "desk]}, audit: {agents: [auditor]}").replace(
        "  deny:\n", '    - {id: audits, who: {teams: [audit]}, subscribe: ["crm.contact.>"], view: TWIN}\n  deny:\n'
    )
    twin = """---
apiVersion: mesh/v1
kind: View
metadata: {name: twin, tenant: acme, owner: security}
spec: {mask: [{tags: [public], as: clear}], otherwise: redact}
"""
    before = lake.replace("TWIN", "twin") + twin + SUBSCRIPTION  # somebody reads each view, so both copies are made
    after = changed(
        READS, READS.replace("view: service", "view: twin"), lake.replace("TWIN", "service") + twin + SUBSCRIPTION
    )
    counted = Since(WITHHELD, code="not-granted-then"), Since(WITHHELD, code="other-view")
    async with desk_of(tmp_path, before) as desk:
        await desk.publish("e-1", "e-2")
        await desk.apply(after)
        await desk.publish("e-3", "e-4")
        got = await desk.all_of(views=("service", "twin"))
    assert [(handed.id, handed.view) for handed in got] == [
        ("e-1", "service"), ("e-2", "service"), ("e-3", "twin"), ("e-4", "twin"),
    ]  # fmt: skip
    assert got[0].data == {"country": "DE", "email": "[REDACTED]"}
    assert [count() for count in counted] == [2, 2]


async def test_a_new_grant_opens_no_history_unless_it_says_since(tmp_path: Path) -> None:
    """Without `since` the backlog is withheld and counted; with it, what was stored from then on is handed over."""
    without = (
        BASE.replace(f"    - {READS}\n", "")
        .replace(
            "  deny:\n",
            '    - {id: second, who: {teams: [audit]}, subscribe: ["crm.contact.>"], view: service}\n  deny:\n',
        )
        .replace("desk]}", "desk]}, audit: {agents: [auditor]}")
    )
    granted = without.replace("  deny:\n", f"    - {READS}\n  deny:\n")
    counted = Since(WITHHELD, code="not-granted-then")
    async with desk_of(tmp_path, without) as desk:
        await desk.publish("old")
        await desk.apply(granted)
        await desk.publish("new")
        assert [handed.id for handed in await desk.all_of()] == ["new"]
        assert counted() == 1
        await manage.api(desk.connection, f"CONSUMER.DELETE.{STREAM}.{DURABLE}")
        await desk.apply(changed(READS, READS.replace("service}", 'service, since: "2020-01-01T00:00:00Z"}'), granted))
        assert [handed.id for handed in await desk.all_of()] == ["old", "new"]


async def test_withdrawing_a_publish_right_does_not_kill_its_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V5 is judged at stream time: what was stored while the right held is handed over, what came after is refused."""
    monkeypatch.setattr("mesh.bundles.ADOPTION_MS", 0)  # else what comes at once after counts as accepted before
    withdrawn = (
        changed(PUBLISHES, PUBLISHES.replace('"crm.>"', '"crm.deal.>"'))
        .replace('subscribe: ["crm.contact.>", "crm.deal.>", "github.>"]', 'subscribe: ["crm.deal.>", "github.>"]')
        .replace("  deny:\n", '    - {id: desk-publishes, who: {teams: [support]}, publish: ["crm.>"]}\n  deny:\n')
    )
    rejected = Since(REJECTED, code="publisher-not-allowed")
    async with desk_of(tmp_path, BASE) as desk:
        await desk.publish("allowed")
        outbound = desk.running.agent.outbound
        assert outbound is not None
        plans = outbound._plans
        await desk.apply(withdrawn)
        outbound._plans = plans  # a stolen agent: it goes on as if nothing had happened
        await desk.publish("after")
        got = await desk.all_of()
    assert [handed.id for handed in got] == ["allowed"]
    assert rejected() == 1


async def test_what_was_fetched_and_not_handed_over_is_judged_again(tmp_path: Path) -> None:
    """Events that wait in the process when a bundle comes into force are tightened too, in their order."""
    async with desk_of(tmp_path, CLEAR_EMAIL) as desk:
        await desk.publish("1", "2", "3")
        async with desk.subscription() as reading:
            first = await reading.next()
            await until(lambda: len(reading.feed._ready) == 2)
            await desk.apply(BASE)
            await desk.publish("4")
            got = []
            with anyio.fail_after(DEADLINE_S):
                for _ in range(3):
                    delivery = await reading.next()
                    got.append(delivery.event)
                    delivery.ack()
    assert first.event.data["email"] == "ada@example.org"
    assert [handed.id for handed in got] == ["2", "3", "4"]
    assert [handed.data["email"] for handed in got[:2]] == ["[REDACTED]"] * 2
    assert got[2].data["email"].startswith("p")


async def test_a_grant_that_ends_while_events_wait_hands_none_of_them_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were admitted in time and asked for too late: the clock counts when they are handed over."""
    told: list[Admitted] = []
    counted = Since(WITHHELD, code="no-allow-matched")
    async with desk_of(tmp_path, GLASS) as desk:
        await desk.publish("e-1", "e-2")
        async with desk.subscription(on_unmask=told.append) as reading:
            await until(lambda: len(reading.feed._ready) == 2)
            ahead_ms = 7_200_000
            desk.trust.keyring.apply(sealed_statement(100, now_ms() + ahead_ms))  # trust is as fresh as ever
            monkeypatch.setattr("mesh.feed._now_ms", lambda: now_ms() + ahead_ms)
            assert reading.feed.take() is None
            await until(desk.settled)
    assert told == []
    assert counted() == 2


async def test_what_lacks_an_old_bundle_waits_in_order(tmp_path: Path) -> None:
    """A backlog over several revisions is fetched for as it is met, and nothing overtakes."""
    async with desk_of(tmp_path, CLEAR_EMAIL) as desk:
        for number in range(1, 4):
            await desk.publish(f"{number}-a", f"{number}-b")
            await desk.apply((BASE, CLEAR_EMAIL)[number % 2 == 0])
        await desk.publish("4-a")
        fresh = BundleWatch(desk.connection, POLICY_KEY, tenant="acme")
        await fresh.refresh()
        desk.bundle = fresh
        got = await desk.all_of()
    assert [handed.id for handed in got] == ["1-a", "1-b", "2-a", "2-b", "3-a", "3-b", "4-a"]
    redacted = [handed.id for handed in got if handed.data["email"] == "[REDACTED]"]
    assert redacted == ["1-a", "1-b", "3-a", "3-b"]


async def test_an_old_bundle_that_is_gone_keeps_its_copies_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are neither handed over nor dropped: they come again until the control plane has put it back."""
    monkeypatch.setattr("mesh.judging.PAST_RETRY_S", 0.05)
    async with desk_of(tmp_path, CLEAR_EMAIL) as desk:
        await desk.publish("old")
        store = KeyValue(desk.connection, "mesh_policy")
        entry = await store.get("bundle.1")
        assert entry is not None
        await desk.apply(BASE)
        await store.put("bundle.1", b"")
        desk.bundle = BundleWatch(desk.connection, POLICY_KEY, tenant="acme")
        await desk.bundle.refresh()
        rejected = Since(REJECTED, code="revision-needed")
        got: list[Admitted] = []
        async with desk.subscription() as reading:
            await until(lambda: rejected() >= 2)
            assert reading.feed.take() is None
            await store.put("bundle.1", entry.value)
            with anyio.fail_after(DEADLINE_S):
                delivery = await reading.next()
            got.append(delivery.event)
            delivery.ack()
    assert [(handed.id, handed.data["email"]) for handed in got] == [("old", "[REDACTED]")]


async def test_each_event_that_an_expiring_grant_hands_over_is_told(tmp_path: Path) -> None:
    """Break-glass is recorded per event: rule, type, view, id and source; a lasting grant tells nothing."""
    told: list[Admitted] = []
    for policies, expected in ((BASE, []), (GLASS, ["e-1", "e-2"])):
        async with desk_of(tmp_path / str(len(expected)), policies) as desk:
            await desk.publish("e-1", "e-2")
            got = await desk.all_of(on_unmask=told.append)
        assert [handed.id for handed in got] == ["e-1", "e-2"]
        assert [handed.id for handed in told] == expected
    assert (told[0].rule, told[0].type, told[0].view, told[0].source) == ("support-reads", TYPE, "service", "/crm")


# --- deliveries that only waited -------------------------------------------------------------------------------------

ONE_ATTEMPT = BASE.replace("start: all}", "start: all, retry: {attempts: 1}}")
LIMIT = 10 * 1  # deliveries after which an event that nobody lived to settle is buried, with one attempt


async def lack_past(desk: Desk) -> Callable[[], Awaitable[object]]:
    """An event of revision 1 while 2 is in force and 1 cannot be read; returns what puts it back."""
    await desk.publish("waited")
    store = KeyValue(desk.connection, "mesh_policy")
    entry = await store.get("bundle.1")
    assert entry is not None
    await desk.apply(changed(PSEUDONYM, "{tags: [pii.contact.email], as: redact}", ONE_ATTEMPT))
    await store.put("bundle.1", b"")
    desk.bundle = BundleWatch(desk.connection, POLICY_KEY, tenant="acme")
    await desk.bundle.refresh()
    return lambda: store.put("bundle.1", entry.value)


async def lack_newer(desk: Desk) -> Callable[[], Awaitable[object]]:
    """An event that a revision grants of which the team has not heard; returns what tells it."""
    await desk.apply(changed(READS, READS.replace("crm.contact.>", "crm.contact.updated.v1"), ONE_ATTEMPT))
    made = await desk.streams.hand_out(policies=ONE_ATTEMPT)
    await until(lambda: desk.running.agent.state()["bundle_revision"] == made.revision)
    await desk.publish("waited")
    return desk.bundle.refresh


async def lack_key(desk: Desk) -> Callable[[], Awaitable[object]]:
    """An event whose certificate cannot be read; returns what puts it back."""
    await desk.publish("waited")
    signer = desk.running.agent.keys.signer
    store = KeyValue(desk.connection, "mesh_trust")
    await store.delete(f"cert.{signer.kid}")
    return lambda: store.put(f"cert.{signer.kid}", signer.certificate)


@pytest.mark.parametrize("lack", [lack_past, lack_newer, lack_key])
async def test_an_event_that_only_waited_is_handled_and_not_buried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Callable[[Desk], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    """However often it had to wait for a bundle or a certificate: once that is there, a handler gets it."""
    for name in ("PAST_RETRY_S", "BEHIND_RETRY_S", "UNKNOWN_KEY_RETRY_S"):
        monkeypatch.setattr(f"mesh.judging.{name}", 0.05)
    async with desk_of(tmp_path, ONE_ATTEMPT) as desk:
        give = await lack(desk)

        async def delivered_often() -> bool:
            info = await manage.consumer_info(desk.connection, STREAM, DURABLE)
            return int(info["delivered"]["consumer_seq"]) > LIMIT + 2

        async with desk.subscription() as reading:
            await until(delivered_often)
            await give()
            with anyio.fail_after(DEADLINE_S):
                delivery = await reading.next()
            assert delivery.event.attempt > LIMIT
            delivery.ack()
            await until(desk.settled)
            assert len(reading.feed.waits) == 0
        assert await desk.streams.stored("DLQ") == 0
    assert delivery.event.id == "waited"


async def test_an_event_that_ended_its_processes_is_buried(tmp_path: Path) -> None:
    """Delivered too often to others who never settled it, it is a dead letter at its first delivery here."""
    async with desk_of(tmp_path, ONE_ATTEMPT) as desk:
        await desk.publish("deadly")
        await desk.durable("service")
        for _ in range(LIMIT + 1):
            reply = await taken(desk)
            await desk.connection.publish(reply, b"-NAK")
        await desk.publish("harmless")
        handled: list[str] = []

        async def handle(event: Admitted) -> None:
            handled.append(event.id)

        async with desk.subscription() as reading, anyio.create_task_group() as group:
            group.start_soon(reading.run, handle)  # until the end: which of the two comes first is the server's affair
            await until(desk.settled)
            group.cancel_scope.cancel()
        assert handled == ["harmless"]
        assert await desk.streams.stored("DLQ") == 1


async def taken(desk: Desk) -> str:
    """Pull one event and keep it; returns its ack subject."""
    got: list[str] = []
    inbox = desk.connection.new_inbox()
    listener = desk.connection.listen(inbox, lambda _subject, reply, *_: got.append(reply))
    await desk.connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}", b'{"batch":1}', reply=inbox)
    await until(lambda: got)
    listener.close()
    return got[0]


# --- domains that come and go ----------------------------------------------------------------------------------------

GITHUB = "EV_local_github"
WIDER_READS = changed(READS, READS.replace('"crm.contact.>"', '"crm.contact.>", "github.>"'))
WIDER = WIDER_READS.replace('types: ["crm.contact.>"]', 'types: ["crm.contact.>", "github.>"]')


async def test_a_domain_comes_and_goes_while_the_subscription_runs(tmp_path: Path) -> None:
    """A domain that a bundle adds is pulled at once; once one takes it away that ends; what is in hand is settled."""

    async def push(desk: Desk, id_: str) -> None:
        await desk.publish(id_, type="github.push.received.v1", source="/github/acme")

    async def nobody_pulls() -> bool:
        return bool((await manage.consumer_info(desk.connection, GITHUB, DURABLE))["num_waiting"] == 0)

    async with desk_of(tmp_path, WIDER_READS) as desk, desk.subscription() as reading:
        await desk.durable("service", domain="github", types="github.>")
        await push(desk, "1-github")
        await desk.publish("2-crm")
        got = []
        with anyio.fail_after(DEADLINE_S):
            got.append(await reading.next())
            await desk.apply(WIDER)
            got.append(await reading.next())
            await desk.apply(WIDER_READS)
            pullers = reading.feed._pullers
            assert isinstance(pullers, Pullers)
            await until(lambda: len(pullers._pulling) == 1)
            await until(nobody_pulls)  # the server hears of it a moment later
            await push(desk, "3-github")
            await desk.publish("4-crm")
            got.append(await reading.next())
        assert [delivery.event.id for delivery in got] == ["2-crm", "1-github", "4-crm"]
        for delivery in got:
            delivery.ack()
        await until(desk.settled)

        async def only_the_last_waits() -> bool:
            info = await manage.consumer_info(desk.connection, GITHUB, DURABLE)
            return (info["delivered"]["consumer_seq"], info["num_ack_pending"], info["num_pending"]) == (1, 0, 1)

        await until(only_the_last_waits)
