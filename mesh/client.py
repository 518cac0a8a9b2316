"""The library a Python team uses: `connect()`, `publish()`, `subscription()`.

```python
async with mesh.connect(team="support", agent="desk") as m:
    await m.publish("support.ticket.opened.v1", {"contact": "c-17"}, source="/support")
    async with m.subscription("contacts") as contacts:
        await contacts.run(handle)
```
Publishing posts to the local agent's door, the one place that decides, masks and signs. Subscribing pulls with the
team's own credentials and verifies every event here, offline.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload
from uuid import uuid4

import msgspec

from mesh import spans
from mesh.composing import compose
from mesh.context import Context
from mesh.door import AgentDoor
from mesh.errors import ConfigError, MeshError
from mesh.handling import handling
from mesh.reading import ReadingTeam, open_team
from mesh.typed import described

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from _typeshed import DataclassInstance

    from mesh.inbound import Admitted
    from mesh.reading import TeamReader
    from mesh.subscription import Subscription

    Typed = msgspec.Struct | DataclassInstance


class CopyReceipt(msgspec.Struct, frozen=True):
    """Where one view's copy rests."""

    view: str
    stream: str
    seq: int


class Receipt(msgspec.Struct, frozen=True):
    """The agent's 202: every copy is durable."""

    id: str
    durable: str
    duplicate: bool
    copies: tuple[CopyReceipt, ...] = ()


class PublishFailed(MeshError):
    """The agent refused the event; `problem` is its problem document, `code` and `rule` are in it."""

    code = "publish-failed"

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.http_status = status
        self.problem = dict(problem)
        super().__init__(
            str(problem.get("detail") or problem.get("title") or f"the agent answered {status}"),
            expected=str(problem.get("expected", "202")),
            got=str(problem.get("got", status)),
            next=str(problem.get("next", "read the agent's log")),
            problem=self.problem,
        )

    @property
    def retryable(self) -> bool:  # type: ignore[override]  # of its class elsewhere; here the status says it
        """True where the same event may be published again later: the agent or its stream was away."""
        return self.http_status in {408, 429, 503}


class Mesh:
    """A connection to the mesh as one team, one agent, or both. Made by `connect()`; use it as `async with`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._stack = AsyncExitStack()
        self._door: AgentDoor | None = None
        self._reader: TeamReader | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await spans.begin(stack, "mesh-client", {"mesh.tenant": self.context.tenant})
            if self.context.team is not None:
                self._reader = await stack.enter_async_context(self._open_team(self.context.team))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    def _open_team(self, team: str) -> AbstractAsyncContextManager[TeamReader]:
        """What the team keeps lies beside its credentials."""
        context, files = self.context, Path(self.context.team_address().creds_file).parent
        who = ReadingTeam(context.tenant, team, trust=context.data / "trust", files=files, ciphers=files / "ciphers")
        return open_team(who, nats_url=context.mesh.nats_url, **context.team_connection())

    @overload
    async def publish(
        self,
        type: str,
        data: object = None,
        *,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        partitionkey: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Receipt: ...

    @overload
    async def publish(
        self,
        type: Typed,
        /,
        *,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        partitionkey: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Receipt: ...

    async def publish(
        self,
        type: str | Typed,
        data: object = None,
        *,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        partitionkey: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Receipt:
        """Publish one event through the local agent; returns once every copy is durable.

        Args:
            type: The logical type, such as `crm.contact.updated.v1`; or type and data in one: an instance of a class
                with `@mesh.event_type`.
            data: JSON values.
            source: A URI reference below `/<team>`, or what the policy adds.
            id: Unique within the source; publishing it again is safe. A random one where there is none.
            subject: What the event is about, within the source.
            time: RFC 3339; now, where there is none.
            partitionkey: Events with equal keys keep their order.
            extensions: More CloudEvents attributes. While handling another event, `correlationid` is inherited from it
                and `causationid` names it.

        Raises:
            PublishFailed: The agent refused it, or could not make it durable.
            Unavailable: The agent cannot be reached.
            DataMismatch: An instance holds what its own class does not allow.
            TypeError: Its class was not declared, or the data is not made of JSON values.
        """
        type_, data = (type, data) if isinstance(type, str) else described(type)
        said = {"id": id or uuid4().hex, "source": source, "type": type_, "subject": subject, "time": time}
        attributes = said | {"partitionkey": partitionkey, "data": data}
        return await self._post(compose(attributes, extensions, handling.get()))

    async def _post(self, body: bytes) -> Receipt:
        if self._door is None:
            self._door = AgentDoor(self.context.agent_address(), self._stack)
        status, answer = await self._door.post(body)
        if status == 202:  # noqa: PLR2004 - HTTP's own number
            return msgspec.json.decode(answer, type=Receipt)
        try:
            problem = msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError:
            problem = {"title": f"the agent answered {status}"}
        raise PublishFailed(status, problem)

    def subscription(self, name: str, *, max_in_flight: int | None = None) -> Subscription:
        """Our team's subscription *name*; more replicas of it share its events.

        One that policies made active after `connect` counts too: the bundle in force says where it is.

        Raises:
            ConfigError: We have no team, or it has no such subscription.
        """
        written = self.context.team_address().subscriptions
        address = written.get(name) or (None if self._reader is None else self._reader.address(name))
        if address is None:
            raise ConfigError(
                f"team {self.context.team} has no active subscription {name}",
                expected=f"one of {', '.join(sorted(written)) or 'none'}",
                next="`mesh subscription list` shows them all, and why one is inactive",
            )
        return self._opened().subscription(name, address, max_in_flight=max_in_flight)

    def reveal(self, event: Admitted) -> dict[str, Any]:
        """The fields of *event* with every value opened that was encrypted for our team; the rest stays as it is.

        Raises:
            ConfigError: We have no team, or a key file of ours is malformed.
        """
        self.context.team_address()
        return self._opened().reveal(event.fields)

    def _opened(self) -> TeamReader:
        if self._reader is None:
            raise ConfigError("the mesh is not connected", expected="`async with connect(...)`", next="connect first")
        return self._reader


def connect(
    context: Context | str | os.PathLike[str] | None = None,
    *,
    tenant: str | None = None,
    team: str | None = None,
    agent: str | None = None,
) -> Mesh:
    """The mesh of *context*: a `Context`, a `mesh.json`, a data directory, else `MESH_CONTEXT`, else `.mesh/mesh.json`.

    Args:
        context: Where the mesh is.
        tenant: Whose mesh, where there are several tenants.
        team: Who reads; needed for `subscription()`.
        agent: Whose door `publish()` uses, where there are several agents.

    Raises:
        ConfigError: There is no such mesh, or nobody of that name in it.
    """
    if not isinstance(context, Context):
        context = Context.load(context, tenant=tenant, team=team, agent=agent)
    return Mesh(context)
