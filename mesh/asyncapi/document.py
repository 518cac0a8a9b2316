"""The document: a channel for each kind of types, an operation for each right, a message for each way to see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mesh.asyncapi import payloads
from mesh.policy.atoms import Atom
from mesh.policy.compile import Plans
from mesh.policy.matrix import Cell, Matrix, Publishing, Reading
from mesh.policy.owners import owners_of_field
from mesh.policy.rules import Rule
from mesh.policy.texts import instant_text
from mesh.subjects import Pattern, physical_pattern

VERSION: Final = "3.0.0"
_SCHEMAS: Final = "#/components/schemas/"
CONTENT_TYPE: Final = "application/cloudevents+json"
_SAYS: Final = (
    "What the policies of {tenant} let teams send and see. Each event is a CloudEvent in structured mode, signed by "
    "the agent of its source. Known from the policies: types, who sends and who reads them, in which view, and what "
    "each view leaves of a classified field. Not known: JSON types of fields, which fields an event has, and fields "
    "that no Classification names."
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One kind of types, for a table."""

    types: str
    owners: tuple[str, ...]
    senders: tuple[str, ...]
    readers: tuple[tuple[str, str], ...]  # (team, view)


def listed(plans: Plans, now_ms: int, *, team: str | None = None) -> list[Listed]:
    """Each kind of types with its owners, senders and readers.

    Args:
        plans: Of the tenant.
        now_ms: Unix milliseconds, for rights that end.
        team: Only what it may send or read.
    """
    catalogue = _Catalogue(plans, now_ms, team)
    return [
        Listed(
            atom.shown,
            tuple(sorted(owners_of_field(plans, atom.witness, None))),
            tuple(sorted({right.team for right in catalogue.sending(atom)})),
            tuple((reading.team, reading.view) for reading in catalogue.reading(atom)),
        )
        for atom in catalogue.atoms
    ]


def document(plans: Plans, now_ms: int, *, team: str | None = None) -> dict[str, Any]:
    """The AsyncAPI document.

    Args:
        plans: Of the tenant.
        now_ms: Unix milliseconds, for rights that end.
        team: Only what it may send and read; None for the whole tenant.
    """
    return _Catalogue(plans, now_ms, team).document()


