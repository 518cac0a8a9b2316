"""One mesh for each file of attacks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.attacks.world import World


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A whole mesh; each test leaves it as it found it, but for more events."""
    async with World.running(tmp_path_factory.mktemp("mesh")) as running:
        yield running
