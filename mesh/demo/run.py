"""The demo itself: start a mesh, send, kill a consumer half way, wait, and count."""

from __future__ import annotations

import time
from base64 import b64decode
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh.cli.session import Session, operator_session
from mesh.cli.subscription import describe
from mesh.control.reader import reading
from mesh.deadletters import DeadLetterRecord
from mesh.demo.account import Account, Input, Receipt, due, latencies, masked_fields, missing, readers
from mesh.demo.processes import Team, start_mesh
from mesh.demo.sender import Send, Sender
from mesh.errors import ConfigError, VerificationError
from mesh.jetstream.manage import api, stream_info
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy_files import read_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesh.demo.inputs import Script

START_S = 60.0
FINISH_S = 90.0  # after the last event was sent; ack_wait and three tries fit in it several times
RESTART_AFTER_S = 1.0
POLL_S = 0.1


@dataclass(slots=True)
class Progress:
    """What a watcher may show while it runs."""

    step: str = "starting"
    sent: int = 0
    total: int = 0
    delivered: int = 0
    due: int = 0
    done: int = 0


@dataclass(slots=True)
class Outcome:
    """The account, and what a report shows beside it."""

    account: Account
    receipts: list[Receipt]
    inputs: dict[tuple[str, str], Input]
    letters: list[DeadLetterRecord]
    killed: str
    showcase: tuple[str, str]
    teams: list[str] = field(default_factory=list)


async def run(
    script: Script, *, directory: Path, policies: Path, withhold: int = 0, show: Callable[[Progress], None]
) -> Outcome:
    """Run the demo.

    Args:
        script: What to send, and which events make trouble.
        directory: For the data directory, receipts and logs; empty.
        policies: The worked example, or one with the same teams and types.
        withhold: 1 deletes one stored copy before its team reads it: the account must miss exactly that one.
        show: Called often.

    Raises:
        MeshError: Something did not start.
    """
    began = time.monotonic()
    progress = Progress(total=len(script.sends))
    context = directory / "data" / "mesh.json"
    async with AsyncExitStack() as stack:
        progress.step = "starting nats-server, control plane and agents"
        show(progress)
        mesh, file = await start_mesh(directory / "data", policies, START_S)
        stack.push_async_callback(mesh.stop)
        tenant = file.tenants[script.tenant]
        plans = _plans(policies, file.site, script.tenant)
        teams = {
            name: Team(
                name, script.tenant, context=context, directory=directory, troubles=script.troubles.get(name, {})
            )
            for name in script.teams
        }
        session = await stack.enter_async_context(operator_session(str(context), tenant=script.tenant))
        sender = await stack.enter_async_context(Sender(tenant, script.webhook_secret(directory / "data")))
        for team in teams.values():
            stack.push_async_callback(team.process.stop)
        if withhold:
            await _withhold(session, sender, script, plans)
        progress.step = "starting the teams' consumers"
        show(progress)
        for team in teams.values():
            team.process.start()
        with anyio.fail_after(START_S):
            for team in teams.values():
                await team.ready()
        killed_ms = await _send(script, sender, teams, progress, show)
        inputs = {sent.key: sent for sent in sender.accepted}
        wanted = {pair for pair in due(sender.accepted, plans, now_ms=_now_ms()) if pair[0] in teams}
        letters = await _finish(session, teams, wanted, progress, show)
        progress.step = "counting"
        show(progress)
        for team in teams.values():
            await team.process.stop()
        receipts = [receipt for team in teams.values() for receipt in team.read()]
        account = await _count(session, sender, receipts, letters, wanted, inputs, {script.killed: killed_ms})
        account = _timed(account, time.monotonic() - began)
    return Outcome(account, receipts, inputs, letters, script.killed, script.showcase, sorted(teams))


async def _send(
    script: Script, sender: Sender, teams: dict[str, Team], progress: Progress, show: Callable[[Progress], None]
) -> int:
    """Send everything; kill one consumer half way and start it again. Returns when it was killed, Unix ms."""
    half = len(script.sends) // 2
    killed_ms = 0

    async def watch() -> None:
        while True:
            progress.sent = sender.answered
            progress.delivered = sum(len(team.read()) for team in teams.values())
            show(progress)
            await anyio.sleep(POLL_S)

    async def restart(team: Team) -> None:
        await anyio.sleep(RESTART_AFTER_S)
        team.process.start()

    progress.step = "sending"
    async with anyio.create_task_group() as watchers:
        watchers.start_soon(watch)
        async with anyio.create_task_group() as restarts:
            await sender.send(script.sends[:half])
            team = teams[script.killed]
            killed_ms = _now_ms()
            team.process.kill()
            progress.step = f"sending; {script.killed}'s consumer was killed (-9) and comes back"
            restarts.start_soon(restart, team)
            await sender.send(script.sends[half:])
        watchers.cancel_scope.cancel()
    return killed_ms


