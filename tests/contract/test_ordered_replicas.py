"""Order per key over several replicas, as real processes that are killed, stopped, and come and go."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.contract.ordered_mesh import Handled, OrderedSource, Replica, disorder, read

pytestmark = pytest.mark.anyio

KEYS = 1000
HANGING = "k0"
DEADLINE_S = 90


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    """Those of a test; all are gone after it."""
    running: list[Replica] = []
    yield running
    for replica in running:
        replica.end()


async def until(condition: Callable[[], object]) -> None:
    """Poll until *condition* holds; a look reads the whole book, so not too often."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():
            await anyio.sleep(0.1)


def round_of(number: int) -> list[tuple[str, int]]:
    """The *number*-th event of every key."""
    return [(f"k{key}", number) for key in range(KEYS)]


def complete(calls: list[Handled], number: int) -> bool:
    """Whether of each key but the hanging one everything up to *number* was handled."""
    return len({(call.key, call.number) for call in calls if call.key != HANGING}) == (KEYS - 1) * number


async def test_replicas_die_stop_come_and_go_and_no_key_is_out_of_order(
    tmp_path: Path, replicas: list[Replica]
) -> None:
    """Each event is first handled after those before it of its key, and a handler that hangs holds up its key alone."""
    book = tmp_path / "book"
    async with OrderedSource.ordered(tmp_path) as source:
        replicas += [Replica(source, book, name, behaviour=f"hang={HANGING},slow=0.001") for name in "abc"]
        killed, stopped, left = replicas
        await source.publish_keys(round_of(1) + round_of(2))
        await until(lambda: complete(read(book), 2))
        number, sharing = 2, set[str]()
        while len(sharing) < len(replicas):  # until all three have slots, whoever came first
            number += 1
            await source.publish_keys(round_of(number))
            await until(partial(lambda number: complete(read(book), number), number))
            sharing = {call.replica for call in read(book)[-KEYS:]}

        killed.send(signal.SIGKILL)
        stopped.send(signal.SIGSTOP)
        await source.publish_keys(round_of(number + 1) + round_of(number + 2))
        await until(lambda: complete(read(book), number + 2))
        assert {call.replica for call in read(book)[-KEYS // 10 :]} == {left.name}

        stopped.send(signal.SIGCONT)
        replicas.append(Replica(source, book, "d", behaviour=f"hang={HANGING}"))
        left.send(signal.SIGTERM)
        await source.publish_keys(round_of(number + 3))
        await until(lambda: complete(read(book), number + 3))
        assert left.process.wait(DEADLINE_S) == 0

    calls = read(book)
    assert disorder(calls) == []
    assert {call.number for call in calls if call.key == HANGING} == {1}
