"""Then and now: a stored copy, masked when it was published, with whatever is stricter today applied to it.

At each place of the copy two views are asked, the one it was made in (*then*) and the one its reader has *now*:

* what *now* masks no stricter than *then*, or in the same way, is left as it is;
* what *now* drops or redacts goes;
* a value still in its original form (*then* clear) that *now* reads without a key (partial, generalize, truncate-ip) is
  masked now;
* everything else is redacted: no reader holds keys, and a value that was masked once cannot be read again;
* a container with nothing classified found inside, by *now*, is one value under *now*'s `otherwise`.

Source: design section 4, Then and now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from mesh.attributes import RESERVED
from mesh.errors import BadPattern
from mesh.policy import paths as walk
from mesh.policy.actions import DROPPED, Masker, drop, redact
from mesh.policy.judge import AS_THEY_ARE, Judge, Judged, Pair, same_or_looser
from mesh.policy.mask import keyless
from mesh.policy.masktable import CLEAR, Mask, MaskTable
from mesh.policy.model_masks import STRICTNESS
from mesh.policy.paths import Path, Position
from mesh.policy.walkers import CONTAINERS, UNMET, put

_NOT_THE_SENDERS: Final = RESERVED | {"partitionkey", "event"}  # what a copy has instead of, or beyond, the event
SPARE_SPOTS: Final = (
    4096  # kept, beyond one for each step of the paths; more are worked out again: no event makes it grow
)

Places = frozenset[Position]


class Side(NamedTuple):
    """What one revision says of a type in a view: its classifications (paths and their tags) and the view's masks."""

    classified: tuple[Pair, ...]
    table: MaskTable


