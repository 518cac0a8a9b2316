"""Globs over tags (`pii.contact.*`, split at `.`) and sources (`/salesforce/**`, split at `/`).

`*` is one segment that is not empty, `**` one or more of any kind, anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mesh.errors import BadPattern

MAX_TAG_SEGMENTS = 8  # as deep as a type
MAX_SOURCE_CHARS = 256  # of a source, and so of a pattern over sources

_TAG_SEGMENT_RE = re.compile(r"[a-z0-9_-]{1,64}")
_SOURCE_SEGMENT_RE = re.compile(r"(?:[A-Za-z0-9._~:?#\[\]@!$&'()+,;=-]|%[0-9A-Fa-f]{2})*")
_SHOWN_CHARS = 80  # how much of a wrong pattern an error repeats


@dataclass(frozen=True, slots=True, order=True)
class Glob:
    """A set of tags (`pii.contact.*`) or of sources (`/salesforce/**`)."""

    text: str
    separator: str
    segments: tuple[str, ...] = field(compare=False, repr=False)

    @classmethod
    def tag(cls, text: str) -> Glob:
        """A pattern over tags: up to 8 segments, `[a-z0-9_-]{1,64}`, `*` or `**`. Raises BadPattern."""
        segments = tuple(text.split(".")) if isinstance(text, str) else ("",)
        fine = len(segments) <= MAX_TAG_SEGMENTS and all(
            s in ("*", "**") or _TAG_SEGMENT_RE.fullmatch(s) for s in segments
        )
        return cls._checked(text, ".", segments, fine=fine, example="pii.contact.*, pci.**")

    @classmethod
    def source(cls, text: str) -> Glob:
        """A pattern over sources, split at `/`; a literal `*` cannot be asked for. Raises BadPattern."""
        segments = tuple(text.split("/")) if isinstance(text, str) else ("",)
        fine = isinstance(text, str) and 0 < len(text) <= MAX_SOURCE_CHARS
        fine = fine and all(s in ("*", "**") or _SOURCE_SEGMENT_RE.fullmatch(s) for s in segments)
        return cls._checked(text, "/", segments, fine=fine, example="/salesforce/**, /crm/*/eu")

    @classmethod
    def _checked(cls, text: str, separator: str, segments: tuple[str, ...], *, fine: bool, example: str) -> Glob:
        if not fine:
            raise BadPattern(
                "the pattern is outside the grammar",
                expected=f"segments joined by `{separator}`, each literal, `*` (one) or `**` (one or more)",
                got=repr(text[:_SHOWN_CHARS]) if isinstance(text, str) else type(text).__name__,
                next=f"write it like {example}",
            )
        return cls(text, separator, segments)

    @property
    def exact(self) -> str | None:
        """The one text this glob takes, or None where it takes more."""
        return None if "*" in self.segments or "**" in self.segments else self.text

    def matches(self, text: str) -> bool:
        """Whether *text* is in the set. Time grows with segments of both, however many `**` there are."""
        mine, theirs = self.segments, text.split(self.separator)
        i = j = 0
        star = mark = -1  # the last `**` met, and how far its run reaches
        while j < len(theirs):
            if i < len(mine) and mine[i] == "**":
                star, mark = i, j
                i, j = i + 1, j + 1
            elif i < len(mine) and (mine[i] == theirs[j] or (mine[i] == "*" and theirs[j] != "")):
                i, j = i + 1, j + 1
            elif star >= 0:
                mark += 1
                i, j = star + 1, mark + 1
            else:
                return False
        return i == len(mine)

    def __str__(self) -> str:
        """As written."""
        return self.text
