"""The polling kit's rules: what a change is, what its file shows, when a service is asked, what was deleted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.adapter.changes import Words, change
from agent.adapter.cloak import Cloak
from agent.adapter.database import BAD_ITEM, connect
from agent.adapter.line import Line
from agent.adapter.pace import Pace, seconds
from agent.adapter.page import Item
from agent.adapter.state import Bad, State, Taken
from mesh.errors import ConfigError
from mesh.limits import RateLimit

KEY = bytes(range(32))
WORDS = Words("/crm", "crm.contact.{change}.v1", lambda key: {"id": key})
ADA = Item("c-1", {"email": "ada@example.org", "city": "London"}, "contact/c-1", "2026-01-31T12:00:00Z")


class Opened:
    """A state file, opened."""

    def __init__(self, file: Path, *, most_deleted: float = 1.0) -> None:
        self.connection, self.cloak = connect(file, make=True)
        self.state = State(self.connection, self.cloak, WORDS, most_deleted=most_deleted, now_ms=lambda: 1_000)
        self.line = Line(self.connection, self.cloak)

    def take(
        self, *items: Item | Bad, cursor: Any = "next", first: bool = False, complete: bool = False
    ) -> dict[str, int]:
        """A page; what became of its items."""
        return dict(self.page(*items, cursor=cursor, first=first, complete=complete).counts)

    def page(self, *items: Item | Bad, cursor: Any = "next", first: bool = False, complete: bool = False) -> Taken:
        """A page."""
        return self.state.take(items, cursor, first=first, complete=complete)

    def listing(self, *items: Item | Bad) -> int:
        """All there is, in one page; how many deletions were held back."""
        held = self.page(*items, cursor=None, first=True, complete=True).held
        while self.state.sweep(1):
            pass
        return held

    def events(self) -> list[dict[str, Any]]:
        """Publish what waits."""
        published = []
        while rows := self.line.waiting(100):
            self.line.taken(rows)
            published += [row.fields for row in rows]
        return published

    def told(self) -> list[tuple[str, str]]:
        """The same: what happened, and to which item."""
        return [(event["type"].split(".")[2], event["partitionkey"]) for event in self.events()]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A new state."""
    opened = Opened(tmp_path / "contacts.db")
    yield opened
    opened.connection.close()


# --- what a change is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "digest", "what"),
    [
        (None, b"a", "created"),
        (b"a", b"a", None),
        (b"a", b"b", "updated"),
        (b"a", None, "deleted"),
        (None, None, None),
    ],
)
def test_what_happened(known: bytes | None, digest: bytes | None, what: str | None) -> None:
    """The digest last time and the digest now say what happened."""
    assert change(known, digest) == what


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}, True),
        ([1, 2], [2, 1], False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": None}, {}, False),
        ({"a": True}, {"a": 1}, False),
    ],
)
def test_digest_is_of_the_json_value(one: object, other: object, equal: bool) -> None:
    """Members have no order; everything else counts."""
    cloak = Cloak(KEY)
    assert (cloak.digest(one) == cloak.digest(other)) is equal


def test_digest_needs_the_key() -> None:
    """Whoever guesses a value cannot confirm the guess by its digest or an item's name."""
    one, other = Cloak(KEY), Cloak(KEY[::-1])
    assert one.digest("ada@example.org") != other.digest("ada@example.org")
    assert one.name("c-1") != other.name("c-1")