class Tightening:
    """What makes a stored copy as strict as today. Made once per (revision, type, view), then shared.

    Args:
        then: By the revision and in the view the copy was made in.
        now: By the revision in force, in the view its reader has.

    Attributes:
        identity: True where nothing can change; False says nothing.
    """

    def __init__(self, then: Side, now: Side) -> None:
        self._then = Judge(then.classified, then.table)
        self._now = Judge(now.classified, now.table)
        self.identity = same_or_looser(self._then, self._now)
        self._spots: dict[tuple[Places, Places], _Spot] = {}
        self._max_spots = SPARE_SPOTS + sum(len(p.steps) + 1 for p in (*self._then.paths, *self._now.paths))
        self._otherwise = _plain(now.table.otherwise)
        self._drops = now.table.otherwise[0] == "drop"
        self._dropped = then.table.otherwise[0] == "drop"

    def apply(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The copy as it may be shown today: a fresh dict at the top; *fields* is not changed.

        Args:
            fields: Of the stored copy, attributes and `data` or `data_base64`.
        """
        shown = dict(fields)
        if self.identity:
            return shown
        top = self._entered(self._spot(self._then.begin(), self._now.begin()))
        for name, value in fields.items():
            if name in AS_THEY_ARE:
                continue
            masked = self._value(top.member("data" if name == "data_base64" else name), value)
            if masked is UNMET:
                masked = value if self._otherwise is None else self._otherwise(value)
            if masked is not value:
                put(name, masked, shown)
        return shown

    def rows_readable(self, paths: Iterable[str]) -> bool:
        """Whether a row filter can be asked of the copy: everything that it reads was clear *then*.

        Args:
            paths: `Condition.fields`: `data.country`, `data.items[*].sku`, `event.type`.
        """
        return all(self._readable(text) for text in paths)

    def _readable(self, text: str) -> bool:
        try:
            path = Path.parse(text.removeprefix("event."))
        except BadPattern:  # `event.**`
            return False
        return path.root not in _NOT_THE_SENDERS and self._then.wholly_clear(path)

    # --- one value ---------------------------------------------------------------------------------------------------

    def _value(self, spot: _Spot, value: Any) -> Any:
        kind = type(value)
        if kind in CONTAINERS:
            if spot.closed:
                return value if spot.whole is None else spot.whole(value)
            if not spot.now:
                return UNMET
            entered = self._entered(spot)
            return self._members(entered, value) if kind is dict else self._items(entered, value)
        return value if spot.act is None else spot.act(value)

    def _members(self, spot: _Spot, value: dict[str, Any]) -> Any:
        out = value
        met = spot.classified
        other, member_of = spot.other, (spot.names or {}).get
        for name, item in value.items():
            member = member_of(name, other)
            met = met or member.classified
            if type(item) in CONTAINERS:
                masked = self._value(member, item)
                met = met or masked is not UNMET
                masked = self._settled(masked, item)
            elif member.act is None:
                continue
            else:
                masked = member.act(item)
            if masked is not item:
                out = value.copy() if out is value else out
                if masked is DROPPED:
                    del out[name]
                else:
                    out[name] = masked
        return self._left(spot, value, out, met=met)

    def _items(self, spot: _Spot, value: list[Any]) -> Any:
        below = spot.item
        pairs = [(item, self._value(below, item)) for item in value]
        met = spot.classified or any(
            below.classified or (masked is not UNMET and type(item) in CONTAINERS) for item, masked in pairs
        )
        out = [kept for item, masked in pairs if (kept := self._settled(masked, item)) is not DROPPED]
        return self._left(spot, value, out, met=met)

    def _settled(self, masked: Any, item: Any) -> Any:
        """*masked*, or what becomes of a container in which nothing classified was found."""
        if masked is not UNMET:
            return masked
        return item if self._otherwise is None else self._otherwise(item)

    def _left(self, spot: _Spot, value: Any, out: Any, *, met: bool) -> Any:
        """*out*, which is left of the container *value*; under `otherwise: drop` one that came to be empty goes."""
        if not (met or spot.was_met):
            return UNMET
        return DROPPED if self._drops and not out and (value or not self._dropped) else out

    # --- the two automata, in step -----------------------------------------------------------------------------------

    def _spot(self, then: Places, now: Places) -> _Spot:
        spot = self._spots.get((then, now))
        if spot is None:
            if len(self._spots) >= self._max_spots:
                self._spots.clear()
            spot = self._spots[then, now] = self._made(then, now)
        return spot

    def _made(self, then: Places, now: Places) -> _Spot:
        was, judged = self._then.judge(then), self._now.judge(now)
        spot = _Spot(then, now)
        spot.act = _stricter(was, judged)
        spot.classified = bool(judged.paths)
        spot.closed = judged.container is not None
        spot.whole = None if judged.container is None else _plain(judged.container)
        # A container that only shows because something classified was found in it shows now for the same reason.
        spot.was_met = self._then.table.otherwise != CLEAR and _named(self._then, then) <= _named(self._now, now)
        return spot

    def _entered(self, spot: _Spot) -> _Spot:
        """*spot* with the ways on from it."""
        if spot.names is None:
            then_names, then_other, then_item = walk.steps_from(self._then.paths, spot.then)
            now_names, now_other, now_item = walk.steps_from(self._now.paths, spot.now)
            spot.other, spot.item = self._spot(then_other, now_other), self._spot(then_item, now_item)
            spot.names = {
                name: self._spot(then_names.get(name, then_other), now_names.get(name, now_other))
                for name in {*then_names, *now_names}
            }
        return spot


class _Spot:
    """A place in the copy, as both views see it.

    Attributes:
        act: Makes a scalar as strict as now; None leaves it.
        classified: Whether some path of now meets here.
        closed: Whether now does not look into a container here; `whole` is then what it becomes.
        was_met: Whether a container here holds something classified now, though the copy may no longer show it.
        names, other, item: Where members and items lead, once it was entered.
    """

    __slots__ = ("act", "classified", "closed", "item", "names", "now", "other", "then", "was_met", "whole")

    def __init__(self, then: Places, now: Places) -> None:
        self.then = then
        self.now = now
        self.act: Masker | None = None
        self.classified = self.closed = self.was_met = False
        self.whole: Masker | None = None
        self.names: dict[str, _Spot] | None = None
        self.other = self.item = self

    def member(self, name: str) -> _Spot:
        """Where the member *name* leads."""
        return self.other if self.names is None else self.names.get(name, self.other)


def _stricter(was: Judged, judged: Judged) -> Masker | None:
    """What makes a scalar under *was* as strict as *judged* says; None where it is so already."""
    then, now = was.chosen, judged.chosen
    if then == now or STRICTNESS[now[0]] < STRICTNESS[then[0]]:
        return None
    if now[0] == "drop":
        return drop
    return keyless(now) if then == CLEAR else redact


def _plain(mask: Mask) -> Masker | None:
    """What clear, redact and drop make of anything."""
    return None if mask == CLEAR else drop if mask[0] == "drop" else redact


def _named(judge: Judge, places: Places) -> set[tuple[str, int]]:
    return {(judge.paths[index].text, matched) for index, matched in places}
