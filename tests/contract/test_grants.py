"""What a workload may do in NATS is what its account imports: the compiled grant against the real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.control import accounts_push, cluster
from mesh.errors import Disconnected, RequestFailed, Unavailable
from mesh.jetstream import accounts, manage
from mesh.jetstream.accounts import Import, publish_imports, subscription_imports
from mesh.jetstream.changes import plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import desired
from mesh.jetstream.wire import publish_frame
from mesh.policy.grants import PublishGrant, SubscriptionGrant
from mesh.subjects import Pattern
from tests.contract.operator_mode import SITE, SIZES, OperatorMode, nkey

pytestmark = pytest.mark.anyio

DOMAINS = ("crm", "hr")
EVENT = "ev.local.clear.s03.crm.contact.updated.v1"
STREAM = "EV_local_crm"
SUPPORT = SubscriptionGrant("support", "contacts", "clear", (Pattern.parse("crm.contact.>"),), start="all")
LAKE = SubscriptionGrant("analytics", "all", "clear", (Pattern.parse("crm.>"),), start="all")
NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}."


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[OperatorMode]:
    """A server with the streams of two domains and the durables of two teams."""
    mode = await OperatorMode.start(tmp_path)
    try:
        await mode.apply(desired(SITE, DOMAINS, [SUPPORT, LAKE], SIZES))
        yield mode
    finally:
        await mode.stop()


def publishes(mode: OperatorMode, *patterns: str) -> list[accounts.Import]:
    """The imports of an agent that publishes *patterns* into `clear`."""
    grants = [PublishGrant("clear", Pattern.parse(p)) for p in patterns]
    return publish_imports(mode.tenant_account.public, SITE, grants)


def subscribes(mode: OperatorMode, *grants: SubscriptionGrant) -> list[accounts.Import]:
    """The imports of a team with *grants*."""
    return subscription_imports(mode.tenant_account.public, SITE, DOMAINS, grants)


async def publish(connection: Connection, subject: str, body: bytes = b"{}") -> dict[str, Any]:
    """The PubAck of one event."""
    ack: dict[str, Any] = json.loads((await connection.request(subject, body)).data)
    return ack


async def refused(connection: Connection, subject: str, body: bytes = b"") -> bool:
    """Whether nobody answers *subject*, or an answer that is an error."""
    try:
        reply = await connection.request(subject, body, timeout_s=1)
    except Unavailable:
        return True
    return b'"error"' in reply.data


class Inbox:
    """Messages that arrive under a connection's own inbox."""

    def __init__(self, connection: Connection, tail: str = "pull") -> None:
        self.subject = f"{connection.inbox}.{tail}"
        self.messages: list[tuple[str, str, bytes]] = []
        self._listener = connection.listen(self.subject, lambda s, r, _h, d: self.messages.append((s, r, d)))

    async def wait(self, count: int) -> list[tuple[str, str, bytes]]:
        """The first *count* messages."""
        await until(lambda: len(self.messages) >= count)
        return self.messages[:count]


async def until(true: Callable[[], object]) -> None:
    """Wait until *true* is."""
    with anyio.fail_after(60):
        while not true():
            await anyio.sleep(0.005)


async def streams(mode: OperatorMode) -> dict[str, int]:
    """Last sequence by stream."""
    names = (await manage.read_actual(mode.tenant)).streams
    return {n: (await manage.stream_info(mode.tenant, n))["state"]["last_seq"] for n in names}


async def delivered(mode: OperatorMode, durable: str) -> tuple[int, int, int]:
    """What a durable has handed out: delivered, ack floor and unacked."""
    info = await manage.consumer_info(mode.tenant, STREAM, durable)
    return info["delivered"]["consumer_seq"], info["ack_floor"]["stream_seq"], info["num_ack_pending"]


# --- publishers ------------------------------------------------------------------------------------------------------


