"""YAML text to nodes with line numbers, strictly: what surprises a reader of YAML is refused, not resolved.

PyYAML's pure parser composes the nodes; it is never asked to construct objects. Refused with their line: aliases and
anchors (alias bombs), explicit tags, more than `MAX_DEPTH` levels, more than `MAX_NODES` nodes, more than
`MAX_FILE_CHARS` characters. Scalars follow the YAML 1.2 core schema: `NO` is a string. A number that YAML 1.1
reads otherwise (`012`, `0o14`, `0x0c`) is refused: one reader of the page takes it for ten, another for twelve.

Source: YAML 1.2.2, section 10.3 (core schema).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_FILE_CHARS = 262_144  # 1,000 rules are about 100 KiB; the pure parser reads some 100 KiB a second
MAX_DEPTH = 16  # the deepest legal document has 9 levels
MAX_NODES = 50_000  # in one file
MAX_DOCUMENTS = 1_000  # in one file
_MAX_INT_CHARS = 18

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT_RE = re.compile(r"[-+]?[0-9]+")
_TWO_READINGS_RE = re.compile(r"[-+]?0[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT_RE = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT_RE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at a line (from 1), and how to put it right."""

    line: int
    message: str
    fix: str


class _Refused(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class _Loader(yaml.SafeLoader):
    """Composes nodes and refuses, on the way, what our documents never need."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(Fault(line, "a YAML alias (`*name`) is not allowed here", "write the value out again"))
        if event.anchor is not None:
            raise _Refused(Fault(line, "a YAML anchor (`&name`) is not allowed here", "remove the anchor"))
        if event.tag is not None:
            raise _Refused(Fault(line, "a YAML tag (`!name`) is not allowed here", "remove the tag; quote a string"))
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(Fault(line, f"the file has more than {MAX_NODES} YAML nodes", "split the file"))
        if self._depth >= MAX_DEPTH:
            raise _Refused(Fault(line, f"the document nests deeper than {MAX_DEPTH} levels", "flatten it"))
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def compose(text: str) -> tuple[list[yaml.Node], list[Fault]]:
    """The documents of *text* as nodes, empty documents left out, and what is wrong with the text as YAML.

    After a fault the rest of the file is not read, as nothing in it can be placed for certain.
    """
    if len(text) > MAX_FILE_CHARS:
        return [], [Fault(1, f"the file has {len(text)} characters, limit {MAX_FILE_CHARS}", "split the file")]
    nodes: list[yaml.Node] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            if len(nodes) >= MAX_DOCUMENTS:
                return nodes, [
                    Fault(line_of(node), f"the file has more than {MAX_DOCUMENTS} documents", "split the file")
                ]
            if not (isinstance(node, yaml.ScalarNode) and scalar(node) is None):
                nodes.append(node)
    except _Refused as refused:
        return nodes, [refused.fault]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        return nodes, [
            Fault(line, f"not YAML: {error.problem or error.context}", "check indentation, quotes and brackets")
        ]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = "a character that YAML forbids" if isinstance(error, yaml.reader.ReaderError) else type(error).__name__
        return nodes, [Fault(1, f"not YAML: {what}", "save the file as plain UTF-8 text")]
    return nodes, []


def line_of(node: yaml.Node) -> int:
    """The line, from 1, at which *node* begins."""
    return int(node.start_mark.line) + 1


def scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar by the YAML 1.2 core schema: str, int, float, bool or None.

    Raises:
        ValueError: A number outside what a policy can mean (`.inf`, `.nan`, more than 18 digits).
    """
    text: str = node.value
    if node.style is not None:  # quoted or a block: always a string
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _TWO_READINGS_RE.fullmatch(text):
        raise ValueError("a number that readers of YAML take differently; write it in decimal, or quote a text")
    if _INT_RE.fullmatch(text):
        if len(text) > _MAX_INT_CHARS:
            raise ValueError("a number of more than 18 characters; quote it if it is a text")
        return int(text)
    if _SPECIAL_FLOAT_RE.fullmatch(text):
        raise ValueError("infinity and not-a-number mean nothing here; quote it if it is a text")
    if _FLOAT_RE.fullmatch(text):
        return float(text)
    return text
