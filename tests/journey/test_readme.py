"""What the README shows, run as it stands there."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import mesh as library
from mesh.cli.session import operator_session
from tests.journey.meshes import RunningMesh, restart_agent, stored

DEADLINE_S = 40


def block(root: Path, has: str, language: str = "python") -> str:
    """The block of the README in which *has* stands."""
    found = [
        b for b in re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL) if has in b
    ]
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def posted(mesh: RunningMesh, root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The README's event, sent by its curl line; the answer."""
    shown = (root / "README.md").read_text().partition("$ url=")[2].partition("\n{")[0]
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / ".mesh").symlink_to(mesh.data)
    (checkout / "policies").symlink_to(root / "policies")
    return run(["bash", "-euc", "url=" + shown.replace("\n$ ", "\n")], {}, checkout)


def run(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> bytes:
    """What a program prints, which ends with 0."""
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(process: subprocess.Popen[bytes], has: bytes = b"") -> str:
    """The first whole lines that it prints, *has* among them."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    until, said = time.monotonic() + DEADLINE_S, b""
    while not (said.endswith(b"\n") and has in said) and time.monotonic() < until:
        said += process.stdout.read() or b""
        time.sleep(0.02)
    return said.decode()


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
        said = printed(consumer)
        consumer.kill()
    assert f"```\n{said}```" in (root / "README.md").read_text()


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


# --- any language ----------------------------------------------------------------------------------------------------


def door(mesh: RunningMesh, agent: str) -> dict[str, str]:
    """An agent's url and token, as the README names them."""
    directory = mesh.data / "agents" / agent
    url = msgspec.json.decode((directory / "ports.json").read_bytes())["url"]
    return {"AGENT": url, "TOKEN": (directory / "token").read_text().strip()}


def publish(mesh: RunningMesh, root: Path, node: Path) -> None:
    """As the README does in JavaScript and in Python."""
    at, directory = door(mesh, "crm-adapter"), root / "tests" / "node"
    javascript = [str(node), "--input-type=module", "-e", block(root, "HTTP.structured", "js")]
    for command in (javascript, [sys.executable, "-c", block(root, "to_structured_event")]):
        assert run(command, at, directory).startswith(b'202 {"id":"')


def test_both_sdks_publish_and_curl_pulls(mesh: RunningMesh, root: Path, node: Path, tmp_path: Path) -> None:
    """What was published from JavaScript and from Python is fetched and acked, masked for support, as shown."""
    publish(mesh, root, node)
    shown = set(re.findall(r'^"email":"[jk].*"$', (root / "README.md").read_text(), re.MULTILINE))
    assert len(shown) == 2
    until, left = time.monotonic() + DEADLINE_S, set(shown)
    while left and time.monotonic() < until:
        lines = run(["bash", "-uc", block(root, "/ack", "sh")], door(mesh, "desk"), tmp_path).decode().splitlines()
        assert '"ok":false' not in lines[-1]
        left -= set(lines)
    assert not left


@pytest.mark.anyio
async def test_an_application_in_javascript_is_pushed_to(mesh: RunningMesh, root: Path, node: Path) -> None:
    """The README's table and its application; the port is another one, and the agent is started again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    with (mesh.data / "agents" / "desk" / "agent.toml").open("a") as file:
        file.write("\n" + block(root, "[push.contacts]", "toml").replace("9000", port))
    code = block(root, "createServer", "js").replace("9000", port)
    command = [str(node), "--input-type=module", "-e", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root / "tests" / "node") as application:
        try:
            await restart_agent(mesh, "desk")
            publish(mesh, root, node)
            said = await anyio.to_thread.run_sync(printed, application, b"created")
        finally:
            application.kill()
    assert re.search(r"^crm\.contact\.created\.v1 [jk]\*\*\*@\*\*\*\.com$", said, re.MULTILINE)