async def test_a_publisher_gets_acks_for_its_types_in_every_slot(mesh: OperatorMode) -> None:
    """A granted subject is stored and acknowledged, whatever its slot."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    for slot in range(16):
        ack = await publish(agent, f"ev.local.clear.s{slot:02d}.crm.contact.updated.v1")
        assert (ack["stream"], ack["seq"]) == (STREAM, slot + 1)


@pytest.mark.parametrize(
    "subject",
    [
        "ev.local.clear.s03.crm.order.placed.v1",
        "ev.local.masked.s03.crm.contact.updated.v1",
        "ev.other.clear.s03.crm.contact.updated.v1",
        "ev.local.clear.s03.hr.person.hired.v1",
        "dlq.support.contacts",
        "audit.desk",
        "report.desk.1",
        "report.crm-adapter",
        "ctl.policy.apply",
        "ctl.trust.revoke",
        "ctl.enrol.desk",
        "$KV.mesh_policy.bundle",
        "$KV.mesh_trust.trust",
        "ctl.notice",
        f"{NEXT}support--contacts",
        f"$JS.ACK.{STREAM}.support--contacts.1.1.1.1.0",
        f"$JS.API.CONSUMER.CREATE.{STREAM}",
        f"$JS.API.CONSUMER.CREATE.{STREAM}.mine.ev.>",
        f"$JS.API.CONSUMER.RESET.{STREAM}.support--contacts",
        f"$JS.API.CONSUMER.DELETE.{STREAM}.support--contacts",
        f"$JS.API.STREAM.PURGE.{STREAM}",
        f"$JS.API.STREAM.INFO.{STREAM}",
        f"$JS.API.STREAM.MSG.GET.{STREAM}",
        f"$JS.API.DIRECT.GET.{STREAM}",
        f"$JS.API.DIRECT.GET.{STREAM}.{EVENT}",
        "$JS.API.DIRECT.GET.KV_mesh_policy.>",
        "$JS.API.DIRECT.GET.KV_mesh_policy",
        "$JS.API.DIRECT.GET.REPORTS.report.desk.1",
    ],
)
async def test_a_publisher_reaches_nothing_else(mesh: OperatorMode, subject: str) -> None:
    """What is not imported answers 503 (or a JetStream error of the own account) and changes nothing."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    before = await streams(mesh)
    assert await refused(agent, subject)
    assert await streams(mesh) == before


async def test_overlapping_grants_store_an_event_once(mesh: OperatorMode) -> None:
    """A subject that two imports reach is stored once under its message id."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.*.updated.v1", "crm.contact.>"))
    headers = {"Nats-Msg-Id": "a" * 22}
    for _ in range(5):
        reply = await agent.request(EVENT, b"{}", headers=headers)
        assert json.loads(reply.data)["stream"] == STREAM
    assert (await streams(mesh))[STREAM] == 1


async def test_every_workload_reads_policy_trust_and_its_own_report(mesh: OperatorMode) -> None:
    """Direct Get of any bundle, any trust key and the own reports; the audit and report subjects store."""
    desk = await mesh.workload("desk", [])
    await mesh.tenant.request("$KV.mesh_trust.cert.abc", b"certificate")
    bucket = "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy"
    for key in ("bundle", "bundle.7", "shadow"):
        await mesh.tenant.request(f"$KV.mesh_policy.{key}", b"policy")
        assert (await desk.request(f"{bucket}.{key}", b"")).data == b"policy"
    trust = "$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.cert.abc"
    assert (await desk.request(trust, b"")).data == b"certificate"
    assert (await publish(desk, "audit.desk"))["stream"] == "AUDIT"
    assert (await publish(desk, "report.desk.1a2b3c4d", b"well"))["stream"] == "REPORTS"
    assert (await desk.request("$JS.API.DIRECT.GET.REPORTS.report.desk.1a2b3c4d", b"")).data == b"well"


async def test_an_agent_asks_for_certificates_in_its_own_name(mesh: OperatorMode) -> None:
    """The subject says who asks, and NATS that it is true; a team's own account asks for none."""
    asked: list[str] = []

    def answer(subject: str, reply: str, _headers: bytes | None, data: bytes) -> None:
        asked.append(subject)
        mesh.tenant.write(publish_frame(reply, data))

    mesh.tenant.listen("ctl.enrol.*", answer)
    await mesh.tenant.flush(5)
    desk, team = await mesh.workload("desk", []), await mesh.workload("team-support", [])
    assert (await desk.request("ctl.enrol.desk", b"please")).data == b"please"
    for connection, subject in (
        (desk, "ctl.enrol.lake"),
        (desk, "ctl.enrol.*"),
        (desk, "ctl.enrol.>"),
        (team, "ctl.enrol.team-support"),
        (team, "ctl.enrol.support"),
    ):
        assert await refused(connection, subject)
    assert asked == ["ctl.enrol.desk"]


