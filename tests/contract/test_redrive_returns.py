"""A redriven letter that no handler had is a letter again; one subscription's trouble is not another's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mesh.control import redrive, redrive_lanes
from mesh.errors import RequestFailed
from mesh.inbound import Admitted
from mesh.jetstream import manage
from mesh.jetstream.durables import REDRIVE_STREAM
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import GRACE, Source
from tests.contract.letters import LETTER_SUBJECT, Office, messages, publish_with, pulled, stored_letters
from tests.contract.test_redrive import SIDE, bury, bury_last, gone, opened

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(redrive, "LOOK_S", 0.05)


# --- no handler had it -----------------------------------------------------------------------------------------------


async def its_time_passes(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its way, as the reader sees it."""
    monkeypatch.setattr("mesh.feed.expired", lambda *_: True)


async def the_right_is_withdrawn(source: Source, _: pytest.MonkeyPatch) -> None:
    """The team may read other types by the time it comes."""
    other = GRACE.replace(
        'subscribe: ["crm.contact.>"], view: service', 'subscribe: ["crm.contact.gone"], view: service'
    )
    await source.streams.hand_out(policies=other)


async def the_key_is_revoked(source: Source, _: pytest.MonkeyPatch) -> None:
    """Since before the event was stored."""
    await source.state({source.signer.kid: 1})


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (its_time_passes, "event-expired"),
        (the_right_is_withdrawn, "no-allow-matched"),
        (the_key_is_revoked, "key-revoked"),
    ],
)
async def test_what_no_handler_had_is_a_letter_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Source, pytest.MonkeyPatch], Awaitable[None]],
    reason: str,
) -> None:
    """It may not be handed out any more as it comes: another letter says why, with the event, and what was known."""
    async with opened(tmp_path) as (source, office):
        soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        await publish_with(source, "one", expirytime=soon)
        (first,) = await bury_last(source, 1)
        event = (await stored_letters(source))[first].event
        assert (await office.ask("redrive", run="r1"))["sent"] == [first]
        await meanwhile(source, monkeypatch)
        got: list[str] = []

        async def handle(one: Admitted) -> None:
            got.append(one.redrive)

        async with source.reader() as reader, reader.subscription() as reading, anyio.create_task_group() as group:
            group.start_soon(reading.run, handle)
            await until(lambda: gone(source, first))
            group.cancel_scope.cancel()
        (letter,) = (one for one in (await stored_letters(source)).values() if one.redrive)
        assert "r1" not in got
        assert (letter.reason, letter.redrive, letter.redriven, letter.former) == (reason, "r1", 1, first)
        assert (letter.first_error, bytes(letter.event)) == ("LookupError: none", bytes(event))


async def test_what_a_plain_client_ends_unverified_keeps_its_event(tmp_path: Path) -> None:
    """The control plane buries it anew: what the letter before held is in it, to be verified when it is sent again."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        await office.ask("redrive", run="r1")
        await source.state({source.signer.kid: 1})
        reply = await pulled(source, stream=REDRIVE_STREAM, durable=SIDE)
        assert reply is not None
        await source.streams.connection.request(reply, b"+TERM none")
        await until(lambda: gone(source, first))
        await until(lambda: messages(source, "DLQ"))
        ((number, letter),) = (await stored_letters(source)).items()
        assert (letter.reason, letter.has_event, letter.former) == ("key-revoked", True, first)
        refused = (await office.ask("redrive", run="r2"))["refused"]
        assert [(one["letter"], one["code"]) for one in refused] == [(number, "key-revoked")]


# --- one and the other -----------------------------------------------------------------------------------------------


async def test_each_letter_names_its_own_run(tmp_path: Path) -> None:
    """Not the one that sent something to its subscription last; a process that begins reads the same."""
    async with opened(tmp_path) as (source, office):
        first, second = await bury(source, "one", "two")
        await office.ask("redrive", chosen={"letters": [first]}, run="r1")
        await office.ask("redrive", chosen={"letters": [second]}, run="r2")
        for each in (office, Office.of(source)):
            rows = (await each.ask("list"))["letters"]
            assert {row["letter"]: row["run"] for row in rows} == {first: "r1", second: "r2"}
        (refused,) = (await office.ask("redrive", chosen={"letters": [first]}, run="r3"))["refused"]
        assert refused["because"].endswith("in run r1")


async def test_a_subscription_that_cannot_be_looked_at_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter of another is settled meanwhile; its own, once it can be looked at."""
    real = manage.consumer_info
    broken = True

    async def consumer_info(connection: Any, stream: str, name: str) -> dict[str, Any]:
        if broken and name != SIDE:
            raise RequestFailed("JetStream refused", err_code=10008)
        return await real(connection, stream, name)

    async with opened(tmp_path) as (source, office):
        (number,) = await bury(source, "one")
        await office.ask("redrive", run="r1")
        monkeypatch.setattr(redrive_lanes, "consumer_info", consumer_info)
        lanes = office.redrives._lanes
        other = redrive_lanes.Lane()
        lanes.by_owner = {("support", "another"): other, **lanes.by_owner}
        reply = await pulled(source, stream=REDRIVE_STREAM, durable=SIDE)
        assert reply is not None
        await source.streams.connection.request(reply, b"+ACK")
        await until(lambda: gone(source, number))
        assert ("support", "another") in lanes.by_owner
        broken = False
        await until(lambda: ("support", "another") not in lanes.by_owner)


