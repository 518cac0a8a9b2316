"""The probe of a stopped lane: its oldest event, sent alone at a growing distance, and whom its 503s accuse.

A stream without a leader and a subject we may not use answer with the same 503. They are told apart by a witness: the
stream answers on another subject of ours, after one 503 of the probe and before the next. Then it is the subject. The
witness is a publish that stores nothing (it expects a stream of another name), for a real event sent ahead of the probe
would be stored ahead of it.

Pure: time comes in as monotonic seconds.
"""

from __future__ import annotations

from mesh.jetstream.outgoing import Outgoing

WITNESS_AFTER = 3  # probes answered 503, about 0.2 s: a leader change is over by then, mostly
KNOWN_SUBJECTS = 16  # that this stream acknowledged lately: candidates for a witness


class Probe:
    """Of one lane.

    Args:
        first_s: From the first probe to the second, and to the first after a 503; it doubles from there on.
        last_s: The most between two.
        due_at: When the first is to be sent.

    Attributes:
        item: The last one sent, while its answer is awaited.
        due_at: When the next one is to be sent, in a lane that does not flow.
    """

    def __init__(self, first_s: float, last_s: float, *, due_at: float) -> None:
        self.item: Outgoing | None = None
        self.due_at = due_at
        self._first_s = first_s
        self._last_s = last_s
        self._wait_s = first_s
        self._rejections = 0  # of the present head, in a row
        self._witnessed = False  # the stream answered on another subject since the head's first 503
        self._sent_witnessed = False  # ... and before the awaited probe was sent
        self._known: dict[str, None] = {}  # subjects, the one acknowledged last at the end

    def begin(self, due_at: float) -> None:
        """The lane stopped: nothing is known yet, and the first probe is sent then."""
        self.item = None
        self.due_at = due_at
        self._wait_s = self._first_s
        self.turn()

    def turn(self) -> None:
        """Another event is the oldest: what was answered to the last one says nothing about it."""
        self._rejections = 0
        self._witnessed = False
        self._sent_witnessed = False

    def sent(self, head: Outgoing, now: float) -> str | None:
        """*head* is sent now. Returns a subject to ask a witness on, where it is time for one."""
        self.item = head
        self._sent_witnessed = self._witnessed
        self.due_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, self._last_s)
        if self._rejections < WITNESS_AFTER or self._witnessed:
            return None
        subject = next((subject for subject in reversed(self._known) if subject != head.subject), None)
        if subject is not None:  # the next time another one: this may have been taken from us too
            del self._known[subject]
            self._known = {subject: None, **self._known}
        return subject

    def rejected(self) -> bool:
        """A 503 came for the awaited one; whether there is a witness that it is the subject."""
        self.item = None
        self._rejections += 1
        return self._sent_witnessed

    def witnessed(self, now: float) -> None:
        """The stream answered on another subject. If the head was rejected before, its next probe decides."""
        if self._rejections:
            self._witnessed = True
            self.due_at = min(self.due_at, now)

    def remember(self, subject: str) -> None:
        """The stream acknowledged an event on *subject*."""
        if next(reversed(self._known), None) == subject:
            return
        self._known.pop(subject, None)
        self._known[subject] = None
        if len(self._known) > KNOWN_SUBJECTS:
            del self._known[next(iter(self._known))]
