"""What the README shows, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import pytest

from tests.journey.meshes import RunningMesh

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
    command = [sys.executable, "-c", block(root, "import mesh")]
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
