"""YAML nodes to Structs: every shape error of a document at once, each with its line and the fix.

msgspec stops at the first error and knows no lines, so the shapes of `model*.py` are walked here beside the nodes; the
Struct itself is still made by msgspec, from data that has passed.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import yaml
from msgspec import inspect

from mesh.policy.nodes import Fault, line_of, scalar

if TYPE_CHECKING:
    from collections.abc import Iterable

Path: TypeAlias = tuple[str | int, ...]

_BAD: Any = object()  # stands where a value could not be read; its error is already noted
_SHOWN_CHARS = 60
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


_ANY: inspect.Type = inspect.AnyType()
_SHAPES: dict[type[Any], inspect.Type] = {}  # one for each kind of document


def _shape(struct: type[Any]) -> inspect.Type:
    if struct not in _SHAPES:
        _SHAPES[struct] = inspect.type_info(struct)
    return _SHAPES[struct]


class Binder:
    """Reads one document. `faults` and `lines` fill as it goes; `lines` maps each path to its line."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.lines: dict[Path, int] = {}

    def bind(self, node: yaml.Node, struct: type[Any]) -> Any:
        """The *struct* that *node* describes, or None where `faults` says why not."""
        data = self._value(node, _shape(struct), ())
        if self.faults:
            return None
        try:
            return msgspec.convert(data, struct)
        except msgspec.ValidationError as error:
            self.fault(
                line_of(node), f"the document does not have the right shape: {error}", "compare it with the design"
            )
            return None

    def fault(self, line: int, message: str, fix: str) -> None:
        """Note one error."""
        self.faults.append(Fault(line, message, fix))

    def _value(self, node: yaml.Node, wanted: inspect.Type, path: Path) -> Any:
        self.lines.setdefault(path, line_of(node))  # a member has the line of its key already
        if isinstance(wanted, inspect.UnionType):
            wanted = next(t for t in wanted.types if not isinstance(t, inspect.NoneType))
        wanted = _bare(wanted)
        if isinstance(wanted, inspect.StructType):
            return self._struct(node, wanted, path)
        if isinstance(wanted, inspect.DictType):
            return self._dict(node, wanted, path)
        if isinstance(wanted, inspect.VarTupleType):
            return self._list(node, wanted, path)
        if isinstance(wanted, inspect.AnyType):
            return self._any(node, path)
        return self._scalar(node, wanted, path)

    def entries(self, node: yaml.MappingNode, path: Path) -> Iterable[tuple[str, yaml.Node, yaml.Node]]:
        """The (key, key node, value node) of a mapping; keys that are no strings or come twice are noted, not given."""
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = line_of(key_node)
            key = self._key(key_node)
            if key is None:
                self.fault(line, f"a key of {where(path)} is not a string", "write the key as a plain or quoted name")
            elif key in seen:
                self.fault(
                    line, f"the key `{shown(key)}` is given twice, first at line {seen[key]}", "keep one of them"
                )
            else:
                seen[key] = line
                yield key, key_node, value_node

    @staticmethod
    def _key(node: yaml.Node) -> str | None:
        try:
            key = scalar(node) if isinstance(node, yaml.ScalarNode) else None
        except ValueError:
            return None
        return key if isinstance(key, str) else None

    def _struct(self, node: yaml.Node, wanted: inspect.StructType, path: Path) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self._mismatch(node, path, "a mapping")
            return _BAD
        fields = {f.encode_name: f for f in wanted.fields}
        skip = {wanted.tag_field} if wanted.tag_field else set()
        data: dict[str, Any] = {str(wanted.tag_field): wanted.tag} if wanted.tag_field else {}
        for key, key_node, value_node in self.entries(node, path):
            if key in skip:
                continue
            if key not in fields:
                self._unknown(key, key_node, path, sorted({*fields, *skip}))
                continue
            self.lines[(*path, key)] = line_of(key_node)
            if isinstance(value_node, yaml.ScalarNode) and _is_null(value_node):
                self.fault(line_of(key_node), f"`{where((*path, key))}` has no value", "give it one, or remove the key")
                continue
            data[key] = self._value(value_node, fields[key].type, (*path, key))
        present = {k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)}
        for name, known in fields.items():
            if known.required and name not in present:
                self.fault(line_of(node), f"{where(path)} has no `{name}`", f"add `{name}:`")
        return data

    def _dict(self, node: yaml.Node, wanted: inspect.DictType, path: Path) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self._mismatch(node, path, "a mapping")
            return _BAD
        data = {}
        for key, key_node, value_node in self.entries(node, path):
            self._bounds(len(key), _bare(wanted.key_type), line_of(key_node), (*path, key), "characters")
            plain = isinstance(_bare(wanted.value_type), inspect.AnyType)  # and then `null` is a value
            if isinstance(value_node, yaml.ScalarNode) and not plain and _is_null(value_node):
                self.fault(line_of(key_node), f"`{where((*path, key))}` has no value", "give it one, or remove the key")
                continue
            self.lines[(*path, key)] = line_of(key_node)
            data[key] = self._value(value_node, wanted.value_type, (*path, key))
        self._bounds(len(node.value), wanted, line_of(node), path, "entries")
        return data

    def _list(self, node: yaml.Node, wanted: inspect.VarTupleType, path: Path) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            self._mismatch(node, path, "a list")
            return _BAD
        self._bounds(len(node.value), wanted, line_of(node), path, "items")
        return [self._value(item, wanted.item_type, (*path, i)) for i, item in enumerate(node.value)]

    def _any(self, node: yaml.Node, path: Path) -> Any:
        """A plain JSON value, as strict as the rest: `null` is written out, keys are strings and come once."""
        if isinstance(node, yaml.MappingNode):
            data = {}
            for key, key_node, value_node in self.entries(node, path):
                self.lines[(*path, key)] = line_of(key_node)
                data[key] = self._value(value_node, _ANY, (*path, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, _ANY, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            if node.value == "" and node.style is None:
                fix = 'write it out: `null`, or `""` for an empty text'
                self.fault(line_of(node), f"`{where(path)}` has no value", fix)
            try:
                return scalar(node)
            except ValueError as error:
                self.fault(line_of(node), f"`{where(path)}`: {error}", "write a JSON value")
        return _BAD

    def _scalar(self, node: yaml.Node, wanted: inspect.Type, path: Path) -> Any:
        line = line_of(node)
        if not isinstance(node, yaml.ScalarNode):
            self._mismatch(node, path, _describe(wanted))
            return _BAD
        try:
            value = scalar(node)
        except ValueError as error:
            self.fault(line, f"`{where(path)}`: {error}", f"expected {_describe(wanted)}")
            return _BAD
        if isinstance(wanted, inspect.LiteralType):
            if value not in wanted.values:
                known = ", ".join(f"`{v}`" for v in wanted.values)
                self.fault(
                    line, f"`{where(path)}` is `{shown(value)}`", _guess(value, wanted.values, f"use one of {known}")
                )
            return value
        python = {inspect.StrType: str, inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}[
            type(wanted)
        ]
        if python is float and type(value) is int:
            value = float(value)
        if type(value) is not python or value is None:
            fix = "put it in quotes" if python is str and value is not None else f"write {_describe(wanted)}"
            self.fault(line, f"`{where(path)}` is {_NAMES[type(value)]}, not {_describe(wanted)}", fix)
        elif isinstance(value, str):
            self._bounds(len(value), wanted, line, path, "characters")
        elif isinstance(value, int) and isinstance(wanted, inspect.IntType):
            self._range(value, wanted, line, path)
        return value

    def _range(self, value: int, wanted: inspect.IntType, line: int, path: Path) -> None:
        low, high, step = wanted.ge, wanted.le, wanted.multiple_of
        if (low is not None and value < low) or (high is not None and value > high):
            self.fault(line, f"`{where(path)}` is {value}", f"use {low} to {high}")
        elif step is not None and value % step:
            self.fault(line, f"`{where(path)}` is {value}", f"use a multiple of {step:g}")

    def _bounds(self, size: int, wanted: Any, line: int, path: Path, unit: str) -> None:
        least, most = getattr(wanted, "min_length", None), getattr(wanted, "max_length", None)
        if least is not None and size < least:
            self.fault(
                line, f"`{where(path)}` is empty", "say what it is about, or remove it: nothing empty is guessed at"
            )
        elif most is not None and size > most:
            self.fault(line, f"`{where(path)}` has {size} {unit}, limit {most}", "split it")

    def _mismatch(self, node: yaml.Node, path: Path, wanted: str) -> None:
        kinds: dict[type[yaml.Node], str] = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}
        got = kinds.get(type(node), "a single value")
        self.fault(line_of(node), f"`{where(path)}` is {got}, not {wanted}", f"write {wanted}")

    def _unknown(self, key: str, node: yaml.Node, path: Path, known: list[str]) -> None:
        fix = _guess(key, known, "known here: " + ", ".join(known))
        self.fault(line_of(node), f"unknown key `{shown(key)}` in {where(path)}", fix)


def _bare(wanted: inspect.Type) -> inspect.Type:
    """*wanted* without what it says to schemas alone."""
    return wanted.type if isinstance(wanted, inspect.Metadata) else wanted


def _is_null(node: yaml.ScalarNode) -> bool:
    try:
        return scalar(node) is None
    except ValueError:
        return False


def _describe(wanted: inspect.Type) -> str:
    if isinstance(wanted, inspect.LiteralType):
        return "one of " + ", ".join(f"`{v}`" for v in wanted.values)
    names = {inspect.StrType: str, inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
    return _NAMES[names[type(wanted)]]


def _guess(value: object, known: Iterable[object], otherwise: str) -> str:
    close = get_close_matches(str(value), [str(k) for k in known], n=1)
    return f"did you mean `{close[0]}`? {otherwise}" if close else otherwise


def closest(value: str, known: Iterable[str], otherwise: str) -> str:
    """A fix for an unknown name: the nearest known one, and what else there is to say."""
    return _guess(value, known, otherwise)


def shown(value: object) -> str:
    """A name or key from a document as an error repeats it: one line, bounded."""
    text = str(value).encode("unicode_escape").decode("ascii")
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def where(path: Path) -> str:
    """A path in a document as people read it: `spec.allow[2].who.teams[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text or "the document"
