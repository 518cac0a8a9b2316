"""One process of the mesh under test: started, killed, stopped and gone on with, and started again when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from mesh.control.nats_server import end_with_parent
from tests.faults.child import CLOCK
from tests.faults.clock import set_clock

POLL_S = 0.02
AGAIN_S = 0.3  # from an end that nobody asked for to the next start, as a supervisor would
TERM_S = 25.0  # above every drain of the product; then it is killed, which is counted


class Child:
    """A process that is started again whenever it ends, but while it is `down`.

    Args:
        name: For its log, and for people.
        command: What `child.py` is told: a role and its arguments.
        directory: Gets `<name>.log` and `<name>.clock`.
        environment: Over our own.

    Attributes:
        lock: Held by a fault, so that two never hit one process at once.
        ended: How often it ended by itself.
        overstayed: How often it did not end within `TERM_S` of SIGTERM.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.lock = anyio.Lock()
        self.ended = 0
        self.overstayed = 0
        self.environment = dict(environment or {})
        self._command = [sys.executable, "-m", "tests.faults.child", *command]
        self._log = directory / f"{name}.log"
        self._clock = directory / f"{name}.clock"
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        set_clock(self._clock, 0.0)

    @property
    def pid(self) -> int:
        """Process id; 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it lives; stopped counts as living."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it."""
        self._wanted = True
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, CLOCK: str(self._clock)},
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, no lock, no allocation
            )

    async def keep(self) -> None:
        """Start it again whenever it ends by itself, until cancelled."""
        while True:
            await anyio.sleep(POLL_S)
            if self._wanted and not self.running:
                self.ended += 1
                await anyio.sleep(AGAIN_S)
                if self._wanted and not self.running:
                    self.start()

    def kill(self) -> None:
        """SIGKILL; it stays down until `start`."""
        self._wanted = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def terminate(self, within_s: float = TERM_S) -> None:
        """SIGTERM, and wait until it has ended, for so long; it stays down until `start`."""
        self._wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(within_s):
            while self.running:
                await anyio.sleep(POLL_S)
        if self.running:
            self.overstayed += 1
        self.kill()

    def set_clock(self, skew_s: float) -> None:
        """Its clock is ahead by so much from now on, also after a restart."""
        set_clock(self._clock, skew_s)

    def last_words(self) -> str:
        """The end of its log."""
        with suppress(FileNotFoundError):
            return self._log.read_text(errors="replace")[-1500:]
        return ""
