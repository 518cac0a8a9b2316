"""What an adapter knows: where it stopped, each item as it was last seen, and the events that nobody took yet.

A page becomes one transaction: the digests of its items, the events about those that changed, and the cursor. So a
crash finds all of a page or nothing of it; an event has its id before it is published for the first time, and keeps it.
Nothing here is asynchronous: one thread at a time.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.adapter.changes import change
from agent.adapter.cloak import NONCE_BYTES
from agent.adapter.database import BAD_ITEM, IS_BAD, transaction
from agent.adapter.page import Item

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from agent.adapter.changes import Change, Words
    from agent.adapter.cloak import Cloak

SPARED = 20  # deletions in one listing that are never held back, however large a share they are

_KNOWN = "SELECT digest, listing FROM known WHERE name = ?"
_LEARN = "INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)"
_SEEN = "UPDATE known SET listing = ? WHERE name = ?"
_UNSEEN = "SELECT name, sealed FROM known WHERE listing < ? LIMIT ?"
_SHARE = "SELECT (SELECT count(*) FROM known WHERE listing < ?), (SELECT count(*) FROM known)"
_FORGET = "DELETE FROM known WHERE name = ?"
_ADD = "INSERT INTO events (name, sealed, problem) VALUES (?, ?, ?)"
_READ_AGAIN = f"DELETE FROM events WHERE {IS_BAD}"  # noqa: S608 - no value is in it
_SAME_PLACE = f"DELETE FROM events WHERE name = ? AND {IS_BAD}"  # noqa: S608 - as above


class Bad(NamedTuple):
    """An item that could not be told as an event: the class of the error, since its text may quote the item."""

    error_class: str


class _UntoldError(Exception):
    """The developer's `gone`, or JSON, could not have an item; the class of its cause says why."""


class Taken(NamedTuple):
    """What a page came to: `created`, `updated`, `deleted`, `same` and `bad`; and deletions held back as too many."""

    counts: Counter[str]
    held: int


