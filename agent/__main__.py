"""`mesh-agent`, or `python -m agent`.

A running agent is started here without the command line library: that is 9 MB less in every pod. Everything else, and
every mistake, goes to `agent.cli`, which has the help.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent.process import EXIT_MISUSE, run_from
from agent.settings import CONFIG_VARIABLE
from mesh.errors import ConfigError

DEFAULT = "agent.toml"


def main() -> None:
    """The console script."""
    try:
        match sys.argv[1:]:
            case ["run"]:
                sys.exit(run_from(Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT)))
            case ["run", "--config" | "-c", path] if not path.startswith("-"):
                sys.exit(run_from(Path(path)))
        from agent.cli import app

        app()
    except ConfigError as error:
        print(f"mesh-agent: {error.message}", file=sys.stderr)
        for name in ("expected", "got", "next"):
            if text := getattr(error, name):
                print(f"  {name}: {text}", file=sys.stderr)
        sys.exit(EXIT_MISUSE)


if __name__ == "__main__":
    main()
