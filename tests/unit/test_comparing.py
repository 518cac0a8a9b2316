"""An older revision that `mesh policy diff` asks for: gone, or only out of reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.cli.policy.comparing import _past
from mesh.cli.session import Session
from mesh.errors import BundleChain, MeshError, RevisionNeeded, Unavailable

pytestmark = pytest.mark.anyio


def session(error: MeshError) -> Session:
    """A session that holds no older revision, and whose store answers with *error*."""

    def past(revision: int) -> Any:
        raise RevisionNeeded("not here yet", revision=revision)

    async def fetch_past(_revision: int) -> None:
        raise error

    return cast("Session", SimpleNamespace(bundle=SimpleNamespace(past=past, fetch_past=fetch_past)))


async def test_a_revision_that_is_stored_no_more_is_none() -> None:
    """The mesh was asked, and keeps no such bundle."""
    assert await _past(session(BundleChain("not stored any more")), 3) is None


async def test_a_store_that_does_not_answer_is_not_a_revision_that_is_gone() -> None:
    """Whoever compares learns that nobody answered, and can try again."""
    with pytest.raises(Unavailable):
        await _past(session(Unavailable("nobody answered")), 3)
