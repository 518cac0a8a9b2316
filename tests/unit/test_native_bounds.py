"""Each length and each character where a compiled loop draws a line, one by one: chance seldom hits a bound."""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import product
from typing import Any

from mesh.jetstream.outgoing import NEVER
from tests.unit.native_twins import PYTHON, alike, both, compares, compiled, outcome, same
from tests.unit.test_native import INBOX, WAYS, _ack
from tests.unit.test_native_outgoing import NAMES, REQUIRED, made, state


def _copy(body: Any = b"{}") -> Any:
    return compiled().Outgoing("s", "t", body, "r", "e")


@compares("numbered")
def test_numbered_of_each_length() -> None:
    """Of 1 digit to 19; the compiled one refuses what is no number of an event, and what would be none of 64 bits."""
    for digits in range(1, 20):
        for n in (10 ** (digits - 1), min(10**digits, 2**63) - 1):
            copy = _copy()
            assert compiled().numbered([copy], 0, b',"n":"', n) == 1
            assert copy.body == b'{,"n":"%012d"}' % n
    for at, n, refusal in (
        (0, -1, ValueError),
        (0, -(2**63), ValueError),
        (0, 2**63, OverflowError),
        (0, "1", TypeError),
        (-1, 1, ValueError),
        ("0", 1, TypeError),
    ):
        assert outcome(compiled().numbered, [_copy()], at, b"", n) == ("raises", refusal)
    assert outcome(compiled().numbered, [_copy(), _copy()], 0, b"", 2**63 - 1) == ("raises", OverflowError)
    for arguments in (
        ((), 0, b"", 1),
        ([_copy()], 0, "", 1),
        ([_copy()], 0, b""),
        ([_copy("{}")], 0, b"", 1),
        ([1], 0, b"", 1),
    ):
        assert outcome(compiled().numbered, *arguments) == ("raises", TypeError)


