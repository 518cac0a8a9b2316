"""Writing what another may write: events, policies, reports, dead letters, and the streams themselves.

An agent's account is its grant, so most of these end as 503. The others are tricks on the stream that the agent may
write to: headers that the server obeys, ids that it deduplicates by, replies that it sends for whoever asks.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from mesh.errors import TooLarge
from mesh.jetstream.connection import Connection
from mesh.statements import message_id
from tests.attacks.insider import CONTACT, CRM, DEADLINE_S, NEXT, SUBJECT, Insider, contact, failed, sealed, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

VICTIM = "support--contacts"
RESET = f"$JS.API.CONSUMER.RESET.{CRM}.{VICTIM}"


MOVING = {"REPORTS", "AUDIT", "KV_mesh_trust"}  # of themselves: agents report and audit, statements are reissued


async def sequences(admin: Insider) -> dict[str, int]:
    """Last number by stream; of those that move of themselves the subjects that nobody honest writes."""
    streams = (await admin.api("STREAM.LIST"))["streams"]
    found = {s["config"]["name"]: int(s["state"]["last_seq"]) for s in streams if s["config"]["name"] not in MOVING}
    for name in MOVING:
        state = (await admin.api(f"STREAM.INFO.{name}", {"subjects_filter": ">"}))["state"]
        found |= {subject: n for subject, n in (state.get("subjects") or {}).items() if subject.endswith("forged")}
    return found


async def place(admin: Insider, durable: str = VICTIM) -> tuple[int, int, int]:
    """What a durable has handed out."""
    info = await admin.api(f"CONSUMER.INFO.{CRM}.{durable}")
    return info["delivered"]["consumer_seq"], info["ack_floor"]["stream_seq"], info["num_ack_pending"]


def stored(answer: Msg | None) -> int:
    """The number under which an event was stored."""
    assert answer is not None
    return int(msgspec.json.decode(answer.data)["seq"])


async def test_publishing_outside_the_grant(world: World) -> None:
    """Publish a type, a view, a site or a domain that was not granted.

    Holds: crm-adapter's NATS credentials and event key, which are good for `crm.contact.>` and `crm.order.>` in the
    views that somebody reads. Tries: everything one token away. Stopped: each is a subject that the account does not
    import. The same event on the granted subject is stored.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    signer = await world.signer("crm-adapter")
    assert stored(await thief.ask(SUBJECT, sealed(signer).body)) > 0
    everything = await admin.nc.subscribe("ev.>")
    before = await sequences(admin)
    for subject in (
        "ev.local.service.s03.crm.note.written.v1",
        "ev.local.service.s03.crm.secret.v1",
        "ev.local.service.s03.lake.score.computed.v1",
        "ev.local.private.s03.crm.contact.updated.v1",
        "ev.other.service.s03.crm.contact.updated.v1",
        "ev.local.service.s03.extra.crm.contact.updated.v1",
        "ev.local.service.crm.contact.updated.v1",
        "ev.local.service.s03.crm.contact",
    ):
        answer = await thief.ask(subject, sealed(signer, subject=subject).body, timeout_s=0.2)
        assert answer is None, subject
    assert await sequences(admin) == before
    assert everything.pending_msgs == 0  # not even where no stream would have taken it
    await everything.unsubscribe()


async def test_publishing_another_agents_types(world: World) -> None:
    """Publish in the name of another team, into the stream that both share.

    Holds: desk's credentials and event key: desk publishes `crm.note.>`, crm-adapter `crm.contact.>`. Tries: contacts,
    in every view. Stopped: desk's account imports its own types.
    """
    thief, signer = await world.insider("desk"), await world.signer("desk")
    note = "ev.local.bare.s03.crm.note.written.v1"
    fields = contact(type="crm.note.written.v1", view="bare", source="/support")
    answer = await thief.ask(note, sealed(signer, fields, subject=note).body)
    assert stored(answer) > 0
    for view in ("clear", "service", "bare", "*", ">"):
        assert await thief.ask(f"ev.local.{view}.s03.{CONTACT}", b"{}", timeout_s=0.5) is None


