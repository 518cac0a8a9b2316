"""Tokens to syntax tree, by precedence climbing, with every bound that can be checked before evaluation."""

from __future__ import annotations

from typing import Any, NoReturn

from mesh.policy.cel.cursor import MAX_DEPTH, Cursor
from mesh.policy.cel.grammar import CONSTANTS, FUNCTIONS, MACROS, METHODS, PRECEDENCE, RESERVED
from mesh.policy.cel.lexer import Token, refuse, tokens
from mesh.policy.cel.nodes import (
    And,
    Binary,
    Call,
    Comprehension,
    Has,
    If,
    Index,
    ListOf,
    Literal,
    MapOf,
    Negative,
    Node,
    Not,
    Or,
    Root,
    Select,
    Variable,
)
from mesh.policy.cel.values import INT_MAX

MAX_CHARACTERS = 1000  # a condition is read by people; also bounds what the lexer does


def parse(text: str, roots: frozenset[str]) -> Node:
    """The syntax tree of *text*.

    Args:
        text: A condition of at most `MAX_CHARACTERS`.
        roots: The names it may read from.

    Raises:
        ExpressionError: Not CEL, outside the subset, or beyond a bound; `column` counts from 1.
    """
    if len(text) > MAX_CHARACTERS:
        refuse(
            f"the condition has {len(text)} characters, limit {MAX_CHARACTERS}",
            at=MAX_CHARACTERS,
            expected=f"at most {MAX_CHARACTERS} characters",
            got=f"{len(text)} characters",
            fix="split it into several rules",
        )
    return _Parser(tokens(text), roots).parse()


