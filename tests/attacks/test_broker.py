"""The broker itself: what he who runs it can do unseen, and what a server that fails does to everybody else.

Verification cannot show an event that is missing, nor a copy that somebody else keeps. `mesh trust audit` can.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh.control.nats_server import NatsServer
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator
from mesh.control.trust_audit import unpack
from mesh.jetstream import accounts
from tests.attacks.connecting import opens
from tests.attacks.insider import CRM, DEADLINE_S, SUBJECT, Insider, sealed, until
from tests.attacks.keys import proof
from tests.attacks.world import World
from tests.ports import free_ports

pytestmark = pytest.mark.anyio

RELOADED = "Reloaded server configuration"


async def flags(world: World) -> dict[str, str]:
    """What `mesh trust audit` flags: where, by code."""
    report: dict[str, Any] = unpack(await world.asked("trust.audit"))
    return {flag["code"]: flag["where"] for flag in report["flags"]}


async def test_asking_in_an_operators_name(world: World) -> None:
    """Have the control plane itself do it: other policies, another agent's certificate, nobody revoked.

    Holds: the broker, and every request of an operator that passed through it. Tries: requests of his own, and one of
    theirs once more, changed, under another verb, in another tenant. Stopped: requests carry a proof by a key that
    lies in the control plane's directory; it is over tenant, subject and body, and good once.
    """
    admin, stranger = await world.admin(), await world.admin("globex")
    body = b'{"author":"mallory"}'
    seen = proof(world, "ctl.policy.history", b"{}")
    said = msgspec.json.decode(
        (await admin.nc.request("ctl.policy.history", b"{}", headers=seen, timeout=DEADLINE_S)).data
    )
    assert said["revisions"]
    for by, subject, request, headers in (
        *((admin, f"ctl.policy.{verb}", body, None) for verb in ("apply", "rollback", "shadow-start")),
        *((admin, f"ctl.trust.{verb}", b'{"agent":"lake"}', None) for verb in ("revoke", "rotate", "admit", "issue")),
        (admin, "ctl.policy.history", b"{}", seen),
        (admin, "ctl.policy.rollback", b"{}", proof(world, "ctl.policy.history", b"{}")),
        (admin, "ctl.policy.rollback", body, proof(world, "ctl.policy.rollback", b"{}")),
        (stranger, "ctl.policy.rollback", body, proof(world, "ctl.policy.rollback", body)),
    ):
        answer = msgspec.json.decode((await by.nc.request(subject, request, headers=headers, timeout=10)).data)
        assert answer["error"]["code"] == "not-attested", subject
    assert (await world.asked("policy.history"))["revisions"] == said["revisions"]


async def test_suppressing_an_event(world: World) -> None:
    """Make an event disappear before a team reads it.

    Holds: the broker. Tries: to delete one message in the middle of a stream. Stopped: nobody can be made to see what
    is not there; but the stream remembers that it had it, and the audit flags that. Before, it flags nothing.
    """
    admin = await world.admin()
    await world.publish()
    assert "messages-deleted" not in await flags(world)
    answer = await admin.ask(SUBJECT, sealed(await world.signer("crm-adapter")).body)
    assert answer is not None
    await world.publish()
    await admin.api(f"STREAM.MSG.DELETE.{CRM}", {"seq": msgspec.json.decode(answer.data)["seq"]})
    assert CRM in (await flags(world))["messages-deleted"]


async def test_tapping_a_stream(world: World) -> None:
    """Keep a copy of everything, beside what the policies give.

    Holds: the broker. Tries: a mirror, a source, a push consumer, a durable of his own, a wider filter on a team's.
    Stopped: unseen it is not: the audit compares what is there with what the policies compile to.
    """
    admin = await world.admin()
    clean = await flags(world)
    own = (await admin.api(f"CONSUMER.INFO.{CRM}.analytics--all"))["config"]
    wider = {**own, "filter_subject": "ev.>"}
    wider.pop("filter_subjects", None)
    push = {"durable_name": "spy", "ack_policy": "none", "deliver_subject": "spy.here"}
    mirror = {"name": "COPY", "mirror": {"name": CRM}}
    source = {"name": "COPY", "sources": [{"name": CRM}]}
    durable = f"CONSUMER.CREATE.{CRM}.analytics--all"
    for verb, body, undo, back, code in (
        ("STREAM.CREATE.COPY", mirror, "STREAM.DELETE.COPY", None, "stream-unknown"),
        ("STREAM.CREATE.COPY", source, "STREAM.DELETE.COPY", None, "stream-unknown"),
        (f"CONSUMER.CREATE.{CRM}.spy", as_asked(push), f"CONSUMER.DELETE.{CRM}.spy", None, "consumer-unknown"),
        (durable, as_asked(wider), durable, as_asked(own), "consumer-filter"),
    ):
        assert code not in clean
        await admin.api(verb, body)
        assert code in await flags(world)
        await admin.api(undo, back)
    assert set(await flags(world)) <= {*clean, "messages-deleted"}


def as_asked(config: dict[str, Any]) -> dict[str, Any]:
    """The request for a consumer."""
    return {"stream_name": CRM, "config": config}


async def test_a_user_that_nobody_made(world: World, tmp_path: Path) -> None:
    """Connect as a workload, with a user made with its stolen account key.

    Holds: the seed of lake's account, from a backup of the control plane. Tries: a user of it without limits. Stopped:
    NATS lets him in, with lake's rights and no more; the audit flags a user that the control plane did not make.
    """
    clean = await flags(world)
    assert "user-unknown" not in clean
    keys = NkeyFiles(world.data.keys)
    user = accounts.Nkey.from_random("user", os.urandom(32))
    token = accounts.user_jwt(keys.get("account", "acme/lake"), user.public, "lake", iat=1)
    file = tmp_path / "made.creds"
    file.write_bytes(accounts.creds_file(token, user.seed))
    thief = await world.stranger("lake", file)
    assert await thief.reaches("audit.lake", b"{}")
    assert not await thief.reaches("$JS.API.DIRECT.GET.EV_local_crm", b'{"seq":1}')
    assert "user-unknown" in await flags(world)
    await thief.nc.close()


async def test_stolen_nats_credentials(world: World) -> None:
    """Go on with a workload's creds file after it was replaced (finding 8).

    Holds: team analytics' creds file. Tries: to stay connected, and to connect again. Stopped: the user is revoked in
    the account's JWT, which cuts him off for good. The honest reader, whose file is the new one, goes on by itself.
    """
    reader = await world.reader("analytics", "all")
    stolen = world.data.root.parent / "stolen.creds"
    stolen.write_bytes(world.creds("team-analytics").read_bytes())
    thief = await world.stranger("team-analytics", stolen)
    assert await thief.reaches("audit.team-analytics", b"{}")
    await world.asked("trust.rotate", teams=["analytics"], credentials=True)
    await until(lambda: thief.nc.is_closed)
    assert not await opens(world, stolen)
    assert await opens(world, world.creds("team-analytics"))
    await world.handed_over(await world.publish(), reader)


async def test_attaching_a_server(world: World, tmp_path: Path) -> None:
    """Attach a server of one's own as a leaf, with streams of the same names (finding 4).

    Holds: an agent's credentials and a nats-server. Tries: to join as a leaf node. Stopped: the mesh's servers listen
    for clients alone, and an account may have no leaf connections. A server with a leaf port takes the same one.
    """
    (hub_port,), creds = free_ports(1), world.creds("crm-adapter")
    listens = f"host: 127.0.0.1\nleafnodes {{ host: 127.0.0.1, port: {hub_port} }}\n"
    hub = await NatsServer.start(listens, tmp_path / "hub")
    open_ = f'{{ url: "nats-leaf://127.0.0.1:{hub_port}" }}'
    ours = f'{{ url: "nats-leaf://127.0.0.1:{world.mesh.server.port}", credentials: "{creds}" }}'
    joins = f"host: 127.0.0.1\nleafnodes {{ reconnect: 1, remotes: [{open_}, {ours}] }}\n"
    leaf = await NatsServer.start(joins, tmp_path / "leaf")
    try:
        await until(lambda: "Leafnode connection created" in hub.log_path.read_text())
        log = leaf.log_path
        await until(lambda: "attempted to connect" in log.read_text() or "closed" in log.read_text().lower())
        system = await world.stranger(
            "system", _private(tmp_path, Operator(NkeyFiles(world.data.keys)).control_creds(SYSTEM))
        )
        varz = await system.ask("$SYS.REQ.SERVER.PING.VARZ")
        assert varz is not None
        found = msgspec.json.decode(varz.data)["data"]
        assert not found.get("leafnodes")
        assert not (found.get("leaf") or {}).get("port")
        assert not (found.get("gateway") or {}).get("port")
        assert not (found.get("websocket") or {}).get("port")
        assert not (found.get("mqtt") or {}).get("port")
    finally:
        await leaf.stop()
        await hub.stop()


def _private(directory: Path, content: bytes) -> Path:
    file = directory / "system.creds"
    file.write_bytes(content)
    return file


async def test_a_reload(world: World) -> None:
    """Drop everybody by a reload of the server (finding 7).

    Holds: a signal to the server, as an operator's tool sends it. Tries: SIGHUP, three times. Stopped: nobody is
    authorised by a service that would have to be asked again; every client stays connected and goes on.
    """
    clients = [await world.insider(name) for name in ("acme", "crm-adapter", "team-support", "lake")]
    reader = await world.reader()
    await world.handed_over(await world.publish(), reader)
    log = world.mesh.server.log_path
    for _ in range(3):
        before = log.read_text().count(RELOADED)
        os.kill(world.mesh.server.pid, signal.SIGHUP)
        await until(lambda: log.read_text().count(RELOADED) > before)  # noqa: B023 - awaited within the round
        await world.handed_over(await world.publish(), reader)
    assert all(client.nc.is_connected for client in clients)


async def test_killing_the_server(world: World) -> None:
    """Lose what was acknowledged (finding 9).

    Holds: the power switch of the server's process. Tries: kill -9 in the middle of publishing. Stopped: 202 means that
    the stream has it; the server is started again, and every event that was answered is handed over, once.
    """
    reader = await world.reader()
    before = [await world.publish() for _ in range(20)]
    os.kill(world.mesh.server.pid, signal.SIGKILL)
    after = [await world.publish() for _ in range(5)]
    for event_id in [*before, *after]:
        await world.handed_over(event_id, reader)
    ids = [event.id for event in reader.events.values()]
    assert len(ids) == len(set(ids))
    world._clients.clear()
    assert isinstance(await world.admin(), Insider)
