"""What a view makes of each tag, and of several together: the strictest mask wins.

Source: design section 4, Masking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from mesh.policy.model import STRICTNESS, MaskLine, With
from mesh.subjects import Glob

Mask: TypeAlias = tuple[str, With]
"""An action and its parameters: `("partial", With(style="email"))`."""

REDACT: Final[Mask] = ("redact", With())
_WHOLE = frozenset({"clear", "redact", "drop"})  # the actions that need not read a value


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
        self._lines = [([Glob.tag(t) for t in line.tags], (str(line.action), line.params)) for line in lines]
        self.all_clear = otherwise == "clear" and all(mask[0] == "clear" for _, mask in self._lines)
        self._of: dict[str, tuple[Mask, ...]] = {}

    def candidates(self, tag: str) -> tuple[Mask, ...]:
        """The masks of the lines that name *tag*, else `otherwise`. Ask only for tags of documents: they are kept."""
        masks = self._of.get(tag)
        if masks is None:
            named = dict.fromkeys(mask for globs, mask in self._lines if any(g.matches(tag) for g in globs))
            masks = self._of[tag] = tuple(named) or (self.otherwise,)
        return masks

    def choose(self, exact: Iterable[str], subtree: Iterable[str]) -> tuple[Mask, ...]:
        """The strictest masks for a value with these tags; more than one is a contradiction.

        Args:
            exact: Tags of the paths that name the value.
            subtree: Tags of the `.**` paths that cover it: any but clear, redact and drop act through those as redact.
        """
        masks = {mask: None for tag in exact for mask in self.candidates(tag)}
        for tag in subtree:
            for mask in self.candidates(tag):
                masks[mask if mask[0] in _WHOLE else REDACT] = None
        if not masks:
            return (self.otherwise,)
        top = max(STRICTNESS[action] for action, _ in masks)
        return tuple(mask for mask in masks if STRICTNESS[mask[0]] == top)

    def domains(self, tags: Iterable[str]) -> frozenset[str]:
        """The pseudonym domains whose keys are needed for values that carry *tags*."""
        masks = (mask for tag in tags for mask in self.candidates(tag))
        return frozenset(params.domain for action, params in masks if action == "pseudonym" and params.domain)