async def test_notices_arrive_across_accounts(mesh: OperatorMode) -> None:
    """`ctl.notice` of the tenant wakes a workload, which cannot publish one itself to others."""
    desk, lake = await mesh.workload("desk", []), await mesh.workload("lake", [])
    seen: list[bytes] = []
    for connection in (desk, lake):
        connection.listen("ctl.notice", lambda _s, _r, _h, data: seen.append(data))
        await connection.flush(5)
    await lake.publish("ctl.notice", b"forged")
    await lake.flush(5)
    await mesh.tenant.publish("ctl.notice", b"look")
    await until(lambda: seen.count(b"look") == 2)
    assert seen.count(b"forged") <= 1  # only lake itself may hear it


# --- consumers -------------------------------------------------------------------------------------------------------


async def test_a_consumer_pulls_and_acks_its_own_durable(mesh: OperatorMode) -> None:
    """Pulls, acks with confirmation, naks and terms work through the exact imports."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    desk = await mesh.workload("desk", subscribes(mesh, SUPPORT))
    for number in range(3):
        await publish(agent, EVENT, b"%d" % number)
    inbox = Inbox(desk)
    await desk.publish(f"{NEXT}support--contacts", b'{"batch":4,"expires":30000000000}', reply=inbox.subject)
    messages = await inbox.wait(3)
    assert [(subject, data) for subject, _, data in messages] == [(EVENT, b"%d" % n) for n in range(3)]
    await desk.request(messages[0][1], b"+ACK")
    await desk.publish(messages[1][1], b'-NAK {"delay": 0}')
    assert (await inbox.wait(4))[3][2] == b"1"
    await desk.publish(messages[2][1], b"+TERM poison")
    await desk.request(inbox.messages[3][1], b"+ACK")
    assert await delivered(mesh, "support--contacts") == (4, 3, 0)


@pytest.mark.parametrize("subject", [f"{NEXT}analytics--all", f"{NEXT}*", f"{NEXT}>", "$JS.API.CONSUMER.MSG.NEXT.>"])
async def test_a_consumer_pulls_no_other_durable(mesh: OperatorMode, subject: str) -> None:
    """Another team's durable, by name or by wildcard, hands out nothing."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    desk = await mesh.workload("desk", subscribes(mesh, SUPPORT))
    await publish(agent, EVENT)
    assert await refused(desk, subject, b'{"batch":10,"no_wait":true}')
    assert await delivered(mesh, "analytics--all") == (0, 0, 0)


