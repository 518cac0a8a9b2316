"""Compiles `_compiled` from the C beside this file: hatchling calls it for wheels and for editable installs.

Where there is no C compiler, or no headers of this Python, nothing is compiled and the package runs in Python alone; a
compiler that fails is an error. `MESH_NATIVE` says otherwise: `off` compiles nothing, `required` fails where nothing
can be compiled, as an image should.

By hand: `python -m mesh.native.build` says why the loops run in Python, where they do; `... check` compiles with
warnings as errors and keeps nothing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
NAME = "_compiled" + str(sysconfig.get_config_var("EXT_SUFFIX"))  # of this Python: no other one loads it
BUILT = HERE / NAME  # of an editable install
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion")
# NDEBUG, as Python itself is compiled: its headers have assertions. Nothing for this processor alone: wheels travel.
FLAGS = ("-std=c11", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", *WARNINGS)
LINK = ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)
ON_REQUEST = ("", "off", "required")


def wanted() -> str:
    """What `MESH_NATIVE` asks for.

    Raises:
        ValueError: Nothing that it can ask for.
    """
    value = os.environ.get("MESH_NATIVE", "")
    if value not in ON_REQUEST:
        raise ValueError(f"MESH_NATIVE is {value!r}, expected off, required or nothing")
    return value


def missing() -> str:
    """What there would have to be for compiling; empty where all is there."""
    compiler = _compiler()[0]
    if shutil.which(compiler) is None:
        return f"a C compiler ({compiler})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"the headers of this Python ({header})"


def outdated() -> bool:
    """Whether the sources beside what an editable install compiled have changed since."""
    return BUILT.exists() and any(path.stat().st_mtime > BUILT.stat().st_mtime for path in HERE.glob("*.[ch]"))


def build(target: Path = BUILT, *more: str) -> Path:
    """Compile the extension module to *target*, with *more* flags.

    Raises:
        subprocess.CalledProcessError: The compiler failed; it has said why.
    """
    part = target.with_suffix(f".{os.getpid()}.part")
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    command = [*_compiler(), *FLAGS, *LINK, f"-I{sysconfig.get_path('include')}", *more]
    subprocess.run([*command, *shlex.split(os.environ.get("CFLAGS", "")), *sources, "-o", str(part)], check=True)
    part.replace(target)  # whoever runs keeps the one that it has loaded
    return target


def check() -> None:
    """Compile with warnings as errors, where there is a compiler, and keep nothing.

    Raises:
        subprocess.CalledProcessError: The compiler has found something, and said what.
    """
    if not missing():
        with TemporaryDirectory() as directory:
            build(Path(directory) / NAME, "-Werror")


class CompiledHook(BuildHookInterface[Any]):
    """What hatchling calls."""

    _directory: TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile beside the sources for an editable install, and for a wheel into it."""
        if version == "editable":
            BUILT.unlink(missing_ok=True)  # what older sources made does not stay where nothing can be compiled
        if not self._can():
            return
        target = BUILT
        if version != "editable":
            self._directory = TemporaryDirectory()
            target = Path(self._directory.name) / NAME
            build_data["force_include"][str(target)] = f"mesh/native/{NAME}"
        try:
            build(target)
        except subprocess.CalledProcessError as error:
            self.finalize(version, build_data, "")
            error.add_note("What the compiler said is above. MESH_NATIVE=off installs without the compiled loops.")
            raise
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - its names
        """The wheel has its copy."""
        if self._directory is not None:
            self._directory.cleanup()

    def _can(self) -> bool:
        """Whether there is anything to compile with, and somebody wants it; says so where there is not.

        Raises:
            RuntimeError: It is required.
        """
        ask, lacking = wanted(), missing()
        if lacking and ask == "required":
            raise RuntimeError(f"MESH_NATIVE=required, and that takes {lacking}")
        if lacking and ask != "off":
            self.app.display_warning(in_python(lacking))
        return not lacking and ask != "off"


def in_python(lacking: str) -> str:
    """The sentence for whoever installs."""
    return f"mesh.native runs in Python, which is slower; to be compiled it takes {lacking}"


def main(arguments: list[str]) -> None:
    """What the Makefile calls."""
    if arguments == ["check"]:
        check()
    elif wanted() != "off" and (lacking := missing()) and not BUILT.exists():
        sys.stderr.write(in_python(lacking) + "\n")


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


if __name__ == "__main__":
    main(sys.argv[1:])
