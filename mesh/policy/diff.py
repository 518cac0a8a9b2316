"""What a change of the policies means: who sees more, who sees less, who may say more, and whom that needs to agree.

    widened     more than before: a field in clear that was masked, a type that was not read, a grant that lasts longer
    narrowed    less
    changed     neither contains the other; counts as widened

Exact for types, fields and masks: both sets of policies are asked about the same kinds of types (`atoms.py`).
Conditions (`when`, `rows`) are compared as texts, in normal form; what a changed one lets through shows in a replay
(`replay.py`). Values alone are compared: classifying something inside a container shows the names of its members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mesh.policy.atoms import Atom, atoms, in_words
from mesh.policy.changes import Change, Delivery, What, listed
from mesh.policy.compile import Plans
from mesh.policy.diff_rights import (
    agent_changes,
    changed_conditions,
    delivery_changes,
    owner_changes,
    publishing_changes,
    route_changes,
    trust_changes,
)
from mesh.policy.fields import Fields
from mesh.policy.joint import Place, TooManyPlaces, places
from mesh.policy.judge import Judge
from mesh.policy.masktable import Mask, describe
from mesh.policy.matrix import NONE, UNCLASSIFIED, Matrix, Reading, action_for, cell_at, unclassified
from mesh.policy.owners import owners_of_field, owners_of_rule, owners_of_view
from mesh.policy.paths import Path
from mesh.policy.texts import instant_text
from mesh.policy.wider import Kind, Sight, conjuncts, kind_of

__all__ = ["Change", "Delivery", "Diff", "compare"]


@dataclass(frozen=True, slots=True)
class Diff:
    """Every change of one tenant's policies.

    Attributes:
        tenant: Whose.
        changes: What it means, the widest first.
        conditions: Rules, routes and views (`rows of <view>`) whose condition is not the same; worth a replay.
        closed: What narrows beside, and is not worth telling: nothing shows inside what is now classified as a whole.
        delivery: Subscriptions of both that are delivered otherwise: in order, at another rate, with other retries.
    """

    tenant: str
    changes: tuple[Change, ...]
    conditions: tuple[str, ...]
    closed: tuple[Change, ...] = ()
    delivery: tuple[Delivery, ...] = ()

    @property
    def widens(self) -> bool:
        """Whether somebody may get more than before."""
        return any(change.widens for change in self.changes)

    @property
    def owners(self) -> tuple[str, ...]:
        """Everybody who must agree to what is not narrower."""
        return tuple(sorted({owner for change in self.changes if change.widens for owner in change.owners}))

    @property
    def narrowed_teams(self) -> frozenset[str]:
        """The teams that see less of something, or something else."""
        return frozenset(c.who for c in (*self.changes, *self.closed) if c.reads and c.kind != "widened")


def compare(old: Plans, new: Plans, now_ms: int) -> Diff:
    """Compare two sets of policies of one tenant.

    Args:
        old: In force.
        new: To come.
        now_ms: Unix milliseconds: when rights that end are asked for.
    """
    kinds = atoms([old.tenancy, new.tenancy])
    changes = [
        *_Reads(old, new, kinds, now_ms).changes(),
        *publishing_changes(old, new, kinds, now_ms),
        *route_changes(old, new),
        *agent_changes(old, new),
        *trust_changes(old, new),
        *owner_changes(old, new),
    ]
    order = {"widened": 0, "changed": 1, "narrowed": 2}
    merged = sorted(_merged(changes, kinds), key=lambda c: (order[c.kind], c.what, c.who, c.types, c.path))
    shown = tuple(change for change in merged if change.what != "closed")
    closed = tuple(change for change in merged if change.what == "closed")
    delivery = tuple(delivery_changes(old, new, now_ms))
    return Diff(new.bundle.tenant, shown, tuple(changed_conditions(old, new)), closed, delivery)


def _merged(changes: Iterable[Change], kinds: list[Atom]) -> Iterator[Change]:
    """*changes*, those that say the same of several types as one."""
    by_pattern = {atom.shown: atom for atom in kinds}
    alike: dict[Change, list[str]] = {}
    for change in changes:
        alike.setdefault(replace(change, types=()), []).extend(change.types)
    for change, types in alike.items():
        mine = [by_pattern[name] for name in types if name in by_pattern]
        told = in_words(mine, kinds) if len(mine) == len(types) else tuple(types)  # a route's are its own
        yield replace(change, types=tuple(dict.fromkeys(types)), told=told)


# --- reading ---------------------------------------------------------------------------------------------------------


class _Side:
    """One of the two sets of policies."""

    def __init__(self, plans: Plans, kinds: list[Atom], now_ms: int) -> None:
        self.plans = plans
        self.fields = Fields(plans)
        published = plans.tenancy.published()
        matrix = Matrix.of(plans, now_ms, among=(a for a in kinds if any(p.matches(a.witness) for p in published)))
        self.readings: dict[tuple[str, Atom], list[Reading]] = {}
        for reading in matrix.readings:
            if reading.view:
                self.readings.setdefault((reading.team, reading.atom), []).append(reading)

    def paths(self, readings: Iterable[Reading]) -> dict[str, Path | None]:
        """What is classified of the types that *readings* are about."""
        mine = (path for reading in readings for path in self.fields.paths(reading.view, reading.atom.witness))
        return {path.text: path for path in mine}

    def judges(self, readings: Iterable[Reading]) -> list[Judge]:
        """The view of each."""
        return [Judge(*self.plans.sides(reading.view, reading.atom.witness)) for reading in readings]

    def sights(self, readings: Iterable[Reading], path: Path | None) -> dict[Sight, str]:
        """How *readings* show *path* at one of its places, with words for each; `places` has the others."""
        found = {}
        for reading in readings:
            if path is None:
                cell = unclassified(self.plans, reading)
            else:
                cell = cell_at(reading, path.text, self.fields.judged(reading.view, reading.atom.witness, path))
            found[self.sight(reading, cell.mask)] = cell.words
        return found

    def sight(self, reading: Reading, mask: Mask) -> Sight:
        """How *reading* shows a value under *mask*."""
        rows = frozenset(part for row in self.plans.tenancy.rows[reading.view] for part in conjuncts(row))
        return Sight(mask, action_for(mask, reading.team), rows, reading.until_ms, reading.since_ms)


def _meaning(judge: Judge) -> tuple[object, ...]:
    """What *judge* goes by: two that have the same do the same everywhere."""
    tags = sorted({tag for mine in judge.tags for tag in mine})
    table = judge.table
    return judge.paths, judge.tags, table.otherwise, table.all_clear, [table.candidates(tag) for tag in tags]


def _masks(seen: list[Place]) -> str:
    return listed(describe(place.judged.chosen) for place in seen)


class _Reads:
    """What teams see, before and after."""

    def __init__(self, old: Plans, new: Plans, kinds: list[Atom], now_ms: int) -> None:
        self._old = _Side(old, kinds, now_ms)
        self._new = _Side(new, kinds, now_ms)
        self._teams = sorted({*old.tenancy.members, *new.tenancy.members})
        self._kinds = kinds

    def changes(self) -> Iterator[Change]:
        """Every difference, type by type."""
        for team in self._teams:
            for atom in self._kinds:
                before = self._old.readings.get((team, atom), [])
                after = self._new.readings.get((team, atom), [])
                if before and after:
                    told = list(self._fields(team, atom, before, after))
                    yield from told
                    yield from self._together(team, atom, before, after, told)
                elif before or after:
                    kind: Kind = "widened" if after else "narrowed"
                    was, now = _views(before), _views(after)
                    owners = self._owners(before, after, None)
                    yield Change(kind, "read", team, (atom.shown,), "", was, now, owners)

    def _fields(self, team: str, atom: Atom, before: list[Reading], after: list[Reading]) -> Iterator[Change]:
        paths: dict[str, Path | None] = {**self._old.paths(before), **self._new.paths(after), UNCLASSIFIED: None}
        for text, path in paths.items():
            was, now = self._old.sights(before, path), self._new.sights(after, path)
            kind = kind_of(was, now, Sight.within)
            if kind is None:
                continue
            owners = self._owners(before, after, path)
            words = (listed(was.values()), listed(now.values()))
            if words[0] != words[1]:
                yield Change(kind, "field", team, (atom.shown,), text, *words, owners)
            elif {s.rows for s in was} != {s.rows for s in now}:  # the same of every path: told once
                rows = (_rows(self._old, before), _rows(self._new, after))
                yield Change(kind, "rows", team, (atom.shown,), "", *rows, self._owners(before, after, None))
            else:
                terms = (_terms(before), _terms(after))
                yield Change(kind, "grant", team, (atom.shown,), "", *terms, self._owners(before, after, None))

    def _together(
        self, team: str, atom: Atom, before: list[Reading], after: list[Reading], told: list[Change]
    ) -> Iterator[Change]:
        """Places that show more, or less, than *told* says: several paths meet there, or one closes what is below."""
        old, new = self._old.judges(before), self._new.judges(after)
        if list(map(_meaning, old)) == list(map(_meaning, new)):
            return
        wider = {change.path for change in told if change.kind != "narrowed"}
        narrower = {change.path for change in told if change.kind != "widened"}
        known = {"widened": wider, "narrowed": narrower, "changed": wider & narrower}
        found: dict[tuple[What, str, str, str], Kind] = {}
        try:
            for was, now in places(old, new):
                paths = {path for place in (*was, *now) for path in place.judged.paths}
                if not paths:
                    continue
                seen = [self._old.sight(reading, one.mask) for reading, one in zip(before, was, strict=True)]
                then = [self._new.sight(reading, one.mask) for reading, one in zip(after, now, strict=True)]
                kind = kind_of(seen, then, Sight.within)
                words = (_masks(was), _masks(now))
                if kind is not None and paths.isdisjoint(known[kind]) and words[0] != words[1]:
                    closing = kind == "narrowed" and all(place.shut for place in now)
                    found.setdefault(("closed" if closing else "field", " + ".join(sorted(paths)), *words), kind)
        except TooManyPlaces:
            found["field", "the places where paths meet", "too many", "to compare"] = "changed"
        owners = self._owners(before, after, None)
        for (what, path, was_words, now_words), kind in found.items():
            yield Change(kind, what, team, (atom.shown,), path, was_words, now_words, owners)

    def _owners(self, before: list[Reading], after: list[Reading], path: Path | None) -> tuple[str, ...]:
        found: set[str] = set()
        for side, readings in ((self._old, before), (self._new, after)):
            for reading in readings:
                found |= owners_of_field(side.plans, reading.atom.witness, path)
                found |= owners_of_view(side.plans, reading.view) | owners_of_rule(side.plans, reading.rule)
        return tuple(sorted(found))


def _views(readings: list[Reading]) -> str:
    return listed(f"view {reading.view}" for reading in readings) if readings else NONE


def _rows(side: _Side, readings: list[Reading]) -> str:
    texts = (row.text for reading in readings for row in side.plans.tenancy.rows[reading.view])
    return listed(texts) or "every event"


def _terms(readings: list[Reading]) -> str:
    def one(reading: Reading) -> str:
        ends = "for good" if reading.until_ms is None else f"until {instant_text(reading.until_ms)}"
        return ends if reading.since_ms is None else f"{ends}, events since {instant_text(reading.since_ms)}"

    return listed(one(reading) for reading in readings)
