"""Reading what another team may see: every way that JetStream has, with the credentials of a team or an agent.

Analytics reads contacts in the view `bare`, support in `service`; both pull from one stream. Neither can be kept from
trying, so each test asks NATS itself.
"""

from __future__ import annotations

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from mesh.deadletters import DeadLetterRecord
from tests.attacks.insider import CONTACT, CRM, DEADLINE_S, SUBJECT, Insider, sealed, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

MINE, VICTIM = "analytics--all", "support--contacts"
LETTER = msgspec.json.encode(
    DeadLetterRecord(
        team="nobody",
        subscription="nothing",
        reason="x",
        attempts=1,
        stream="",
        sequence=0,
        subject="",
        stream_ms=0,
        dead_ms=0,
    )
)


async def delivered(admin: Insider, durable: str = VICTIM) -> int:
    """How often a durable has handed anything out."""
    info = await admin.api(f"CONSUMER.INFO.{CRM}.{durable}")
    return int(info["delivered"]["consumer_seq"])


async def given(world: World) -> int:
    """Events that support may see and analytics may not, more than one pull takes; the number of the last."""
    sequence = 0
    for _ in range(3):
        wire = sealed(await world.signer("crm-adapter"))
        answer = await (await world.insider("crm-adapter")).ask(wire.subject, wire.body, wire.headers)
        assert answer is not None
        sequence = int(msgspec.json.decode(answer.data)["seq"])
    return sequence


async def test_pulling_another_teams_durable(world: World) -> None:
    """Read another team's durable by MSG.NEXT.

    Holds: the NATS credentials of team analytics. Tries: to pull from support's durable by its name, and from every
    durable by a wildcard. Stopped: the team's account imports the pull of its own durables, by exact name.
    """
    await given(world)
    admin, owner, thief = [await world.insider(name) for name in ("acme", "team-support", "team-analytics")]
    assert await owner.get(VICTIM)
    before = await delivered(admin)
    for durable in (VICTIM, "*", ">", f"{VICTIM}.>", "crm--own"):
        assert await thief.pull(durable) == []
    assert await thief.pull(VICTIM, stream="*") == []
    assert await delivered(admin) == before


async def test_pulling_from_another_stream(world: World) -> None:
    """Read a stream that the team has no subscription in.

    Holds: team support's credentials; support has a durable in `crm` and one in `lake`. Tries: to pull one durable's
    name from the other stream, and from the streams of dead letters and audit, and to ack there. Stopped: an import
    names stream and durable together.
    """
    config = {"durable_name": VICTIM, "ack_policy": "explicit"}
    admin, thief = await world.insider("acme"), await world.insider("team-support")
    await world.publish("lake", "lake.score.computed.v1")
    await admin.nc.request("dlq.nobody.nothing", LETTER, timeout=DEADLINE_S)
    for stream in ("EV_local_lake", "AUDIT", "DLQ"):
        await admin.api(f"CONSUMER.CREATE.{stream}.{VICTIM}", {"stream_name": stream, "config": config})
        assert await thief.pull(VICTIM, stream=stream) == []
        (message,) = await admin.get(VICTIM, stream=stream)
        for verb in (b"+NXT", b"+ACK"):
            assert await thief.ask(message.reply, verb, timeout_s=0.2) is None
        assert (await admin.api(f"CONSUMER.INFO.{stream}.{VICTIM}"))["num_ack_pending"] == 1
        await admin.api(f"CONSUMER.DELETE.{stream}.{VICTIM}")


async def test_next_by_an_ack(world: World) -> None:
    """Read another team's durable by `+NXT`: an ack subject is a read right (finding 3).

    Holds: team analytics' credentials and an ack subject of support, seen in a log. Tries: to ack it with `+NXT`, which
    returns the next message, in the form of version 1 and of version 2. Stopped: the account imports `$JS.ACK` of its
    own durables, by exact name.
    """
    await given(world)
    admin, owner, thief = [await world.insider(name) for name in ("acme", "team-support", "team-analytics")]
    (message,) = await owner.get(VICTIM)
    assert await owner.collect(message.reply, b"+NXT")
    before = await delivered(admin)
    tail = message.reply.removeprefix("$JS.ACK.")
    for subject in (message.reply, f"$JS.ACK._.znJdjy7f.{tail}.rnd", f"$JS.ACK.{CRM}.{VICTIM}.1.1.1.1.0"):
        assert await thief.collect(subject, b"+NXT") == []
    assert await delivered(admin) == before


