"""`mesh trust audit` against a real server that somebody changed behind the control plane's back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.control import accounts_push
from mesh.control.accounts import Accounts
from mesh.control.reconcile import now_ms
from mesh.control.standing import Standing
from mesh.control.trust_audit import TrustAudit, handlers, unpack
from mesh.jetstream import accounts
from mesh.jetstream.accounts import Account, Export, Import
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api, stream_info
from tests.contract.operator_mode import nkey
from tests.contract.policy_mesh import CRM, DURABLE, Instance, PolicyMesh, reads

AGAIN = f"what is replayed or redriven to {DURABLE}, while something is"  # the durables for it are not there yet
pytestmark = pytest.mark.anyio


class Audited:
    """A mesh whose policies are in force, and its audit."""

    def __init__(self, mesh: PolicyMesh) -> None:
        self.mesh = mesh
        self.standing = Standing(mesh.directory / "standing.json")
        self.signer = mesh.operator.keys.get("operator", "operator")
        self.audit = TrustAudit(mesh.system, mesh.operator, mesh.accounts, mesh.policies, self.standing)

    async def flags(self) -> set[tuple[str, str]]:
        """Where and what, of each flag."""
        report = await self.audit.report()
        assert report["holds"] is (not report["flags"])
        return {(flag["where"], flag["code"]) for flag in report["flags"]}

    async def text(self, code: str) -> str:
        """What the flags of one kind say."""
        return "; ".join(flag["text"] for flag in (await self.audit.report())["flags"] if flag["code"] == code)

    async def identity(self, name: str, kind: str) -> dict[str, Any]:
        """One of the report."""
        found: list[dict[str, Any]] = (await self.audit.report())["identities"]
        return next(one for one in found if (one["identity"], one["kind"]) == (name, kind))

    async def push(self, account: Account) -> None:
        """An account as somebody with the operator's key would push it, later than what is there."""
        held = await accounts_push.lookup(self.mesh.system, account.public)
        iat = max([now_ms() // 1000, *(accounts.claims_of(token)["iat"] + 1 for token in held)])
        await accounts_push.push(self.mesh.system, [account.token(self.signer, iat=iat)])

    def account(self, workload: str, *more: Import, **changes: Any) -> Account:
        """An account as it has to be, with more imports or other changes."""
        held = self.mesh.accounts.held(workload)
        assert held is not None
        meant = self.mesh.accounts.wanted(workload, [*held, *more])
        return Account(**{name: getattr(meant, name) for name in Account.__slots__} | changes)

    @asynccontextmanager
    async def connected(self, creds: bytes, name: str) -> AsyncIterator[Connection]:
        """A connection for a while."""
        connection = await Connection.open(self.mesh.server.url, name=name, creds=creds)
        try:
            yield connection
        finally:
            await connection.close()

    async def clean(self) -> None:
        """Wait until nothing is flagged: the server forgets an ended connection a moment later."""
        with anyio.fail_after(60):
            while await self.flags():
                await anyio.sleep(0.02)


@pytest.fixture(scope="module")
async def audited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Audited]:
    """Policies in force, an agent and a team connected. Each test puts back what it changed."""
    async with PolicyMesh.running(tmp_path_factory.mktemp("audit")) as mesh:
        await mesh.apply(reads("masked", "crm.contact.>"))
        await Instance.start(mesh, "crm-adapter")
        await mesh.team("support")
        yield Audited(mesh)


async def test_a_mesh_as_it_was_compiled_has_no_flag(audited: Audited) -> None:
    """Every identity is told with what it can do, in the views that it can do it in, and nothing is flagged."""
    report = unpack(await handlers(audited.audit)["audit"]({}))
    assert (report["tenant"], report["revision"], report["holds"], report["flags"]) == ("acme", 1, True, [])
    agent, team = await audited.identity("crm-adapter", "agent"), await audited.identity("support", "team")
    assert agent["publish"] == ["crm.contact.> in masked (site local)"]
    assert (agent["read"], agent["create"], agent["usual"], agent["connections"]) == ([], [], True, 1)
    assert agent["spiffe_id"] == "spiffe://mesh.local/ns/acme/sa/crm-adapter"
    assert team["read"] == [f"crm.contact.> in masked: {DURABLE} on {CRM}", AGAIN]
    assert team["publish"] == ["dead letters of support/contacts"]
    control = await audited.identity("control", "control plane")
    assert control["create"] == ["streams and consumers, also mirrors of what others publish to it"]
    assert {one["kind"] for one in report["identities"]} == {"control plane", "agent", "team"}


# --- accounts and users ----------------------------------------------------------------------------------------------


async def test_an_import_that_no_policy_gives_is_flagged(audited: Audited) -> None:
    """The agent's rights are told as the server has them, and the excess in words."""
    owner = audited.mesh.accounts.owner
    await audited.push(audited.account("crm-adapter", Import(owner, "ev.local.clear.*.crm.>")))
    assert await audited.flags() == {("agent crm-adapter", "extra-import")}
    assert "publish crm.> in clear (site local)" in await audited.text("extra-import")
    agent = await audited.identity("crm-adapter", "agent")
    assert agent["publish"] == ["crm.> in clear (site local)", "crm.contact.> in masked (site local)"]
    await audited.push(audited.account("crm-adapter"))
    assert await audited.flags() == set()


async def test_a_shared_family_more_is_flagged(audited: Audited) -> None:
    """The tenant's account exports what the mesh needs; one subject more reaches every account."""
    tenant = audited.mesh.accounts.wanted_tenant()
    await audited.push(Account(tenant.public, tenant.name, exports=(*tenant.exports, Export("$KV.>")), jetstream=True))
    assert await audited.flags() == {("control plane control", "extra-export")}
    await audited.push(tenant)
    assert await audited.flags() == set()


async def test_a_barred_workload_that_is_open_is_flagged(audited: Audited) -> None:
    """Trust was withdrawn, and the server lets it in all the same."""
    audited.standing.bar("desk")
    mesh = audited.mesh
    barred = Accounts(mesh.system, mesh.operator, "acme", audited.standing)
    audit = TrustAudit(mesh.system, mesh.operator, barred, mesh.policies, audited.standing)
    flags = (await audit.report())["flags"]
    assert {(flag["where"], flag["code"]) for flag in flags} == {
        ("agent desk", "account-limit"),
        ("agent desk", "extra-import"),
    }
    audited.standing.admit("desk")
    assert await audited.flags() == set()


async def test_accounts_that_nobody_made_are_flagged_and_who_is_in_them(audited: Audited) -> None:
    """One with the operator's signature lets its user in; one of another operator is kept and named as foreign."""
    thief, stranger, foreign = nkey("account"), nkey("operator"), nkey("account")
    owner = audited.mesh.accounts.owner
    await audited.push(Account(thief.public, "thief", imports=frozenset([Import(owner, "ev.>")])))
    other = Account(foreign.public, "foreign").token(stranger, iat=now_ms() // 1000)
    await accounts_push.push(audited.mesh.system, [other])
    user = nkey("user")
    creds = accounts.creds_file(accounts.user_jwt(thief, user.public, "thief", iat=now_ms() // 1000), user.seed)
    async with audited.connected(creds, "thief"):
        assert await audited.flags() == {
            (f"account {thief.public}", "account-unknown"),
            (f"account {thief.public}", "extra-import"),
            (f"account {foreign.public}", "account-unknown"),
            (f"account {foreign.public}", "foreign-issuer"),
        }
        assert f"the user {user.public} is connected" in await audited.text("account-unknown")
    await audited.push(Account(thief.public, "thief", closed=True))  # closed, it gives nobody anything
    (audited.mesh.directory / "accounts" / f"{foreign.public}.jwt").unlink()  # the server keeps what was pushed
    await audited.clean()


async def test_another_tenants_accounts_are_flagged_only_for_what_is_ours(audited: Audited) -> None:
    """Its own rights are audited there; an import of our subjects is ours to flag."""
    mesh = audited.mesh
    other = Accounts(mesh.system, mesh.operator, "other")
    await other.open()
    await other.set({"desk": [Import(other.owner, "ev.>")]})
    assert await audited.flags() == set()
    reach = Import(mesh.accounts.owner, f"$JS.API.CONSUMER.MSG.NEXT.{CRM}.{DURABLE}")
    await other.set({"desk": [reach]})
    assert await audited.flags() == {("account other/desk", "extra-import")}
    assert f"read crm.contact.> in masked: {DURABLE} on {CRM}" in await audited.text("extra-import")
    await other.set({"desk": []})
    assert await audited.flags() == set()


async def test_a_user_that_the_control_plane_did_not_make_is_flagged(audited: Audited) -> None:
    """Whoever has an account's key makes users of it, with more rights than ours."""
    mesh, user = audited.mesh, nkey("user")
    account = mesh.operator.keys.get("account", "acme/desk")
    token = accounts.user_jwt(account, user.public, "desk", iat=now_ms() // 1000)
    async with audited.connected(accounts.creds_file(token, user.seed), "desk"):
        assert await audited.flags() == {("agent desk", "user-unknown"), ("agent desk", "user-unlimited")}
    await audited.clean()


# --- streams and consumers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "change", "says"),
    [
        (CRM, {"allow_rollup_hdrs": True}, "`allow_rollup_hdrs` is on, it has to be off"),
        (CRM, {"republish": {"src": ">", "dest": "copy.>"}}, "`republish` is set: copy.>"),
        ("DLQ", {"duplicate_window": 10**9}, "`duplicate_window` is 1000000000, it has to be 180000000000"),
        ("REPORTS", {"subjects": ["report.>", "more.>"]}, "`subjects` is report.>, more.>, it has to be report.>"),
    ],
)
async def test_a_stream_that_lost_a_guard_is_flagged(
    audited: Audited, stream: str, change: dict[str, Any], says: str
) -> None:
    """One setting of one stream, changed on the server."""
    control = audited.mesh.control
    config = (await stream_info(control, stream))["config"]
    await api(control, f"STREAM.UPDATE.{stream}", {**config, **change})
    assert await audited.flags() == {(f"stream {stream}", "stream-setting")}
    assert await audited.text("stream-setting") == says
    await api(control, f"STREAM.UPDATE.{stream}", config)
    assert await audited.flags() == set()


async def test_a_stream_made_anew_with_times_to_live_is_flagged(audited: Audited) -> None:
    """Whoever publishes to it could have what is stored vanish. The server never takes the setting back."""
    control, stream = audited.mesh.control, "KV_mesh_agents"
    config = (await stream_info(control, stream))["config"]
    for changed, flags in (
        ({**config, "allow_msg_ttl": True}, {(f"stream {stream}", "stream-setting")}),
        (config, set()),
    ):
        await api(control, f"STREAM.DELETE.{stream}")
        await api(control, f"STREAM.CREATE.{stream}", changed)
        assert await audited.flags() == flags


@pytest.mark.parametrize("copies", ["mirror", "sources"])
async def test_a_stream_that_copies_another_is_flagged(audited: Audited, copies: str) -> None:
    """Stored events would be readable under another stream's name, without the grants of the first."""
    origin = {"name": CRM}
    config = {"name": "COPY", "storage": "file", copies: origin if copies == "mirror" else [origin]}
    await api(audited.mesh.control, "STREAM.CREATE.COPY", config)
    assert await audited.flags() == {("stream COPY", "stream-setting"), ("stream COPY", "stream-unknown")}
    assert await audited.text("stream-setting") == f"`{copies}` is set: {CRM}"
    await api(audited.mesh.control, "STREAM.DELETE.COPY")
    assert await audited.flags() == set()


@pytest.mark.parametrize(("whose", "codes"), [("support.contacts", set()), ("analytics.all", {"consumer-filter"})])
async def test_a_redrive_delivers_its_subscriptions_dead_letters_alone(
    audited: Audited, whose: str, codes: set[str]
) -> None:
    """Another's are beyond what was compiled."""
    control, name = audited.mesh.control, f"{DURABLE}--redrive"
    config = {"durable_name": name, "name": name, "ack_policy": "explicit", "filter_subject": f"redrive.{whose}"}
    await api(control, f"CONSUMER.CREATE.REDRIVE.{name}", {"stream_name": "REDRIVE", "config": config})
    assert await audited.flags() == {(f"consumer {name} on REDRIVE", code) for code in codes}
    read = (await audited.identity("support", "team"))["read"]
    assert f"dead letters of {whose.replace('.', '/')}, again: {name} on REDRIVE" in read
    await api(control, f"CONSUMER.DELETE.REDRIVE.{name}")


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        ({"durable_name": "extra"}, {"consumer-unknown"}),
        ({"durable_name": "extra", "deliver_subject": "victim.cmd"}, {"consumer-unknown", "consumer-pushes"}),
        ({"name": "read-0123456789abcdef", "mem_storage": True, "inactive_threshold": 60 * 10**9}, set()),
        ({"name": "read-0123456789abcdef", "inactive_threshold": 3600 * 10**9}, {"consumer-unknown"}),
        ({"durable_name": f"{DURABLE}--replay", "filter_subject": "ev.local.masked.*.crm.contact.>"}, set()),
        ({"durable_name": f"{DURABLE}--replay", "filter_subject": "ev.local.bare.*.crm.contact.>"}, set()),
        ({"durable_name": f"{DURABLE}--replay", "filter_subject": "ev.local.masked.*.crm.>"}, {"consumer-filter"}),
        ({"durable_name": "support--gone--replay"}, {"consumer-unknown"}),
    ],
    ids=["durable", "push", "reader", "no reader of ours", "replay", "old view", "replay beyond", "replay of nobody"],
)
async def test_a_consumer_that_nobody_compiled_is_flagged(
    audited: Audited, config: dict[str, Any], codes: set[str]
) -> None:
    """A durable, one that pushes, a replay of more than is read; but not the control plane's readers, or a replay."""
    control, name = audited.mesh.control, config.get("durable_name") or config["name"]
    body = {"stream_name": CRM, "config": {"ack_policy": "explicit", **config, "name": name}, "action": "create"}
    await api(control, f"CONSUMER.CREATE.{CRM}.{name}", body)
    assert await audited.flags() == {(f"consumer {name} on {CRM}", code) for code in codes}
    await api(control, f"CONSUMER.DELETE.{CRM}.{name}")
    assert await audited.flags() == set()


async def test_a_filter_beyond_the_grant_is_flagged(audited: Audited) -> None:
    """A durable that delivers a view, or types, that its team was not granted."""
    control = audited.mesh.control
    config = (await api(control, f"CONSUMER.INFO.{CRM}.{DURABLE}"))["config"]
    wide = {**config, "filter_subject": "ev.local.clear.*.crm.>"}
    await api(control, f"CONSUMER.CREATE.{CRM}.{DURABLE}", {"stream_name": CRM, "config": wide, "action": "update"})
    assert await audited.flags() == {(f"consumer {DURABLE} on {CRM}", "consumer-filter")}
    assert (await audited.identity("support", "team"))["read"] == [f"crm.> in clear: {DURABLE} on {CRM}", AGAIN]
    await api(control, f"CONSUMER.CREATE.{CRM}.{DURABLE}", {"stream_name": CRM, "config": config, "action": "update"})
    assert await audited.flags() == set()


async def test_an_old_view_that_still_drains_is_no_excess(tmp_path: Path) -> None:
    """After a change of view the durable delivers the old one for a while: that is compiled, and told as it is."""
    async with PolicyMesh.running(tmp_path) as mesh:
        await mesh.apply(reads("masked", "crm.contact.>"))
        await mesh.store_event("masked", "crm.contact.updated.v1")
        await mesh.apply(reads("bare", "crm.contact.>"))
        audited = Audited(mesh)
        assert await audited.flags() == set()
        both = f"crm.contact.> in bare, masked: {DURABLE} on {CRM}"
        assert (await audited.identity("support", "team"))["read"] == [both, AGAIN]
        mesh.policies._drain.forget()
        assert await audited.flags() == {(f"consumer {DURABLE} on {CRM}", "consumer-filter")}


async def test_a_message_taken_out_of_a_stream_is_flagged(audited: Audited) -> None:
    """The last test of the file: what is gone stays gone."""
    sequences = [await audited.mesh.store_event("masked", "crm.contact.updated.v1") for _ in range(3)]
    assert await audited.flags() == set()
    await api(audited.mesh.control, f"STREAM.MSG.DELETE.{CRM}", {"seq": sequences[1]})
    assert await audited.flags() == {(f"stream {CRM}", "messages-deleted")}
    assert await audited.text("messages-deleted") == "messages deleted inside it: 1"
