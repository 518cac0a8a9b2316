"""What a user installs: the wheel, in an environment that has never seen the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Copying the locked packages takes a part of it; a machine with slow disks needs room.
pytestmark = pytest.mark.timeout(300)

KEYS = [
    "accepted",
    "stored",
    "delivered",
    "verified",
    "masked_fields",
    "redelivered",
    "dead_lettered",
    "duplicates",
    "lost",
    "latency_ms",
    "seconds",
]


def _environment() -> dict[str, str]:
    """No variable that leads Python back to the checkout or the environment of the tests."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST_", "MESH_"))}


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output; on failure what it said, in the assertion."""
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command[:4]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout with the locked backend, so that nothing is fetched and nothing is left."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("mesh", "agent", "policies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, source, cwd=directory)
    (built,) = directory.glob("nats_event_mesh-*.whl")
    return built


def _copy(installed: Distribution, packages: Path) -> None:
    """Put a package of our own environment, which pip installed from the same lock, into another's *packages*.

    Scripts stay behind: they name our Python.
    """
    for file in installed.files or []:
        source, target = Path(str(file.locate())), packages / file
        if source.exists() and not (".." in file.parts and source.read_bytes().startswith(b"#!")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)  # with its time, by which Python knows what it has compiled


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `bin` of a fresh environment with the locked dependencies and the wheel, and nothing else."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    python = environment / "bin" / "python"
    packages = Path(
        _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent).strip()
    )
    for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE):
        _copy(distribution(name), packages)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    yield environment / "bin"
    shutil.rmtree(environment)  # a few hundred MB


def test_wheel_carries_the_worked_example(wheel: Path) -> None:
    """`policies/` travels as `mesh/example/`, and the type markers with it; nothing of the tests does."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"mesh/example/{p.relative_to(ROOT / 'policies')}" for p in (ROOT / "policies").rglob("*") if p.is_file()
    } <= names
    assert {"mesh/py.typed", "agent/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mesh", "agent"}


def test_installed_commands_answer(installed: Path, tmp_path: Path) -> None:
    """Both console scripts start from the wheel, and pip finds nothing missing."""
    assert _run(installed / "mesh", "--version", cwd=tmp_path).startswith("mesh ")
    assert "config" in _run(installed / "mesh-agent", "--help", cwd=tmp_path)
    _run(sys.executable, "-m", "pip", "--python", installed / "python", "check", cwd=tmp_path)


def test_installed_demo_loses_nothing(installed: Path, tmp_path: Path) -> None:
    """`mesh demo` runs from the wheel alone and exits with 0: every due event arrived, verified.

    That is through kill -9, a failing handler, repeats and a poison event.
    """
    report = json.loads(_run(installed / "mesh", "demo", "--json", cwd=tmp_path))
    assert list(report) == KEYS
    assert report["lost"] == 0
    assert report["accepted"] >= 300
    assert report["stored"] > report["accepted"]
    assert set(report["delivered"]) == {"analytics", "billing", "security", "support"}
    assert report["verified"] == sum(report["delivered"].values())
    assert report["redelivered"] >= 1
    assert report["dead_lettered"] == 1
    assert report["duplicates"] >= 5
    assert report["masked_fields"] > report["accepted"]
    assert set(report["latency_ms"]) == {"p50", "p99"}
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["seconds"] > 0
