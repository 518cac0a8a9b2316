"""The data of an event: how a body of some media type becomes `data` or `data_base64`, and what base64 may be.

Source: CloudEvents JSON event format 1.0.2, 3.1.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import TYPE_CHECKING, Any

from mesh.attributes import describe, refuse
from mesh.errors import BadAttribute, UnsupportedMediaType
from mesh.jsontext import decode_value, not_json

if TYPE_CHECKING:
    from mesh.attributes import Limits


def set_data(fields: dict[str, Any], body: bytes, media: str, limits: Limits) -> None:
    """Put *body* into *fields* as *media* asks: JSON parsed, `text/*` as a string, anything else as `data_base64`.

    Raises:
        NotJson: The body is not what *media* says.
        TooDeep: JSON nests deeper than the limit, the event around it counted.
        UnsupportedMediaType: A structured event, or a charset other than UTF-8.
    """
    kind, _, parameters = media.lower().partition(";")
    kind = kind.strip(" \t")
    if kind.startswith("application/cloudevents"):
        raise UnsupportedMediaType(
            "the body says it is a structured event",
            expected="the type of the data alone",
            got="application/cloudevents",
        )
    text = kind.startswith("text/")
    json = kind.endswith(("/json", "+json"))
    if text or json:
        _check_charset(parameters)
    if json:
        fields["data"] = decode_value(body, max_depth=limits.max_depth - 1)
    elif text:
        try:
            fields["data"] = body.decode()
        except UnicodeDecodeError as error:
            not_json(body, error)
    else:
        fields["data_base64"] = b64encode(body).decode()


def _check_charset(parameters: str) -> None:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip(" \t").partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("the charset is not UTF-8", expected="charset=utf-8", got="another charset")


def check_base64(fields: dict[str, Any]) -> None:
    """`data_base64` is base64 text and stands alone. Raises BadAttribute."""
    text = fields["data_base64"]
    if text is None:
        del fields["data_base64"]
        return
    if fields.get("data") is not None:
        raise BadAttribute(
            "the event has both `data` and `data_base64`", expected="one of them", got="both", next="leave one out"
        )
    fields.pop("data", None)
    try:
        if type(text) is not str:
            refuse("data_base64", text)
        a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError):
        raise BadAttribute(
            "`data_base64` is not base64", expected="RFC 4648 base64 with padding", got=describe(text)
        ) from None
