"""A clock that can be set from outside: of a process that this harness starts, never in the product.

The process adds what a file of eight bytes says, in nanoseconds, to every reading of the wall clock. Monotonic clocks
stay as they are.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

_NS = struct.Struct("<q")


def set_clock(file: Path, skew_s: float) -> None:
    """Put the clock of whoever reads *file* ahead by *skew_s* seconds, at once."""
    with file.open("r+b" if file.exists() else "w+b") as out:
        out.write(_NS.pack(round(skew_s * 1_000_000_000)))


_skew: mmap.mmap | None = None


def follow(file: Path) -> None:
    """From here on `time.time` and `time.time_ns` of this process are off by what *file* says."""
    global _skew  # noqa: PLW0603 - a process has one clock
    with file.open("rb") as source:
        _skew = mmap.mmap(source.fileno(), _NS.size, prot=mmap.PROT_READ)
    anticipate()


def anticipate() -> None:
    """Have what is imported from here on keep a clock that can still be told to `follow` a file."""
    if time.time_ns is not _time_ns:
        time.time_ns = _time_ns
        time.time = lambda: time.time_ns() / 1_000_000_000


_real_ns = time.time_ns


def _time_ns() -> int:
    return _real_ns() + (int(_NS.unpack_from(_skew)[0]) if _skew is not None else 0)
