"""Sources: whose they are, and whether two patterns over them have one in common."""

from __future__ import annotations

from functools import cache

from mesh.subjects import Glob


def is_below(root: str, source: str) -> bool:
    """Whether *source* is *root* or below it: `/crm` and `/crm/eu`, not `/crmx` nor `/crm/../hr`."""
    return (source == root or source.startswith(root + "/")) and is_plain(source)


def is_plain(source: str) -> bool:
    """Whether no segment of *source* is `.` or `..`, also percent-encoded: another reader might resolve them."""
    if "." not in source and "%2" not in source:
        return True
    path = source.partition("?")[0].partition("#")[0].replace("%2e", ".").replace("%2E", ".").replace("%2f", "/")
    return not any(segment in (".", "..") for segment in path.replace("%2F", "/").split("/"))


def sources_meet(one: Glob, two: Glob) -> bool:
    """Whether some source is in both globs."""
    mine, theirs = one.segments, two.segments

    @cache
    def meet(i: int, j: int) -> bool:
        """Whether the rests from *i* and *j* have a text in common."""
        if i == len(mine) or j == len(theirs):
            return i == len(mine) and j == len(theirs)
        a, b = mine[i], theirs[j]
        if "**" in (a, b):  # one segment together; then each `**` goes on or ends
            return meet(i + 1, j + 1) or (a == "**" and meet(i, j + 1)) or (b == "**" and meet(i + 1, j))
        literal = a == b or ("*" in (a, b) and "" not in (a, b))
        return literal and meet(i + 1, j + 1)

    return meet(0, 0)
