"""Getting in, and getting out of one's account: credentials that were changed, made up, stolen, closed.

Accounts are signed by the operator, users by their account; a workload holds a user and neither seed above it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mesh.base64url import b64u
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator
from mesh.jetstream import accounts
from mesh.jetstream.accounts import Import, Nkey, workload_imports
from mesh.jetstream.connection import Connection
from mesh.keys import key_id
from mesh.merkle import leaf_hash
from mesh.statements import root_signed, statement, verify_ed25519
from tests.attacks.connecting import REFUSALS, b64, jwt_of, lets_in, opens, said, seed_of
from tests.attacks.insider import CRM, Insider, failed, sealed, until
from tests.attacks.keys import public
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

PRIVATE = ("$JS.API.STREAM.PURGE.EV_local_crm", "$KV.mesh_policy.bundle", "ctl.policy.apply", "$SYS.REQ.CLAIMS.UPDATE")


def nkey(kind: Any) -> Nkey:
    """A key of the attacker's own."""
    return Nkey.from_random(kind, secrets.token_bytes(32))


def operator(world: World) -> Operator:
    """The operator's keys: the control plane's, which no attacker has."""
    return Operator(NkeyFiles(world.data.keys))


async def test_connecting_without_credentials(world: World) -> None:
    """Connect as nobody.

    Holds: the address of the server. Tries: no credentials; a name and password; a key of its own without a JWT.
    Stopped: operator mode lets in users whose account the operator signed, and there is no default user.
    """
    assert await opens(world, world.creds("team-analytics"))
    mine = nkey("user")
    for options in (
        {},
        {"user": "sys", "pass": "sys"},
        {"auth_token": "x"},
        {"nkey": mine.public, "seed": mine.seed},
        {"nkey": operator(world).keys.get("user", "system").public, "seed": mine.seed},
    ):
        assert await said(world, **options) == REFUSALS[0]


async def test_a_jwt_without_its_key(world: World) -> None:
    """Connect with a JWT seen in a log or a trace.

    Holds: the user JWT of team support, which is no secret, and a key of its own. Tries: to connect with both. Stopped:
    the server has the user sign a nonce, and the JWT names the key.
    """
    file = world.creds("team-support")
    assert await lets_in(world, jwt_of(file), seed_of(file))
    assert not await lets_in(world, jwt_of(file), nkey("user").seed)
    assert not await lets_in(world, jwt_of(file), seed_of(world.creds("team-analytics")))


async def test_a_jwt_with_more_rights(world: World) -> None:
    """Rewrite one's own JWT.

    Holds: team analytics' credentials. Tries: to subscribe to everything, to be in another account, under the old
    signature and under none (`alg: none`). Stopped: the account signed the claims.
    """
    file = world.creds("team-analytics")
    token, seed = jwt_of(file), seed_of(file)
    assert await lets_in(world, token, seed)
    header, _, signature = token.split(".")
    claims = accounts.claims_of(token)
    for change in (
        {"nats": {**claims["nats"], "sub": {}}},
        {
            "iss": operator(world).public("acme"),
            "nats": {**claims["nats"], "issuer_account": operator(world).public("acme")},
        },
        {"nats": {**claims["nats"], "bearer_token": True}},
    ):
        body = b64(msgspec.json.encode({**claims, **change}))
        assert not await lets_in(world, f"{header}.{body}.{signature}", seed)
        none = b64(b'{"typ":"JWT","alg":"none"}')
        assert not await lets_in(world, f"{none}.{body}.", seed)


async def test_a_user_signed_by_oneself(world: World) -> None:
    """Make a new user of one's account, without the limits on what it may subscribe to.

    Holds: team analytics' credentials: a user's seed, not the account's. Tries: to sign a user with that seed, and with
    an account key of its own that claims the real one as issuer. Stopped: users are signed by the account, whose seed
    the control plane keeps. With that seed the same JWT is let in.
    """
    keys, name = operator(world).keys, "acme/team-analytics"
    account = keys.get("account", name)
    user = nkey("user")
    honest = accounts.user_jwt(account, user.public, "team-analytics", subscribe=None, iat=1)
    assert await lets_in(world, honest, user.seed)
    by_user = Nkey(seed_of(world.creds("team-analytics")))
    assert account.seed not in world.creds("team-analytics").read_text()
    for signer in (by_user, nkey("account"), nkey("operator")):
        forged = accounts.user_jwt(signer, user.public, "team-analytics", subscribe=None, iat=1)
        assert not await lets_in(world, forged, user.seed)
        claims = {**accounts.claims_of(forged), "iss": account.public}
        header, _, signature = forged.split(".")
        assert not await lets_in(world, f"{header}.{b64(msgspec.json.encode(claims))}.{signature}", user.seed)


