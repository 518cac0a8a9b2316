"""Typed events: what a class declares, what does not fit it, and what a handler may ask for."""

from __future__ import annotations

import dataclasses
import enum
import functools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import mesh
from mesh.errors import BadType, ConfigError, DataMismatch
from mesh.inbound import Admitted
from mesh.typed import declared, described, wanted

if TYPE_CHECKING:
    import asyncpg

SECRET = "anna.schmidt@example.com"


class Plan(enum.Enum):
    """A closed set, whose error would quote what came."""

    FREE = "free"


class Contact(msgspec.Struct):
    """A part of the data."""

    id: str
    email: str | None = None
    plan: Plan = Plan.FREE


@mesh.event_type("crm.contact.updated.v1")
class ContactUpdated(msgspec.Struct):
    """A Struct as data."""

    contact: Contact
    at: datetime | None = None


@mesh.event_type("crm.deal.won")
@dataclasses.dataclass
class DealWon:
    """A dataclass as data, of a type without a version."""

    deal: str
    amount: float | None = None


def event(data: object, type_: str = "crm.contact.updated.v1") -> Admitted:
    """An event in a handler's hands."""
    fields = {"id": "c-1", "source": "/crm", "type": type_, "data": data}
    return Admitted(fields, "service", "spiffe://x/y", "EV_local_crm", 1, 0, 1, None)


def test_a_declared_instance_becomes_type_and_json() -> None:
    """What `publish` sends of a Struct and of a dataclass."""
    at = datetime.fromisoformat("2026-11-22T09:30:00Z")
    assert described(ContactUpdated(Contact("4711"), at)) == (
        "crm.contact.updated.v1",
        {"contact": {"id": "4711", "email": None, "plan": "free"}, "at": "2026-11-22T09:30:00Z"},
    )
    assert described(DealWon("d-1")) == ("crm.deal.won", {"deal": "d-1", "amount": None})


def test_data_becomes_its_class() -> None:
    """Members that the class does not name are ignored; a dropped field has its default; a version is a version."""
    data = {"contact": {"id": "4711", "phone": "1"}, "at": "2026-11-22T09:30:00Z", "more": 1}
    at = datetime.fromisoformat("2026-11-22T09:30:00Z")
    assert mesh.data_of(event(data), ContactUpdated) == ContactUpdated(Contact("4711"), at)
    assert mesh.data_of(event({"deal": "d", "amount": 2}, "crm.deal.won"), DealWon) == DealWon("d", 2.0)
    assert mesh.data_of(event([1, 2]), tuple[int, ...]) == (1, 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"contact": {"id": 7}}, "data-mismatch at $.contact.id: Expected `str`, got `int`"),
        ({"contact": {}}, "data-mismatch at $.contact: Object missing required field `id`"),
        (
            {"contact": {"id": "1", "plan": SECRET}},
            "data-mismatch at $.contact.plan: not a value that the type allows",
        ),
        ({"contact": {"id": "1"}, "at": SECRET}, "data-mismatch at $.at: not a value that the type allows"),
        (None, "data-mismatch at $: Expected `object`, got `null`"),
    ],
)
def test_what_does_not_fit_is_rejected_without_a_value(data: object, reason: str) -> None:
    """The dead letter says where and what was expected, and quotes nothing of the event."""
    with pytest.raises(mesh.Reject) as refused:
        mesh.data_of(event(data), ContactUpdated)
    assert refused.value.reason == reason
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_class_takes_events_of_its_own_type_alone() -> None:
    """Data of another type may fit by chance; it is not taken for what it is not."""
    with pytest.raises(mesh.Reject, match=r"crm\.contact\.created\.v1 is not crm\.contact\.updated\.v1"):
        mesh.data_of(event({"contact": {"id": "1"}}, "crm.contact.created.v1"), ContactUpdated)


def test_publishing_what_its_own_class_refuses_says_where() -> None:
    """Nobody who reads by the class could take it, so it does not leave."""
    with pytest.raises(DataMismatch) as refused:
        described(ContactUpdated(Contact(4711)))  # type: ignore[arg-type]
    assert refused.value.details["path"] == "$.contact.id"
    assert "4711" not in str(refused.value.as_dict())


