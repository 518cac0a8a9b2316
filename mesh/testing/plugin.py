"""Fixtures for pytest: `pytest_plugins = ["mesh.testing.plugin"]` in the top conftest.py.

`local_mesh` is a `LocalMesh` with empty streams. The mesh behind it starts once for the whole run (`mesh_host`), from
the policies in the ini option `mesh_policies` (`policies` beside the ini file, where nothing is said). For the length
of a test `MESH_CONTEXT` names it, so that an application under test finds it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mesh.testing.host import MeshHost
from mesh.testing.kit import LocalMesh

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["local_mesh", "mesh_host", "pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini options."""
    parser.addini("mesh_policies", "directory of the policies that local_mesh runs", default="policies")
    parser.addini("mesh_agents", "agents that start with local_mesh; others when they are first used", type="args")


@pytest.fixture(scope="session")
def mesh_host(pytestconfig: pytest.Config) -> Iterator[MeshHost]:
    """One mesh for the whole run."""
    policies = pytestconfig.rootpath / str(_ini(pytestconfig, "mesh_policies", "policies"))
    with MeshHost(policies, agents=tuple(_ini(pytestconfig, "mesh_agents", ()))) as host:
        yield host


def _ini(config: pytest.Config, name: str, default: Any) -> Any:
    """An option; the default where a test module brought the plugin, too late for options."""
    try:
        return config.getini(name)
    except ValueError:
        return default


@pytest.fixture
def local_mesh(mesh_host: MeshHost, monkeypatch: pytest.MonkeyPatch) -> LocalMesh:
    """That mesh, with nothing stored in it."""
    monkeypatch.setenv("MESH_CONTEXT", str(mesh_host.path))
    kit = LocalMesh(mesh_host)
    kit.call(kit.reset)
    return kit
