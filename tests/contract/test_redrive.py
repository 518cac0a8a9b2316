"""Dead letters looked at, sent back, and thrown away; whoever ends in between, no event is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mesh import deadletters
from mesh.control import redrive, redrive_lanes, stored_messages
from mesh.delivery import DuplicateWindow, Waits
from mesh.errors import BadAttribute, InputError, NotFound, RequestFailed, StreamUnavailable
from mesh.feed import Pulled
from mesh.inbound import Admitted
from mesh.jetstream import manage
from mesh.jetstream.durables import REDRIVE_STREAM
from mesh.jetstream.puller import Puller
from mesh.redriven import Redriven, unwrap
from mesh.retry import RetryPolicy
from mesh.settler import Settler
from mesh.signing import Received
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import GRACE, STREAM, Source
from tests.contract.letters import LETTER_SUBJECT, Office, messages, publish_with, pulled, stored_letters

pytestmark = pytest.mark.anyio

SIDE = "support--contacts--redrive"
REASON = "API is back"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often; what is settled lingers as ever unless a test says otherwise."""
    monkeypatch.setattr(redrive, "LOOK_S", 0.05)


async def bury(source: Source, *ids: str, reason: str = "no-customer") -> list[int]:
    """Publish events and bury them as the library does; returns the letters' numbers."""
    await source.publish(*ids)
    return await bury_last(source, len(ids), reason=reason)


async def bury_last(source: Source, count: int, *, reason: str = "no-customer") -> list[int]:
    """Bury the last *count* events of the stream."""
    connection = source.streams.connection
    last = await source.streams.stored(STREAM)
    for sequence in range(last - count + 1, last + 1):
        found = await stored_messages.message(connection, STREAM, sequence)
        assert found is not None
        history = deadletters.History()
        history.add(1_000, "LookupError", "LookupError: none")
        record = deadletters.record(
            found.received(STREAM, deliveries=2),
            deadletters.Cause(reason, "LookupError", "LookupError: none"),
            history,
            owner=("support", "contacts"),
            dead_ms=2_000,
            verified=True,
        )
        await connection.request(LETTER_SUBJECT, record.encode())
    return list(await stored_letters(source))[-count:]


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Source, Office]]:
    """A tenant and what handles its dead letters, running."""
    async with Source.running(tmp_path) as source:
        office = Office.of(source)
        await office.judge.refresh()
        async with office.open():
            yield source, office


@asynccontextmanager
async def side(source: Source, settle: Callable[[Puller, Redriven], None]) -> AsyncIterator[list[Redriven]]:
    """Pull what is redriven, as a subscription does beside its own durable."""
    got: list[Redriven] = []

    def take(received: Received) -> None:
        got.append(unwrap(received))
        settle(puller, got[-1])

    puller = Puller(source.streams.connection, stream=REDRIVE_STREAM, durable=SIDE, on_event=take)
    async with anyio.create_task_group() as group:
        group.start_soon(puller.run)
        yield got
        await puller.stop()
        group.cancel_scope.cancel()


def settler(source: Source) -> Settler:
    """Of the subscription."""
    return Settler(
        source.streams.connection,
        team="support",
        subscription="contacts",
        durable="support--contacts",
        policy=RetryPolicy(attempts=1),
        window=DuplicateWindow(10),
        waits=Waits(),
    )


async def gone(source: Source, *numbers: int) -> bool:
    """Whether these letters are in `DLQ` no more."""
    return not set(numbers) & set(await stored_letters(source))


async def no_durable(source: Source) -> bool:
    """Whether the durable beside the subscription's own was taken away."""
    try:
        await manage.consumer_info(source.streams.connection, REDRIVE_STREAM, SIDE)
    except RequestFailed:
        return await messages(source, REDRIVE_STREAM) == 0
    return False


# --- sending back ----------------------------------------------------------------------------------------------------