class _Parser(Cursor):
    def __init__(self, words: list[Token], roots: frozenset[str]) -> None:
        super().__init__(words)
        self._roots = roots
        self._variable: str | None = None  # of the comprehension whose body is being read

    def parse(self) -> Node:
        node = self._expression()
        if self._word.kind != "end":
            self._unexpected("an operator, or the end")
        return node

    # --- expressions ---

    def _expression(self) -> Node:
        self._nesting += 1
        if self._nesting > MAX_DEPTH:
            self._too_deep(self._word.start)
        start = self._word.start
        node = self._binary(1)
        if self._take("?"):
            yes = self._binary(1)
            self._expect(":")
            no = self._expression()
            node = self._made(If(start, self._last_end, node, yes, no))
        self._nesting -= 1
        return node

    def _binary(self, level: int) -> Node:
        start = self._word.start  # not left.start: brackets around an operand belong to what is around it
        left = self._unary()
        while True:
            operator = self._word.text if self._word.kind == "symbol" else ""
            precedence = PRECEDENCE.get(operator, 0)
            if precedence < level:
                return left
            if operator in {"&&", "||"}:
                left = self._logical(operator, start, left, precedence)
            else:
                self._at += 1
                right = self._binary(precedence + 1)
                left = self._made(Binary(start, self._last_end, operator, left, right))

    def _logical(self, operator: str, start: int, first: Node, precedence: int) -> Node:
        operands = [first]
        while self._take(operator):
            operands.append(self._binary(precedence + 1))
        make = And if operator == "&&" else Or
        return self._made(make(start, self._last_end, tuple(operands)))

    def _unary(self) -> Node:
        start = self._word.start
        sign = self._word.text
        if not (self._is("!") or self._is("-")):
            return self._member()
        count = 0
        while self._take(sign):
            count += 1
        if sign == "-" and self._word.kind == "literal" and self._word.value.__class__ in {int, float}:
            count -= 1  # CEL: the last minus belongs to the number, or -2^63 could not be written
            operand = self._member(minus=True)
        else:
            operand = self._member()
        if count % 2 == 0:  # as CEL's parsers have it: two signs leave the operand as it is
            return operand
        make = Not if sign == "!" else Negative
        return self._made(make(start, self._last_end, operand))

    def _member(self, *, minus: bool = False) -> Node:
        start = self._word.start
        node = self._primary(minus=minus)
        while True:
            if self._take("."):
                node = self._dotted(start, node)
            elif self._take("["):
                index = self._expression()
                self._expect("]")
                node = self._made(Index(start, self._last_end, node, index))
            else:
                return node

    def _dotted(self, start: int, node: Node) -> Node:
        word = self._word
        if word.kind not in {"name", "quoted"} or word.text in CONSTANTS:
            self._unexpected("a field's name")
        self._at += 1
        if word.kind == "quoted" or not self._is("("):
            return self._made(Select(start, word.end, node, str(word.value)))
        if word.text in MACROS:
            return self._comprehension(start, node, word)
        if word.text not in METHODS:
            self._unknown_function(word, *METHODS, *MACROS)
        arguments = self._arguments(word, METHODS[word.text])
        return self._made(Call(start, self._last_end, word.text, (node, *arguments)))

    def _arguments(self, word: Token, count: int) -> list[Node]:
        self._expect("(")
        found = [] if self._is(")") else [self._expression()]
        while found and self._take(","):
            found.append(self._expression())
        self._expect(")")
        if len(found) != count:
            refuse(
                f"{word.text}() has the wrong number of arguments",
                at=word.start,
                expected=str(count),
                got=str(len(found)),
                fix=f"give {word.text}() {count} of them",
            )
        return found

    def _unknown_function(self, word: Token, *known: str) -> NoReturn:
        fix = "use one of those"
        if word.text == "matches":
            fix = "regular expressions are left out for their cost; use startsWith, endsWith or contains"
        refuse(
            f"{word.text}() is outside the subset",
            at=word.start,
            expected=", ".join(known),
            got=word.text,
            fix=fix,
        )

    def _comprehension(self, start: int, over: Node, word: Token) -> Node:
        if self._variable is not None:
            refuse(
                "a macro stands inside another's body",
                at=word.start,
                expected="comprehensions of depth 1",
                got=f"{word.text}() in the body of another",
                fix="split the condition, or use `in`",
            )
        self._expect("(")
        name = self._word
        if name.kind != "name" or name.text in RESERVED or name.text in CONSTANTS or name.text in self._roots:
            self._unexpected("a variable's name that is neither reserved nor one of " + ", ".join(sorted(self._roots)))
        self._at += 1
        self._variable = name.text
        parts: list[Node] = []
        while self._take(","):
            parts.append(self._expression())
        self._expect(")")
        self._variable = None
        if len(parts) not in MACROS[word.text]:
            refuse(
                f"{word.text}() has the wrong number of arguments",
                at=word.start,
                expected=f"{word.text}(variable, expression)",
                got=f"{len(parts)} expressions",
                fix="name a variable, then what to test of it",
            )
        transform = parts[-1] if word.text == "map" else None
        predicate = None if word.text == "map" and len(parts) == 1 else parts[0]
        return self._made(Comprehension(start, self._last_end, word.text, over, name.text, predicate, transform))

    # --- what stands alone ---

    def _primary(self, *, minus: bool = False) -> Node:
        word = self._word
        if word.kind == "literal":
            self._at += 1
            return self._made(self._literal(word, minus=minus))
        if word.kind == "name":
            self._at += 1
            return self._named(word)
        if self._take("("):
            node = self._expression()
            self._expect(")")
            return node
        if self._take("["):
            return self._list(word.start)
        if self._take("{"):
            return self._map(word.start)
        return self._unexpected("a name, a constant or a bracket")

    def _literal(self, word: Token, *, minus: bool) -> Literal:
        value: Any = word.value
        if minus:
            return Literal(self._words[self._at - 2].start, word.end, -value)
        if value.__class__ is int and value > INT_MAX:
            refuse(
                "the number does not fit in 64 bits",
                at=word.start,
                expected=f"at most {INT_MAX}",
                got=f"{len(word.text)} digits",
                fix="write it as a uint (`1u`) or a double (`1.0`)",
            )
        return Literal(word.start, word.end, value)

    def _named(self, word: Token) -> Node:
        if word.text in CONSTANTS:
            return self._made(Literal(word.start, word.end, CONSTANTS[word.text]))
        if self._is("("):
            return self._function(word)
        if word.text == self._variable:
            return self._made(Variable(word.start, word.end, word.text))
        if word.text not in self._roots:
            fix = f"write data.{word.text} or event.{word.text}"
            if word.text == "principal":
                fix = "the publisher is known in publish rules and routes only"
            refuse(
                f"there is no name {word.text} here",
                at=word.start,
                expected=", ".join(sorted(self._roots)),
                got=word.text,
                fix=fix,
            )
        return self._made(Root(word.start, word.end, word.text))

    def _function(self, word: Token) -> Node:
        if word.text == "has":
            (argument,) = self._arguments(word, 1)
            if argument.__class__ is not Select:
                refuse(
                    "has() takes a field",
                    at=argument.start,
                    expected="has(data.field)",
                    got="another expression",
                    fix="for a key use 'key' in data",
                )
            self._nodes -= 1
            return self._made(Has(word.start, self._last_end, argument.operand, argument.field))
        if word.text not in FUNCTIONS:
            self._unknown_function(word, "has", *FUNCTIONS)
        arguments = self._arguments(word, 1)
        return self._made(Call(word.start, self._last_end, word.text, tuple(arguments)))

    def _list(self, start: int) -> Node:
        items: list[Node] = []
        while not self._take("]"):
            items.append(self._expression())
            if not self._take(","):
                self._expect("]")
                break
        return self._made(ListOf(start, self._last_end, tuple(items)))

    def _map(self, start: int) -> Node:
        entries: dict[str, Node] = {}
        while not self._take("}"):
            word = self._word
            if word.kind != "literal" or word.value.__class__ is not str or word.value in entries:
                self._unexpected("a string that is not yet a key of this map")
            self._at += 1
            self._expect(":")
            entries[str(word.value)] = self._expression()
            if not self._take(","):
                self._expect("}")
                break
        return self._made(MapOf(start, self._last_end, tuple(entries), tuple(entries.values())))