async def test_a_reply_that_writes_policy(world: World) -> None:
    """Have the server write for us: its PubAck goes to any reply subject, unchecked (finding 1).

    Holds: crm-adapter's credentials. Tries: to publish its own event with the reply set to the policy store, the trust
    store, the audit, another team's dead letters, another domain's stream, the control plane's door. Stopped: a reply
    is a subject of the own account, in which none of these exists. Inside the tenant's account the same reply writes.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    wire = sealed(await world.signer("crm-adapter"))
    await admin.nc.publish(SUBJECT, wire.body, reply="$KV.mesh_agents.deputy")
    assert await until_key(admin, "mesh_agents.deputy")
    heard = await admin.nc.subscribe("ctl.>")
    before = await sequences(admin)
    targets = (
        "$KV.mesh_policy.bundle", "$KV.mesh_trust.forged", "$KV.mesh_agents.x", "audit.forged", "dlq.analytics.all",
        "ev.local.bare.s00.lake.score.computed.v1", "ctl.policy.rollback", "ctl.notice", "ctl.trust.revoke",
    )  # fmt: skip
    for target in targets:
        await thief.nc.publish(SUBJECT, wire.body, reply=target)
    last = stored(await thief.ask(SUBJECT, wire.body))  # in order: the replies before it are out
    after = await sequences(admin)
    assert after.pop(CRM) == last == before.pop(CRM) + len(targets) + 1
    assert after == before
    assert [m.subject for m in heard._pending_queue._queue if m.subject != "ctl.notice"] == []  # type: ignore[attr-defined]


async def until_key(admin: Insider, key: str) -> bool:
    """Wait until a key is there."""
    bucket = key.split(".", maxsplit=1)[0]
    await until(lambda: admin.reaches(f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{key}"))
    return True


async def test_a_reply_that_moves_another_consumer(world: World) -> None:
    """Have the server reset another team's durable with an event as the request (B1).

    Holds: crm-adapter's credentials and team analytics', so it chooses the body and pulls it. Tries: an event with
    `"seq": 1000000` and `"batch": 3` in it, pulled with the reply set to RESET, MSG.NEXT, DELETE or PAUSE of support's
    durable. Stopped: the delivery goes to the own account. In the tenant's account the same pull resets.
    """
    admin, thief, puller = [await world.insider(name) for name in ("acme", "crm-adapter", "team-analytics")]
    bare = f"ev.local.bare.s00.{CONTACT}"
    body = b'{"batch":3,"seq":1,"pause_until":"2100-01-01T00:00:00Z"}'
    for _ in range(6):
        stored(await thief.ask(bare, body))
    stored(await thief.ask(SUBJECT, sealed(await world.signer("crm-adapter")).body))
    assert await (await world.insider("team-support")).get(VICTIM)
    before = await place(admin)
    for target in (
        RESET,
        f"{NEXT}.{CRM}.{VICTIM}",
        f"$JS.API.CONSUMER.DELETE.{CRM}.{VICTIM}",
        f"$JS.API.CONSUMER.PAUSE.{CRM}.{VICTIM}",
    ):
        await puller.nc.publish(f"{NEXT}.{CRM}.analytics--all", b'{"batch":1,"no_wait":true}', reply=target)
        await thief.nc.publish(bare, body, reply=target)
    assert await puller.get("analytics--all")  # pulls are served in order
    assert await place(admin) == before
    assert not (await admin.api(f"CONSUMER.INFO.{CRM}.{VICTIM}")).get("paused")
    await admin.nc.publish(f"{NEXT}.{CRM}.analytics--all", b'{"batch":1,"no_wait":true}', reply=RESET)
    await until(lambda: moved(admin, before))


async def moved(admin: Insider, before: tuple[int, int, int]) -> bool:
    """Whether the victim's durable was touched."""
    return await place(admin) != before


async def test_reinjection_by_a_pull(world: World) -> None:
    """Have the server store old events again, by pulling them with the stream's subject as reply.

    Holds: the credentials of team support, which publishes nothing. Tries: MSG.NEXT with a reply in the event streams,
    and in its dead letters, which it may write. Stopped: the delivery goes to the own account, which imports no event
    subject; a copy that somebody with the tenant's account stores again is dropped as a duplicate.
    """
    admin, thief = await world.insider("acme"), await world.insider("team-support")
    for _ in range(4):
        await world.publish()
    before = (await sequences(admin))[CRM]
    for target in (SUBJECT, f"ev.local.clear.s00.{CONTACT}", "ev.local.service.s00.lake.score.computed.v1"):
        await thief.nc.publish(f"{NEXT}.{CRM}.{VICTIM}", b'{"batch":1,"no_wait":true}', reply=target)
    assert await thief.get(VICTIM)
    assert (await sequences(admin))[CRM] == before
    while await thief.pull(VICTIM, 100):
        pass  # what other tests left: a pull that finds nothing is answered, and the answer would be stored
    await world.publish()
    before = (await sequences(admin))[CRM]
    await admin.nc.publish(f"{NEXT}.{CRM}.{VICTIM}", b'{"batch":1,"no_wait":true}', reply=SUBJECT)
    assert stored(await admin.ask("ev.local.bare.s00.crm.note.written.v1", b"{}")) == before + 1