async def test_a_redriven_letter_verifies_as_on_its_first_day_and_goes_once_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with origin, body and signature; the letter stays until the ack; then letter, copy and durable go."""
    monkeypatch.setattr(redrive_lanes, "LINGER_S", 0.0)
    monkeypatch.setattr(redrive_lanes, "MAX_SETTLED", 1)
    async with opened(tmp_path) as (source, office):
        first, second = await bury(source, "one", "two")
        heard: list[dict[str, Any]] = []
        source.streams.connection.listen("ctl.notice", lambda *said: heard.append(msgspec.json.decode(said[3])))
        answer = await office.ask("redrive", chosen={"team": "support"}, run="r1", author="ines", reason=REASON)
        assert (answer["sent"], answer["refused"], answer["next"]) == ([first, second], [], 0)
        held: list[Redriven] = []

        def settle(puller: Puller, received: Redriven) -> None:
            puller.ack(received) if received.letter == first else held.append(received)

        async with side(source, settle) as got:
            await until(lambda: len(got) == 2)
            assert [(one.stream, one.sequence, one.redrive, one.letter) for one in got] == [
                (STREAM, 1, "r1", first),
                (STREAM, 2, "r1", second),
            ]
            assert not await office.judge.refused(got[0], team="support", subscription="contacts", now_ms=0)
            await until(lambda: gone(source, first))
            assert list(await stored_letters(source)) == [second]
            assert (await office.ask("list"))["letters"][0]["run"] == "r1"
            notice = {"kind": "redrive", "team": "support", "subscription": "contacts", "run": "r1", "to": {}}
            await until(lambda: heard.count(notice | {"stream": ["REDRIVE"]}) > 2)  # for as long as something waits
            await source.streams.connection.publish(held[0].reply, b"+ACK")
            await until(lambda: gone(source, second))
        await until(lambda: no_durable(source))
        facts = {"run": "r1", "letters": 2, "refused": 0, "first": first, "last": second, "author": "ines"}
        ((kind, told),) = office.told
        assert kind == "dlq-redriven"
        assert told.items() >= {**facts, "of": ["support/contacts"], "for_team": "support", "reason": REASON}.items()


async def test_an_event_that_fails_again_is_another_letter(tmp_path: Path) -> None:
    """With what was known of it: the attempts of before, how often it was redriven, and as which letter."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        await office.ask("redrive", chosen={"letters": [first]}, run="r1")
        kept: list[tuple[Puller, Redriven]] = []
        async with side(source, lambda puller, received: kept.append((puller, received))):
            await until(lambda: kept)
            puller, received = kept[0]
            verified = await office.judge.verify(received)
            event = Admitted(verified.fields, "service", "", STREAM, 1, 0, 1, None, redrive="r1")
            ending = settler(source)
            judged = Pulled(event, ("/crm", "one"), received, puller)
            assert type(await ending.fail(judged, LookupError("still none"))).__name__ == "DeadLetter"
            await until(lambda: gone(source, first))
        ((number, letter),) = (await stored_letters(source)).items()
        assert number > first
        assert (letter.redriven, letter.former, letter.redrive, letter.attempts) == (1, first, "r1", 1)
        assert [attempt.error for attempt in letter.history] == ["LookupError: none", "LookupError: still none"]
        assert (letter.first_ms, letter.first_error) == (1_000, "LookupError: none")
        assert (letter.sequence, letter.last_error) == (1, "LookupError: still none")
        again = await office.ask("list", chosen={"run": "r1"})
        assert [row["letter"] for row in again["letters"]] == [number]
        assert not (await office.ask("list", chosen={"run": "r2"}))["letters"]


