"""Masks that keep the last digits of a number: what they may be made of, whichever twin runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mesh import native
from mesh.policy.actions import REDACTED, last_digits

TWINS = {"python": native.IN_PYTHON["last_digits"], "runs": last_digits}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize(
    ("keep", "least", "most", "sign"),
    [
        (-1, 7, 15, ""),
        (8, 7, 15, ""),
        (2, 15, 7, ""),
        (2, 7, 33, ""),
        (2, 7, 15, "++"),
        (2, 7, 15, "\N{PLUS-MINUS SIGN}"),
    ],
)
def test_a_mask_of_digits_that_makes_no_sense_is_refused(
    twin: Callable[..., Any], keep: int, least: int, most: int, sign: str
) -> None:
    """What is kept is never more than there is, and a sign is one character."""
    with pytest.raises(ValueError, match="keep <= least <= most <= 32"):
        twin(keep, least, most, sign)


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_a_mask_of_digits_at_its_limits(twin: Callable[..., Any]) -> None:
    """The widest there is keeps as many digits as it may have."""
    mask = twin(32, 32, 32, "+")
    assert mask("+" + "12345678" * 4) == "***" + "12345678" * 4
    assert mask("1" * 31) == mask("1" * 33) == REDACTED
    none = twin(0, 0, 1, "")
    assert (none(""), none(" "), none("7"), none("x"), none("77")) == ("***", "***", "***", REDACTED, REDACTED)