async def test_squatting_a_message_id(world: World) -> None:
    """Take the id of another's event first, so that the server drops the real one as a duplicate (finding 6).

    Holds: desk's credentials; it publishes into the stream that crm-adapter publishes to, and knows source, id and
    subject of the event to come. Tries: every id it can derive from those. Stopped: ids are keyed with a secret of the
    source. With that secret, as for crm-adapter itself, the second event is a duplicate.
    """
    thief, victim = await world.insider("desk"), await world.insider("crm-adapter")
    note, id_ = "ev.local.bare.s03.crm.note.written.v1", "evt-1"
    own_key = world.data.dedupe_key("desk")
    guesses = [id_, "/crm", f"/crm {id_}", *(message_id(key, "/crm", id_, SUBJECT) for key in (own_key, bytes(32)))]
    for guess in guesses:
        stored(await thief.ask(note, b"{}", {"Nats-Msg-Id": guess}))
    assert await world.publish(id=id_) == id_
    support, found = await world.insider("team-support"), list[Msg]()

    async def came() -> bool:
        found.extend(message for message in await support.pull(VICTIM, 200) if b'"evt-1"' in message.data)
        return bool(found)

    await until(came)  # it was stored, whatever came before
    (event,) = found
    mine = (event.headers or {})["Nats-Msg-Id"]
    assert mine not in guesses
    again = await victim.ask(event.subject, b"{}", {"Nats-Msg-Id": mine})
    assert again is not None
    assert msgspec.json.decode(again.data)["duplicate"]


async def test_rollup_wipe(world: World) -> None:
    """Wipe a stream with one header (finding 5).

    Holds: crm-adapter's credentials. Tries: `Nats-Rollup: all` and `sub` on its own subject. Stopped: rollups are off
    on every stream that a workload writes to; the server refuses the message. In a bucket they are on, for the control
    plane, and wipe.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    for key in ("a", "b"):
        await admin.nc.request(f"$KV.mesh_agents.{key}", b"x", timeout=DEADLINE_S)
    await admin.nc.request("$KV.mesh_agents.b", b"y", headers={"Nats-Rollup": "all"}, timeout=DEADLINE_S)
    assert (await admin.api("STREAM.INFO.KV_mesh_agents"))["state"]["messages"] == 1
    await world.publish()
    before = (await admin.api(f"STREAM.INFO.{CRM}"))["state"]
    for scope in ("all", "sub"):
        assert not await thief.reaches(SUBJECT, b"{}", {"Nats-Rollup": scope})
    after = (await admin.api(f"STREAM.INFO.{CRM}"))["state"]
    assert (after["messages"], after["first_seq"]) == (before["messages"], before["first_seq"])
    for subject in ("audit.crm-adapter", "report.crm-adapter.x"):
        assert not await thief.reaches(subject, b"{}", {"Nats-Rollup": "all"})


async def test_ttl_abuse(world: World) -> None:
    """Have an event vanish before it is read, or stay for ever.

    Holds: crm-adapter's credentials. Tries: `Nats-TTL: 1` and `never`. Stopped: per-message TTLs are off, the server
    refuses the message. On a stream that has them, the event is gone.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    await admin.api("STREAM.CREATE.TTL", {"name": "TTL", "subjects": ["ttl"], "storage": "file", "allow_msg_ttl": True})
    assert await admin.reaches("ttl", b"x", {"Nats-TTL": "1"})
    await until(lambda: _empty(admin, "TTL"))
    await admin.api("STREAM.DELETE.TTL")
    before = (await sequences(admin))[CRM]
    for ttl in ("1", "never"):
        assert not await thief.reaches(SUBJECT, b"{}", {"Nats-TTL": ttl})
    assert (await sequences(admin))[CRM] == before


async def _empty(admin: Insider, stream: str) -> bool:
    return int((await admin.api(f"STREAM.INFO.{stream}"))["state"]["messages"]) == 0


