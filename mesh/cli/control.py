"""`mesh control`: the control plane by itself, for servers and agents that others run."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from mesh import logs, spans
from mesh.cli.events import JsonOption
from mesh.cli.output import NO, command, console, print_json, print_line
from mesh.cli.up import DataOption, PoliciesOption
from mesh.control.datadir import DataDirectory
from mesh.control.health import Health, serving
from mesh.control.init import initialise
from mesh.control.run import ReplicaOptions
from mesh.control.run import run as run_replica
from mesh.control.run_status import status as replica_status
from mesh.control.secrets import agent_objects, control_objects
from mesh.errors import ConfigError
from mesh.jetstream.tls import TlsFiles

if TYPE_CHECKING:
    from mesh.control.attest_kubernetes import KubernetesAttestor
    from mesh.control.injector import Injector
    from mesh.control.policy_sources import SourceOptions

app = typer.Typer(no_args_is_help=True, help="The control plane by itself, in one to three replicas.")

_REPLICA = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")

NatsOption = Annotated[str, typer.Option("--nats-url", envvar="MESH_NATS_URL", help="Several: with commas.")]
TlsCaOption = Annotated[Path | None, typer.Option("--tls-ca", help="What NATS has to be known by.")]
TlsCertOption = Annotated[Path | None, typer.Option("--tls-cert", help="What we show to NATS.")]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", help="Its key.")]
TrustDomainOption = Annotated[str, typer.Option("--trust-domain", help="Of the mesh's certificates.")]


@command
async def init(
    data: DataOption = Path(".mesh"),
    trust_domain: TrustDomainOption = "mesh.local",
    resolver_dir: Annotated[
        str, typer.Option("--resolver-dir", help="Where each nats-server keeps the accounts it is told.")
    ] = "accounts",
    *,
    json_: JsonOption = False,
) -> None:
    """Make the keys of a mesh, and what its nats-servers have to include. What is there already stays."""
    made = await anyio.to_thread.run_sync(
        lambda: initialise(data, trust_domain=trust_domain, resolver_dir=resolver_dir)
    )
    if json_:
        print_json({"data": str(made.data), "server_part": str(made.server_part), "key_files": made.key_files})
        return
    console.print(f"Keys of the mesh: {made.data}\n", soft_wrap=True)
    console.print(f"Each nats-server:   include {shlex.quote(str(made.server_part))}", soft_wrap=True)
    console.print("Each replica:       these files, below its --data or --keys; then `mesh control run`\n")
    for name in made.key_files:
        console.print(f"  {name}")


@command
async def run(  # noqa: PLR0917 - each an option
    nats_url: NatsOption,
    data: DataOption = Path(".mesh"),
    keys: Annotated[
        Path | None, typer.Option("--keys", help="A directory with the key files, such as a Secret; else --data.")
    ] = None,
    policies: PoliciesOption = None,
    replica: Annotated[str, typer.Option("--replica", help="Our name; else the host's.")] = "",
    site: Annotated[str, typer.Option("--site", help="Of the mesh.")] = "local",
    trust_domain: TrustDomainOption = "mesh.local",
    streams: Annotated[
        int, typer.Option("--replicas-of-streams", help="1; 3 with three nats-servers or more.", min=1, max=5)
    ] = 1,
    event_gib: Annotated[
        int,
        typer.Option("--event-stream-gib", help="How much the events of a domain may take; full is refused.", min=1),
    ] = 1,
    attest: Annotated[str, typer.Option("--attest", help="file, or kubernetes: by TokenReview.")] = "file",
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    health_host: Annotated[str, typer.Option("--health-host", help="Where probes are answered.")] = "127.0.0.1",
    health_port: Annotated[
        int | None, typer.Option("--health-port", min=0, max=65535, help="0: a free one; else no probes and metrics.")
    ] = None,
    watch_directory: Annotated[
        Path | None, typer.Option("--watch-directory", help="Apply the policies in it whenever they change.")
    ] = None,
    injector_sidecar: Annotated[
        Path | None, typer.Option("--injector-sidecar", help="Answer admission reviews: the file that pods get.")
    ] = None,
    injector_image: Annotated[
        str, typer.Option("--injector-image", envvar="MESH_SIDECAR_IMAGE", help="The sidecar's; else the file's.")
    ] = "",
    injector_cert: Annotated[Path | None, typer.Option("--injector-cert", help="What the injector shows.")] = None,
    injector_key: Annotated[Path | None, typer.Option("--injector-key", help="Its key.")] = None,
    injector_host: Annotated[str, typer.Option("--injector-host", help="Where it listens.")] = "127.0.0.1",
    injector_port: Annotated[int, typer.Option("--injector-port", help="0: any.", min=0, max=65_535)] = 9443,
    *,
    watch_kubernetes: Annotated[
        bool, typer.Option("--watch-kubernetes", help="Apply the policies that are objects of our cluster.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help='Print {"state": "waits" | "leads"} at each change.')] = False,
) -> None:
    """Be a replica of the control plane until SIGTERM. One of all replicas leads; another takes over in 15 s.

    It needs the key files of `mesh control init`, as every other replica does. Policies are for the first start of the
    mesh; later they are changed by `mesh policy apply`, where a replica's directory is: any replica's will do. Or they
    are kept as objects of the cluster, or as files that others fill: whoever leads follows those.
    """
    logs.setup(service="mesh-control", level="info")
    name = replica or socket.gethostname()
    if not _REPLICA.fullmatch(name):
        raise ConfigError(
            "that cannot be a replica's name", expected="letters, digits, `-` and `.`", got=name[:64], next="--replica"
        )
    options = ReplicaOptions(
        data=data,
        nats_url=nats_url,
        replica=name,
        keys=keys,
        policies=policies,
        site=site,
        trust_domain=trust_domain,
        streams=streams,
        event_gib=event_gib,
        tls=_tls(tls_ca, tls_cert, tls_key),
        attestor=_attestor(attest, trust_domain),
        sources=_sources(watch_directory, name, cluster=watch_kubernetes),
    )
    injector = _injector(
        injector_sidecar, injector_cert, injector_key, image=injector_image, host=injector_host, port=injector_port
    )
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    group.cancel_scope.cancel()

            group.start_soon(wait_for_signal)
            if injector is not None:
                await group.start(injector.run)
            async with AsyncExitStack() as stack:
                await spans.begin(stack, "mesh-control", {"mesh.replica": name})
                health = Health()
                if health_port is not None:
                    await stack.enter_async_context(serving(health, health_host, health_port))
                await run_replica(options, said=partial(_say, health, json_))


@command
async def status(
    nats_url: NatsOption,
    data: DataOption = Path(".mesh"),
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    *,
    json_: JsonOption = False,
) -> None:
    """Show which replica leads, after its next renewal. Exit 0 where one does, else 1."""
    said = await replica_status(DataDirectory(data), nats_url, _tls(tls_ca, tls_cert, tls_key))
    if json_:
        print_json(said)
    elif said.lease is None or said.head is None:
        console.print("No replica has led yet.")
    else:
        console.print(f"[bold]{said.lease.holder}[/] {'leads' if said.leads else 'led last'}, term {said.lease.term}")
        console.print(f"[dim]state        generation {said.head.generation}, saved in term {said.head.term}[/]")
    if not said.leads:
        raise typer.Exit(NO)


@command
async def secrets(
    agent: Annotated[str, typer.Argument(help="An agent; without it what control plane and nats-servers mount.")] = "",
    data: DataOption = Path(".mesh"),
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of the pods; an agent's is needed, else mesh-system.")
    ] = "",
) -> None:
    """Print Secrets and ConfigMaps of Kubernetes with the files of an agent, for `kubectl apply --server-side -f -`.

    They hold keys: they are for a pipe, and a terminal gets nothing.
    """
    if on_terminal():
        raise ConfigError(
            "these are secrets, and a terminal keeps what it shows",
            expected="a pipe or a file",
            next="mesh control secrets ... | kubectl apply --server-side -f -",
        )
    directory = DataDirectory(data)
    if not agent:
        print_json(control_objects(directory, namespace or "mesh-system"))
        return
    if not namespace:
        raise ConfigError("whose pods these are for is not said", expected="their namespace", next="--namespace")
    print_json(await anyio.to_thread.run_sync(agent_objects, directory, agent, namespace))


def on_terminal() -> bool:
    """Whether somebody would see what we print."""
    return sys.stdout.isatty()


def _say(health: Health, json: bool, state: str) -> None:
    health.state = state
    if json:
        print_line({"state": state})


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise ConfigError("TLS needs three files", expected="--tls-ca, --tls-cert and --tls-key", next="name them all")
    return TlsFiles(ca, cert, key)


def _sources(directory: Path | None, replica: str, *, cluster: bool) -> SourceOptions | None:
    if directory is None and not cluster:
        return None
    from mesh.control.policy_sources import SourceOptions
    from mesh.kubernetes.api import Api

    return SourceOptions(api=Api.in_cluster() if cluster else None, directory=directory, replica=replica)


def _injector(
    sidecar: Path | None, cert: Path | None, key: Path | None, *, image: str, host: str, port: int
) -> Injector | None:
    if sidecar is None and cert is None and key is None:
        return None
    if sidecar is None or cert is None or key is None:
        expected = "--injector-sidecar, --injector-cert and --injector-key"
        raise ConfigError("the injector needs three files", expected=expected, next="name them all")
    from mesh.control.injector import Injector, InjectorOptions

    return Injector(InjectorOptions(sidecar=sidecar, cert=cert, key=key, image=image, host=host, port=port))


def _attestor(attest: str, trust_domain: str) -> KubernetesAttestor | None:
    match attest:
        case "file":
            return None
        case "kubernetes":
            from mesh.control.attest_kubernetes import KubernetesAttestor
            from mesh.kubernetes.api import Api

            return KubernetesAttestor(Api.in_cluster(), trust_domain=trust_domain)
        case _:
            raise ConfigError("no such attestor", expected="file or kubernetes", got=attest[:32], next="see --attest")


app.command("init", epilog="Example:  mesh control init --data /srv/mesh")(init)
app.command("status", epilog="Example:  mesh control status --data /srv/mesh --nats-url nats://n1:4222")(status)
app.command("run", epilog="Example:  mesh control run --data /srv/mesh --nats-url nats://n1:4222,nats://n2:4222")(run)
app.command("secrets", epilog="Example:  mesh control secrets crm-adapter -n acme | kubectl apply --server-side -f -")(
    secrets
)
