"""A real Prometheus scrapes a real agent and a real control plane, with the rules that are shipped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest

from mesh.ca import RootCA
from mesh.control.reconcile import now_ms
from tests.conftest import ROOT
from tests.forks import whole
from tests.journey.replicas import replicas
from tests.journey.test_lifecycle import AGENT, POLICIES
from tests.observability.files import RULES, named, tool
from tests.ports import free_ports
from tests.unit.test_injection import FRAGMENT_FILE

WAIT_S = 60.0
T = TypeVar("T")
ELSEWHERE = re.compile(  # with TLS to NATS; with a collector; with a cluster
    r"mesh_nats_certificate_.*|mesh_telemetry_.*|mesh_control_watch_failed_total"
)
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: mesh-agents
    static_configs: [{{targets: ["{agent}"]}}]
  - job_name: mesh-control
    static_configs: [{{targets: ["{control}"]}}]
"""


def until(found: Callable[[], T]) -> T:
    """Ask until there is something."""
    limit = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    return value


class Prometheus:
    """The server's API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}?{urlencode(parameters)}", timeout=10) as answer:  # noqa: S310
                return json.load(answer)["data"]
        except OSError:
            return None

    def value(self, expression: str) -> float | None:
        """Of an expression with one series."""
        data = self.ask("query", query=expression)
        return float(data["result"][0]["value"][1]) if data and data["result"] else None


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes a replica that leads, and an agent that publishes, pushes and pulls."""
    server = tool("prometheus")  # before anything is started
    directory = tmp_path_factory.mktemp("prometheus")
    directory.chmod(0o700)
    given = directory / "policies"
    given.mkdir()
    (given / "p.yaml").write_text(POLICIES)
    with ExitStack() as stack:
        stack.enter_context(whole())  # what is forked has every metric of the code, and shows some of another process
        mesh = stack.enter_context(replicas(directory, given, "cp-1"))
        (replica,) = mesh.all
        replica.more = ["--health-port", "0", "--watch-directory", str(given), *injecting(directory)]
        mesh.start(replica)
        mesh.leader()
        (control,) = re.findall(r'"event":"health".*"port":(\d+)', replica.log.read_text())
        agent = stack.enter_context(running_agent(replica.data.root, mesh.url))
        (port,) = free_ports(1)
        config = directory / "prometheus.yml"
        rules = directory / "rules.yml"
        rules.write_text(RULES.read_text().replace("interval: 30s", "interval: 1s"))  # it is not waited for
        config.write_text(CONFIG.format(rules=rules, agent=agent, control=f"127.0.0.1:{control}"))
        command = [str(server), f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        process = subprocess.Popen(command)
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Prometheus(port)


def injecting(directory: Path) -> list[str]:
    """Options of a control plane that answers admission reviews too."""
    now = now_ms()
    cert, key = RootCA.create("mesh.local", now_ms=now).issue_ca(now_ms=now).issue_tls_server(["127.0.0.1"], now_ms=now)
    options = ["--injector-port", "0"]
    for name, content in {"sidecar": FRAGMENT_FILE.read_bytes(), "cert": cert, "key": key}.items():
        path = directory / f"injector-{name}"
        path.touch(0o600)
        path.write_bytes(content)
        options += [f"--injector-{name}", str(path)]
    return options


@contextmanager
def running_agent(root: Path, url: str) -> Iterator[str]:
    """The agent that the control plane wrote files for; it has published, and pushed to nobody. Gives its probes."""
    (place,) = root.glob(f"**/agents/{AGENT}")
    (creds,) = (path for path in root.glob("**/*.creds") if "crm" in str(path.parent) and "teams" in path.parts)
    file = place / "agent.toml"
    file.write_text(file.read_text() + '\n[push.contacts]\nurl = "http://127.0.0.1:9/"\n')
    settings = {"NATS_URL": url, "TEAM_CREDS_FILE": str(creds), "TEAM": "crm"}
    settings |= {f"{door}_PORT": "0" for door in ("HTTP", "WEBHOOKS", "HEALTH")}
    environ = {**os.environ, **{f"MESH_AGENT_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "agent", "run", "--config", str(file)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stderr=log, cwd=ROOT)
    try:
        until((place / "ports.json").exists)
        ports = json.loads((place / "ports.json").read_text())
        publish(ports["url"], (place / "token").read_text().strip())
        yield str(ports["health_url"]).removeprefix("http://")
    finally:
        process.kill()
        process.wait()


def publish(door: str, token: str) -> None:
    """One contact."""
    event = {"specversion": "1.0", "id": "1", "source": "/crm", "type": "crm.contact.updated.v1", "data": {"id": 1}}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents+json"}
    request = urllib.request.Request(f"{door}/v1/events", json.dumps(event).encode(), headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
        assert answer.status == 202


def test_both_are_scraped_and_every_metric_is_there(prometheus: Prometheus) -> None:
    """Targets are up; each metric that rules, dashboard or scaler name has a series."""
    until(lambda: prometheus.value('sum(up{job=~"mesh-.*"})') == 2)

    def missing() -> set[str]:
        names = set(prometheus.ask("label/__name__/values") or ())
        return {name for name in named() - names if not ELSEWHERE.fullmatch(name)}

    limit = time.monotonic() + WAIT_S
    while missing() and time.monotonic() < limit:
        time.sleep(0.2)
    assert not missing()


def test_rules_are_evaluated_and_no_alert_is_on(prometheus: Prometheus) -> None:
    """On what is scraped: none is in error, and a mesh that is well raises none."""

    def evaluated() -> list[dict[str, Any]]:
        groups = (prometheus.ask("rules") or {"groups": []})["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else []

    found = until(evaluated)
    assert [rule for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []
    assert until(lambda: prometheus.value('mesh_agent_info{tenant="acme", team="crm", agent="crm-adapter"}')) == 1
    assert until(lambda: prometheus.value("mesh_control_leads")) == 1
