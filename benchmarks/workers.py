"""Processes beside the one that measures: they say `ready`, take jobs as JSON lines, and answer with JSON lines."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import msgspec

from benchmarks.machine import ROOT
from benchmarks.validity import InvalidRun

START_S = 60.0
END_S = 30.0
LINE_BYTES = 1 << 20


class Worker:
    """One such process, seen from here."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.pid = process.pid
        self._name = name
        self._process = process
        self._log = log

    def tell(self, job: object) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Its next answer.

        Raises:
            InvalidRun: It ended instead; with the last lines it wrote.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise InvalidRun(f"{self._name} ended: {self._log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    async def end(self) -> None:
        """Close its input, let it finish, and kill it where it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(END_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def worker(module: str, *options: str, log: Path) -> AsyncIterator[Worker]:
    """`python -m benchmarks.<module>` for the length of the block, once it is ready."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"benchmarks.{module}", *options,
            cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=errors, limit=LINE_BYTES,
        )  # fmt: skip
    started = Worker(module, process, log)
    try:
        with anyio.fail_after(START_S):
            await started.hear()
        yield started
    finally:
        await started.end()


# --- inside such a process -------------------------------------------------------------------------------------------


def say(answer: object) -> None:
    """One line to whoever started us."""
    print(msgspec.json.encode(answer).decode(), flush=True)


async def jobs() -> AsyncIterator[bytes]:
    """The lines we are given, until our input ends."""
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line