def test_an_undeclared_instance_is_no_event() -> None:
    """Neither any class, nor one that inherits from a declared one."""

    class Special(ContactUpdated):
        pass

    assert declared(Special) is None
    for thing in (Contact("1"), Special(Contact("1")), {"a": 1}):
        with pytest.raises(TypeError, match="data of no event type"):
            described(thing)


def test_a_wrong_declaration_is_refused() -> None:
    """A type outside the grammar; a class of which nobody knows the fields, such as a dataclass to be."""
    with pytest.raises(BadType):
        mesh.event_type("CRM Contact")
    with pytest.raises(ConfigError, match="Plain cannot be the data"):

        @mesh.event_type("crm.contact.updated.v1")
        class Plain:
            pass


# --- what a handler asks for -----------------------------------------------------------------------------------------

GOOD = event({"contact": {"id": "4711"}})
TYPED = ContactUpdated(Contact("4711"))


def by_event(anything: Any) -> None:
    """One parameter of any other name."""


def by_event_class(a: mesh.Admitted) -> None:
    """One that says so."""


def by_data(data: Any) -> None:
    """The data as it is."""


def by_class(contact: ContactUpdated) -> None:
    """The data as a class."""


def by_both(event: Admitted, contact: ContactUpdated) -> None:
    """Both."""


def by_both_turned(data: dict[str, Any], event) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Both, in the other order."""


def by_default(contact: ContactUpdated, retries: int = 3) -> None:
    """A default stays what it is."""


def by_star(*args: Any) -> None:
    """A wrapper of somebody's."""


class Callee:
    """An object, and a bound method."""

    def __call__(self, contact: ContactUpdated) -> None:
        """Be a handler."""

    def method(self, contact: ContactUpdated) -> None:
        """Be a handler."""


def bound(setting: str, contact: ContactUpdated, *, flag: bool) -> None:
    """For a partial."""


@pytest.mark.parametrize(
    ("handler", "arguments"),
    [
        (by_event, (GOOD,)),
        (by_event_class, (GOOD,)),
        (by_data, (GOOD.data,)),
        (by_class, (TYPED,)),
        (by_both, (GOOD, TYPED)),
        (by_both_turned, (GOOD.data, GOOD)),
        (by_default, (TYPED,)),
        (by_star, (GOOD,)),
        (Callee(), (TYPED,)),
        (Callee().method, (TYPED,)),
        (functools.partial(bound, "x", flag=True), (TYPED,)),
        (lambda e: e, (GOOD,)),
    ],
)
def test_a_handler_gets_what_its_parameters_ask_for(handler: Callable[..., object], arguments: tuple[object]) -> None:
    """By annotation, else by name."""
    assert wanted(handler).take(GOOD) == arguments


def test_parameters_of_somebody_else_are_skipped() -> None:
    """An inbox hands in its connection first; nobody looks its annotation up."""

    def handler(db: asyncpg.Connection, contact: ContactUpdated, event: mesh.Admitted) -> None: ...

    assert wanted(handler, skip=1).take(GOOD) == (TYPED, GOOD)


def no_parameters() -> None:
    """Nothing."""


def with_keyword(event: Admitted, *, db: str) -> None:
    """A keyword that nobody gives."""


def two_events(a: Any, b: Any) -> None:
    """Which is which?"""


def with_connection(event: Admitted, db: Callee) -> None:
    """Something that no data becomes."""


def with_unknown(contact: NotAnywhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """A name that is not there at run time."""


@pytest.mark.parametrize("handler", [no_parameters, with_keyword, two_events, with_connection, with_unknown])
def test_a_handler_nobody_can_call_is_refused_before_the_first_event(handler: Callable[..., object]) -> None:
    """With its name, and what would do."""
    with pytest.raises(ConfigError, match=handler.__name__):
        wanted(handler)


def test_an_outbox_takes_an_instance(tmp_path: Path) -> None:
    """As `publish` does: its type and its data wait in the transaction."""
    outbox = mesh.SqliteOutbox(tmp_path / "db")
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        outbox.add(db, TYPED, source="/crm")
        with pytest.raises(DataMismatch):
            outbox.add(db, DealWon(5), source="/crm")  # type: ignore[arg-type]
        (text,) = (row[0] for row in db.execute("SELECT event FROM mesh_outbox"))
    fields = msgspec.json.decode(text)
    assert (fields["type"], fields["data"]["contact"]["id"]) == ("crm.contact.updated.v1", "4711")
