"""The library without async: the same promises, from threads, and through Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest

import mesh
from mesh.errors import Closed, ConfigError
from mesh.testing import LocalMesh

pytest_plugins = ["mesh.testing.plugin"]
pytestmark = pytest.mark.timeout(300)  # the first test starts a mesh on a busy machine

TYPE = "crm.contact.updated.v1"
SOURCE = "/salesforce/eu"
CONTACT = {"contact": {"id": "4711", "name": "Anna Schmidt"}, "country": "DE"}
IDLE_S = 6.0  # ends a loop: far more than an event takes, and a first connection, on a busy machine too
DEADLINE_S = 60


@mesh.event_type(TYPE)
class ContactUpdated(msgspec.Struct):
    """The data of one type."""

    contact: dict[str, str]
    country: str


@pytest.fixture
def m(local_mesh: LocalMesh) -> Iterator[mesh.SyncMesh]:
    """The team support, publishing through the CRM's agent; the mesh is found by `MESH_CONTEXT`."""
    local_mesh.call(local_mesh.start_agent, "crm-adapter")
    with mesh.connect_sync(team="support", agent="crm-adapter") as opened:
        yield opened


def publish(m: mesh.SyncMesh, count: int = 1) -> list[str]:
    """Publish contacts; returns their ids."""
    return [m.publish(TYPE, CONTACT, source=SOURCE).id for _ in range(count)]


def settled(local_mesh: LocalMesh) -> None:
    """Fail unless nothing of `contacts` is left to deliver."""
    local_mesh.call(local_mesh.nothing, "support", "contacts")


