"""Writes the generated tables of `agent/README.md`: error codes, settings, metrics. `make docs` runs it.

The tables stand between `<!-- generated: NAME -->` and `<!-- /generated -->`; everything else on the page is written by
hand. `--check` writes nothing and exits 1 when the page is behind the code, which is what the tests ask.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import agent
from agent import settings
from mesh import errors, telemetry

PAGE = Path(__file__).with_name("README.md")

_SECTION = re.compile(r"(?P<open><!-- generated: (?P<name>[a-z]+) -->\n).*?(?P<close><!-- /generated -->)", re.DOTALL)


def render(page: str) -> str:
    """*page* with every generated section as the code has it now."""
    return _SECTION.sub(lambda m: f"{m['open']}{_section(m['name'])}\n{m['close']}", page)


def main(arguments: list[str]) -> int:
    """Rewrite the page, or say that it is behind."""
    before = PAGE.read_text()
    after = render(before)
    if before == after:
        return 0
    if "--check" in arguments:
        print(f"{PAGE.name} is behind the code: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(after)
    return 0


def _section(name: str) -> str:
    match name:
        case "errors":
            return errors.markdown()
        case "settings":
            return settings.markdown()
        case "metrics":
            return _metrics()
    raise ValueError(f"no generated section is called {name!r}: errors, settings or metrics")


def _metrics() -> str:
    """Those of the agent and of the library: importing a module defines its metrics."""
    for name in ("mesh.client", "mesh.otlp", "mesh.telemetry_messaging"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(agent.__path__, "agent."):
        if module.name not in {"agent.__main__", __name__}:
            importlib.import_module(module.name)
    return telemetry.markdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
