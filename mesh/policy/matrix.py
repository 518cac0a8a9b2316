"""Who sees what: every team, every kind of types, every classified field, in one exact table.

Types are cut into atoms (`atoms.py`) and one witness of each is asked of `Plans`, so the table cannot say anything but
what agents enforce. Fields are all the places that classified paths lead to (`reach.py`), each named as `explain` names
it, by the paths that meet there; and `unclassified` for everything else.

What depends on an event's content is left open: a reader may be shown less by row filters, denies with a condition and
moves, and never more than the table says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from mesh.policy.atoms import Atom, atoms
from mesh.policy.compile import Plans
from mesh.policy.fields import Fields
from mesh.policy.judge import Judged
from mesh.policy.masktable import CLEAR, Mask, describe
from mesh.policy.model_masks import STRICTNESS
from mesh.subjects import Pattern, versioned

UNCLASSIFIED: Final = "unclassified"
NONE: Final = "none"  # what a team sees that has no read

Enforced = Literal["nats", "agent only"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One team and one kind of types.

    Attributes:
        view: In which it reads them; empty where it does not.
        rule: The grant, or the deny in its way, or None.
        enforced: Where it reads nothing: whether NATS alone keeps it from the copies.
        rows: Whether a row filter may show it less.
        until_ms: When the grant ends, in Unix milliseconds, or None.
        since_ms: From when on it opens stored events, in Unix milliseconds, or None.
    """

    team: str
    atom: Atom
    view: str
    rule: str | None
    enforced: Enforced = "nats"
    rows: bool = False
    until_ms: int | None = None
    since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One field as one team sees it.

    Attributes:
        reading: Team, types and view.
        path: The paths of Classifications that meet there, joined by ` + `, or `unclassified`.
        tags: All that meet there.
        mask: Chosen for it.
        action: Of the mask; `clear` where the team can open what is encrypted.
        paths: Those that meet there, one by one.
    """

    reading: Reading
    path: str
    tags: tuple[str, ...]
    mask: Mask
    action: str
    paths: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The mask for a person: `partial email`, `encrypt deterministic for billing (opens)`."""
        return describe(self.mask) + (" (opens)" if self.mask[0] == "encrypt" and self.action == "clear" else "")

    @property
    def rank(self) -> int:
        """How strict: 0 is clear."""
        return STRICTNESS[self.action]


@dataclass(frozen=True, slots=True)
class Guess:
    """A team that can test guesses: it reads tokens of a domain, and may publish what is masked in it.

    `rule` is the grant it reads the tokens by, `tags` are those of the fields it can guess.
    """

    team: str
    domain: str
    types: str
    tags: tuple[str, ...]
    rule: str | None


@dataclass(frozen=True, slots=True)
class Publishing:
    """An agent that may publish these types from some source, whatever the conditions of its rules."""

    agent: str
    team: str
    atom: Atom


@dataclass(frozen=True, slots=True)
class Matrix:
    """All of it, of one tenant at one time."""

    tenant: str
    atoms: tuple[Atom, ...]
    readings: tuple[Reading, ...]
    cells: tuple[Cell, ...]
    publishing: tuple[Publishing, ...]
    guesses: tuple[Guess, ...]

    @classmethod
    def of(cls, plans: Plans, now_ms: int, *, among: Iterable[Atom] | None = None, cuts: Iterable[str] = ()) -> Matrix:
        """Work it out.

        Args:
            plans: Of the tenant.
            now_ms: Unix milliseconds, for rights that end.
            among: The kinds of types to ask for; the tenant's own where none are given.
            cuts: Patterns that a question will be about.
        """
        kinds = atoms([plans.tenancy], [Pattern.parse(c) for c in cuts]) if among is None else list(among)
        readings: list[Reading] = []
        for team in sorted(plans.tenancy.members):
            reader = _Reader(plans, team, now_ms)
            for atom in kinds:
                readings.extend(reader.readings(atom))
        fields = Fields(plans)
        cells = tuple(cell for reading in readings if reading.view for cell in _cells(plans, fields, reading))
        publishing = tuple(_publishing(plans, kinds, now_ms))
        guesses = tuple(_guesses(plans, cells, publishing))
        return cls(plans.bundle.tenant, tuple(kinds), tuple(readings), cells, publishing, guesses)

    def only(self, type_: str) -> Matrix:
        """The part about types that the pattern *type_* takes; the matrix was cut along it."""
        pattern = Pattern.parse(type_)
        kept = {atom for atom in self.atoms if pattern.matches(atom.witness)}
        return replace(
            self,
            atoms=tuple(atom for atom in self.atoms if atom in kept),
            readings=tuple(reading for reading in self.readings if reading.atom in kept),
            cells=tuple(cell for cell in self.cells if cell.reading.atom in kept),
            publishing=tuple(right for right in self.publishing if right.atom in kept),
        )