async def test_what_a_plain_client_ends_again_is_another_letter(tmp_path: Path) -> None:
    """It pulled the durable beside its own: the control plane buries it anew, and the letter of before goes."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        await office.ask("redrive", run="r1")
        reply = await pulled(source, stream=REDRIVE_STREAM, durable=SIDE)
        assert reply is not None
        await source.streams.connection.request(reply, b"+TERM still none")
        await until(lambda: gone(source, first))
        await until(lambda: messages(source, "DLQ"))
        (letter,) = (await stored_letters(source)).values()
        assert (letter.reason, letter.redriven, letter.former, letter.redrive) == ("still none", 1, first, "r1")
        assert (letter.stream, letter.sequence, letter.key) == (STREAM, 1, ("/crm", "one"))


async def test_the_next_leader_goes_on_with_what_is_under_way(tmp_path: Path) -> None:
    """What was sent is in `REDRIVE`: nothing is sent twice, and what is handled meanwhile leaves the dead letters."""
    async with Source.running(tmp_path) as source:
        first, second = await bury(source, "one", "two")
        before = Office.of(source)
        await before.ask("redrive", run="r1")
        next_one = Office.of(source)
        refused = (await next_one.ask("redrive", run="r2"))["refused"]
        assert [(one["letter"], one["code"]) for one in refused] == [(first, "under-way"), (second, "under-way")]
        async with side(source, lambda puller, received: puller.ack(received)) as got:
            await until(lambda: len(got) == 2)
            async with next_one.open():
                await until(lambda: gone(source, first, second))
        assert len(got) == 2


async def test_asking_again_for_a_run_sends_nothing_twice(tmp_path: Path) -> None:
    """An answer that got lost: the same run again finds all of it under way; two letters of one event are one."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        other = await source.streams.connection.request(LETTER_SUBJECT, (await stored_letters(source))[first].encode())
        second = msgspec.json.decode(other.data)["seq"]
        answer = await office.ask("redrive", run="r1")
        assert (answer["sent"], await messages(source, REDRIVE_STREAM)) == ([first, second], 1)
        assert list(await stored_letters(source)) == [first]
        lost = Office.of(source)
        lost.redrives._lanes._read = True  # as if the answer of REDRIVE had not come
        await lost.judge.refresh()
        assert (await lost.ask("redrive", run="r1"))["sent"] == [first]
        assert await messages(source, REDRIVE_STREAM) == 1


