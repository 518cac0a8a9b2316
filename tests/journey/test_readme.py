"""What the README shows, run as it stands there."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import anyio
import msgspec
import pytest

import mesh as library
from mesh.cli.session import operator_session
from tests.journey.meshes import RunningMesh, stored

DEADLINE_S = 40


def block(root: Path, starts: str) -> str:
    """The Python block of the README that begins with *starts*."""
    found = [b for b in re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL) if starts in b]
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def posted(mesh: RunningMesh, root: Path) -> bytes:
    """The README's event through the agent's door, as its curl line sends it; the answer."""
    agent = mesh.file.tenants["acme"].agents["crm-adapter"]
    headers = {
        "Authorization": f"Bearer {Path(agent.token_file).read_text().strip()}",
        "Content-Type": "application/cloudevents+json",
    }
    body = (root / "policies" / "fixtures" / "crm_contact_updated.json").read_bytes()
    request = Request(f"{agent.url}/v1/events", data=body, headers=headers)  # noqa: S310 - our own door
    with urlopen(request) as answer:  # noqa: S310 - our own door
        assert answer.status == 202
        return bytes(answer.read())


def test_the_receipt_is_the_one_shown(posted: bytes, root: Path) -> None:
    """The 202 of the README's event, sequence numbers included, on a mesh that has just started."""
    shown = (root / "README.md").read_text().partition('{"id":"c-4711-7"')[2].partition("```")[0]
    assert msgspec.json.decode(posted) == msgspec.json.decode('{"id":"c-4711-7"' + shown)


def test_the_consumer_prints_what_is_shown(mesh: RunningMesh, posted: bytes, root: Path) -> None:
    """The README's handler gets the event in the view of support."""
    assert posted
    command = [sys.executable, "-c", block(root, "a contact without an address")]
    environment = {**os.environ, "MESH_CONTEXT": str(mesh.data), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as consumer:
        assert consumer.stdout is not None
        os.set_blocking(consumer.stdout.fileno(), False)
        until, printed = time.monotonic() + DEADLINE_S, b""
        while not printed.endswith(b"\n") and time.monotonic() < until:
            printed += consumer.stdout.read() or b""
            time.sleep(0.02)
        consumer.kill()
    assert f"```\n{printed.decode()}```" in (root / "README.md").read_text()


@pytest.mark.anyio
async def test_a_deal_becomes_one_invoice_and_one_event(mesh: RunningMesh, root: Path, tmp_path: Path) -> None:
    """The README's inbox and outbox: killed and started again, each deal has one row, and one event that names it."""
    environment = {**os.environ, "MESH_CONTEXT": str(mesh.data)}
    deal = msgspec.json.decode((root / "policies" / "fixtures" / "crm_deal_won.json").read_bytes())["data"]
    for number in (1, 2):
        async with library.connect(mesh.data, agent="crm-adapter") as m:
            for twice in range(2):
                id_ = f"deal-{number if twice else 1}"  # the second time around, the first deal once more
                await m.publish("crm.deal.won.v1", deal, source="/salesforce/eu", id=id_)
        with subprocess.Popen(
            [sys.executable, "-c", block(root, "outbox.relay(m)")], env=environment, cwd=tmp_path
        ) as consumer:
            try:
                with anyio.fail_after(DEADLINE_S):
                    while state(tmp_path / "billing.db") != (number, 0):
                        assert consumer.poll() is None
                        await anyio.sleep(0.05)
            finally:
                consumer.kill()
    async with operator_session(str(mesh.data)) as session:
        events = [msgspec.json.decode(event.body, type=dict[str, Any]) for event in await stored(session)]
    issued = [event for event in events if event["type"] == "billing.invoice.issued.v1"]
    assert {(event["causationid"], event["source"]) for event in issued} == {(f"deal-{n}", "/billing") for n in (1, 2)}
    assert len({event["id"] for event in issued}) == 2


def state(database: Path) -> tuple[int, int]:
    """Invoices written, and events not posted yet."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            return tuple(
                db.execute("SELECT (SELECT count(*) FROM invoices), (SELECT count(*) FROM mesh_outbox)").fetchone()
            )
    except sqlite3.OperationalError:  # not made yet
        return 0, 0