@compares("numbered", "boarded")
def test_a_comparison_that_changes_the_list_is_survived() -> None:
    """What is compared, and what is let go of, can be anything; the list is read anew after it."""

    class Odd(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            copies.clear()
            return True

        __hash__ = str.__hash__

    copies: list[Any] = [_copy(), _copy(), _copy()]
    copies[1].source = Odd("x")
    assert compiled().numbered(copies, 0, b"", 1) == 2
    assert copies == []

    class Leaving:
        def __del__(self) -> None:
            copies.clear()

    copies += [_copy(), _copy()]
    copies[0].together = Leaving()
    compiled().boarded(copies, print, {"": 1})
    assert copies == []


@compares("extended", "brackets_exceed")
def test_only_bytes_are_looked_at() -> None:
    """Each byte is a bracket or none; another type, or another number of arguments, is refused."""
    for byte in range(256):
        assert same("brackets_exceed", bytes([byte]) * 2, 1) == (chr(byte) in "[{")
    calls: list[Any] = [("extended", ("{}", b"")), ("extended", (b"{}", "")), ("extended", (b"{}",))]
    calls += [("brackets_exceed", arguments) for arguments in (("{}", 1), (b"{}", "1"), (b"{}",), (b"{}", 1, 1))]
    for name, arguments in calls:
        assert outcome(getattr(compiled(), name), *arguments) == ("raises", TypeError), name
    assert outcome(compiled().brackets_exceed, b"{}", 10**30) == ("raises", OverflowError)


@compares("AckRun")
def test_ack_run_of_every_length_and_character() -> None:
    """Of a token, of a sequence, of a stream's name; each byte in each of them."""
    whole: dict[str, Any] = {"token": "12", "sid": "7", "stream": "orders", "seq": "34"}
    digits = "98765432109876543210"
    rows = [whole | {name: digits[:size]} for name in ("token", "sid", "seq") for size in range(21)]
    rows += [whole | {"stream": "s" * size} for size in (0, 1, 254, 255, 256, 257)]
    rows += [
        whole | {name: text[:at] + chr(byte) + text[at:]}
        for name, text in whole.items()
        for at in (0, 1, len(text))
        for byte in range(128)
    ]
    after = _ack("13", "7", "orders", "35")
    for row in rows:
        one = _ack(**row)
        for data in (one, one + after, after + one, one * 2, one.replace(b" 7 ", b" 7 0"), one[:-1], one[:-2]):
            python, c = (twin(INBOX, 7).read(data, 0) for twin in both("AckRun"))
            assert repr(c) == repr(python), row


@compares("AckRun")
def test_ack_run_has_its_place_in_the_data() -> None:
    """A position behind the last byte has nothing; one outside is refused, and read nowhere."""
    data = _ack("12", "7", "orders", "34")
    c = compiled().AckRun(INBOX, 7)
    assert alike(lambda twins: twins("AckRun")(INBOX, 7).read(data, len(data))) == (len(data), None)
    for position in (-1, -len(data), len(data) + 1, 2**62):
        assert outcome(c.read, data, position) == ("raises", ValueError)


@compares("last_digits")
def test_last_digits_of_every_length_and_character() -> None:
    """One digit too few, one too many; each character before, between and behind those that are enough."""
    digits = "9876543210" * 4
    odd = [*map(chr, range(256)), "\u3131"]  # its two bytes are digits, and it is none
    for keep, least, most, sign in [*WAYS, (0, 0, 0, ""), (0, 1, 32, " "), (3, 3, 3, "1")]:
        python, c = (twin(keep, least, most, sign) for twin in both("last_digits"))
        for size in range(36):
            assert c(digits[:size]) == python(digits[:size]), size
        for size in (least - 1, least, most):
            for at in (0, 1, size):
                for text in odd:
                    value = digits[:at] + text + digits[at:size]
                    assert c(value) == python(value), value
        assert c("\u3131" * least) == python("\u3131" * least)


def _masked(name: str, how: tuple[Any, ...], *value: Any, **named: Any) -> Any:
    """What a mask that is made so makes of *value*, whichever twin makes it."""
    return alike(lambda twins: twins(name)(*how)(*value, **named))


@compares("last_digits", "tokens")
def test_masks_are_made_of_what_makes_sense() -> None:
    """As many digits as there may be, and one more or less; a sign of one byte."""
    for how in ((2, 7, 15, "+"), (0, 0, 0, ""), (32, 32, 32, "")):
        assert isinstance(_masked("last_digits", how, "1234567"), str)
    for how in ((-1, 7, 15, ""), (8, 7, 15, ""), (2, 16, 15, ""), (2, 7, 33, ""), (2, 7, 15, "++"), (2, 7, 15, "é")):
        assert _masked("last_digits", how, "1234567") is ValueError
    makes: list[tuple[str, tuple[Any, ...]]] = [("last_digits", WAYS[0]), ("tokens", ("p", str, str))]
    for name, how in makes:
        for value in ((), ("1234567", "1234567")):
            assert _masked(name, how, *value) is TypeError
        assert _masked(name, how, "1234567", other=1) is TypeError


@compares("Outgoing")
def test_outgoing_takes_as_many_as_it_has() -> None:
    """All by position, and one more; all by names that are made as the program runs."""

    def whole(twins: Any) -> dict[str, Any]:
        fields = state(twins("Outgoing")("s", "t", b"b", "r", "e"))
        return {
            name: at if type(value) is int else float(at) if value == NEVER else value
            for at, (name, value) in enumerate(fields.items())
        }

    def use(twins: Any, *more: Any) -> Any:
        return state(twins("Outgoing")(*whole(twins).values(), *more))

    def named(twins: Any, wrong: str = "") -> Any:
        return state(twins("Outgoing")(**{"".join([*name, wrong]): value for name, value in whole(twins).items()}))

    assert alike(use).keys() == alike(named).keys() == set(NAMES)
    assert alike(lambda twins: use(twins, 1)) is TypeError
    assert alike(lambda twins: use(twins, 1, 2)) is TypeError
    assert alike(lambda twins: named(twins, "x")) is TypeError


@compares("found")
def test_found_is_as_old_as_allowed() -> None:
    """The first one that is a millisecond too old, or not known, ends it."""
    required = dict.fromkeys(REQUIRED, "s")
    for ages in product((4, 5, 6), repeat=3):
        events = [required | {"first_signed_ms": age} for age in ages]
        for tokens in ([0, 1, 2], [2, 0], [0, 7, 1], [-1], []):

            def use(twins: Any, tokens: list[int] = tokens, events: list[Any] = events) -> Any:
                items = made(twins, events)
                return [items.index(item) for item in twins("found")(tokens, dict(enumerate(items)), 5)]

            ends = [at for at, token in enumerate(tokens) if token not in range(3) or ages[token] < 5]
            assert alike(use) == tokens[: min(ends, default=len(tokens))]


@compares("found", "settled", "forgotten")
def test_only_events_are_acknowledged() -> None:
    """Anything else among those in flight is refused, wherever it stands."""
    c, required = compiled(), dict.fromkeys(REQUIRED, "s")
    item = c.Outgoing(**required, token=7, sends=1)

    def refused(odd: Any) -> list[Any]:
        return [
            outcome(c.found, [7], {7: odd}, 0),
            outcome(c.settled, deque([odd]), [item], [1], 0, NEVER),
            outcome(c.settled, deque([item, odd]), [item], [1], 0, 9.0),
            outcome(c.settled, deque([item, odd]), [item], [1], 0, NEVER),
            outcome(c.settled, deque([item]), [odd], [1], 0, NEVER),
            outcome(c.forgotten, [odd], {}),
        ]

    for odd in (None, object(), PYTHON["Outgoing"](**required, token=7)):
        assert refused(odd) == [("raises", TypeError)] * 6


def _settled(twins: Any, events: list[dict[str, Any]], sequences: list[int], place: int, before: float) -> Any:
    """What becomes of these events, all of them acknowledged."""
    items = made(twins, [dict.fromkeys(REQUIRED, "s") | fields for fields in events])
    queue = deque(items)
    did = twins("settled")(queue, items, sequences, place, before)
    return did, [items.index(item) for item in queue], [item.done for item in items]


@compares("settled")
def test_settled_of_every_pair() -> None:
    """Before the order from which on none is taken, at it, behind; likewise its place; sent once, or not."""
    for before, order, sequence, sends, done in product((5.0, NEVER), (4, 5, 6), (8, 9, 10), (0, 1, 2), (False, True)):
        events = [{"order": order, "sends": sends}, {"order": order + 1, "sends": 1, "done": done}]
        did = alike(partial(_settled, events=events, sequences=[sequence], place=9, before=before))
        takes = sends == 1 and sequence >= 9 and (before == NEVER or (order < 5 and not done))
        assert did[0] == ((1, sequence) if takes else (0, 9))
        assert did[1] == ([] if takes and done else [1] if takes else [0, 1])


@compares("settled")
def test_acks_have_a_number_each() -> None:
    """Of events and sequences there may be more of either."""
    for count in range(4):
        did = alike(partial(_settled, events=[{"sends": 1}] * 2, sequences=[*range(count)], place=0, before=NEVER))
        assert did[0] == (min(count, 2), max(0, min(count, 2) - 1))


@compares("forgotten")
def test_forgotten_needs_a_body() -> None:
    """One without a body, or with one that has no size, is refused and stays."""
    for body in (None, 1):
        item = compiled().Outgoing(**dict.fromkeys(REQUIRED, "s"), token=7)
        item.body = body
        if body is None:
            del item.body
        by_token = {7: item}
        refused = AttributeError if body is None else TypeError
        assert outcome(compiled().forgotten, [item], by_token) == ("raises", refused)
        assert by_token == {7: item}
