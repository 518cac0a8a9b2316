"""The sidecar beside one application: what it accepts, what it holds, what it drops, and when.

It accepts CloudEvents on loopback (`intake`) and signed webhooks (`webhooks`), from whoever holds the token or signs
as the provider. It checks every event, asks the policies who may see what, makes one masked copy for each view that
somebody may read, seals the copies in batches (`lanes`) and publishes them. 202 means that every copy is durable: its
stream has it, or the disk, where it waits for a stream that is away (`spool`). The key that it seals with is enrolled
with the control plane (`enrolment`), renewed in time (`renewal`) and kept believed (`identity`).

It holds an event from the moment it is accepted until its last copy is durable, in memory and bounded in events and
bytes; a caller who finds no room is slowed, then told so. It holds the spool, bounded in bytes, the policy bundle in
force, its own keys, and of what it has published only message ids, bounded, so that the same event sent again is judged
by its true age.

It drops nothing it has accepted: an event is durable, or its sender is told that it is not and may send it again under
the same id. What it refuses (400s) is refused whole and named; what it cannot make durable now (503) says when to come
back. On SIGTERM it takes nothing new, finishes what it holds, and ends.

A Python adapter can embed the same object and save the hop:

    async with Agent.from_file("agent.toml") as agent:
        event = {"specversion": "1.0", "id": "c-1-7", "source": "/crm", "type": "crm.contact.updated.v1", "data": {}}
        receipt = await agent.publish(event)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.core import Agent
    from agent.receipts import Receipt

__all__ = ["Agent", "Receipt"]


def __getattr__(name: str) -> Any:
    """Import on first use: `mesh-agent --help` needs neither NATS nor HTTP."""
    if name == "Agent":
        from agent.core import Agent

        return Agent
    if name == "Receipt":
        from agent.receipts import Receipt

        return Receipt
    raise AttributeError(name)
