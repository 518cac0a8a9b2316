"""What documents of every kind are written in: texts that have a grammar, lists of them, and how long each may be.

`texts.py` parses the texts; schemas, for editors and for Kubernetes, say of them what stands here.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from mesh.globs import MAX_SOURCE_CHARS
from mesh.policy import texts
from mesh.subjects import MAX_NAME_CHARS, NAME_RE

# --- bounds ----------------------------------------------------------------------------------------------------------

MAX_LIST = 256  # patterns, tags or rules in one list: a page nobody reads is a policy nobody checks
MAX_FIELDS = 1024  # classified paths in one document
MAX_TEXT_CHARS = 1000  # a reason, a contact
MAX_CONDITION_CHARS = 1000  # design section 4: expressions are bounded

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
Expression: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CONDITION_CHARS)]


# --- small grammars --------------------------------------------------------------------------------------------------

# What schemas say of texts that have a grammar; `check.py` parses them and says more. No look-around: RE2 knows none.
MOST_CHARS = "x-most-chars"  # becomes `maxLength`, which msgspec would give back the one of `Text`


def _grammar(pattern: str, most: int = MAX_TEXT_CHARS) -> Meta:
    return Meta(extra_json_schema={"pattern": f"^(?:{pattern})$", MOST_CHARS: most})


_NAME = NAME_RE.pattern
_TYPE_CHARS, _TAG_CHARS = 8 * 65 + 64, 8 * 65  # the longest there can be

Name: TypeAlias = Annotated[Text, _grammar(_NAME, MAX_NAME_CHARS)]
Agent: TypeAlias = Annotated[Text, _grammar(f"(?:{_NAME}/)?{_NAME}", 2 * MAX_NAME_CHARS + 1)]
TypeName: TypeAlias = Annotated[Text, _grammar(r"[a-z0-9_-]{1,64}(?:\.[a-z0-9_-]{1,64}){1,7}", _TYPE_CHARS)]
TypePattern: TypeAlias = Annotated[
    Text, _grammar(r"(?:(?:[a-z0-9_-]{1,64}|\*)\.){0,8}(?:[a-z0-9_-]{1,64}|\*|>)", _TYPE_CHARS)
]
Tag: TypeAlias = Annotated[Text, _grammar(texts.TAG_RE.pattern, _TAG_CHARS)]
TagPattern: TypeAlias = Annotated[
    Text, _grammar(r"(?:[a-z0-9_-]{1,64}|\*\*?)(?:\.(?:[a-z0-9_-]{1,64}|\*\*?)){0,7}", _TAG_CHARS)
]
SourcePattern: TypeAlias = Annotated[Text, Meta(extra_json_schema={MOST_CHARS: MAX_SOURCE_CHARS})]
RuleId: TypeAlias = Annotated[Text, _grammar(texts.RULE_RE.pattern, texts.MAX_RULE_ID_CHARS)]
Duration: TypeAlias = Annotated[Text, _grammar(texts.DURATION_RE.pattern, 11)]
Rate: TypeAlias = Annotated[Text, _grammar(texts.RATE_RE.pattern, 13)]
Instant: TypeAlias = Annotated[Text, _grammar(texts.RFC3339_RE.pattern, 35)]
SpiffeId: TypeAlias = Annotated[Text, _grammar(texts.SPIFFE_RE.pattern, 2048)]
Start: TypeAlias = Annotated[Text, _grammar(f"new|all|{texts.RFC3339_RE.pattern}", 35)]

Teams: TypeAlias = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_LIST)]
Agents: TypeAlias = Annotated[tuple[Agent, ...], Meta(min_length=1, max_length=MAX_LIST)]
TypePatterns: TypeAlias = Annotated[tuple[TypePattern, ...], Meta(min_length=1, max_length=MAX_LIST)]
TagPatterns: TypeAlias = Annotated[tuple[TagPattern, ...], Meta(min_length=1, max_length=MAX_LIST)]
Tags: TypeAlias = Annotated[tuple[Tag, ...], Meta(min_length=1, max_length=MAX_LIST)]
SourcePatterns: TypeAlias = Annotated[tuple[SourcePattern, ...], Meta(min_length=1, max_length=MAX_LIST)]


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of everything written in a document."""
