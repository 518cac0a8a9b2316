"""The build stage of the Containerfile without an engine: its COPY and RUN, below a directory instead of the root.

What it installs with apt-get has to be here; where there is no C compiler, the hot loops stay in Python.

`python -m tests.k8s.image` runs all of it, downloads included (a minute), and prints what the image would hold.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mesh.native.build import missing
from tests.conftest import ROOT

CONTAINERFILE = ROOT / "Containerfile"
BUILD = "/build"
PACKAGES = "apt-get "  # how a step begins that installs some on the machine
REQUIRED = "MESH_NATIVE=required "
PLACES = ("/opt/build", "/opt/mesh", "/wheels", BUILD)  # what the steps name, and nothing else of the root
_ELSEWHERE = re.compile(r"(?<![\w./])/(?!dev/null)[\w-]+")


class Step(NamedTuple):
    """One instruction."""

    verb: str
    text: str


def stages(text: str) -> list[list[Step]]:
    """The instructions of each stage; what stands before the first FROM is not among them."""
    found: list[list[Step]] = []
    joined = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    for line in filter(str.strip, joined.splitlines()):
        verb, _, rest = line.partition(" ")
        if verb == "FROM":
            found.append([])
        if found:
            found[-1].append(Step(verb, rest.strip()))
    return found


def below(root: Path, command: str) -> str:
    """*command* with each place below *root*."""
    for place in PLACES:
        command = re.sub(rf"(?<![\w./-]){re.escape(place)}(?=[/\s]|$)", f"{root}{place}", command)
    return command


def foreign(command: str) -> set[str]:
    """Absolute paths in *command* that are none of the places: they would be this machine's."""
    return {path for path in _ELSEWHERE.findall(command) if not any(p.startswith(path) for p in PLACES)}


def run(steps: list[Step], root: Path, python: str = sys.executable) -> None:
    """Run *steps* below *root*; one that fails raises with what it said."""
    (root / BUILD[1:]).mkdir(parents=True, exist_ok=True)
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "python").unlink(missing_ok=True)
    (root / "bin" / "python").symlink_to(Path(python).resolve())
    environment = {"PATH": f"{root / 'bin'}:/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8"}
    if "CC" in os.environ:
        environment["CC"] = os.environ["CC"]
    for step in steps:
        if step.verb == "COPY":
            _copy(step.text.split(), root / BUILD[1:])
        elif step.verb == "RUN" and not step.text.startswith(PACKAGES):
            done = subprocess.run(
                ["sh", "-euc", below(root, step.text.replace(REQUIRED, "") if missing() else step.text)],
                cwd=root / BUILD[1:],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{step.text}\n{done.stderr[-2000:]}"


def _copy(words: list[str], to: Path) -> None:
    *sources, target = words
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to / target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.part"))
        else:
            shutil.copy(ROOT / source, to / target)


def _sizes(root: Path) -> Iterator[tuple[str, float]]:
    packages = next((root / "opt/mesh/lib").glob("python3.*")) / "site-packages"
    for path in packages.iterdir():
        files = [path] if path.is_file() else path.rglob("*")
        yield path.name, sum(f.stat().st_size for f in files if f.is_file()) / 2**20


def main() -> None:
    """Run it all and say how large it became."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        python = f"{sys.base_prefix}/bin/python3"
        run(stages(CONTAINERFILE.read_text())[0], root, python)
        for command in ("mesh", "mesh-agent"):
            subprocess.run([root / "opt/mesh/bin" / command, "--help"], check=True, stdout=subprocess.DEVNULL)
        sizes = sorted(_sizes(root), key=lambda pair: -pair[1])
        print(f"{sum(size for _, size in sizes):.0f} MiB in /opt/mesh, of which")
        print("\n".join(f"  {size:5.1f}  {name}" for name, size in sizes[:8]))


if __name__ == "__main__":
    main()
