"""The hot loops, compiled where that could be done: each has a twin in Python, which says what it does.

A function or class that is marked `@twin` runs as the one of the same name in `_compiled`, an extension module in C
that is built with the package; where there was no compiler, or `MESH_NATIVE=off` is set, it runs as it stands. Both
do the same, byte for byte; `tests/unit/test_native.py` compares them. README.md has the rest.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any, Final, TypeVar

compiled: Any = None
if os.environ.get("MESH_NATIVE") != "off":
    try:
        compiled = importlib.import_module("mesh.native._compiled")
    except ModuleNotFoundError:
        compiled = None  # not built: there was no compiler
    except ImportError as error:
        warnings.warn(f"the hot loops run in Python, for what was compiled does not load: {error}", stacklevel=2)

Twin = TypeVar("Twin")

IN_PYTHON: Final[dict[str, Any]] = {}
"""What was marked, as it is written in Python, by name."""


def twin(python: Twin) -> Twin:
    """*python*, a function or a class, or its compiled twin.

    Raises:
        ImportError: The compiled module has none: it was built before there was such a twin.
    """
    name: str = python.__name__  # type: ignore[attr-defined]  # functions and classes have one
    IN_PYTHON[name] = python
    if compiled is None:
        return python
    found: Twin | None = getattr(compiled, name, None)
    if found is None:
        raise ImportError(f"{compiled.__file__} was made of other sources: it has no {name}; run `make install`")
    return found
