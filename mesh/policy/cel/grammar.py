"""The words of the subset."""

from __future__ import annotations

PRECEDENCE = {
    **dict.fromkeys(("||",), 1),
    **dict.fromkeys(("&&",), 2),
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%"), 5),
}
MACROS = {"all": (1,), "exists": (1,), "exists_one": (1,), "filter": (1,), "map": (1, 2)}  # expressions after the name
METHODS = {"size": 0, "startsWith": 1, "endsWith": 1, "contains": 1}
FUNCTIONS = ("size", "int", "uint", "double", "string", "bool", "dyn", "timestamp", "duration")
RESERVED = frozenset(
    {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package"}
    | {"namespace", "return", "var", "void", "while"}
)  # CEL language definition, syntax: RESERVED; legal after a dot only
CONSTANTS = {"true": True, "false": False, "null": None}
