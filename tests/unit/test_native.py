"""The compiled twins do what the Python ones say: the same input to both, made to hurt."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mesh import native
from mesh.base64url import b64u
from mesh.policy.actions import _json_text
from mesh.statements import STATEMENT
from tests.unit.native_twins import GIVEN, PYTHON, both, compared, compares, compiled, outcome, running, same
from tests.unit.native_walks import ODD, SCALARS, VALUES, WORDS

FOR_TESTS = {"hash_portably"}

# --- nothing is left out ---------------------------------------------------------------------------------------------


def test_what_can_be_built_is_built() -> None:
    """Where there is a compiler the mesh runs compiled, unless it was told not to."""
    assert (native.compiled is None) == (os.environ.get("MESH_NATIVE") == "off"), "run `make install`"


def test_every_twin_has_a_comparison() -> None:
    """A name that is marked as a twin, and nothing compares it: then nobody would know."""
    assert compared() == set(PYTHON)


def test_all_that_is_compiled_is_a_twin() -> None:
    """The module has nothing else but what it is told once, and what only tests call."""
    assert {name for name in vars(compiled()) if not name.startswith("_")} == {*PYTHON, *GIVEN, *FOR_TESTS}


def test_the_mesh_runs_on_the_twins_that_are_there() -> None:
    """Each name means the compiled twin, and only where there is none the one in Python."""
    from mesh.policy import mask

    expected = PYTHON if native.compiled is None else vars(native.compiled)
    assert vars(mask)["shown"] is expected["shown"]
    with running(PYTHON.__getitem__):
        assert vars(mask)["shown"] is PYTHON["shown"]
    assert vars(mask)["shown"] is expected["shown"]


# --- extended, brackets_exceed ---------------------------------------------------------------------------------------


@compares("extended")
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_extended(text: bytes, members: bytes) -> None:
    """All but the last byte, and what follows."""
    same("extended", text, members)


@compares("brackets_exceed")
@given(
    st.lists(st.sampled_from([b"{", b"[", b"]}", b"x\xfb\xdb\x7f", b"[" * 255, b"{" * 256, b" " * 254, b"z" * 9000])),
    st.integers(-2, 1200),
)
def test_brackets_exceed(pieces: list[bytes], limit: int) -> None:
    """Of short texts and long ones, at the limit and around it."""
    body = b"".join(pieces)
    same("brackets_exceed", body, limit)
    found = body.count(b"{") + body.count(b"[")
    for close in (found - 1, found, found + 1):
        assert same("brackets_exceed", body, close) == (found > close)


# --- batch -----------------------------------------------------------------------------------------------------------

IDS = st.binary(min_size=16, max_size=16).map(b64u)
BAD_IDS = st.sampled_from(["", "A" * 21, "A" * 23, "A" * 21 + "B", "A" * 20 + "+A", "A" * 21 + "\n", "A" * 20 + "éA"])
BODIES = st.binary(max_size=300) | st.binary(min_size=1, max_size=5).map(lambda part: part * 1000)
SUBJECTS = WORDS | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=80)
ITEMS = st.tuples(SUBJECTS, IDS, BODIES)


def _salts(seed: int, count: int) -> bytes:
    return hashlib.shake_128(b"%d" % seed).digest(16 * count)


@compares("batch")
@given(st.lists(ITEMS, min_size=1, max_size=16), st.integers(0, 255), st.integers())
def test_batch(items: list[Any], more: int, seed: int) -> None:
    """The same root, the same places, for 1 to 256 events."""
    items = (items * 256)[: max(1, (len(items) + more) % 257)]
    root, middles = same("batch", items, _salts(seed, len(items)))
    assert (len(root), len(middles)) == (32, len(items))


@compares("batch")
def test_batch_of_every_size() -> None:
    """The same tree for each number of leaves."""
    items = [("orders.eu", b64u(_salts(i, 1)), b"%d" % i) for i in range(256)]
    for size in range(1, 257):
        same("batch", items[:size], _salts(size, size))


@compares("batch")
@given(st.lists(ITEMS, min_size=1, max_size=5), st.data(), BAD_IDS, st.integers())
def test_batch_refuses_what_cannot_stand_in_a_statement(
    items: list[Any], draw: st.DataObject, bad: str, seed: int
) -> None:
    """A message id outside its one spelling, a subject with a newline, a lone surrogate."""
    at = draw.draw(st.integers(0, len(items) - 1))
    subject, id, body = items[at]
    for item in ((subject, bad, body), (subject + "\n", id, body), ("\n" + subject, id, body)):
        assert same("batch", [*items[:at], item, *items[at + 1 :]], _salts(seed, len(items))) is None
    surrogate = [*items[:at], (subject + "\udc00", id, body), *items[at + 1 :]]
    assert same("batch", surrogate, _salts(seed, len(items))) is UnicodeEncodeError
    with_it = [*items[:at], (subject, id[:-1] + "\udc00", body), *items[at + 1 :]]
    refused = [outcome(twin, with_it, _salts(seed, len(items))) for twin in both("batch")]
    assert refused in ([("answers", None)] * 2, [("answers", None), ("raises", UnicodeEncodeError)])  # a ValueError too


@compares("batch")
@given(
    st.sampled_from(
        [("s", "A" * 22), ("s", b"A" * 22, b""), ("s", "A" * 22, "text"), (1, 2, 3), None, (b"s", "A" * 22, b"")]
    )
)
def test_batch_refuses_what_is_no_item(item: Any) -> None:
    """Another type, a part too few."""
    for twin in both("batch"):
        kind, what = outcome(twin, [item], bytes(16))
        assert (kind, what) in [("raises", TypeError), ("raises", IndexError), ("raises", ValueError)]


def test_compiled_batch_has_one_salt_for_each_event() -> None:
    """`seal` has looked, and it looks again: what is not there it would read all the same."""
    item = ("s", "A" * 22, b"")
    for items, salts in (
        ([], b""),
        ([item], b""),
        ([item], bytes(15)),
        ([item], bytes(17)),
        ([item] * 257, bytes(4112)),
    ):
        assert outcome(compiled().batch, items, salts) == ("raises", ValueError)
    assert outcome(compiled().batch, [item], bytearray(16)) == ("raises", TypeError)


@compares("batch")
def test_sha256_of_every_length() -> None:
    """As hashlib, of every length up to 600 that a statement can have: in portable C, and by instructions."""
    batch, hash_portably = compiled().batch, compiled().hash_portably
    start, rest = STATEMENT + "s\n" + "A" * 22 + "\n" + "A" * 22 + "\n", bytes(range(256)) * 3
    try:
        for portable in (True, False):
            assert not (hash_portably(portable) and portable)
            for size in range(601 - len(start)):
                root, _ = batch([("s", "A" * 22, rest[:size])], bytes(16))
                assert root == hashlib.sha256(b"\0" + start.encode() + rest[:size]).digest(), (portable, size)
            for size in range(0, 541, 12):  # several at once, of as many blocks and of fewer and more
                sizes = (size, size * 7 % 541, 540 - size, size, size + 64)
                items = [("s", "A" * 22, rest[:each]) for each in sizes]
                for count in (2, 3, 5):
                    same("batch", items[:count], bytes(range(16 * count)))
            if portable:
                test_batch_of_every_size()
    finally:
        hash_portably(None)


# --- Keyed -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@compares("Keyed")
@given(st.binary(max_size=64), st.integers(1, 64), st.binary(max_size=16), st.lists(TEXTS, max_size=5))
def test_keyed(key: bytes, size: int, person: bytes, texts: list[str]) -> None:
    """The same digest and token; hashing one text leaves nothing behind for the next."""
    python, c = (twin(key, size, person) for twin in both("Keyed"))
    for text in [*texts, "", *texts]:
        assert (c.digest(text), c.token(text)) == (python.digest(text), python.token(text))
    for lines in (texts, texts[:1], [], ["", *texts], [*texts, ""], [text * 9 for text in texts]):
        assert c.token(*lines) == python.token(*lines)
    assert both("Keyed")[1](key=key, size=size).token("x") == both("Keyed")[0](key, size, b"").token("x")


@compares("Keyed")
def test_keyed_of_every_length() -> None:
    """Up to several blocks: with and without a key, in ASCII and not, whole blocks among them."""
    for key in (b"", b"k", bytes(range(32)), bytes(range(64))):
        python, c = (twin(key, 33, b"person") for twin in both("Keyed"))
        for size in range(601):
            for text in ("x" * size, "é" * (size // 2) + "x" * (size % 2)):
                assert c.digest(text) == python.digest(text), (len(key), size)
                lines = text[: size % 131], text[size % 131 :]
                assert c.token(*lines) == python.token(*lines), (len(key), size)


@compares("Keyed")
def test_keyed_of_every_shape() -> None:
    """Each length of key, digest and person; and one more than there may be."""
    for key in range(66):
        same_keyed(bytes(range(key)), 16, b"p")
    for size in range(-1, 67):
        same_keyed(b"key", size, b"p")
    for person in range(18):
        same_keyed(b"key", 16, bytes(range(1, person + 1)))


def same_keyed(*arguments: Any) -> None:
    """Assert that both hash alike, or refuse alike."""
    kinds = [outcome(lambda *a, twin=twin: twin(*a).token("text"), *arguments) for twin in both("Keyed")]
    assert kinds[0] == kinds[1], arguments


@compares("Keyed")
@given(st.sampled_from(["\ud800", "a\udfff", b"x", None, 1, ["x"]]))
def test_keyed_refuses_what_is_no_text(odd: Any) -> None:
    """A lone surrogate, another type; as text, as key, as size."""
    for name in ("digest", "token"):
        python, c = (outcome(getattr(twin(b"k", 16), name), odd) for twin in both("Keyed"))
        assert python[0] == c[0] == "raises"
        assert c[1] is (UnicodeEncodeError if isinstance(odd, str) else TypeError)
        assert c[1] is python[1] or not hasattr(odd, "encode")
    for lines in ((odd, "x"), ("x" * 200, odd), ("é", odd, "x")):
        python, c = (outcome(twin(b"k", 16).token, *lines) for twin in both("Keyed"))
        assert c == python == ("raises", UnicodeEncodeError if isinstance(odd, str) else TypeError)
    for arguments in (("key", 16), (b"k", "16"), (b"k", 1.5), (b"k", 16, "p"), (None, 16), (b"k", 10**30), ()):
        python, c = (outcome(twin, *arguments) for twin in both("Keyed"))
        assert python == c


# --- AckRun ----------------------------------------------------------------------------------------------------------

INBOX = "_INBOX.abc."
NUMBERS = st.sampled_from(
    ["1", "9", "10", "123456789012345678", "1234567890123456789", "0", "01", "", "-1", "1_0", "٣"]
)
STREAMS = st.sampled_from(["s", "s", "s", "orders_EU-1", "x" * 255, "x" * 256, "", "a.b", 'a"b', "é"])
ACKS = st.builds(
    lambda token, sid, stream, seq, more, end: _ack(token, sid, stream, seq, more) + end,
    NUMBERS | st.integers(1, 99).map(str), st.sampled_from(["7", "7", "7", "7", "8", "77"]), STREAMS,
    NUMBERS | st.integers(1, 99).map(str), st.sampled_from([0] * 9 + [1, -1]),
    st.sampled_from([b""] * 9 + [b"PING\r\n", b" ", b"M"]),
)  # fmt: skip


def _ack(token: str, sid: str, stream: str, seq: str, more: int = 0) -> bytes:
    body = f'{{"stream":"{stream}","seq":{seq}}}'.encode()
    return f"MSG {INBOX}{token} {sid} {len(body) + more}\r\n".encode() + body + b"\r\n"


@compares("AckRun")
@given(st.lists(ACKS, max_size=6), st.binary(max_size=3), st.integers(0, 60))
def test_ack_run(acks: list[bytes], before: bytes, cut: int) -> None:
    """Bursts of acks, from wherever one may stand, with some that are none among them, and with the end cut off."""
    data = before + b"".join(acks)
    for whole in (data, data[: max(0, len(data) - cut)]):
        python, c = (twin(INBOX, 7) for twin in both("AckRun"))
        starts = {0, len(whole), min(len(before), len(whole))}
        for position in starts | {len(before) + sum(map(len, acks[:i])) for i in range(len(acks))}:
            if position <= len(whole):
                assert repr(c.read(whole, position)) == repr(python.read(whole, position))


@compares("AckRun")
def test_ack_run_reads_bursts() -> None:
    """Hundreds that are alike are one run; each single byte that is not as it should be ends it alike."""
    burst = b"".join(_ack(str(1000 + i), "7", "orders", str(500 + i)) for i in range(300))
    python, c = (twin(INBOX, 7) for twin in both("AckRun"))
    assert c.read(burst, 0) == python.read(burst, 0)
    assert c.read(burst, 0)[0] == len(burst)
    two = burst[: len(_ack("1000", "7", "orders", "500")) * 2]
    for at in range(len(two)):
        for other in (
            two[:at] + b"\0" + two[at + 1 :],
            two[:at] + b"0" + two[at + 1 :],
            two[:at] + two[at + 1 :],
            two[:at],
        ):
            assert repr(c.read(other, 0)) == repr(python.read(other, 0)), at


# --- masks of one value ----------------------------------------------------------------------------------------------

DIGITS = st.text("0123456789 -./()+", max_size=24) | st.text("0123456789", max_size=40)


WAYS = [(2, 7, 15, "+"), (4, 13, 19, ""), (1, 1, 32, "-"), (32, 32, 32, "+")]


@compares("redact", "drop")
@given(SCALARS | ODD | VALUES)
def test_redact_and_drop(value: Any) -> None:
    """Of whatever type."""
    for name in ("redact", "drop"):
        python, c = (twin(value) for twin in both(name))
        assert c is python


@compares("last_digits")
@given(
    DIGITS | DIGITS | TEXTS | SCALARS | ODD,
    st.sampled_from(WAYS),
)
@example("+" * 2 + "1234567", (2, 7, 15, "+"))
@example(" +1234567", (2, 7, 15, "+"))
@example("1+234567", (2, 7, 15, "+"))
@example("1" * 33, (1, 1, 32, "+"))
@example("1234567\0", (2, 7, 15, "+"))
@example("１２３４５６７", (2, 7, 15, "+"))  # noqa: RUF001 - digits, and not ASCII
def test_last_digits(value: Any, how: tuple[int, int, int, str]) -> None:
    """Numbers with separators and signs anywhere, too short, too long, and what is no number."""
    python, c = (twin(*how)(value) for twin in both("last_digits"))
    assert repr(c) == repr(python)


@compares("tokens")
@given(SCALARS | ODD | VALUES, st.text(max_size=4), st.sampled_from(["plain", "raises", "no text"]))
def test_tokens(value: Any, prefix: str, way: str) -> None:
    """A token of each scalar, what has none, and what goes wrong on the way."""

    def token(text: str) -> Any:
        if way == "raises":
            raise ZeroDivisionError
        return 7 if way == "no text" else f"<{text.encode().decode()}>"

    python, c = (outcome(twin(prefix, token, _json_text), value) for twin in both("tokens"))
    assert repr(c) == repr(python)
