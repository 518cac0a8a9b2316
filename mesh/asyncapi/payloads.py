"""The JSON Schema of an event: the envelope, and the classified fields where they stand.

A field's schema has the tags that it carries (`x-mesh-tags`) and, in a view, what the view leaves of it
(`x-mesh-mask`). A dropped field is not there; `x-mesh-dropped` names it. Fields classified at any depth (`**.email`)
hold in every object: `x-mesh-anywhere`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.asyncapi.forms import form
from mesh.attributes import REQUIRED
from mesh.policy.compile import Plans
from mesh.policy.fields import Fields
from mesh.policy.judge import AS_THEY_ARE
from mesh.policy.masktable import CLEAR, Mask
from mesh.policy.matrix import Reading, action_for
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path
from mesh.subjects import Pattern, logical

_SOMEWHERE: Final = "\x00"  # a member's name that no path holds
_WORD: Final = "[a-z0-9_-]+"
_TEXT: Final = {"type": "string"}
_OTHERS: Final = ("time", "datacontenttype", "dataschema", "correlationid", "causationid", "expirytime", "traceparent")


@dataclass(slots=True)
class _Node:
    """A place that classified paths lead to or through."""

    tags: dict[str, None] = field(default_factory=dict)
    ends: bool = False
    below: dict[object, _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schemas:
    """The schema of an event, and of what every object in it may hold, which the former refers to by a name."""

    payload: dict[str, Any]
    anywhere: dict[str, Any] | None


def sent(plans: Plans, type_: str, pattern: Pattern, anywhere: str) -> Schemas:
    """The schema of an event as its sender hands it to the agent: nothing is masked yet.

    Args:
        plans: Of the tenant.
        type_: A witness of the kind of types.
        pattern: The kind of types.
        anywhere: The reference to the other schema.
    """
    return _Payload(plans, type_, None, "", anywhere).schemas(_envelope(pattern, None, None))


def shown(plans: Plans, reading: Reading, pattern: Pattern, team: str, anywhere: str) -> Schemas:
    """The schema of an event as *reading* shows it.

    Args:
        plans: Of the tenant.
        reading: Of the kind of types in a view.
        pattern: The kind of types.
        team: Who can open what is encrypted for it; empty for nobody.
        anywhere: The reference to the other schema.
    """
    made = _Payload(plans, reading.atom.witness, reading.view, team, anywhere)
    return made.schemas(_envelope(pattern, plans.bundle.tenant, reading.view))


def _envelope(pattern: Pattern, tenant: str | None, view: str | None) -> dict[str, Any]:
    """The attributes that no view masks."""
    made: dict[str, Any] = {
        "specversion": {"const": "1.0"},
        "id": _TEXT | {"description": "Unique within its source."},
        "source": _TEXT | {"format": "uri-reference"},
        "type": _type(pattern),
        **dict.fromkeys(_OTHERS, _TEXT),
        "partitionkey": _TEXT | {"description": "Events with an equal key keep their order. To a reader a pseudonym."},
    }
    if view is not None:
        made |= {"tenant": {"const": tenant}, "view": {"const": view}, "policyrevision": {"type": "integer"}}
    return made


def _type(pattern: Pattern) -> dict[str, Any]:
    tokens = pattern.tokens
    if "*" not in tokens and ">" not in tokens:
        return {"const": logical(pattern.text)}
    words = {"*": _WORD, ">": rf"{_WORD}(\.{_WORD})*"}
    parts = [words.get(token, token) for token in tokens]
    if tokens[-1] == "*":  # a version, or none
        return _TEXT | {"pattern": "^" + r"\.".join(parts[:-1]) + r"(\.v[0-9]{1,9})?$"}
    return _TEXT | {"pattern": "^" + r"\.".join(parts) + "$"}


class _Payload:
    """One type in one view, or as it is sent."""

    def __init__(self, plans: Plans, type_: str, view: str | None, team: str, anywhere: str) -> None:
        self._ref = {"$ref": anywhere}
        self._team = team
        self._view = view
        self._type = type_
        self._masking = None if view is None else plans.view(view, type_).masking
        self._fields = Fields(plans)
        tenancy = plans.tenancy
        pairs = [pair for index in tenancy.classifying(type_) for pair in tenancy.classified[index].fields]
        self._deep: dict[str, tuple[Path, dict[str, None]]] = {}
        self._root = _Node()
        for path, tags in pairs:
            if path.deep:
                self._deep.setdefault(path.text, (path, {}))[1].update(dict.fromkeys(tags))
            else:
                _plant(self._root, path, tags)
        named = (found for found in self._deep.values() if _is_name(found[0]))
        self._names = {str(path.steps[0]): _Node(tags, ends=True) for path, tags in named}

    def schemas(self, envelope: dict[str, Any]) -> Schemas:
        """The whole event's, and what its objects have in common."""
        anywhere = self._members(("data", _SOMEWHERE), self._names) if self._names else None
        return Schemas(self._event(envelope), anywhere)

    def _event(self, envelope: dict[str, Any]) -> dict[str, Any]:
        properties = dict(envelope)
        dropped: list[str] = []
        for name, node in self._root.below.items():
            if isinstance(name, str) and name not in AS_THEY_ARE:
                self._put(properties, dropped, (name,), node)
        properties.setdefault("data", self._container(("data",), _Node()))
        made: dict[str, Any] = {
            "type": "object",
            "required": [*REQUIRED, *(("tenant", "view", "policyrevision") if self._view else ())],
            "properties": properties,
        }
        if dropped:
            made["x-mesh-dropped"] = dropped
        if self._deep:
            made["x-mesh-anywhere"] = {text: self._anywhere(*found) for text, found in self._deep.items()}
        return made

    def _put(self, properties: dict[str, Any], dropped: list[str], steps: tuple[object, ...], node: _Node) -> None:
        made = self._at(steps, node)
        if made is None:
            dropped.append(str(steps[-1]))
        else:
            properties[str(steps[-1])] = made

    def _at(self, steps: tuple[object, ...], node: _Node) -> dict[str, Any] | None:
        """The schema of the place *steps*; None where it is left out."""
        if not node.ends:
            return self._container(steps, node)
        tags = {"x-mesh-tags": list(self._tags(steps, node))}
        if self._masking is None:
            return tags
        mask = self._mask(steps)
        return None if mask[0] == "drop" else form(mask) | tags

    def _tags(self, steps: tuple[object, ...], node: _Node) -> Iterable[str]:
        if self._masking is None:
            return node.tags
        return self._masking.at(self._placed(steps)).tags

    def _mask(self, steps: tuple[object, ...]) -> Mask:
        """What the view makes of a scalar at *steps*, to this team."""
        assert self._masking is not None  # noqa: S101 - asked of views alone
        chosen = self._masking.at(self._placed(steps)).chosen
        return CLEAR if action_for(chosen, self._team) == CLEAR[0] else chosen

    @staticmethod
    def _placed(steps: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(_SOMEWHERE if step is ANY_MEMBER else step for step in steps)

    def _container(self, steps: tuple[object, ...], node: _Node) -> dict[str, Any]:
        """An object or array that is looked into. No `type`: policies do not know that it is one."""
        alike = self._names.keys().isdisjoint(node.below) and ANY_MEMBER not in node.below
        members = {name: below for name, below in node.below.items() if isinstance(name, str)}
        made = self._members(steps, members if alike else {**self._names, **members})
        if alike and self._names:
            made["allOf"] = [self._ref]
        if ANY_ITEM in node.below:
            items = self._at((*steps, ANY_ITEM), node.below[ANY_ITEM])
            made["items"] = {} if items is None else items
        if self._masking is not None:
            made |= self._rest(steps, node)
        return made

    def _members(self, steps: tuple[object, ...], members: Mapping[str, _Node]) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        dropped: list[str] = []
        for name, below in members.items():
            self._put(properties, dropped, (*steps, name), below)
        made = {"properties": properties} if properties else {}
        return made | ({"x-mesh-dropped": dropped} if dropped else {})

    def _rest(self, steps: tuple[object, ...], node: _Node) -> dict[str, Any]:
        """What becomes of members that nobody names."""
        if ANY_MEMBER in node.below:
            rest = self._at((*steps, ANY_MEMBER), node.below[ANY_MEMBER])
            return {"additionalProperties": False if rest is None else rest}
        mask = self._mask((*steps, _SOMEWHERE))
        if mask[0] == "clear":
            return {}
        if self._deep:  # what is classified at any depth may be inside one of them
            return {"x-mesh-unclassified": form(mask)["x-mesh-mask"]}
        return {"additionalProperties": False if mask[0] == "drop" else form(mask)}

    def _anywhere(self, path: Path, tags: Iterable[str]) -> dict[str, Any]:
        said: dict[str, Any] = {"x-mesh-tags": list(tags)}
        if self._view is not None:
            chosen = self._fields.judged(self._view, self._type, path).chosen
            mask = CLEAR if action_for(chosen, self._team) == CLEAR[0] else chosen
            said["x-mesh-mask"] = form(mask)["x-mesh-mask"]
        return said


def _plant(root: _Node, path: Path, tags: Iterable[str]) -> None:
    node = root
    for step in path.steps:
        node = node.below.setdefault(step, _Node())
    node.ends = True
    node.tags.update(dict.fromkeys(tags))


def _is_name(path: Path) -> bool:
    """Whether a deep path is one member's name, like `**.email`."""
    return len(path.steps) == 1 and isinstance(path.steps[0], str) and not path.subtree
