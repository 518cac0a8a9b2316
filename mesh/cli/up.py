"""`mesh up`: a whole mesh on loopback that stays up."""

from __future__ import annotations

import os
import signal
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import anyio
import typer

from mesh import logs
from mesh.cli.output import command, console, errors, print_line
from mesh.control.up import Options, Running, running
from mesh.errors import ConfigError

app = typer.Typer(add_completion=False)

DataOption = Annotated[Path, typer.Option("--data", envvar="MESH_DATA_DIR", help="Where everything lies; mode 0700.")]
PoliciesOption = Annotated[
    Path | None,
    typer.Option(
        "--policies", help="For the first start: a directory of YAML; else ./policies, else the worked example."
    ),
]


def policies_directory(given: Path | None) -> Path:
    """The policies to use: *given*, else `./policies`, else the worked example that comes with the package.

    Raises:
        ConfigError: *given* is no directory.
    """
    if given is not None:
        if not given.is_dir():
            raise ConfigError(
                f"{given} is no directory", expected="YAML documents in a directory", next="check --policies"
            )
        return given
    here = Path("policies")
    if here.is_dir():
        return here
    example = Path(str(resources.files("mesh"))) / "example"
    if example.is_dir():
        return example
    beside = Path(str(resources.files("mesh"))).parent / "policies"  # an editable install
    if beside.is_dir():
        return beside
    raise ConfigError("there are no policies", expected="a directory ./policies", next="name one with --policies")


@app.command("up", epilog="Examples:  mesh up   |   mesh up --data /srv/mesh --nats-port 4222 --base-port 8400")
@command
async def up(  # noqa: PLR0917 - each an option
    data: DataOption = Path(".mesh"),
    policies: PoliciesOption = None,
    nats_port: Annotated[int, typer.Option("--nats-port", min=0, max=65535, help="0: a free one.")] = 0,
    base_port: Annotated[
        int, typer.Option("--base-port", min=0, max=65000, help="Agents take three each from here; 0: free ones.")
    ] = 0,
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS 1.3 to NATS, both sides show a certificate. Remembered under --data.")
    ] = False,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Encrypt what NATS stores. Remembered, and cannot be taken back.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print mesh.json on one line once ready, then stay up.")
    ] = False,
) -> None:
    """Start a whole mesh on loopback and keep it up until Ctrl-C: nats-server, control plane, one agent per agent.

    Everything lies under --data; a second start there goes on with its keys, events and policies. Policies that are in
    force are changed by `mesh policy apply`. With --tls every workload has a certificate of a day, renewed while the
    mesh runs; with --encrypt the key is admin/store.key, and `mesh trust rotate --store` makes another.
    """
    # a person sees the progress and what needs a look; a machine gets every line
    logs.setup(service="mesh-up", level="warning" if sys.stderr.isatty() else "info")
    options = Options(
        data=data,
        policies=policies_directory(policies),
        nats_port=nats_port,
        base_port=base_port,
        tls=tls,
        encrypt=encrypt,
    )
    quiet = json_ or not sys.stderr.isatty()
    # before anything is started: a signal during the start still drains what runs
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    group.cancel_scope.cancel()

            group.start_soon(wait_for_signal)
            async with running(options, progress=_ignore if quiet else _progress) as mesh:
                if json_:
                    print_line(mesh.file)
                else:
                    _welcome(mesh, data)
                await mesh.watch()


def _ignore(_step: str) -> None:
    pass


def _progress(step: str) -> None:
    errors.print(f"[dim]starting[/] {step}")


def _welcome(mesh: Running, data: Path) -> None:
    console.print(
        f"[bold green]The mesh is up.[/] NATS {mesh.file.nats_url}, everything else in {os.path.relpath(data)}/\n"
    )
    for tenant, address in mesh.file.tenants.items():
        for name, agent in address.agents.items():
            console.print(f"  [cyan]{tenant}/{name:<18}[/] {agent.url}")
    console.print("\nTry:   mesh status    mesh subscription list    mesh events tail '>' --team TEAM\nStop:  Ctrl-C")
