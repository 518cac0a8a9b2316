"""What a test publishes: through the door of an agent, as its application does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio.to_thread

from mesh.errors import ConfigError
from mesh.policy.trial import publisher_of
from mesh.testing import looking
from mesh.testing.faults import Faults
from mesh.typed import described

if TYPE_CHECKING:
    from mesh.client import Receipt, Typed
    from mesh.testing.host import MeshHost


class Publishing(Faults):
    """The part of `LocalMesh` that publishes.

    Args:
        host: The mesh; it runs.

    Attributes:
        sent: What was published or refused, as fields, in that order.
    """

    def __init__(self, host: MeshHost) -> None:
        super().__init__(host)
        self.sent: list[dict[str, Any]] = []

    async def publish(
        self, type: str | Typed, data: object = None, *, source: str, agent: str | None = None, **attributes: Any
    ) -> Receipt:
        """Publish as an agent; returns once every copy is durable.

        Args:
            type: As for `Mesh.publish`.
            data: JSON values.
            source: A URI reference.
            attributes: `id`, `subject`, `time`, `partitionkey` and `extensions`, as for `Mesh.publish`.
            agent: Who; else the first, by name, that policies let publish it. It is started where it does not run.

        Raises:
            PublishFailed: The agent refused it.
            Unmet: An earlier test published that id: here it is a duplicate, which nobody is handed.
            ConfigError: No agent may publish it, and none is named.
        """
        type_, data = (type, data) if isinstance(type, str) else described(type)
        attributes["id"] = attributes.get("id") or uuid4().hex
        fields = {"specversion": "1.0", "type": type_, "source": source, "data": data, **attributes}
        fields.update(fields.pop("extensions", None) or {})
        name = agent or self._publisher(fields)
        m = await anyio.to_thread.run_sync(partial(self.host.mesh, agent=name))
        self.sent.append(fields)
        receipt = await self.host.on_its_loop(partial(m.publish, type_, data, source=source, **attributes))
        self.host.check_id(self, source, receipt)
        return receipt

    def _publisher(self, fields: dict[str, Any]) -> str:
        plans = self.host.tenant.policies.plans
        name = publisher_of(plans, fields, now_ms=looking.now_ms())
        if name is None:
            raise ConfigError(
                f"no agent may publish {fields['type']} from {fields['source']}",
                expected=f"an event that one of {', '.join(sorted(plans.tenancy.team_of))} may publish",
                next="name the agent with agent=, and its refusal says which rule decided",
            )
        return name
