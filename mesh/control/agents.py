"""The agent processes of a development mesh: one per agent of the policies, started again when one ends.

An agent writes the ports it took to `ports.json` once it is ready. It gets the same ports again after a crash, so that
an application keeps its URL.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.control.nats_server import end_with_parent
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

START_TIMEOUT_S = 30.0  # an agent is ready in under a second; a busy machine with many agents takes its time
STOP_TIMEOUT_S = 15.0  # above the agent's own drain_s
RESTART_WAIT_S = (0.1, 0.5, 2.0, 5.0)  # between a crash and the next start; the last one repeats
STEADY_S = 30.0  # a process that lived this long starts again at once
_POLL_S = 0.02
_MAX_SAID = 300  # characters of a log line that are repeated
_FRAME = " |+-\t"  # that a traceback of several exceptions draws around them
_ERROR = re.compile(r"mesh-agent: .*|(?:\w+\.)*[A-Z]\w*(?:: .*)?")  # what `agent` ends with, or a traceback

log = logs.get("agents")


class Ports(msgspec.Struct, frozen=True):
    """`ports.json`, as the agent writes it."""

    url: str
    webhooks_url: str
    health_url: str
    pid: int


class AgentProcess:
    """One agent as a child process.

    Args:
        name: Of the agent.
        directory: With its `agent.toml` and keys.
        log_file: Where it writes.
        settings: Environment variables over the `agent.toml`.
        ready: Called when it is ready at last, and nobody waits for it any more: a barred agent was admitted.
        ended: Called when a process of it has ended by itself, before the next one starts.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        log_file: Path,
        settings: Mapping[str, str],
        ready: Callable[[], Awaitable[None]],
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        self.directory = directory
        self.settings = dict(settings)
        self._log_file = log_file
        self._came = ready
        self._ended = ended
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._logged = 0  # bytes in the log before this process
        self.ports: Ports | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Process id; 0 while it is not running."""
        return 0 if self._process is None else self._process.pid

    def stopping(self) -> bool:
        """Whether `stop` was called: from then on nothing starts it again."""
        return self._stopping

    def launch(self) -> None:
        """Start it without waiting: for one that will not be ready for a while."""
        self._spawn()

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ConfigError: It ended, or was not ready in time; the log says why.
        """
        self._spawn()
        with anyio.move_on_after(START_TIMEOUT_S):
            while not self._ready():
                self._check_alive()
                await anyio.sleep(_POLL_S)
            return
        raise self._failed(f"agent {self.name} was not ready within {START_TIMEOUT_S:.0f} s")

    async def supervise(self) -> None:
        """Start it again whenever it ends, until `stop`."""
        crashes = 0
        while True:
            started = anyio.current_time()
            await self._lived()
            if self.stopping():
                return
            status = None if self._process is None else self._process.returncode
            crashes = 0 if anyio.current_time() - started > STEADY_S else crashes
            log.warning("agent_ended", agent=self.name, status=status)
            await self._ended()
            if crashes:
                await anyio.sleep(RESTART_WAIT_S[min(crashes - 1, len(RESTART_WAIT_S) - 1)])
            crashes += 1
            if self.stopping():
                return
            self.restarts += 1
            try:
                await self.start()
            except ConfigError as error:
                log.error("agent_not_restarted", agent=self.name, code=error.code, error=str(error))
            else:
                log.info("agent_restarted", agent=self.name, pid=self.pid)

    async def _lived(self) -> None:
        """Return once it has ended."""
        while self._process is not None and self._process.poll() is None:
            if self.ports is None and self._ready():
                await self._came()
            await anyio.sleep(_POLL_S)

    async def stop(self) -> None:
        """SIGTERM: it drains; SIGKILL where that takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
            while process.poll() is None:  # noqa: ASYNC110 - a process ends without an event to wait for
                await anyio.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _spawn(self) -> None:
        self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        environment = {**os.environ, **self.settings, **self._same_ports()}
        self._logged = os.fstat(descriptor).st_size
        with os.fdopen(descriptor, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(self.directory / "agent.toml")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches `mesh up` alone, which drains its agents in order
                # however `mesh up` ends, no agent is left: the next start has one of its own for each
                preexec_fn=end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - one system call, no lock, no allocation
            )

    def _same_ports(self) -> dict[str, str]:
        """After a crash, the ports it had before; a Unix socket (`unix:<path>`) is where it was anyway."""
        if self.ports is None:
            return {}
        urls = {"HTTP": self.ports.url, "WEBHOOKS": self.ports.webhooks_url, "HEALTH": self.ports.health_url}
        return {
            f"MESH_AGENT_{door}_PORT": url.rpartition(":")[2]
            for door, url in urls.items()
            if not url.startswith("unix:")
        }

    def _ready(self) -> bool:
        try:
            ports = msgspec.json.decode((self.directory / "ports.json").read_bytes(), type=Ports)
        except (FileNotFoundError, msgspec.DecodeError):
            return False
        if ports.pid != self.pid:
            return False
        self.ports = ports
        return True

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise self._failed(f"agent {self.name} ended while starting")

    def _failed(self, message: str) -> ConfigError:
        written = self._log_file.read_bytes()[self._logged :] if self._log_file.exists() else b""
        said = _last_words(written.decode(errors="replace"))
        return ConfigError(message, expected="a running agent", got=said, next=f"read {self._log_file.name} in log/")


def _last_words(text: str) -> str:
    """What a process said last: the last event or error in its log, else the last line with a word in it."""
    lines = [line.strip(_FRAME) for line in text.splitlines()]
    said = [line for line in lines if any(map(str.isalpha, line))]
    telling = [line for line in said if _ERROR.fullmatch(line) or _is_event(line)]
    return (telling or said or ["nothing in its log"])[-1][:_MAX_SAID]


def _is_event(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