def test_sealed_content_opens_in_its_place_alone() -> None:
    """A row that was moved, or changed, does not pass for another."""
    cloak = Cloak(KEY)
    sealed = cloak.seal("event 01", {"a": 1}, bytes(12))
    assert cloak.open("event 01", sealed) == {"a": 1}
    for place, content in (("event 02", sealed), ("event 01", sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        with pytest.raises(ConfigError):
            cloak.open(place, content)


def test_an_event_says_it_all(opened: Opened) -> None:
    """Key, type, data, subject and time become a CloudEvent; the key keeps the order of its events."""
    assert opened.take(ADA) == {"created": 1}
    (event,) = opened.events()
    assert len(event.pop("id")) == 32
    assert event == {
        "specversion": "1.0",
        "source": "/crm",
        "type": "crm.contact.created.v1",
        "subject": "contact/c-1",
        "time": "2026-01-31T12:00:00Z",
        "partitionkey": "c-1",
        "data": {"email": "ada@example.org", "city": "London"},
    }


def test_the_same_again_is_no_event(opened: Opened) -> None:
    """Another time alone is no change, so what the service sends twice is told once."""
    opened.take(ADA)
    assert opened.take(ADA._replace(time="2026-02-01T12:00:00Z")) == {"same": 1}
    assert opened.told() == [("created", "c-1")]


@pytest.mark.parametrize("field", [{"data": {}}, {"subject": "contact/c-2"}, {"type": "crm.lead.{change}.v1"}])
def test_another_subject_or_type_is_a_change(opened: Opened, field: dict[str, Any]) -> None:
    """Whatever a consumer would see changed is an event."""
    opened.take(ADA)
    assert opened.take(ADA._replace(**field)) == {"updated": 1}


def test_there_and_back_are_two_changes(opened: Opened) -> None:
    """A, B, A are three events with three ids: the mesh takes none for a repetition."""
    for city in ("London", "Paris", "London"):
        opened.take(ADA._replace(data={"city": city}))
    events = opened.events()
    assert [event["data"]["city"] for event in events] == ["London", "Paris", "London"]
    assert len({event["id"] for event in events}) == 3


def test_an_event_keeps_its_id_until_it_is_taken(tmp_path: Path) -> None:
    """However often it is published, and whoever opens the file."""
    ids = []
    for _ in range(3):
        opened = Opened(tmp_path / "contacts.db")
        opened.take(ADA)
        ids.append(opened.line.waiting(10)[0].fields["id"])
        opened.connection.close()
    assert len(set(ids)) == 1


# --- what was deleted ------------------------------------------------------------------------------------------------


def items(*keys: str) -> list[Item]:
    """Some things."""
    return [Item(key, {"n": key}) for key in keys]


def test_a_complete_listing_tells_what_is_gone(opened: Opened) -> None:
    """What it left out is deleted, under the subject it had; and created anew where it comes back."""
    opened.listing(ADA, *items("b"))
    opened.events()
    opened.listing(*items("b"))
    (event,) = opened.events()
    assert (event["type"], event["subject"], event["data"]) == (
        "crm.contact.deleted.v1",
        "contact/c-1",
        {"id": "c-1"},
    )
    opened.listing(ADA, *items("b"))
    assert opened.told() == [("created", "c-1")]


def test_a_listing_goes_over_many_pages(opened: Opened) -> None:
    """What an earlier page of the same listing named is there."""
    opened.listing(*items("a", "b", "c"))
    opened.events()
    opened.take(*items("a"), first=True)
    opened.take(*items("c"), complete=True)
    while opened.state.sweep(1):
        pass
    assert opened.told() == [("deleted", "b")]


@pytest.mark.parametrize("pages", [["part"], ["part", "complete"]])
def test_a_part_deletes_nothing(opened: Opened, pages: list[str]) -> None:
    """Neither a page of changes, nor one that says `complete` of a listing that did not begin at the beginning."""
    opened.listing(*items("a", "b", "c"))
    opened.events()
    for page in pages:
        opened.take(*items("a"), complete=page == "complete")
    assert opened.state.sweep(10) == 0
    assert opened.told() == []


def test_too_many_deletions_are_held_back(tmp_path: Path) -> None:
    """A service that answers with an empty list by mistake deletes nothing."""
    opened = Opened(tmp_path / "contacts.db", most_deleted=0.5)
    many = items(*(str(n) for n in range(60)))
    opened.listing(*many)
    opened.events()
    assert opened.listing() == 60
    assert opened.told() == []
    assert opened.listing(*many[:40]) == 0
    assert len(opened.told()) == 20
    opened.connection.close()


def test_an_unreadable_item_is_not_a_deleted_one(opened: Opened) -> None:
    """A listing with an item that nobody could read says nothing about those it left out."""
    opened.listing(*items("a", "b"))
    opened.events()
    opened.listing(*items("a"), Bad("KeyError"))
    assert opened.told() == []


def test_a_service_may_say_that_something_is_gone(opened: Opened) -> None:
    """A tombstone is a deletion; one of a thing that was never seen is nothing."""
    opened.take(ADA)
    assert opened.take(Item("c-1", deleted=True), Item("c-9", deleted=True)) == {"deleted": 1, "same": 1}
    assert opened.told() == [("created", "c-1"), ("deleted", "c-1")]


# --- what cannot be told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [Bad("KeyError"), Item("", {}), Item(7, {}), Item("a", {1, object()}), Item("a", {}, time=object())],  # type: ignore[arg-type]
)
def test_an_item_that_is_none_is_parked(opened: Opened, item: Item | Bad) -> None:
    """It is named as such, without its values; the others of its page go on, and so does the cursor."""
    assert opened.take(item, *items("b"), cursor="after") == {"bad": 1, "created": 1}
    (parked,) = opened.line.parked()
    key = item.key if isinstance(item, Item) and isinstance(item.key, str) else ""
    assert (parked.key, parked.problem["code"]) == (key, BAD_ITEM)
    assert opened.told() == [("created", "b")]
    assert opened.state.cursor() == "after"


def test_retrying_an_unreadable_item_reads_everything_again(opened: Opened) -> None:
    """The item is not in the file; the service has it still."""
    opened.take(Bad("KeyError"), first=True)
    assert opened.line.retry() == 1
    assert opened.state.cursor() is None
    assert opened.take(ADA, first=True) == {"created": 1}
    assert opened.state.cursor() == "next"
    assert list(opened.line.parked()) == []


@pytest.mark.parametrize("complete", [True, False])
def test_an_unreadable_item_is_parked_once(opened: Opened, complete: bool) -> None:
    """However often it is listed, or a feed sends it again; two of a page are two."""
    for _ in range(5):
        opened.take(ADA, Bad("KeyError"), Bad("KeyError"), Item("a", object()), first=complete, complete=complete)
    parked = [(parked.key, parked.seq) for parked in opened.line.parked()]
    if not complete:  # the first poll has no cursor yet: what stood there may be another item
        parked = parked[-3:]
    assert [key for key, _ in parked] == ["", "", "a"]
    assert opened.line.level().parked == (3 if complete else 5)


def test_a_new_listing_forgets_what_an_earlier_one_could_not_read(opened: Opened) -> None:
    """It reads everything again: who was put right is parked no more."""
    opened.listing(ADA, Bad("KeyError"))
    opened.listing(ADA)
    assert opened.line.level().parked == 0


class Gone:
    """A developer's `gone` that takes numbers alone, until it is put right."""

    right = False

    def __call__(self, key: str) -> dict[str, object]:
        """The data of a deleted item."""
        return {"id": key if self.right else {"1": 1}[key]}


@pytest.fixture
def gone(opened: Opened) -> Gone:
    """Used by *opened*."""
    gone = Gone()
    opened.state = State(opened.connection, opened.cloak, Words("/crm", "crm.contact.{change}.v1", gone))
    return gone


def test_a_deletion_that_cannot_be_told_stops_no_other(opened: Opened, gone: Gone) -> None:
    """It is parked, its item stays known, and the others that are gone with it are told."""
    opened.listing(*items("1", "x"))
    opened.events()
    opened.listing()
    (parked,) = opened.line.parked()
    assert (parked.key, parked.problem["code"]) == ("x", BAD_ITEM)
    assert opened.told() == [("deleted", "1")]
    opened.listing()
    assert opened.line.level() == (0, 1)
    gone.right = True
    assert opened.line.retry() == 1
    opened.listing()
    assert opened.told() == [("deleted", "x")]
    assert opened.line.level() == (0, 0)


def test_a_tombstone_that_cannot_be_told_is_parked(opened: Opened, gone: Gone) -> None:
    """Whatever `gone` raises, the other items of its page go on."""
    assert not gone.right
    opened.take(*items("x"))
    opened.events()
    assert opened.take(Item("x", deleted=True), *items("b")) == {"bad": 1, "created": 1}
    assert [parked.key for parked in opened.line.parked()] == ["x"]


# --- the line --------------------------------------------------------------------------------------------------------


def test_a_batch_has_one_event_of_an_item(opened: Opened) -> None:
    """So the events of one item leave in order, whatever happens within a batch."""
    for n in range(3):
        opened.take(*(Item(key, {"n": n}) for key in ("a", "b")))
    assert [len(opened.line.waiting(limit)) for limit in (1, 100)] == [1, 2]


def test_a_retried_event_goes_before_newer_ones(opened: Opened) -> None:
    """It has its old place: no consumer ends with the older value."""
    opened.take(Item("a", 1))
    opened.line.park(opened.line.waiting(1)[0], '{"code": "denied"}')
    opened.take(Item("a", 2))
    assert opened.line.retry() == 1
    assert [event["data"] for event in opened.events()] == [1, 2]


def test_an_accepted_event_supersedes_older_parked_ones(opened: Opened) -> None:
    """They can be retried no more: they would bring the older value back. Other items' stay."""
    opened.take(Item("a", 1), Item("b", 1))
    for row in opened.line.waiting(2):
        opened.line.park(row, '{"code": "denied"}')
    opened.take(Item("a", 2))
    assert opened.line.taken(opened.line.waiting(1)) == 1
    assert [parked.key for parked in opened.line.parked()] == ["b"]


def test_an_event_that_is_retried_too_late_is_superseded(opened: Opened) -> None:
    """Put back in the line while a newer one of its item is on its way, it is not published after that one."""
    opened.take(Item("a", 1))
    opened.line.park(opened.line.waiting(1)[0], '{"code": "denied"}')
    opened.take(Item("a", 2), Item("b", 1))
    under_way = opened.line.waiting(10)
    assert opened.line.retry() == 1
    assert opened.line.taken(under_way) == 1
    assert opened.line.level() == (0, 0)


def test_one_parked_event_may_be_dropped(opened: Opened) -> None:
    """By its number; the rest stays, and what waits cannot be dropped."""
    opened.take(Item("a", 1), Item("b", 1), Item("c", 1))
    for row in opened.line.waiting(2):
        opened.line.park(row, '{"code": "denied"}')
    assert [opened.line.drop(seq) for seq in (1, 1, 3)] == [1, 0, 0]
    assert opened.line.level() == (1, 1)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_shows_nothing(tmp_path: Path) -> None:
    """Neither keys nor values, cursors, subjects or sources stand in it, whether events wait or not; modes are 0600."""
    opened = Opened(tmp_path / "contacts.db")
    opened.take(ADA, cursor="since-ada")
    opened.line.park(opened.line.waiting(1)[0], '{"code": "denied"}')
    opened.take(ADA._replace(data={"city": "Paris"}))
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    opened.connection.close()
    for secret in (b"ada@", b"London", b"Paris", b"c-1", b"since-ada", b"/crm"):
        assert secret not in written
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "contacts.db": 0o600,
        "contacts.db.key": 0o600,
    }