async def test_acking_for_another_team(world: World) -> None:
    """Make another team lose an event, by acking it in its place.

    Holds: team analytics' credentials and an ack subject of support. Tries: to ack, to term, to postpone. Stopped: as
    for `+NXT`; what the victim had not acked stays unacked.
    """
    await given(world)
    admin, owner, thief = [await world.insider(name) for name in ("acme", "team-support", "team-analytics")]
    (message,) = await owner.get(VICTIM)

    async def pending() -> int:
        return int((await admin.api(f"CONSUMER.INFO.{CRM}.{VICTIM}"))["num_ack_pending"])

    waiting = await pending()
    for verb in (b"+ACK", b"+TERM stolen", b'-NAK {"delay": 1}', b"+WPI"):
        assert await thief.ask(message.reply, verb, timeout_s=0.5) is None
    assert await pending() == waiting
    assert await owner.ask(message.reply, b"+ACK") is not None
    assert await pending() == waiting - 1


async def test_creating_a_consumer(world: World) -> None:
    """Read everything through a consumer of one's own.

    Holds: team analytics' credentials. Tries: CONSUMER.CREATE in each of its forms, unscoped, named and with the filter
    in the subject. Stopped: no workload's account imports any of them; the control plane makes every consumer.
    """
    admin, thief = await world.insider("acme"), await world.insider("team-analytics")
    config = {"name": "mine", "ack_policy": "none", "mem_storage": True, "inactive_threshold": 1_000_000_000}
    body = msgspec.json.encode({"stream_name": CRM, "config": config})
    filtered = msgspec.json.encode({"stream_name": CRM, "config": {**config, "filter_subject": "ev.>"}})
    await admin.api(f"CONSUMER.CREATE.{CRM}.mine", {"stream_name": CRM, "config": config})
    await admin.api(f"CONSUMER.DELETE.{CRM}.mine")
    attempts = [(f"CONSUMER.CREATE.{CRM}", body), (f"CONSUMER.CREATE.{CRM}.mine", body)]
    attempts += [(f"CONSUMER.CREATE.{CRM}.mine.ev.>", filtered), (f"CONSUMER.DURABLE.CREATE.{CRM}.mine", body)]
    for verb, request in attempts:
        assert not await thief.reaches(f"$JS.API.{verb}", request)
    assert "mine" not in (await admin.api(f"CONSUMER.NAMES.{CRM}"))["consumers"]


async def test_widening_the_filter_of_the_own_durable(world: World) -> None:
    """Turn the team's own durable into one that delivers every view (finding 2).

    Holds: team analytics' credentials. Tries: to update its durable with other `filter_subjects`, and through a filter
    in the subject that is the literal `*` or `>`. Stopped: no CREATE is imported, not even of the own durable.
    """
    admin, thief = await world.insider("acme"), await world.insider("team-analytics")
    before = (await admin.api(f"CONSUMER.INFO.{CRM}.{MINE}"))["config"]
    for filters in ({"filter_subject": "ev.>"}, {"filter_subjects": ["ev.local.clear.>", "ev.local.bare.>"]}):
        config = {**before, "filter_subject": None, "filter_subjects": None, **filters}
        wanted = {name: value for name, value in config.items() if value is not None}
        body = {"stream_name": CRM, "config": wanted, "action": "update"}
        await admin.api(f"CONSUMER.CREATE.{CRM}.{MINE}", body)
        await admin.api(f"CONSUMER.CREATE.{CRM}.{MINE}", {**body, "config": before})
        for tail in ("", ".ev.>", ".ev.*", ".*", ".>"):
            verb = f"$JS.API.CONSUMER.CREATE.{CRM}.{MINE}{tail}"
            assert not await thief.reaches(verb, msgspec.json.encode(body))
    assert (await admin.api(f"CONSUMER.INFO.{CRM}.{MINE}"))["config"] == before


