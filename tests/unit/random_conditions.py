"""Random conditions, for the differential tests."""

from __future__ import annotations

from random import Random

NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "7",
    "1000",
    "0.0",
    "1.0",
    "1.5",
    "-0.5",
    "1e3",
    "1e308",
    "0u",
    "1u",
    "2u",
    "3",
    "9007199254740993",
    "9007199254740992.0",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808.0",
    "18446744073709551615u",
)
STRINGS = (
    "''",
    "'a'",
    "'DE'",
    "'FR'",
    "'crm.'",
    "'x'",
    r"'\u00e9'",
    "'1'",
    "'2.5'",
    "'true'",
    "'2024-02-29T12:00:00Z'",
    "'1h'",
)
FIELDS = (
    "data.n",
    "data.m",
    "data.s",
    "data.t",
    "data.b",
    "data.z",
    "data.l",
    "data.names",
    "data.items",
    "data.o.x",
    "data.o.y",
    "data.nope",
    "data.when",
)
PATHS = (
    *FIELDS,
    *FIELDS,
    "event.type",
    "event.subject",
    "event.time",
    "principal.team",
    "data['a b']",
    "data.`a b`",
    "data.o",
    "data",
)
LISTS = (
    "data.l",
    "data.names",
    "data.items",
    "data.o",
    "[1, 2.0, 'a']",
    "['DE', 'FR']",
    "[data.n, data.m]",
    "data.s",
    "[]",
)
EDGE_CONSTANTS = (
    *("9007199254740991", "9007199254740992", "9007199254740993", "9007199254740992.0", "9223372036854775807"),
    *("9223372036854775808u", "9223372036854775808.0", "18446744073709551615u", "18446744073709551616.0", "0", "0.0"),
)
TIMES = ("timestamp('2024-03-01T00:00:00Z')", "timestamp(data.when)", "timestamp(event.time)", "timestamp(data.n)")
SPANS = ("duration('1h30m')", "duration('-0.5s')", "duration(data.s)")
LITERAL_LISTS = (
    "['DE', 'FR']",
    "['a', 'x', 'DE', 'FR', 'crm.']",
    "[1, 2, 3]",
    "[2, 'a', null]",
    "[true, 1.5]",
    "[0, 1.0, 2u]",
    "[]",
)


