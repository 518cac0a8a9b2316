"""What becomes of a field: the actions a mask line can name, how strict each is, and its parameters."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, field

from mesh.policy.model_words import Name, Spec, TagPatterns, Teams

Action: TypeAlias = Literal[
    "clear", "encrypt", "pseudonym", "partial", "generalize", "truncate-ip", "redact", "drop"
]  # fmt: skip
Otherwise: TypeAlias = Literal["clear", "redact", "drop"]

STRICTNESS: dict[str, int] = {
    "clear": 0, "encrypt": 1, "pseudonym": 2, "partial": 3, "generalize": 4, "truncate-ip": 4, "redact": 5, "drop": 6,
}  # fmt: skip
WITH_KEYS: dict[str, frozenset[str]] = {
    "partial": frozenset({"style", "first", "last"}),
    "pseudonym": frozenset({"domain", "algorithm", "bits"}),
    "encrypt": frozenset({"mode", "readers"}),
    "generalize": frozenset({"date", "number", "geo"}),
    "truncate-ip": frozenset({"v4", "v6"}),
}


class With(Spec, frozen=True):
    """Parameters of one mask action.

    partial       style; or first, last: how many characters stay
    pseudonym     domain; algorithm, bits
    encrypt       mode; for: the teams that can open it
    generalize    date; or number: the edges of the buckets; or geo: how many decimals stay
    truncate-ip   v4, v6: how many bits stay
    """

    style: Literal["email", "phone", "iban", "pan"] | None = None
    first: Annotated[int, Meta(ge=0, le=64)] | None = None
    last: Annotated[int, Meta(ge=0, le=64)] | None = None
    domain: Name | None = None
    algorithm: Literal["blake2b", "hmac-sha256"] = "blake2b"
    bits: Annotated[int, Meta(ge=64, le=256, multiple_of=8)] = 128
    mode: Literal["deterministic", "random"] | None = None
    readers: Teams | None = field(name="for", default=None)
    date: Literal["year", "month", "day"] | None = None
    number: Annotated[tuple[float, ...], Meta(min_length=1, max_length=64)] | None = None
    geo: Annotated[int, Meta(ge=0, le=6)] | None = None
    v4: Annotated[int, Meta(ge=0, le=32)] | None = None
    v6: Annotated[int, Meta(ge=0, le=128)] | None = None


class MaskLine(Spec, frozen=True):
    """`{tags: [...], as: action, with: {...}}`: what becomes of a field that carries one of these tags."""

    tags: TagPatterns
    action: Action = field(name="as")
    params: With = field(name="with", default=With())
