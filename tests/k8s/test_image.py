"""The Containerfile: its steps run, and what they make runs read-only."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mesh.native.build import missing
from tests.conftest import ROOT
from tests.k8s.image import BUILD, CONTAINERFILE, PACKAGES, REQUIRED, foreign, run, stages

BUILT, SHIPPED = stages(CONTAINERFILE.read_text())
DOWNLOADS = ("requirements-build.lock", "requirements.lock")  # the steps that name them ask the network


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build stage makes, with this environment's packages in the place of those it downloads.

    `make image-steps` downloads them, which takes a minute.
    """
    root = tmp_path_factory.mktemp("image")
    (root / "wheels").mkdir()
    (root / "opt").mkdir()
    (root / "opt/build").symlink_to(Path(sys.prefix))
    run([step for step in BUILT if not (step.verb == "RUN" and step.text.endswith(DOWNLOADS))], root)
    packages = next((root / "opt/mesh/lib").glob("python3.*")) / "site-packages"
    (packages / "downloaded.pth").write_text(sysconfig.get_path("purelib"))
    return root / "opt/mesh"


def _said(image: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{image / 'bin'}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)


def test_both_programs_start(image: Path) -> None:
    """By name, as the manifests say, and from the installed wheel."""
    for command in (("mesh", "--version"), ("mesh-agent", "--help"), ("mesh", "control", "run", "--help")):
        done = _said(image, str(image / "bin" / command[0]), *command[1:])
        assert done.returncode == 0, done.stderr
    where = _said(
        image, str(image / "bin/python"), "-I", "-c", "import agent, mesh; print(agent.__file__, mesh.__file__)"
    )
    assert all(path.startswith(str(image)) for path in where.stdout.split())


def test_everything_is_compiled(image: Path) -> None:
    """A root that cannot be written keeps no bytecode, so all of ours has some, which no time of a file makes stale."""
    packages = next((image / "lib").glob("python3.*")) / "site-packages"
    sources = [p for name in ("agent", "mesh") for p in (packages / name).rglob("*.py")]
    assert len(sources) > 300
    tag = sys.implementation.cache_tag
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00", source  # PEP 552: by hash, not checked


def test_hot_loops_are_compiled(image: Path) -> None:
    """The image has them in C, made by its own steps, and not the C; nothing of it compiles where it runs."""
    code = "from mesh import native; print(native.compiled and native.compiled.__file__)"
    said = _said(image, str(image / "bin/python"), "-I", "-c", code)
    assert said.stdout.startswith("None" if missing() else str(image)), said.stderr
    packages = next((image / "lib").glob("python3.*")) / "site-packages"
    assert not [*packages.glob("mesh/native/*.[ch]"), *packages.glob("mesh/native/build.py")]
    (apt,) = [step.text for step in BUILT if step.text.startswith(PACKAGES)]
    assert " gcc libc6-dev " in apt
    assert [step.text for step in BUILT if REQUIRED in step.text and step.text.endswith("--wheel-dir /wheels .")]
    assert not [step for step in SHIPPED if step.verb == "RUN" and "apt-get" in step.text]


def test_stop_pull_is_where_the_manifests_say(image: Path) -> None:
    """It runs in a bare interpreter: without our package, or anybody's."""
    done = _said(image, str(image / "bin/python"), "-I", "-S", str(image / "lib/stop_pull.py"), "/nowhere.sock")
    assert done.returncode == 1
    assert "no agent answers" in done.stderr


def test_steps_install_as_the_makefile_does() -> None:
    """Every download has a version and a hash; nothing unlocked is fetched to build with."""
    downloads = [step.text for step in BUILT if step.verb == "RUN" and step.text.endswith(DOWNLOADS)]
    assert len(downloads) == len(DOWNLOADS)
    assert all("--require-hashes --only-binary :all:" in step for step in downloads)
    others = [step.text for step in BUILT if "pip" in step.text and step.text not in downloads]
    assert all("--no-index" in step or "--no-deps --no-build-isolation" in step for step in others)


def test_steps_stay_in_their_places() -> None:
    """Run without an engine they touch nothing of the machine's."""
    own = [step.text for step in BUILT if step.verb == "RUN" and not step.text.startswith(PACKAGES)]
    assert [foreign(text) for text in own] == [set()] * len(own)
    assert foreign("rm -rf /etc/mesh /opt/mesh/x") == {"/etc"}
    assert BUILD in {step.text for step in BUILT if step.verb == "WORKDIR"}


def test_image_is_nobodys() -> None:
    """It runs as the user that the manifests name, without an entry point, from a version that somebody chose."""
    said = {step.verb: step.text for step in SHIPPED}
    assert said["USER"] == "65532:65532"
    assert "ENTRYPOINT" not in said
    assert "PYTHONDONTWRITEBYTECODE=1" in said["ENV"]
    first = CONTAINERFILE.read_text().split("FROM")[0]
    assert "python:3.11." in first
    assert "latest" not in first


def test_ignored_is_everything_that_is_not_copied() -> None:
    """A mesh's keys in `.mesh` cannot get into an image by a wider COPY."""
    lines = (ROOT / ".containerignore").read_text().split()
    copied = {word for step in BUILT if step.verb == "COPY" for word in step.text.split()[:-1]}
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_tools_say_what_is_missing(tmp_path: Path) -> None:
    """Without apt-get it says where to put what it would have unpacked; what is there is not unpacked again."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    make = shutil.which("make")
    assert make is not None
    empty = tmp_path / "bin"
    empty.mkdir()
    done = subprocess.run(
        [make, "tools"], cwd=tmp_path, env={"PATH": str(empty)}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert ".tools/usr/bin" in done.stderr
    there = tmp_path / ".tools/usr/bin/promtool"
    there.parent.mkdir(parents=True)
    there.touch()
    done = subprocess.run(
        [make, "tools"], cwd=tmp_path, env={"PATH": str(empty)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_tools_are_made_before_the_tests() -> None:
    """CI unpacks what the tests of the rules run, and no checkout keeps it."""
    run = (ROOT / ".ci/run").read_text()
    assert run.index("make tools") < run.index("make check")
    assert ".tools/" in (ROOT / ".gitignore").read_text().split()
