"""The demo's processes: a whole mesh by `mesh up`, and one consumer a team. Real ones, killed with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh.context import MeshFile
from mesh.demo.account import Receipt
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

STOP_S = 20.0
POLL_S = 0.05


class Process:
    """A child whose output goes to a file."""

    def __init__(self, arguments: list[str], log_file: Path) -> None:
        self._arguments = [sys.executable, "-m", *arguments]
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it, or start it again."""
        descriptor = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL: no goodbye, no last acks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_S, shield=True):
            while process.poll() is None:  # noqa: ASYNC110 - a process ends without an event to wait for
                await anyio.sleep(POLL_S)
        self.kill()

    def check(self) -> None:
        """Raise if it ended by itself.

        Raises:
            ConfigError: With the last line of its log.
        """
        if self._process is not None and self._process.poll() is not None:
            lines = self._log_file.read_text(errors="replace").strip().splitlines()
            raise ConfigError(
                f"{self._log_file.stem} ended with status {self._process.returncode}",
                expected="a running process",
                got=lines[-1][:400] if lines else "no log",
                next=f"read {self._log_file}",
            )


async def start_mesh(data: Path, policies: Path, start_s: float) -> tuple[Process, MeshFile]:
    """`mesh up` as a process, ready.

    Raises:
        ConfigError: It ended, or was not ready in time.
    """
    process = Process(
        ["mesh", "up", "--data", str(data), "--policies", str(policies), "--json"], data.parent / "mesh-up.log"
    )
    process.start()
    file = data / "mesh.json"
    with anyio.move_on_after(start_s):
        while not file.exists():
            process.check()
            await anyio.sleep(POLL_S)
        return process, msgspec.json.decode(file.read_bytes(), type=MeshFile)
    process.kill()
    raise ConfigError(
        f"the mesh was not ready within {start_s:.0f} s",
        expected="a ready mesh",
        next=f"read {data.parent}/mesh-up.log",
    )


class Team:
    """One team's consumer and its receipts."""

    def __init__(self, name: str, tenant: str, *, context: Path, directory: Path, troubles: dict[str, str]) -> None:
        self.name = name
        self._file = directory / f"receipts-{name}.jsonl"
        arguments = ["mesh.demo.consumer", "--context", str(context), "--tenant", tenant, "--team", name]
        arguments += ["--receipts", str(self._file)]
        for option, event_id in troubles.items():
            arguments += [f"--{option}", event_id]
        self.process = Process(arguments, directory / f"consumer-{name}.log")
        self._offset = 0
        self.receipts: list[Receipt] = []

    async def ready(self) -> None:
        """Wait until it consumes.

        Raises:
            ConfigError: It ended.
        """
        while not self._file.exists():
            self.process.check()
            await anyio.sleep(POLL_S)

    def read(self) -> list[Receipt]:
        """All receipts so far."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._offset += len(whole) + 1
                self.receipts += [msgspec.json.decode(line, type=Receipt) for line in whole.split(b"\n")]
        return self.receipts
