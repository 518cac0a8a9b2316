"""The walk in `policies/README.md`, run as it stands there: the edits, the commands, and what they print."""

from __future__ import annotations

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from mesh.cli.output import console
from tests.journey.meshes import mesh_up
from tests.journey.walks import WIDTH, Step, blocks, different, walk

pytestmark = pytest.mark.timeout(300)  # a mesh of its own, and twenty commands one after the other

SECTION = "## A change from beginning to end"


@pytest.fixture
def walked(tmp_path_factory: pytest.TempPathFactory, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every command of the walk, in a directory and a mesh of its own."""
    directory = tmp_path_factory.mktemp("walk")
    shutil.copytree(root / "policies", directory / "policies")
    monkeypatch.setattr(console, "width", WIDTH)
    with mesh_up(directory, directory / "policies") as mesh, chdir(directory):
        return walk(blocks(root / "policies" / "README.md", SECTION), directory, mesh.data)


def test_every_command_prints_what_the_walk_shows(walked: list[Step]) -> None:
    """From a new field to the rollback, each command prints what the page says, and every tool is there."""
    assert not different(walked)
    used = {word for step in walked for word in re.findall(r"mesh policy ([a-z-]+)", step.command)}
    tools = {"lint", "test", "explain", "who-can-see", "diff", "shadow", "apply", "status", "history", "rollback"}
    assert used >= tools
