"""The mesh under test: real servers, a control plane, two agents, their adapters, and two teams with replicas.

All that a process knows of NATS is a proxy of its own for each server. What belongs together lies in one directory:
the mesh's `data`, the servers, the logs, and what adapters and consumers noted.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import msgspec
from msgspec.structs import replace

from mesh.context import MeshFile
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.init import initialise
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator
from tests.faults.child import PLANT
from tests.faults.consumer import database
from tests.faults.processes import Child
from tests.faults.proxy import Proxy
from tests.faults.schedule import Shape
from tests.faults.servers import Servers

TENANT = "acme"
READY_S = 90.0
ACCEPTED_S = 90.0  # for what adapters began: leads and leaders are elected, certificates issued
POLICIES = Path(__file__).parent / "policies.yaml"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """An agent and the adapter beside it."""

    agent: str
    source: str
    type: str
    small_spool: bool


@dataclass(frozen=True, slots=True)
class Reader:
    """A subscription and how many replicas consume it."""

    team: str
    name: str
    view: str
    replicas: int
    ordered: bool


SOURCES = (
    Source("crm-adapter", "/crm", "crm.contact.updated.v1", small_spool=False),
    Source("shop-adapter", "/shop", "shop.order.placed.v1", small_spool=True),
)
READERS = (
    Reader("support", "shared", "masked", 2, ordered=False),
    Reader("billing", "ordered", "full", 3, ordered=True),
)
VIEWS = ("full", "masked")
STREAMS = ("EV_local_crm", "EV_local_shop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of a mesh it is.

    Attributes:
        controls: Replicas of the control plane.
        readers: Its subscriptions that anybody consumes.
        small_spool_mib: The bound of one agent's spool, MiB: one is full within seconds, and callers get `spool-full`.
    """

    controls: int
    readers: tuple[Reader, ...] = READERS
    small_spool_mib: int = 1


WHOLE: dict[Shape, Size] = {"single": Size(controls=2), "cluster": Size(controls=3)}
WITHOUT_READERS = Size(controls=1, readers=())


