"""After the handler has answered: what becomes of the event, and which events were handled already.

    the handler returned                        Ack
    it raised Reject                            DeadLetter, at once
    it raised RetryLater(delay_s)               Retry after its delay
    it raised anything else                     Retry after the subscription's backoff
    any of the two, in the last attempt         DeadLetter("attempts-exhausted")

Delivery is at least once: an event counts as handled only when its handler has succeeded, so a crash in between brings
it again, and `DuplicateWindow` keeps most second copies of handled events away from handlers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from mesh.errors import ConfigError
from mesh.retry import MAX_DELAY_S, RetryPolicy

if TYPE_CHECKING:
    from mesh.signing import Received

ATTEMPTS_EXHAUSTED = "attempts-exhausted"
REJECTED = "rejected"
MAX_REASON_CHARS = 200  # a reason is a word or a sentence; it becomes a label in `mesh dlq list`
MAX_ERROR_CHARS = 100  # of an error's class name
MAX_WAITS = 100_000  # events remembered while they wait; five times what a durable delivers before it stops (20,000)
CRASH_FACTOR = 10  # deliveries for each allowed attempt, before an event that nobody lived to settle is buried


@dataclass(frozen=True, slots=True)
class Ack:
    """Handled: never deliver it again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Deliver it again after `delay_s` seconds (a delayed nak: the server's own `backoff` ignores naks)."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Store it in the dead letter stream, then ack it.

    Attributes:
        reason: Stable and short: `attempts-exhausted`, or what `Reject` said.
        error: Class name of the last error.
    """

    reason: str
    error: str


Outcome = Ack | Retry | DeadLetter


class Reject(Exception):
    """Raised by a handler: no retry can help, so the event becomes a dead letter at once.

    Args:
        reason: Why, as code or sentence; kept to `MAX_REASON_CHARS`, control characters become spaces. It is stored
            and listed, so it should not quote the event.
    """

    def __init__(self, reason: str = REJECTED) -> None:
        self.reason = _one_line(str(reason), MAX_REASON_CHARS) or REJECTED
        super().__init__(self.reason)


class RetryLater(Exception):
    """Raised by a handler: not now, again after `delay_s` seconds. Counts as an attempt.

    Args:
        delay_s: Seconds, held between 0 and `MAX_DELAY_S`; taken as it is, without jitter.
        reason: For the log.
    """

    def __init__(self, delay_s: float, reason: str = "") -> None:
        self.delay_s = _delay(delay_s)
        super().__init__(reason or f"again in {self.delay_s:g} s")


def settle(error: Exception | None, *, attempt: int, policy: RetryPolicy, jitter: float) -> Outcome:
    """Decide what becomes of an event.

    Args:
        error: What the handler raised, or None where it returned. Cancellation is not an answer: leave the event be.
        attempt: Which delivery this was, from 1.
        policy: The subscription's.
        jitter: 0 to 1, handed in.
    """
    if error is None:
        return Ack()
    name = _one_line(type(error).__name__, MAX_ERROR_CHARS)
    if isinstance(error, Reject):
        return DeadLetter(error.reason, name)
    if attempt >= policy.attempts:
        return DeadLetter(ATTEMPTS_EXHAUSTED, name)
    if isinstance(error, RetryLater):
        return Retry(error.delay_s)
    return Retry(policy.delay_s(attempt, jitter))


def _delay(delay_s: float) -> float:
    return min(max(float(delay_s), 0.0), MAX_DELAY_S) if delay_s == delay_s else 0.0  # noqa: PLR0124 - NaN is not itself


def _one_line(text: str, limit: int) -> str:
    shown = text[: 4 * limit]  # bounded first: the text may be an event
    return " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:limit]


# --- duplicates ------------------------------------------------------------------------------------------------------

Key = tuple[str, str]  # (source, id): what makes an event itself, CloudEvents 1.0.2


class Claim(Enum):
    """What the window knows of an event."""

    NEW = "new"
    IN_FLIGHT = "in-flight"  # a handler of ours has it right now: let it finish, do not start another, do not ack
    HANDLED = "handled"  # a handler succeeded with it: ack it


_NEW = Claim.NEW  # the answer for nearly every event; a member of an Enum takes a call to look up


class DuplicateWindow:
    """Remembers the last *size* handled events, and all that are in a handler now.

    A set and a line, not an `OrderedDict`: that grows a third time after 175,000 events though it holds 100,000 (10 MB
    at once, found by a soak), and takes twice the memory.

    Args:
        size: Events to remember once handled; the oldest goes first. 100,000 take about 25 MB, and no more later.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigError("a duplicate window has no room", expected="size >= 1", got=str(size))
        self._size = size
        self._handled: set[Key] = set()
        self._line: deque[Key] = deque()  # in the order in which handlers succeeded; twice where one did twice
        self._again: Counter[Key] = Counter()  # how many places in the line an event has beside its first
        self._in_flight: set[Key] = set()

    def __len__(self) -> int:
        """Handled events remembered."""
        return len(self._handled)

    @property
    def in_flight(self) -> int:
        """Events claimed and neither added nor forgotten."""
        return len(self._in_flight)

    def seen(self, key: Key) -> bool:
        """Whether a handler has succeeded with this event."""
        return key in self._handled

    def claim(self, key: Key) -> Claim:
        """Take a new event in hand: NEW once, then IN_FLIGHT until `add` (HANDLED from then on) or `forget`."""
        if key in self._handled:
            return Claim.HANDLED
        if key in self._in_flight:
            return Claim.IN_FLIGHT
        self._in_flight.add(key)
        return _NEW

    def claim_again(self, key: Key) -> Claim:
        """As `claim`, for an event that somebody asked to have again: that it was handled does not count."""
        if key in self._in_flight:
            return Claim.IN_FLIGHT
        self._in_flight.add(key)
        return _NEW

    def add(self, key: Key) -> None:
        """The handler succeeded: remember it."""
        handled, line = self._handled, self._line
        self._in_flight.discard(key)
        if key in handled:
            self._again[key] += 1
        else:
            handled.add(key)
        line.append(key)
        if len(handled) > self._size:
            handled.remove(self._oldest())
        elif len(line) > 2 * self._size:  # much is handled again: a replay
            self._line = deque(reversed(dict.fromkeys(reversed(line))))
            self._again.clear()

    def _oldest(self) -> Key:
        """Take the event whose last place in the line comes first out of it."""
        again = self._again
        while again and (key := self._line[0]) in again:
            again[key] -= 1
            if not again[key]:
                del again[key]
            self._line.popleft()
        return self._line.popleft()

    def forget(self, key: Key) -> None:
        """The handler failed, or never answered: the next copy is new. What was handled stays handled."""
        self._in_flight.discard(key)


# --- deliveries that no handler saw ----------------------------------------------------------------------------------

Place = tuple[str, int]  # stream and sequence


def place(received: Received) -> Place:
    """Where an event lies."""
    return received.stream, received.sequence


class Waits:
    """Which deliveries of an event say nothing about its handlers: those up to the last time it had to wait here.

    An event that cannot be judged yet (a bundle or a certificate is lacking) is handed back and comes again, to us or
    to another replica, and the server counts each time. Only from there on are deliveries evidence of handlers that end
    their process. Where several replicas wait for the same bundle, one cannot know the waits of the others: so all
    deliveries up to its own last wait are left out, and not only its own.

    After a restart nothing is known, and the server's count stands: else an event that ends each process that handles
    it would never be buried. An event that has to wait again in the new process begins anew.

    Args:
        size: Events to remember; the one that waited longest ago goes first. 100,000 take about 20 MB.

    Attributes:
        until: The last delivery in which each had to wait; for looking, whether there is any.
    """

    def __init__(self, size: int = MAX_WAITS) -> None:
        self._size = size
        self.until: OrderedDict[Place, int] = OrderedDict()

    def __len__(self) -> int:
        """Events remembered."""
        return len(self.until)

    def add(self, where: Place, deliveries: int) -> None:
        """It had to wait, in the delivery of this number."""
        self.until[where] = deliveries
        self.until.move_to_end(where)
        if len(self.until) > self._size:
            self.until.popitem(last=False)

    def since(self, where: Place, deliveries: int) -> int:
        """How many of its *deliveries* a handler may have had."""
        return deliveries - self.until.get(where, 0)

    def forget(self, where: Place) -> None:
        """It is settled."""
        if self.until:
            self.until.pop(where, None)


def worn_out(deliveries: int, policy: RetryPolicy) -> bool:
    """Whether an event came so often that its handling must be what ends the processes that try.

    Args:
        deliveries: Those that a handler may have had.
        policy: The subscription's.
    """
    return deliveries > policy.attempts * CRASH_FACTOR
