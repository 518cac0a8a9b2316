"""An event as the library makes it, from what its caller says and what the caller is handling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.event import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.inbound import Admitted


def compose(
    attributes: Mapping[str, object], extensions: Mapping[str, str | int | bool] | None, cause: Admitted | None
) -> bytes:
    """An event as JSON.

    Args:
        attributes: CloudEvents attributes and `data`; what is None is left out.
        extensions: More attributes, which have the last word.
        cause: The event that is being handled: its `correlationid` is inherited, and `causationid` names it.

    Raises:
        TypeError: The data is not made of JSON values.
    """
    fields: dict[str, Any] = {"specversion": "1.0"}
    fields.update({name: value for name, value in attributes.items() if value is not None})
    if cause is not None:
        fields["correlationid"] = cause.correlationid
        fields["causationid"] = cause.id
    fields.update(extensions or {})
    return encode(fields)
