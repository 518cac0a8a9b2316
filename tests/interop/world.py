"""One mesh with two applications beside its agent, one of Python and one of Node, to which everything is pushed."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mesh.testing import LocalMesh, MeshHost
from tests.conftest import ROOT
from tests.contract.push_mesh import App

NODE = ROOT / "tests" / "node"
POLICIES = (ROOT / "tests" / "interop" / "policies.yaml").read_text()
AGENT = TEAM = "shop"
DEADLINE_S = 60
MODES = {"python": ("structured", "binary"), "node": ("structured", "binary", "batch")}


@dataclass
class NodeApp:
    """`cloudevents_receive.mjs`: what its SDK made of each event."""

    process: subprocess.Popen[str]
    port: int
    received: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def running(cls, node: Path) -> Iterator[NodeApp]:
        """On a free port; what it prints is read as it comes."""
        with subprocess.Popen(
            [node, "cloudevents_receive.mjs"], cwd=NODE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            app = cls(process, json.loads(process.stdout.readline())["port"])
            reader = threading.Thread(target=app._read)
            reader.start()
            try:
                yield app
            finally:
                process.kill()
                reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.received.append(json.loads(line))


@dataclass
class World:
    """The mesh, its agent's door, and the applications."""

    kit: LocalMesh
    node: Path
    python_app: App
    node_app: NodeApp
    url: str
    token: str

    @classmethod
    @contextmanager
    def running(cls, node: Path, directory: Path) -> Iterator[World]:
        """The agent starts when it knows where to push."""
        host = MeshHost({"interop.yaml": POLICIES}, data=directory / "data")
        with (
            host,
            NodeApp.running(node) as node_app,
            host.portal.wrap_async_context_manager(App.running()) as python_app,
        ):
            ports = {"python": python_app.port, "node": node_app.port}
            with (directory / "data" / "agents" / AGENT / "agent.toml").open("a") as toml:
                for language, modes in MODES.items():
                    toml.writelines(target(language, mode, ports[language]) for mode in modes)
            host.portal.call(host.want, AGENT)
            address = host.context(agent=AGENT).mesh.tenants["acme"].agents[AGENT]
            token = Path(address.token_file).read_text().strip()
            yield cls(LocalMesh(host), node, python_app, node_app, address.url, token)

    def ask(self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> dict[str, Any]:
        """One request with exactly these header fields, twice where a name is there twice; the answer of a 2xx."""
        door = urlsplit(self.url)
        connection = http.client.HTTPConnection(door.hostname or "", door.port, timeout=DEADLINE_S)
        connection.putrequest(method, path)
        for name, value in (*headers, ("Authorization", f"Bearer {self.token}"), ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as response:
            said = response.read()
        connection.close()
        assert response.status in {200, 202}, said
        answer: dict[str, Any] = msgspec.json.decode(said)
        return answer

    def run_node(self, script: str, payload: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a script of `tests/node` prints, a JSON value a line; *payload* is its input."""
        done = subprocess.run(
            [self.node, script],
            cwd=NODE,
            input=json.dumps(payload),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def target(language: str, mode: str, port: int) -> str:
    """A table of `agent.toml`."""
    url = f"http://127.0.0.1:{port}/{mode}"
    return f'\n[push.{language}-{mode}]\nurl = "{url}"\nmode = "{mode}"\n'