async def test_scheduled_messages(world: World) -> None:
    """Have the server publish later where the publisher may not, or copy what it may not read (finding 5).

    Holds: crm-adapter's credentials. Tries: `Nats-Schedule` with a target and with a source. Stopped: schedules are off
    on every stream; nothing appears at the target. On a stream that has them, it does.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    config = {"name": "LATER", "subjects": ["later.>"], "storage": "file", "allow_msg_schedules": True}
    await admin.api("STREAM.CREATE.LATER", config)
    at = {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": "later.target"}
    assert await admin.reaches("later.a", b"x", at)
    await until(lambda: _has(admin, "LATER", "later.target"))
    await admin.api("STREAM.DELETE.LATER")
    before = await sequences(admin)
    target = "ev.local.bare.s00.crm.note.written.v1"
    for more in ({}, {"Nats-Schedule-Source": f"ev.local.clear.s00.{CONTACT}"}):
        assert not await thief.reaches(SUBJECT, b"{}", {**at, "Nats-Schedule-Target": target, **more})
    assert await sequences(admin) == before


async def _has(admin: Insider, stream: str, subject: str) -> bool:
    info = await admin.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
    return subject in (info["state"].get("subjects") or {})


async def test_an_atomic_batch(world: World) -> None:
    """Hold a batch open, or commit into another's: batch ids are bound to no connection.

    Holds: crm-adapter's credentials. Tries: to begin and to commit an atomic batch on its own subject. Stopped: batches
    are off; the server refuses, and nothing is stored or staged. On a stream that has them, both work.
    """
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    config = {"name": "BATCH", "subjects": ["batch"], "storage": "file", "allow_atomic": True}
    await admin.api("STREAM.CREATE.BATCH", config)
    begin = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"}
    commit = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
    await admin.nc.request("batch", b"x", headers=begin, timeout=DEADLINE_S)
    assert await admin.reaches("batch", b"x", commit)
    await admin.api("STREAM.DELETE.BATCH")
    before = (await sequences(admin))[CRM]
    for headers in (begin, commit):
        assert not await thief.reaches(SUBJECT, b"{}", headers)
    assert (await sequences(admin))[CRM] == before


async def test_deleting_and_purging(world: World) -> None:
    """Destroy events, streams or durables, or change a stream's settings.

    Holds: the credentials of an agent and of a team. Tries: PURGE, MSG.DELETE, DELETE, UPDATE, SNAPSHOT, and
    DELETE, RESET and PAUSE of its own durable. Stopped: none is imported. The control plane may delete; but nobody may
    delete from `AUDIT`, not even it.
    """
    admin = await world.insider("acme")
    sequence = stored(await admin.ask("audit.control", b"{}"))
    event = stored(await admin.ask("ev.local.bare.s00.crm.note.written.v1", b"{}"))
    assert await admin.reaches(f"$JS.API.STREAM.MSG.DELETE.{CRM}", b'{"seq":%d}' % event)
    assert not await admin.reaches("$JS.API.STREAM.MSG.DELETE.AUDIT", b'{"seq":%d}' % sequence)
    assert not await admin.reaches("$JS.API.STREAM.PURGE.AUDIT")
    before = await sequences(admin)
    for name in ("crm-adapter", "team-analytics"):
        thief = await world.insider(name)
        for verb, body in (
            (f"STREAM.PURGE.{CRM}", b""),
            (f"STREAM.MSG.DELETE.{CRM}", b'{"seq":1}'),
            (f"STREAM.DELETE.{CRM}", b""),
            (f"STREAM.UPDATE.{CRM}", b'{"name":"%s","subjects":["ev.>"]}' % CRM.encode()),
            (f"STREAM.SNAPSHOT.{CRM}", b'{"deliver_subject":"_INBOX_%s.snap"}' % name.encode()),
            (f"CONSUMER.DELETE.{CRM}.analytics--all", b""),
            (f"CONSUMER.RESET.{CRM}.analytics--all", b"{}"),
            (f"CONSUMER.PAUSE.{CRM}.analytics--all", b'{"pause_until":"2100-01-01T00:00:00Z"}'),
        ):
            answer = await thief.ask(f"$JS.API.{verb}", body, timeout_s=0.3)
            assert answer is None or failed(answer), verb
    assert await sequences(admin) == before
    assert not (await admin.api(f"CONSUMER.INFO.{CRM}.analytics--all")).get("paused")


async def test_writing_to_the_buckets(world: World) -> None:
    """Replace the policies, the trust statement or a certificate.

    Holds: the credentials of an agent and of a team. Tries: to put each key, and a rollup that would empty the bucket.
    Stopped: no `$KV` subject is imported. The control plane may, and what it puts is signed.
    """
    admin = await world.insider("acme")
    assert await admin.reaches("$KV.mesh_agents.test", b"x")
    before = await sequences(admin)
    for name in ("lake", "team-support"):
        thief = await world.insider(name)
        for key in (
            "mesh_policy.bundle",
            "mesh_policy.shadow",
            "mesh_trust.trust",
            "mesh_trust.forged",
            "mesh_agents.a",
        ):
            assert await thief.ask(f"$KV.{key}", b"x", timeout_s=0.5) is None
            assert await thief.ask(f"$KV.{key}", b"x", {"Nats-Rollup": "all"}, timeout_s=0.5) is None
    assert await sequences(admin) == before


async def test_writing_in_anothers_name(world: World) -> None:
    """Report, audit or bury in the name of another.

    Holds: the credentials of agent lake and of team analytics. Tries: desk's report, the control plane's audit, and
    support's dead letters. Stopped: each subject carries the name that it is imported under.
    """
    admin = await world.insider("acme")
    agent, team = await world.insider("lake"), await world.insider("team-analytics")
    assert await agent.reaches("report.lake.00000001", b"{}")
    assert await agent.reaches("audit.lake", b"{}")
    assert await team.reaches("dlq.analytics.all", b"{}")
    before = await sequences(admin)
    for subject in (
        "report.desk.00000001",
        "report.lake",
        "report.lake.1.2",
        "audit.desk",
        "audit.control",
        "audit.lake.x",
    ):
        assert await agent.ask(subject, b"{}", timeout_s=0.5) is None
    for subject in ("dlq.support.contacts", "dlq.analytics.other", "dlq.analytics", "dlq.support.all"):
        assert await team.ask(subject, b"{}", timeout_s=0.5) is None
    assert await agent.ask("dlq.analytics.all", b"{}", timeout_s=0.5) is None
    assert await sequences(admin) == before


async def test_forged_notices(world: World) -> None:
    """Wake everybody all the time, or tell them of a bundle that is none.

    Holds: an agent's credentials. Tries: to publish `ctl.notice`. Stopped: the notices are imported as a stream, which
    goes one way; what the agent publishes stays in its own account.
    """
    admin, thief = await world.insider("acme"), await world.insider("lake")
    victim = await world.insider("desk")
    heard = await victim.nc.subscribe("ctl.notice")
    await victim.nc.flush()
    await thief.nc.publish("ctl.notice", b'{"kind":"bundle","revision":999,"forged":true}')
    await thief.nc.flush()
    await admin.nc.publish("ctl.notice", b'{"kind":"none"}')
    while b"none" not in (message := await heard.next_msg(timeout=DEADLINE_S)).data:
        assert b"forged" not in message.data
    await heard.unsubscribe()


async def test_oversized_messages(world: World) -> None:
    """Get connections cut by headers and payload that only together are too large.

    Holds: crm-adapter's credentials. Tries: 1 MiB less 100 bytes and a header of 500; then an event that fits NATS but
    not the stream. Stopped: the server cuts off the sender, nobody else; our own client counts both before it writes,
    and stays connected; the stream refuses what is over its own limit.
    """
    thief = await world.stranger("crm-adapter", world.creds("crm-adapter"))
    other = await world.insider("crm-adapter")
    assert await thief.reaches(SUBJECT, sealed(await world.signer("crm-adapter")).body)
    assert not await other.reaches(SUBJECT, b"x" * 400_000)
    await thief.nc.publish(SUBJECT, b"x" * (1_048_576 - 100), headers={"x": "y" * 500})
    await until(lambda: thief.nc.is_closed)
    ours = await Connection.open(
        world.mesh.server.url, name="crm-adapter", creds=world.creds("crm-adapter").read_bytes()
    )
    try:
        with pytest.raises(TooLarge):
            await ours.publish(SUBJECT, b"x" * (1_048_576 - 100), headers={"x": "y" * 500})
        assert ours.connected
        assert other.nc.is_connected
    finally:
        await ours.close()


async def test_an_ambiguous_publish(world: World) -> None:
    """Have an event stored twice, by an outage in the middle of a publish (finding 10).

    Holds: nothing; the network stops for a moment. Tries: a publish that times out although it is stored, and is sent
    again. Stopped: every copy has an id, and the second is a duplicate. Without an id both are stored.
    """
    admin, client = await world.insider("acme"), await world.insider("crm-adapter")
    wire = sealed(await world.signer("crm-adapter"))
    before = (await sequences(admin))[CRM]
    for headers, extra in ((wire.headers, 1), ({}, 2)):
        os.kill(world.mesh.server.pid, signal.SIGSTOP)
        await until(lambda: stopped(world.mesh.server.pid))
        try:
            with pytest.raises(NatsTimeout):
                await client.nc.request(wire.subject, wire.body, timeout=0.2, headers=headers)
        finally:
            os.kill(world.mesh.server.pid, signal.SIGCONT)
        stored(await client.ask(wire.subject, wire.body, headers))
        assert (await sequences(admin))[CRM] == before + extra
        before += extra


def stopped(pid: int) -> bool:
    """Whether every thread of a process stands still: the signal takes its time."""
    states = [file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}
