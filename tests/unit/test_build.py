"""How the compiled loops get into an installation: hatchling's hook, with a compiler that only pretends to be one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from mesh.native import build
from tests.conftest import ROOT

COMPILES = """#!/bin/sh
echo "$@" >> "$0.said"
while [ "$1" != -o ]; do shift; done
echo "made of C" > "$2"
"""
FAILS = """#!/bin/sh
echo "masking.c:7: error: no such thing" >&2
exit 1
"""
OTHERS = ("_compiled.cpython-39-x86_64-linux-gnu.so", "_compiled.cpython-311-x86_64-linux-gnu.7.part")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of what the hook needs, with what other builds left in it, and headers of this Python."""
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", "README.md", "LICENSE", "mesh/__init__.py", "agent/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    shutil.copytree(ROOT / "mesh/native", tree / "mesh/native", ignore=shutil.ignore_patterns("*.so", "*.part"))
    for name in OTHERS:
        (tree / "mesh/native" / name).touch()
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    given = sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(headers) if name == "include" else given(name))
    for variable in ("MESH_NATIVE", "CFLAGS"):
        monkeypatch.delenv(variable, raising=False)
    _compiler(tmp_path, monkeypatch, COMPILES)
    return tree


def _compiler(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    compiler = directory / "pretended-cc"
    compiler.write_text(script)
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    return compiler


def _wheel(tree: Path, version: str = "standard") -> Path:
    return Path(next(WheelBuilder(str(tree)).build(directory=str(tree.parent / "dist"), versions=[version])))


def _native(names: list[str]) -> set[str]:
    return {name.rpartition("/")[2] for name in names if "mesh/native/" in name}


def test_wheel_has_the_module_and_none_of_the_c(tree: Path) -> None:
    """Only the module that this Python loads, and a tag that says so; the tree stays as it was."""
    before = {path.name for path in (tree / "mesh/native").iterdir()}
    wheel = _wheel(tree)
    with zipfile.ZipFile(wheel) as opened:
        assert _native(opened.namelist()) == {"README.md", "__init__.py", build.NAME}
        assert opened.read(f"mesh/native/{build.NAME}") == b"made of C\n"
        (about,) = [name for name in opened.namelist() if name.endswith("/WHEEL")]
        assert "Root-Is-Purelib: false" in opened.read(about).decode()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}-" in wheel.name
    assert {path.name for path in (tree / "mesh/native").iterdir()} == before


def test_sdist_has_the_c_and_no_module(tree: Path) -> None:
    """Whoever installs from source gets all that a build takes."""
    made = next(SdistBuilder(str(tree)).build(directory=str(tree.parent / "dist"), versions=["standard"]))
    with tarfile.open(made) as opened:
        names = _native(opened.getnames())
    assert {path.name for path in build.HERE.glob("*.[ch]")} | {"build.py"} <= names
    assert not {name for name in names if name.endswith((".so", ".part"))}


def _no_compiler(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tree / "policies"))


