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


def follow(file: Path) -> None:
    """From here on `time.time` and `time.time_ns` of this process are off by what *file* says."""
    with file.open("rb") as source:
        skew = mmap.mmap(source.fileno(), _NS.size, prot=mmap.PROT_READ)
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(_NS.unpack_from(skew)[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1_000_000_000
