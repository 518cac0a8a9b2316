"""From a view as it was when a copy was made to a view as it is now: what of the copy may still be shown.

Source: design section 4, Then and now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mesh.policy.decide import NO_DATA
from mesh.policy.expressions import ConditionFailed
from mesh.policy.tighten import Side, Tightening

if TYPE_CHECKING:
    from mesh.policy.compile import Plans


class Bridge:
    """Tightens copies of one type. Made once for a revision, a type and the two views, then shared by its copies.

    Args:
        then: The plans that the copies were made under.
        view_then: The view that they are in.
        now: The plans in force.
        view_now: The view that their reader has now.
        type_: Logical.

    Raises:
        KeyError: One of the views is not in its plans.
    """

    __slots__ = ("_rows", "_tightening", "readable")

    def __init__(self, then: Plans, view_then: str, now: Plans, view_now: str, type_: str) -> None:
        self._tightening = Tightening(Side(*then.sides(view_then, type_)), Side(*now.sides(view_now, type_)))
        passed = {row.text for row in then.tenancy.rows[view_then]}
        self._rows = tuple(row for row in now.tenancy.rows[view_now] if row.text not in passed)
        self.readable = all(self._tightening.rows_readable(row.fields) for row in self._rows)

    def shows(self, fields: Mapping[str, Any]) -> bool:
        """Whether the row filters of now show this copy; one that reads what the copy does not show in clear says no.

        Args:
            fields: As stored, not tightened: what a filter reads is in its original form.
        """
        if not self._rows:
            return True
        if not self.readable:
            return False
        bindings = {"event": fields, "data": fields.get("data", NO_DATA)}
        try:
            return all(row(bindings) for row in self._rows)
        except ConditionFailed:
            return False

    def tighten(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The copy with whatever is stricter now applied; *fields* themselves where nothing is."""
        return fields if self._tightening.identity else self._tightening.apply(fields)
