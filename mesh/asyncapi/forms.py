"""What each mask leaves of a value, as JSON Schema.

Every form but that of `clear` takes null and `[REDACTED]` too: that is what becomes of a value its action cannot read.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

from mesh.policy.actions import REDACTED
from mesh.policy.generalize import edge_text
from mesh.policy.masktable import Mask, describe
from mesh.policy.model_masks import With

_REDACTED: Final = r"\[REDACTED\]"
_STYLES: Final = {
    "email": r"[^@\s]\*\*\*@\*\*\*\.[A-Za-z]{2,24}",
    "phone": r"\*\*\*[0-9]{2}",
    "iban": r"[A-Z]{2}\*\*\*[A-Z0-9]{2}",
    "pan": r"\*\*\*[0-9]{4}",
}
_DATES: Final = {"year": "[0-9]{4}", "month": "[0-9]{4}-[0-9]{2}", "day": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}
_SAYS: Final = {
    "clear": "As the sender wrote it.",
    "encrypt": "A ciphertext; the teams that it is for open it.",
    "pseudonym": "A token: equal values give equal tokens.",
    "partial": "A part of it, the rest as `***`.",
    "generalize": "Coarser than it was.",
    "truncate-ip": "The network address alone.",
    "redact": "Hidden: a text is `[REDACTED]`, anything else null.",
    "drop": "Left out.",
}


def form(mask: Mask) -> dict[str, Any]:
    """What *mask* leaves of a value, whatever it was; of `drop` nothing stands in an event at all."""
    action, params = mask
    shape = _shape(action, params)
    return {**shape, "description": _SAYS[action], "x-mesh-mask": describe(mask)}


def _shape(action: str, params: With) -> dict[str, Any]:
    match action:
        case "clear":
            return {}
        case "redact" | "drop":
            return {"enum": [REDACTED, None]}
        case "pseudonym":
            return _text(rf"p[0-9a-f]{{4}}_[A-Za-z0-9_-]{{{-(-params.bits * 8 // 48)}}}")
        case "encrypt":
            return _text(r"e[0-9a-f]{4}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
        case "partial":
            return _text(_STYLES[params.style] if params.style else _ends(params.first or 0, params.last or 0))
        case "truncate-ip":
            return _text("[0-9a-f:.]+")
    return _coarse(params)


def _text(pattern: str) -> dict[str, Any]:
    return {"type": ["string", "null"], "pattern": f"^({pattern}|{_REDACTED})$"}


def _ends(first: int, last: int) -> str:
    return rf"[\s\S]{{{first}}}\*\*\*[\s\S]{{{last}}}"


def _coarse(params: With) -> dict[str, Any]:
    if params.date is not None:
        return _text(_DATES[params.date])
    if params.number is not None:
        edges = [edge_text(edge) for edge in params.number]
        buckets = [f"<{edges[0]}", *(f"{low}..{high}" for low, high in pairwise(edges)), f">={edges[-1]}"]
        return _text("|".join(re.escape(bucket) for bucket in buckets))
    number = r"-?[0-9]{1,3}(\.[0-9]{1,20})?"
    return {"type": ["number", "string", "null"], "pattern": f"^({number},{number}|{_REDACTED})$"}
