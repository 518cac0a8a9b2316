"""What JetStream writes into acks: only our own deliveries count, and an answer is never taken for another one."""

from __future__ import annotations

import pytest

from mesh.errors import MeshError, RequestFailed, StreamUnavailable
from mesh.jetstream.acks import AckRun, AckSubject, ApiError, Delivered, PubAck, ack_prefix, answer_of

NS = "1795300000123456789"
MS = 1_795_300_000_123


@pytest.mark.parametrize(
    ("reply", "delivered"),
    [
        (f"$JS.ACK.EV.d.3.17.20.{NS}.5", Delivered(3, 17, MS)),
        (f"$JS.ACK._.znJdjy7f.EV.d.3.17.20.{NS}.5", Delivered(3, 17, MS)),
        (f"$JS.ACK.hub.znJdjy7f.EV.d.3.17.20.{NS}.5.random", Delivered(3, 17, MS)),
        (f"$JS.ACK.EV.other.3.17.20.{NS}.5", None),
        (f"$JS.ACK.OTHER.d.3.17.20.{NS}.5", None),
        (f"$JS.ACK._.znJdjy7f.EV.other.3.17.20.{NS}.5", None),
        # A victim's v1 subject dressed up as our v2 one: its stream and durable stand where domain and hash belong.
        (f"$JS.ACK.EV.team--victim.EV.d.3.17.20.{NS}.5", None),
        (f"$JS.ACK.EV.a--b-cde.EV.d.3.17.20.{NS}.5", None),
        (f"$JS.ACK.EV.d.3.17.20.{NS}", None),
        (f"$JS.ACK.EV.d.3.17.20.{NS}.5.6", None),
        (f"$JS.ACK.EV.d.x.17.20.{NS}.5", None),
        (f"$JS.ACK.EV.d.3.-17.20.{NS}.5", None),
        ("$JS.ACK.EV.d.3.17.20.1e9.5", None),
        (f"$JS.ACK.EV.d.3.{'9' * 5000}.20.{NS}.5", None),
        (f"$JS.ACK.{'9' * 5000}.abcdefgh.EV.d.3.17.20.{NS}.5.random", None),
        ("_INBOX.x", None),
        ("", None),
        (f"$js.ack.EV.d.3.17.20.{NS}.5", None),
    ],
)
def test_only_ack_subjects_of_our_durable_are_read(reply: str, delivered: Delivered | None) -> None:
    """Stream and durable in the reply are ours, in both versions of the subject; the time comes in milliseconds."""
    assert AckSubject("EV", "d").parse(reply) == delivered


@pytest.mark.parametrize(
    ("headers", "data", "answer"),
    [
        (None, b'{"stream":"EV", "seq":7}', PubAck("EV", 7)),
        (None, b'{"stream":"EV", "seq":7, "duplicate":true}', PubAck("EV", 7, duplicate=True)),
        (None, b'{"stream":"EV","domain":"hub","seq":7,"new":1}', PubAck("EV", 7)),
        (
            None,
            b'{"error":{"code":503,"err_code":10077,"description":"full"},"stream":"EV","seq":0}',
            ApiError(503, 10077, "full"),
        ),
        (None, b'{"error":{"code":"x"}}', ApiError(0, 0, "")),
        (b"NATS/1.0 503\r\nNats-Subject: a\r\n\r\n", b"", ApiError(503, 0, "no responders")),
        (None, b"", None),
        (None, b"hello", None),
        (None, b"{}", None),
        (None, b'{"seq":"7"}', None),
        (None, b"\xff", None),
        (None, b"[" * 5000, None),
        (b"NATS/1.0 503\r\n\r\n", b"x", None),
    ],
)
def test_an_answer_is_an_ack_an_error_or_nothing(
    headers: bytes | None, data: bytes, answer: PubAck | ApiError | None
) -> None:
    """Whatever comes on an ack subject is told apart, and nothing raises."""
    assert answer_of(headers, data) == answer


