"""What a leader of before can still do to a real server in operator mode: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from mesh.control import accounts_push
from mesh.control.lease_cut import cut_off, leader_name
from mesh.errors import Deposed
from mesh.jetstream.accounts import TENANT_EXPORTS, Account, Import, term_of, workload_imports, workload_subscribe
from mesh.jetstream.connection import Connection
from mesh.jetstream.puller import Puller
from tests.contract.operator_mode import OperatorMode
from tests.contract.streams import STREAM, make_durable, make_stream, until

pytestmark = pytest.mark.anyio

SUBJECT = "ev.local.clear.s00.crm.contact.updated.v1"


@pytest.fixture
async def mode(tmp_path: Path) -> AsyncIterator[OperatorMode]:
    """A server with a tenant and the workload `desk`, which may publish one subject."""
    mode = await OperatorMode.start(tmp_path)
    try:
        await mode.grant("desk", [Import(mode.tenant_account.public, SUBJECT)])
        yield mode
    finally:
        await mode.stop()


def account(mode: OperatorMode, term: int, *subjects: str) -> Account:
    """The account of `desk` as the leader of *term* has it."""
    owner = mode.tenant_account.public
    imports = frozenset((*workload_imports(owner, "desk"), *(Import(owner, subject) for subject in subjects)))
    return Account(mode.accounts["desk"].public, "desk", imports=imports, term=term)


async def push(mode: OperatorMode, one: Account) -> list[str]:
    """Push it, with a time that no server finds too old."""
    mode.iat += 10
    return await mode.push([one.token(mode.operator, iat=mode.iat)])


async def held(mode: OperatorMode) -> int:
    """The term of the account that the server has."""
    (token,) = await accounts_push.lookup(mode.system, mode.accounts["desk"].public)
    return term_of(token)


async def test_an_account_is_never_pushed_over_that_of_a_later_leader(mode: OperatorMode) -> None:
    """Although the servers would take it; and not where it is the same otherwise."""
    await push(mode, account(mode, 7, SUBJECT))
    with pytest.raises(Deposed):
        await push(mode, account(mode, 5))
    with pytest.raises(Deposed):
        await push(mode, account(mode, 5, SUBJECT))
    with pytest.raises(Deposed):
        await push(mode, account(mode, 0))  # of a control plane that is the only one
    assert await held(mode) == 7


async def test_a_leader_says_every_account_again_in_its_term_and_nobody_is_disturbed(mode: OperatorMode) -> None:
    """So that whoever led before finds the higher number; once is enough."""
    await push(mode, account(mode, 5, SUBJECT))
    desk = await mode.connect(mode.accounts["desk"], "desk", subscribe=workload_subscribe("desk"))
    lost: list[bool] = []
    desk.on_disconnect(lambda: lost.append(True))
    mode.tenant.listen(SUBJECT, lambda _s, reply, _h, _d: mode.tenant._write_one(reply, b"stored", "", None))
    await mode.tenant.flush(5)
    await push(mode, account(mode, 6, SUBJECT))
    assert await held(mode) == 6
    assert await push(mode, account(mode, 6, SUBJECT)) == []
    assert (await desk.request(SUBJECT, b"{}")).data == b"stored"
    assert not lost


async def test_a_new_leader_leaves_every_open_pull_alone(mode: OperatorMode) -> None:
    """A server that takes the tenant's account anew forgets the ways back through its exports: events go nowhere."""
    await make_stream(mode.tenant)
    await make_durable(mode.tenant, "desk--all")
    rights = (f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.desk--all", f"$JS.ACK.{STREAM}.desk--all.>")
    await push(mode, account(mode, 4, *rights))
    desk = await mode.connect(mode.accounts["desk"], "desk", subscribe=workload_subscribe("desk"))
    came: list[bytes] = []
    puller = Puller(desk, stream=STREAM, durable="desk--all", on_event=lambda received: came.append(received.body))
    async with anyio.create_task_group() as group:
        group.start_soon(puller.run)
        for term in (4, 5, 6):
            owner = Account(mode.tenant_account.public, "acme", exports=TENANT_EXPORTS, jetstream=True, term=term)
            await push(mode, owner)
            await push(mode, account(mode, term, *rights))
            await mode.tenant.request(SUBJECT, b"%d" % term)
            await until(partial(came.__contains__, b"%d" % term))
        group.cancel_scope.cancel()


async def test_whoever_led_before_is_cut_off_and_nobody_else(mode: OperatorMode) -> None:
    """A connection that was stopped in the middle of a write does not end it later."""
    before = await connect(mode, leader_name("control", 5))
    system = await connect(mode, leader_name("control-system", 5), system=True)
    ours = await connect(mode, leader_name("control", 9))
    operator = await connect(mode, "operator")
    cut: dict[str, anyio.Event] = {}
    for name, one in {"before": before, "system": system, "ours": ours, "operator": operator}.items():
        cut[name] = anyio.Event()
        one.on_disconnect(cut[name].set)
    accounts = [mode.tenant_account.public, mode.system_account.public]
    assert await cut_off(mode.system, accounts, 9) == 2
    with anyio.fail_after(60):
        await cut["before"].wait()
        await cut["system"].wait()
    await ours.flush(5)
    await operator.flush(5)
    assert not cut["ours"].is_set()
    assert not cut["operator"].is_set()


async def connect(mode: OperatorMode, name: str, *, system: bool = False) -> Connection:
    """Of the control plane."""
    return await mode.connect(mode.system_account if system else mode.tenant_account, name)


def test_a_control_plane_that_is_the_only_one_names_no_term() -> None:
    """And a leader names its own."""
    account = Account("A", "nobody")
    assert "tags" not in account.claims()
    assert replace(account, term=3).claims()["tags"] == ["mesh-term:3"]