async def test_nobody_pulls_for_a_week(tmp_path: Path) -> None:
    """What `REDRIVE` let go of is a letter like any other again."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        await office.ask("redrive", run="r1")
        assert (await office.ask("list"))["letters"][0]["run"] == "r1"
        await manage.api(source.streams.connection, "STREAM.PURGE.REDRIVE")

        async def free() -> bool:
            return not (await office.ask("list"))["letters"][0]["run"]

        await until(free)
        assert (await office.ask("redrive", run="r2"))["sent"] == [first]


async def test_a_full_stream_takes_no_more_and_what_was_sent_is_told(tmp_path: Path) -> None:
    """The request fails, and the audit trail says what went out before."""
    async with opened(tmp_path) as (source, office):
        await bury(source, "one", "two")
        connection = source.streams.connection
        config = (await manage.stream_info(connection, REDRIVE_STREAM))["config"]
        await manage.api(connection, "STREAM.UPDATE.REDRIVE", {**config, "max_msgs": 1})
        with pytest.raises(StreamUnavailable):
            await office.ask("redrive", run="r1")
        assert [(kind, facts["letters"]) for kind, facts in office.told] == [("dlq-redriven", 1)]
        assert len(await stored_letters(source)) == 2


# --- what is not sent ------------------------------------------------------------------------------------------------


async def unreadable(source: Source, office: Office) -> None:
    """No letter at all."""
    await source.streams.connection.request(LETTER_SUBJECT, b"not json")


async def without_event(source: Source, office: Office) -> None:
    """What verification refused."""
    await rewritten(source, event=deadletters.NO_BODY)


async def changed_event(source: Source, office: Office) -> None:
    """Changed in `DLQ`."""
    await rewritten(source, event=msgspec.Raw(b'{"id": "two"}'))


async def of_another_team(source: Source, office: Office) -> None:
    """A subscription that is not there."""
    await bury(source, "one")
    ((_, letter),) = (await stored_letters(source)).items()
    await source.streams.connection.request("dlq.support.other", letter.encode())
    await manage.api(source.streams.connection, "STREAM.MSG.DELETE.DLQ", {"seq": 1})


async def revoked_key(source: Source, office: Office) -> None:
    """The key that sealed it is refused since before it was stored."""
    await bury(source, "one")
    await source.state({source.signer.kid: 1})


async def withheld(source: Source, office: Office) -> None:
    """The team may read other types now."""
    await bury(source, "one")
    other = GRACE.replace(
        'subscribe: ["crm.contact.>"], view: service', 'subscribe: ["crm.contact.gone"], view: service'
    )
    await source.streams.hand_out(policies=other)


async def not_delivered(source: Source, office: Office) -> None:
    """The team may read nothing now."""
    await bury(source, "one")
    await source.streams.hand_out(policies=GRACE.replace("{teams: [support]}, subscribe", "{teams: [crm]}, subscribe"))


async def past_its_time(source: Source, office: Office) -> None:
    """Of no use any more, as its sender said."""
    await publish_with(source, "one", expirytime="2026-01-01T00:00:00Z")
    await bury_last(source, 1)


async def rewritten(source: Source, **changes: Any) -> None:
    """A letter with something else in it."""
    await bury(source, "one")
    ((number, letter),) = (await stored_letters(source)).items()
    changed = msgspec.structs.replace(letter, **changes)
    await source.streams.connection.request(LETTER_SUBJECT, changed.encode())
    await manage.api(source.streams.connection, "STREAM.MSG.DELETE.DLQ", {"seq": number})


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (unreadable, "unreadable"),
        (without_event, "no-event"),
        (changed_event, "bad-envelope"),
        (of_another_team, "subscription-gone"),
        (revoked_key, "key-revoked"),
        (withheld, "no-allow-matched"),
        (not_delivered, "subscription-inactive"),
        (past_its_time, "event-expired"),
    ],
)
async def test_what_would_not_be_handed_over_is_not_sent(
    tmp_path: Path, make: Callable[[Source, Office], Any], code: str
) -> None:
    """It stays where it is, and the answer says why; so does a dry run."""
    async with opened(tmp_path) as (source, office):
        await make(source, office)
        for dry_run in (True, False):
            answer = await office.ask("redrive", run="r1", dry_run=dry_run)
            assert [one["code"] for one in answer["refused"]] == [code]
            assert answer["sent"] == []
        assert await messages(source, REDRIVE_STREAM) == 0
        assert await messages(source, "DLQ") == 1
        assert office.told == []


async def test_a_dry_run_sends_and_deletes_nothing(tmp_path: Path) -> None:
    """It says what would be done."""
    async with opened(tmp_path) as (source, office):
        (first,) = await bury(source, "one")
        assert (await office.ask("redrive", run="r1", dry_run=True))["sent"] == [first]
        assert (await office.ask("discard", dry_run=True))["discarded"] == 1
        assert await messages(source, REDRIVE_STREAM) == 0
        assert list(await stored_letters(source)) == [first]


# --- looking, and throwing away --------------------------------------------------------------------------------------


async def test_a_discarded_letter_is_gone_and_was_taken_back(tmp_path: Path) -> None:
    """Its copy leaves `REDRIVE` too, so that nobody handles it any more; the audit trail says who and why."""
    async with opened(tmp_path) as (source, office):
        first, second = await bury(source, "one", "two")
        await office.ask("redrive", chosen={"letters": [first]}, run="r1")
        with pytest.raises(BadAttribute):
            await office.ask("discard", chosen={"letters": [first]})
        answer = await office.ask("discard", chosen={"letters": [first]}, author="ines", reason="test data")
        assert answer["discarded"] == 1
        assert list(await stored_letters(source)) == [second]
        assert await messages(source, REDRIVE_STREAM) == 0
        assert await pulled(source, stream=REDRIVE_STREAM, durable=SIDE, within_s=0.3) is None
        kind, facts = office.told[-1]
        assert kind == "dlq-discarded"
        assert facts.items() >= {"letters": 1, "author": "ines", "reason": "test data"}.items()
        assert facts["for_letters"] == (first,)


async def test_letters_are_told_page_by_page(tmp_path: Path) -> None:
    """Each letter once, and none that came after the first page; an export holds them whole."""
    async with opened(tmp_path) as (source, office):
        numbers = await bury(source, "one", "two", "three")
        page = await office.ask("list", limit=2)
        late = await bury(source, "four")
        rest = await office.ask("list", limit=2, after=page["next"], last=page["last"])
        assert [row["letter"] for row in page["letters"] + rest["letters"]] == numbers
        assert (page["next"], rest["next"]) == (numbers[1], 0)
        exported = await office.ask("export", chosen={"id": "four"})
        ((number, letter),) = [item for item in (await stored_letters(source)).items() if item[0] in late]
        assert [(row["letter"], bytes(row["record"])) for row in exported["letters"]] == [(number, letter.encode())]
        assert office.told[-1][0] == "dlq-exported"


async def test_an_export_fits_its_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer ends before the letter that would be too much, and the next begins with it."""
    async with opened(tmp_path) as (source, office):
        numbers = await bury(source, "one", "two", "three")
        monkeypatch.setattr("mesh.control.deadletters_service.MAX_BYTES", 1000)
        got: list[int] = []
        after = last = 0
        while not got or after:
            page = await office.ask("export", after=after, last=last)
            assert len(page["letters"]) == 1
            got.append(page["letters"][0]["letter"])
            after, last = page["next"], page["last"]
        assert got == numbers


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3]),
    ({"team": "support", "subscription": "contacts"}, [1, 2]),
    ({"team": "nobody"}, []),
    ({"because": "no-*"}, [1]),
    ({"because": "unreadable"}, [3]),
    ({"because": "n[o]*"}, []),
    ({"because": "no-custome?"}, []),
    ({"because": "later[?]"}, [2]),
    ({"type": "crm.>"}, [1, 2]),
    ({"type": "hr.>"}, []),
    ({"id": "two"}, [2]),
    ({"letters": [3, 2, 99]}, [2, 3]),
    ({"letters": [2, 3], "subscription": "contacts"}, [2]),
    ({"since_ms": 4_000_000_000_000}, []),
    ({"until_ms": 4_000_000_000_000}, [1, 2, 3]),
    ({"until_ms": 1}, []),
]
WRONG: list[dict[str, Any]] = [
    {"team": "No"},
    {"type": "crm..x"},
    {"letters": [0]},
    {"letters": list(range(1, 1002))},
    {"since_ms": "x"},
]


