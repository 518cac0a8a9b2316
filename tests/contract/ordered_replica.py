"""One replica of the ordered subscription, as a process.

    python -m tests.contract.ordered_replica URL TRUST BOOK NAME HOW

HOW is what its handlers do, comma separated: `hang=KEY` never ends with an event of KEY, `fail=KEY` raises for it,
`slow=SECONDS` takes its time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import msgspec

from mesh import logs
from mesh.anchors import open_keyring
from mesh.context import SubscriptionAddress
from mesh.inbound import Admitted
from mesh.jetstream.connection import Connection
from mesh.subscription import Subscription
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch
from tests.contract.agent_mesh import POLICY_KEY
from tests.contract.consumer_mesh import STREAM, TENANT, VIEW


class Book:
    """Appends a line for each call of the handler; the file's order is that of all replicas together."""

    def __init__(self, file: Path, name: str, how: str) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._name = name
        self._how = dict(part.partition("=")[::2] for part in how.split(",") if part)

    async def handle(self, event: Admitted) -> None:
        """Write it down, then behave as told."""
        key, number = event.fields["partitionkey"], int(event.data["country"])
        os.write(self._fd, msgspec.json.encode((self._name, key, number, event.replay)) + b"\n")
        if key == self._how.get("hang"):
            await anyio.sleep_forever()
        if key == self._how.get("fail"):
            raise ValueError("told to")
        await anyio.sleep(float(self._how.get("slow", 0)))


async def main(*arguments: str) -> None:
    """Run until SIGTERM, then leave in order."""
    url, trust_dir, book, name, how = arguments
    connection = await Connection.open(url, name="team-support")
    bundle = BundleWatch(connection, POLICY_KEY, tenant=TENANT)
    trust = TrustWatch(connection, open_keyring(Path(trust_dir), tenant=TENANT))
    await bundle.refresh()
    await trust.look()
    reading = Subscription(
        connection,
        team="support",
        name="contacts",
        address=SubscriptionAddress(stream=STREAM, durable="support--contacts", view=VIEW),
        bundle=bundle,
        trust=trust,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(bundle.run)
        group.start_soon(trust.run)
        async with reading:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals, anyio.CancelScope() as scope:
                group.start_soon(_end, signals, scope)
                await reading.run(Book(Path(book), name, how).handle)
        group.cancel_scope.cancel()
    await connection.close()


async def _end(signals: object, scope: anyio.CancelScope) -> None:
    async for _ in signals:  # type: ignore[attr-defined]  # anyio has no public name for the type
        scope.cancel()
        return


if __name__ == "__main__":
    logs.setup("replica", json=True)
    anyio.run(main, *sys.argv[1:6])
