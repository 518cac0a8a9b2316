"""What a source published, and what a real server holds: nothing is taken away, moved or brought in unseen."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.core import Agent
from agent.lifecycle import Sidecar
from mesh.anchors import open_keyring
from mesh.control import completeness
from mesh.control.completeness import Stores, check_source, moment_of
from mesh.control.reader import Events, reading
from mesh.errors import NotFound
from mesh.findings import Finding, Range, Report
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api, stream_info
from mesh.keys import Certificate
from mesh.signing import Received, Verified, Verifier
from tests.contract.agent_mesh import PATIENT, Streams, event, now_ms, sidecar, until, write_directory

pytestmark = pytest.mark.anyio

STREAM = "EV_local_crm"
LATER_MS = 3_600_000  # an hour on: whatever may still come has come


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle; with credentials that may do everything, as the control plane's."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's directory."""
    return write_directory(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
async def running(streams: Streams, base: Path) -> AsyncIterator[Sidecar]:
    """An agent that runs."""
    async with sidecar(base, streams.server.url, **PATIENT) as sidecar_:
        await until(lambda: not sidecar_.agent.not_ready())
        yield sidecar_


@pytest.fixture
def apart(base: Path, tmp_path: Path) -> Path:
    """The directory of another replica: its own spool, else alike."""
    return Path(shutil.copytree(base, tmp_path / "agent", ignore=shutil.ignore_patterns("spool*")))


@pytest.fixture
def source() -> str:
    """A source of its own for each test."""
    return f"/crm/{secrets.token_hex(4)}"


def stores(streams: Streams, base: Path) -> Stores:
    """What an operator checks with; the certificate is the one that the agent was given."""
    keyring = open_keyring(base / "trust", tenant="acme")
    certificates = x509.load_pem_x509_certificates((base / "event.crt").read_bytes())
    keyring.add(b"".join(each.public_bytes(Encoding.DER) for each in certificates))
    verifier = Verifier(keyring, lambda *_: True, tenant="acme")

    async def verify(received: Received) -> Verified:
        return verifier.verify(received)

    async def certificate(kid: str) -> Certificate | None:
        return keyring.find(kid)

    return Stores(streams.connection, verify, certificate, keyring, "local")


async def check(
    streams: Streams, base: Path, source: str, asked: Range | None = None, *, view: str = "", later_ms: int = LATER_MS
) -> Report:
    """Check a source as it looks an hour on."""
    return await check_source(stores(streams, base), source, asked or Range(), view=view, now_ms=now_ms() + later_ms)


async def publish(agent: Agent, source: str, count: int, **changes: Any) -> list[int]:
    """Publish events one by one; where the copies in the view `clear` are stored."""
    places = []
    for number in range(count):
        receipt = await agent.publish(event(source=source, id=f"{source}-{number}", **changes))
        places += [copy.seq for copy in receipt.copies if copy.view == "clear"]
        await asyncio.sleep(0.002)  # each in a millisecond of its own
    return places


async def mark(agent: Agent) -> None:
    """Have the agent mark at once what a minute would bring, and see it stored."""
    sequences, policies = agent._sequences, agent._policies
    assert sequences is not None
    assert policies is not None
    sequences._now.marked_s -= 3600
    sequences.mark()
    assert await policies.audit.flush(10)


async def message(streams: Streams, seq: int) -> dict[str, Any]:
    """A stored message, headers and all."""
    found = await api(streams.connection, f"STREAM.MSG.GET.{STREAM}", {"seq": seq})
    return dict(found["message"])


async def delete(streams: Streams, seq: int) -> None:
    """Take one message out of the stream."""
    await api(streams.connection, f"STREAM.MSG.DELETE.{STREAM}", {"seq": seq})


async def store(streams: Streams, subject: str, body: bytes, headers: dict[str, str]) -> None:
    """Put a message into the stream."""
    await streams.connection.request(subject, body, headers=headers, timeout_s=20)


async def store_again(streams: Streams, found: dict[str, Any], body: bytes | None = None) -> None:
    """Put *found* into the stream again, byte for byte, or with another body."""
    lines = b64decode(found["hdrs"]).decode().split("\r\n")[1:]
    headers = dict(line.split(": ", 1) for line in lines if line)
    await store(streams, found["subject"], b64decode(found["data"]) if body is None else body, headers)


async def forget_ids(streams: Streams) -> None:
    """Have the stream forget the message ids of before, as whoever administers it may; then it remembers as ever.

    A server that gets a shorter window may never begin to forget (nats-server 2.15.1, one time in 500): it does at the
    next change, so each look is one.
    """
    config = (await stream_info(streams.connection, STREAM))["config"]
    windows = itertools.count(100_000_000)
    subject, headers = "ev.local.clear.s00.crm.probe.v1", {"Nats-Msg-Id": secrets.token_urlsafe(16)}
    taken = 0

    async def took_twice() -> bool:
        nonlocal taken
        await api(streams.connection, f"STREAM.UPDATE.{STREAM}", {**config, "duplicate_window": next(windows)})
        reply = await streams.connection.request(subject, b"{}", headers=headers, timeout_s=20)
        taken += b'"duplicate"' not in reply.data
        return taken > 1

    await until(took_twice)
    await api(streams.connection, f"STREAM.UPDATE.{STREAM}", config)


def what(report: Report) -> list[tuple[str, str, int, int]]:
    """Each finding's name, view and numbers."""
    return sorted((found.what, found.view, found.first, found.last) for found in report.findings)


def only(report: Report) -> Finding:
    """The one finding."""
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


# --- nothing wrong ---------------------------------------------------------------------------------------------------


async def test_a_source_that_nobody_touched_is_complete(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """Every view of every event is numbered from 1, marked and found; an agent that runs on says nothing of its end."""
    await publish(running.agent, source, 5)
    await running.agent.publish_many([event(source=source) for _ in range(100)])
    await mark(running.agent)
    report = await check(streams, base, source)
    assert report.findings == []
    assert [(c.view, c.stored, c.first, c.last, c.marked, c.ended) for c in report.counted] == [
        ("clear", 105, 1, 105, 105, False),
        ("service", 105, 1, 105, 105, False),
    ]
    assert report.copies == 210
    assert len(report.unproven) == 2
    assert "its marks reach number 105" in report.unproven[0]


async def test_an_agent_that_ends_says_how_far_it_counted(streams: Streams, apart: Path, source: str) -> None:
    """After a drain nothing is left unproven; and what a restarted agent is sent again is void, with its place."""
    async with sidecar(apart, streams.server.url) as first:
        await until(lambda: not first.agent.not_ready())
        await publish(first.agent, source, 4)
        assert await first.agent.drain(10)
    async with sidecar(apart, streams.server.url) as second:
        await until(lambda: not second.agent.not_ready())
        await publish(second.agent, source, 6)  # the first four again
        assert await second.agent.drain(10)
    report = await check(streams, apart, source, view="clear", later_ms=0)
    assert report.findings == []
    assert report.unproven == []
    assert [(c.stored, c.void, c.last, c.ended) for c in report.counted] == [(4, 0, 4, True), (2, 4, 6, True)]


async def test_an_event_sent_twice_takes_a_number_that_is_void(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """The stream keeps one copy of it, and the next event goes on counting."""
    await publish(running.agent, source, 2)
    await publish(running.agent, source, 3)
    await mark(running.agent)
    report = await check(streams, base, source, view="clear")
    assert report.findings == []
    assert [(c.stored, c.void, c.last) for c in report.counted] == [(3, 2, 5)]


async def test_an_unknown_source_is_not_found(running: Sidecar, streams: Streams, base: Path) -> None:
    """A source that nobody publishes is no source that is complete."""
    with pytest.raises(NotFound):
        await check(streams, base, "/crm/nobody")


async def test_a_source_that_goes_on_while_it_is_checked(
    running: Sidecar, streams: Streams, base: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark that is stored after the copies were read names what was stored after them: nothing lacks."""
    await publish(running.agent, source, 3)
    await mark(running.agent)
    read_marks = completeness._read_marks

    async def read_later(*about: Any, **more: Any) -> None:
        await running.agent.publish_many([event(source=source) for _ in range(2)])
        await mark(running.agent)
        await read_marks(*about, **more)

    monkeypatch.setattr(completeness, "_read_marks", read_later)
    report = await check(streams, base, source, later_ms=0)
    assert report.findings == []
    assert [(c.last, c.marked) for c in report.counted] == [(3, 3), (3, 3)]


async def test_a_stream_that_goes_on_does_not_stand_in_for_another(
    running: Sidecar, streams: Streams, base: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another stream stores while all are read comes first here: this one is read to its end all the same."""
    await publish(running.agent, source, 3)
    await mark(running.agent)

    @asynccontextmanager
    async def flooded(connection: Connection, filters: dict[str, list[str]], **how: Any) -> AsyncIterator[Any]:
        async with reading(connection, filters, **how) as (stored, events):
            for _ in range(stored + 1):
                await store(streams, "ev.local.clear.s00.github.x.v1", b"{}", {})
            yield stored, OthersFirst(events, stored + 1)

    await store(streams, "ev.local.clear.s00.github.x.v1", b"{}", {})
    monkeypatch.setattr(completeness, "reading", flooded)
    report = await check(streams, base, source)
    assert report.findings == []
    assert [c.stored for c in report.counted] == [3, 3]


class OthersFirst:
    """Events as a reader takes them: so many of other streams first."""

    def __init__(self, events: Events, count: int) -> None:
        self._events = events
        self._count = count
        self._ours: list[Received] = []

    async def receive(self) -> Received:
        """The next."""
        while self._count:
            received = await self._events.receive()
            if received.stream != STREAM:
                self._count -= 1
                return received
            self._ours.append(received)
        return self._ours.pop(0) if self._ours else await self._events.receive()


# --- what the holder of the streams does -----------------------------------------------------------------------------


async def test_a_message_taken_away_is_missing(running: Sidecar, streams: Streams, base: Path, source: str) -> None:
    """Deleted in the middle, at the beginning or at the end: the number lacks, in that view and no other."""
    places = await publish(running.agent, source, 9)
    await mark(running.agent)
    for index in (0, 4, 8):
        await delete(streams, places[index])
    report = await check(streams, base, source)
    assert what(report) == [("missing", "clear", n, n) for n in (1, 5, 9)]
    assert all("it was dropped" in found.because for found in report.findings)


async def test_all_of_a_source_taken_away_is_missing(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """Where nothing is left, the marks say what there was."""
    places = await publish(running.agent, source, 3, type="crm.deal.won.v1")
    await mark(running.agent)
    for place in places:
        await delete(streams, place)
    assert what(await check(streams, base, source)) == [("missing", "clear", 1, 3)]


async def test_what_no_mark_names_yet_may_still_come(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """A gap of a moment ago may be a number that was given up; with time, it is missing."""
    places = await publish(running.agent, source, 3)
    await delete(streams, places[1])
    assert what(await check(streams, base, source, later_ms=0)) == [("pending", "clear", 2, 2)]
    assert what(await check(streams, base, source)) == [("missing", "clear", 2, 2)]


async def test_messages_that_changed_places_are_reordered(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """Two messages stored anew in the other order: one stands behind a higher number, both verify."""
    places = await publish(running.agent, source, 4)
    third, fourth = await message(streams, places[2]), await message(streams, places[3])
    await mark(running.agent)
    for place in places[2:]:
        await delete(streams, place)
    await forget_ids(streams)
    await store_again(streams, fourth)
    await store_again(streams, third)
    finding = only(await check(streams, base, source))
    assert (finding.what, finding.view, finding.first) == ("reordered", "clear", 3)
    assert finding.stream == STREAM


async def test_a_message_stored_once_more_is_told(running: Sidecar, streams: Streams, base: Path, source: str) -> None:
    """The same bytes a second time, where the stream was made to forget: their agent never does that."""
    places = await publish(running.agent, source, 2)
    await mark(running.agent)
    await forget_ids(streams)
    await store_again(streams, await message(streams, places[0]))
    finding = only(await check(streams, base, source))
    assert (finding.what, finding.first) == ("stored-again", 1)


async def test_a_message_of_ones_own_does_not_verify(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """A changed copy is brought in under the next number, without a signature; another spells its source oddly."""
    places = await publish(running.agent, source, 2)
    await mark(running.agent)
    found = await message(streams, places[0])
    body = b64decode(found["data"]).replace(b"00000000001", b"00000000003")
    await store(streams, found["subject"], body, {"Nats-Msg-Id": secrets.token_urlsafe(16)})
    odd = body.replace(source.encode(), source.replace("/", "\\/").encode())
    await store(streams, found["subject"], odd, {})
    report = await check(streams, base, source)
    assert what(report) == [("not-verified", "clear", 3, 3)] * 2
    assert "signature-missing" in report.findings[0].because


async def test_a_duplicate_that_is_none_is_misplaced(
    running: Sidecar, streams: Streams, base: Path, source: str
) -> None:
    """A broker that calls an event a duplicate has to show it where it says: here its message was taken away after."""
    places = await publish(running.agent, source, 2)
    await publish(running.agent, source, 1)  # again
    await mark(running.agent)
    await delete(streams, places[0])
    report = await check(streams, base, source, view="clear")
    assert what(report) == [("misplaced", "clear", 3, 3), ("missing", "clear", 1, 1)]


async def test_marks_that_are_withheld_or_changed_are_told(streams: Streams, apart: Path, source: str) -> None:
    """An agent's marks are numbered and signed: one is not stored as it was written, and both things are said."""
    async with sidecar(apart, streams.server.url) as running:
        await until(lambda: not running.agent.not_ready())
        sequences = running.agent._sequences
        assert sequences is not None
        record = sequences._record

        def forge(kind: str, **facts: Any) -> None:
            record(kind, **facts | {"rows": [[*row[:3], 99] for row in facts["rows"]]})

        for write in (record, forge, record):
            sequences._record = write
            await running.agent.publish(event(source=source))
            await mark(running.agent)
    report = await check(streams, apart, source)
    assert [name for name, *_ in what(report)] == ["mark-missing", "mark-refused"]


# --- between two points ----------------------------------------------------------------------------------------------


async def test_only_what_is_asked_about_is_judged(running: Sidecar, streams: Streams, base: Path, source: str) -> None:
    """A gap outside the range is none of it; and a range begins where a message was stored."""
    places = await publish(running.agent, source, 9)
    await mark(running.agent)
    await delete(streams, places[1])
    await delete(streams, places[7])
    middle = [await moment_of(streams.connection, "local", STREAM, places[index]) for index in (3, 5)]
    assert what(await check(streams, base, source, Range(*middle), view="clear")) == []
    assert what(await check(streams, base, source, Range(middle[0]), view="clear")) == [("missing", "clear", 8, 8)]
    assert what(await check(streams, base, source, Range(0, middle[1]), view="clear")) == [("missing", "clear", 2, 2)]