async def _finish(
    session: Session,
    teams: dict[str, Team],
    wanted: set[tuple[str, tuple[str, str]]],
    progress: Progress,
    show: Callable[[Progress], None],
) -> list[DeadLetterRecord]:
    """Wait until everything due is handled or a dead letter, until no more is to come, or until it takes too long."""
    progress.step = "waiting for the last handlers"
    progress.due = len(wanted)
    letters: list[DeadLetterRecord] = []
    with anyio.move_on_after(FINISH_S):
        while True:
            drained = not await _outstanding(session, teams)  # asked first: what was settled by then has its receipt
            receipts = [receipt for team in teams.values() for receipt in team.read()]
            letters = await _letters(session)
            left = missing(wanted, receipts, _dead(letters))
            progress.done = len(wanted) - len(left)
            progress.delivered = len(receipts)
            show(progress)
            if drained or not left:
                break
            for team in teams.values():
                team.process.check()
            await anyio.sleep(POLL_S)
    return letters


async def _outstanding(session: Session, teams: dict[str, Team]) -> int:
    """How many events are stored for *teams* and not settled. It says when to stop waiting, never what was lost."""
    facts = [fact for team in teams for fact in await describe(session, team=team)]
    return sum(fact["lag"] for fact in facts)


async def _letters(session: Session) -> list[DeadLetterRecord]:
    state = (await stream_info(session.connection, "DLQ"))["state"]
    found = []
    for sequence in range(max(1, state["first_seq"]), state["last_seq"] + 1):
        message = (await api(session.connection, "STREAM.MSG.GET.DLQ", {"seq": sequence}))["message"]
        found.append(msgspec.json.decode(b64decode(message["data"]), type=DeadLetterRecord))
    return found


def _dead(letters: list[DeadLetterRecord]) -> set[tuple[str, tuple[str, str]]]:
    return {(letter.team, key) for letter in letters if (key := letter.key) is not None}


async def _count(  # noqa: PLR0917 - all that an account is made of
    session: Session,
    sender: Sender,
    receipts: list[Receipt],
    letters: list[DeadLetterRecord],
    wanted: set[tuple[str, tuple[str, str]]],
    inputs: dict[tuple[str, str], Input],
    killed: dict[str, int],
) -> Account:
    delivered = [receipt for receipt in receipts if receipt.kind == "delivered"]
    stored, sound = await _verified(session)
    left = missing(wanted, receipts, _dead(letters))
    per_team: dict[str, int] = {}
    for receipt in delivered:
        per_team[receipt.team] = per_team.get(receipt.team, 0) + 1
    return Account(
        accepted=len(inputs),
        stored=stored,
        delivered=per_team,
        verified=sum((receipt.stream, receipt.sequence) in sound for receipt in delivered),
        masked_fields=masked_fields(inputs, receipts),
        redelivered=sum(receipt.attempt > 1 for receipt in delivered),
        dead_lettered=len(letters),
        duplicates=sender.duplicates,
        lost=len(left),
        latency_ms=latencies(inputs, receipts, skip=killed),
        seconds=0.0,
        missing=tuple(sorted(left)),
    )


async def _verified(session: Session) -> tuple[int, set[tuple[str, int]]]:
    """How many copies are stored, and which of them pass V1 to V9: checked here once more."""
    streams = [info["config"] for info in (await api(session.connection, "STREAM.LIST"))["streams"]]
    filters = {config["name"]: config["subjects"] for config in streams if config["name"].startswith("EV_")}
    sound = set()
    async with reading(session.connection, filters, new_only=False) as (stored, events):
        for _ in range(stored):
            received = await events.receive()
            try:
                await session.verify(received)
            except VerificationError:
                continue
            sound.add((received.stream, received.sequence))
    return stored, sound


async def _withhold(session: Session, sender: Sender, script: Script, plans: Plans) -> None:
    """Send one event before anybody reads, and delete the one stored copy that exactly one of the teams is due."""
    send, view = _withholdable(script, plans)
    script.sends.remove(send)
    receipt = await sender.send_one(send)
    for copy in receipt.copies:
        if copy.view == view:
            await api(session.connection, f"STREAM.MSG.DELETE.{copy.stream}", {"seq": copy.seq})


def _withholdable(script: Script, plans: Plans) -> tuple[Send, str]:
    """The first event sent once that makes no trouble, with a view in which one team, and no other, is due it."""
    special = {script.showcase[1], *(id_ for troubles in script.troubles.values() for id_ in troubles.values())}
    for send in script.sends:
        event = send.events[0]
        if send.mode == "batch" or event["id"] in special or script.sends.count(send) > 1:
            continue
        pairs = readers(Input(agent=send.agent, fields=event, sent_ms=0), plans, now_ms=_now_ms())
        due_in = [(team, view) for team, view in pairs if team in script.teams]
        for team, view in sorted(due_in):
            if [t for t, v in due_in if v == view] == [team] and [v for t, v in due_in if t == team] == [view]:
                return send, view
    raise ConfigError(
        "no event is due to one team alone in some view", expected="the worked example", next="name other --policies"
    )


def _plans(policies: Path, site: str, tenant: str) -> Plans:
    bundles = compile_bundles(
        load(read_directory(policies)), revision=1, site=site, trust_domain="mesh.local", created_ms=_now_ms()
    )
    return Plans(bundles[tenant])


def _timed(account: Account, seconds: float) -> Account:
    figures = {name: getattr(account, name) for name in account.__slots__}
    return Account(**{**figures, "seconds": seconds})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
