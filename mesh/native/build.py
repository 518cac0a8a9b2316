"""Builds `_compiled` beside its sources: hatchling calls this for wheels and for editable installs.

Where there is no C compiler, or no headers of this Python, nothing is built and the package runs in Python alone; a
compiler that fails is an error. `MESH_NATIVE` says otherwise: `off` builds nothing, `required` fails where nothing can
be built, as an image should.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
NAME = "_compiled" + str(sysconfig.get_config_var("EXT_SUFFIX"))
FLAGS = ("-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion")


def missing() -> str:
    """What there would have to be for building; empty where all is there."""
    compiler = shlex.split(os.environ.get("CC", "cc"))[0]
    if shutil.which(compiler) is None:
        return f"a C compiler (`{compiler}`)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"the headers of this Python ({header})"


def build(target: Path = HERE / NAME, *more: str) -> Path:
    """Compile the extension module to *target*, with *more* flags.

    Raises:
        subprocess.CalledProcessError: The compiler failed; it has said why.
    """
    part = target.with_suffix(".part")
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, f"-I{sysconfig.get_path('include')}", *more]
    subprocess.run([*command, *shlex.split(os.environ.get("CFLAGS", "")), *sources, "-o", str(part)], check=True)
    part.replace(target)  # whoever runs keeps the one that it has loaded
    return target


class CompiledHook(BuildHookInterface[Any]):
    """What hatchling calls."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the name is hatchling's
        """Build for a wheel, or in place for an editable install."""
        wanted = os.environ.get("MESH_NATIVE", "")
        if wanted == "off":
            return
        lacking = missing()
        if lacking and wanted == "required":
            raise RuntimeError(f"MESH_NATIVE=required, and there is not {lacking}")
        if lacking:
            self.app.display_warning(f"mesh.native stays in Python, which is slower: there is not {lacking}")
            return
        built = build()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(str(built.relative_to(self.root)))
