"""Room on the disk that is set aside while the spool holds something, and given up where the disk is full.

A full disk would otherwise end in a knot: to delete what the stream has taken SQLite has to write first. While the
reserve is given up nothing is added to the spool, so that all of it is for marks, deletions and the log's way into the
file. It is a file beside the spool, of bytes that mean nothing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RESERVE_BYTES = 8 * 1024 * 1024  # the log at its usual longest, 4 MiB, twice: as it is, and once it is in the file


class Reserve:
    """The reserve of one spool.

    Args:
        spool: The spool's file.
    """

    def __init__(self, spool: Path) -> None:
        self._file = spool.with_name(f"{spool.name}-reserve")

    @property
    def held(self) -> bool:
        """Whether the disk has set it aside."""
        try:
            return self._file.stat().st_size >= RESERVE_BYTES
        except FileNotFoundError:
            return False

    def take(self) -> None:
        """Have the disk set it aside.

        Raises:
            OSError: It does not; one of `opening.FULL` where there is no room.
        """
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _fill(descriptor)
        except BaseException:
            self.give_up()
            raise
        finally:
            os.close(descriptor)

    def give_up(self) -> None:
        """Let the disk have it."""
        self._file.unlink(missing_ok=True)


def _fill(descriptor: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        for at in range(0, RESERVE_BYTES, 1 << 16):  # a file system that allocates only what is written
            os.pwrite(descriptor, os.urandom(1 << 16), at)
        os.fsync(descriptor)