@dataclass(slots=True)
class World:
    """A mesh that is up."""

    root: Path
    shape: Shape
    servers: Servers
    group: anyio.abc.TaskGroup
    size: Size
    plant: str = ""
    creds: bytes = b""  # of the control plane in the tenant's account
    controls: list[Child] = field(default_factory=list)
    agents: list[Child] = field(default_factory=list)
    consumers: list[Child] = field(default_factory=list)
    adapters: list[Child] = field(default_factory=list)
    proxies: dict[str, list[Proxy]] = field(default_factory=dict)  # by the name of the process
    timeline: list[tuple[int, str]] = field(default_factory=list)  # Unix ms, and what fault began or ended then

    @property
    def data(self) -> DataDirectory:
        """What agents and teams have of the mesh: a copy of what the first leader wrote for them."""
        return DataDirectory(self.root / "data")

    @property
    def led(self) -> DataDirectory:
        """The directory of the replica of the control plane that led first: operators work there."""
        return next(self._ready())

    def _ready(self) -> Iterator[DataDirectory]:
        """Directories of replicas that have led, and so know where everything is."""
        for file in sorted(self.root.glob("control-*/mesh.json")):
            if TENANT in msgspec.json.decode(file.read_bytes(), type=MeshFile).tenants:
                yield DataDirectory(file.parent)

    @property
    def children(self) -> Iterator[Child]:
        """Every process but servers."""
        for children in (self.controls, self.agents, self.consumers, self.adapters):
            yield from children

    def notes(self, name: str) -> Path:
        """What a process noted, or a database."""
        return self.root / "notes" / name

    # --- setting up --------------------------------------------------------------------------------------------------

    async def start(self, per_s: float) -> None:
        """Start everything; adapters last, together at *per_s* events a second."""
        for name in ("notes", "logs", "sockets"):
            (self.root / name).mkdir()
        await self._start_control()
        for source in SOURCES:
            await self._start_agent(source)
        for reader in self.size.readers:
            database(str(self.notes(f"{reader.name}.db"))).close()
            for number in range(reader.replicas):
                await self.add_consumer(reader, number)
        await self._agents_ready()
        for source in SOURCES:
            self._start_adapter(source, per_s / len(SOURCES))

    async def child(self, name: str, *command: str, environment: dict[str, str] | None = None) -> Child:
        """A process that is kept up."""
        child = Child(name, command, directory=self.root / "logs", environment=environment)
        child.start()
        self.group.start_soon(child.keep)
        return child

    async def _url(self, name: str) -> str:
        """Where the process *name* finds NATS: proxies of its own."""
        proxies = self.proxies[name] = [Proxy(port) for port in self.servers.ports]
        for proxy in proxies:
            await self.group.start(proxy.run)
        return ",".join(proxy.url for proxy in proxies)

    async def _start_control(self) -> None:
        streams = "1" if self.shape == "single" else "3"
        first, *others = [f"control-{number}" for number in range(self.size.controls)]
        for name in others:
            shutil.copytree(self.root / first, self.root / name)
        for name in (first, *others):
            command = ["mesh", "control", "run", "--data", str(self.root / name), "--replica", name]
            command += ["--nats-url", await self._url(name), "--policies", str(self.root / "policies")]
            self.controls.append(await self.child(name, *command, "--replicas-of-streams", streams))
        await self._until(lambda: any(self._ready()), "no control plane leads")
        for name in ("agents", "teams", "trust"):
            shutil.copytree(self.led.root / name, self.data.root / name)
        self.creds = Operator(NkeyFiles(self.led.keys)).control_creds(TENANT)

    async def _start_agent(self, source: Source) -> None:
        directory = self.data.agent(source.agent)
        environment = {
            "MESH_AGENT_NATS_URL": await self._url(source.agent),
            "MESH_AGENT_HTTP_SOCKET": self.socket(source),
            "MESH_AGENT_SPOOL_MAX_BYTES": str(MIB * (self.size.small_spool_mib if source.small_spool else 1024)),
            **({PLANT: self.plant} if self.plant else {}),
        }
        command = ("agent", "run", "--config", str(directory / "agent.toml"))
        self.agents.append(await self.child(source.agent, *command, environment=environment))

    async def _agents_ready(self) -> None:
        for source in SOURCES:
            ports = self.data.agent(source.agent) / "ports.json"
            await self._until(ports.exists, f"{source.agent} is not ready")

    async def add_consumer(self, reader: Reader, number: int) -> None:
        """One more replica."""
        name = f"{reader.name}-{number}"
        text = self.led.mesh_file.read_text().replace(str(self.led.root), str(self.data.root))
        file = msgspec.json.decode(text, type=MeshFile)
        context = self.root / "contexts" / f"{name}.json"
        write_private(context, msgspec.json.encode(replace(file, nats_url=await self._url(name))))
        command = ["--context", str(context), "--team", reader.team, "--subscription", reader.name]
        command += ["--effects", str(self.notes(f"{reader.name}.db")), "--log", str(self.notes(f"{name}.handled"))]
        environment = {PLANT: self.plant} if self.plant else {}
        self.consumers.append(await self.child(name, "consumer", *command, environment=environment))

    def _start_adapter(self, source: Source, per_s: float) -> None:
        name = source.source.removeprefix("/")
        token = self.data.agent(source.agent) / "token"
        command = ["--name", name, "--source", source.source, "--type", source.type, "--socket", self.socket(source)]
        command += ["--token-file", str(token), "--log", str(self.notes(f"{name}.accepted")), "--per-s", str(per_s)]
        child = Child(f"{name}-app", ["adapter", *command], directory=self.root / "logs")
        child.start()  # and not kept up: it is a measure, so its end is a failure of the run
        self.adapters.append(child)

    def socket(self, source: Source) -> str:
        """The door of an agent."""
        return str(self.root / "sockets" / source.agent)

    async def _until(self, condition: object, message: str) -> None:
        with anyio.move_on_after(READY_S):
            while not condition():  # type: ignore[operator]
                await anyio.sleep(0.05)
            return
        words = "\n".join(f"--- {child.name}\n{child.last_words()}" for child in self.children)
        raise RuntimeError(f"{message}\n{words}")

    # --- tearing down ------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Let every proxy forward as it should."""
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.heal()

    async def stop_load(self) -> None:
        """Have the adapters send what they began until it is accepted, and end."""
        async with anyio.create_task_group() as group:
            for adapter in self.adapters:
                group.start_soon(adapter.terminate, ACCEPTED_S)

    def kill(self) -> None:
        """SIGKILL every process."""
        for child in self.children:
            child.kill()


@asynccontextmanager
async def world(
    shape: Shape, *, per_s: float, size: Size, plant: str = "", keep: Path | None = None
) -> AsyncIterator[World]:
    """A mesh under load, for the length of the block.

    Args:
        shape: Of its servers.
        per_s: Events a second that the adapters offer together.
        size: How many processes it has.
        plant: A bug to plant in its agents and consumers; see `planted.py`.
        keep: Where its directory is moved to at the end; else it is deleted.
    """
    root = Path(tempfile.mkdtemp(prefix="mf-"))  # a short path: that of a Unix socket has 107 characters at most
    try:
        write_private(root / "policies" / "all.yaml", POLICIES.read_bytes())
        keys = initialise(root / "control-0", trust_domain="mesh.local", resolver_dir="accounts")
        servers = await Servers.start(shape, root, Operator(NkeyFiles(DataDirectory(keys.data).keys)))
        try:
            async with anyio.create_task_group() as group:
                self = World(root, shape, servers, group, size, plant)
                try:
                    await self.start(per_s)
                    yield self
                finally:
                    self.kill()
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await servers.stop()
    finally:
        if keep is not None:
            with suppress(FileExistsError):
                keep.mkdir(parents=True)
            shutil.move(root, keep / f"{shape}-{root.name}")
        else:
            shutil.rmtree(root, ignore_errors=True)