def test_every_commit_is_synced(opened: Opened) -> None:
    """A write-ahead log, synchronous FULL."""
    pragmas = [opened.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]


@pytest.mark.parametrize("spoil", ["missing", "other", "version", "no database"])
def test_a_state_that_is_not_ours_is_refused(tmp_path: Path, spoil: str) -> None:
    """A missing key, another one, another version, another file: said at the start, and nothing is written."""
    file, key_file = tmp_path / "contacts.db", tmp_path / "contacts.db.key"
    opened = Opened(file)
    if spoil == "version":
        opened.connection.execute("PRAGMA user_version = 99")
    opened.connection.close()
    if spoil == "missing":
        key_file.unlink()
    if spoil == "no database":
        file.write_bytes(b"not a database" * 100)
    if spoil == "other":
        key_file.write_text(KEY.hex())
    with pytest.raises(ConfigError):
        connect(file, make=True)


def test_only_the_adapter_makes_a_state(tmp_path: Path) -> None:
    """A tool that is given a wrong name says so, and leaves no file."""
    with pytest.raises(ConfigError, match="there is no state"):
        connect(tmp_path / "contacts.db", make=False)
    assert list(tmp_path.iterdir()) == []


# --- when a service is asked -----------------------------------------------------------------------------------------


def test_the_next_poll_is_at_once_while_there_is_more() -> None:
    """And after the interval, +-20 %, when there is not."""
    pace = Pace(60, None, 0)
    assert pace.wait_s(0) == 0
    pace.answered(10, more=True, jitter=0.5)
    assert pace.wait_s(10) == 0
    for jitter, wait_s in ((0, 48), (0.5, 60), (1, 72)):
        pace.answered(10, more=False, jitter=jitter)
        assert pace.wait_s(10) == pytest.approx(wait_s)


