"""What mesh/README.md shows, run as it stands there, and read by mypy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import msgspec
import pytest

from mesh.testing import LocalMesh

pytest_plugins = ["mesh.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # the first test starts a mesh on a busy machine

DEADLINE_S = 60


def block(root: Path, name: str) -> str:
    """The Python block of the page below the comment *name*."""
    found = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", (root / "mesh" / "README.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def printed(code: str, lines: int) -> str:
    """What a program printed once it was *lines* lines, or ended."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    out, until = b"", time.monotonic() + DEADLINE_S
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        while out.count(b"\n") < lines and time.monotonic() < until:
            ended = process.poll() is not None
            out += process.stdout.read() or b""
            if ended:
                break
            time.sleep(0.02)
        process.kill()
    return out.decode()


async def test_the_typed_program_prints_what_is_shown(local_mesh: LocalMesh, root: Path) -> None:
    """It publishes an instance, and its handler gets one, as its view shows it."""
    await local_mesh.start_agent("crm-adapter")
    out = await anyio.to_thread.run_sync(printed, block(root, "typed"), 1)
    assert f"```\n{out}```" in (root / "mesh" / "README.md").read_text()


async def test_the_sync_program_ends_by_itself(local_mesh: LocalMesh, root: Path) -> None:
    """After the event that it published."""
    await local_mesh.start_agent("crm-adapter")
    out = await anyio.to_thread.run_sync(printed, block(root, "sync"), 2)
    assert out == "crm.contact.updated.v1 4711\n"
    await local_mesh.nothing("support", "contacts")


async def test_the_shown_test_passes(local_mesh: LocalMesh, root: Path) -> None:
    """With the fixture, and handlers of its own."""
    module = ModuleType("shown")
    exec(block(root, "testing"), vars(module))  # noqa: S102 - our own page
    await module.test_a_won_deal_is_invoiced(local_mesh)


# --- FastAPI, over ASGI itself ---------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[Any]:
    """The application started and stopped as a server does; yields what sends a request."""
    told, said = anyio.create_memory_object_stream[Any](1), anyio.create_memory_object_stream[Any](1)

    async def ask(method: str, path: str, query: str = "") -> tuple[int, Any]:
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "headers": [],
        }
        scope |= {"query_string": query.encode(), "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}}
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], msgspec.json.decode(b"".join(m.get("body", b"") for m in sent[1:]))

    async with anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan", "asgi": {"version": "3.0"}}, told[1].receive, said[0].send)
        await told[0].send({"type": "lifespan.startup"})
        assert (await said[1].receive())["type"] == "lifespan.startup.complete"
        yield ask
        await told[0].send({"type": "lifespan.shutdown"})
        assert (await said[1].receive())["type"] == "lifespan.shutdown.complete"
    for stream in (*told, *said):
        stream.close()


async def test_the_fastapi_application_publishes_and_consumes(local_mesh: LocalMesh, root: Path) -> None:
    """A request publishes; the background remembers what came; a refusal is an answer; it shuts down cleanly."""
    await local_mesh.start_agent("crm-adapter")
    module = ModuleType("shown_app")
    sys.modules["shown_app"] = module  # where FastAPI looks annotations up
    exec(block(root, "fastapi"), vars(module))  # noqa: S102 - our own page
    try:
        with anyio.fail_after(DEADLINE_S):
            async with serving(module.app) as ask:
                status, answer = await ask("PUT", "/contacts/4711", "country=DE")
                assert status == 202, answer
                while (await ask("GET", "/contacts/4711"))[1] != {"country": "DE"}:
                    await anyio.sleep(0.01)
                async with local_mesh.server_away():
                    assert (await ask("PUT", "/contacts/4712", "country=FR"))[1]["durable"] == "spool"
                while (await ask("GET", "/contacts/4712"))[1] != {"country": "FR"}:
                    await anyio.sleep(0.01)
    finally:
        del sys.modules["shown_app"]
    await local_mesh.nothing("support", "contacts")


# --- types -----------------------------------------------------------------------------------------------------------

GOOD = """
from dataclasses import dataclass

import mesh
from mesh.testing import LocalMesh


@mesh.event_type("crm.deal.won.v1")
@dataclass
class DealWon:
    deal: str


handlers = mesh.Handlers()


@handlers.on(DealWon)
async def one(data: DealWon) -> None: ...


@handlers.on("crm.>")
def other(event: mesh.Admitted, data: dict[str, str]) -> None: ...


async def use(m: mesh.Mesh, kit: LocalMesh) -> None:
    receipt: mesh.Receipt = await m.publish(DealWon("d-1"), source="/crm")
    await m.publish("crm.deal.won.v1", {"deal": receipt.id}, source="/crm")
    async with m.subscription("deals") as deals:
        await deals.run(handlers)
        await deals.run(one)
        async for delivery in deals:
            async with delivery as event:
                text: str = mesh.data_of(event, DealWon).deal
    found = await kit.expect("support", "contacts", where=lambda e: e.type != "")
    reveal_type(found)
    reveal_type(one)


with mesh.connect_sync(team="support") as s:
    for delivery in s.subscription("deals"):
        with delivery as event:
            reveal_type(event)
    s.publish(DealWon("d-1"), source="/crm")
"""
BAD = """
import mesh


async def three(a: object, b: object, c: object) -> None: ...


async def use(m: mesh.Mesh) -> None:
    await m.publish(17, source="/crm")
    await m.publish("crm.deal.won.v1", {})
    async with m.subscription("deals") as deals:
        await deals.run(three)
        await deals.run("handler")
    mesh.data_of({}, dict)
    mesh.Handlers(otherwise="drop")
    mesh.Handlers().on(5)
"""


PAGE = ("typed", "sync", "fastapi")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, list[str]]:
    """What mypy --strict says of each program that uses the library, a line each; all are read in one run."""
    directory = tmp_path_factory.mktemp("program")
    (directory / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\nnamespace_packages = true\nexplicit_package_bases = true\n"
    )
    programs = {"good": GOOD, "bad": BAD} | {f"page_{name}": block(root, name) for name in PAGE}
    for name, code in programs.items():
        (directory / f"{name}.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", *(f"{name}.py" for name in programs)],
        cwd=directory,
        env={**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    said: dict[str, list[str]] = {name: [] for name in programs}
    for line in run.stdout.splitlines():
        said[line.partition(".py:")[0]].append(line)
    return said


def test_mypy_knows_what_comes_back(checked: dict[str, list[str]]) -> None:
    """A program that uses everything passes, and its values have their types."""
    found = [line.partition("note: Revealed type is ")[2] for line in checked["good"]]
    assert found == [
        '"list[mesh.inbound.Admitted]"',
        '"def (data: good.DealWon) -> typing.Coroutine[Any, Any, None]"',
        '"mesh.inbound.Admitted"',
    ]


def test_mypy_finds_each_misuse(checked: dict[str, list[str]]) -> None:
    """Every line that cannot work is an error where it stands."""
    lines = {int(line.split(":")[1]) for line in checked["bad"] if " error: " in line}
    wrong = {
        number for number, line in enumerate(BAD.splitlines(), 1) if line.startswith("    ") and "with" not in line
    }
    assert lines == wrong


@pytest.mark.parametrize("name", PAGE)
def test_mypy_passes_what_the_page_shows(checked: dict[str, list[str]], name: str) -> None:
    """Its blocks are typed as strictly as the library, but for the test, whose fixture has no annotation."""
    assert checked[f"page_{name}"] == []
