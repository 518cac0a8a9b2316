"""Contract tests run against real servers, which some of them end or freeze for a moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh.jetstream import keeper, puller

AGAIN_S = 0.1


@pytest.fixture(scope="module", autouse=True)
def back_soon() -> Iterator[None]:
    """What of ours runs in this process tries again often: the server is soon there, and nobody else is in the way.

    How the pauses grow is for the tests of connections, which have them as they are.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "RETRY_LAST_S", AGAIN_S)
        patch.setattr(puller, "RETRY_LAST_S", AGAIN_S)
        yield
