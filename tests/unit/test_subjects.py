"""The subject grammar: patterns mean the sets they say, and a physical subject is written in one way only."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mesh.errors import BadName, BadPattern, BadSubject, BadType
from mesh.subjects import (
    NAME_RE,
    TYPE_RE,
    Glob,
    Pattern,
    Physical,
    check_name,
    check_type,
    logical,
    parse_physical,
    physical,
    physical_pattern,
    slot_of,
    stream_name,
    versioned,
)

# A small world: `x` and `v9` are tokens no pattern names, so that a wildcard is never as narrow as a literal.
LITERALS = ["a", "b", "v0", "v1"]
WORLD = ["a", "b", "x", "v0", "v1", "v9"]
LONG = "a.b.a.b.a"  # before it, the same world near the longest types


def types(prefix: str, lengths: range) -> list[str]:
    """Every logical type of the small world, after *prefix*."""
    start = prefix.split(".") if prefix else []
    rows = (row for length in lengths for row in product(WORLD, repeat=length))
    return [".".join([*start, *row]) for row in rows if not row or row[-1] != "v0"]


SHORT_TYPES = types("", range(2, 5))
LONG_TYPES = types(LONG, range(4))


def parse(text: str) -> Pattern | None:
    """The pattern, or None where *text* is none."""
    try:
        return Pattern.parse(text)
    except BadPattern:
        return None


def patterns(prefix: str, most: int) -> st.SearchStrategy[str]:
    """Texts of patterns over the small world."""
    tokens = st.lists(st.sampled_from([*LITERALS, "*", "*"]), min_size=0, max_size=most)
    ends = st.sampled_from([*LITERALS, "*", ">", ">"])
    start = prefix.split(".") if prefix else []
    return st.builds(lambda head, last: ".".join([*start, *head, last]), tokens, ends)


WORLDS = st.sampled_from([("", 2, SHORT_TYPES), (LONG, 2, LONG_TYPES)])
PAIRS = WORLDS.flatmap(lambda world: st.tuples(patterns(*world[:2]), patterns(*world[:2]), st.just(world[2])))


def oracle(text: str, type_: str) -> bool:
    """What `matches` should say, by a regular expression over the versioned type."""
    last = text.rpartition(".")[2]
    if last != ">" and not re.fullmatch("v[0-9]{1,9}", last):
        text += ".*"
    expression = re.escape(text).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(expression, versioned(type_)) is not None


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "stored"),
    [
        ("crm.contact", "crm.contact.v0"),
        ("crm.contact.v1", "crm.contact.v1"),
        ("crm.contact.v00", "crm.contact.v00"),
        ("crm.contact.v123456789", "crm.contact.v123456789"),
        ("crm.contact.v1234567890", "crm.contact.v1234567890.v0"),
        ("crm.contact.v1a", "crm.contact.v1a.v0"),
        ("crm.v0.contact", "crm.v0.contact.v0"),
        ("crm.v1", "crm.v1"),
        ("a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h.v0"),
    ],
)
def test_a_type_rests_with_a_version(type_: str, stored: str) -> None:
    """A type without a version token rests as `v0`, and comes back as it was written."""
    assert check_type(type_) == type_
    assert (versioned(type_), logical(stored)) == (stored, type_)


@pytest.mark.parametrize(
    "text",
    ["", "crm", "crm.v0", "a.b.v0", "a..b", ".a", "a.", "A.b", "a b.c", "a.b\n", "a.*", "a.>", "a.\u0661", None, 7],
)
def test_what_is_no_type_is_refused(text: object) -> None:
    """One token, the reserved `v0` last, and anything but `[a-z0-9_-]` is no type."""
    with pytest.raises(BadType):
        check_type(text)  # type: ignore[arg-type]  # what comes from outside has any type


@given(st.from_regex(TYPE_RE, fullmatch=True))
def test_versioned_and_logical_are_inverse(type_: str) -> None:
    """For each type of the grammar, `logical(versioned(t)) == t`, and versioned twice is versioned once."""
    assert logical(versioned(check_type(type_))) == type_
    assert versioned(versioned(type_)) == versioned(type_)


@pytest.mark.parametrize("text", ["a", "crm-adapter", "0", "a" * 40, "a-b-c"])
def test_names_of_the_grammar_are_taken(text: str) -> None:
    """Lower-case letters, digits and single hyphens, up to 40 characters."""
    assert check_name(text) == text


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "a--b", "A", "a_b", "a.b", "a" * 41, "a\n", "\u0661", "fund/feed", None]
)
def test_other_names_are_refused(text: object) -> None:
    """`--` joins names in durables and dots in subjects, so no name has them."""
    with pytest.raises(BadName):
        check_name(text)  # type: ignore[arg-type]  # what comes from outside has any type


# --- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text", "exact", "domain"),
    [
        ("crm.contact", "crm.contact.*", None, "crm"),
        ("crm.contact.v1", "crm.contact.v1", "crm.contact.v1", "crm"),
        ("crm.contact.v0", "crm.contact.v0", "crm.contact.v0", "crm"),
        ("crm.*", "crm.*.*", None, "crm"),
        ("crm.*.v1", "crm.*.v1", None, "crm"),
        ("crm.>", "crm.>", None, "crm"),
        ("*.contact", "*.contact.*", None, None),
        (">", ">", None, None),
        ("crm", "crm.*", None, "crm"),
        ("a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h.*", "a.b.c.d.e.f.g.h.v0", "a"),
        ("a.b.c.d.e.f.g.h.>", "a.b.c.d.e.f.g.h.>", "a.b.c.d.e.f.g.h.v0", "a"),
    ],
)
def test_a_pattern_is_normalised(written: str, text: str, exact: str | None, domain: str | None) -> None:
    """A pattern without version or `>` takes every version; `exact` names the type of a pattern that takes one."""
    pattern = Pattern.parse(written)
    assert (pattern.text, pattern.written, str(pattern)) == (text, written, written)
    assert (pattern.exact, pattern.domain) == (exact, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "crm.",
        "crm..a",
        "crm.>.a",
        ">.a",
        "crm.**",
        "crm.a*",
        "crm.a>",
        "CRM.>",
        "crm. a",
        "crm.a\n",
        "a.b.c.d.e.f.g.h.i",
        "a.b.c.d.e.f.g.h.*",
        "*.*.*.*.*.*.*.*.*.>",
        "a.b.c.d.e.f.g.h.v1",
        "a.b.c.d.e.f.g.v1.>",
        "v1",
        "v0",
        "crm.v0",
        "crm.v1.v0",
        "a" * 65 + ".b",
        None,
        7,
    ],
)
def test_what_no_type_can_match_is_no_pattern(text: object) -> None:
    """Bad tokens, `>` before the end, too many tokens, and sets without a type are refused."""
    with pytest.raises(BadPattern):
        Pattern.parse(text)  # type: ignore[arg-type]  # what comes from a document has any type


@settings(max_examples=150)
@given(WORLDS.flatmap(lambda world: st.tuples(patterns(*world[:2]), st.just(world[2]))))
def test_matches_is_what_nats_would_say(case: tuple[str, list[str]]) -> None:
    """`matches` agrees with a regular expression over the versioned type; a text is refused if it matches nothing."""
    text, world = case
    pattern = parse(text)
    taken = {type_ for type_ in world if oracle(text, type_)}
    if pattern is None:
        assert not taken
        return
    assert {type_ for type_ in world if pattern.matches(type_)} == taken
    if pattern.exact is not None:
        assert taken == {logical(pattern.exact)}
    elif len(pattern.tokens) <= 4 or pattern.text.startswith(LONG):
        assert len(taken) > 1


@settings(max_examples=300)
@given(PAIRS)
def test_covers_and_intersects_agree_with_brute_force(case: tuple[str, str, list[str]]) -> None:
    """`covers`, `intersects` and `intersection` say of sets what counting every type of a small world says."""
    one, other = parse(case[0]), parse(case[1])
    assume(one is not None and other is not None)
    assert one is not None
    assert other is not None
    ones = {type_ for type_ in case[2] if one.matches(type_)}
    others = {type_ for type_ in case[2] if other.matches(type_)}
    assert one.covers(other) == (others <= ones)
    assert one.intersects(other) == other.intersects(one) == bool(ones & others)
    both = one.intersection(other)
    assert both == other.intersection(one)
    if both is None:
        assert not ones & others
        return
    assert {type_ for type_ in case[2] if both.matches(type_)} == ones & others
    assert one.covers(both)
    assert other.covers(both)
    assert Pattern.from_text(both.text) == both
    if both.written != both.text:
        assert Pattern.parse(both.written) == both


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("*.>", ">", True),
        (">", "*.>", True),
        ("crm.>", "crm.*.created", True),
        ("crm.*.created", "crm.>", False),
        ("crm.contact", "crm.contact.v1", True),
        ("crm.contact.v1", "crm.contact", False),
        ("a.b.c.d.e.f.g.h.v0", "a.b.c.d.e.f.g.h", True),
        ("a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h.>", True),
        ("*.*.*.*.*.*.*.*.v0", "a.b.c.d.e.f.g.h.>", True),
        ("crm.*", "crm.v1", False),
    ],
)
def test_covers_at_the_edges(wide: str, narrow: str, *, covers: bool) -> None:
    """Shortest and longest types: where no other type exists, a wildcard is no wider than what exists."""
    assert Pattern.parse(wide).covers(Pattern.parse(narrow)) is covers


def test_an_intersection_is_written_so_that_it_parses_back() -> None:
    """`written` is what `parse` takes, save for the few sets that no written pattern means."""
    both = Pattern.parse("crm.*").intersection(Pattern.parse("*.contact"))
    assert both is not None
    assert (both.text, both.written) == ("crm.contact.*", "crm.contact")
    odd = Pattern.parse("crm.*").intersection(Pattern.parse("*.v1.>"))
    assert odd is not None
    assert (odd.text, odd.written) == ("crm.v1.*", "crm.v1.*")


def test_only_a_normalised_text_is_read_back() -> None:
    """`from_text` takes what `text` gives, and nothing that no versioned type can match."""
    with pytest.raises(BadPattern):
        Pattern.from_text("crm.contact")


def test_patterns_are_values() -> None:
    """Patterns that mean the same text are equal, hash alike and sort by text."""
    assert Pattern.parse("crm.contact") == Pattern.from_text("crm.contact.*")
    assert len({Pattern.parse("crm.>"), Pattern.parse("crm.>")}) == 1
    assert Pattern.parse("a.c") < Pattern.parse("b.c")


# --- globs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "source", "matches"),
    [
        ("/crm", "/crm", True),
        ("/crm", "/crm/eu", False),
        ("/crm/**", "/crm", False),
        ("/crm/**", "/crm/eu", True),
        ("/crm/**", "/crm/eu/1", True),
        ("/crm/**", "/crmx/eu", False),
        ("/crm/**", "/hr/crm/eu", False),
        ("/crm/*", "/crm/eu/1", False),
        ("/crm/*", "/crm/", False),
        ("/*/eu", "/crm/eu", True),
        ("/**/eu", "/a/b/eu", True),
        ("/**/eu", "/eu", False),
        ("**", "/crm", True),
        ("https://example.org/**", "https://example.org/a", True),
    ],
)
def test_globs_over_sources(pattern: str, source: str, *, matches: bool) -> None:
    """`*` is one segment, `**` one or more, and everything else itself."""
    assert Glob.source(pattern).matches(source) is matches


@pytest.mark.parametrize(
    ("pattern", "tag", "matches"),
    [("pii.*", "pii.name", True), ("pii.*", "pii", False), ("pii.*", "pii.a.b", False), ("**.name", "pii.name", True)],
)
def test_globs_over_tags(pattern: str, tag: str, *, matches: bool) -> None:
    """Tags are split at dots."""
    assert Glob.tag(pattern).matches(tag) is matches


@pytest.mark.parametrize(
    "text", ["", "a*", "pii.***", "PII", "pii..a", "pii.>", "pii a", "pii\n", None, ".".join("a" * 9)]
)
def test_what_is_no_tag_pattern_is_refused(text: object) -> None:
    """A wildcard is a whole segment, and the rest is `[a-z0-9_-]`."""
    with pytest.raises(BadPattern):
        Glob.tag(text)  # type: ignore[arg-type]  # what comes from a document has any type


@pytest.mark.parametrize("text", ["", "/crm*", "/***", "/a b", "/\u00fc", "/a\n", "/%zz", None, "/" + "a" * 256])
def test_what_is_no_source_pattern_is_refused(text: object) -> None:
    """A wildcard is a whole segment, and the rest the characters of a URI reference."""
    with pytest.raises(BadPattern):
        Glob.source(text)  # type: ignore[arg-type]  # what comes from a document has any type


SEGMENTS = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6)
PATHS = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=7)


@settings(max_examples=600)
@given(SEGMENTS, PATHS)
def test_globs_agree_with_a_regular_expression(segments: list[str], path: list[str]) -> None:
    """A glob takes what the regular expression of its segments takes."""
    says = {"*": "[^/]+", "**": "[^/]*(?:/[^/]*)*"}
    expression = "/".join(says.get(segment, segment) for segment in segments)
    text = "/".join(path)
    assert Glob.source("/".join(segments)).matches(text) is (re.fullmatch(expression, text) is not None)


def test_many_stars_stay_quick() -> None:
    """Sixty `**` over a long path that does not fit end at once; a backtracking matcher would not end at all."""
    assert not Glob.source("/**/a" * 50).matches("/a" * 120 + "/b")


# --- physical subjects -----------------------------------------------------------------------------------------------

NAMES = st.from_regex(NAME_RE, fullmatch=True).filter(lambda text: len(text) <= 40)


@given(NAMES, NAMES, st.integers(0, 15), st.from_regex(TYPE_RE, fullmatch=True))
def test_a_physical_subject_comes_back(site: str, view: str, slot: int, type_: str) -> None:
    """Parsing what was written gives the same parts, for every part of the grammar."""
    assert parse_physical(physical(site, view, slot, type_)) == Physical(site, view, slot, type_)


@given(st.from_regex(r"ev\.[a-z-]{1,3}\.[a-z-]{1,3}\.s[0-9]{1,3}\.[a-z0-9.v]{1,12}", fullmatch=True) | st.text())
def test_a_subject_is_written_in_one_way(text: str) -> None:
    """Whatever parses is exactly what its parts are written as."""
    try:
        parts = parse_physical(text)
    except BadSubject:
        return
    assert physical(*parts) == text


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "ev.local.clear.s03.crm.contact",
        "ev.local.clear.s03.crm.v0",
        "ev.local.clear.s03.crm.v1.v0",
        "ev.local.clear.s03.crm.contact.v1.v0",
        "ev.local.clear.s16.crm.contact.v1",
        "ev.local.clear.s3.crm.contact.v1",
        "ev.local.clear.*.crm.contact.v1",
        "ev.local.clear.s03.crm.>",
        "ev.local.clear.s03.crm..v1",
        "ev.lo--cal.clear.s03.crm.contact.v1",
        "ev.local.Clear.s03.crm.contact.v1",
        "ev.local.clear.s03.CRM.contact.v1",
        "xx.local.clear.s03.crm.contact.v1",
        "ev.local.clear.s03.crm.contact.v1\n",
        "ev.local.clear.s03." + "a." * 8 + "b.v0",
        "ev.local.clear.s\u0660\u0663.crm.contact.v1",
    ],
)
def test_what_the_mesh_never_writes_is_refused(subject: str) -> None:
    """A subject without version, with another slot or with a second spelling is none of ours."""
    with pytest.raises(BadSubject):
        parse_physical(subject)


@given(WORLDS.flatmap(lambda world: st.tuples(patterns(*world[:2]), st.sampled_from(world[2]))))
def test_the_filter_takes_what_the_pattern_takes(case: tuple[str, str]) -> None:
    """A pattern's NATS filter takes the physical subjects of its types in its view, and no others."""
    pattern = parse(case[0])
    assume(pattern is not None)
    assert pattern is not None
    expression = re.escape(physical_pattern("local", "clear", pattern)).replace(r"\*", "[^.]+").replace(">", ".+")
    takes = re.fullmatch(expression, physical("local", "clear", 7, case[1])) is not None
    assert takes is pattern.matches(case[1])
    assert re.fullmatch(expression, physical("local", "masked", 7, case[1])) is None


def test_streams_and_slots() -> None:
    """A stream is named by site and domain; a slot is the high half of a digest's first byte."""
    assert stream_name("local", "crm") == "EV_local_crm"
    assert [slot_of(bytes([byte, 255])) for byte in (0x00, 0x0F, 0x3F, 0xFF)] == [0, 0, 3, 15]
