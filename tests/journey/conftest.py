"""Journey tests run against a whole mesh of real processes; those that leave it as they found it share one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli import operator
from mesh.cli.output import PIPE_WIDTH, console
from mesh.cli.policy import request
from tests.journey.meshes import RunningMesh, mesh_up, policies_with


@pytest.fixture(scope="session", autouse=True)
def wide() -> None:
    """Commands that run in this process print as into a pipe, whatever the size of the terminal the tests run in."""
    console.width = PIPE_WIDTH


@pytest.fixture(scope="module", autouse=True)  # and no longer: tests of other directories look at these figures
def patient() -> Iterator[None]:
    """Commands that run in this process wait for a busy machine longer than somebody at a terminal would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "CONNECT_TIMEOUT_S", 20.0)
        for verb in request.READS_S:
            patch.setitem(request.READS_S, verb, 30.0)
        yield


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """A mesh from the worked example, for the tests of one file; of the agents that only read it has the desk."""
    directory = tmp_path_factory.mktemp("mesh")
    with mesh_up(directory, policies_with(directory, root / "policies", readers=["desk"])) as running:
        yield running
