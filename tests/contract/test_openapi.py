"""The doors against their own documents: schemathesis, all its checks, finds nothing at any of them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from agent.lifecycle import Sidecar
from tests.conftest import ROOT
from tests.contract.agent_mesh import Http, Streams, sidecar, until, write_directory
from tests.contract.consumer_mesh import Source
from tests.contract.pull_mesh import serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]  # 10 s a door; a busy machine takes its time

SCHEMATHESIS = Path(sys.executable).with_name("st")
EXAMPLES = 10  # an operation and a phase, beside those that cover each keyword of a schema once
# Beyond a schema: policy (403), an expirytime that is past (422), if there is a subscription (404) or a lease (409);
# a busy machine (408).
CHECKS = """
[checks]
max_response_time = 250
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "408", "409", "422"]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "408", "413", "415", "421", "431"]
"""


@pytest.fixture(scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sidecar]:
    """A sidecar to shoot at."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with (
        Streams.running(tmp_path_factory.mktemp("nats")) as streams,
        sidecar(base, streams.server.url, body_timeout_s=0.5, header_timeout_s=0.5) as running,
    ):
        await until(lambda: not running.agent.not_ready())
        yield running


@pytest.mark.parametrize("name", ["application", "webhooks", "health"])
async def test_schemathesis_finds_nothing(doors: Sidecar, tmp_path: Path, name: str) -> None:
    """Requests made from a door's document, right and wrong ones, get what it says; what it calls valid is taken."""
    await shoot(doors, tmp_path, name)


async def test_schemathesis_finds_nothing_where_events_are_pulled(tmp_path: Path) -> None:
    """The same for an agent that reads: its one subscription is the one that is asked for, and an event is there."""
    async with (
        Source.running(tmp_path / "mesh") as source,
        serving(source, tmp_path / "agent", body_timeout_s=0.5, header_timeout_s=0.5, max_pull_wait_s=0.05) as doors,
    ):
        await source.publish("1")
        (tmp_path / "st").mkdir()
        await shoot(doors, tmp_path / "st", "application", "--include-path-regex", "/v1/subscriptions/")


async def shoot(doors: Sidecar, tmp_path: Path, name: str, *more: str) -> None:
    """Run schemathesis."""
    token, secret = ((doors.agent.base / file).read_text().strip() for file in ("token", "hook.secret"))
    served = {"application": "/openapi.json", "webhooks": "/openapi/webhooks.json", "health": "/openapi/health.json"}
    door = {"application": doors.intake, "webhooks": doors.webhooks, "health": doors.health}[name]
    document = (await Http(doors.intake.url, "").send("GET", served[name], {})).body
    if more:  # a name that there is: the schema allows any
        document = document.replace(b'"pattern":"^[a-z0-9]+(-[a-z0-9]+)*$","maxLength":40', b'"enum":["contacts"]')
        assert b'"enum":["contacts"]' in document
    await anyio.Path(tmp_path / "openapi.json").write_bytes(document)
    await anyio.Path(tmp_path / "schemathesis.toml").write_text(CHECKS)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.contract.openapi_hooks"}
    environ["HOOK_SECRET"] = secret if name == "webhooks" else ""
    arguments = ["--url", door.url, "--checks", "all", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
    arguments += ["--max-examples", str(EXAMPLES), "--request-timeout", "250", "--no-color", "--warnings", "off"]
    arguments += ["--header", f"Authorization: Bearer {token}"] if name == "application" else []
    command = [str(SCHEMATHESIS), "run", "openapi.json", *arguments, *more]
    done = await anyio.run_process(command, cwd=tmp_path, env=environ, check=False)
    assert done.returncode == 0, done.stdout.decode()[-6000:]
    assert b"No issues found" in done.stdout
    assert not doors.agent.not_alive()
