"""Policies whose text was parsed before are not parsed again: the YAML is four fifths of loading them.

Of one text the parser makes the same nodes each time, and nobody changes them. Everything that is done with the nodes
is done each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mesh.policy import load, nodes

TEXTS = 1_000


def once() -> Callable[[str], Any]:
    """Have this process parse each text once; returns what does."""
    names = vars(load)
    if names["compose"] is nodes.compose:
        names["compose"] = lru_cache(maxsize=TEXTS)(nodes.compose)
    parser: Callable[[str], Any] = names["compose"]
    return parser
