"""A mesh to measure: one publisher, one view with four masks and a condition, one reading team."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
import nats
from nats.aio.client import Client

from agent import Agent
from benchmarks.policy_sets import POLICIES, TYPE
from mesh.cli.operator import OperatorConnection, operator_connection
from mesh.context import Context
from mesh.control.up import Options, Running, running
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api, stream_info

_SUBSCRIPTION = """\
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: %s, tenant: bench, team: reader}
spec: {types: ["%s"], start: all, max_in_flight: 10000}
"""
ALL = "shop.order.>"
STREAM = "EV_local_shop"


@dataclass(frozen=True, slots=True)
class Bench:
    """A running mesh and how to reach it."""

    context: Context
    agent: Agent
    policies: Mapping[str, str]
    server: int  # its process id

    @asynccontextmanager
    async def control(self) -> AsyncIterator[OperatorConnection]:
        """A connection of an operator."""
        async with operator_connection(str(self.context.data)) as (_, connection):
            yield connection

    async def peer(self, creds: Path, name: str) -> Client:
        """A plain nats-py client with the credentials and the inbox of one of ours."""
        return await nats.connect(
            self.context.mesh.nats_url, user_credentials=str(creds), inbox_prefix=f"_INBOX_{name}".encode()
        )


@asynccontextmanager
async def processes(files: Mapping[str, str], *, agents: bool = True) -> AsyncIterator[tuple[Context, Running]]:
    """A mesh under the policies *files* for the length of the block.

    Args:
        files: YAML by file name.
        agents: Whether each agent has a process of its own; else only their files are there.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        policies = Path(directory) / "policies"
        policies.mkdir()
        for name, text in files.items():
            (policies / name).write_text(text)
        data = Path(directory) / "data"
        options = Options(data=data, policies=policies, on_demand=not agents)
        async with running(options) as up, anyio.create_task_group() as group:
            group.start_soon(up.watch)
            yield Context.load(data, team="reader", agent="shop" if agents else None), up
            group.cancel_scope.cancel()


@asynccontextmanager
async def mesh(
    *subscriptions: str, types: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
) -> AsyncIterator[Bench]:
    """A mesh of its own for the length of the block, its agent embedded: no HTTP hop, and no other agent beside it.

    Args:
        subscriptions: What the reading team has, from the first event on.
        types: Which events a subscription gets, where that is not all of them.
        files: Policies to have instead of `policy_sets.POLICIES`.
    """
    own = "".join(subscription(name, (types or {}).get(name, ALL)) for name in subscriptions)
    texts = {**(files or {"bench.yaml": POLICIES}), "subscriptions.yaml": own}
    texts = {name: text for name, text in texts.items() if text}
    async with AsyncExitStack() as stack:
        context, up = await stack.enter_async_context(processes(texts, agents=False))
        agent = Agent.from_file(context.data / "agents" / "shop" / "agent.toml")
        bench = Bench(context, await stack.enter_async_context(agent), texts, up.server.pid)
        gc.collect()
        gc.freeze()  # what the control plane allocated: in no application's process does the collector walk through it
        stack.callback(gc.unfreeze)
        yield bench


def subscription(name: str, types: str = ALL) -> str:
    """The document of one subscription of the reading team, from the first event on."""
    return _SUBSCRIPTION % (name, types)


async def make_room(connection: Connection, stream: str, size: int) -> None:
    """Let *stream* hold *size* bytes, where that is more than the 1 GiB that it is made with."""
    config = (await stream_info(connection, stream))["config"]
    if size > config["max_bytes"]:
        await api(connection, f"STREAM.UPDATE.{stream}", config | {"max_bytes": size})


def event(number: int, run: str) -> bytes:
    """A structured CloudEvent of about 1 KB with 20 fields, as an adapter sends it."""
    data: dict[str, Any] = {
        "order": f"o-{number}",
        "amount": 49.9 + number % 7,
        "currency": "EUR",
        "country": "DE",
        "status": "placed",
        "note": "Please leave the parcel with the neighbour on the second floor, and ring twice.",
        "customer": {
            "id": f"c-{number % 1000}",
            "segment": "smb",
            "name": "Ada Lindqvist",
            "email": "ada.lindqvist@example.com",
            "phone": "+49 40 1234567",
        },
        "items": [
            {"sku": f"sku-{i}", "quantity": i, "price": 9.5, "text": "a thing in a box, " * 2} for i in range(1, 6)
        ],
    }
    fields = {
        "specversion": "1.0",
        "id": f"{run}-{number}",
        "source": "/shop/eu",
        "type": TYPE,
        "time": "2026-11-22T09:30:00Z",
        "datacontenttype": "application/json",
        "data": data,
    }
    return msgspec.json.encode(fields)
