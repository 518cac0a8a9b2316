"""The README's polling adapter against a small service over HTTP, feeding a real agent on a real mesh; and killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from agent.adapter import Adapter, Item, Page
from mesh.client import Mesh
from mesh.context import AgentAddress, Context, MeshFile, TenantAddress
from mesh.event import rfc3339
from mesh.signing import Verified
from tests.contract.agent_mesh import Control, Streams, judged, sidecar, until, write_directory

pytestmark = pytest.mark.anyio

SEED = 20261122
KILLS = 3
START_S = 60  # for a process that starts, on a busy machine
PAGE = 5
GONE = "gone"
ENROLS = {"event_key_file": "", "event_cert_file": ""}


class Service:
    """A CRM: pages of what changed since a number, deleted ones included, an ETag, and a limit it insists on."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.history: dict[str, list[Any]] = {}  # of each contact, what happened to it
        self.rows: dict[str, dict[str, Any]] = {}
        self.requests = self.not_modified = 0
        self.limited: list[int] = []  # requests that are told to slow down
        self.url = ""
        self._number = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take requests for the length of the block."""
        app = web.Application()
        app.add_routes([web.get("/contacts", self._contacts)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    def edit(self, key: str, fields: dict[str, Any] | str) -> None:
        """Somebody writes a contact, or deletes it."""
        happened = self.history.setdefault(key, [])
        if fields != (happened or [GONE])[-1]:
            happened.append(fields)
        self._number += 1
        self.rows[key] = {
            "id": key,
            "number": self._number,
            "updated_at": rfc3339(self._number),
            "deleted": fields == GONE,
            "fields": None if fields == GONE else fields,
        }

    def some_edits(self, count: int) -> None:
        """Of a few contacts, again and again: there and back as well."""
        for _ in range(count):
            key = f"c-{self.chance.randrange(12)}"
            city = self.chance.choice(["Bonn", "Brno", "Bern", GONE])
            self.edit(key, city if city == GONE else {"city": city, "email": f"{key}@example.org"})

    async def _contacts(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.requests in self.limited:
            return web.Response(status=429, headers={"Retry-After": "1"})
        etag = f'"{self._number}"'
        since = int(request.query["since"])
        later = sorted((row for row in self.rows.values() if row["number"] > since), key=lambda row: row["number"])
        if not later and request.headers.get("If-None-Match") == etag:
            self.not_modified += 1
            return web.Response(status=304)
        page = later[:PAGE]
        body = {"contacts": page, "next": page[-1]["number"] if page else since, "more": len(later) > PAGE}
        return web.json_response(body, headers={"ETag": etag})


@asynccontextmanager
async def adapter_process(root: Path, base: Path, service: Service, nats_url: str) -> AsyncIterator[Any]:
    """The README's adapter as it stands there, but for its patience."""
    (block,) = re.findall(r"```python\n(.*?)```", (root / "agent/adapter/README.md").read_text(), re.DOTALL)
    assert "interval_s=60" in block
    script = block.replace("interval_s=60", "interval_s=0.02").replace("per_s=5", "per_s=500")
    settings = {f"MESH_AGENT_{name.upper()}": value for name, value in {"nats_url": nats_url, **ENROLS}.items()}
    environment = {**os.environ, **settings, "CRM_URL": service.url, "PYTHONPATH": str(root)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=base, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_adapter_of_the_readme_killed_at_any_moment(tmp_path: Path, root: Path) -> None:
    """Consumers see of each contact what happened, in its order and up to its end; each event is stored once."""
    chance = random.Random(SEED)
    service = Service(chance)
    service.limited = [4, 30]
    base = write_directory(tmp_path / "agent")
    async with _streams(tmp_path, base) as streams, service.listening():
        service.edit("denied", {"account": "x-test"})  # policy has something against tests
        service.some_edits(40)
        for _ in range(KILLS):
            async with adapter_process(root, base, service, streams.server.url):
                asked = service.requests
                await until(lambda asked=asked: service.requests > asked, timeout_s=START_S)
                for _ in range(chance.randrange(4)):
                    service.some_edits(10)
                    await asyncio.sleep(chance.uniform(0.0, 0.1))  # when it is killed, at random
            service.some_edits(3)
        async with adapter_process(root, base, service, streams.server.url) as process:
            seen = service.not_modified
            await until(lambda: service.not_modified > seen + 1, timeout_s=START_S)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        verdicts = await judged(streams, base)
    events = [verdict.fields for verdict in verdicts if isinstance(verdict, Verified)]
    assert len(events) == len(verdicts)
    assert len({event["id"] for event in events}) == len(events)
    for key in service.history.keys() - {"denied"}:
        told = [event for event in events if event["subject"] == f"contact/{key}"]
        values = [GONE if event["type"] == "crm.contact.deleted.v1" else event["data"] for event in told]
        assert values == [value for value, _ in itertools.groupby(values)], "the same twice"
        assert _is_part(values, service.history[key])
        assert (values or [GONE])[-1] == service.history[key][-1]
    (parked,) = await _parked(base)
    assert (parked["key"], parked["problem"]["code"]) == ("denied", "denied")
    assert parked["problem"]["rule"].endswith("no-tests")


async def test_through_the_door_of_an_agent(tmp_path: Path) -> None:
    """`mesh.connect(...)` publishes for an adapter too: a complete listing, its deletions, and what policy refuses."""
    base = write_directory(tmp_path / "agent")
    listings = [["a", "b", "x-test"], ["b", "x-test"]]

    async with _streams(tmp_path, base) as streams, sidecar(base, streams.server.url, **ENROLS) as agent:
        await until(lambda: not agent.agent.not_ready())
        address = AgentAddress(
            url=agent.intake.url, webhooks_url="", health_url="", token_file=str(base / "token"), creds_file=""
        )
        tenants = {"acme": TenantAddress(agents={"crm-adapter": address}, teams={})}
        mesh_file = MeshFile(nats_url=streams.server.url, data=str(tmp_path), site="local", tenants=tenants)
        async with Mesh(Context(mesh=mesh_file, path="", tenant="acme", agent="crm-adapter")) as mesh:

            async def poll(cursor: None) -> Page:
                if not listings:
                    adapter.stop()
                    return Page([])
                return Page(listings.pop(0), complete=True)

            adapter = Adapter(
                poll, lambda key: Item(key, {"account": key}), publish=mesh, state=base / "contacts.db", source="/crm",
                type="crm.contact.{change}.v1", interval_s=0.0,
            )  # fmt: skip
            with anyio.fail_after(60):
                await adapter.run()
        verdicts = await judged(streams, base)
    events = [verdict.fields for verdict in verdicts if isinstance(verdict, Verified)]
    assert [(event["type"], event["data"]) for event in events] == [
        ("crm.contact.created.v1", {"account": "a"}),
        ("crm.contact.created.v1", {"account": "b"}),
        ("crm.contact.deleted.v1", {"id": "a"}),
    ]
    (parked,) = await _parked(base)
    assert (parked["key"], parked["problem"]["code"]) == ("x-test", "denied")


@asynccontextmanager
async def _streams(tmp_path: Path, base: Path) -> AsyncIterator[Streams]:
    """A mesh whose control plane gives the agent its key."""
    async with Streams.running(tmp_path / "nats") as streams:
        control = await Control.of(streams, base)
        async with control.answering():
            yield streams


async def _parked(base: Path) -> list[dict[str, Any]]:
    """What the command line says."""
    command = [sys.executable, "-m", "agent", "adapter", "parked", "contacts.db", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = await anyio.run_process(command, cwd=base, env=environment)
    return list(json.loads(process.stdout))


def _is_part(seen: Sequence[Any], truth: Sequence[Any]) -> bool:
    """Whether all of *seen* happened, in that order."""
    rest = iter(truth)
    return all(value in rest for value in seen)