async def test_what_waits_for_a_subscription_that_is_gone_is_free_once_it_is_let_go(tmp_path: Path) -> None:
    """No durable, no subscription, and `REDRIVE` has let go of it: it is a letter like any other again."""
    async with opened(tmp_path) as (source, office):
        (number,) = await bury(source, "one")
        await office.ask("redrive", run="r1")
        assert GRACE.count("name: contacts") == 1
        await source.streams.hand_out(policies=GRACE.replace("name: contacts", "name: others"))
        await office.judge.refresh()
        await manage.api(source.streams.connection, f"CONSUMER.DELETE.{REDRIVE_STREAM}.{SIDE}")
        assert (await office.ask("show", chosen={"letters": [number]}))["run"] == "r1"
        await manage.api(source.streams.connection, "STREAM.PURGE.REDRIVE")

        async def free() -> bool:
            return not (await office.ask("list"))["letters"][0]["run"]

        await until(free)


# --- what a writer may say -------------------------------------------------------------------------------------------


async def test_a_writer_cannot_blind_a_list(tmp_path: Path) -> None:
    """Texts without bound are cut, numbers without bound are none of a letter's, and a page has room for its rows."""
    async with opened(tmp_path) as (source, office):
        await bury(source, "one")
        (record,) = (await stored_letters(source)).values()
        connection, long = source.streams.connection, "x" * 500_000
        event = msgspec.Raw(msgspec.json.encode({"id": long, "source": {"a": long[:100_000]}}))
        for change in ({"reason": long}, {"error_class": long}, {"stream": long}, {"event": event}):
            await connection.request(LETTER_SUBJECT, msgspec.structs.replace(record, **change).encode())
        for name in (b'"attempts":', b'"sequence":', b'"stream_ms":', b'"at_ms":'):
            body = record.encode()
            start = body.index(name) + len(name)
            await connection.request(LETTER_SUBJECT, body[:start] + b"9" * 30 + body[start + 1 :])
        answer = await office.ask("list")
        assert len(msgspec.json.encode(answer)) < 20_000
        assert [row["letter"] for row in answer["letters"]] == list(range(1, 10))
        assert [row["reason"] for row in answer["letters"][5:]] == ["unreadable"] * 4
        for number in range(1, 10):
            shown = await office.ask("show", chosen={"letters": [number]})
            assert len(msgspec.json.encode(shown)) < connection.max_payload


async def test_a_page_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not fit come with the next page."""
    monkeypatch.setattr("mesh.control.deadletters_service.MAX_BYTES", 1000)
    async with opened(tmp_path) as (source, office):
        numbers = await bury(source, "one", "two", "three")
        page, told = await office.ask("list"), 0
        while page["next"]:
            assert len(msgspec.json.encode(page["letters"])) < 1000
            told += len(page["letters"])
            page = await office.ask("list", after=page["next"], last=page["last"])
        assert told + len(page["letters"]) == len(numbers)
        assert len(page["letters"]) < len(numbers)
