"""One mesh in a thread of this process, with an event loop of its own: a test may block its own loop, or have none.

The server and the agents are children, and end with it. An agent starts when it is first wanted: most tests publish
through one or two of many.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from mesh.client import Mesh
from mesh.context import Context
from mesh.control.local import LocalWorkloads
from mesh.control.up import Options, running
from mesh.errors import Closed, ConfigError
from mesh.testing.told import Unmet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from anyio.from_thread import BlockingPortal

    from mesh.client import Receipt
    from mesh.control.tenant import Tenant
    from mesh.control.up import Running

T = TypeVar("T")
Policies = Path | str | dict[str, str]


class MeshHost:
    """A mesh that runs for the length of a `with` block.

    Args:
        policies: A directory of YAML, or the documents by file name.
        tenant: Which to test, where there are several.
        agents: To start with it; others start when they are wanted.
        data: The data directory; a temporary one where there is none.
        options: More of `mesh.control.shared.Options`: `tls`, `encrypt`, `site`, `trust_domain`.
    """

    def __init__(
        self,
        policies: Policies,
        *,
        tenant: str | None = None,
        agents: tuple[str, ...] = (),
        data: Path | None = None,
        **options: Any,
    ) -> None:
        self._policies = policies
        self._tenant = tenant
        self._agents = agents
        self._given = data
        self._options = options
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._running: Running | None = None
        self._data = Path()
        self._thread = 0
        self._meshes: dict[tuple[str | None, str | None], Mesh] = {}
        self._opening = threading.Lock()
        self._ids: dict[tuple[str, str], object] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="mesh-test-"))
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            self._data = self._given or base / "data"
            options = Options(data=self._data, policies=_written(self._policies, base), on_demand=True, **self._options)
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._thread = self._portal.call(threading.get_ident)
            self._running = stack.enter_context(self._portal.wrap_async_context_manager(_up(options)))
            for agent in self._agents:
                self._portal.call(self.want, agent)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meshes.clear()
        self._stack.close()
        self._portal = self._running = None

    @property
    def portal(self) -> BlockingPortal:
        """To the loop that the mesh runs on."""
        if self._portal is None:
            raise Closed("this mesh does not run", expected="`with MeshHost(...)`", next="start it first")
        return self._portal

    @property
    def running(self) -> Running:
        """The mesh. Its parts belong to its own loop."""
        if self._running is None:
            raise Closed("this mesh does not run", expected="`with MeshHost(...)`", next="start it first")
        return self._running

    @property
    def path(self) -> Path:
        """Its `mesh.json`: what `MESH_CONTEXT` and `mesh.connect` take."""
        return self._data / "mesh.json"

    @property
    def tenant(self) -> Tenant:
        """The tenant that is tested.

        Raises:
            ConfigError: There are several and none was named, or it is not there.
        """
        tenants = {tenant.name: tenant for tenant in self.running.tenants}
        if self._tenant is None and len(tenants) == 1:
            return next(iter(tenants.values()))
        if self._tenant in tenants:
            return tenants[self._tenant]
        raise ConfigError(
            f"these policies have {len(tenants)} tenants",
            expected=f"one of {', '.join(sorted(tenants))}",
            got=self._tenant or "none named",
            next="name it: local_mesh(..., tenant=...)",
        )

    def check_id(self, test: object, source: str, receipt: Receipt) -> None:
        """Note whose an id is.

        Raises:
            Unmet: It is a duplicate of what another *test* published.
        """
        first = self._ids.setdefault((source, receipt.id), test)
        if receipt.duplicate and first is not test:
            raise Unmet(
                f"{receipt.id} from {source} was published by an earlier test on this mesh: nobody is handed it again."
                " Leave out id=, or give it one of its own"
            )

    async def on_its_loop(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await *function* on the mesh's loop, from any; cancelling this cancels that."""
        if threading.get_ident() == self._thread:
            return await function(*args)
        return await asyncio.wrap_future(self.portal.start_task_soon(function, *args))

    async def want(self, agent: str) -> None:
        """Have an agent run; on the mesh's loop.

        Raises:
            NotFound, ConfigError: There is no such agent, or it does not start.
        """
        workloads = self.tenant.workloads
        if isinstance(workloads, LocalWorkloads) and agent not in workloads.processes:
            await workloads.want(self.tenant.policies.grants, agent)

    def context(self, *, team: str | None = None, agent: str | None = None) -> Context:
        """A context for the library.

        Raises:
            ConfigError: Nobody of that name, or an agent that does not run yet.
        """
        return Context.load(self.path, tenant=self.tenant.name, team=team, agent=agent)

    def mesh(self, *, team: str | None = None, agent: str | None = None) -> Mesh:
        """A connected mesh that lives on the mesh's own loop, kept until the end. Blocks: not to be called on a loop.

        Raises:
            MeshError: As `connect`.
        """
        with self._opening:
            kept = self._meshes.get((team, agent))
            if kept is None:
                if agent is not None:
                    self.portal.call(self.want, agent)
                opened = Mesh(self.context(team=team, agent=agent))
                kept = self._stack.enter_context(self.portal.wrap_async_context_manager(opened))
                self._meshes[team, agent] = kept
            return kept


@asynccontextmanager
async def _up(options: Options) -> AsyncIterator[Running]:
    async with running(options) as mesh, anyio.create_task_group() as group:
        group.start_soon(mesh.watch)
        yield mesh
        group.cancel_scope.cancel()


def _written(policies: Policies, base: Path) -> Path:
    """The directory of *policies*; documents are written to one."""
    if isinstance(policies, dict):
        directory = base / "policies"
        for name, text in policies.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return directory
    if not Path(policies).is_dir():
        raise ConfigError(
            f"{policies} is no directory", expected="YAML documents in a directory, or by name", next="check policies="
        )
    return Path(policies)
