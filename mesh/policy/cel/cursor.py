"""The parser's place in the text, and the bounds on what it may build."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from mesh.policy.cel.lexer import Token, refuse
from mesh.policy.cel.nodes import Node, children

MAX_NODES = 200  # bounds one evaluation without comprehensions
MAX_DEPTH = 40  # of brackets and of the tree: CEL asks for 32 operators in a row; Python's own parser nests 200
_HINTS = {"and": "write &&", "or": "write ||", "not": "write !", "True": "write true", "False": "write false"}
_N = TypeVar("_N", bound=Node)


class Cursor:
    """Reads tokens one by one; every node passes `_made`, which counts it."""

    def __init__(self, words: list[Token]) -> None:
        self._words = words
        self._at = 0
        self._nodes = 0
        self._nesting = 0
        self._heights: dict[int, int] = {}  # by id of a node, which its parent looks up at once

    @property
    def _word(self) -> Token:
        return self._words[self._at]

    @property
    def _last_end(self) -> int:
        return self._words[self._at - 1].end

    def _is(self, symbol: str) -> bool:
        return self._word.kind == "symbol" and self._word.text == symbol

    def _take(self, symbol: str) -> bool:
        if self._is(symbol):
            self._at += 1
            return True
        return False

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            self._unexpected(f"`{symbol}`")

    def _unexpected(self, expected: str) -> NoReturn:
        word = self._word
        fix = _HINTS.get(word.text, "complete or remove what stands at this column")
        refuse("the condition cannot be read here", at=word.start, expected=expected, got=word.text, fix=fix)

    def _made(self, node: _N) -> _N:
        self._nodes += 1
        height = 1 + max((self._heights[id(child)] for child in children(node)), default=0)
        self._heights[id(node)] = height
        if self._nodes > MAX_NODES:
            refuse(
                f"the condition has more than {MAX_NODES} parts",
                at=node.start,
                expected=f"at most {MAX_NODES} operators, names and constants",
                got=f"{self._nodes} so far",
                fix="split it into several rules",
            )
        if height > MAX_DEPTH:
            self._too_deep(node.start)
        return node

    def _too_deep(self, at: int) -> NoReturn:
        refuse(
            f"the condition nests deeper than {MAX_DEPTH}",
            at=at,
            expected=f"at most {MAX_DEPTH} levels",
            got="more levels",
            fix="split it into several rules",
        )
