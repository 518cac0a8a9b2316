"""The walk in `mesh/control/README.md`, run as it stands there on a mesh with TLS and an encrypted store."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path

import pytest

from mesh.cli.output import console
from tests.journey.meshes import mesh_up
from tests.journey.walks import WIDTH, Step, blocks, different, walk

pytestmark = pytest.mark.timeout(300)  # a mesh of its own, and ten commands one after the other

SECTION = "## Keys from beginning to end"


@pytest.fixture
def walked(tmp_path_factory: pytest.TempPathFactory, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every command of the walk, in a mesh of its own."""
    directory = tmp_path_factory.mktemp("walk")
    monkeypatch.setattr(console, "width", WIDTH)
    with mesh_up(directory, root / "policies", "--tls", "--encrypt") as mesh, chdir(directory):
        return walk(blocks(root / "mesh" / "control" / "README.md", SECTION), directory, mesh.data)


def test_every_command_prints_what_the_walk_shows(walked: list[Step]) -> None:
    """From the roots to the audit, each command prints what the page says, and every `mesh trust` verb is there."""
    assert not different(walked)
    used = {word for step in walked for word in re.findall(r"mesh trust ([a-z-]+)", step.command)}
    assert used >= {"show", "list", "rotate", "revoke", "admit", "audit"}
