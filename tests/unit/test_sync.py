"""The library without async: who opens a subscription, who closes it, and what Ctrl-C leaves behind; no mesh needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Self, cast

import anyio
import pytest

from mesh.client import Mesh
from mesh.sync import SyncMesh, SyncSubscription

WAIT_S = 60


class Nothing:
    """A mesh, or a subscription that has no event, which counts how often it is entered and left."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        await anyio.sleep(0.05)  # so that others come meanwhile
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left += 1

    async def next(self) -> object:
        """One event after another."""
        return object()

    def subscription(self, name: str, **_: object) -> Nothing:
        """Of ours."""
        return Nothing()


@pytest.fixture
def m() -> Iterator[SyncMesh]:
    """A mesh that is open."""
    with SyncMesh(cast("Mesh", Nothing())) as opened:
        yield opened


def counts(subscription: SyncSubscription) -> tuple[int, int]:
    """How often it was entered, and left."""
    inner = cast("Nothing", subscription._subscription)
    return inner.entered, inner.left


def at_once(count: int, work: Callable[[], object]) -> None:
    """Call *work* in so many threads that begin together."""
    together = threading.Barrier(count, timeout=WAIT_S)

    def begin() -> None:
        together.wait()
        work()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_come_together_open_it_once(m: SyncMesh) -> None:
    """Each of them gets a delivery; one close leaves nothing open, and a second does nothing."""
    contacts = m.subscription("contacts")
    at_once(4, lambda: contacts.next(WAIT_S))
    assert (counts(contacts), m.opened) == ((1, 0), [contacts])
    at_once(4, contacts.close)
    assert (counts(contacts), m.opened) == ((1, 1), [])


def test_the_last_loop_closes_it(m: SyncMesh) -> None:
    """A loop that ends leaves those of other threads alone."""
    contacts = m.subscription("contacts")
    one, two = iter(contacts), iter(contacts)
    at_once(1, lambda: next(one))
    next(two)
    cast("Any", one).close()
    assert counts(contacts) == (1, 0)
    next(two)
    cast("Any", two).close()
    assert counts(contacts) == (1, 1)


def test_the_last_block_closes_it(m: SyncMesh) -> None:
    """Also where `next` was called within."""
    contacts = m.subscription("contacts")
    with contacts:
        with contacts:
            contacts.next(WAIT_S)
        assert counts(contacts) == (1, 0)
    assert counts(contacts) == (1, 1)


def test_a_loop_does_not_close_what_somebody_asks_by_hand(m: SyncMesh) -> None:
    """Whoever calls `next` has a delivery in hand when the other's loop ends; the mesh closes it."""
    contacts = m.subscription("contacts")
    for _ in contacts:
        at_once(1, lambda: contacts.next(WAIT_S))
        break
    assert (counts(contacts), m.opened) == ((1, 0), [contacts])


def test_what_came_as_the_waiting_was_interrupted_is_undone_once(m: SyncMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is cancelled when it is over already, and nobody has its result yet."""
    cancelled, undone, results = threading.Event(), threading.Event(), list[str]()
    start = m.portal.start_task_soon

    def interrupted(work: Callable[[], Any]) -> Future[Any]:
        monkeypatch.undo()
        future = start(work)
        cancel = future.cancel

        def result(timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        def noted() -> bool:
            done = cancel()
            cancelled.set()
            return done

        monkeypatch.setattr(future, "result", result)
        monkeypatch.setattr(future, "cancel", noted)
        return future

    async def work() -> str:
        cancelled.wait(WAIT_S)  # holds the loop: the cancellation finds it about to return
        return "a delivery"

    def undo(result: str) -> None:
        results.append(result)
        undone.set()

    monkeypatch.setattr(m.portal, "start_task_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        m.wait(work, undo=undo)
    assert undone.wait(WAIT_S)
    m.portal.call(lambda: None)
    assert results == ["a delivery"]