async def test_a_consumer_acks_no_other_durable(mesh: OperatorMode) -> None:
    """Neither an ack nor `+NXT` on another team's delivery reaches it."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    desk = await mesh.workload("desk", subscribes(mesh, SUPPORT))
    lake = await mesh.workload("lake", subscribes(mesh, LAKE))
    for _ in range(2):
        await publish(agent, EVENT)
    inbox = Inbox(lake)
    await lake.publish(f"{NEXT}analytics--all", b'{"batch":1}', reply=inbox.subject)
    ((_, ack, _),) = await inbox.wait(1)
    assert await refused(desk, ack, b"+ACK")
    assert await refused(desk, ack, b"+NXT")
    assert await delivered(mesh, "analytics--all") == (1, 0, 1)


async def test_a_user_hears_only_its_own_inbox(mesh: OperatorMode) -> None:
    """Subscribing to another inbox, or to everything, hears nothing: not even inside the own account."""
    desk = await mesh.workload("desk", subscribes(mesh, SUPPORT))
    heard: list[str] = []
    for subject in (">", "_INBOX.>", "_INBOX_lake.>", "ev.>"):
        desk.listen(subject, lambda s, _r, _h, _d: heard.append(s))
    own = Inbox(desk, "own")
    await desk.flush(5)
    for subject in ("_INBOX_lake.x", "_INBOX.x", "ev.local.clear.s00.crm.a.v1", own.subject):
        await desk.publish(subject, b"x")
    await own.wait(1)
    assert heard == []


async def test_a_reader_of_hundreds_of_durables_has_room(mesh: OperatorMode) -> None:
    """A connection may listen as often as a team's process with hundreds of subscriptions does, also when it is new."""
    team = await mesh.workload("team-support", subscribes(mesh, SUPPORT))
    inboxes = [Inbox(team, f"pull.{n}") for n in range(accounts.MAX_SUBSCRIPTIONS - 10)]
    for links in (1, 2):
        await until(lambda: team.connected)
        await team.flush(5)
        for inbox in (inboxes[0], inboxes[-1]):
            await team.publish(inbox.subject, b"x")
            await inbox.wait(links)
        team._keeper.link._drop()  # type: ignore[union-attr] # the network ends
        await until(lambda: not team.connected)


# --- reply-subject deputies ------------------------------------------------------------------------------------------

DEPUTIES = [
    "$KV.mesh_policy.bundle",
    "$KV.mesh_trust.trust",
    "dlq.analytics.all",
    "audit.lake",
    "ev.local.clear.s00.crm.order.placed.v1",
    "ev.local.clear.s00.hr.person.hired.v1",
    f"$JS.API.CONSUMER.RESET.{STREAM}.analytics--all",
    f"$JS.API.CONSUMER.DELETE.{STREAM}.analytics--all",
    f"{NEXT}analytics--all",
    f"$JS.API.STREAM.PURGE.{STREAM}",
    "ctl.notice",
]


@pytest.mark.parametrize("reply", DEPUTIES)
async def test_no_reply_subject_makes_the_server_a_deputy(mesh: OperatorMode, reply: str) -> None:
    """A PubAck or a delivery sent to a subject of the tenant's account stores nothing and moves nobody's durable."""
    own = [*publishes(mesh, "crm.contact.>"), *subscribes(mesh, SUPPORT)]
    thief = await mesh.workload("thief", own)
    victim = await mesh.workload("lake", subscribes(mesh, LAKE))
    heard: list[str] = []
    mesh.tenant.listen("ctl.notice", lambda s, _r, _h, _d: heard.append(s))
    await mesh.tenant.flush(5)
    await publish(thief, EVENT, b'{"batch":3,"seq":1000000}')
    inbox = Inbox(victim)
    await victim.publish(f"{NEXT}analytics--all", b'{"batch":1}', reply=inbox.subject)
    await inbox.wait(1)
    before, place = await streams(mesh), await delivered(mesh, "analytics--all")

    await thief.publish(EVENT, b'{"batch":3,"seq":1000000}', reply=reply)
    await thief.publish(f"{NEXT}support--contacts", b'{"batch":1,"expires":2000000000}', reply=reply)
    await publish(thief, EVENT)  # the stream answers in order: the first one's reply is out
    honest = Inbox(thief)
    await thief.publish(f"{NEXT}support--contacts", b'{"batch":1}', reply=honest.subject)
    await honest.wait(1)  # pulls are served in order too

    after = await streams(mesh)
    assert after.pop(STREAM) == before.pop(STREAM) + 2
    assert after == before
    assert await delivered(mesh, "analytics--all") == place
    assert heard == []


