"""`mesh demo`: the whole journey on this machine, and an honest account of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.live import Live

from mesh.cli.output import NO, command, console, errors, print_json
from mesh.cli.up import PoliciesOption, policies_directory
from mesh.control.datadir import private_directory
from mesh.demo.inputs import make_script
from mesh.demo.report import progress_line, render
from mesh.demo.run import Progress, run
from mesh.errors import ConfigError

app = typer.Typer(add_completion=False)


@app.command("demo", epilog="Examples:  mesh demo   |   mesh demo --events 1000 --json")
@command
async def demo(
    *,
    events: Annotated[int, typer.Option("--events", min=300, max=100_000, help="How many to send, at least.")] = 300,
    policies: PoliciesOption = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed sends the same events.")] = 1,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Run in this directory, new or empty, and leave it.")
    ] = None,
    withhold: Annotated[int, typer.Option("--withhold", min=0, max=1, hidden=True)] = 0,
    json_: Annotated[bool, typer.Option("--json", help="The account as one JSON object.")] = False,
) -> None:
    """Run the whole journey with real processes: a mesh, three SaaS sources, four teams; exit 0 if nothing was lost.

    Half way one team's consumer is killed (-9) and started again; one handler fails twice; one event is poison.

    Keys of --json: accepted (events answered 202), stored (copies), delivered (by team: deliveries handed to a handler,
    redeliveries included), verified (of these, those that pass V1 to V9), masked_fields, redelivered, dead_lettered,
    duplicates (sent twice, stored once), lost ((event, team) pairs due by inputs and policies, less those handled or
    dead-lettered, counted from the teams' receipt files), latency_ms, seconds.
    """
    directory = Path(tempfile.mkdtemp(prefix="mesh-demo-")) if keep is None else _fresh(keep)
    script = make_script(events, seed=seed)
    try:
        with Live(console=errors, transient=True, auto_refresh=False) as live:

            def show(progress: Progress) -> None:
                if sys.stderr.isatty():
                    live.update(progress_line(progress), refresh=True)

            outcome = await run(
                script, directory=directory, policies=policies_directory(policies), withhold=withhold, show=show
            )
    finally:
        if keep is None:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
    if json_:
        print_json(outcome.account.as_dict())
    else:
        console.print(render(outcome))
    if outcome.account.lost:
        raise typer.Exit(NO)


def _fresh(directory: Path) -> Path:
    """*directory*, made where it is missing.

    Raises:
        ConfigError: It holds something, or cannot be a directory.
    """
    try:
        private_directory(directory)
        used = any(directory.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be kept: {error.strerror or error.__class__.__name__}",
            expected="a directory you may write",
            next="name another with --keep",
        ) from error
    if used:
        raise ConfigError(
            f"{directory} is not empty", expected="a new or empty directory", next="name another with --keep"
        )
    return directory
