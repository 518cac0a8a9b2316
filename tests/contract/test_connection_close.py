"""A connection can be closed at any moment, and by whoever is cancelled."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from mesh.control.nats_server import NatsServer
from mesh.jetstream.connection import Connection
from tests.contract.operator_mode import OperatorMode, nkey

pytestmark = pytest.mark.anyio


async def test_a_refused_connection_closes_whenever_it_is_told_to(tmp_path: Path) -> None:
    """Wherever in a dial the cancellation falls (nats-py loses some), `close` ends."""
    mesh = await OperatorMode.start(tmp_path)
    try:
        creds = mesh.creds(nkey("account"), "thief")  # of an account that no server knows
        for offset in range(150):
            connection = await Connection.open(mesh.server.url, name="thief", creds=creds, wait=False)
            await anyio.sleep(0.0002 * offset)
            with anyio.fail_after(60):
                await connection.close()
    finally:
        await mesh.stop()


async def test_who_is_cancelled_leaves_no_link(shared_nats: NatsServer) -> None:
    """The block around a connection is cancelled: closing it cuts the link, and nothing dials again."""
    connection = await Connection.open(shared_nats.url, name="test")
    link = connection._keeper.link
    assert link is not None
    with anyio.CancelScope() as scope:
        scope.cancel()
        await connection.close()
    assert link._ended
    assert connection._running is not None
    assert connection._running.done()