async def test_inside_one_account_the_server_is_a_deputy(mesh: OperatorMode) -> None:
    """The control to the test above: where publisher and stream share an account, the same reply writes policy."""
    before = (await streams(mesh))["KV_mesh_policy"]
    await mesh.tenant.publish(EVENT, b"{}", reply="$KV.mesh_policy.bundle")
    await publish(mesh.tenant, EVENT)
    assert (await streams(mesh))["KV_mesh_policy"] == before + 1


# --- live changes ----------------------------------------------------------------------------------------------------


async def test_a_push_changes_rights_of_a_live_connection(mesh: OperatorMode) -> None:
    """An import added works, and removed is refused, on the same connection, which never drops."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    drops: list[str] = []
    agent.on_disconnect(lambda: drops.append("dropped"))
    order = "ev.local.clear.s00.crm.order.placed.v1"
    assert await refused(agent, order)
    await mesh.grant("crm-adapter", publishes(mesh, "crm.contact.>", "crm.order.>"))
    assert (await publish(agent, order))["stream"] == STREAM
    await mesh.grant("crm-adapter", publishes(mesh, "crm.contact.>"))
    assert await refused(agent, order)
    assert (await publish(agent, EVENT))["stream"] == STREAM
    assert drops == []


async def test_an_unchanged_account_is_not_pushed_again(mesh: OperatorMode) -> None:
    """A push of equal grants under a newer `iat` does nothing."""
    assert await mesh.grant("desk", subscribes(mesh, SUPPORT)) == [mesh.accounts["desk"].public]
    assert await mesh.grant("desk", subscribes(mesh, SUPPORT)) == []


async def test_a_changed_token_is_refused(mesh: OperatorMode) -> None:
    """The server takes no account token whose signature does not fit, and the push says so."""
    key = nkey("account")
    token = accounts.account_jwt(mesh.operator, key.public, "desk", iat=mesh.iat)
    other = accounts.account_jwt(mesh.operator, key.public, "desk", closed=True, iat=mesh.iat)
    with pytest.raises(RequestFailed, match="was refused"):
        await mesh.push([token.rpartition(".")[0] + "." + other.rpartition(".")[2]])
    assert await accounts_push.lookup(mesh.system, key.public) == []


async def test_an_account_of_another_operator_lets_nobody_in(mesh: OperatorMode) -> None:
    """The server keeps such a token when pushed, but its users cannot connect."""
    stranger, key = nkey("operator"), nkey("account")
    await mesh.push([accounts.account_jwt(stranger, key.public, "thief", jetstream=True, iat=mesh.iat)])
    with pytest.raises(Disconnected):
        await Connection.open(mesh.server.url, name="thief", creds=mesh.creds(key, "thief"), connect_timeout_s=0.5)


async def test_every_server_has_to_confirm(mesh: OperatorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server that answers does not confirm, a push says how many did, and can be made again."""
    token = accounts.account_jwt(mesh.operator, nkey("account").public, "desk", iat=mesh.iat)
    (server,) = await cluster.present(mesh.system)

    async def here(_connection: Connection) -> dict[str, str]:
        return {server: "one", "NOTHER": "other"}

    with monkeypatch.context() as patch:
        patch.setattr(accounts_push, "present", here)
        patch.setattr(accounts_push, "SILENT_S", 0.05)
        patch.setattr(accounts_push, "PUSH_TIMEOUT_S", 1.0)
        said = ""
        with anyio.fail_after(60):
            while "1 of 2 servers" not in said:  # a busy server is late itself
                with pytest.raises(Unavailable) as short:
                    await accounts_push.push(mesh.system, [token])
                said = str(short.value)
    assert await accounts_push.push(mesh.system, [token]) == []


