"""A whole mesh as real processes, for tests that start where a user starts: `mesh up`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mesh.context import Context, MeshFile

START_S = 60.0
STOP_S = 30.0


class RunningMesh:
    """`mesh up` on a directory of its own."""

    def __init__(self, directory: Path, policies: Path, *options: str) -> None:
        self.data = directory / "data"
        self.log = directory / "mesh-up.log"
        self._command = [sys.executable, "-m", "mesh", "up", "--data", str(self.data), "--policies", str(policies)]
        self._command += ["--json", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.printed = b""

    @property
    def pid(self) -> int:
        """Of `mesh up`."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until `--json` has printed."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        until = time.monotonic() + START_S
        while not self.printed.endswith(b"\n"):
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, self.log.read_text()[-2000:]
            self.printed += self._process.stdout.read() or b""
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.printed = b""
        return status

    def kill(self) -> None:
        """SIGKILL whatever still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def file(self) -> MeshFile:
        """`mesh.json`."""
        return msgspec.json.decode((self.data / "mesh.json").read_bytes(), type=MeshFile)

    def context(self, *, team: str | None = None, agent: str | None = None) -> Context:
        """A context for the library."""
        return Context.load(self.data, team=team, agent=agent)

    def agent_pid(self, agent: str) -> int:
        """The process id of an agent, as it says itself."""
        ports = msgspec.json.decode((self.data / "agents" / agent / "ports.json").read_bytes())
        return int(ports["pid"])


@contextmanager
def mesh_up(directory: Path, policies: Path, *options: str) -> Iterator[RunningMesh]:
    """A mesh for the length of the block; stopped by SIGTERM."""
    mesh = RunningMesh(directory, policies, *options)
    try:
        mesh.start()
        yield mesh
        mesh.stop()
    finally:
        mesh.kill()
