"""One of several consumers of one durable, in a process of its own: `python -m benchmarks.replica --data DIR --name N`.

Given any line it begins to consume, ours or (`--bare`) by nats-py; when its input ends, it has said how many it had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anyio
import nats
import nats.errors

from benchmarks.loads import FETCH
from benchmarks.meshes import STREAM
from benchmarks.workers import jobs, say
from mesh.client import connect
from mesh.context import Context
from mesh.judging import VERIFIED


class Replica:
    """Counts what it acked."""

    def __init__(self, data: Path, name: str) -> None:
        self._data = data
        self._name = name
        self.count = 0
        self.begin = anyio.Event()
        self.ready = anyio.Event()

    async def ours(self) -> None:
        """Consume as a team does with the library."""
        async with connect(self._data, team="reader") as mesh:
            self.ready.set()
            await self.begin.wait()
            async with mesh.subscription(self._name) as subscription:
                while True:
                    delivery = await subscription.next()
                    delivery.ack()
                    self.count += 1

    async def bare(self) -> None:
        """Consume as nats-py does, unverified."""
        context = Context.load(self._data, team="reader")
        creds = self._data / "teams" / "reader" / "nats.creds"
        durable = context.team_address().subscriptions[self._name].durable
        prefix = b"_INBOX_team-reader"
        client = await nats.connect(context.mesh.nats_url, user_credentials=str(creds), inbox_prefix=prefix)
        pull = await client.jetstream().pull_subscribe_bind(durable=durable, stream=STREAM)
        self.ready.set()
        await self.begin.wait()
        while True:
            try:
                messages = await pull.fetch(FETCH, timeout=1)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                await message.ack()
            self.count += len(messages)


async def main() -> None:
    """Wait for the word, consume until told to say what came of it, and say it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the mesh's data directory")
    parser.add_argument("--name", required=True, help="the subscription of the reading team")
    parser.add_argument("--bare", action="store_true", help="by nats-py")
    arguments = parser.parse_args()
    replica = Replica(arguments.data, arguments.name)
    async with anyio.create_task_group() as group:
        group.start_soon(replica.bare if arguments.bare else replica.ours)
        await replica.ready.wait()
        say({"ready": True})
        async for _ in jobs():
            if replica.begin.is_set():
                say({"count": replica.count, "verified": VERIFIED.total()})
            replica.begin.set()
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend_options={"use_uvloop": True})
