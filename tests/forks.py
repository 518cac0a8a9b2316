"""Our own programs without the second that importing takes: forked from a process that has imported everything.

A test that starts `python -m agent` or `python -m mesh` wants the process, not its imports. After `install()` and
`begin()`, `subprocess.Popen` asks a helper to fork instead. What comes is a real child of who asked: its own
process id, parent, session, files, directory and environment; killed by real signals, waited for as ever. Only its
`/proc/<pid>/environ` is the helper's. A program that starts programs itself (`mesh up` its agents) gets a helper too.

Everything else is started as it always was: other programs, other options of Python, variables that are read while
something is imported, a terminal, a machine that cannot do this. So is everything within `whole()`, for tests of the
process itself; and the wheel's test starts what users start. `MESH_TEST_FORKS=0` switches it off.

Here is who asks; the helper is `forking`.
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "MESH_TEST_FORKS"
# What `python -m <name>` may be forked, and whether it starts processes of ours itself.
PROGRAMS = {
    "agent": False,
    "mesh": True,
    "mesh.demo.consumer": False,
    "tests.contract.ordered_replica": False,
    "tests.faults.child": True,
    "tests.journey.in_a_pod": False,
    "tests.journey.replica_process": False,
}
# Variables that Python, libc or a library reads before a program begins. Where one differs, it is started whole.
_EARLY = (
    *("PYTHON", "LD_", "MALLOC", "GLIBC", "TTY", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "SSL_", "OPENSSL"),
    *("OTEL_PYTHON", "OTEL_SPAN", "OTEL_ATTRIBUTE", "AIOHTTP", "YARL", "MULTIDICT", "FROZENLIST", "PROPCACHE"),
)
_LOCALE = ("LC_", "LANG")  # with none of them Python takes UTF-8, as it does here
TITLE = "tests.forking"  # what the command line of a forked program's own helper begins with
UNBUFFERED = "PYTHONUNBUFFERED"  # can be followed late
PR_SET_PDEATHSIG = 1
_ROOM = "." * 1500  # an argument that the command line of what is forked is written over
WORD = 8  # bytes of a number on the channel

_popen = subprocess.Popen


class Request(msgspec.Struct, frozen=True):
    """What a forked process has to become."""

    module: str
    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    umask: int
    new_session: bool
    death_signal: int  # that it gets when its parent ends; 0 for none
    parent: int


class _Helper:
    """The process that forks, as its parent sees it."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._owner = os.getpid()
        self._environment = dict(os.environ)
        self._channel = channel
        self._lock = threading.Lock()

    @classmethod
    def started(cls) -> _Helper:
        """One that begins by importing everything."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = _popen(
                [sys.executable, "-m", "tests.forking", str(theirs.fileno()), _ROOM],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return cls(ours, process)

    def close(self) -> None:
        """It ends when we have nothing more to ask."""
        self._channel.close()
        if self._process is not None:
            self._process.wait()

    def can(self, environment: Mapping[str, str]) -> bool:
        """Whether what it has imported is what a process with this environment would have."""
        if os.getpid() != self._owner:
            return False
        locale = any(name.startswith(_LOCALE) for name in environment)
        early = (*_EARLY, *_LOCALE) if locale else _EARLY
        changed = dict(set(self._environment.items()) ^ set(environment.items()))
        return not any(name.startswith(early) and name != UNBUFFERED for name in changed)

    def fork(self, request: Request, files: Sequence[int]) -> int:
        """The new process's id; 0 where there is none."""
        said = msgspec.json.encode(request)
        with self._lock, suppress(OSError):
            socket.send_fds(self._channel, [len(said).to_bytes(WORD, "big")], files)
            self._channel.sendall(said)
            return int.from_bytes(self._channel.recv(WORD, socket.MSG_WAITALL), "big")
        return 0


_helper: _Helper | None = None
_whole = False


def _known(args: Any, executable: Any, preexec_fn: Any) -> bool:
    """Whether this is one of our programs, started in a way that a fork can follow."""
    if not isinstance(args, list | tuple) or list(args[:2]) != [sys.executable, "-m"] or executable is not None:
        return False
    ahead = args[2] == "tests.journey.replica_process" and float(args[4])  # sets its clock before it imports
    return args[2] in PROGRAMS and not ahead and (preexec_fn is None or _death_signal(preexec_fn) > 0)


def _hidden(module: str, directory: Path) -> bool:
    """Whether Python would find another program of that name in *directory*, where it looks first."""
    name = module.partition(".")[0]
    there = directory / name
    return directory.resolve() != ROOT and (there.exists() or there.with_suffix(".py").exists())


def _death_signal(preexec_fn: Any) -> int:
    """What `mesh.control.nats_server.end_with_parent` was told; 0 for anything else."""
    if isinstance(preexec_fn, functools.partial) and preexec_fn.args[:1] == (PR_SET_PDEATHSIG,):
        return int(preexec_fn.args[1])
    return 0


class Popen(_popen[Any]):
    """`subprocess.Popen`, forked where that is the same."""

    forked = False

    def _execute_child(self, *given: Any) -> None:
        begin = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(begin).bind(*given).arguments
        if not self._forked(asked):
            begin(*given)

    def _forked(self, asked: Mapping[str, Any]) -> bool:
        odd = ("shell", "pass_fds", "gid", "gids", "uid")
        if _whole or any(asked.get(name) for name in odd if asked.get(name) != -1):
            return False
        if not _known(asked["args"], asked["executable"], asked["preexec_fn"]) or asked.get("process_group", -1) != -1:
            return False
        directory = Path(asked["cwd"] or Path.cwd())
        if _hidden(asked["args"][2], directory):
            return False
        pipes = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        if any(map(os.isatty, files)):
            return False
        environment = dict(os.environ if asked["env"] is None else asked["env"])
        if _helper is None or not _helper.can(environment):
            return False
        request = Request(
            module=asked["args"][2],
            arguments=[os.fsdecode(argument) for argument in asked["args"][3:]],
            cwd=str(directory),
            environment={name: os.fspath(value) for name, value in environment.items()},
            umask=asked["umask"],
            new_session=bool(asked["start_new_session"]),
            death_signal=_death_signal(asked["preexec_fn"]),
            parent=os.getpid(),
        )
        self.pid = _helper.fork(request, files)
        self.forked = self.pid > 0
        if self.forked:
            self._child_created = True
            self._close_pipe_fds(*(asked[name] for name in _PIPES))  # type: ignore[attr-defined]
        return self.forked


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def install() -> None:
    """From here on our programs are forked, as soon as there is a helper."""
    subprocess.Popen = Popen  # type: ignore[misc]


def begin() -> None:
    """Start the helper. From the thread that stays: what the helper forks is told when that thread ends."""
    global _helper  # noqa: PLW0603 - one a process
    if _helper is None and sys.platform == "linux" and os.environ.get(VARIABLE) != "0":
        _helper = _Helper.started()


def end() -> None:
    """Have the helper end; from here on processes are started whole."""
    global _helper  # noqa: PLW0603 - as above
    if _helper is not None:
        _helper.close()
        _helper = None


def adopt(channel: socket.socket) -> None:
    """`install()`, with a helper that is there: it answers on *channel*."""
    global _helper  # noqa: PLW0603 - as above
    _helper = _Helper(channel)
    install()


@contextmanager
def whole() -> Iterator[None]:
    """For the length of the block every process is started as a user starts it."""
    global _whole  # noqa: PLW0603 - as above
    before, _whole = _whole, True
    try:
        yield
    finally:
        _whole = before
