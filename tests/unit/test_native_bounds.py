"""Each length and each character where a compiled loop draws a line, one by one: chance seldom hits a bound."""

from __future__ import annotations

from typing import Any

from tests.unit.native_twins import alike, both, compares, compiled, outcome, same
from tests.unit.test_native import INBOX, WAYS, _ack


@compares("numbered")
def test_numbered_of_each_length() -> None:
    """Of 1 digit to 19; the compiled one refuses what is no number of an event."""
    for digits in range(1, 20):
        for n in (10 ** (digits - 1), min(10**digits, 2**63) - 1):
            same("numbered", b"{}", b',"n":"', n)
    for n, refusal in ((-1, ValueError), (-(2**63), ValueError), (2**63, OverflowError), ("1", TypeError)):
        assert outcome(compiled().numbered, b"{}", b"", n) == ("raises", refusal)
    for arguments in (("{}", b"", 1), (b"{}", "", 1), (b"{}", b""), (b"{}", b"", 1, 1)):
        assert outcome(compiled().numbered, *arguments) == ("raises", TypeError)


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
