"""What JetStream writes into acks: where a delivery stands in its stream, and whether a publish was stored.

Source: ADR-15 (ack subjects), ADR-37 and the JetStream wire API reference (publish acks and API errors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mesh import native
from mesh.errors import MeshError, RequestFailed, StreamUnavailable
from mesh.jetstream import wire

NO_RESPONDERS = 503  # ADR-22: nobody hears the subject, or our account does not import it
WRONG_STREAM = 10060  # "expected stream does not match": the answer to a publish that expects another stream's name
_NOT_NOW = {429, 503}  # of the stream itself: overloaded, or without quorum
_IN_PROCESS = 10158  # "duplicate message id is in process": the first one is not replicated yet
_TOKEN = re.compile(r"[1-9][0-9]{0,17}")
_FULL = {10077, 10047, 10023, 10028}  # max bytes or messages; storage, JetStream or memory resources used up
_MAX_CHARS = 1024  # of an ack subject: a few names of at most 255, and numbers; more digits than Python reads are none
_V1_OWN_TOKENS = 5  # behind the names
_HASH_CHARS = 8  # of the base62 account hash; names of our durables have `--` in them
_V2_TOKENS = 11  # at least: newer servers add a random token at the end


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """What the server says about a delivery in its ack subject. `stream_ms` is when the stream stored the event."""

    deliveries: int
    sequence: int
    stream_ms: int


class AckSubject:
    """Reads the `$JS.ACK` reply of deliveries of one durable, and of no other: a reply can be anybody's invention.

    `v1` is how its replies begin that have neither domain nor account; the numbers follow.
    """

    def __init__(self, stream: str, durable: str) -> None:
        self._names = [stream, durable]
        self.v1 = f"$JS.ACK.{stream}.{durable}."

    def parse(self, reply: str) -> Delivered | None:
        """What *reply* says, or None where it is no ack subject of this durable.

        `$JS.ACK.<stream>.<durable>.<delivered>.<seq>.<consumer seq>.<ns>.<pending>`, and with ack v2
        `$JS.ACK.<domain>.<account hash>.<stream>.<durable>. ...`.
        """
        if len(reply) > _MAX_CHARS:
            return None
        if reply.startswith(self.v1):
            tokens = reply[len(self.v1) :].split(".")
            if len(tokens) != _V1_OWN_TOKENS:
                return None
            deliveries, sequence, _, stored, _ = tokens
        else:
            tokens = reply.split(".")
            if len(tokens) < _V2_TOKENS or tokens[4:6] != self._names or not _is_v2(tokens):
                return None
            deliveries, sequence, stored = tokens[6], tokens[7], tokens[9]
        if not (deliveries.isdigit() and sequence.isdigit() and stored.isdigit()):
            return None
        return Delivered(int(deliveries), int(sequence), int(stored) // 1_000_000)


def _is_v2(tokens: list[str]) -> bool:
    """Whether the fourth token is an account's hash: else this is the v1 subject of another durable, dressed up."""
    return tokens[:2] == ["$JS", "ACK"] and len(tokens[3]) == _HASH_CHARS and tokens[3].isalnum()


class PubAck(msgspec.Struct, frozen=True, gc=False):
    """A stream took the event. `duplicate`: it already had one with this message id."""

    stream: str
    sequence: int
    duplicate: bool = False


class ApiError(NamedTuple):
    """JetStream said no: its HTTP-like `code`, its own `err_code` (0 for a bare status), and its sentence."""

    code: int
    err_code: int
    text: str

    @property
    def passes(self) -> bool:
        """Whether waiting helps: the stream has no leader, or is overloaded. A full one is full until somebody acts."""
        return self.err_code == _IN_PROCESS or (self.code in _NOT_NOW and not self.full)

    @property
    def full(self) -> bool:
        """Whether the stream, or its server, has no room for what was published."""
        return self.err_code in _FULL

    def as_error(self) -> MeshError:
        """The error for whoever published."""
        if self.full or self.passes:
            return StreamUnavailable(
                "the stream is full, or its server is out of resources", next="add space", err_code=self.err_code
            )
        return RequestFailed(f"the stream refused the event: {self.text}", err_code=self.err_code)


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_answers = msgspec.json.Decoder(_Answer)


