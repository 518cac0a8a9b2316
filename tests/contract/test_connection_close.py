"""A connection that the server refuses can be closed at any moment."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

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
            with anyio.fail_after(10):
                await connection.close()
    finally:
        await mesh.stop()