async def test_the_own_durable_hands_out_the_own_view(world: World) -> None:
    """Find a copy of another view, or of another type, among what the own durable delivers.

    Holds: team support's credentials; it may see contacts in `service`. Tries: to pull all there is, as a plain client
    without our library. Stopped: the durable's filter is the compiled grant; crm's own durable delivers `clear`.
    """
    await world.publish(type_="crm.order.placed.v1")
    await world.publish()
    await world.publish("desk", "crm.note.written.v1")
    owner, thief = await world.insider("team-crm"), await world.insider("team-support")
    clear: list[str] = []
    pulled: list[Msg] = []

    async def order_came() -> bool:
        clear.extend(message.subject for message in await owner.pull("crm--own", 50))
        return any(".crm.order." in subject for subject in clear)

    async def some_came() -> bool:
        pulled.extend(await thief.pull(VICTIM, 50))
        return bool(pulled)

    await until(order_came)
    assert {subject.split(".")[2] for subject in clear} == {"clear"}
    await until(some_came)
    assert {message.subject.split(".", 4)[4] for message in pulled} == {CONTACT}
    assert {message.subject.split(".")[2] for message in pulled} == {"service"}


async def test_mirroring_the_stream(world: World) -> None:
    """Copy the whole stream into one of the attacker's.

    Holds: team analytics' credentials. Tries: a mirror and a source of the event stream, in the tenant's account and,
    through the tenant's API subjects, in its own. Stopped: STREAM.CREATE is not imported, and the own account may hold
    no streams at all.
    """
    admin, thief = await world.insider("acme"), await world.insider("team-analytics")
    mirror = {"name": "COPY", "storage": "file", "mirror": {"name": CRM}}
    await admin.api("STREAM.CREATE.COPY", mirror)
    await admin.api("STREAM.DELETE.COPY")
    external = {"api": "$JS.API", "deliver": "_INBOX_team-analytics.copy"}
    for config in (
        mirror,
        {"name": "COPY", "storage": "file", "sources": [{"name": CRM, "external": external}]},
        {"name": "COPY", "storage": "file", "subjects": ["ev.>"]},
        {"name": "COPY", "storage": "memory", "subjects": ["_INBOX_team-analytics.>"]},
    ):
        assert not await thief.reaches("$JS.API.STREAM.CREATE.COPY", msgspec.json.encode(config))
    assert "COPY" not in ((await admin.api("STREAM.NAMES"))["streams"] or [])
    assert not await thief.reaches("$JS.API.INFO")


async def test_direct_get_of_an_event(world: World) -> None:
    """Read events one by one by Direct Get.

    Holds: team analytics' credentials. Tries: the last event of a subject, of a pattern, and any by its number.
    Stopped: the account imports Direct Get of keys of two buckets and of its own reports, never of an event stream.
    """
    sequence = await given(world)
    admin, thief = await world.insider("acme"), await world.insider("team-analytics")
    by_number = msgspec.json.encode({"seq": sequence})
    for subject, body in (
        (f"$JS.API.DIRECT.GET.{CRM}", by_number),
        (f"$JS.API.DIRECT.GET.{CRM}.{SUBJECT}", b""),
        (f"$JS.API.DIRECT.GET.{CRM}", b'{"last_by_subj":"ev.>"}'),
    ):
        assert await admin.reaches(subject, body)
        assert not await thief.reaches(subject, body)
    for wild in (f"$JS.API.DIRECT.GET.{CRM}.ev.>", "$JS.API.DIRECT.GET.*", "$JS.API.DIRECT.GET.>"):
        assert not await thief.reaches(wild, by_number)


async def test_message_get_of_an_event(world: World) -> None:
    """Read events one by one by STREAM.MSG.GET, and learn subjects by STREAM.INFO.

    Holds: an agent's credentials. Tries: MSG.GET by number, INFO with `subjects_filter`, the list of streams.
    Stopped: no workload imports anything below `$JS.API.STREAM`.
    """
    sequence = await given(world)
    admin, thief = await world.insider("acme"), await world.insider("crm-adapter")
    for verb, body in (
        (f"STREAM.MSG.GET.{CRM}", {"seq": sequence}),
        (f"STREAM.INFO.{CRM}", {"subjects_filter": ">"}),
        ("STREAM.NAMES", {}),
        (f"CONSUMER.NAMES.{CRM}", {}),
        (f"CONSUMER.INFO.{CRM}.{VICTIM}", {}),
    ):
        assert await admin.api(verb, body)
        assert not await thief.reaches(f"$JS.API.{verb}", msgspec.json.encode(body))


