"""The manifests' own processes, from the installation to an event that a team handled, without a cluster.

Real are nats-server with the configuration of `overlays/dev` (TLS 1.3 both ways, operator mode), the control plane and
two agents with the command lines, variables and volumes of their manifests, the Secrets of `mesh control secrets`, and
the example that consumes. Stand-ins are the API server, which reviews tokens, and whoever issues TLS certificates.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from typer.testing import CliRunner

from mesh.ca import MeshCA, RootCA
from mesh.cli import app
from mesh.control.attest_kubernetes import POD_UID, REVIEWS_PATH
from mesh.control.nats_server import NatsServer, ServerTls
from mesh.control.reconcile import now_ms
from mesh.jetstream.tls import TlsFiles
from tests.conftest import ROOT
from tests.journey.pods import BARE, Mounted, arguments, environment, start
from tests.k8s.objects import Object, PodOf, of_kind, pods_of
from tests.k8s.rendering import DEPLOY, rendered
from tests.kube_server import Cluster, tls

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # five processes, one after the other, on a busy machine

PATIENCE_S = 30
EVENT = json.loads((ROOT / "policies/fixtures/crm_contact_updated.json").read_text())


@dataclass
class World:
    """What an installation has."""

    root: Path
    ca: MeshCA
    server: NatsServer
    api: str
    account: Path
    stack: ExitStack
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def certificate(self, name: str) -> Object:
        """A Secret as cert-manager makes it, for a client."""
        chain, key = self.ca.issue_tls_client(f"spiffe://mesh.local/ns/acme/sa/{name}", now_ms=now_ms())
        files = {"ca.crt": self.ca.root_pem, "tls.crt": chain, "tls.key": key}
        return _object("Secret", name, {k: _b64(v) for k, v in files.items()})

    async def until(self, name: str, holds: Callable[[str], bool]) -> None:
        """Wait until what the process *name* printed *holds*; says its end where it never does."""
        log, process = self.root / f"{name}.log", self.processes[name]
        with anyio.move_on_after(PATIENCE_S):
            while process.poll() is None:
                if holds(log.read_text()):
                    return
                await anyio.sleep(0.05)
        pytest.fail(f"{name} ({process.poll()}): {log.read_text()[-3000:]}")

    def process(self, name: str, words: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start one; it ends with the world."""
        log = self.stack.enter_context((self.root / f"{name}.log").open("wb"))
        process = start(words, variables, log)
        self.stack.callback(_end, process)
        self.processes[name] = process
        return process


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _object(kind: str, name: str, data: dict[str, str]) -> Object:
    return {"kind": kind, "metadata": {"name": name}, "data": data}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


async def _said(*words: str) -> str:
    """What a command of ours printed."""
    said = await anyio.to_thread.run_sync(CliRunner().invoke, app, words)
    assert said.exit_code == 0, said.output
    return said.stdout


async def _secrets(*words: str, data: Path) -> list[Object]:
    items: list[Object] = json.loads(await _said("control", "secrets", *words, "--data", str(data)))["items"]
    return items


