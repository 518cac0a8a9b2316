"""The helper of `forks`: it imports everything, parses the worked example, and then forks whenever it is asked.

It has one thread. It calls clone(2) with CLONE_PARENT, so that the new process is a child of the helper's own parent,
and runs Python's fork hooks around it. What it forked becomes what was asked for, and runs the program to its end.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import pkgutil
import platform
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from tests.forks import PR_SET_PDEATHSIG, PROGRAMS, ROOT, TITLE, UNBUFFERED, WORD, Request, adopt

# What is imported late, besides our own modules.
_LATE = (
    "anyio._backends._asyncio",
    "anyio._core._fileio",
    "anyio._core._signals",
    "concurrent.futures.thread",
    "cryptography.hazmat.backends.openssl.backend",
    "encodings.idna",
    "rich.columns",
    "rich.markdown",
    "rich.traceback",
    "typer._adapters",
    "typer._click.decorators",
    "typer.rich_utils",
    "uvloop",
)
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 0)
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_THREAD_BYTES = 1024  # of glibc's `struct pthread`, below its whole size; the thread's id is within
_libc = ctypes.PyDLL(None)  # keeps the interpreter's lock


def _import_everything() -> None:
    from agent.lean import without_http_client
    from tests.faults.clock import anticipate

    anticipate()
    without_http_client()
    ours = [
        found.name
        for package in ("agent", "mesh")
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        if not found.name.endswith(".__main__")
    ]
    for name in (*ours, *_LATE):
        with suppress(ImportError):  # of an extra that is not installed, of another release
            importlib.import_module(name)


def _parse_the_example() -> None:
    """The YAML of `policies/`: most meshes of the tests begin with these texts, or with all but one of them."""
    from mesh.policy_files import read_policies
    from tests.parsed import once

    compose = once()
    for text in read_policies(ROOT / "policies").yaml.values():
        compose(text)


def _thread_id_at() -> int:
    """Where glibc keeps the id of this thread, which a new process has to have changed; 0 where it is not found."""
    _libc.pthread_self.restype = ctypes.c_void_p
    start = int(_libc.pthread_self())
    words = (ctypes.c_int * (_THREAD_BYTES // 4)).from_address(start)
    found = [index for index, word in enumerate(words) if word == threading.get_native_id()]
    return start + 4 * found[0] if len(found) == 1 else 0


def _sibling(thread_id_at: int) -> int:
    """Fork, but for our parent: 0 in the new process, its id in this one, -1 where that fails."""
    flags = _CLONE_PARENT | signal.SIGCHLD
    if thread_id_at:
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    last = (thread_id_at, 0) if platform.machine() == "x86_64" else (0, thread_id_at)
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(_libc.syscall(*map(ctypes.c_long, (_SYS_CLONE, flags, 0, 0, *last))))
    if pid:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    return pid


def _serve(channel: socket.socket) -> tuple[Request, list[int]]:
    """Fork whenever our parent asks, until it has ended; returns in each process that is forked."""
    at = _thread_id_at()
    parent = os.getppid()
    while True:
        head, files, _, _ = socket.recv_fds(channel, WORD, 3)
        if len(head) < WORD or os.getppid() != parent:
            os._exit(0)
        said = channel.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        pid = _sibling(at)
        if not pid:
            request = msgspec.json.decode(said, type=Request)
            ours = os.getppid() == request.parent
            channel.sendall((os.getpid() if ours else 0).to_bytes(WORD, "big"))
            channel.close()
            if not ours:
                os._exit(1)
            return request, files
        for file in files:
            os.close(file)
        if pid < 0:
            channel.sendall(bytes(WORD))


def _write_title(words: Sequence[str]) -> None:
    """Our command line, as others see it, over the helper's."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = "\0".join(words).encode()[: end - start - 1]
    if start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def _become(request: Request, files: list[int]) -> None:
    """Lay around us what was asked for; returns when the program may begin."""
    if request.death_signal:
        _libc.prctl(PR_SET_PDEATHSIG, request.death_signal)
        if os.getppid() != request.parent:
            os.kill(os.getpid(), request.death_signal)
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    if request.new_session:
        os.setsid()
    if request.umask >= 0:
        os.umask(request.umask)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(request.environment.get(UNBUFFERED)))  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = request.cwd
    sys.argv = ["-m", *request.arguments]
    sys.orig_argv = [sys.executable, "-m", request.module, *request.arguments]
    _write_title(sys.orig_argv)


def _helped() -> tuple[Request, list[int]] | None:
    """Give ourselves a helper: None here, and in each process that it forks what that has to become."""
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        adopt(ours)
        return None
    ours.close()
    _write_title([TITLE])
    with Path(os.devnull).open("r+b", buffering=0) as null:
        for number in range(3):
            os.dup2(null.fileno(), number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who we fork for
    return _serve(theirs)


def main() -> NoReturn:
    """Import everything, fork when asked; in what is forked, run the program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    _parse_the_example()
    gc.collect()
    gc.freeze()  # no collection in what is forked walks and copies these pages
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        sys.exit("a module that was imported has started a thread")
    asked: tuple[Request, list[int]] | None = _serve(socket.socket(fileno=int(sys.argv[1])))
    while asked is not None:
        request, files = asked
        _become(request, files)
        asked = _helped() if PROGRAMS[request.module] else None
    status = _run(request.module)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # taking apart all that was imported would take a tenth of a second


def _run(module: str) -> int:
    """The program to its end, as Python would run it; returns the exit status."""
    status: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as Python does it
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    return (status or 0) & 0xFF


if __name__ == "__main__":
    main()
