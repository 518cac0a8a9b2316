"""What a view makes of each tag, and of several together: the strictest mask wins.

Source: design section 4, Masking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from msgspec.structs import replace

from mesh.policy.ciphers import cipher_name
from mesh.policy.generalize import V4_BITS, V6_BITS, edge_text
from mesh.policy.model_masks import STRICTNESS, MaskLine, With
from mesh.subjects import Glob

Mask: TypeAlias = tuple[str, With]
"""An action and its parameters: `("partial", With(style="email"))`. Equal ones do the same (see `mask_of`)."""

CLEAR: Final[Mask] = ("clear", With())
DROP: Final[Mask] = ("drop", With())
REDACT: Final[Mask] = ("redact", With())
_USUAL: Final = With()
_WHOLE = frozenset({"clear", "redact", "drop"})  # the actions that need not read a value


def is_secret(tag: str) -> bool:
    """Whether *tag* says that not even a part may show: `secret`, or below it."""
    return tag.partition(".")[0] == "secret"


def mask_of(line: MaskLine) -> Mask:
    """The mask of a line, written in one way: defaults filled in, teams in order."""
    params = line.params
    if line.action == "encrypt":
        params = replace(params, readers=tuple(sorted(set(params.readers or ()))))
    elif line.action == "partial" and params.style is None:
        params = replace(params, first=params.first or 0, last=params.last or 0)
    elif line.action == "truncate-ip":
        v4, v6 = params.v4, params.v6
        params = replace(params, v4=V4_BITS if v4 is None else v4, v6=V6_BITS if v6 is None else v6)
    return str(line.action), params


def strictest(masks: tuple[Mask, ...]) -> tuple[Mask, ...]:
    """Those of *masks* that no other is stricter than."""
    top = max(STRICTNESS[action] for action, _ in masks)
    return tuple(mask for mask in masks if STRICTNESS[mask[0]] == top)


def describe(mask: Mask) -> str:
    """*mask* in the words of a policy: `clear`, `partial email`, `pseudonym customer-contact`, `generalize date year`.

    Two masks read alike only where they do the same.
    """
    action, p = mask
    words = ""
    if action == "partial":
        words = p.style or f"first {p.first or 0}, last {p.last or 0}"
    elif action == "pseudonym":
        usual = p.algorithm == _USUAL.algorithm and p.bits == _USUAL.bits
        words = f"{p.domain}" if usual else f"{p.domain} ({p.algorithm}, {p.bits} bits)"
    elif action == "encrypt":
        words = f"{p.mode} for {', '.join(p.readers or ())}"
    elif action == "generalize":
        words = _coarse(p)
    elif action == "truncate-ip":
        words = f"v4 {p.v4}, v6 {p.v6}"
    return f"{action} {words}" if words else action


def _coarse(params: With) -> str:
    if params.date is not None:
        return f"date {params.date}"
    if params.number is not None:
        return "number " + ", ".join(edge_text(edge) for edge in params.number)
    return f"geo {params.geo}"


class MaskTable:
    """One view's masks.

    Args:
        lines: The view's mask lines.
        otherwise: For what no line names: `clear`, `redact` or `drop`.

    Attributes:
        otherwise: That, as a mask.
        all_clear: Whether everything shows, whatever its tags.
    """

    def __init__(self, lines: Iterable[MaskLine], otherwise: str) -> None:
        self.otherwise: Mask = (otherwise, With())
        self._lines = [([Glob.tag(t) for t in line.tags], mask_of(line)) for line in lines]
        self.all_clear = otherwise == "clear" and all(mask[0] == "clear" for _, mask in self._lines)
        self._of: dict[str, tuple[Mask, ...]] = {}

    def candidates(self, tag: str) -> tuple[Mask, ...]:
        """The masks of the lines that name *tag*, else `otherwise`. Ask only for tags of documents: they are kept."""
        masks = self._of.get(tag)
        if masks is None:
            named = dict.fromkeys(mask for globs, mask in self._lines if any(g.matches(tag) for g in globs))
            if is_secret(tag):  # a line that names it is refused; a pattern such as `**` may still reach it
                named = dict.fromkeys(REDACT if mask[0] == "partial" else mask for mask in named)
            masks = self._of[tag] = tuple(named) or (self.otherwise,)
        return masks

    def among(self, exact: Iterable[str], subtree: Iterable[str]) -> tuple[Mask, ...]:
        """Every mask that a value with these tags is under, each once.

        Args:
            exact: Tags of the paths that name the value.
            subtree: Tags of the `.**` paths that cover it: any but clear, redact and drop act through those as redact.
        """
        masks = {mask: None for tag in exact for mask in self.candidates(tag)}
        for tag in subtree:
            for mask in self.candidates(tag):
                masks[mask if mask[0] in _WHOLE else REDACT] = None
        return tuple(masks) or (self.otherwise,)

    def choose(self, exact: Iterable[str], subtree: Iterable[str]) -> tuple[Mask, ...]:
        """The strictest of those masks; more than one is a contradiction."""
        return strictest(self.among(exact, subtree))

    def domains(self, tags: Iterable[str]) -> frozenset[str]:
        """The pseudonym domains whose keys are needed for values that carry *tags*."""
        masks = (mask for tag in tags for mask in self.candidates(tag))
        return frozenset(params.domain for action, params in masks if action == "pseudonym" and params.domain)

    def ciphers(self, tags: Iterable[str]) -> frozenset[str]:
        """The names of the `encrypt` keys that are needed for values that carry *tags*."""
        masks = (mask for tag in tags for mask in self.candidates(tag))
        return frozenset(cipher_name(params) for action, params in masks if action == "encrypt")