def ack_prefix(stream: str) -> bytes:
    """How every plain publish ack of *stream* begins; digits and `}` follow."""
    return b'{"stream":"%b","seq":' % stream.encode()


MAX_ALIKE = 256  # streams and lengths of sequences that are remembered: a publisher has a few streams
_AROUND = len(ack_prefix("")) + 1  # bytes of a plain ack beside the stream's name and the digits


Acks = tuple[str, list[int], list[int]]
"""Plain acks that came together: their stream, the tokens of ack subjects, and where the stream has each event."""


@native.twin
class AckRun:
    """Reads plain publish acks that stand one behind the other in what was read, all of them in one search.

    A stream acks in bursts: hundreds of acks come in one read, alike but for the digits of token and sequence. Cut and
    handed on one by one, they took a third of what a publisher does for an event. The first ack says what the others
    have to look like; where one differs, in its stream or in the number of digits, another run begins.

    Args:
        inbox: What their subjects begin with; a token of digits follows.
        sid: Of the subscription to it.
    """

    __slots__ = ("_alike", "_one", "_sid", "_start")

    def __init__(self, inbox: str, sid: int) -> None:
        self._start = b"MSG %b" % inbox.encode()
        self._sid = sid
        self._one = re.compile(
            rb"%b[1-9][0-9]{0,17} %d ([0-9]{1,5})\r\n"
            rb'\{"stream":"([A-Za-z0-9_-]{1,255})","seq":([0-9]{1,18})\}\r\n' % (re.escape(self._start), sid)
        )
        self._alike: dict[tuple[bytes, int], tuple[re.Pattern[bytes], re.Pattern[str]]] = {}

    def read(self, data: bytes, position: int) -> tuple[int, Acks | None]:
        """The acks that stand at *position*: where they end, and what they say; None where there are none."""
        first = self._one.match(data, position) if data.startswith(self._start, position) else None
        if first is None:
            return position, None
        size, stream, digits = first.groups()
        if int(size) != _AROUND + len(stream) + len(digits):
            return position, None  # not what follows: no plain ack, whatever it is
        whole, each = self._alike.get((stream, len(digits))) or self._learn(stream, len(digits))
        found = whole.match(data, position)
        if found is None:  # `0` before the digits of its size
            return position, None
        rows = each.findall(found[0].decode())
        return found.end(), (stream.decode(), [int(row[0]) for row in rows], [int(row[1]) for row in rows])

    def _learn(self, stream: bytes, digits: int) -> tuple[re.Pattern[bytes], re.Pattern[str]]:
        """What finds the acks of *stream* whose sequences have so many *digits*: all of them, and the parts of each."""
        if len(self._alike) >= MAX_ALIKE:
            self._alike.clear()
        sizes = self._sid, _AROUND + len(stream) + digits
        one = rb"%b([1-9][0-9]{0,17}) %d %d\r\n" % (re.escape(self._start), *sizes)
        one += rb'\{"stream":"%b","seq":([0-9]{%d})\}\r\n' % (stream, digits)
        known = self._alike[stream, digits] = (
            re.compile(b"(?:%b)++" % one.replace(b"(", b"(?:")),
            re.compile(one.decode()),
        )
        return known


def is_token(text: str) -> bool:
    """Whether *text*, the end of an ack subject, can be the token of an event."""
    return _TOKEN.fullmatch(text) is not None


def parse_pub_ack(data: bytes) -> PubAck | ApiError | None:
    """A publish ack, an API error, or None for what is neither."""
    try:
        answer = _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if answer.error is not None:
        return api_error(answer.error)
    return PubAck(answer.stream, answer.seq, answer.duplicate) if answer.stream else None


def answer_of(headers: bytes | None, data: bytes) -> PubAck | ApiError | None:
    """What came on an ack subject: a publish ack, an error (no responders is one), or None for anything else."""
    if data:
        return parse_pub_ack(data)
    status = wire.status_of(headers)
    return ApiError(status.code, 0, status.text or "no responders") if status is not None else None


def api_error(error: Mapping[str, Any]) -> ApiError:
    """The `error` member of a JetStream answer."""
    numbers = (error.get("code"), error.get("err_code"))
    code, err_code = (n if isinstance(n, int) else 0 for n in numbers)
    return ApiError(code, err_code, str(error.get("description", ""))[:200])
