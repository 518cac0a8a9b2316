"""Two agents end in the middle of the traffic, as pods do: first nothing more is pulled, then SIGTERM."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import pytest

import agent
from mesh.cli.session import operator_session
from mesh.control.agents import Ports
from tests.contract.agent_mesh import read_answer, until
from tests.contract.push_mesh import App, Posted, status
from tests.journey.meshes import RunningMesh, dead_letters, mesh_up

pytestmark = pytest.mark.anyio

AGENT = "crm-adapter"  # it publishes, and its team reads the same
SCRIPT = Path(agent.__file__).with_name("stop_pull.py")
POLICIES = """
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec:
  teams: {crm: {agents: [crm-adapter]}}
  delivery: {retry: {attempts: 2, backoff: [100ms], ack_wait: 30s}, max_in_flight: 200}
---
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: crm, tenant: acme, owner: crm}
spec: {types: ["crm.>"], fields: {data.id: [public]}}
---
apiVersion: mesh/v1
kind: Access
metadata: {name: crm, tenant: acme, owner: security}
spec:
  allow:
    - {id: crm-publishes, who: {teams: [crm]}, publish: ["crm.>"]}
    - {id: crm-reads, who: {teams: [crm]}, subscribe: ["crm.>"], view: clear}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: crm}