async def test_a_server_that_confirms_late_is_waited_for(mesh: OperatorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is busy is asked again, and each time waited for twice as long."""
    key = nkey("account")
    waits: list[float] = []

    async def ask(
        connection: Connection, subject: str, payload: bytes, *, enough: Callable[[list[bytes]], bool], timeout_s: float
    ) -> list[bytes]:
        if subject.endswith("CLAIMS.UPDATE"):
            waits.append(timeout_s)
            if len(waits) < 3:
                return []
        return await cluster.ask_all(connection, subject, payload, enough=enough, timeout_s=timeout_s)

    monkeypatch.setattr(accounts_push, "ask_all", ask)
    assert await mesh.push([accounts.account_jwt(mesh.operator, key.public, "desk", iat=mesh.iat)]) == [key.public]
    assert waits == [cluster.SILENT_S * times for times in (1, 2, 4)]


async def test_an_older_token_is_not_pushed_over_a_newer_one(mesh: OperatorMode) -> None:
    """The server would take it: rights that were withdrawn would be back."""
    key = nkey("account")
    wide = accounts.account_jwt(mesh.operator, key.public, "desk", imports=[Import("A" * 56, "x")], iat=mesh.iat)
    narrow = accounts.account_jwt(mesh.operator, key.public, "desk", iat=mesh.iat + 5)
    await mesh.push([narrow])
    with pytest.raises(RequestFailed, match="newer JWT"):
        await mesh.push([wide])
    assert await accounts_push.lookup(mesh.system, key.public) == [narrow]


async def test_only_a_user_of_the_system_account_pushes(mesh: OperatorMode) -> None:
    """A tenant's control plane and a workload reach no server with an account's token; the system's user does."""
    key = nkey("account")
    token = accounts.account_jwt(mesh.operator, key.public, "desk", iat=mesh.iat)
    workload = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    for connection in (mesh.tenant, workload):
        with pytest.raises(Unavailable, match="no server answers"):
            await accounts_push.push(connection, [token])
    assert await mesh.push([token]) == [key.public]


async def test_two_hundred_accounts_in_one_push(mesh: OperatorMode) -> None:
    """Many go out together, also to a workload that runs: its imports need their exporter to be there first."""
    tenant = nkey("account")
    keys = [nkey("account") for _ in range(200)]
    await mesh.push([accounts.account_jwt(mesh.operator, keys[7].public, "agent-7", iat=mesh.iat)])
    agent = await mesh.connect(keys[7], "agent-7", subscribe=accounts.workload_subscribe("agent-7"))
    tokens = [
        accounts.account_jwt(
            mesh.operator,
            key.public,
            f"agent-{number}",
            imports=accounts.workload_imports(tenant.public, f"agent-{number}"),
            iat=mesh.iat,
        )
        for number, key in enumerate(keys)
    ]
    exporter = accounts.account_jwt(
        mesh.operator, tenant.public, "other", exports=accounts.TENANT_EXPORTS, jetstream=True, iat=mesh.iat
    )
    assert len(await mesh.push([*tokens, exporter])) == 201
    assert await mesh.push([*tokens, exporter]) == []
    control = await mesh.connect(tenant, "control")
    await manage.apply(control, plan(desired(SITE, (), (), SIZES), await manage.read_actual(control)))
    assert (await publish(agent, "audit.agent-7"))["stream"] == "AUDIT"


async def test_a_closed_account_is_cut_off(mesh: OperatorMode) -> None:
    """A workload that ended loses its connection and its rights."""
    desk = await mesh.workload("desk", [])
    drops: list[str] = []
    desk.on_disconnect(lambda: drops.append("dropped"))
    key = mesh.accounts["desk"].public
    token = accounts.account_jwt(mesh.operator, key, "desk", closed=True, iat=mesh.iat + 1)
    await mesh.push([token])
    await until(lambda: drops)


async def test_accounts_and_streams_outlive_a_restart(mesh: OperatorMode) -> None:
    """A server that starts again on its directory knows every pushed account and stored event."""
    agent = await mesh.workload("crm-adapter", publishes(mesh, "crm.contact.>"))
    await publish(agent, EVENT)
    mesh.server.kill()
    await mesh.server.restart()
    with anyio.fail_after(60):
        while True:
            try:
                ack = await publish(agent, EVENT)
                break
            except Unavailable:
                await anyio.sleep(0.05)
    assert ack["seq"] == 2
    assert await refused(agent, "ev.local.clear.s03.crm.order.placed.v1")