class _Reader:
    """What one team reads."""

    def __init__(self, plans: Plans, team: str, now_ms: int) -> None:
        self._plans = plans
        self._team = team
        self._now_ms = now_ms
        self._allows = plans.tenancy.reading(team)
        self._denies = plans.tenancy.read_denies(team)
        self._grants = plans.grants(now_ms=now_ms).teams.get(team, ())

    def readings(self, atom: Atom) -> list[Reading]:
        """One for each view it reads *atom* in, or one that says that it does not."""
        views = sorted({rule.view for rule in self._allows if atom.within(rule.patterns)})
        if not views:
            refusing = next((rule.id for rule in self._denies if atom.within(rule.patterns)), None)
            return [Reading(self._team, atom, "", refusing)]
        asked = [self._reading(atom, view) for view in views]
        return [reading for reading in asked if reading.view] or asked[:1]

    def _reading(self, atom: Atom, view: str) -> Reading:
        type_ = atom.witness
        read = self._plans.reader(self._team, type_, view, now_ms=self._now_ms)
        if not read.allowed:
            held = any(grant.pattern.matches(type_) for grant in self._grants)
            return Reading(self._team, atom, "", read.rule, "agent only" if held else "nats")
        grant = self._plans.grant(self._team, type_, view, self._now_ms)
        ends, opens = (None, None) if grant is None else (grant.expires_ms, grant.since_ms)
        return Reading(self._team, atom, view, read.rule, "nats", bool(self._plans.tenancy.rows[view]), ends, opens)


def _cells(plans: Plans, fields: Fields, reading: Reading) -> Iterator[Cell]:
    for judged in fields.places(reading.view, reading.atom.witness):
        yield cell_at(reading, " + ".join(judged.paths), judged)
    yield unclassified(plans, reading)


def unclassified(plans: Plans, reading: Reading) -> Cell:
    """How *reading* shows what no path names."""
    otherwise = plans.tenancy.tables[reading.view].otherwise
    return Cell(reading, UNCLASSIFIED, (), otherwise, otherwise[0])


def cell_at(reading: Reading, path: str, judged: Judged) -> Cell:
    """How *reading* shows a place."""
    return Cell(reading, path, judged.tags, judged.chosen, action_for(judged.chosen, reading.team), judged.paths)


def action_for(mask: Mask, team: str) -> str:
    """What *mask* is to *team*: who can open an encrypted value sees it in clear."""
    action, params = mask
    return CLEAR[0] if action == "encrypt" and team in (params.readers or ()) else action


def _publishing(plans: Plans, kinds: list[Atom], now_ms: int) -> Iterator[Publishing]:
    tenancy = plans.tenancy
    for agent, team in sorted(tenancy.team_of.items()):
        live = [p for rule in tenancy.publishing(agent) if not rule.ended(now_ms) for p in rule.patterns]
        denied = [p for rule in tenancy.publish_denies(agent) if rule.when is None for p in rule.patterns]
        for atom in kinds:
            if atom.within(live) and not atom.within(denied):
                yield Publishing(agent, team, atom)


def _guesses(plans: Plans, cells: tuple[Cell, ...], publishing: tuple[Publishing, ...]) -> Iterator[Guess]:
    """Teams that read a domain's tokens, and whose agents publish types masked in that domain for anybody."""
    masked: dict[str, set[str]] = {}  # versioned type -> domains
    for cell in cells:
        if cell.mask[0] == "pseudonym" and cell.mask[1].domain:
            masked.setdefault(versioned(cell.reading.atom.witness), set()).add(cell.mask[1].domain)
    fed: dict[str, set[str]] = {}  # team -> the domains it can have values of its own masked in
    for right in publishing:
        type_ = right.atom.witness
        copied = (route.to for route in plans.tenancy.routes if route.covers_type(type_))
        for into in (type_, *copied):
            fed.setdefault(right.team, set()).update(masked.get(versioned(into), ()))
    read: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        domain = cell.mask[1].domain
        if cell.action == "pseudonym" and domain and domain in fed.get(cell.reading.team, ()):
            read.setdefault((cell.reading.team, domain), []).append(cell)
    for (team, domain), mine in read.items():
        tags = tuple(sorted({tag for cell in mine for tag in cell.tags}))
        yield Guess(team, domain, mine[0].reading.atom.shown, tags, mine[0].reading.rule)