async def test_an_account_of_another_operator(world: World, tmp_path: Path) -> None:
    """Bring an account along that imports everything.

    Holds: an operator key of its own. Tries: an account signed by it with imports of the tenant's subjects, and to push
    it. Stopped: the server trusts one operator; only users of the system account push, and no workload is one.
    """
    mine, account, user = nkey("operator"), nkey("account"), nkey("user")
    imports = [Import(operator(world).public("acme"), subject) for subject in PRIVATE]
    token = accounts.account_jwt(mine, account.public, "rogue", imports=imports, iat=1)
    system = await world.stranger("system", private(tmp_path, operator(world).control_creds(SYSTEM)))
    answer = await system.ask("$SYS.REQ.CLAIMS.UPDATE", token.encode())
    assert answer is not None  # the server keeps what a system user pushes, and looks at the signature when it is used
    thief = await world.insider("team-analytics")
    assert await thief.ask("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout_s=0.5) is None
    assert not await lets_in(world, accounts.user_jwt(account, user.public, "x", iat=1), user.seed)


def private(directory: Path, content: bytes) -> Path:
    """A creds file."""
    file = directory / f"{secrets.token_hex(4)}.creds"
    file.write_bytes(content)
    return file


async def test_asking_the_system_account(world: World, tmp_path: Path) -> None:
    """Read or change who has which rights, or cut others off.

    Holds: the credentials of an agent, a team and the control plane's in a tenant. Tries: to look accounts up, push,
    delete and list them, to see connections, to kick one, to reload. Stopped: `$SYS` is another account's; each sees at
    most itself.
    """
    keys = operator(world)
    victim = keys.public("acme/team-support")
    system = await world.stranger("system", private(tmp_path, keys.control_creds(SYSTEM)))
    looked = await system.ask(f"$SYS.REQ.ACCOUNT.{victim}.CLAIMS.LOOKUP")
    assert looked is not None
    assert looked.data.count(b".") == 2
    for name in ("lake", "team-analytics", "acme"):
        thief = await world.insider(name)
        for subject in (
            f"$SYS.REQ.ACCOUNT.{victim}.CLAIMS.LOOKUP", f"$SYS.REQ.ACCOUNT.{victim}.CONNZ", "$SYS.REQ.CLAIMS.UPDATE",
            "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.PACK", "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.SERVER.PING.VARZ", f"$SYS.REQ.SERVER.{thief.nc._server_info['server_id']}.KICK",
            f"$SYS.REQ.SERVER.{thief.nc._server_info['server_id']}.RELOAD",
        ):  # fmt: skip
            answer = await thief.ask(subject, looked.data, timeout_s=0.1)
            assert answer is None or b"error" in answer.data, subject
    assert (await world.insider("lake")).nc.is_connected


async def test_asking_the_control_plane(world: World) -> None:
    """Change policies or trust through the control plane's door.

    Holds: the credentials of each agent and team, and the control plane's of another tenant. Tries: every verb of
    `ctl.policy` and `ctl.trust`. Stopped: no workload imports them, and a tenant's door answers in its account alone.
    """
    revision = (await world.asked("policy.status"))["revision"]
    for name in ("crm-adapter", "desk", "lake", "team-crm", "team-support", "team-analytics"):
        thief = await world.insider(name)
        for verb in ("apply", "rollback", "status", "history", "shadow"):
            assert await thief.ask(f"ctl.policy.{verb}", b"{}", timeout_s=0.3) is None
        for verb in ("list", "show", "revoke", "rotate", "admit", "audit"):
            assert await thief.ask(f"ctl.trust.{verb}", b'{"agent":"crm-adapter"}', timeout_s=0.3) is None
    assert (await world.asked("policy.status", "globex"))["tenant"] == "globex"
    assert (await world.asked("policy.status"))["revision"] == revision


async def test_streams_of_ones_own(world: World) -> None:
    """Keep what one hears, or fill the server's disk.

    Holds: the credentials of an agent and of a team. Tries: to make a stream, a bucket, an object store in its own
    account. Stopped: a workload's account has no JetStream.
    """
    config = {"name": "MINE", "subjects": ["mine"], "storage": "file"}
    admin = await world.insider("acme")
    await admin.api("STREAM.CREATE.MINE", config)
    await admin.api("STREAM.DELETE.MINE")
    for name in ("crm-adapter", "team-analytics"):
        thief = await world.insider(name)
        for stream, subject in (("MINE", "mine"), ("KV_mine", "$KV.mine.>"), ("NOTICES", "ctl.notice")):
            for storage in ("file", "memory"):
                body = msgspec.json.encode({"name": stream, "subjects": [subject], "storage": storage})
                answer = await thief.ask(f"$JS.API.STREAM.CREATE.{stream}", body)
                assert answer is not None
                assert (
                    msgspec.json.decode(answer.data)["error"]["err_code"] == 10039
                )  # JetStream not enabled for account


async def test_imports_that_nobody_exports(world: World, tmp_path: Path) -> None:
    """Get a right by a mistake in a compiled grant.

    Holds: an account whose JWT, by a bug or a careless hand, imports the tenant's private subjects; the operator signed
    it. Tries: to use them. Stopped: the tenant exports families of subjects that carry no administration; what it does
    not export is not imported. What it does export works.
    """
    keys = operator(world)
    tenant = keys.public("acme")
    bad = [
        "$JS.API.STREAM.>", "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.INFO.>", "$JS.API.CONSUMER.RESET.>", "$KV.>",
        "ctl.policy.>", "ctl.trust.>", "$JS.API.INFO", "$JS.FC.>", "tenant.>",
    ]  # fmt: skip
    imports = [*workload_imports(tenant, "careless"), *(Import(tenant, subject) for subject in bad)]
    imports += [Import(tenant, subject, kind="stream") for subject in ("ctl.policy.>", "dlq.>")]
    account = keys.keys.get("account", "acme/careless")
    token = accounts.account_jwt(
        keys.keys.get("operator", "operator"), account.public, "careless", imports=imports, iat=1
    )
    system = await world.stranger("system", private(tmp_path, keys.control_creds(SYSTEM)))
    pushed = await system.ask("$SYS.REQ.CLAIMS.UPDATE", token.encode())
    assert pushed is not None
    assert not failed(pushed)
    user = nkey("user")
    creds = accounts.creds_file(accounts.user_jwt(account, user.public, "careless", iat=1), user.seed)
    thief = await world.stranger("careless", private(tmp_path, creds))
    assert await thief.reaches("$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle")
    heard = [await thief.nc.subscribe(subject) for subject in ("ctl.policy.>", "dlq.>")]
    await thief.nc.flush()
    admin = await world.insider("acme")
    assert (await world.asked("policy.status"))["tenant"] == "acme"
    await admin.nc.publish("dlq.nobody.nothing", b"{}")
    await admin.nc.subscribe("tenant.x", cb=here)
    await admin.nc.flush()
    assert await admin.reaches("tenant.x")
    await thief.nc.flush()
    assert [subscription.pending_msgs for subscription in heard] == [0, 0]
    for subject, body in (
        (f"$JS.API.STREAM.INFO.{CRM}", b""),
        (f"$JS.API.CONSUMER.INFO.{CRM}.support--contacts", b""),
        (f"$JS.API.CONSUMER.CREATE.{CRM}", b'{"stream_name":"EV_local_crm","config":{"ack_policy":"none"}}'),
        (f"$JS.API.CONSUMER.RESET.{CRM}.support--contacts", b"{}"),
        ("$KV.mesh_agents.careless", b"x"),
        ("ctl.policy.status", b"{}"),
        ("ctl.trust.list", b"{}"),
        ("tenant.x", b"{}"),
    ):
        answer = await thief.ask(subject, body, timeout_s=0.5)
        assert answer is None or failed(answer), subject


async def here(message: Msg) -> None:
    """Answer."""
    await message.respond(b"here")


async def test_a_workload_that_policies_no_longer_know(world: World) -> None:
    """Go on after the policies took the team away.

    Holds: the credentials of agent lake, kept after it left. Tries: to stay connected, and to come back. Stopped: the
    account is closed: its connections are cut, and nobody connects.
    """
    thief = await world.stranger("lake", world.creds("lake"))
    assert await thief.reaches("audit.lake", b"{}")
    gone = {"analytics: {agents: [lake]}": "analytics: {agents: [pond]}"}
    await world.apply(gone)
    try:
        await until(lambda: thief.nc.is_closed)
        assert not await opens(world, world.creds("lake"))
    finally:
        await world.apply({})
    assert await opens(world, world.creds("lake"))


async def test_the_nonce_oracle(world: World) -> None:
    """Have a client sign an event by connecting it to a server of the attacker's.

    Holds: the network path of crm-adapter, without TLS. Tries: to send an event's root as the nonce; the client signs
    whatever a server sends. Stopped: the NATS key signs nothing else: no certificate makes it an event key, so nothing
    under it verifies, not even with the honest key's name on it.
    """
    honest, reader = await world.signer("crm-adapter"), await world.reader()
    assert await world.put(sealed(honest)) == "delivered"
    user = seed_of(world.creds("crm-adapter"))
    key = public(bytes(nkeys.decode_seed(bytearray(user.encode()))[1]))
    wire = sealed(honest)
    parts = wire.headers["Mesh-Signature"].split(".")
    leaf = leaf_hash(statement(wire.subject, wire.headers["Nats-Msg-Id"], parts[3], wire.body))
    nonce = root_signed(honest.spiffe_id, key_id(key), int(parts[2]), 1, leaf)
    signature = await asked_to_sign(nonce.decode(), world.creds("crm-adapter").read_bytes())
    assert verify_ed25519(key, nonce, signature)
    for kid, code in ((key_id(key), "unknown-key"), (honest.kid, "bad-signature")):
        forged = ".".join(["1", kid, *parts[2:7], b64u(signature)])
        assert await world.put(wire.with_(headers={"Mesh-Signature": forged}), reader=reader) == code
        wire = wire.with_(headers={"Nats-Msg-Id": b64u(secrets.token_bytes(16))})


async def asked_to_sign(nonce: str, creds: bytes) -> bytes:
    """What a client of ours answers a server that sends *nonce*."""
    asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "NX", "version": "2.15.1", "max_payload": 1_048_576, "headers": True, "nonce": nonce}
        info |= {"auth_required": True, "proto": 1, "host": "127.0.0.1", "port": 1}
        writer.write(b"INFO " + msgspec.json.encode(info) + b"\r\n")
        line = await reader.readuntil(b"\r\n")
        if not asked.done():
            asked.set_result(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await Connection.open(url, name="crm-adapter", creds=creds, wait=False)
        try:
            async with asyncio.timeout(60):
                line = await asked
        finally:
            await client.close()
    sig = msgspec.json.decode(line.removeprefix(b"CONNECT "))["sig"]
    return base64.b64decode(sig)


async def test_filling_the_servers_memory(world: World) -> None:
    """End the server, and with it everybody's mesh, by what it has to remember.

    Holds: team analytics' credentials. Tries: 3,000 subscriptions of 3 KB on one connection, then connection after
    connection. Stopped: an account has so many connections, each of them so many subscriptions; the others work on.
    """
    thief = await world.insider("team-analytics")
    heard: list[str] = []
    inbox = "_INBOX_team-analytics"

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    await thief.nc.subscribe(f"{inbox}.first", cb=hear)
    await thief.nc.publish(f"{inbox}.first", b"")
    await until(lambda: heard)
    pipe: Any = thief.nc._transport
    pipe.write(b"".join(b"SUB %b.%b.%d %d\r\n" % (inbox.encode(), b"x" * 3000, n, n + 10) for n in range(3000)))
    await until(lambda: "maximum subscriptions exceeded" in str(thief.nc.last_error))
    creds = world.creds("team-analytics")
    opened: list[Insider] = []
    try:
        refused = ""
        while not refused and len(opened) <= accounts.MAX_CONNECTIONS:
            opened.append(Insider("team-analytics"))
            try:
                await opened[-1].open(world.mesh.server.url, creds)
            except NatsError as error:
                refused = str(error)
        assert "maximum account active connections" in refused
        assert len(opened) > 1
        assert await opens(world, world.creds("desk"))
    finally:
        for insider in opened:
            await insider.nc.close()
    await until(lambda: opens(world, creds))
