"""Form-encoded bodies: strict, bounded, in order. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from mesh.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FIELDS = 1000  # Twilio sends about 50; each costs memory of its own


def parse(body: bytes) -> list[tuple[str, str]]:
    """The fields of a body in their order, empty values included.

    Raises:
        InputError: It is not UTF-8, has a part that is no `name=value`, or more than `MAX_FIELDS`.
    """
    try:
        text = body.decode()
        return parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise InputError(
            "the body is not a form",
            expected=f"name=value joined by &, percent-encoded UTF-8, at most {MAX_FIELDS} fields",
            got=f"{len(body)} bytes that do not parse",
        ) from None


def as_object(fields: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    """The fields as a JSON object; a name that comes more than once has an array."""
    found: dict[str, str | list[str]] = {}
    for name, value in fields:
        before = found.get(name)
        if before is None:
            found[name] = value
        else:
            found[name] = [*before, value] if isinstance(before, list) else [before, value]
    return found