def test_a_failing_service_is_asked_less_and_less() -> None:
    """One that answers is asked as before; one that fails next begins the line anew."""
    pace = Pace(60, None, 0)
    assert [pace.failed(0, jitter=0.5) for _ in range(5)] == [1, 5, 30, 300, 300]
    pace.answered(0, more=False, jitter=0.5)
    assert pace.failed(0, jitter=0.5) == 1


def test_retry_after_is_a_lower_bound() -> None:
    """The service is left alone for as long as it asked, and for longer where that is due."""
    pace = Pace(60, None, 0)
    assert pace.failed(0, jitter=0.5, at_least_s=17) == 17
    assert pace.wait_s(16) == 1
    assert pace.failed(20, jitter=0.5, at_least_s=0.5) == 5


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        (None, 0),
        (2.5, 2.5),
        ("120", 120),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("nan", 0),
        ("1e99", 0),
        (1e99, 86_400),
        (float("nan"), 0),
        ("9" * 10, 86_400),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", 0),
    ],
)
def test_retry_after_as_services_write_it(retry_after: float | str | None, wait_s: float) -> None:
    """Seconds or a date; nonsense counts as nothing, so that the plain back-off holds."""
    noon_s = 1_769_860_800.0
    assert seconds(retry_after, noon_s) == wait_s


def test_the_rate_holds_while_there_is_more() -> None:
    """A burst at once, then as many a second as allowed."""
    pace = Pace(60, RateLimit(per_s=2, burst=3), 0)
    now_s, asked = 0.0, []
    for _ in range(6):
        now_s += pace.wait_s(now_s)
        pace.asked(now_s)
        pace.answered(now_s, more=True, jitter=0.5)
        asked.append(now_s)
    assert asked == pytest.approx([0, 0, 0, 0.5, 1, 1.5])
    assert all(later >= earlier for earlier, later in itertools.pairwise(asked))
