"""Any provider that signs with an HMAC, as `[webhooks.<source>.scheme]` describes it.

`type` is `<source>.<name>.v1`, with the name of the table as its first word, `id`, `time` and `subject` stand where the
scheme says, `data` is the JSON object as it came. With a signed timestamp a delivery is refused beyond the tolerance.
Without one, or where the id is not among what is signed, whoever gets hold of a whole delivery can post it again:
under its own id, which is the same event, or under another, which is one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider
from agent.webhooks.scheme import BODY, FIXED, ID, METHOD, PIECE, TIMESTAMP, URL, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.webhooks.scheme import Scheme
    from agent.webhooks.settings import WebhookSource

_PER_S = {"s": 1, "ms": 1000}


class Generic(Provider):
    """One scheme of the settings."""

    def __init__(self, source: WebhookSource) -> None:
        super().__init__(source)
        assert source.scheme is not None  # noqa: S101 - the settings refuse a generic source without one
        self._scheme: Scheme = source.scheme

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        scheme = self._scheme
        name = scheme.signature_header
        expected = f"{scheme.prefix}<{scheme.digest} in {scheme.encoding}>"
        given = checks.header(incoming, name, expected)
        if not given.startswith(scheme.prefix):
            raise checks.missing(name, expected, given)
        timestamp = self._timestamp(incoming)
        checks.check_mac(
            name,
            [given.removeprefix(scheme.prefix)],
            [self._signed(incoming, timestamp)],
            secrets,
            digest=scheme.digest,
            encoding=scheme.encoding,
        )
        if timestamp:
            at_s = self._seconds(timestamp)
            checks.check_fresh(scheme.timestamp_header, at_s, now_s=now_s, tolerance_s=self.tolerance_s)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        scheme = self._scheme
        kind, rest = place(scheme.type)
        name = rest if kind == FIXED else self._found(scheme.type, incoming, payload)
        return [
            self.event(
                id=events.event_id(self._found(scheme.id, incoming, payload), what=f"{scheme.id}, the id"),
                type=events.type_of(self.name, events.parts(name)),
                time_ms=self._time_ms(incoming, payload),
                subject=events.subject(self._found(scheme.subject, incoming, payload)) if scheme.subject else None,
                data=payload,
            )
        ]

    def _timestamp(self, incoming: Incoming) -> str:
        header = self._scheme.timestamp_header
        return checks.header(incoming, header, f"a timestamp, {self._scheme.timestamp_unit}") if header else ""

    def _seconds(self, timestamp: str) -> float:
        header, unit = self._scheme.timestamp_header, self._scheme.timestamp_unit
        if unit in _PER_S:
            return checks.digits(header, timestamp) / _PER_S[unit]
        ms = events.from_rfc3339(timestamp)
        if ms is None:
            raise checks.missing(header, "an RFC 3339 time", timestamp)
        return ms / 1000

    def _signed(self, incoming: Incoming, timestamp: str) -> bytes:
        """What the provider signed, from the bytes as they came."""
        pieces = PIECE.split(self._scheme.signed)
        return b"".join(self._piece(piece, incoming, timestamp) for piece in pieces)

    def _piece(self, piece: str, incoming: Incoming, timestamp: str) -> bytes:
        if piece == BODY:
            return incoming.body
        if piece == TIMESTAMP:
            return checks.raw(timestamp)
        if piece == ID:
            return checks.raw(checks.header(incoming, place(self._scheme.id)[1], "the delivery's id"))
        return checks.raw({METHOD: incoming.method, URL: incoming.url}.get(piece, piece))

    def _time_ms(self, incoming: Incoming, payload: Any) -> int | None:
        scheme = self._scheme
        if scheme.time:
            value = self._found(scheme.time, incoming, payload)
        else:
            value = incoming.headers.get(scheme.timestamp_header) if scheme.timestamp_header else None
        return events.from_rfc3339(value) or events.milliseconds(value, per_s=_PER_S.get(scheme.timestamp_unit, 1))

    @staticmethod
    def _found(where: str, incoming: Incoming, payload: Any) -> Any:
        kind, rest = place(where)
        return incoming.headers.get(rest) if kind == "header" else events.at(payload, *rest.split("."))
