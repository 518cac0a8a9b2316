"""Text to tokens. Every refusal is an `ExpressionError` with the column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from mesh.errors import ExpressionError
from mesh.policy.cel.values import INT_MAX, UINT_MAX, UInt

_TOKEN = re.compile(
    r"""
    (?P<skip>    [ \t\n\f\r]+ | //[^\n]* )
  | (?P<bytes>   (?:[bB][rR]?|[rR][bB])["'] )
  | (?P<raw>     [rR](?: \"\"\"(?s:.*?)\"\"\" | '''(?s:.*?)''' | "[^"\r\n]*" | '[^'\r\n]*' ) )
  | (?P<string>  \"\"\"(?:\\(?s:.)|[^\\])*?\"\"\" | '''(?:\\(?s:.)|[^\\])*?'''
               | "(?:\\.|[^\\"\r\n])*" | '(?:\\.|[^\\'\r\n])*' )
  | (?P<double>  [0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)? | [0-9]+[eE][+-]?[0-9]+ | \.[0-9]+(?:[eE][+-]?[0-9]+)? )
  | (?P<uint>    (?:0x[0-9a-fA-F]+|[0-9]+)[uU] )
  | (?P<int>     0x[0-9a-fA-F]+|[0-9]+ )
  | (?P<name>    [_a-zA-Z][_a-zA-Z0-9]* )
  | (?P<quoted>  `[a-zA-Z0-9_.\-/ ]+` )
  | (?P<symbol>  && | \|\| | == | != | <= | >= | [<>!?:+\-*/%().,\[\]{}] )
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:(?P<simple>[abfnrtv\\?\"'`])|[xX](?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})"
    r"|(?P<octal>[0-3][0-7]{2})|(?P<bad>.?))",
    re.DOTALL,
)
_HINTS = {
    "=": "compare with ==",
    "&": "write &&",
    "|": "write ||",
    "'": "close the string",
    '"': "close the string",
    "`": "close the quoted name, of letters, digits and _.-/ only",
}
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class Token:
    """One word of the text: `kind` is symbol, name, quoted, literal or end; `value` is a literal's value or a name."""

    kind: str
    text: str
    value: object
    start: int
    end: int


def refuse(message: str, *, at: int, expected: str = "", got: str = "", fix: str = "") -> NoReturn:
    """Raise `ExpressionError` at the offset *at*."""
    raise ExpressionError(message, expected=expected, got=got, next=fix, column=at + 1)


def tokens(text: str) -> list[Token]:
    """All tokens of *text*, then one of kind `end`.

    Raises:
        ExpressionError: A character, number or string that CEL does not have, or that the subset leaves out.
    """
    found: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            refuse(
                "a character or an unfinished string that CEL does not have",
                at=position,
                expected="a CEL expression",
                got=repr(text[position]),
                fix=_HINTS.get(text[position], "remove it"),
            )
        kind = match.lastgroup or ""
        if kind != "skip":
            found.append(_token(kind, match.group(), position, match.end()))
        position = match.end()
    found.append(Token("end", "the end", None, len(text), len(text)))
    return found


def _token(kind: str, text: str, start: int, end: int) -> Token:
    match kind:
        case "symbol" | "name":
            return Token("symbol" if text == "in" else kind, text, text, start, end)
        case "quoted":
            return Token(kind, text, text[1:-1], start, end)
        case "bytes":
            refuse(
                "bytes are outside the subset", at=start, expected="a string", got=text[:-1], fix="drop the prefix b"
            )
        case "double":
            return Token("literal", text, float(text), start, end)
        case "int" | "uint":
            return Token("literal", text, _integer(kind, text, start), start, end)
        case _:
            return Token("literal", text, _string(kind, text, start), start, end)


def _integer(kind: str, text: str, start: int) -> int:
    digits = text.rstrip("uU")
    number = int(digits, 16 if digits.startswith("0x") else 10)
    limit = UINT_MAX if kind == "uint" else INT_MAX + 1  # the parser knows whether a minus stands before 2^63
    if number > limit:
        refuse(
            "the number does not fit in 64 bits",
            at=start,
            expected=f"at most {limit}",
            got=f"{len(digits)} digits",
            fix="write it as a double, with a decimal point",
        )
    return UInt(number) if kind == "uint" else number


def _string(kind: str, text: str, start: int) -> str:
    body = text.lstrip("rR")
    quotes = 3 if body[:3] in {'"""', "'''"} else 1
    body = body[quotes:-quotes]
    if kind == "raw":
        return body
    return _ESCAPE.sub(lambda match: _escape(match, start), body)


def _escape(match: re.Match[str], start: int) -> str:
    kind = match.lastgroup
    code = match.group(kind) if kind else ""
    if kind == "simple":
        return _SIMPLE.get(code, code)
    if kind != "bad":
        point = int(code, 8 if kind == "octal" else 16)
        if point <= _MAX_CODE_POINT and point not in _SURROGATES:
            return chr(point)
    refuse(
        "an escape that CEL does not have",
        at=start + match.start() + 1,
        expected=r"\n, \t, \\, \', \xHH, \uHHHH, \UHHHHHHHH or three octal digits",
        got=match.group(),
        fix="double the backslash, or write a raw string: r'...'",
    )