async def test_keys_that_nobody_was_given(world: World) -> None:
    """Read keys of the control plane's buckets beyond the compiled ones, and watch a bucket.

    Holds: an agent's credentials. Tries: a key of `mesh_policy` that is no bundle, one below a bundle's, the bucket
    `mesh_agents`, and a whole bucket by MSG.GET, Direct Get with a body and a consumer. Stopped: Direct Get is imported
    key by key.
    """
    admin, thief = await world.insider("acme"), await world.insider("lake")
    private = (
        "mesh_policy.draft",
        "mesh_policy.bundle.1.draft",
        "mesh_agents.secret",
        "mesh_agents.bundle",
        "mesh_agents.shadow",
    )
    for key in private:
        await admin.nc.request(f"$KV.{key}", b"private", timeout=DEADLINE_S)
    assert await thief.reaches("$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle")
    for key in private:
        subject = f"$JS.API.DIRECT.GET.KV_{key.split('.')[0]}.$KV.{key}"
        assert await admin.reaches(subject)
        assert not await thief.reaches(subject)
    for bucket in ("mesh_policy", "mesh_trust", "mesh_agents"):
        stream = f"KV_{bucket}"
        assert not await thief.reaches(f"$JS.API.DIRECT.GET.{stream}", b'{"seq":1}')
        assert not await thief.reaches(f"$JS.API.STREAM.MSG.GET.{stream}", b'{"seq":1}')
        watch = {"stream_name": stream, "config": {"ack_policy": "none", "deliver_subject": "_INBOX_lake.watch"}}
        assert not await thief.reaches(f"$JS.API.CONSUMER.CREATE.{stream}", msgspec.json.encode(watch))


async def test_reading_another_workloads_report(world: World) -> None:
    """Learn what another team runs from its reports.

    Holds: agent lake's credentials. Tries: Direct Get of desk's report, by name, by wildcard and by number. Stopped:
    the import names the workload.
    """
    admin, thief = await world.insider("acme"), await world.insider("lake")
    await until(lambda: _reported(admin, "desk"))
    (theirs,) = [s for s in await _reports(admin) if s.startswith("report.desk.")]
    (own,) = [s for s in await _reports(admin) if s.startswith("report.lake.")]
    assert await thief.reaches(f"$JS.API.DIRECT.GET.REPORTS.{own}")
    for subject in (theirs, "report.>", "report.*.*", "report.desk.>"):
        assert not await thief.reaches(f"$JS.API.DIRECT.GET.REPORTS.{subject}")
    assert not await thief.reaches("$JS.API.DIRECT.GET.REPORTS", b'{"seq":1}')


async def _reports(admin: Insider) -> list[str]:
    info = await admin.api("STREAM.INFO.REPORTS", {"subjects_filter": ">"})
    return list(info["state"].get("subjects") or {})


async def _reported(admin: Insider, name: str) -> bool:
    return any(subject.startswith(f"report.{name}.") for subject in await _reports(admin))


async def test_reading_audit_and_dead_letters(world: World) -> None:
    """Read the access audit, and what another team could not handle.

    Holds: the credentials of agent lake and of team analytics, which may write to both. Tries: Direct Get, MSG.GET and
    a consumer of `AUDIT` and `DLQ`. Stopped: writing one subject is imported, reading is not.
    """
    admin = await world.insider("acme")
    await admin.nc.request("audit.control", b"{}", timeout=DEADLINE_S)
    await admin.nc.request("dlq.support.contacts", LETTER, timeout=DEADLINE_S)
    for name in ("lake", "team-analytics"):
        thief = await world.insider(name)
        for stream, subject in (("AUDIT", "audit.control"), ("DLQ", "dlq.support.contacts")):
            assert await admin.reaches(f"$JS.API.DIRECT.GET.{stream}.{subject}")
            assert not await thief.reaches(f"$JS.API.DIRECT.GET.{stream}.{subject}")
            assert not await thief.reaches(f"$JS.API.STREAM.MSG.GET.{stream}", b'{"seq":1}')
            body = msgspec.json.encode({"stream_name": stream, "config": {"name": "mine", "ack_policy": "none"}})
            assert not await thief.reaches(f"$JS.API.CONSUMER.CREATE.{stream}.mine", body)


