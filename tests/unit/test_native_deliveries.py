"""Both twins that read deliveries take the same ones, and make the same of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.jetstream.acks import AckSubject, Delivered
from tests.unit.native_twins import both, compares, outcome
from tests.unit.test_deliveries import AFTER, BLOCK, ID, NS, OWN, SID, SIGNATURE, STREAM, TRACE, frame, reply

NUMBERS = st.sampled_from(["1", "0", "007", "9" * 18, "9" * 19, "9" * 20, "9" * 400, "", "x", "-1", "1_0", "\u00b2"])
DURABLES = st.sampled_from(
    [f"{STREAM}.billing--all"] * 4 + [f"{STREAM}.other", "", f"hub.znJdjy7f.{STREAM}.billing--all"]
)
REPLIES = st.just(reply(7)) | st.builds(
    lambda names, numbers, more: f"$JS.ACK.{names}.{'.'.join(numbers)}{more}",
    DURABLES,
    st.lists(st.just(str(NS)) | NUMBERS, min_size=4, max_size=6) | st.just(["2", "7", "9", str(NS), "0"]),
    st.sampled_from(["", "", ".", ".random", " ", "\r", "x" * 1024]),
)
LINES = st.sampled_from(["", "", TRACE, AFTER, AFTER + TRACE, TRACE + AFTER, "X: y\r\n", "\r\n", "\u00e9\r\n"])
CHARS = st.text(st.characters(max_codepoint=255), max_size=30) | st.text("!~ \x7f\x80\x1f\xff", max_size=30)
BLOCKS = st.builds(
    lambda msg_id, signature, lines: BLOCK.replace(ID, msg_id).replace(SIGNATURE, signature) + lines,
    st.just(ID) | st.text("aZ! ~\r\x7f\x80", min_size=21, max_size=23),
    st.just(SIGNATURE) | CHARS.map(lambda text: f"1.{text}"),
    LINES | CHARS.map(lambda text: f"traceparent: {text}\r\n") | CHARS.map(lambda text: AFTER[:-24] + text + "\r\n"),
)
FRAMES = st.builds(
    lambda sequence, block, back, body, sid, behind: (
        frame(sequence, block=block, back=back, body=body, sid=sid) + behind
    ),
    st.integers(1, 2**64), st.just(BLOCK) | BLOCKS, st.none() | REPLIES, st.binary(max_size=9) | st.just(b"x" * 3000),
    st.sampled_from([SID] * 9 + [SID + 1, SID * 11]), st.sampled_from([b""] * 9 + [b"PING\r\n", b"\r\n"]),
)  # fmt: skip


def same_read(data: bytes, position: int = 0, own: Any = OWN) -> Any:
    """Assert that both read the same at *position*, or refuse alike; what they say."""
    python, c = (outcome(twin(own, STREAM, SID).read, data, position) for twin in both("DeliveryRun"))
    assert repr(c) == repr(python)
    return c[1]


@compares("DeliveryRun")
@given(st.lists(FRAMES, max_size=5), st.binary(max_size=3), st.integers(0, 60))
def test_delivery_run(frames: list[bytes], before: bytes, cut: int) -> None:
    """Bursts, from wherever one may stand, with some that are none of ours among them, and with the end cut off."""
    data = before + b"".join(frames)
    for whole in (data, data[: max(0, len(data) - cut)]):
        for position in {len(before) + sum(map(len, frames[:i])) for i in range(len(frames) + 1)} | {0}:
            if position <= len(whole):
                same_read(whole, position)


@compares("DeliveryRun")
def test_delivery_run_reads_bursts() -> None:
    """Hundreds are one run; each byte that is another, or is not there, makes the same of it."""
    burst = b"".join(frame(n, block=BLOCK + TRACE) for n in range(300))
    end, events = same_read(burst)
    assert (end, len(events)) == (len(burst), 300)
    two = frame(1, block=BLOCK + TRACE) + frame(2)
    for at in range(len(two)):
        for other in (b"\0", b"0", b" ", b"\r", b"\n", b".", b"~", b"\x7f", b"\x80", b"\xff", b""):
            same_read(two[:at] + other + two[at + 1 :])
        same_read(two[:at])


@compares("DeliveryRun")
def test_delivery_run_with_values_of_every_length() -> None:
    """Of a signature, with what may not be in it anywhere."""
    for size in range(40):
        assert same_read(frame(block=BLOCK.replace(SIGNATURE, "1." + "~" * size)))[0]
        for at in range(size):
            for odd in ("\x7f", " ", "\u0080"):
                text = "!" * at + odd + "!" * (size - at - 1)
                assert not same_read(frame(block=BLOCK.replace(SIGNATURE, f"1.{text}")))[0]
                same_read(frame(block=f"{BLOCK}traceparent: {text}\r\n"))


@compares("DeliveryRun")
@given(
    st.lists(st.sampled_from(["", "0", "9", "10", "240", "4294967296", "9999999999", "10000000000", "+1"]), min_size=2)
)
def test_delivery_run_with_lengths_that_are_none(digits: list[str]) -> None:
    """Too long, too short, more than there is, and no number."""
    start = b"HMSG ev.x %d %b " % (SID, reply(1).encode())
    same_read(start + " ".join(digits).encode() + b"\r\n" + frame())


class _Own(AckSubject):
    """Says of an ack subject that is not the plain one whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__("none", "none")
        self._answer = answer

    def parse(self, reply: str) -> Any:
        """As it was told."""
        return self._answer(reply)


@compares("DeliveryRun")
def test_delivery_run_asks_for_other_ack_subjects() -> None:
    """What it hears is taken as it is: no ack subject, numbers of any size, an error."""
    for answer in (lambda _: None, lambda _: Delivered(1, 10**30, -1), lambda _: 1 // 0, lambda _: "odd", len):
        same_read(frame(1) + frame(2), own=_Own(answer))
    assert same_read(frame(1), own=_Own(lambda _: Delivered(1, 10**30, -1)))[1][0].sequence == 10**30


@compares("DeliveryRun")
def test_delivery_run_refuses_what_is_none() -> None:
    """Data that are no bytes, and arguments of another type."""
    python, c = both("DeliveryRun")
    for data in (None, "HMSG", 1):
        assert same_read(data) is TypeError  # type: ignore[arg-type]  # on purpose
    for arguments in ((), (OWN,), (OWN, STREAM), (OWN, STREAM, "7"), (OWN, STREAM, SID, 1)):
        assert outcome(c, *arguments) == outcome(python, *arguments) == ("raises", TypeError)
    for odd in ((None, STREAM, SID), (OWN, b"EV", SID), (OWN, STREAM, 10**30)):
        assert outcome(c, *odd)[0] == "raises"
    for position in (-1, len(frame()) + 1):
        assert outcome(c(OWN, STREAM, SID).read, frame(), position) == ("raises", ValueError)