class _Catalogue:
    """One tenant at one time, or what one team of it may do."""

    def __init__(self, plans: Plans, now_ms: int, team: str | None) -> None:
        self._plans = plans
        self._now_ms = now_ms
        self._team = team
        self._matrix = Matrix.of(plans, now_ms)
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._schemas: dict[str, Any] = {}
        self._names: dict[Atom, str] = {}
        for atom in self.atoms:
            self._names[atom] = _unused(_name(atom.shown), self._names.values())

    @property
    def atoms(self) -> list[Atom]:
        """The kinds of types that somebody asked about sends or reads."""
        return [atom for atom in self._matrix.atoms if self.sending(atom) or self.reading(atom)]

    def sending(self, atom: Atom) -> list[Publishing]:
        """Who may send them."""
        return [right for right in self._matrix.publishing if right.atom == atom and self._asked(right.team)]

    def reading(self, atom: Atom) -> list[Reading]:
        """Who reads them, in which view."""
        return [r for r in self._matrix.readings if r.atom == atom and r.view and self._asked(r.team)]

    def _asked(self, team: str) -> bool:
        return self._team in (None, team)

    def document(self) -> dict[str, Any]:
        """All of it."""
        tenant = self._plans.bundle.tenant
        for atom in self.atoms:
            self._channel(atom)
        return {
            "asyncapi": VERSION,
            "info": {
                "title": f"Events of {tenant}" + (f" for {self._team}" if self._team else ""),
                "version": self._plans.bundle.digest[:12],
                "description": _SAYS.format(tenant=tenant),
                "tags": [{"name": tenant, "description": "The tenant."}],
            },
            "defaultContentType": CONTENT_TYPE,
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": self._schemas},
        }

    def _channel(self, atom: Atom) -> None:
        name, pattern = self._names[atom], Pattern.parse(atom.shown)
        address, parameters = _address(atom.shown)
        held: dict[str, Any] = {}
        owners = sorted(owners_of_field(self._plans, atom.witness, None))
        self._channels[name] = {
            "address": address,
            "title": atom.shown,
            "messages": held,
            "tags": [{"name": f"owner:{owner}", "description": "Classifies its fields."} for owner in owners],
            "bindings": {"nats": {}},
            "x-mesh-types": atom.shown,
            "x-mesh-subject": physical_pattern(self._plans.bundle.site, "*", pattern),
            **({"parameters": parameters} if parameters else {}),
        }
        senders: dict[str, list[str]] = {}
        for right in self.sending(atom):
            senders.setdefault(right.team, []).append(right.agent)
        if senders:
            self._message(held, f"{name}.SENT", self._sent(atom, pattern, f"{name}.SENT"))
        for team, agents in senders.items():
            self._operations[f"{team}.SENDS.{name}"] = self._send(atom, team, agents)
        for reading in self.reading(atom):
            message = f"{name}.VIEW.{reading.view}" + (f".FOR.{reading.team}" if self._opens(reading) else "")
            if message not in held:
                self._message(held, message, self._shown(reading, pattern, message))
            self._operations[f"{reading.team}.READS.{message}"] = self._receive(reading, pattern, message)

    def _message(self, held: dict[str, Any], name: str, message: dict[str, Any]) -> None:
        held[name] = {"$ref": f"#/components/messages/{name}"}
        self._messages[name] = {"name": name, "contentType": CONTENT_TYPE, **message}

    def _payload(self, name: str, made: payloads.Schemas) -> dict[str, Any]:
        if made.anywhere is not None:
            self._schemas[_anywhere(name)] = made.anywhere
        return made.payload

    def _sent(self, atom: Atom, pattern: Pattern, name: str) -> dict[str, Any]:
        made = payloads.sent(self._plans, atom.witness, pattern, _SCHEMAS + _anywhere(name))
        return {
            "title": f"{atom.shown}, as it is sent",
            "summary": "Before any view: what the sender hands to its agent.",
            "payload": self._payload(name, made),
        }

    def _shown(self, reading: Reading, pattern: Pattern, name: str) -> dict[str, Any]:
        team = reading.team if self._opens(reading) else ""
        made = payloads.shown(self._plans, reading, pattern, team, _SCHEMAS + _anywhere(name))
        cells = [cell for cell in self._matrix.cells if cell.reading is reading]
        rows = " A row filter of the view may withhold it." if reading.rows else ""
        return {
            "title": f"{reading.atom.shown} in the view {reading.view}",
            "summary": f"What a reader of {reading.view} sees.{rows}",
            "payload": self._payload(name, made),
            "tags": [{"name": f"view:{reading.view}"}],
            "x-mesh-view": reading.view,
            "x-mesh-fields": [{"path": c.path, "tags": list(c.tags), "sees": c.words} for c in cells],
        }

    def _opens(self, reading: Reading) -> bool:
        """Whether this team can open something that others see encrypted."""
        return any(_opened(cell) for cell in self._matrix.cells if cell.reading is reading)

    def _send(self, atom: Atom, team: str, agents: list[str]) -> dict[str, Any]:
        name = self._names[atom]
        rules = [rule for agent in agents for rule in self._lines(agent, atom)]
        return {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "title": f"{team} sends {atom.shown}",
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}.SENT"}],
            "tags": [{"name": team}],
            "x-mesh-agents": sorted(agents),
            "x-mesh-rules": sorted({rule.id for rule in rules}),
            "x-mesh-sources": sorted({f"/{team}/**", *(glob.text for rule in rules for glob in rule.sources)}),
            "x-mesh-conditional": any(rule.when is not None for rule in (*rules, *self._denies(agents, atom))),
        }

    def _lines(self, agent: str, atom: Atom) -> Iterator[Rule]:
        held = self._plans.tenancy.publishing(agent)
        return (rule for rule in held if not rule.ended(self._now_ms) and atom.within(rule.patterns))

    def _denies(self, agents: list[str], atom: Atom) -> Iterator[Rule]:
        held = (rule for agent in agents for rule in self._plans.tenancy.publish_denies(agent))
        return (rule for rule in held if atom.within(rule.patterns))

    def _receive(self, reading: Reading, pattern: Pattern, message: str) -> dict[str, Any]:
        name = self._names[reading.atom]
        ends = {} if reading.until_ms is None else {"x-mesh-until": instant_text(reading.until_ms)}
        opens = {} if reading.since_ms is None else {"x-mesh-since": instant_text(reading.since_ms)}
        return {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "title": f"{reading.team} reads {reading.atom.shown} in the view {reading.view}",
            "messages": [{"$ref": f"#/channels/{name}/messages/{message}"}],
            "tags": [{"name": reading.team}],
            "x-mesh-view": reading.view,
            "x-mesh-rules": [reading.rule],
            "x-mesh-rows": reading.rows,
            "x-mesh-subject": physical_pattern(self._plans.bundle.site, reading.view, pattern),
            "x-mesh-subscriptions": sorted(self._subscriptions(reading)),
            **ends,
            **opens,
        }

    def _subscriptions(self, reading: Reading) -> Iterator[str]:
        """The team's own that are delivered some of these types in this view."""
        for grant in self._plans.grants(now_ms=self._now_ms).active:
            mine = grant.team == reading.team and grant.view == reading.view
            if mine and any(pattern.matches(reading.atom.witness) for pattern in grant.filters):
                yield grant.name


def _anywhere(message: str) -> str:
    return f"{message}.ANYWHERE"


def _opened(cell: Cell) -> bool:
    return cell.mask[0] == "encrypt" and cell.action == "clear"


def _name(shown: str) -> str:
    """A pattern as a key of AsyncAPI. Tokens and names are lower-case, so every word of ours in a key is not."""
    return ".".join({"*": "ANY", ">": "REST"}.get(token, token) for token in shown.split("."))


def _unused(name: str, used: Iterable[str]) -> str:
    taken = set(used)
    return next(n for n in (name, *(f"{name}-{k}" for k in range(2, len(taken) + 3))) if n not in taken)


def _address(shown: str) -> tuple[str, dict[str, Any]]:
    """A pattern as an address: a parameter stands for each `*`, and one for `>`."""
    parameters: dict[str, Any] = {}
    tokens = []
    for number, token in enumerate(shown.split("."), start=1):
        if token in ("*", ">"):
            name = f"token{number}" if token == "*" else "rest"  # noqa: S105 - of a pattern
            says = "Any one token." if token == "*" else "One or more tokens."  # noqa: S105 - as above
            parameters[name] = {"description": says}
            token = f"{{{name}}}"  # noqa: PLW2901 - what stands for it
        tokens.append(token)
    return ".".join(tokens), parameters
