"""Was anything lost from the end of a write-ahead log? Pure: the file's bytes come in.

SQLite takes a log up to its first frame that does not check, and says nothing of what lies behind it. That is right
for a commit that was cut short, of which nobody was told. It would be wrong for commits that were synced, and damaged
later: those are followed by others, for a commit is synced before the next one is begun. So:

    from the first frame that does not check             means
    no end of a commit, or one                           cut short by a crash: undone, as it should be
    the ends of two commits of the same log, or more     damage: what was synced is gone, so nobody may go on silently
    a header that does not check, and frames             damage

One end may have frames of the same log behind it: a commit that was cut short is written over by the next one, and what
is longer of it stays. What cannot be told apart is damage within the very last commit, or to the mark that ends the one
before it, and a log that lost its end: all of these look cut short.

Source: https://www.sqlite.org/fileformat2.html, section 4.1, WAL File Format.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
MAGIC = 0x377F0682  # the low bit says that checksums are big-endian

_header = struct.Struct(">8I")
_frame = struct.Struct(">6I")
_Sum = tuple[int, int]


def damaged(log: bytes) -> bool:
    """Whether commits that were synced are missing from what SQLite will recover.

    Args:
        log: The whole file; empty where there is none. 4 MiB take some 0.1 s.
    """
    if len(log) <= HEADER_BYTES:
        return False
    magic, _, page_bytes, _, salt1, salt2, *checksum = _header.unpack_from(log)
    order = ">" if magic & 1 else "<"
    running = _checksum(log[:24], order, (0, 0))
    if magic | 1 != MAGIC | 1 or running != tuple(checksum):
        return True
    sound, ended = True, False
    step = FRAME_HEADER_BYTES + page_bytes
    for at in range(HEADER_BYTES, len(log) - step + 1, step):
        _, pages_after, frame_salt1, frame_salt2, *checksum = _frame.unpack_from(log, at)
        same = (frame_salt1, frame_salt2) == (salt1, salt2)  # else an older log's, not written over yet
        if sound and same:
            running = _checksum(log[at : at + 8], order, running)
            running = _checksum(log[at + FRAME_HEADER_BYTES : at + step], order, running)
        sound = sound and same and running == tuple(checksum)
        if sound or not same:
            continue
        if pages_after and ended:
            return True
        ended = ended or pages_after != 0  # only the last frame of a commit says how large the database is then
    return False


def _checksum(content: bytes, order: str, running: _Sum) -> _Sum:
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    first, second = running
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
