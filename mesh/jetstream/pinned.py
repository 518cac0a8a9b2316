"""A puller of a durable that the server lets one client at a time pull: its pin is a lease.

The server pins whoever pulls when the first event goes out, and names the pin in each delivery. Measured on 2.15.1:

- only a pull that carries the pin's id keeps it; no delivery, ack or open pull does, and a closed connection frees it
  no sooner. So it is renewed by pulls for one byte: they take no event, and are answered at once.
- what comes again comes before what was never delivered, but among itself in any order: each pull that the server looks
  at and does not serve moves the first of them to the end.
- pulls without an id wait behind a pin, and take over when it has lapsed; pulls with an old id get a 423.
- whoever has the id may go on with it: a pin can be handed over without a gap.

Source: ADR-42 (pinned_client); measured through the imports of agent accounts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mesh.errors import Disconnected, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.connection import Connection
from mesh.jetstream.puller import STATUSES, Puller
from mesh.jetstream.topology import PIN_GROUP, PIN_TIMEOUT_S
from mesh.signing import Received

HEARTBEAT_S = 1.0  # of pulls: a slot that is taken over is open once a beat says that nothing waits
SILENCE_S = 6.0  # of pulls: to begin anew costs a wait for what was on its way, and a busy server is late by seconds
OVERDUE_S = 3.0  # for a delivery that the server has counted: the servers of a cluster agree on each before it goes out
RENEW_S = PIN_TIMEOUT_S / 3  # two renewals may be lost, or be late, before the pin is
LONG_ANSWER_NS = 250_000_000  # a renewal that waits with the server, where it answers none at once: see `renew`
CONFIRM_S = 2.0

_PIN_LINE = b"\r\nNats-Pin-Id:"
_LOCKED = 423  # another client's pin, or one that has lapsed
_BEAT = 100
_EMPTY = 404
_ENOUGH = 408  # our own pulls ask for more than there is, or the renewal waited its time
_REFUSED = 409
_TOO_LARGE = "MaxBytes"
_V1_TOKENS = 9


class PinnedPuller(Puller):
    """See `Puller`.

    Args:
        connection: Whose rights include the durable's MSG.NEXT and its acks.
        stream: Of the durable.
        durable: Its name.
        on_event: Gets each event in the read loop.
        on_gap: Called with the number (as in `delivered`) of the next delivery where it may not be the next after our
            last: the first one under each pin, and any one whose number does not join on.
        max_in_flight: Events delivered and not settled, or on their way.
        pin: The pin that its last holder handed over, if one did.

    Attributes:
        pin: The one we pull with; empty while we have none.
        delivered: Number of the last delivery that came, among all deliveries of the durable to anybody; 0 before.
        empty_at: When it last was certain that the server had nothing to deliver, neither for the first time nor again,
            and that all it had delivered had come: see `_on_beat`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        durable: str,
        on_event: Callable[[Received], None],
        on_gap: Callable[[int], None],
        max_in_flight: int,
        pin: str = "",
    ) -> None:
        super().__init__(
            connection,
            stream=stream,
            durable=durable,
            on_event=on_event,
            max_in_flight=max_in_flight,
            heartbeat_s=HEARTBEAT_S,
            silence_s=SILENCE_S,
        )
        self._on_gap = on_gap
        self._last_reply = ""
        self._renewals: dict[int, float] = {}  # not answered yet: when each was sent
        self._renewed = 0
        self._confirmed_at = float("-inf")  # when the last renewal that was answered well had been sent
        self._joined = False  # a delivery has come to this inbox
        self._overdue = -1, 0.0  # our last delivery when a beat first told of a later one, and when that was
        self.pin = pin
        self.delivered = 0
        self.empty_at = float("-inf")

    @property
    def holds(self) -> bool:
        """Whether the pin is ours, for certain, by our own clock."""
        return bool(self.pin) and self._now() < self._confirmed_at + PIN_TIMEOUT_S

    def renew(self) -> None:
        """Keep the pin; the answer counts from when this was sent. To be called every `RENEW_S`.

        An event that is there is too large for a pull of one byte, and where there is none the server says so: either
        way it answers at once. Only where it delivers nothing because too much is unsettled (max_ack_pending) does it
        say nothing; then we ask so that it answers in a moment.
        """
        if not self.pin or self._listener is None:
            return
        self._renewed += 1
        patience = b',"expires":%d' % LONG_ANSWER_NS if self._renewals else b""
        ask = b'{"batch":1,"max_bytes":1,"no_wait":true%b,%b}' % (patience, self._claim())
        self._renewals[self._renewed] = self._now()
        with suppress(Disconnected):
            self._connection.write(wire.publish_frame(self._next, ask, f"{self._inbox}.r{self._renewed}"))

    # --- by ack subject: of what is laid aside no more than that is kept ---------------------------------------------

    def lay_aside(self, reply: str) -> None:
        """Its turn comes much later: it no longer counts as in flight, and is signalled and recalled by *reply*."""
        self._unsettled.lay_aside(reply)
        self._pull()

    def signal(self, reply: str) -> None:
        """Keep it from being delivered again for another ack_wait."""
        self._unsettled.progress(reply)

    def recall(self, reply: str) -> None:
        """Have it delivered again, at once, to whoever has the pin."""
        self._unsettled.settle(reply, b"-NAK")

    def forget(self, reply: str) -> None:
        """It is no longer ours: it comes again, to whoever has the pin, once its ack_wait has passed."""
        self._unsettled.forget(reply)

    async def confirm(self) -> bool:
        """Wait until the server has worked in every settlement made so far; False where it did not say so in time.

        It works settlements off one by one, after it has taken them, so a PONG says nothing about them.
        """
        if not self._last_reply:
            return True
        try:
            await self._connection.request(self._last_reply, b"+WPI", timeout_s=CONFIRM_S)
        except Unavailable:
            return False
        return True

    def _claim(self) -> bytes:
        mine = b',"id":"%b"' % self.pin.encode() if self.pin else b""
        return b'"group":"%b"%b' % (PIN_GROUP.encode(), mine)

    def _pull(self, *, all_of_it: bool = False) -> None:
        """One pull at a time without an id: the server pins one of ours, and any other would wait behind ourselves."""
        if self.pin or not self._credit.asked:
            super()._pull(all_of_it=all_of_it)

    async def _last_pull_known(self) -> None:
        """Pulls of ours end with our pin, and one without it might take another's."""

    def _ask(self, wanted: int) -> bytes:
        return super()._ask(wanted)[:-1] + b",%b}" % self._claim()

    def _restart(self) -> None:
        self._renewals.clear()  # their answers would go to the inbox before
        self._joined = False
        super()._restart()
        self.renew()

    def _on_message(self, subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        tag = subject.rpartition(".")[2]
        if not reply and tag[:1] == "r" and tag[1:].isdigit():
            self._on_renewal(int(tag[1:]), headers)
            return
        if reply and self._own.parse(reply) is not None:
            before, self.delivered = self.delivered, consumer_sequence(reply)
            self._last_reply = reply
            pin = _pin_of(headers)
            if pin != self.pin or not before:
                self.pin = pin
                self._confirmed_at = float("-inf")
                self._on_gap(self.delivered)
                self.renew()
            elif self.delivered != before + 1:
                self._missing(self.delivered)
            self._joined = True
        super()._on_message(subject, reply, headers, data)

    def _missing(self, number: int) -> None:
        """Under our own pin some deliveries before this *number* did not come, and come again by themselves.

        They were on their way to an inbox or over a link that ended, where this is the first since. Where others came
        since, a pull of before is still open, on a link that the server has not seen end: only without its pin does it
        end.
        """
        joined = self._joined
        self._on_gap(number)
        if joined:
            self._lose_pin()

    def _on_renewal(self, number: int, headers: bytes | None) -> None:
        """It is no sign of life of the pulls: a server that lost them, with its lead, answers renewals all the same."""
        sent = self._renewals.pop(number, None)
        status = wire.status_of(headers)
        if status is None or sent is None:
            return
        if status.code == _LOCKED:
            self._lose_pin()
            return
        if status.code in {_EMPTY, _ENOUGH} or (status.code == _REFUSED and _TOO_LARGE in status.text):
            self._confirmed_at = max(self._confirmed_at, sent)  # it passed as the holder's

    def _on_status(self, subject: str, headers: bytes | None, data: bytes) -> None:
        status = wire.status_of(headers)
        if status is not None and status.code == _BEAT and not data:
            self._on_beat(wire.parse_headers(headers).get("Nats-Last-Consumer", ""))
        if status is not None and status.code == _LOCKED and not data:
            STATUSES.add(1, code=str(_LOCKED))
            self._lose_pin()
        else:
            super()._on_status(subject, headers, data)

    def _on_beat(self, last: str) -> None:
        """One of our pulls was open for a beat and got nothing: so nothing waited, if what was delivered has come.

        *last* is the number of the last delivery. The servers of a cluster agree on a delivery before it goes out, and
        meanwhile say anything else: that they have no messages, too. What then still does not come is lost, and need
        not come again: an ack for the delivery before may have settled it.
        """
        if not self.holds or not last.isdigit():
            return
        if int(last) == self.delivered:
            self.empty_at = max(self.empty_at, self._now() - HEARTBEAT_S)
            self._overdue = -1, 0.0
        elif self._overdue[0] != self.delivered:
            self._overdue = self.delivered, self._now()
        elif int(last) > self.delivered and self._now() > self._overdue[1] + OVERDUE_S:
            self.delivered = int(last)
            self._missing(self.delivered + 1)

    def _lose_pin(self) -> None:
        """Pull without an id, on a fresh inbox: what is said about pulls with the old one says nothing about these."""
        self.pin = ""
        self._confirmed_at = float("-inf")
        self._restart()


def consumer_sequence(reply: str) -> int:
    """The number of a delivery among all deliveries of its durable; *reply* was read by `AckSubject`."""
    tokens = reply.split(".")
    return int(tokens[6] if len(tokens) == _V1_TOKENS else tokens[8])


def _pin_of(headers: bytes | None) -> str:
    """The pin that a delivery names; the server puts its line last, and an event's own of that name does not count."""
    if headers is None:
        return ""
    start = headers.rfind(_PIN_LINE)
    pin = headers[start + len(_PIN_LINE) :].partition(b"\r\n")[0].strip() if start >= 0 else b""
    return pin.decode() if pin.isalnum() else ""