spec: {types: ["crm.contact.>"], start: all}
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One team that publishes and reads."""
    directory = tmp_path_factory.mktemp("mesh")
    (directory / "policies").mkdir()
    (directory / "policies" / "p.yaml").write_text(POLICIES)
    with mesh_up(directory, directory / "policies") as running:
        yield running


class Pod:
    """One more process of the agent, with a push target and a control socket."""

    def __init__(self, mesh: RunningMesh, name: str, app: App) -> None:
        self.directory = mesh.data / "agents" / name
        shutil.copytree(mesh.data / "agents" / AGENT, self.directory, ignore=shutil.ignore_patterns("spool*", "ports*"))
        file = self.directory / "agent.toml"
        url = app.url.replace("/events", f"/{name}")
        file.write_text(file.read_text() + f'\n[push.contacts]\nurl = "{url}"\nconcurrency = 4\n')
        self.socket = f"{self.directory}/control.sock"
        ports = {f"MESH_AGENT_{door}_PORT": "0" for door in ("HTTP", "WEBHOOKS", "HEALTH")}
        self.log = self.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(file)],
                env={**os.environ, **ports, "MESH_AGENT_CONTROL_SOCKET": self.socket},
                stderr=log,
            )
        self.token = (self.directory / "token").read_text().strip()
        self.livez: list[int] = []
        self.ports = Ports("", "", "", 0)

    async def ready(self) -> None:
        """Wait until it accepts events."""
        file = self.directory / "ports.json"
        await until(file.exists, timeout_s=60)
        self.ports = msgspec.json.decode(file.read_bytes(), type=Ports)

    async def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """What one of its probes says."""
        async with aiohttp.ClientSession() as http, http.get(self.ports.health_url + path) as response:
            return response.status, await response.json()

    async def live(self) -> None:
        """Ask /livez again and again, until it ends."""
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"{self.ports.health_url}/livez") as response:
                        self.livez.append(response.status)
                except aiohttp.ClientConnectionError:
                    await until(lambda: self.process.poll() is not None)  # the port is closed last
                    return
                await asyncio.sleep(0.03)

    async def publish(self, http: aiohttp.ClientSession, id_: str) -> int:
        """Post one contact; the status."""
        event = {"specversion": "1.0", "id": id_, "source": "/crm", "type": "crm.contact.updated.v1", "data": {"id": 1}}
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/cloudevents+json"}
        body = msgspec.json.encode(event)
        async with http.post(f"{self.ports.url}/v1/events", data=body, headers=headers) as response:
            return response.status

    def stop_pull(self) -> subprocess.Popen[bytes]:
        """The preStop hook, as the kubelet runs it."""
        return subprocess.Popen([sys.executable, "-I", "-S", str(SCRIPT), self.socket], stderr=subprocess.PIPE)

    async def begin_post(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request of which the agent has read the head, and waits for the body."""
        port = int(self.ports.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {self.token}\r\n"
        head += "Content-Type: application/cloudevents+json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        writer.write(head.encode())
        assert (await read_answer(reader)).status == 100
        return reader, writer


class Traffic:
    """Posts to whichever agent takes it, until it is told to stop."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = pods
        self.accepted: list[str] = []
        self.going = True

    async def run(self) -> None:
        """Post one after the other."""
        async with aiohttp.ClientSession() as http:
            while self.going:
                for pod in tuple(self.pods):
                    id_ = uuid4().hex
                    if await pod.publish(http, id_) == 202:
                        self.accepted.append(id_)
                    await asyncio.sleep(0.01)


class Gate:
    """The application: each event is handled once the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.under_way: dict[str, int] = {}

    async def answer(self, posted: Posted) -> Any:
        """After a while."""
        place = posted.request.path
        self.under_way[place] = self.under_way.get(place, 0) + 1
        try:
            await self.open.wait()
            await asyncio.sleep(0.002)
        finally:
            self.under_way[place] -= 1
        return status(204)


@asynccontextmanager
async def traffic(mesh: RunningMesh, app: App) -> AsyncIterator[Traffic]:
    """Two agents and what they are sent; killed at the end, whatever state they are in."""
    pods: list[Pod] = []
    try:
        pods.extend(Pod(mesh, name, app) for name in ("pod-a", "pod-b"))
        for pod in pods:
            await pod.ready()
        yield Traffic(pods)
    finally:
        for pod in pods:
            pod.process.kill()
            pod.process.wait()


async def end(pod: Pod, gate: Gate, app: App, running: Traffic) -> None:
    """End *pod* as Kubernetes does."""
    path = f"/{pod.directory.name}"
    gate.open.clear()
    await until(lambda: gate.under_way.get(path))
    hook = pod.stop_pull()

    async def stopping() -> bool:
        return (await pod.probe("/readyz"))[1]["pulling"] is False

    await until(stopping)
    assert hook.poll() is None  # what is pushed is waited for
    async with aiohttp.ClientSession() as http:
        running.accepted.append(id_ := uuid4().hex)
        assert await pod.publish(http, id_) == 202  # the application still runs, and so publishes
    assert (await pod.probe("/readyz"))[0] == 200
    gate.open.set()
    _, said = await asyncio.to_thread(hook.communicate)
    assert (hook.returncode, said) == (0, b"")
    taken, others = len(of(app, path)), len(app.posted)
    again = pod.stop_pull()
    await asyncio.to_thread(again.communicate)
    assert again.returncode == 0
    if len(running.pods) > 1:
        await until(lambda: len(app.posted) > others + 20)  # another agent goes on
    assert len(of(app, path)) == taken

    running.pods.remove(pod)
    reader, writer = await pod.begin_post()
    pod.process.send_signal(signal.SIGTERM)

    async def draining() -> bool:
        return (await pod.probe("/readyz"))[0] == 503

    await until(draining)
    assert (await pod.probe("/livez"))[0] == 200
    writer.write(b"{}")
    assert (await read_answer(reader)).status == 400  # it was let in, and is answered as ever
    writer.close()
    await until(lambda: pod.process.poll() is not None, timeout_s=30)
    assert pod.process.returncode == 0, pod.log.read_text()


def of(app: App, path: str) -> list[Posted]:
    """What one agent pushed."""
    return [posted for posted in app.posted if posted.request.path == path]


async def test_two_agents_drained_mid_traffic_lose_nothing(mesh: RunningMesh) -> None:
    """Every event with a 202 is pushed, none is a dead letter, and /livez says 200 to the end."""
    gate = Gate()
    async with App.running(gate.answer) as app, traffic(mesh, app) as running, asyncio.TaskGroup() as group:
        first, second = running.pods
        polls = [group.create_task(pod.live()) for pod in (first, second)]
        posts = group.create_task(running.run())
        await until(lambda: len(running.accepted) > 50)
        await end(first, gate, app, running)
        heir = Pod(mesh, "pod-c", app)
        try:
            await heir.ready()
            running.pods.append(heir)
            await end(second, gate, app, running)
            running.going = False
            await posts
            await until(lambda: set(running.accepted) <= set(app.ids), timeout_s=60)
            await asyncio.gather(*polls)
        finally:
            heir.process.kill()
            heir.process.wait()
    assert set(first.livez) == set(second.livez) == {200}
    async with operator_session(str(mesh.data)) as session:
        assert await dead_letters(session, "contacts") == []


async def test_the_hook_says_that_nobody_is_there(tmp_path: Path) -> None:
    """Without an agent it fails at once, and names the socket."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(tmp_path / "no.sock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no.sock" in done.stderr


async def test_the_hook_imports_almost_nothing() -> None:
    """It runs beside an application that shuts down, in each pod: no package of ours, no asyncio, no http."""
    code = "import runpy, sys\nsys.argv = ['', '/none']\nrunpy.run_path('/dev/null')\nbefore = set(sys.modules)\n"
    code += f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    code += "except SystemExit: print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['_socket']"