async def _review(request: web.Request) -> web.Response:
    """A token is the name of its service account, as if the API server had looked it up."""
    account = (await request.json())["spec"]["token"]
    user = {"username": f"system:serviceaccount:acme:{account}", "extra": {POD_UID: ["1"]}}
    status = {"authenticated": True, "audiences": ["mesh-ca"], "user": user}
    return web.json_response(
        {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}, status=201
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name."""
    path = Path(tempfile.mkdtemp(prefix="pods"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def _world(root: Path) -> AsyncIterator[World]:
    await _said("control", "init", "--data", str(root / "keys"), "--resolver-dir", str(root / "data/accounts"))
    ca = RootCA.create("mesh.local", now_ms=now_ms()).issue_ca(now_ms=now_ms())
    certs, client = root / "etc/nats-certs/nats", root / "client"
    for directory, (chain, key) in (
        (certs, ca.issue_tls_server(["127.0.0.1"], now_ms=now_ms())),
        (client, ca.issue_tls_client("spiffe://mesh.local/test", now_ms=now_ms())),
    ):
        directory.mkdir(parents=True)
        for name, content in (("ca.crt", ca.root_pem), ("tls.crt", chain), ("tls.key", key)):
            (directory / name).write_bytes(content)
    files = [TlsFiles(d / "ca.crt", d / "tls.crt", d / "tls.key") for d in (certs, client)]
    reviews = Cluster().app()
    reviews.router.add_post(REVIEWS_PATH, _review)
    (root / "account").mkdir()
    server = await NatsServer.start(_config(root), root / "etc/nats-config", tls=ServerTls(*files))
    try:
        async with tls(root / "account", reviews) as api:
            with ExitStack() as stack:
                yield World(root, ca, server, api._url, root / "account", stack)
    finally:
        await server.stop()


def _config(root: Path) -> str:
    """`nats.conf` of dev, without what `NatsServer` says itself, over our directories."""
    maps = of_kind(rendered("overlays/dev"), "ConfigMap")
    text = next(c for c in maps if c["metadata"]["name"].startswith("nats"))["data"]["nats.conf"]
    operator = root / "etc/nats-operator/operator.conf"
    operator.parent.mkdir(parents=True)
    operator.write_bytes((root / "keys/nats/operator.conf").read_bytes())
    lines = [
        line for line in text.splitlines() if not line.startswith(("server_name", "port", "http_port", "pid_file"))
    ]
    config = "\n".join(["host: 127.0.0.1", *lines, ""])
    return str(config.replace('"/etc/', f'"{root}/etc/').replace('"/data"', f'"{root}/data"'))


def _pod(name: str, owner: str) -> tuple[PodOf, list[Object]]:
    docs = rendered(name)
    return next(pod for pod in pods_of(docs) if pod.owner == owner), list(of_kind(docs, "ConfigMap"))


async def _control(world: World) -> tuple[Mounted, dict[str, str]]:
    """The control plane, once it leads."""
    pod, maps = _pod("overlays/dev", "StatefulSet/mesh-control")
    files = [path for path in (ROOT / "policies").rglob("*.yaml") if path.parent.name != "tests"]
    policies = {f"{path.parent.name}-{path.name}": path.read_text() for path in files}
    objects = [
        *maps, *(await _secrets(data=world.root / "keys")),
        world.certificate("mesh-control-tls"),
        _object("ConfigMap", "mesh-policies", policies),
        _object("ConfigMap", "kube-root-ca.crt", {"ca.crt": ""}),
    ]  # fmt: skip
    mounted = Mounted(world.root / "control", pod, objects, "mesh-control")
    (container,) = pod.containers
    host, port = world.api.removeprefix("https://").split(":")
    variables = environment(
        container,
        mounted,
        {"metadata.name": "mesh-control-0", "status.podIP": "127.0.0.1"},
        MESH_NATS_URL=world.server.url,
        KUBERNETES_SERVICE_HOST=host,
        KUBERNETES_SERVICE_PORT=port,
    )
    words = arguments(container, mounted, variables, health_port=0)
    program = ["-m", "tests.journey.in_a_pod", str(world.account), *words[1:], "--json"]
    world.process("control", ["python", *program], variables | {"PYTHONPATH": str(ROOT)})
    await world.until("control", lambda said: '"leads"' in said)
    return mounted, variables


async def _agent(world: World, name: str, example: str, owner: str) -> tuple[subprocess.Popen[bytes], Mounted, str]:
    """An example's agent, once it takes events; and where."""
    pod, maps = _pod(example, owner)
    secrets = await _secrets(name, "-n", "acme", data=world.root / "control/data/data")
    objects = [*maps, *secrets, world.certificate(f"mesh-{name}-tls")]
    mounted = Mounted(world.root / name, pod, objects, name)
    container = pod.sidecar
    assert container is not None
    ports = mounted.root / "mesh-run" / "ports.json"
    numbers = dict.fromkeys(("MESH_AGENT_HTTP_PORT", "MESH_AGENT_HEALTH_PORT", "MESH_AGENT_WEBHOOKS_PORT"), "0")
    references = {"spec.serviceAccountName": name, "metadata.namespace": "acme", "status.podIP": "127.0.0.1"}
    variables = environment(container, mounted, references, **numbers, MESH_AGENT_PORTS_FILE=str(ports))
    toml = mounted.root / "mesh-config" / "agent.toml"
    text = mounted.paths(container, toml.read_text())
    toml.chmod(0o644)
    toml.write_text(text)
    variables["MESH_AGENT_NATS_URL"] = world.server.url
    process = world.process(name, arguments(container, mounted, variables), variables)
    await world.until(name, lambda _: ports.exists())
    return process, mounted, json.loads(ports.read_text())["url"]


def _stopped(process: subprocess.Popen[bytes], mounted: Mounted, container: Object) -> None:
    """As a pod ends: preStop by its own command line, then SIGTERM."""
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    script = ROOT / "agent" / Path(command[3]).name
    words = [sys.executable if command[0] == BARE else command[0], *command[1:3], str(script)]
    done = subprocess.run([*words, mounted.paths(container, command[4])], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


async def test_manifests_make_a_mesh(short: Path) -> None:
    """An adapter's event is stored, and handled by the consumer of the example; then every pod ends as it should."""
    async with _world(short) as world:
        control, variables = await _control(world)
        crm = await _agent(world, "crm-adapter", "examples/adapter", "StatefulSet/crm-adapter")
        desk = await _agent(world, "desk", "examples/consumer", "Deployment/desk")
        receipt = await _post(crm[2], crm[1].root / "mesh-door/token")
        assert receipt["durable"] == "stream"

        consumer = world.process(
            "consumer",
            ["python", "-I", str(DEPLOY / "examples/consumer/consumer.py")],
            {
                "AGENT_URL": desk[2],
                "AGENT_TOKEN_FILE": str(desk[1].root / "mesh-door/token"),
                "SUBSCRIPTION": "contacts",
            },
        )
        await world.until("consumer", lambda said: f"handled {EVENT['type']} " in said)

        listed = subprocess.run(  # as `kubectl exec mesh-control-0 -- mesh trust list --json`
            [sys.executable, "-m", "mesh", "trust", "list", "--json"], env=variables, check=True, capture_output=True
        )
        assert {key["agent"] for key in json.loads(listed.stdout)["keys"]} == {"crm-adapter", "desk"}
        assert control.root.exists()

        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(PATIENCE_S) == 0
        for (process, mounted, _), example in ((desk, "examples/consumer"), (crm, "examples/adapter")):
            (pod,) = pods_of(rendered(example))
            assert pod.sidecar is not None
            await anyio.to_thread.run_sync(_stopped, process, mounted, pod.sidecar)


async def _post(url: str, token: Path) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token.read_text().strip()}", "Content-Type": "application/cloudevents+json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/events", json=EVENT, headers=headers) as answer,
    ):
        said: dict[str, Any] = await answer.json(content_type=None)
        assert answer.status == 202, said
        return said
