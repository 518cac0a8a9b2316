"""The trace an event belongs to: W3C Trace Context as `traceparent` and `tracestate` attributes, and as HTTP fields.

What an event carries it carries unchanged, from its sender's span to whoever handles it; what does not parse is left
out, and never refuses an event. An event that names no trace is given that of the request it came with, or of our own
span, where the mesh takes part in traces (`spans.py`).

Source: W3C Trace Context level 1, 3.2 (traceparent), 3.3 (tracestate), 4.2 and 4.3 (what to do with each); CloudEvents
distributed tracing extension: over several hops it is the starting trace, and middleware may add it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_STATE_CHARS: Final = 512  # 3.3.1.5: at least so many are to be propagated
_MAX_MEMBERS: Final = 32  # 3.3.1.1
_LONG_MEMBER_CHARS: Final = 128  # 3.3.1.5: what is longer goes first
_LONGEST_CHARS: Final = 16_384  # no list of 32 members is much longer, and a header block is not longer at all

# Version ff is invalid, so are all-zero ids; only versions after 00 may carry more.
_PARENT = (
    r"(?!ff)(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"|(?!00)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{0,200})?)"
)
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = rf"(?:{_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~])?"
_STATE = rf"(?=[ -~\t]{{1,{MAX_STATE_CHARS}}}\Z){_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,{_MAX_MEMBERS - 1}}}"

_SAMPLED = frozenset("13579bdf")  # 3.2.2.5: the lowest bit; the flags stand at the same place in every version

is_traceparent = re.compile(_PARENT).fullmatch
is_tracestate = re.compile(_STATE).fullmatch
_is_member = re.compile(_MEMBER).fullmatch


def sampled(traceparent: str) -> bool:
    """Whether whoever wrote a valid *traceparent* records its trace."""
    return traceparent[54:55] in _SAMPLED


def ids(traceparent: str) -> tuple[str, str]:
    """Trace id and span id of a valid *traceparent*."""
    return traceparent[3:35], traceparent[36:52]


def shortened(tracestate: object) -> str | None:
    """A well-formed list that is too long, without the members that 3.3.1.5 gives up first; None for anything else."""
    if not isinstance(tracestate, str) or not MAX_STATE_CHARS < len(tracestate) <= _LONGEST_CHARS:
        return None
    members = [member.strip(" \t") for member in tracestate.split(",")]
    if len(members) > _MAX_MEMBERS or not all(map(_is_member, members)):
        return None
    while sum(map(len, members)) + len(members) - 1 > MAX_STATE_CHARS:
        long = [at for at, member in enumerate(members) if len(member) > _LONG_MEMBER_CHARS]
        del members[long[-1] if long else -1]
    return ",".join(members) or None


def of_request(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The trace of an HTTP request, as attributes; empty where it has none that parses.

    Args:
        fields: Header fields, names in any case, in their order.
    """
    parents, states = [], []
    for name, value in fields:
        lowered = name.lower()
        if lowered == TRACEPARENT:
            parents.append(value.strip(" \t"))
        elif lowered == TRACESTATE:
            states.append(value.strip(" \t"))
    if len(parents) != 1 or not is_traceparent(parents[0]):
        return {}  # 3.2: one field. Which of two was meant nobody can say
    state = ",".join(filter(None, states))  # 3.3: several fields are one list, in their order (RFC 9110 5.3)
    kept = state if is_tracestate(state) else shortened(state)
    return {TRACEPARENT: parents[0], **({TRACESTATE: kept} if kept else {})}
