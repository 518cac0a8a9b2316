"""One consuming team of the demo, as a process of its own: the library, that team's credentials, a receipt file.

It is what an application would be, but for the receipts and for two events it is told to have trouble with.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec

from mesh import logs
from mesh.client import connect
from mesh.delivery import Reject
from mesh.demo.account import Receipt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.client import Mesh
    from mesh.inbound import Admitted

FAILURES = 2  # of the handler that fails, before it succeeds


class ReceiptFile:
    """Receipts, one JSON line each, written through to the kernel: kill -9 loses none that was written."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, receipt: Receipt) -> None:
        """Append one."""
        os.write(self._descriptor, msgspec.json.encode(receipt) + b"\n")


class FlakyDatabase(Exception):
    """What the failing handler raises."""


def make_handler(
    receipts: ReceiptFile, *, team: str, subscription: str, fail_twice: str, reject: str
) -> Callable[[Admitted], Awaitable[None]]:
    """The team's handler for one subscription."""

    def write(kind: Literal["delivered", "done"], event: Admitted) -> None:
        receipts.write(
            Receipt(
                kind=kind,
                team=team,
                subscription=subscription,
                source=event.source,
                id=event.id,
                view=event.view,
                stream=event.stream,
                sequence=event.sequence,
                attempt=event.attempt,
                at_ms=time.time_ns() // 1_000_000,
                fields=event.fields if kind == "delivered" else {},
            )
        )

    async def handle(event: Admitted) -> None:
        write("delivered", event)
        if event.id == reject:
            raise Reject("unknown currency")
        if event.id == fail_twice and event.attempt <= FAILURES:
            raise FlakyDatabase("connection reset")
        write("done", event)

    return handle


async def run(options: argparse.Namespace) -> None:
    """Consume every subscription of the team until SIGTERM."""
    async with (
        connect(options.context, tenant=options.tenant, team=options.team) as mesh,
        anyio.create_task_group() as group,
    ):
        receipts = ReceiptFile(options.receipts)  # there once we consume: the demo waits for it
        for name in mesh.context.team_address().subscriptions:
            handler = make_handler(
                receipts, team=options.team, subscription=name, fail_twice=options.fail_twice, reject=options.reject
            )
            group.start_soon(_consume, mesh, name, handler)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                break
        group.cancel_scope.cancel()


async def _consume(mesh: Mesh, name: str, handler: Callable[[Admitted], Awaitable[None]]) -> None:
    async with mesh.subscription(name) as subscription:
        await subscription.run(handler)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m mesh.demo.consumer", description=__doc__)
    parser.add_argument("--context", required=True, help="the mesh.json")
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--team", required=True)
    parser.add_argument("--receipts", required=True, help="file to append receipts to")
    parser.add_argument("--fail-twice", default="", help="id of the event whose handling fails twice")
    parser.add_argument("--reject", default="", help="id of the event to reject")
    options = parser.parse_args()
    logs.setup(service=f"consumer-{options.team}")
    anyio.run(run, options, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
