"""A file replaced whole (a reader, and a crash, find the old content or the new, never half of either), or locked."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Make *path* hold *content*, mode 0600, and have the disk keep it; its directory is there already.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):  # the fault that counts is the one below
            Path(name).unlink()
        raise


def locked(descriptor: int) -> bool:
    """Lock an open file for this process, if no other has it; the kernel frees it however its holder ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