@pytest.mark.parametrize(
    ("error", "passes", "kind"),
    [
        (ApiError(503, 0, "no responders"), True, StreamUnavailable),
        (ApiError(503, 10008, "temporarily unavailable"), True, StreamUnavailable),
        (ApiError(429, 10167, "too many requests"), True, StreamUnavailable),
        (ApiError(409, 10158, "duplicate message id is in process"), True, StreamUnavailable),
        (ApiError(503, 10077, "maximum bytes exceeded"), False, StreamUnavailable),
        (ApiError(500, 10047, "no storage left"), False, StreamUnavailable),
        (ApiError(400, 10054, "message size exceeds maximum"), False, RequestFailed),
        (ApiError(400, 10060, "expected stream does not match"), False, RequestFailed),
    ],
)
def test_which_errors_pass_by_themselves(error: ApiError, kind: type[MeshError], *, passes: bool) -> None:
    """A stream without a leader or overloaded is waited for; a full one, or a bad event, goes back to the caller."""
    assert error.passes is passes
    assert isinstance(error.as_error(), kind)


def test_the_prefix_of_a_plain_ack() -> None:
    """The quick path's prefix is what the server writes before the sequence; a longer stream name does not match."""
    assert ack_prefix("EV") == b'{"stream":"EV","seq":'


# --- acks that stand together ----------------------------------------------------------------------------------------

INBOX = "_INBOX_shop.0a1b.1."


def _ack(token: str = "7", sid: int = 3, size: int = 0, data: bytes = b'{"stream":"EV_a-b","seq":41}') -> bytes:
    """A frame that carries *data*, saying *size* instead of its own where that is given."""
    return f"MSG {INBOX}{token} {sid} {size or len(data)}\r\n".encode() + data + b"\r\n"


def test_a_run_of_acks_is_read_whole() -> None:
    """Tokens and sequences in order, and where the run ends: what is cut off there waits for the next read."""
    first, last = _ack("9"), _ack("10", data=b'{"stream":"EV_a-b","seq":40}')
    data = b"PING\r\n" + first + last + _ack("11")[:-1]
    assert AckRun(INBOX, 3).read(data, 6) == (6 + len(first) + len(last), ("EV_a-b", [9, 10], [41, 40]))


@pytest.mark.parametrize("other", [b'{"stream":"EV_a-c","seq":42}', b'{"stream":"EV_a-b","seq":9007199254740993}'])
def test_acks_of_another_stream_or_length_are_a_run_of_their_own(other: bytes) -> None:
    """Each run is read to its end, and the next one begins there."""
    first, second, run = _ack("9"), _ack("10", data=other), AckRun(INBOX, 3)
    position, found = 0, []
    while position < len(data := first + second + first):
        position, some = run.read(data, position)
        found.append(some)
    assert [some and some[1] for some in found] == [[9], [10], [9]]


@pytest.mark.parametrize(
    "frame",
    [
        _ack(sid=4),
        _ack(token="w1"),
        _ack(token="07"),
        _ack(token="7.1"),
        _ack(size=27),
        _ack(size=29),
        _ack(data=b'{"stream":"EV","seq":41,"duplicate":true}'),
        _ack(data=b'{"error":{"code":503,"err_code":10158},"stream":"EV","seq":0}'),
        _ack(data=b'{"stream":"EV","seq":-1}'),
        _ack(data=b'{"stream":"E\\"V","seq":1}'),
        _ack(data=b'{"stream":"EV","seq":1} '),
        _ack()[:-2],
        b"H" + _ack(),
        _ack().replace(b"shop", b"else"),
        b"",
    ],
)
def test_whatever_is_no_plain_ack_is_left(frame: bytes) -> None:
    """Duplicates, errors, other subscriptions and frames that are not what they say go the way every message goes."""
    assert AckRun(INBOX, 3).read(frame, 0) == (0, None)


def test_a_run_ends_before_what_does_not_fit() -> None:
    """Those before it are read, once: else a reader that takes one message at a time would read the rest each time."""
    sound, odd = _ack("9"), _ack("10", size=29)
    end, found = AckRun(INBOX, 3).read(sound + sound + odd + sound, 0)
    assert (end, found) == (2 * len(sound), ("EV_a-b", [9, 9], [41, 41]))
