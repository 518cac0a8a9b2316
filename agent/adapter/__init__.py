"""A kit for services that call nobody: ask them in turns, and publish what changed.

You write how to ask for a page, and what an item is; the kit does the rest. A whole adapter:

    async def poll(cursor):
        async with http.get("/contacts", params={"updated_since": cursor or ""}) as answer:
            if answer.status == 429:
                raise SlowDown(answer.headers.get("Retry-After"))
            body = await answer.json()
        return Page(body["contacts"], cursor=body["next"], more=body["more"])

    def item(contact):
        return Item(contact["id"], contact, subject=f"contact/{contact['id']}", time=contact["updated_at"])

    async def main():
        async with Agent.from_file("agent.toml") as agent:
            adapter = Adapter(
                poll, item, publish=agent, state="contacts.db", source="/crm/contacts", type="crm.contact.{change}.v1",
                rate=RateLimit(per_s=5, burst=10),
            )
            await adapter.run()

What it promises. A page becomes one transaction in the state file: its events and the cursor behind it. They are
published from there in order, and the next page is asked for once each of them got its 202. So a crash at any point
loses nothing, and what is published again has the id it had before: the mesh keeps it once. An item is an event where
its data differs from last time: A, B, A again are two events more, the same A read twice is none. An event that policy
or the agent refuses for good is parked and named (`mesh-agent adapter parked STATE`), and the others go on. The state
file holds keyed digests and sealed events: nobody reads personal data out of it without the key file beside it.

Follow a page from top to bottom: `page` (what you return), `pace` (when you are asked), `changes` (what is an event),
`cloak` (what the file shows), `database`, `state` and `line` (the file), `sending` (to the agent), `adapter` (a turn).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.adapter.page import Item, Page, SlowDown, StartOver
from mesh.limits import RateLimit

if TYPE_CHECKING:
    from agent.adapter.adapter import Adapter

__all__ = ["Adapter", "Item", "Page", "RateLimit", "SlowDown", "StartOver"]


def __getattr__(name: str) -> Any:
    """Import on first use: `mesh-agent --help` needs no HTTP."""
    if name == "Adapter":
        from agent.adapter.adapter import Adapter

        return Adapter
    raise AttributeError(name)
