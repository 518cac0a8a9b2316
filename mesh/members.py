"""The replicas of one subscription, found by talking: who is there, which slots each has, and which were left in order.

They talk in their own account, where nobody else hears or is heard: a word every second and at each change. Whoever has
not been heard for `GONE_S` is taken for gone. All this only says who *wants* a slot; who *has* one the server says.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
import msgspec

from mesh import logs
from mesh.errors import MeshError
from mesh.jetstream import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection

SAY_S = 1.0
GONE_S = 3.5  # three words may be lost
FIRST_S = 0.3  # until whoever is there has answered the first word; they answer at once
UNSURE_S = 1.5  # after we were cut off or stopped: who was not heard meanwhile is not gone

log = logs.get("members")


class Left(NamedTuple):
    """How a replica left a slot: everything that was ever delivered in it is settled, or handed back in order.

    Attributes:
        pin: Its pin, for who comes next; empty where it had none.
        delivered: Number of the last delivery to it, among all of the durable.
    """

    pin: str
    delivered: int


class Word(msgspec.Struct):
    """What a replica says."""

    id: str
    holds: list[str] = []
    left: dict[str, Left] = {}
    bye: bool = False


class Members:
    """Those of one subscription, this one included; `run` has to run.

    Args:
        connection: The team's.
        subscription: As `<team>--<name>`.
        on_change: Called when somebody came, went, or has other slots than before.

    Attributes:
        id: Ours, random.
        holds: The slots that we have or pull for.
        left: By slot, how it was left last, as far as anybody here knows.
    """

    def __init__(self, connection: Connection, subscription: str, on_change: Callable[[], None]) -> None:
        self._connection = connection
        self._subject = f"{connection.inbox.rpartition('.')[0]}.members.{subscription}"
        self._on_change = on_change
        self._heard: dict[str, tuple[float, frozenset[str]]] = {}
        self._certain_at = 0.0
        self._said_at = float("-inf")
        self.id = secrets.token_hex(8)
        self.holds: set[str] = set()
        self.left: dict[str, Left] = {}

    @property
    def certain(self) -> bool:
        """Whether we have listened for long enough to know who is there."""
        return self._connection.connected and time.monotonic() >= self._certain_at

    def alive(self) -> list[str]:
        """Everybody's id, ours too, sorted: alike for all."""
        return sorted([self.id, *self._heard])

    def held_by_another(self, slot: str) -> bool:
        """Whether another one that is alive has *slot*."""
        return any(slot in holds for _, holds in self._heard.values())

    def leave(self, slot: str, left: Left | None) -> None:
        """We no longer have *slot*; *left* in order, or None where that is not certain."""
        self.holds.discard(slot)
        if left is not None:
            self._learn(slot, left)
        self.say()

    def say(self, *, bye: bool = False) -> None:
        """Tell the others."""
        self._said_at = time.monotonic()
        word = Word(self.id, sorted(self.holds), {s: how for s, how in self.left.items() if s not in self.holds}, bye)
        try:
            self._connection.write(_frame(self._subject, word))
        except MeshError as error:
            log.debug("word_not_sent", code=error.code)

    async def run(self) -> None:
        """Talk and listen until cancelled."""
        listener = self._connection.listen(self._subject, self._on_word)
        forget = self._connection.on_connect(self._connected)
        self._certain_at = time.monotonic() + FIRST_S
        self.say()
        woke_at = time.monotonic()
        try:
            while True:
                await anyio.sleep(FIRST_S)
                slept_at, woke_at = woke_at, time.monotonic()
                if woke_at - slept_at > SAY_S:  # we were stopped: what the others said lies unread
                    self._unsure()
                if self.certain:
                    self._forget_the_gone()
                if time.monotonic() >= self._said_at + SAY_S:
                    self.say()
        finally:
            forget()
            listener.close()

    def _connected(self) -> None:
        self._unsure()
        self.say()

    def _unsure(self) -> None:
        """We could not listen for a while: whoever was there still counts as there."""
        now = time.monotonic()
        self._certain_at = now + UNSURE_S
        self._heard = {id_: (now, holds) for id_, (_, holds) in self._heard.items()}

    def _forget_the_gone(self) -> None:
        now = time.monotonic()
        gone = [id_ for id_, (at, _) in self._heard.items() if now - at > GONE_S]
        for id_ in gone:
            del self._heard[id_]
        if gone:
            log.info("replicas_gone", count=len(gone), left=len(self._heard) + 1)
            self._on_change()

    def _on_word(self, _subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        try:
            word = msgspec.json.decode(data, type=Word)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("word_malformed", error=type(error).__name__)
            return
        if word.id == self.id:
            return
        holds = frozenset(word.holds)
        known = self._heard.get(word.id)
        for slot, left in word.left.items():
            self._learn(slot, left)
        if word.bye:
            self._heard.pop(word.id, None)
        else:
            self._heard[word.id] = time.monotonic(), holds
        if known is None and not word.bye:
            log.info("replica_joined", replicas=len(self._heard) + 1)
            self.say()  # it knows nobody yet
        if word.bye or known is None or known[1] != holds:
            self._on_change()

    def _learn(self, slot: str, left: Left) -> None:
        """The later of what is known; an old word does no harm: then the numbers do not join on."""
        known = self.left.get(slot)
        if known is None or left.delivered >= known.delivered:
            self.left[slot] = left


def _frame(subject: str, word: Word) -> bytes:
    return wire.publish_frame(subject, msgspec.json.encode(word))
