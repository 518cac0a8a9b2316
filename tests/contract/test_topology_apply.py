"""Plan and apply against the real server: what is desired becomes actual, and nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from mesh.control.nats_server import NatsServer, plain_config
from mesh.errors import RequestFailed
from mesh.jetstream import manage
from mesh.jetstream.changes import Change, plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import Sizes, Topology, desired
from mesh.policy.grants import SubscriptionGrant
from mesh.subjects import Pattern

pytestmark = pytest.mark.anyio

SMALL = Sizes(event_bytes=16 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)
DOMAINS = ("crm", "hr")
STREAM, DURABLE = "EV_local_crm", "support--contacts"
EVENT = "ev.local.clear.s03.crm.contact.updated.v1"


def grant(*patterns: str, start: str = "all") -> SubscriptionGrant:
    """Support's subscription to *patterns*."""
    return SubscriptionGrant("support", "contacts", "clear", tuple(Pattern.parse(p) for p in patterns), start=start)


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection to an empty server."""
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
    try:
        opened = await Connection.open(server.url, name="control", creds=None)
        try:
            yield opened
        finally:
            await opened.close()
    finally:
        await server.stop()


async def apply(connection: Connection, wanted: Topology, *, force: bool = False) -> list[Change]:
    """Plan and apply once; the whole plan, refused changes included."""
    changes = plan(wanted, await manage.read_actual(connection), force=force)
    await manage.apply(connection, changes)
    return changes


async def pull_one(connection: Connection) -> str:
    """Pull one event of support's; its ack subject."""
    acks: list[str] = []
    inbox = f"{connection.inbox}.pull"
    listener = connection.listen(inbox, lambda _s, reply, _h, _d: acks.append(reply))
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}", b'{"batch":1}', reply=inbox)
    with anyio.fail_after(60):
        while not acks:
            await anyio.sleep(0.005)
    listener.close()
    return acks[0]


async def test_the_plan_is_empty_after_apply(connection: Connection) -> None:
    """Applying makes every stream and consumer; a second plan, also for several filters and a start time, is empty."""
    grants = [
        grant("crm.contact.>", "hr.person.hired.v1", "crm.order.placed.v1"),
        replace(grant("crm.>", start="new"), name="fresh"),
        replace(grant("crm.>", start="2026-01-01T00:00:00Z"), name="since"),
    ]
    wanted = desired("local", DOMAINS, grants, SMALL)
    made = await apply(connection, wanted)
    assert len(made) == len(wanted.streams) + len(wanted.consumers) == 10 + 4
    assert {change.action for change in made} == {"create"}
    assert await apply(connection, wanted) == []


async def test_filters_change_in_place(connection: Connection) -> None:
    """One filter becomes two and one again, and the durable keeps its place."""
    await apply(connection, desired("local", DOMAINS, [grant("crm.contact.>")], SMALL))
    for _ in range(3):
        await connection.request(EVENT, b"{}")
    await pull_one(connection)
    for patterns in (("crm.contact.>", "crm.order.>"), ("crm.contact.updated.v1",)):
        wanted = desired("local", DOMAINS, [grant(*patterns)], SMALL)
        (change,) = await apply(connection, wanted)
        assert (change.action, change.consumer) == ("update", DURABLE)
        assert "crm.contact" in change.text
        assert await apply(connection, wanted) == []
    info = await manage.consumer_info(connection, STREAM, DURABLE)
    assert info["config"]["filter_subject"] == "ev.local.clear.*.crm.contact.updated.v1"
    assert (info["delivered"]["stream_seq"], info["num_ack_pending"], info["num_pending"]) == (1, 1, 2)


async def test_what_others_set_survives_an_update(connection: Connection) -> None:
    """A field and a metadata entry that no spec states are still there after our update of the same stream."""
    wanted = desired("local", DOMAINS, [grant("crm.>")], SMALL)
    await apply(connection, wanted)
    config = (await manage.stream_info(connection, "EV_local_crm"))["config"]
    theirs = {"metadata": {"operator": "keep"}, "compression": "s2", "max_consumers": 500}
    await manage.api(connection, "STREAM.UPDATE.EV_local_crm", {**config, **theirs, "max_msg_size": 1000})
    (change,) = await apply(connection, wanted)
    assert "max_msg_size 1000 -> 327680" in change.text
    config = (await manage.stream_info(connection, "EV_local_crm"))["config"]
    assert config["metadata"]["operator"] == "keep"
    assert (config["compression"], config["max_consumers"], config["max_msg_size"]) == ("s2", 500, 327_680)


async def test_a_removed_subscription_keeps_its_durable_until_forced(connection: Connection) -> None:
    """Its durable is listed but stays; with force it goes."""
    await apply(connection, desired("local", DOMAINS, [grant("crm.>")], SMALL))
    without = desired("local", DOMAINS, [], SMALL)
    (change,) = await apply(connection, without)
    assert change.refused
    assert ("EV_local_crm", "support--contacts") in (await manage.read_actual(connection)).consumers
    (change,) = await apply(connection, without, force=True)
    assert not change.refused
    assert (await manage.read_actual(connection)).consumers == {}


