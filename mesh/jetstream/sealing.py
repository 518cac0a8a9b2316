"""Sealing at egress: which signature and which message id an event carries when it is sent, and which acks count.

An event is sealed when it is sent, and anew when a resend would carry an old signature. An ack counts only while the
first signature under its message id is young: a server that hung may have stored the first, by then stale copy, and
answers the fresh one with `duplicate`; every consumer would refuse what it stored (measured). An event that waited
longer goes out under the next generation of its id. The same event submitted again is no younger: `former.py`.

The same holds for a key that is revoked: from the cut on nobody believes what it sealed, and an ack does not say
whether a copy was stored before or after it. So an event with a copy under such a key goes out anew, by another key and
under another id. Consumers, who know events by (source, id), see nothing twice.

Pure: time comes in as Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from mesh.jetstream import wire
from mesh.jetstream.former import Former
from mesh.jetstream.outgoing import Outgoing, entered, signed

MAX_BATCH = 256  # leaves under one signature
RESIGN_AFTER_MS = 30_000  # of a resend; consumers accept up to 120 s between signing and storing
ACK_COUNTS_MS = (
    100_000  # age of the first signature of an id up to which an ack proves a fresh copy: 120 s less a margin
)
MAX_SUBJECTS = 4096  # that are known to be sound; a publisher uses tens

Seal = Callable[[list[tuple[str, str, bytes]]], list[str]]
"""`seal([(subject, msg_id, body), ...])` of one batch gives the `Mesh-Signature` values, in the same order."""


class Sealer:
    """Events by the token of their ack subject, and the frames that carry them.

    Args:
        seal: Signs a batch of at most 256 events of one view.
        message_id: Gives an event's id from its source, id, subject and generation.
        inbox: What ack subjects begin with; a token follows.
        former: What is known of the same events from before.
    """

    def __init__(self, seal: Seal, message_id: Callable[[Outgoing], str], *, inbox: str, former: Former) -> None:
        self._seal = seal
        self._message_id = message_id
        wire.checked_subject(inbox)
        self._inbox = inbox
        self._former = former
        self._subjects: set[str] = set()  # that were checked
        self._last_token = 0
        self._distrusted: set[str] = set()
        self.by_token: dict[int, Outgoing] = {}
        self.resealed = 0  # resends that needed a younger signature
        self.new_ids = 0  # ... and of these, the ones that went out under a new id

    def admit(self, taken: list[Outgoing], sending: list[Outgoing], now_ms: int) -> bytes:
        """Give each of *taken* its id and token, and return the frames of those *sending*. All of it, or nothing.

        Raises:
            BadSubject, BadHeader: A field that could not stand in a frame.
            MeshError: Whatever `seal` raises.
        """
        try:
            for subject in {item.subject for item in taken}:
                self._check(subject)
            count = 0 if self._former else entered(taken, self.by_token, self._last_token)
            self._last_token += count
            for item in taken[count:]:
                if not item.base_id:
                    item.base_id = self._message_id(item)
                self._former.resume(item)
                self._identify(item)
            return self.frames(sending, now_ms)
        except BaseException:
            for item in taken:
                self.forget(item)
            raise

    def frames(self, items: list[Outgoing], now_ms: int) -> bytes:
        """One buffer of frames for *items*, sealed anew where there is no signature young enough."""
        new = [item for item in items if not (item.first_signed_ms or item.signature)]
        unsigned = new if len(new) == len(items) else [item for item in items if self._renews(item, now_ms)]
        for view in _views(unsigned):
            for start in range(0, len(view), MAX_BATCH):
                self._sign(view[start : start + MAX_BATCH], now_ms)
        for subject in {item.subject for item in items}:
            self._check(subject)
        return wire.event_frames(items, self._inbox)

    def ack_counts(self, item: Outgoing, now_ms: int) -> bool:
        """Whether an ack now proves that a copy was stored which consumers accept."""
        return self.believed(item.first_signed_ms, item.kids, now_ms)

    def believed(self, first_signed_ms: int, kids: Iterable[str], now_ms: int) -> bool:
        """Whether whatever is stored under an id first signed then, by these keys, is something consumers accept."""
        return now_ms - first_signed_ms <= ACK_COUNTS_MS and self._distrusted.isdisjoint(kids)

    @property
    def distrusts(self) -> bool:
        """Whether there are keys whose copies are not believed."""
        return bool(self._distrusted)

    def distrust(self, kid: str) -> list[Outgoing]:
        """From now on no ack proves anything about a copy that *kid* sealed; the events in flight that have one."""
        self._distrusted.add(kid)
        return [item for item in self.by_token.values() if kid in item.kids]

    def next_generation(self, item: Outgoing) -> None:
        """Give *item* a new id, under which nothing is stored yet; an ack of the former one means nothing."""
        self.forget(item)
        item.generation += 1
        item.first_signed_ms = 0
        item.kids = ()
        self._identify(item)
        self.new_ids += 1

    def forget(self, item: Outgoing) -> None:
        """Acks of *item* mean nothing from now on."""
        self.by_token.pop(item.token, None)

    def _identify(self, item: Outgoing) -> None:
        self._last_token += 1
        item.token = self._last_token
        item.msg_id = self._message_id(item) if item.generation else item.base_id
        item.signature = ""
        item.sends = 0
        self.by_token[item.token] = item

    def _sign(self, batch: list[Outgoing], now_ms: int) -> None:
        signatures = self._seal([(item.subject, item.msg_id, item.body) for item in batch])
        signed(batch, signatures, _kid(signatures[0]), now_ms)

    def _renews(self, item: Outgoing, now_ms: int) -> bool:
        """Whether *item* needs a signature; gives it a new id first where an ack of the present one would not count."""
        if not (item.first_signed_ms or item.signature):
            return True  # a new one
        if item.first_signed_ms and not self.ack_counts(item, now_ms):
            self.next_generation(item)
        elif not item.signature:
            return True
        elif now_ms - item.signed_ms <= RESIGN_AFTER_MS:
            return False
        self.resealed += 1
        return True

    def _check(self, subject: str) -> None:
        """Raise BadSubject for what could not stand in a frame."""
        if subject not in self._subjects:
            wire.checked_subject(subject)
            if len(self._subjects) >= MAX_SUBJECTS:
                self._subjects.clear()
            self._subjects.add(subject)


def _kid(signature: str) -> str:
    """Which key made a `Mesh-Signature`: its second part."""
    return signature.partition(".")[2].partition(".")[0]


@lru_cache(MAX_SUBJECTS)
def _view(subject: str) -> str:
    """What says the view in *subject*: `ev.<site>.<view>`."""
    return ".".join(subject.split(".", 3)[:3])


def _views(items: list[Outgoing]) -> list[list[Outgoing]]:
    """*items* by view: a batch under one signature never mixes views, since proofs hold the siblings' hashes."""
    if len({_view(subject) for subject in {item.subject for item in items}}) == 1:
        return [items]
    views: dict[str, list[Outgoing]] = {}
    for item in items:
        views.setdefault(_view(item.subject), []).append(item)
    return list(views.values())