async def test_listening_to_inboxes(world: World) -> None:
    """Overhear what others are sent.

    Holds: a team's credentials. Tries: to subscribe to everything, to all inboxes, to another's, to events themselves.
    Stopped: a user may subscribe to its own inbox and the notices; the server refuses the rest, and in its own account
    there would be nothing to hear.
    """
    thief = await world.stranger("team-analytics", world.creds("team-analytics"))
    heard: list[str] = []

    async def hear(message: object) -> None:
        heard.append(getattr(message, "subject", ""))

    own = await thief.nc.subscribe("_INBOX_team-analytics.x")
    await thief.nc.publish("_INBOX_team-analytics.x", b"mine")
    assert (await own.next_msg(timeout=DEADLINE_S)).data == b"mine"
    forbidden = (">", "*.>", "_INBOX.>", "*.x", "_INBOX_team-support.>", "ev.>", "ctl.>", "$JS.>", "$SYS.>")
    for subject in forbidden:
        await thief.nc.subscribe(subject, cb=hear)
    await thief.nc.flush()
    await until(lambda: len(thief.errors) >= len(forbidden))
    assert all("permissions violation for subscription" in error for error in thief.errors)
    victim = await world.insider("team-support")
    await given(world)
    assert await victim.get(VICTIM)
    assert heard == []


async def test_listening_to_the_control_plane(world: World) -> None:
    """Overhear requests to the control plane, such as new policies.

    Holds: an agent's credentials, whose account takes the stream `ctl.notice`. Tries: to hear `ctl.policy.*`. Stopped:
    the tenant exports the notices alone, the account imports them alone, the user may subscribe to them alone.
    """
    thief = await world.stranger("lake", world.creds("lake"))
    notices = await thief.nc.subscribe("ctl.notice")
    everything = await thief.nc.subscribe("ctl.>")
    policy = await thief.nc.subscribe("ctl.policy.*")
    await thief.nc.flush()
    admin = await world.insider("acme")
    assert (await world.asked("policy.status"))["tenant"] == "acme"
    await admin.nc.publish("ctl.notice", b'{"kind":"nothing"}')
    assert (await notices.next_msg(timeout=DEADLINE_S)).subject == "ctl.notice"
    for subscription in (everything, policy):
        with pytest.raises(NatsTimeout):
            await subscription.next_msg(timeout=0.2)
    await until(lambda: len(thief.errors) >= 2)
    assert len(thief.errors) == 2


async def test_another_tenants_stream_of_the_same_name(world: World) -> None:
    """Reach into another tenant, where stream and durable have names one knows (finding 4).

    Holds: globex' team credentials. Tries: to pull, to ack and to read acme's durable in a stream that is called the
    same in globex. Stopped: names are looked up in the account that an import names, and that is globex.
    """
    await given(world)
    acme, globex = await world.insider("acme"), await world.insider("globex")
    owner, thief = await world.insider("team-support"), await world.insider("team-sales")
    event_id = await world.publish("rival")
    (own,) = await thief.get("sales--leads")
    assert event_id.encode() in own.data
    (message,) = await owner.get(VICTIM)
    before = await delivered(acme)
    assert await thief.pull(VICTIM) == []
    for subject in (message.reply, own.reply.replace("sales--leads", VICTIM)):
        assert await thief.collect(subject, b"+NXT") == []
    assert await thief.ask(own.reply, b"+ACK") is not None
    assert await delivered(acme) == before
    settled = (await globex.api(f"CONSUMER.INFO.{CRM}.sales--leads"))["ack_floor"]["consumer_seq"]
    assert settled >= 1
