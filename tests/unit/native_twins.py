"""Both twins of every name, and how one is held against the other."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from sys import modules
from types import ModuleType
from typing import Any, TypeAlias

import pytest

from mesh import native
from mesh.attributes import MAX_STRING_CHARS, SOURCES, TYPES
from mesh.event import rfc3339
from mesh.jetstream.outgoing import unheard
from mesh.jsontext import decode_value, encode
from mesh.native import build
from mesh.policy.actions import DROPPED, REDACTED
from mesh.policy.walkers import UNMET, as_it_is, unmet
from mesh.signing import Received
from mesh.verbatim import MAX_NESTING
from tests.conftest import ROOT

if build.missing():
    pytest.skip(f"nothing to compare: there is not {build.missing()}", allow_module_level=True)

NAME = "mesh.native._compiled"
GIVEN = {
    "masking_with": (DROPPED, UNMET, as_it_is),
    "maskers_with": (DROPPED, REDACTED),
    "outgoing_with": (unheard,),
    "deliveries_with": (Received,),
    "reading_with": (SOURCES, TYPES, rfc3339),
    "splicing_with": (unmet, REDACTED, MAX_STRING_CHARS, encode, partial(decode_value, max_depth=MAX_NESTING)),
}
"""What a module is told once, before its first call."""


def _find_all() -> None:
    """Import every module that has a twin, so that `native.IN_PYTHON` knows them all."""
    for path in sorted(ROOT.glob("mesh/**/*.py")):
        if "\n@native.twin\n" in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


_find_all()
PYTHON: dict[str, Any] = native.IN_PYTHON


def load(path: Path) -> ModuleType:
    """A compiled module from a file, told what it has to know."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, arguments in GIVEN.items():
        getattr(module, name)(*arguments)
    return module


@cache
def compiled() -> Any:
    """The compiled module; where the mesh runs without it (`MESH_NATIVE=off`), one that is built for this alone."""
    if native.compiled is not None:
        return native.compiled
    return load(build.build(Path(tempfile.mkdtemp()) / build.NAME))


def both(name: str) -> tuple[Any, Any]:
    """The twins of a name: in Python, compiled."""
    return PYTHON[name], getattr(compiled(), name)


@cache
def _places() -> list[tuple[ModuleType, str]]:
    """Where the mesh refers to a twin by its name."""
    here = native.compiled
    current = {name: python if here is None else getattr(here, name) for name, python in PYTHON.items()}
    ours = [module for name, module in modules.items() if name.startswith(("mesh.", "agent."))]
    return [(m, name) for m in ours for name, twin in current.items() if vars(m).get(name) is twin and m is not here]


@contextmanager
def running(twins: Callable[[str], Any]) -> Iterator[None]:
    """The whole mesh on the twins that *twins* has for each name: `PYTHON.__getitem__`, or `compiled_one`."""
    before = [(module, name, getattr(module, name)) for module, name in _places()]
    try:
        for module, name, _ in before:
            setattr(module, name, twins(name))
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def compiled_one(name: str) -> Any:
    """The compiled twin of *name*."""
    return getattr(compiled(), name)


SETS: tuple[Callable[[str], Any], ...] = (PYTHON.__getitem__, compiled_one)


# --- which comparisons there are -------------------------------------------------------------------------------------

Test: TypeAlias = Callable[..., None]

COMPARISONS: dict[str, list[Test]] = {}
"""By name; each can be called without arguments, so that `native_sanitized.py` can run it once more."""

HOSTILE: list[Test] = []
"""What compares nothing, and only must not end the process."""


def compares(*names: str) -> Callable[[Test], Test]:
    """Marks the comparison of the twins of these names."""

    def mark(test: Test) -> Test:
        for name in names:
            COMPARISONS.setdefault(name, []).append(test)
        return test

    return mark


def hostile(test: Test) -> Test:
    """Marks what the compiled twins only have to survive."""
    HOSTILE.append(test)
    return test


def compared() -> set[str]:
    """The names of which some test file has a comparison."""
    for path in sorted(Path(__file__).parent.glob("test_native*.py")):
        import_module(f"tests.unit.{path.stem}")
    return set(COMPARISONS)


# --- what comes out --------------------------------------------------------------------------------------------------


def outcome(call: Callable[..., Any], *args: Any, **named: Any) -> tuple[str, Any]:
    """What a call answers, or the class of what it raises."""
    try:
        return "answers", call(*args, **named)
    except Exception as error:  # noqa: BLE001 - whatever it is, both have to raise it
        return "raises", type(error)


def same(name: str, *args: Any, **named: Any) -> Any:
    """Assert that the twins of *name* do the same with these arguments, types included; what they do."""
    python, c = (outcome(twin, *args, **named) for twin in both(name))
    assert repr(c) == repr(python)
    return c[1]


def alike(use: Callable[[Callable[[str], Any]], Any]) -> Any:
    """Assert that *use* does the same with either set of twins; what it does."""
    python, c = (outcome(use, twins) for twins in SETS)
    assert repr(c) == repr(python)
    return c[1]


def parts(value: Any) -> Iterator[Any]:
    """*value* and all that is in it, keys too."""
    yield value
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from parts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from parts(item)


def drawn(value: Any, of: dict[int, int]) -> Any:
    """*value* so that two can be compared: its types, its order, and which parts are the very objects in *of*."""
    which = of.get(id(value))
    if isinstance(value, dict):
        return type(value), which, [(drawn(key, of), drawn(item, of)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), which, [drawn(item, of) for item in value]
    return type(value), which, repr(value)


def numbered(original: Any) -> dict[int, int]:
    """A number for each object in *original*, which has to live on."""
    return {id(part): number for number, part in enumerate(parts(original))}