def test_a_loop_gets_every_event_and_acks_it(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """It ends by itself once nothing came for a while."""
    ids = publish(m, 3)
    ids.append(m.publish(ContactUpdated(CONTACT["contact"], "DE"), source=SOURCE).id)  # type: ignore[arg-type]
    got = []
    for delivery in m.subscription("contacts", idle_s=IDLE_S):
        with delivery as event:
            got.append(event.id)
    assert sorted(got) == sorted(ids)
    assert m.opened == []
    settled(local_mesh)


def test_an_exception_settles_its_event_and_the_loop_goes_on(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """`Reject` is a dead letter, and so it is for data that does not fit; others are handled."""
    ids = publish(m, 3)
    got = []
    for delivery in m.subscription("contacts"):
        with delivery as event:
            got.append(event.id)
            if len(got) == 1:
                raise mesh.Reject("not this one")
            if len(got) == 2:
                mesh.data_of(event, int)
        if len(got) == 3:
            break
    assert got == ids
    letters = local_mesh.call(local_mesh.dead_letters, "support", "contacts", count=2)
    assert [letter.reason for letter in letters] == ["not this one", "data-mismatch at $: Expected `int`, got `object`"]
    settled(local_mesh)


def test_each_verdict_is_a_call(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """Ack, retry and reject, without a `with` block."""
    first, second = publish(m, 2)
    with m.subscription("contacts") as contacts:
        one, two = (contacts.next(DEADLINE_S) for _ in range(2))
        assert one is not None
        assert two is not None
        assert (one.event.id, two.event.id) == (first, second)
        one.retry()
        two.reject("no")
        again = contacts.next(DEADLINE_S)
        assert again is not None
        assert (again.event.id, again.event.attempt) == (first, 2)
        again.ack()
        assert contacts.next(0.1) is None
    assert len(local_mesh.call(local_mesh.dead_letters, "support", "contacts", count=1)) == 1
    settled(local_mesh)


def test_what_is_published_while_handling_names_its_cause(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """Within the block, and not after it."""
    (cause,) = publish(m)
    for delivery in m.subscription("contacts"):
        with delivery:
            m.publish("crm.contact.merged.v1", CONTACT, source=SOURCE)
        m.publish("crm.contact.created.v1", CONTACT, source=SOURCE)
        break
    events = local_mesh.call(local_mesh.expect, "support", "contacts", count=2)
    causes = {event.type: event.fields.get("causationid") for event in events}
    assert causes == {"crm.contact.merged.v1": cause, "crm.contact.created.v1": None}


def test_threads_share_a_mesh_and_a_subscription(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """Each event is handled by one of them, once."""
    got: list[str] = []
    ids: list[str] = []
    together = threading.Barrier(4)
    until = time.monotonic() + DEADLINE_S

    def work() -> None:
        together.wait()
        ids.extend(publish(m, 5))
        while len(got) < 20 and time.monotonic() < until:
            if (delivery := contacts.next(0.1)) is not None:
                with delivery as event:
                    got.append(event.id)

    with m.subscription("contacts") as contacts:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ids) == 20
    assert sorted(got) == sorted(ids)
    settled(local_mesh)  # nor does one of them come again


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell started in the background ignores SIGINT, and so does what that starts; here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_block_is_no_verdict(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """The event in hand is delivered again."""
    (id_,) = publish(m)

    def interrupted() -> None:
        for delivery in m.subscription("contacts"):
            with delivery:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (event,) = local_mesh.call(local_mesh.expect, "support", "contacts")
    assert event.id == id_
    assert local_mesh.call(local_mesh.dead_letters, "support", "contacts") == []


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_waiting_loses_no_event(local_mesh: LocalMesh, m: mesh.SyncMesh) -> None:
    """What waited is over: it takes no event that nobody would be handed."""

    def waits(timer: threading.Timer) -> None:
        timer.start()
        contacts.next()

    with m.subscription("contacts") as contacts:
        for _ in range(3):
            timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
            with pytest.raises(KeyboardInterrupt):
                waits(timer)
            timer.join()
        ids = publish(m, 3)
        got = []
        for _ in ids:
            delivery = contacts.next(DEADLINE_S)
            assert delivery is not None
            with delivery as event:
                got.append(event.id)
    assert got == ids
    settled(local_mesh)


RUNS = """
import sys, threading
import mesh

handlers = mesh.Handlers()

@handlers.on("crm.contact.>")
def handle(data: dict) -> None:
    assert threading.current_thread() is not threading.main_thread()
    sys.stdout.write(data["country"] + "\\n")  # one write: two threads do it at once
    sys.stdout.flush()

with mesh.connect_sync(team="support") as m:
    try:
        m.subscription("contacts").run(handlers)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
def test_run_handles_until_ctrl_c_and_the_process_ends(
    local_mesh: LocalMesh, m: mesh.SyncMesh, *, stopped: bool
) -> None:
    """Plain handlers run in threads; after SIGINT everything is closed and no thread holds the process.

    To a process that was stopped the system may give the signal in a thread that nobody waits in (one time in three).
    """
    publish(m, 2)
    process = subprocess.Popen([sys.executable, "-c", RUNS], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["DE\n"] * 2
            settled(local_mesh)  # what is handled is acked a moment later
            for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGCONT) if stopped else (signal.SIGINT,):
                process.send_signal(number)
            assert process.stdout.read() == "interrupted\n"
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()  # where it did not end
    settled(local_mesh)


def test_a_mesh_that_is_left_hands_back_what_was_in_hand(local_mesh: LocalMesh) -> None:
    """However it is left; afterwards its parts say that they are closed."""
    local_mesh.call(local_mesh.publish, TYPE, CONTACT, source=SOURCE)
    m = mesh.connect_sync(team="support")
    with suppress(LookupError), m:
        contacts = m.subscription("contacts")
        assert contacts.next(DEADLINE_S) is not None
        raise LookupError
    assert len(local_mesh.call(local_mesh.expect, "support", "contacts")) == 1
    for use in (lambda: contacts.next(0.1), lambda: m.publish(TYPE, source=SOURCE)):
        with pytest.raises(Closed, match="the mesh is not connected"):
            use()


def test_errors_are_those_of_the_async_library(m: mesh.SyncMesh) -> None:
    """Class, code and problem."""
    with pytest.raises(mesh.PublishFailed) as refused:
        m.publish("hr.salary.raised.v1", {}, source="/hr/x")
    assert refused.value.problem["code"] == "denied"
    with pytest.raises(ConfigError, match="no active subscription"):
        m.subscription("invoices")


def test_threads_end_with_the_mesh(local_mesh: LocalMesh) -> None:
    """One loop, one thread, gone in the end."""
    before = threading.active_count()
    with mesh.connect_sync(team="support") as m, m.subscription("contacts"):
        assert threading.active_count() > before
    until = time.monotonic() + DEADLINE_S
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
