"""Which handler an event goes to, and how it is called."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import mesh
from mesh.errors import BadPattern, ConfigError
from mesh.handlers import UNHANDLED, caller
from mesh.inbound import Admitted

pytestmark = pytest.mark.anyio


@mesh.event_type("crm.contact.updated.v1")
class ContactUpdated(msgspec.Struct):
    """The data of one type."""

    country: str


def event(type_: str, data: object = None) -> Admitted:
    """An event in a handler's hands."""
    fields = {"id": "c-1", "source": "/crm", "type": type_, "data": data}
    return Admitted(fields, "service", "spiffe://x/y", "EV_local_crm", 1, 0, 1, None)


def naming(handlers: mesh.Handlers, *patterns: str | type) -> list[str]:
    """Register a handler for each pattern; returns where they note which of them was called."""
    called: list[str] = []
    for pattern in patterns:

        async def note(_: Admitted, name: str = str(pattern)) -> None:
            called.append(name)

        handlers.on(pattern)(note)
    return called


NESTED = ("crm.contact.updated.v1", "crm.contact.*.v1", "crm.contact.created.v2", "crm.>", ">")


@pytest.mark.parametrize(
    ("type_", "pattern"),
    [
        ("crm.contact.updated.v1", "crm.contact.updated.v1"),
        ("crm.contact.deleted.v1", "crm.contact.*.v1"),
        ("crm.contact.created.v2", "crm.contact.created.v2"),
        ("crm.contact.deleted.v2", "crm.>"),
        ("billing.invoice.issued", ">"),
    ],
)
@pytest.mark.parametrize("patterns", [NESTED, NESTED[::-1]])
async def test_the_narrowest_pattern_takes_an_event(type_: str, pattern: str, patterns: tuple[str, ...]) -> None:
    """Whatever the order in which handlers were registered."""
    handlers = mesh.Handlers()
    called = naming(handlers, *patterns)
    await handlers(event(type_))
    assert called == [pattern]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("crm.contact.*.v1", "crm.*.updated.v1"),
        ("crm.contact.updated", "crm.contact.*.v1"),
        ("crm.contact", "crm.contact"),
        (ContactUpdated, "crm.contact.updated.v1"),
    ],
)
def test_patterns_that_overlap_are_refused(one: str | type, other: str | type) -> None:
    """Neither is within the other, so no reader of the code could say which handler it is."""
    handlers = mesh.Handlers()
    naming(handlers, one)
    with pytest.raises(ConfigError, match="two handlers take the same events"):
        naming(handlers, other)


async def test_a_handler_by_class_gets_its_data() -> None:
    """Registered by class it takes that type, and may ask for the event as well."""
    handlers, got = mesh.Handlers(), []

    @handlers.on(ContactUpdated)
    async def updated(data: ContactUpdated, event: mesh.Admitted) -> None:
        got.append((data, event.id))

    await handlers(event("crm.contact.updated.v1", {"country": "DE"}))
    assert got == [(ContactUpdated("DE"), "c-1")]
    assert handlers.takes("crm.contact.updated.v1")
    assert not handlers.takes("crm.contact.updated.v2")


async def test_data_that_does_not_fit_never_reaches_the_handler() -> None:
    """It is a dead letter at once."""
    handlers = mesh.Handlers()

    @handlers.on(ContactUpdated)
    async def updated(data: ContactUpdated) -> None:
        pytest.fail("handled")

    with pytest.raises(mesh.Reject, match=r"data-mismatch at \$\.country"):
        await handlers(event("crm.contact.updated.v1", {"country": 5}))


@pytest.mark.parametrize("takes", ["crm.>", "crm.contact.updated", "crm.deal.won.v1"])
def test_a_class_of_one_type_is_not_registered_for_others(takes: str) -> None:
    """All events but those of its own type would be dead letters."""

    def updated(data: ContactUpdated) -> None: ...

    with pytest.raises(ConfigError, match="registered for other events"):
        mesh.Handlers().on(takes)(updated)


def test_what_nobody_declared_is_not_registered() -> None:
    """A class without a type, a pattern outside the grammar, and nothing."""
    with pytest.raises(ConfigError, match="data of no event type"):
        mesh.Handlers().on(dict)
    with pytest.raises(BadPattern):
        mesh.Handlers().on("crm.>.contact")
    with pytest.raises(ConfigError, match="for nothing"):
        mesh.Handlers().on()


async def test_an_event_without_a_handler_is_a_dead_letter() -> None:
    """Nothing vanishes because a handler was forgotten; it is counted."""
    before = UNHANDLED.total()
    with pytest.raises(mesh.Reject, match="no-handler"):
        await mesh.Handlers()(event("crm.contact.updated.v1"))
    assert UNHANDLED.total() == before + 1


async def test_whoever_says_so_acks_what_has_no_handler() -> None:
    """And it is counted."""
    before = UNHANDLED.total()
    await mesh.Handlers(otherwise="ack")(event("crm.contact.updated.v1"))
    assert UNHANDLED.total() == before + 1


async def test_a_plain_function_runs_in_a_thread() -> None:
    """It may block; what it raises is what its event is settled by."""
    threads: list[int] = []

    def plain(data: Any) -> None:
        threads.append(threading.get_ident())
        raise mesh.RetryLater(1.0)

    with pytest.raises(mesh.RetryLater):
        await caller(plain)(event("crm.contact.updated.v1"))
    assert threads
    assert threads[0] != threading.get_ident()


async def test_more_plain_functions_run_at_once_than_anyio_has_threads() -> None:
    """None waits for another: as many are called at once as `concurrency` says, and all of them meet."""
    met = threading.Barrier(50, timeout=20)

    def plain(_: Admitted) -> None:
        met.wait()

    async def call() -> None:
        await caller(plain)(event("crm.contact.updated.v1"))

    async with anyio.create_task_group() as group:
        for _ in range(met.parties):
            group.start_soon(call)
    assert not met.broken


async def test_what_returns_an_awaitable_is_awaited() -> None:
    """A lambda around an async function is a handler, too."""
    got: list[str] = []

    async def handle(event: Admitted) -> None:
        got.append(event.id)

    await caller(lambda event: handle(event))(event("crm.contact.updated.v1"))  # noqa: PLW0108 - that is the case
    assert got == ["c-1"]


async def test_a_registered_inbox_handler_has_its_effect_once(tmp_path: Path) -> None:
    """`once` hands in connection, data and event; the same event a second time has no effect."""
    handlers = mesh.Handlers()
    with mesh.SqliteInbox("contacts", tmp_path / "db") as inbox:

        @handlers.on(ContactUpdated)
        @inbox.once
        def note(db: sqlite3.Connection, data: ContactUpdated, event: mesh.Admitted) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS notes (id, country)")
            db.execute("INSERT INTO notes VALUES (?, ?)", (event.id, data.country))

        for _ in range(2):
            await handlers(event("crm.contact.updated.v1", {"country": "DE"}))
        with pytest.raises(mesh.Reject, match="data-mismatch"):
            await handlers(event("crm.contact.updated.v1", {}))
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        assert db.execute("SELECT * FROM notes").fetchall() == [("c-1", "DE")]
