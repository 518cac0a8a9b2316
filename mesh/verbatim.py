"""An event's text as it stands: what is proved of it need not be taken apart and written again.

Most events arrive as the very text that our encoder would write. Where that is sure, `verbatim` says so; `glimpse` then
reads no more than what is asked for, and `masked` writes a copy out of pieces of the text. Whatever is not sure goes
the other way: decode, `mesh.policy.walkers.shown`, encode. That is what these three mean, byte for byte.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, TypeAlias

from mesh import native
from mesh.attributes import MAX_STRING_CHARS
from mesh.jsontext import decode, decode_value, encode, extended
from mesh.policy.actions import REDACTED, Masker
from mesh.policy.walkers import Node, put, shown, unmet

MAX_NESTING: Final = 64  # containers, the outermost 1: deeper texts are never sure

Wanted: TypeAlias = "dict[str, Wanted] | None"
"""What is read of a value: None is all of it, a dict names the members of an object; no object is read whole."""


@native.twin
def verbatim(body: bytes, depth: int) -> bytes | None:  # noqa: ARG001 - the compiled one looks
    """The text of *body* as our encoder writes it, where that is *body* but for white space between its tokens.

    None where it is not, or not surely: duplicate names, numbers and strings that can be spelled otherwise, an object
    of more than 256 members, anything but one JSON object of no more than *depth* containers within each other (the
    outermost is 1, `MAX_NESTING` the most).
    """
    return None  # in Python looking would take longer than reading


@native.twin
def glimpse(text: bytes, wanted: Wanted) -> dict[str, Any]:
    """What *text*, which `verbatim` gave, is read into; of `data` only what *wanted* says, of all others everything."""
    fields = decode(text, max_depth=MAX_NESTING)
    if "data" in fields:
        fields["data"] = _only(fields["data"], wanted)
    return fields


@native.twin
def masked(  # noqa: PLR0917 - called once for each copy: names would take longer
    text: bytes,
    instead: dict[str, Any],
    top: dict[str, Node | None],
    elsewhere: Node,
    otherwise: Masker | None,
    behind: bytes = b"",
) -> bytes | None:
    """`encode` of what `shown` makes of *text*, which `verbatim` gave, with `put` as its *put*.

    Args:
        text: Of an event.
        instead: Values of fields that show as they are, in the place of what *text* has; no field is added.
        top: As for `shown`, and so are the next two.
        elsewhere: See there.
        otherwise: See there.
        behind: Members to put behind all others, as for `extended`.

    Returns:
        None where there is binary data: what hides it changes the name of the field.
    """
    fields = decode(text, max_depth=MAX_NESTING)
    if "data_base64" in fields:
        return None
    given = {name: instead.get(name, value) for name, value in fields.items()}
    made = encode(shown(given, {**top, **dict.fromkeys(instead)}, elsewhere, otherwise, put))
    return extended(made, behind) if behind else made


def _only(value: Any, wanted: Wanted) -> Any:
    if wanted is None or type(value) is not dict:
        return value
    return {name: _only(item, wanted[name]) for name, item in value.items() if name in wanted}


if native.compiled is not None:
    _value = partial(decode_value, max_depth=MAX_NESTING)
    native.compiled.splicing_with(unmet, REDACTED, MAX_STRING_CHARS, encode, _value)