def _other_compiler(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc -m64")


def _no_headers(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.parent / "include/Python.h").unlink()


LACKING = pytest.mark.parametrize(
    ("take", "said"),
    [(_no_compiler, "a C compiler (cc)"), (_other_compiler, "(/nonexistent/cc)"), (_no_headers, "the headers of this")],
)


@LACKING
def test_nothing_to_compile_with_is_said_once(
    take: object, said: str, tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The wheel is one for every machine, and has no module."""
    assert callable(take)
    take(tree, monkeypatch)
    wheel = _wheel(tree)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert _native(zipfile.ZipFile(wheel).namelist()) == {"README.md", "__init__.py"}
    heard = capfd.readouterr()
    lines = (heard.out + heard.err).splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@LACKING
def test_required_takes_no_python(take: object, said: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without its compiled loops is not made."""
    assert callable(take)
    take(tree, monkeypatch)
    monkeypatch.setenv("MESH_NATIVE", "required")
    with pytest.raises(RuntimeError, match="MESH_NATIVE=required, and that takes "):
        _wheel(tree)


@pytest.mark.parametrize(("value", "compiled"), [("", True), ("required", True), ("off", False)])
def test_mesh_native_says_what_is_made(
    value: str, compiled: bool, tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where everything is there; who wants none of it hears nothing about it."""
    monkeypatch.setenv("MESH_NATIVE", value)
    assert _wheel(tree).name.endswith("-py3-none-any.whl") is not compiled
    assert capfd.readouterr() == ("", "")


def test_mistyped_mesh_native_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an image that requires the module would be made without it."""
    monkeypatch.setenv("MESH_NATIVE", "require")
    with pytest.raises(ValueError, match="expected off, required or nothing"):
        _wheel(tree)


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_compiler_that_fails_is_heard(
    version: str, tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it said comes through, and a way around it; nothing is installed, and what older sources made is gone."""
    old = tree / "mesh/native" / build.NAME
    old.touch()
    _compiler(tree.parent, monkeypatch, FAILS)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        _wheel(tree, version)
    assert "MESH_NATIVE=off" in refused.value.__notes__[0]
    assert "masking.c:7: error: no such thing" in capfd.readouterr().err
    assert not [*(tree.parent / "dist").glob("*.whl")]
    assert old.exists() is (version == "standard")


def test_editable_install_has_it_beside_the_sources(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew each time; where that cannot be, none stays: it would do what older sources said."""
    module = tree / "mesh/native" / build.NAME
    for value, there in (("", True), ("off", False), ("required", True)):
        monkeypatch.setenv("MESH_NATIVE", value)
        _wheel(tree, "editable")
        assert module.exists() is there
    assert not [*module.parent.glob(f"*.{os.getpid()}.part")]
    monkeypatch.delenv("MESH_NATIVE")
    monkeypatch.setenv("CC", "/nonexistent")
    _wheel(tree, "editable")
    assert not module.exists()


def test_compiler_gets_what_the_environment_says(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`CC` may have arguments, and `CFLAGS` comes after our own flags, so that it wins."""
    compiler = Path(os.environ["CC"])
    monkeypatch.setenv("CC", f"{compiler} -m64")
    monkeypatch.setenv("CFLAGS", "-O1 '-DNAME=a b'")
    _wheel(tree)
    said = compiler.with_name(f"{compiler.name}.said").read_text()
    assert said.startswith("-m64 -std=c11 ")
    assert said.index("-O3") < said.index("-O1 -DNAME=a b")
    assert {path.name for path in build.HERE.glob("*.c")} <= {Path(word).name for word in said.split()}


def test_check_finds_warnings_and_keeps_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make lint` runs; nothing where there is no compiler."""
    before = sorted(path.name for path in build.HERE.iterdir())
    build.main(["check"])
    assert "-Werror" in Path(os.environ["CC"] + ".said").read_text()
    _compiler(tree.parent, monkeypatch, FAILS)
    with pytest.raises(subprocess.CalledProcessError):
        build.main(["check"])
    monkeypatch.setenv("CC", "/nonexistent")
    build.main(["check"])
    assert sorted(path.name for path in build.HERE.iterdir()) == before


def test_make_says_why_it_is_slower(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hook's sentence stays with pip, so the Makefile asks once more."""
    monkeypatch.setattr(build, "BUILT", tree / "none.so")
    build.main([])
    monkeypatch.setenv("CC", "/nonexistent")
    monkeypatch.setenv("MESH_NATIVE", "off")
    build.main([])
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("MESH_NATIVE")
    build.main([])
    assert capsys.readouterr().err == (
        "mesh.native runs in Python, which is slower; to be compiled it takes a C compiler (/nonexistent)\n"
    )


def test_this_tree_is_up_to_date() -> None:
    """Other tests would compare what older sources made; `make install` compiles what has changed."""
    assert not build.outdated(), "the C has changed since it was compiled: make install"


def test_changed_source_is_noticed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the times of the files, as make does; where nothing was compiled nothing is out of date."""
    module = tree / "mesh/native" / build.NAME
    monkeypatch.setattr(build, "HERE", module.parent)
    monkeypatch.setattr(build, "BUILT", module)
    assert not build.outdated()
    module.touch()
    assert not build.outdated()
    os.utime(module.with_name("common.h"), (module.stat().st_mtime + 1,) * 2)
    assert build.outdated()


def test_make_compiles_after_a_change(tree: Path) -> None:
    """Of any of the C, of how it is compiled, or once there is a compiler; else it has nothing to do."""
    for name in ("Makefile", "requirements.lock", "requirements-build.lock"):
        shutil.copy(ROOT / name, tree)
    (tree / ".venv").mkdir()
    now = max(path.stat().st_mtime for path in tree.rglob("*")) + 10
    for later, stamp in enumerate(("venv", "core", "project")):
        (tree / f".venv/.stamp-{stamp}").touch()
        os.utime(tree / f".venv/.stamp-{stamp}", (now + later,) * 2)

    def would(**more: str) -> str:
        environment = {"PATH": os.defpath, "CC": "/nonexistent", **more}
        return subprocess.run(
            ["make", "-n", "install"], cwd=tree, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert "--editable" not in would()
    for name in ("masking.c", "common.h", "build.py"):
        source = tree / "mesh/native" / name
        os.utime(source, (now + 20,) * 2)
        assert "--editable" in would()
        os.utime(source, (now - 20,) * 2)
    assert "--editable" not in would(CC=os.environ["CC"])
    (tree / "mesh/native" / OTHERS[0]).unlink()
    assert "--editable" in would(CC=os.environ["CC"])
    assert "--editable" not in would(CC=os.environ["CC"], MESH_NATIVE="off")
    assert "--editable" not in would()


def test_page_names_every_twin() -> None:
    """Who reads the C finds the Python that it has to do the same as."""
    page = (ROOT / "mesh/native/README.md").read_text()
    twin = re.compile(r"^@native\.twin\n(?:@.*\n)*(?:def|class) (\w+)", re.MULTILINE)
    twins = {name for path in (ROOT / "mesh").rglob("*.py") for name in twin.findall(path.read_text())}
    assert "batch" in twins
    assert not {name for name in twins if not re.search(rf"[.`]{name}`", page)}
    sources = {path.name for path in build.HERE.glob("*.c")} - {"module.c"}
    assert not {name for name in sources if f"`{name}`" not in page}


@pytest.mark.parametrize(
    ("error", "said"),
    [("ModuleNotFoundError('no such')", ""), ("ImportError('GLIBC_9')", "does not load: GLIBC_9")],
    ids=["not built", "does not load"],
)
def test_what_does_not_load_is_said(error: str, said: str) -> None:
    """Without a compiled module all runs in Python, and nobody is told; with one that is broken, its error is shown."""
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mesh.native._compiled":
            raise {error}
sys.meta_path.insert(0, Finder())
from mesh import native
print(native.compiled)
"""
    wanted = {name: value for name, value in os.environ.items() if name != "MESH_NATIVE"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=wanted, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "None"
    assert said in ran.stderr if said else not ran.stderr