async def test_filters(tmp_path: Path) -> None:
    """Each says which letters are meant; one that is none is an error of the request."""
    async with opened(tmp_path) as (source, office):
        await bury(source, "one")
        await bury(source, "two", reason="later[?]")
        await source.streams.connection.request("dlq.support.other", b"not json")
        for chosen, meant in FILTERS:
            found = await office.ask("list", chosen=chosen)
            assert [row["letter"] for row in found["letters"]] == meant, chosen
        for wrong in WRONG:
            with pytest.raises(InputError):
                await office.ask("list", chosen=wrong)
        for chosen in ({"letters": [99]}, {"letters": [1], "team": "other"}, {}):  # of one letter alone
            with pytest.raises(NotFound):
                await office.ask("show", chosen=chosen)
        assert bytes((await office.ask("show", chosen={"letters": [1]}))["record"]).startswith(b'{"team":"support"')
        assert (await office.ask("show", chosen={"letters": [3]}))["record"] is None


async def test_a_letter_that_is_asked_for_by_number_and_is_not_there_is_said(tmp_path: Path) -> None:
    """Alone it is an error; beside others they are changed, and it is named."""
    async with opened(tmp_path) as (source, office):
        first, second = await bury(source, "one", "two")
        for verb in ("redrive", "discard"):
            for chosen in ({"letters": [999, 998]}, {"letters": [first], "team": "other"}):
                with pytest.raises(NotFound):
                    await office.ask(verb, chosen=chosen, run="r1", reason=REASON)
        sent = await office.ask("redrive", chosen={"letters": [first, 999]}, run="r1")
        assert (sent["sent"], [(one["letter"], one["code"]) for one in sent["refused"]]) == (
            [first],
            [(999, "not-found")],
        )
        asked: dict[str, Any] = {"chosen": {"letters": [first, second, 998, 999]}, "reason": REASON}
        page = await office.ask("discard", limit=1, **asked)
        assert (page["discarded"], page["missing"], page["next"]) == (1, [], first)
        page = await office.ask("discard", after=page["next"], last=page["last"], **asked)
        assert (page["discarded"], page["missing"], page["next"]) == (1, [998, 999], 0)


async def test_a_writer_cannot_pass_for_another(tmp_path: Path) -> None:
    """Headers that name another subject or number do not count: the server's stand last."""
    async with opened(tmp_path) as (source, office):
        lies = {"Nats-Subject": "dlq.fraud.cases", "Nats-Sequence": "7", "Nats-Num-Pending": "0"}
        await source.streams.connection.request(LETTER_SUBJECT, b"{}", headers=lies)
        letter = deadletters.DeadLetterRecord(
            team="fraud", subscription="cases", reason="x", attempts=1, stream="S", sequence=1, subject="", stream_ms=0,
            dead_ms=0,
        )  # fmt: skip
        await source.streams.connection.request(LETTER_SUBJECT, letter.encode(), headers=lies)
        rows = (await office.ask("list"))["letters"]
        assert [(row["letter"], row["team"], row["subscription"]) for row in rows] == [
            (1, "support", "contacts"),
            (2, "support", "contacts"),
        ]