async def test_a_smaller_limit_deletes_nothing_until_forced(connection: Connection) -> None:
    """Stored events outlive a plan that keeps fewer of them; the same plan's other changes are made."""
    wanted = desired("local", ("crm",), [], SMALL)
    await apply(connection, wanted)
    for _ in range(20):
        await connection.request(EVENT, b"{}")
    config = (await manage.stream_info(connection, STREAM))["config"]
    await manage.api(connection, f"STREAM.UPDATE.{STREAM}", {**config, "max_msg_size": 5000})
    wanted = replace(wanted, streams=(replace(wanted.streams[0], max_per_subject=5), *wanted.streams[1:]))
    assert [change.refused for change in await apply(connection, wanted)] == [False, True]
    info = await manage.stream_info(connection, STREAM)
    assert (info["state"]["messages"], info["config"]["max_msg_size"]) == (20, 327_680)
    await apply(connection, wanted, force=True)
    assert (await manage.stream_info(connection, STREAM))["state"]["messages"] == 5
    assert await apply(connection, wanted) == []


async def test_a_stream_that_refuses_keeps_its_events_when_it_shrinks(connection: Connection) -> None:
    """Fewer max_bytes on `discard: new` delete nothing, so the plan needs no force for it."""
    await apply(connection, desired("local", DOMAINS, [], SMALL))
    for _ in range(20):
        await connection.request(EVENT, b"x" * 1000)
    changes = await apply(connection, desired("local", DOMAINS, [], replace(SMALL, event_bytes=10_000)))
    assert [(c.stream, c.refused) for c in changes] == [("EV_local_crm", False), ("EV_local_hr", False)]
    info = await manage.stream_info(connection, STREAM)
    assert (info["state"]["messages"], info["config"]["max_bytes"]) == (20, 10_000)


async def test_a_full_stream_refuses(connection: Connection) -> None:
    """At max_bytes a publish is refused and what is stored stays."""
    await apply(connection, desired("local", DOMAINS, [], replace(SMALL, event_bytes=10_000)))
    acks = [json.loads((await connection.request(EVENT, b"x" * 1000)).data) for _ in range(12)]
    assert "error" not in acks[0]
    assert acks[-1]["error"]["err_code"] == 10077
    assert (await manage.stream_info(connection, "EV_local_crm"))["state"]["first_seq"] == 1


@pytest.mark.parametrize("header", [("Nats-Rollup", "all"), ("Nats-Rollup", "sub"), ("Nats-TTL", "1s")])
async def test_no_header_deletes_events(connection: Connection, header: tuple[str, str]) -> None:
    """A publisher's rollup or time to live is refused by the event stream."""
    await apply(connection, desired("local", DOMAINS, [], SMALL))
    await connection.request(EVENT, b"{}")
    reply = await connection.request(EVENT, b"{}", headers=dict([header]))
    assert "error" in json.loads(reply.data)
    assert (await manage.stream_info(connection, "EV_local_crm"))["state"]["messages"] == 1


async def test_audit_is_append_only(connection: Connection) -> None:
    """Nobody deletes or purges `AUDIT`; a leaked field can be removed from an event stream."""
    await apply(connection, desired("local", DOMAINS, [], SMALL))
    await connection.request("audit.desk", b"{}")
    await connection.request(EVENT, b"{}")
    for verb, body in (("STREAM.PURGE.AUDIT", None), ("STREAM.MSG.DELETE.AUDIT", {"seq": 1})):
        with pytest.raises(RequestFailed):
            await manage.api(connection, verb, body)
    await manage.api(connection, "STREAM.MSG.DELETE.EV_local_crm", {"seq": 1})
    assert (await manage.stream_info(connection, "EV_local_crm"))["state"]["messages"] == 0


async def test_advisories_are_kept(connection: Connection) -> None:
    """A terminated delivery leaves its advisory in `ADVISORY`, whoever listens."""
    await apply(connection, desired("local", DOMAINS, [grant("crm.>")], SMALL))
    await connection.request(EVENT, b"{}")
    await connection.request(await pull_one(connection), b"+TERM bad-signature")
    advisory = {"last_by_subj": "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EV_local_crm.support--contacts"}
    with anyio.fail_after(60):
        while not (await manage.stream_info(connection, "ADVISORY"))["state"]["messages"]:
            await anyio.sleep(0.005)
    found = await manage.api(connection, "STREAM.MSG.GET.ADVISORY", advisory)
    assert found["message"]["seq"] == 1


async def test_reports_keep_the_last_of_each_workload(connection: Connection) -> None:
    """One report a subject."""
    await apply(connection, desired("local", (), [], SMALL))
    for name in ("desk", "desk", "lake"):
        await connection.request(f"report.{name}", b"{}")
    assert (await manage.stream_info(connection, "REPORTS"))["state"]["messages"] == 2


async def test_foreign_streams_are_left_alone(connection: Connection) -> None:
    """A stream that is not ours, and its consumer, appear in no plan, forced or not."""
    await manage.api(connection, "STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["other.>"]})
    body = {"stream_name": "OTHER", "config": {"durable_name": "a--b", "ack_policy": "explicit"}}
    await manage.api(connection, "CONSUMER.CREATE.OTHER.a--b", body)
    wanted = desired("local", DOMAINS, [], SMALL)
    await apply(connection, wanted)
    assert await apply(connection, wanted, force=True) == []


async def test_an_error_names_the_servers_code(connection: Connection) -> None:
    """What the server refuses carries its err_code."""
    with pytest.raises(RequestFailed) as refusal:
        await manage.stream_info(connection, "NOWHERE")
    assert refusal.value.details["err_code"] == 10059