class State:
    """An opened state file.

    Args:
        connection: To the file.
        cloak: Its key.
        words: What events say.
        most_deleted: The share of all items, 0 to 1, that one complete listing may declare deleted.
        now_ms: Unix milliseconds.
        new_id: Another one each time.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        cloak: Cloak,
        words: Words,
        *,
        most_deleted: float = 1.0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._connection = connection
        self._cloak = cloak
        self._words = words
        self._most_deleted = most_deleted
        self._now_ms = now_ms
        self._new_id = new_id

    def cursor(self) -> Any:
        """Where to go on; None at the beginning, and where somebody wants a new beginning."""
        sealed = None if self._meta("start_over") else self._meta("cursor")
        return None if sealed is None else self._cloak.open("cursor", sealed)

    def start_over(self) -> None:
        """The next poll begins with None."""
        self._set("start_over", 1)

    def known(self) -> int:
        """How many items there are."""
        ((count,),) = self._connection.execute("SELECT count(*) FROM known")
        return int(count)

    def take(self, items: Sequence[Item | Bad], cursor: Any, *, first: bool, complete: bool) -> Taken:
        """Keep a page: what changed becomes events that wait.

        Args:
            items: Of the page.
            cursor: Where to go on after it.
            first: It is the first of a listing: it was asked for with None.
            complete: It is the last of a listing that left nothing out.
        """
        counts: Counter[str] = Counter()
        with transaction(self._connection):
            if first:
                self._set("listing", (self._meta("listing") or 0) + 1)
                self._unset("start_over")
                self._connection.execute(_READ_AGAIN)  # this listing has what could not be read, if it is there still
            listing = self._meta("listing") or 0
            asked = None if first else self.cursor()
            for index, item in enumerate(items):
                counts[self._take(item, listing, (asked, index))] += 1
            if counts["bad"]:
                self._set("blind", listing)  # one of these items may be any of those that are not there
            self._set("cursor", self._seal("cursor", cursor))
            held = self._held(listing) if complete and self._meta("blind") != listing else 0
            if complete and not held and self._meta("blind") != listing:
                self._set("sweep", listing)
        return Taken(counts, held)

    def sweep(self, limit: int) -> int:
        """Turn up to *limit* items that a complete listing left out into `deleted` events; how many there were."""
        listing = self._meta("sweep")
        if listing is None:
            return 0
        with transaction(self._connection):
            gone = self._connection.execute(_UNSEEN, (listing, limit)).fetchall()
            for name, sealed in gone:
                key, subject, type_ = self._cloak.open(_place("known", name), sealed)
                try:
                    self._happened("deleted", name, Item(key, subject=subject, type=type_, deleted=True))
                    self._connection.execute(_FORGET, (name,))
                except _UntoldError as error:
                    self._bad(name, key, error)
                    self._connection.execute(_SEEN, (listing, name))  # the next listing that leaves it out tries again
            if not gone:
                self._unset("sweep")
        return len(gone)

    # --- items -------------------------------------------------------------------------------------------------------

    def _take(self, item: Item | Bad, listing: int, place: tuple[Any, int]) -> str:
        """Keep one item; *place* is the cursor that its page was asked for with, and its index there."""
        name, key = b"", ""
        try:
            if isinstance(item, Bad):
                raise _UntoldError(item.error_class)
            with _untold():
                if not isinstance(item.key, str) or not item.key:
                    raise TypeError("an item's key is a string, and not empty")
                name, key = self._cloak.name(item.key), str(item.key)  # JSON has no subclasses of str
            return self._compare(item, name, listing)
        except _UntoldError as error:  # before anything was written
            return self._bad(name or self._cloak.digest(("bad", *place, str(error))), key, error)

    def _compare(self, item: Item, name: bytes, listing: int) -> str:
        with _untold():
            digest = None if item.deleted else self._cloak.digest(self._words.told(item))
        known = self._connection.execute(_KNOWN, (name,)).fetchone()
        what = change(None if known is None else known[0], digest)
        if what is not None:
            self._happened(what, name, item)
        if digest is None:
            self._connection.execute(_FORGET, (name,))
        elif what is not None:
            about = self._seal(_place("known", name), (item.key, item.subject, item.type))
            self._connection.execute(_LEARN, (name, digest, listing, about))
        elif known[1] != listing:
            self._connection.execute(_SEEN, (listing, name))
        return what or "same"

    def _happened(self, what: Change, name: bytes, item: Item) -> None:
        with _untold():
            event = self._words.event(what, item, id=self._new_id(), now_ms=self._now_ms())
            sealed = self._seal(_place("event", name), event)
        self._connection.execute(_ADD, (name, sealed, None))

    def _bad(self, name: bytes, key: str, error: _UntoldError) -> str:
        """Park an item, or what stands where none was read: once, however often it comes."""
        problem = {
            "code": BAD_ITEM,
            "message": f"the item could not be told as an event: {error}",
            "next": "put `item` right, then retry: the adapter reads everything again, and finds this one",
        }
        sealed = self._seal(_place("event", name), {"partitionkey": key})
        self._connection.execute(_SAME_PLACE, (name,))
        self._connection.execute(_ADD, (name, sealed, msgspec.json.encode(problem).decode()))
        return "bad"

    def _held(self, listing: int) -> int:
        """How many items a listing left out, where they are too many to be believed; else 0."""
        ((gone, known),) = self._connection.execute(_SHARE, (listing,))
        return int(gone) if gone > max(SPARED, known * self._most_deleted) else 0

    # --- the file ----------------------------------------------------------------------------------------------------

    def _seal(self, place: str, value: Any) -> bytes:
        return self._cloak.seal(place, value, secrets.token_bytes(NONCE_BYTES))

    def _meta(self, name: str) -> Any:
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _set(self, name: str, value: bytes | int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _unset(self, name: str) -> None:
        self._connection.execute("DELETE FROM meta WHERE name = ?", (name,))


@contextmanager
def _untold() -> Iterator[None]:
    """Around what the developer wrote, or JSON has to hold: it may raise anything, and its text may quote the item."""
    try:
        yield
    except Exception as error:
        raise _UntoldError(type(error).__name__) from error


def _place(table: str, name: bytes) -> str:
    return f"{table} {name.hex()}"
