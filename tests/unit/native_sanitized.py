"""Runs every comparison against a module compiled with sanitizers: `python -m tests.unit.native_sanitized <module>`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "mesh.native._compiled"
EXAMPLES = 12  # of each comparison: under the sanitizers one takes several times as long


def main(module: Path) -> int:
    """Put *module* where the mesh looks for its own, then compare; how many comparisons ran."""
    spec = importlib.util.spec_from_file_location(NAME, module)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])

    from hypothesis import HealthCheck, settings

    from tests import conftest

    assert conftest.ROOT.is_dir()  # imported before: it loads a profile of its own, with more examples
    few = settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    settings.register_profile("sanitized", few)
    settings.load_profile("sanitized")

    assert "libasan" in Path("/proc/self/maps").read_text()
    from mesh import native
    from tests.unit import native_twins

    assert native.compiled is sys.modules[NAME]
    assert native_twins.compared() == set(native.IN_PYTHON)
    tests = {test for tests in native_twins.COMPARISONS.values() for test in tests} | set(native_twins.HOSTILE)
    for test in sorted(tests, key=lambda test: test.__name__):
        print(test.__name__, file=sys.stderr)  # which one it was that ended the process
        test()
    return len(tests)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