class Grammar:
    """Writes random conditions: mostly of fitting types, now and then not."""

    def __init__(self, random: Random, *, times: bool = True) -> None:
        self.random = random
        self.times = times  # cel-cpp reads more spellings of a time than RFC 3339 has; we do not
        self.variable = ""

    def one_of(self, *choices: str) -> str:
        """One of *choices*."""
        return self.random.choice(choices)

    def condition(self, depth: int) -> str:
        """Something that is true or false, if all goes well."""
        roll = self.random.random()
        if depth <= 0 or roll < 0.12:
            return self.one_of(
                "true", "false", "data.b", "has(data.n)", "has(data.o.x)", "has(data.nope)", self.test(0)
            )
        if roll < 0.42:
            glue = self.one_of(" && ", " || ")
            return glue.join(self.operand(depth) for _ in range(self.random.choice((2, 2, 2, 3))))
        if roll < 0.5:
            return f"{self.one_of('!', '!', '!!')}({self.condition(depth - 1)})"
        if roll < 0.56:
            return f"({self.condition(depth - 1)} ? {self.condition(depth - 1)} : {self.condition(depth - 1)})"
        if roll < 0.68 and not self.variable:
            return self.quantifier(depth)
        return self.test(depth)

    def operand(self, depth: int) -> str:
        """One side of && or ||."""
        if self.random.random() < 0.05:
            return self.anything(0)
        text = self.condition(depth - 1)
        return f"({text})" if self.random.random() < 0.8 else f"(({text}))"

    def quantifier(self, depth: int) -> str:
        """all, exists or exists_one."""
        over = self.one_of(*LISTS, self.list(1))
        self.variable = "i"
        body = self.condition(depth - 1)
        self.variable = ""
        return f"{over}.{self.one_of('all', 'exists', 'exists_one')}(i, {body})"

    def test(self, depth: int) -> str:
        """A comparison, a membership, a search."""
        roll = self.random.random()
        if roll < 0.06:
            pair = ["data.edge", self.one_of("data.edge", "data.n", *EDGE_CONSTANTS)]
            return f" {self.one_of('==', '!=', '<', '<=', '>', '>=')} ".join(self.random.sample(pair, 2))
        if roll < 0.08:
            return f"data.edge in [{self.one_of(*EDGE_CONSTANTS)}, {self.one_of(*EDGE_CONSTANTS)}]"
        if roll < 0.3:
            return f"{self.number(depth)} {self.one_of('==', '!=', '<', '<=', '>', '>=')} {self.number(depth)}"
        if roll < 0.45:
            return f"{self.string(depth)} {self.one_of('==', '!=', '<', '>=')} {self.string(depth)}"
        if roll < 0.6:
            return f"{self.anything(depth)} {self.one_of('==', '!=')} {self.anything(depth)}"
        if roll < 0.75:
            return f"{self.anything(0)} in {self.one_of(*LITERAL_LISTS, self.list(depth))}"
        if roll < 0.93 or not self.times:
            return f"{self.string(depth)}.{self.one_of('startsWith', 'endsWith', 'contains')}({self.string(depth)})"
        sides = TIMES if roll < 0.98 else SPANS
        return f"{self.time(sides)} {self.one_of('<', '>=', '==')} {self.time(sides)}"

    def time(self, sides: tuple[str, ...]) -> str:
        """A timestamp or a duration."""
        if self.random.random() < 0.3:
            return f"({self.one_of(*sides)} {self.one_of('+', '-')} {self.one_of(*SPANS)})"
        return self.one_of(*sides)

    def path(self) -> str:
        """A field, or something of the macro's variable."""
        if self.variable and self.random.random() < 0.6:
            return self.one_of("i", "i", "i.sku", "i.qty", "i[0]", "data.o[i]")
        return self.one_of(*PATHS)

    def number(self, depth: int) -> str:
        """A number, if all goes well."""
        roll = self.random.random()
        if depth <= 0 or roll < 0.35:
            return self.path()
        if roll < 0.6:
            return self.one_of(*NUMBERS)
        if roll < 0.8:
            return f"({self.number(depth - 1)} {self.one_of('+', '-', '*', '/', '%')} {self.number(depth - 1)})"
        if roll < 0.86:
            return f"-{self.path()}"
        if roll < 0.94:
            return self.one_of(f"size({self.list(0)})", f"{self.path()}.size()")
        return f"{self.one_of('int', 'double', 'uint')}({self.anything(0)})"

    def string(self, depth: int) -> str:
        """A string, if all goes well."""
        roll = self.random.random()
        if roll < 0.5:
            return self.path()
        if roll < 0.85 or depth <= 0:
            return self.one_of(*STRINGS)
        if roll < 0.95:
            return f"({self.string(depth - 1)} + {self.string(depth - 1)})"
        return "string(data.b)"

    def list(self, depth: int) -> str:
        """A list or a map, if all goes well."""
        roll = self.random.random()
        if depth <= 0 or roll < 0.5 or self.variable:
            return self.one_of(*LISTS)
        if roll < 0.6:
            return f"({self.one_of(*LISTS)} + {self.one_of(*LISTS)})"
        over, self.variable = self.one_of(*LISTS), "i"
        body, extra = self.condition(1), self.anything(1)
        self.variable = ""
        return self.one_of(f"{over}.filter(i, {body})", f"{over}.map(i, {extra})", f"{over}.map(i, {body}, {extra})")

    def anything(self, depth: int) -> str:
        """A value of any type."""
        roll = self.random.random()
        if roll < 0.5:
            return self.path()
        if roll < 0.8:
            return self.one_of(self.number(depth), self.string(depth))
        if roll < 0.95:
            return self.one_of("null", "true", "false", "[]", "{}", "[1, 'a']", "{'x': 1}", "{'x': data.n, 'y': 'b'}.x")
        return self.one_of(
            "data.l[0]", "data.l[data.n]", "data.o['x']", "data.o[data.s]", "data[data.s]", "dyn(data.n)"
        )
