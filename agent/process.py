"""The running process: its settings, uvloop, logs, and an exit status."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from pathlib import Path

from agent.lean import without_http_client
from agent.settings import AgentSettings, Loaded, load
from mesh.errors import ConfigError

EXIT_FAILED = 1
EXIT_MISUSE = 2
# Objects made between two collections of young ones. An event in flight is some 50 that are no garbage, and looking at
# a few thousand events again and again took a tenth of the time for them; Python's own 700 is for small heaps.
GC_YOUNG = 5_000


def read_settings(config: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """The settings of *config* and the environment; the file may be missing where the environment says it all.

    Raises:
        ConfigError: A file or a variable is wrong.
    """
    try:
        text = config.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{config} cannot be read: {error.__class__.__name__}", next="name another with --config"
        ) from error
    return load(text, environ, file=config.name)


def run_from(config: Path) -> int:
    """Run the sidecar that *config* describes to its end; returns the exit status.

    Raises:
        ConfigError: A setting, a file of ours or an address is wrong; nothing was started.
    """
    return run(read_settings(config).settings, config.resolve().parent)


def run(settings: AgentSettings, base: Path) -> int:
    """Run a sidecar to its end; returns the exit status.

    Raises:
        ConfigError: A file of ours or an address is wrong; nothing was started.
    """
    without_http_client()
    import uvloop

    from mesh import __version__, logs, native

    logs.setup("agent", level=settings.log_level)
    log = logs.get("agent")
    log.info("starting", version=__version__, native=native.compiled is not None)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, base))
    except ConfigError as error:
        log.error("not_started", code=error.code, error=error.message, next=error.next)
        raise
    except Exception as error:
        log.exception("failed", error)  # noqa: PLE1205, TRY401 - ours takes the error, not its text
        return EXIT_FAILED


async def _run(settings: AgentSettings, base: Path) -> int:
    from contextlib import AsyncExitStack

    from agent import traced
    from agent.lifecycle import Sidecar

    gc.collect()
    gc.freeze()  # what is imported stays: no collection walks it again, which took 12 ms of a request's time each
    gc.set_threshold(GC_YOUNG)
    async with AsyncExitStack() as stack:
        await traced.begin(stack, settings)
        return await Sidecar(settings, base).run()
