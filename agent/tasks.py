"""Background tasks by name: one that dies unexpectedly is logged, and says that the process has failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mesh import logs

if TYPE_CHECKING:
    from collections.abc import Coroutine

STOP_S = 2.0  # for a task to end once cancelled

log = logs.get("agent")


class Tasks:
    """The tasks of one agent.

    Attributes:
        failed: Set once one of them has died.
        dead: The names of those that have.
    """

    def __init__(self) -> None:
        self.failed = asyncio.Event()
        self.dead: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* until it ends or `cancel`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def cancel(self) -> None:
        """End them all."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.dead.append(task.get_name())
            log.exception("task_died", error, task=task.get_name())  # noqa: LOG004, PLE1205 - ours takes the error
            self.failed.set()
