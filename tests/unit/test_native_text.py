"""`verbatim` and `glimpse`, compiled: what they say of a text is what decoding it, and encoding that again, says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle, product
from random import Random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.attributes import GRAMMAR
from mesh.errors import InputError
from mesh.jsontext import MAX_DEPTH, decode, encode
from tests.unit.native_twins import compares, compiled, hostile, outcome, same

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "5f0c2a9e",
    "source": "/crm/eu",
    "type": "crm.contact.updated.v1",
    "time": "2026-01-28T12:00:00.123Z",
    "datacontenttype": "application/json",
    "data": {
        "name": "Zoë Čapek 😀",
        "note": 'she said "yes"\nand\tleft \\o/',
        "total": 49.9,
        "rate": -0.0625,
        "lines": [{"sku": "A-1", "n": 2}, {"sku": "A-2", "n": 0}, [], {}, [[1, 9.5]]],
        "paid": True,
        "refunded": False,
        "coupon": None,
        "": "no name",
    },
}
COMPACT = encode(EVENT)
SPACED = json.dumps(EVENT, indent=2, ensure_ascii=False).encode()
OTHER = b'{"specversion":"1.0","data":[{"a":1.5},"x",{"a":-7,"b":"\\"\\\\"},null],"id":"1"}'


def _meaning(body: bytes, depth: int) -> bytes | None:
    """What `verbatim` may answer, where it answers."""
    try:
        return encode(decode(body, max_depth=depth))
    except InputError:
        return None


def _looked(body: bytes, depth: int = MAX_DEPTH) -> bytes | None:
    """What the compiled `verbatim` says of *body*, which has to be None or all that decoding and encoding says."""
    text: bytes | None = compiled().verbatim(body, depth)
    if text is not None:
        assert type(text) is bytes
        assert text == _meaning(body, depth), (body, depth)
        assert text is body or len(text) < len(body)  # nothing is copied that has no white space
        if text is not body:
            assert compiled().verbatim(text, depth) is text
        assert repr(compiled().glimpse(text, None)) == repr(
            decode(text, max_depth=depth)
        )  # so it can be read without more
    return text


def _value(part: bytes) -> bytes:
    """An event that has *part* for a value."""
    return b'{"id":"1","data":' + part + b',"time":""}'


# --- texts made to hurt ----------------------------------------------------------------------------------------------

CONTROLS = [bytes([byte]) for byte in range(0x20)]
WELL_FORMED = [  # each first and last of its length, and around the surrogates; and what is odd, and a character
    *("\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\ufeff", "\ufffd", "\uffff", "\U00010000", "\U0010ffff"),
    *("é", "\u2028", "😀", "'", "/", "<&>"),
]
ILL_FORMED = [
    *(b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2(\xa1", b"\xe0\x80\x80"),
    *(b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf"),
    *(b"\xed\xa0\xbd\xed\xb8\x80", b"\xf0\x9f\x98", b"\xf0\x80\x80\x80"),
    *(b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),
    *(b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xff", b"\xc3\xc3\xa9"),
]  # fmt: skip
PLAIN_ESCAPES = [rb"\"", rb"\\", rb"\b", rb"\f", rb"\n", rb"\r", rb"\t"]
OTHER_ESCAPES = [
    *(rb"\/", rb"\u0041", rb"\u0022", rb"\u005c", rb"\u000a", rb"\u0000"),
    *(rb"\u001f", rb"\u001F", rb"\u007f", rb"\u00e9"),
    *(rb"\ud83d\ude00", rb"\ud800", rb"\udc00", rb"\udc00\ud800", rb"\ud800\u0041", rb"\ud83dx", rb"\u004", rb"\u"),
    *(rb"\x41", rb"\a", rb"\v", rb"\0", rb"\'", rb"\ ", rb"\N"),
    *(rb"\U0041", b"\\\n", b"\\\xc3\xa9", b"\\\0", rb"\u00g0"),
]  # fmt: skip
GOOD_STRINGS = [b"", b"a", b"x" * 70, *(text.encode() for text in WELL_FORMED), *PLAIN_ESCAPES, b"".join(PLAIN_ESCAPES)]
STRINGS = [*GOOD_STRINGS, *CONTROLS, *ILL_FORMED, *OTHER_ESCAPES, b"\\"]

GOOD_NUMBERS = [
    *(b"0", b"1", b"-1", b"10", b"-10", b"999999999999999999"),
    *(b"-999999999999999999", b"0.0", b"1.0", b"-1.0", b"10.0"),
    *(b"49.9", b"9.5", b"-0.5", b"0.1", b"0.0001", b"0.00012", b"0.0625", b"3.14159265358979", b"99999999999999.0"),
    *(b"123456789012.345", b"12345678901234.5", b"100.01", b"100000.0", b"-52.37"),
]  # fmt: skip
NUMBERS = [
    *GOOD_NUMBERS,
    *(b"-0", b"-0.0", b"0.00", b"-0.00", b"1.50", b"1.00", b"0.10", b"1e5", b"1E5", b"1e+5", b"1e-5", b"1.5e3", b"0e0"),
    *(b"0.00001", b"0.00009999", b"-0.00001", b"12345678901234567", b"1234567890123456789", b"12345678901234567890"),
    *(b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808"),
    *(b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"1" * 50, b"1" * 400),
    *(b"123456789012345.5", b"999999999999999.0", b"999999999999999.9", b"1000000000000000.0", b"10000000000000000.0"),
    *(b"0.1234567890123456", b"0.30000000000000004", b"9007199254740993.0"),
    *(b"1.7976931348623157e308", b"1e400", b"5e-324"),
    *(b"0." + b"0" * 30 + b"1", b"0." + b"0" * 400, b"1." + b"0" * 60, b"1" * 40 + b".0", b"2.2250738585072011e-308"),
    *(b"00", b"01", b"-01", b"00.5", b"01.5", b"+1", b".5", b"5.", b"-.5"),
    *(b"-", b"--1", b"1-", b"1.-1", b"1.5.5", b"1e"),
    *(b"1e+", b"1.e5", b"1.5e", b"0x10", b"1_0", b"1 0", b"1. 0", b"- 1"),
    *(b"1a", b"NaN", b"Infinity", b"-Infinity", b"-NaN"),
    *(b"nan", b"inf", b"1.0f", b"1,5", "٣".encode(), "-٣".encode(), "1.٣".encode(), b"1\0", b"1.5\0"),
]  # fmt: skip
LITERALS = [b"true", b"false", b"null"]
ODD_LITERALS = [
    *(b"True", b"tru", b"truee", b"tRue", b"fals", b"falsee", b"nul"),
    *(b"nulll", b"nu ll", b"undefined", b"None", b"t", b"f"),
    *(b"n", b"truefalse", b"true false", b"null\0", b"'a'", b"a", b""),
    *(b" ", b"\0", b"\xef\xbb\xbf1", b"\xa0", b"/**/1"),
    *(b"]", b"}", b"[", b"{", b",", b":", b'"', b"[1,]", b"[,1]", b"[1 2]"),
    *(b"[1,,2]", b"[1}", b"{]", b"{,}", b"[[]", b"[]]"),
    *(b'{"a"}', b'{"a":}', b'{"a":1,}', b'{,"a":1}', b'{"a":1 "b":2}'),
    *(b'{"a" 1}', b'{"a"::1}', b"{:1}", b"{a:1}", b"{1:1}"),
    *(b"{null:1}", b"{'a':1}", b'{"a":1,,"b":2}', b'{"a":1]', b'{"a":1'),
    *(b'["a', b'{"a', b'{"a":"b', b"[1", b"[1,", b'{"a":1,'),
    *(b'{"a","b"}', b'["a":1]', b'{"a":1:2}', b'{"a"}}', b"{{}}", b"{[]:1}"),
    *(b'{"a":1}{"b":2}', b"[][]", b'"a""b"', b'"a"1'),
]  # fmt: skip

_quoted = b'"%b"'.__mod__
GOOD_SCALARS = [*map(_quoted, GOOD_STRINGS), *GOOD_NUMBERS, *LITERALS]
SCALARS = [*map(_quoted, STRINGS), *NUMBERS, *LITERALS, *ODD_LITERALS]
GOOD_NAMES = [
    b"a",
    b"b",
    b"c",
    b"iban",
    b"",
    b"data",
    "é".encode(),
    b"x" * 15,
    b"x" * 16,
    b"x" * 17,
    b"\x7f",
    b"{",
    b"]:",
]

SPACES = st.lists(st.sampled_from([b""] * 6 + [b" ", b"\n", b"\t", b"\r", b" \r\n\t "]), min_size=1, max_size=4)


def _one_of(parts: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(parts) - 1).map(lambda i: parts[i])  # as `sampled_from`, which shows all of them


VALUES = _one_of(GOOD_SCALARS) | _one_of(GOOD_SCALARS) | _one_of(GOOD_SCALARS) | _one_of(SCALARS)
KEYS = _one_of([_quoted(name) for name in GOOD_NAMES * 20 + STRINGS])


def _listed(begin: bytes, parts: list[tuple[bytes, ...]], end: bytes, spaces: list[bytes]) -> bytes:
    space = cycle(spaces).__next__
    return begin + space() + b",".join(space() + b":".join(p + space() for p in part) for part in parts) + space() + end


def _object(members: list[tuple[bytes, bytes]], spaces: list[bytes], chance: int) -> bytes:
    distinct = [*dict(members).items()] if chance else members
    return _listed(b"{", [*distinct], b"}", spaces)


def _array(parts: list[bytes], spaces: list[bytes]) -> bytes:
    return _listed(b"[", [(part,) for part in parts], b"]", spaces)


def _objects(part: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(_object, st.lists(st.tuples(KEYS, part), max_size=4), SPACES, st.integers(0, 5))


PARTS = st.recursive(
    VALUES, lambda part: st.builds(_array, st.lists(part, max_size=4), SPACES) | _objects(part), max_leaves=10
)
TEXTS = _objects(PARTS)
DEPTHS = st.sampled_from([MAX_DEPTH] * 6 + [0, 1, 2, 3, 4, -1, 63, 65, 10**6])
AROUND = st.sampled_from([b""] * 12 + [b" ", b"\n\r\t ", b"\xef\xbb\xbf", b"\0", b"x", b",", b"{}", b"\x0b", b"\xa0"])


@compares("verbatim")
@given(AROUND, TEXTS | TEXTS | TEXTS | PARTS, AROUND, DEPTHS)
@example(b"", b'{"a":1,"\\u0061":2}', b"", MAX_DEPTH)
@example(b"", b'{"a":{"b":1},"b":{"a":1},"a":1}', b"", MAX_DEPTH)
def test_verbatim_of_any_text(before: bytes, text: bytes, behind: bytes, depth: int) -> None:
    """None, or what decoding and encoding gives; and that where nothing hurts."""
    _looked(before + text + behind, depth)


@compares("verbatim")
@given(st.binary(max_size=40), DEPTHS)
def test_verbatim_of_any_bytes(body: bytes, depth: int) -> None:
    """No JSON, mostly: alone, as a value, as a name, in a string."""
    for part in (body, _value(body), _value(b'"%b"' % body), b'{"%b":1}' % body, b"{" + body, b'{"a":[' + body):
        _looked(part, depth)


@compares("verbatim")
def test_verbatim_of_each_value() -> None:
    """Each that hurts, at each kind of place; those that do not hurt are proved."""
    for part in dict.fromkeys(SCALARS):
        for body in (
            _value(part),
            b'{"a":%b}' % part,
            b'{"data":[%b]}' % part,
            b'{"a":[0,%b ,{}]}' % part,
            part,
            b"[%b]" % part,
        ):
            _looked(body)
        _looked(b"{%b:1}" % part)
        _looked(b'{"a":1,%b:1}' % part)
        _looked(b'{"a":1}' + part)
        _looked(part + b'{"a":1}')
    for part in GOOD_SCALARS:
        assert _looked(_value(part)) == _value(part), part
        assert _looked(b'{ "a" : [ %b , {"b":%b}\n]\t}\r' % (part, part)) == b'{"a":[%b,{"b":%b}]}' % (part, part), part


@compares("verbatim")
def test_verbatim_of_every_escape() -> None:
    """Whatever byte comes behind a backslash, in a value and in a name; only what msgspec writes is proved."""
    plain = {escape[1] for escape in PLAIN_ESCAPES}
    for byte in range(256):
        for rest in (b"", b"0041", b"x", b'"', b"\\", b"\\\\"):
            escape = b"\\" + bytes([byte]) + rest
            assert _looked(b'{"%b":1}' % escape) is None
            assert _looked(b'{"a":1,"%b":1}' % escape) is None
            _looked(_value(b'"%b' % escape))
            found = _looked(_value(b'"%b"' % escape))
            assert (found is not None) == (byte in plain) or rest in (b'"', b"\\"), escape
    for number in range(0x300):
        assert _looked(_value(b'"\\u%04x"' % number)) is None or number < 0x20


@compares("verbatim")
def test_verbatim_of_every_utf8() -> None:
    """Each first byte, with others at the edges of what may follow: proved where it is well-formed, else not."""
    seconds = [0x22, 0x41, 0x5C, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    look = compiled().verbatim
    for first, second in product(range(0x80, 256), seconds):
        for rest in ((), (0x80,), (0xBF,), (0xC0,), (0x80, 0xBF), (0xBF, 0x7F), (0xBF, 0xC2), (0x80, 0x80, 0x80)):
            part = bytes((first, second, *rest))
            try:
                well_formed = '"' not in part.decode() and "\\" not in part.decode()
            except UnicodeDecodeError:
                well_formed = False
            for text in (b'{"a":"%b"}' % part, b'{"%b":"a"}' % part, b'{"a":"0123456%b01234567"}' % part):
                assert look(text, 9) is (text if well_formed else None), text


@compares("verbatim")
def test_verbatim_looks_at_each_byte_of_a_string() -> None:
    """A byte that hurts, at each place of strings of each length up to some blocks; and the string without it."""
    hurts = [b"\0", b"\x1f", b"\n", b"\x80", b"\xff", b"\xc3", b"\\/", b"\\", b'"']
    for size in range(71):
        for text in (b'{"a":"%b"}' % (b"x" * size), b'{"%b":0}' % (b"x" * size), b'{"a":"\\n%b"}' % (b"x" * size)):
            assert _looked(text) is text
        for at in {0, 1, 7, 8, 15, 16, 31, 32, size // 2, max(size - 9, 0), max(size - 1, 0), size}:
            if at <= size:
                for hurt in hurts:
                    text = b"x" * at + hurt + b"x" * (size - at)
                    assert _looked(b'{"a":"%b"}' % text) is None, text
                    assert _looked(b'{"%b":0}' % text) is None, text


# --- members ---------------------------------------------------------------------------------------------------------


def _members(names: list[bytes], value: bytes = b"0") -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name, value) for name in names) + b"}"


@compares("verbatim")
def test_verbatim_compares_names_of_every_length() -> None:
    """Equal ones are found; those that differ in one byte, or in length, are not equal."""
    for size in range(71):
        name = bytes(97 + i % 26 for i in range(size))
        assert _looked(_members([name, name])) is None
        assert _looked(_members([name, b"-", name])) is None
        others = [name + b"x", b"x" + name, name + b" ", name + b"\xc2\x80"]
        others += [name[:at] + b"-" + name[at + 1 :] for at in range(size)]
        for other in others:
            for names in ([name, other], [other, name]):
                text = _members(names)
                assert _looked(text) is text
        for at in range(size - 1):  # of the same bytes, in another order
            other = name[:at] + name[at + 1 : at + 2] + name[at : at + 1] + name[at + 2 :]
            assert _looked(_members([name, other])) is not None


@compares("verbatim")
def test_verbatim_compares_each_name_with_each() -> None:
    """Of up to 256, short and long ones, however far apart; with many short ones it may give up."""
    chance = Random(7)
    for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256):
        for pattern in (b"%d", b"name%03d", b"%03dname", b"a long name that has its number %d inside, and more"):
            names = [pattern % i for i in range(count)]
            text = _members(names)
            assert _looked(text) is text or count > 128, (count, pattern)
            pairs = {(0, count - 1), (0, min(1, count - 1)), (max(count - 2, 0), count - 1)}
            pairs |= {tuple(sorted(chance.choices(range(count), k=2))) for _ in range(9)}  # type: ignore[misc]
            for i, j in pairs:
                if i != j:
                    again = [*names[:j], names[i], *names[j + 1 :]]
                    assert _looked(_members(again)) is None, (count, pattern, i, j)
    for count in (257, 258, 300, 512, 1000):
        names = [b"%d" % i for i in range(count)]
        for text in (_members(names), b'{"a":[%b]}' % _members(names), _members([*names[:-1], names[0]])):
            assert _looked(text) is None


def _further_in(body: bytes) -> Iterator[bytes]:
    """*body*, and that at each depth up to 30, with members of the same names around it."""
    for levels in range(30):
        yield b'{"a":0,"b":' * levels + body + b',"c":{"a":[]}}' * levels
        yield b'{"b":{"a":0,"c":1},"a":[[{"a":0}],' * (levels // 3) + body + b"]}" * (levels // 3)


@compares("verbatim")
def test_verbatim_knows_which_object_a_name_is_of() -> None:
    """The same name further in, further out, beside: none of them is there twice."""
    for body in (
        b'{"a":{"a":{"a":0}}}', b'{"a":[{"a":0},{"a":0}]}', b'{"b":1,"a":{"b":2,"c":3},"c":1}', b'{"a":{},"b":{}}',
        b'{"a":{"b":1,"c":{"a":1}},"b":{"b":2,"a":1},"c":{"c":[]}}', b'{"a":"a","b":"a","c":["a","a"]}',
    ):  # fmt: skip
        for text in _further_in(body):
            assert _looked(text) is text
    for body in (
        b'{"a":{"b":1},"a":2}', b'{"a":1,"b":{"c":1,"d":{"a":1}},"a":2}', b'{"a":[{"b":1},{"b":1,"c":2,"b":3}]}',
        b'{"b":[{"a":0,"c":0}],"a":1,"c":{},"b":1}', b'{"":1,"":2}', b'{"a":{"":1,"x":{"":2},"":2}}',
        b'{"x":{"y":1,"z":2},"y":3,"z":4,"y":5}', b'{"a":1,"a":1}', b'{"a" :1,"a":1}', b'{"a":[[[{"b":0,"b":0}]]]}',
    ):  # fmt: skip
        for text in _further_in(body):
            assert _looked(text) is None
    many = b"[" + b",".join(_members([b"%d" % i for i in range(40)]) for _ in range(40)) + b"]"
    assert _looked(b'{"data":%b}' % many) == b'{"data":%b}' % many
    deep = b"0"
    for _ in range(30):
        deep = _members([b"%d" % i for i in range(20)])[:-1] + b',"deep":%b}' % deep
    assert _looked(deep) is deep
    assert _looked(deep[:-1] + b',"7":0}') is None


@compares("verbatim")
@given(st.lists(st.binary(max_size=3).filter(lambda name: not set(name) & set(b'"\\')), max_size=40), st.integers())
def test_verbatim_of_random_names(names: list[bytes], seed: int) -> None:
    """Short ones of any bytes, so that some are equal, and some have an equal hash."""
    _looked(_members(names))
    chance = Random(seed)
    for _ in range(20):
        size = chance.choice([1, 2, 8, 9, 20])
        some = [bytes(chance.choices(b"ab", k=size)) for _ in range(chance.choice([2, 5, 20]))]
        assert (_looked(_members(some)) is None) == (len(set(some)) < len(some)), some


# --- numbers ---------------------------------------------------------------------------------------------------------

MAX_DIGITS = 15  # that a fraction may have: any number of so many is its own shortest spelling


@compares("verbatim")
@given(
    st.sampled_from(["", "-"]), st.text("0123456789", max_size=20), st.text("0123456789", max_size=20), st.integers()
)
def test_verbatim_of_fractions(sign: str, whole: str, after: str, seed: int) -> None:
    """Proved is only what msgspec writes so, and all of it that has few digits."""
    chance = Random(seed)
    texts = [f"{sign}{whole}.{after}", f"{sign}{whole.lstrip('0') or '0'}.{after}", repr(chance.random()), sign + whole]
    texts += [repr(chance.uniform(-1, 1) * 10.0 ** chance.randint(-8, 20)) for _ in range(40)]
    texts += [
        f"{chance.randint(0, 10 ** chance.randint(0, 15))}.{chance.randint(0, 10 ** chance.randint(0, 15))}"
        for _ in range(40)
    ]
    texts += [
        f"{sign}0.{'0' * chance.randint(0, 5)}{chance.randint(1, 10 ** chance.randint(1, 15))}" for _ in range(20)
    ]
    for text in texts:
        found = _looked(_value(text.encode()))
        if _has_one_spelling(text):
            assert found is not None, text


def _has_one_spelling(text: str) -> bool:
    whole, _, after = text.removeprefix("-").partition(".")
    short = whole == "0" or (whole[:1] not in ("", "0") and whole.isdigit())
    if not (short and after.isdigit()) or (after[-1] == "0" and after != "0"):
        return False
    digits = (whole + after).lstrip("0")
    return len(digits) <= MAX_DIGITS and (text == "0.0" or 1e-4 <= abs(float(text)) < 1e15)


@compares("verbatim")
def test_verbatim_of_numbers_of_every_length() -> None:
    """Integers of up to 18 digits, fractions of up to 15, each with its point at each place."""
    digits = "9876543219876543219876543219"
    for size, sign in product(range(1, 29), ("", "-")):
        for number in (digits[:size], "1" + "0" * (size - 1), "9" * size):
            found = _looked(_value((sign + number).encode()))
            assert (found is not None) or size > 18, number
            for at in range(1, size):
                text = f"{sign}{number[:at]}.{number[at:]}"
                found = _looked(_value(text.encode()))
                assert found is not None or not _has_one_spelling(text), text
        for zeros in range(7):
            text = f"{sign}0.{'0' * zeros}{digits[:size]}"
            found = _looked(_value(text.encode()))
            assert found is not None or not _has_one_spelling(text), text
    for text in (
        f"{n}{e}" for n in ("1", "1.5", "0", "0.0", "-0", "10") for e in ("e0", "E0", "e1", "e-1", "e+22", "E400")
    ):
        assert _looked(_value(text.encode())) is None


# --- depth and white space -------------------------------------------------------------------------------------------


@compares("verbatim")
def test_verbatim_counts_depth_as_decode_does() -> None:
    """Arrays, objects and both by turns; at the limit, below and above; brackets in strings are none."""
    shapes = {(b'{"a":', b"}"), (b"[", b"]"), (b'{"[{":1,"a":[', b"]}"), (b'[0,"[[[[",{"x":', b"}]")}
    for (begin, end), inside in product(shapes, (b"0", b"[]", b"{}", b'"[{"')):
        for levels in range(70):
            body = b'{"data":' + begin * levels + inside + end * levels + b"}"
            for limit in {
                MAX_DEPTH,
                levels,
                levels + 1,
                levels + 2,
                2 * levels,
                2 * levels + 1,
                2 * levels + 2,
                0,
                -1,
                999,
            }:
                found = _looked(body, limit)
                assert found is body or levels > 15 or _meaning(body, limit) is None, (body, limit)
            assert _looked(body[: -levels - 1], 999) is None
    far = 50_000
    for body in (b"[" * far, b'{"a":' * far, b'{"a":' + b"[" * far + b"]" * far + b"}"):
        assert _looked(body, 10**9) is None


TOKENS = [
    b"{",
    b'"a b"',
    b":",
    b"[",
    b'"\\" "',
    b",",
    b"-1.5",
    b",",
    b"true",
    b"]",
    b",",
    b'"{ "',
    b":",
    b"{",
    b"}",
    b"}",
]


@compares("verbatim")
def test_verbatim_leaves_out_white_space() -> None:
    """Between any two tokens, each kind of it and several; what is in a string stays."""
    compact = b"".join(TOKENS)
    for space in (b" ", b"\t", b"\n", b"\r", b" \r\n\t" * 9):
        for at in range(len(TOKENS) + 1):
            assert _looked(b"".join([*TOKENS[:at], space, *TOKENS[at:]])) == compact
        assert _looked(space.join([b"", *TOKENS, b""])) == compact
    for odd in (b"\0", b"\x0b", b"\x0c", b"\x85", b"\xa0", b"\xc2\xa0", b"\xef\xbb\xbf", b"\x1c", b"/**/", b"#\n"):
        for at in range(len(TOKENS) + 1):
            assert _looked(b"".join([*TOKENS[:at], odd, *TOKENS[at:]])) is None
    for size in range(70):
        assert _looked(b" " * size + compact) == _looked(compact + b"\n" * size) == compact


@compares("verbatim")
def test_verbatim_knows_what_is_usual() -> None:
    """Else the shortcut would be none: a plain event, as our encoder writes it and as others do."""
    events: list[dict[str, Any]] = [EVENT, EVENT["data"], decode(OTHER), {}, {"a": {}}, {"data": []}]
    for fields in events:
        compact = encode(fields)
        assert compiled().verbatim(compact, MAX_DEPTH) is compact
        for separators in ((", ", ": "), (",", ": "), (",", ":")):
            spaced = json.dumps(fields, ensure_ascii=False, separators=separators).encode()
            assert _looked(spaced) == compact
        for indent in (1, 2, "\t"):
            assert _looked(json.dumps(fields, ensure_ascii=False, indent=indent).encode() + b"\n") == compact


# --- bytes that change on the way ------------------------------------------------------------------------------------

BYTES = [*b'{}[]:,"\\ \n\t0123.5-+eEatfnu/', 0, 0x1F, 0x7F, 0x80, 0xBF, 0xC3, 0xE2, 0xED, 0xF0, 0xFF]


@compares("verbatim")
def test_verbatim_of_an_event_with_one_byte_changed() -> None:
    """Each byte is another, one more, or gone; and all that is behind it is gone."""
    for body in (OTHER, b'{ "a" : [ 1.5 , "\xc3\xa9\xf0\x9f\x98\x80\\n" ] , "b" : { } }'):
        for at in range(len(body) + 1):
            _looked(body[:at])
            _looked(body[at:])
            _looked(body[:at] + body[at + 1 :])
            for byte in BYTES:
                _looked(body[:at] + bytes([byte]) + body[at + 1 :])
                _looked(body[:at] + bytes([byte]) + body[at:])


EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "copy"]), st.floats(0, 1), st.sampled_from(BYTES)),
    max_size=4,
)


def _edited(body: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    for how, place, byte in edits:
        at = int(place * len(body))
        one = bytes([byte])
        if how == "flip":
            body = body[:at] + one + body[at + 1 :]
        elif how == "insert":
            body = body[:at] + one + body[at:]
        elif how == "delete":
            body = body[:at] + body[at + 1 + byte % 8 :]
        else:
            body = body[:at] + body[at // 2 : at] + body[at:]
    return body


@compares("verbatim")
@given(
    st.sampled_from([COMPACT, SPACED, OTHER]),
    EDITS,
    st.sampled_from([COMPACT, OTHER]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_verbatim_of_a_real_event_with_bytes_changed(
    body: bytes, edits: list[tuple[str, float, int]], other: bytes, left: float, right: float
) -> None:
    """Some of its bytes are others; the first part of it, and the last one of another."""
    _looked(_edited(body, edits))
    _looked(body[: int(left * len(body))] + other[int(right * len(other)) :])


@compares("verbatim")
def test_verbatim_reads_nothing_behind_the_end() -> None:
    """Each first part of each text that hurts, in bytes of its own: the sanitizers see who reads on."""
    for part in dict.fromkeys([*SCALARS, *map(_quoted, GOOD_NAMES)]):
        for body in (_value(part), b'{"a":[%b' % part, b"{%b" % part):
            for end in range(len(body)):
                _looked(body[:end])
    for body in (COMPACT, SPACED):
        for end in range(len(body)):
            assert _looked(body[:end]) is None


@hostile
def test_verbatim_takes_bytes_and_a_number() -> None:
    """Another type is refused."""
    look = compiled().verbatim
    for arguments in (
        ("{}", 9),
        (bytearray(b"{}"), 9),
        (memoryview(b"{}"), 9),
        (None, 9),
        (b"{}",),
        (b"{}", "9"),
        (b"{}", 9, 9),
    ):
        assert outcome(look, *arguments) == ("raises", TypeError), arguments
    assert outcome(look, b"{}", 10**30) in [("raises", OverflowError), ("answers", b"{}")]


# --- glimpse ---------------------------------------------------------------------------------------------------------

MEMBERS = ["a", "b", "c", "iban", "data", "", "é", "😀", "x" * 20]
PROVEN_SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 10**18 - 1, 1 - 10**18, 0.0, 1.0, -1.5, 49.9, 0.0001, 123456789012.345, "", "a", "é",
    "😀", 'say "hi"', "\\", "\\n", "line\nline", "\b\f\n\r\t", "\x7f", "x" * 70, "[REDACTED]", "{", "]", '",', "\u2028",
]  # fmt: skip
PROVEN = st.recursive(
    st.sampled_from(PROVEN_SCALARS),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.sampled_from(MEMBERS), part, max_size=4),
    max_leaves=12,
)
"""Values whose text is proved."""
EVENTS = st.builds(
    lambda before, data, behind: {**before, **data, **behind},
    st.dictionaries(st.sampled_from(["id", "b", "", "é", "subject"]), PROVEN, max_size=3),
    st.fixed_dictionaries({}, optional={"data": PROVEN}),
    st.dictionaries(st.sampled_from(["time", "a", "type", "iban"]), PROVEN, max_size=3),
)
WANTED: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.just({}),
    lambda part: st.dictionaries(st.sampled_from([*MEMBERS, "not there", "\0"]), part, max_size=5),
    max_leaves=10,
)


def proven(fields: Any) -> bytes:
    """The text of *fields*, which `verbatim` proves."""
    text: bytes = encode(fields)
    found = compiled().verbatim(text, MAX_DEPTH)
    assert found is text, text
    return text  # type: ignore[no-any-return]


def _wanted_of(value: Any, chance: Random) -> Any:
    """Some of what there is, and some that is not."""
    if chance.random() < 0.3:
        return None
    if type(value) is not dict:
        return {"a": None}
    there = {name: _wanted_of(item, chance) for name, item in value.items() if chance.random() < 0.5}
    return dict(chance.sample([*there.items()], len(there))) | ({"z": None} if chance.random() < 0.3 else {})


@compares("glimpse")
@given(EVENTS, WANTED, st.integers())
def test_glimpse(fields: dict[str, Any], wanted: Any, seed: int) -> None:
    """Of any event: members that are there or not, whose value is an object, an array or a scalar."""
    text = proven(fields)
    asked: list[Any] = [wanted, _wanted_of(fields.get("data"), Random(seed)), None, {}]
    for each in asked:
        same("glimpse", text, each)


@compares("glimpse")
def test_glimpse_of_what_is_usual() -> None:
    """All attributes, and of the data what is asked for, in the order of the text."""
    text = proven(EVENT)
    attributes = {name: value for name, value in EVENT.items() if name != "data"}
    data = EVENT["data"]
    rows: list[tuple[Any, Any]] = [
        ({}, {}),
        (None, data),
        ({"total": None, "name": None}, {"name": data["name"], "total": 49.9}),
        (
            {"lines": {"sku": None}, "paid": {"x": None}, "note": {}},
            {name: data[name] for name in ("note", "lines", "paid")},
        ),
        ({"": None, "coupon": {"a": {}}, "gone": None}, {"coupon": None, "": "no name"}),
    ]
    for wanted, seen in rows:
        found = same("glimpse", text, wanted)
        assert found == attributes | {"data": seen}
        assert list(found["data"]) == list(seen)
    assert same("glimpse", b'{"data":{"data":{"a":{"b":1,"c":2}},"a":0}}', {"data": {"a": {"c": None}}}) == {
        "data": {"data": {"a": {"c": 2}}}
    }


SMALL_WANTED: list[Any] = [
    *(None, {}, {"a": None}, {"b": None}, {"b": {"a": None}}, {"a": {"b": None}}, {"b": {}}, {"z": {}}),
]


@compares("glimpse")
def test_glimpse_of_each_value() -> None:
    """As a member that is wanted, beside one, as an attribute, as all of the data."""
    for value in [*PROVEN_SCALARS, [], {}, [[]], [{}], {"a": []}, [{"a": 1}], {"": {"": {}}}, list(range(300))]:
        for data in ({"a": value, "b": 1}, {"b": 1, "a": value}, {"b": {"a": value, "b": value}}, [value], value):
            text = proven({"id": value, "data": data, "time": value})
            for wanted in SMALL_WANTED:
                same("glimpse", text, wanted)
        for text in (b"{}", proven({"data": value}), proven({"Data": value, "dat": value, "datas": value, "": value})):
            same("glimpse", text, {"a": None})
            same("glimpse", text, {})


@compares("glimpse")
def test_glimpse_knows_each_name() -> None:
    """Those of attributes, and any that are like one in length and in most letters; each of them wanted, or not."""
    attributes = [*EVENT, *GRAMMAR]
    near = [name[:at] + other + name[at + 1 :] for name in attributes for at in range(len(name)) for other in "xé"]
    near += [name[:-1] for name in attributes] + [name + "s" for name in attributes]
    for name in dict.fromkeys([*attributes, *near, "", "d", "é"]):
        same("glimpse", proven({name: "x", "data": {name: 1, "b": {name: [2], "a": 3}}}), {"b": {name: None}})
        for wanted in dict.fromkeys([name, name[:-1], name + "x", "x" + name[1:], name[:-1] + "x", name.upper()]):
            same("glimpse", proven({"data": {name: 1}}), {wanted: None})


@compares("glimpse")
def test_glimpse_as_deep_as_an_event_may_be() -> None:
    """What is wanted at its very end, and half way down."""
    for begin, end in (('{"a":', "}"), ("[", "]"), ('{"b":0,"a":', ',"c":[]}')):
        for levels in range(MAX_DEPTH):
            text = f'{{"data":{begin * levels}0{end * levels}}}'.encode()
            for steps in (0, 1, levels // 2, levels, levels + 1):
                wanted: Any = None
                for _ in range(steps):
                    wanted = {"a": wanted}
                if compiled().verbatim(text, MAX_DEPTH) is text:
                    same("glimpse", text, wanted)


@compares("glimpse")
def test_glimpse_of_names_that_no_text_has() -> None:
    """Members that are wanted besides them are found all the same."""
    for odd in ("not there", "", 'a":{"b', 'c":2}'):
        asked: list[Any] = [{odd: None}, {odd: None, "a": None}, {"a": None, odd: {}}, {"a": {odd: None}}]
        for wanted in asked:
            same("glimpse", b'{"data":{"a":{"b":1},"c":2}}', wanted)


FILLINGS: list[Any] = [
    *(
        "",
        "x",
        '"',
        "\\",
        '\\"',
        '"\\',
        "\\\\",
        "\n",
        "{",
        "]",
        '{"',
        "[[[[",
        '"]}',
        "é",
        "]" * 70,
        "\\" * 67,
        '"' * 33,
    ),
    *([], {}, [[]], {"{": "}"}, {"a]": ["[", {"": '"'}]}, [["\\"], ["]"]], 1, None),
]


@compares("glimpse")
def test_glimpse_steps_over_what_is_not_wanted() -> None:
    """Strings and containers of each length up to some blocks, with brackets and quotes at each place in them."""
    text = proven({"data": {"a": ["x" * 200, 1], "z": 1}})
    assert same("glimpse", text, {"z": None}) == {"data": {"z": 1}}
    for size in range(140):
        for filling in FILLINGS:
            for value in (
                ["x" * size, filling, "y" * (size % 67)],
                {"k" * size: filling, "": [filling, {}]},
                ["é", "x" * size + str(filling)],
            ):
                text = proven(
                    {"data": {"a": value, "z": size, "b": [value, value], "y": {"a": value, "b": 0}}, "id": "1"}
                )
                found = compiled().glimpse(text, {"z": None, "y": {"b": None}})
                assert found == {"data": {"z": size, "y": {"b": 0}}, "id": "1"}, text
                assert compiled().glimpse(text, {}) == {"data": {}, "id": "1"}, text


@compares("glimpse")
def test_glimpse_reads_nothing_behind_the_end() -> None:
    """Of a text that nobody proved it says something or nothing, and looks at no byte that is not its own."""
    c, wanted = compiled(), {"total": None, "lines": None, "a": {"b": None}}
    texts = [COMPACT, OTHER, b'{"data":{"a":{"b":"\\n\\"\xc3\xa9"}}}', b'{"data":{"a":[1,true]}}', b'{"data":-1.5}']
    texts += [b'{"data":{"a":%b},%b:%b}' % (part, part, part) for part in SCALARS]
    for text in texts:
        for end in range(len(text) + 1):
            for each in (wanted, {}, None):
                outcome(c.glimpse, text[:end], each)
    far = 20_000
    for text in (
        b"[" * far,
        b'{"a":' * far,
        b'{"data":' * far,
        b'{"data":' + b"[" * far,
        b'{"data":{"a":' * far,
        b'{"b":' + b"{" * far,
    ):
        deep: Any = None
        for _ in range(200):
            deep = {"a": deep, "data": deep}
        for each in (wanted, {}, None, deep):
            outcome(c.glimpse, text, each)


@hostile
def test_glimpse_takes_bytes_and_what_is_wanted() -> None:
    """Another type is refused."""
    calls: list[tuple[Any, ...]] = [("{}", {}), (bytearray(b"{}"), {}), (None, {}), (b"{}",), (b"{}", {}, {})]
    for arguments in calls:
        assert outcome(compiled().glimpse, *arguments) == ("raises", TypeError), arguments
    text = proven({"data": {"a": {"b": 1}}})
    odds: list[Any] = [
        [],
        ["a"],
        "a",
        1,
        {"a": 1},
        {"a": ["b"]},
        {"a": {"b": 7}},
        {1: None},
        {None: {}},
        {("a",): None},
    ]
    for odd in odds:
        outcome(compiled().glimpse, text, odd)
