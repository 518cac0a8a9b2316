"""What plain NATS clients give up, collected from the server's advisories: one letter each, whoever ended when."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from mesh.control import advisories
from mesh.jetstream import manage
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import DURABLE, STREAM, Source
from tests.contract.letters import (
    Office,
    advisory,
    forgetful,
    given_up,
    messages,
    plain_durable,
    pulled,
    said,
    stored_letters,
)

pytestmark = pytest.mark.anyio


async def collected(source: Source, office: Office | None = None) -> None:
    """Run a control plane until every advisory was looked at."""
    async with (office or Office.of(source)).open():
        await until(lambda: _empty(source))


async def _empty(source: Source) -> bool:
    return await messages(source, "ADVISORY") == 0


async def test_what_the_server_gives_up_becomes_a_letter(tmp_path: Path) -> None:
    """An event that a plain client left unacked to its last delivery is one letter, with the event, verified."""
    async with Source.running(tmp_path) as source:
        await plain_durable(source, attempts=2, ack_wait_s=0.1)
        await source.publish("stuck")
        await given_up(source)
        await collected(source)
        ((number, letter),) = (await stored_letters(source)).items()
        assert (letter.reason, letter.attempts, letter.stream, letter.sequence) == ("max-deliveries", 2, STREAM, 1)
        assert letter.key == ("/crm", "stuck")
        assert (letter.team, letter.subscription, letter.correlation) == ("support", "contacts", "")
        received = (await Office.of(source).ask("show", chosen={"letters": [number]}))["record"]
        assert bytes(received) == letter.encode()


async def test_an_advisory_that_comes_again_writes_no_second_letter(tmp_path: Path) -> None:
    """Neither in one process, nor in the next one, which finds the letter by its id; the stream forgets ids."""
    async with Source.running(tmp_path) as source:
        await plain_durable(source, attempts=1, ack_wait_s=0.1)
        await source.publish("stuck")
        await given_up(source)
        subject, body = await advisory(source, await said(source))
        first = Office.of(source)
        await collected(source, first)
        await forgetful(source)
        async with first.open():
            await source.streams.connection.request(subject, body)
            await until(lambda: _empty(source))
        assert await messages(source, "DLQ") == 1


async def test_a_process_that_ended_before_it_took_the_advisory_away_wrote_the_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter is stored and the advisory still there: the next process sees both, and writes nothing."""
    async with Source.running(tmp_path) as source:
        await plain_durable(source, attempts=1, ack_wait_s=0.1)
        await source.publish("stuck")
        await given_up(source)
        stop = anyio.Event()

        async def ends(*_: object) -> None:
            stop.set()
            await anyio.sleep_forever()

        with monkeypatch.context() as patch:
            patch.setattr(advisories, "api", ends)
            async with Office.of(source).open():
                with anyio.fail_after(60):
                    await stop.wait()
        assert await messages(source, "ADVISORY") == await messages(source, "DLQ") == 1
        await forgetful(source)
        await collected(source)
        assert await messages(source, "DLQ") == 1


@pytest.mark.parametrize(("verb", "reason"), [("+TERM", "terminated"), ("+TERM no customer", "no customer")])
async def test_what_a_client_ends_becomes_a_letter_with_its_reason(tmp_path: Path, verb: str, reason: str) -> None:
    """`+TERM` of a plain client is a dead letter too."""
    async with Source.running(tmp_path) as source:
        await source.publish("bad")
        reply = await pulled(source)
        assert reply is not None
        await source.streams.connection.request(reply, verb.encode())
        await until(lambda: said(source))
        await collected(source)
        (letter,) = (await stored_letters(source)).values()
        assert (letter.reason, letter.has_event) == (reason, True)


async def test_what_the_library_buried_is_not_buried_again(tmp_path: Path) -> None:
    """It ends a delivery after it has stored the letter and names it: no second one, however late it is looked at."""
    async with Source.running(tmp_path) as source, source.reader() as reader, reader.subscription():
        await source.streams.connection.request(f"ev.local.service.s00.{'crm.contact.created.v1'}", b"{}")
        await until(lambda: said(source))
        assert await messages(source, "DLQ") == 1
        await forgetful(source)
        await collected(source)
        (letter,) = (await stored_letters(source)).values()
        assert (letter.reason, letter.has_event) == ("bad-envelope", False)


async def test_a_letter_that_somebody_only_names_does_not_count(tmp_path: Path) -> None:
    """A client that names another event's letter, or one that never was, has its own event buried all the same."""
    async with Source.running(tmp_path) as source:
        await source.publish("first", "second", "third")
        for reason in ("one", "two dlq:1", "three dlq:999"):
            reply = await pulled(source)
            assert reply is not None
            await source.streams.connection.request(reply, b"+TERM " + reason.encode())
            await collected(source)
        assert [letter.sequence for letter in (await stored_letters(source)).values()] == [1, 2, 3]


async def test_nobody_vouches_for_an_event_that_does_not_verify(tmp_path: Path) -> None:
    """It is a letter with the failed step and without its body; so is one that its stream holds no more."""
    async with Source.running(tmp_path) as source:
        await source.streams.connection.request("ev.local.service.s00.crm.contact.created.v1", b"{}")
        await source.publish("gone")
        for _ in range(2):
            reply = await pulled(source)
            assert reply is not None
            await source.streams.connection.request(reply, b"+TERM")
        await manage.api(source.streams.connection, f"STREAM.MSG.DELETE.{STREAM}", {"seq": 2})
        await collected(source)
        unsigned, gone = (await stored_letters(source)).values()
        assert (unsigned.reason, unsigned.has_event) == ("bad-envelope", False)
        assert (gone.reason, gone.error_class, gone.sequence) == ("terminated", "event-gone", 2)


async def test_an_advisory_of_no_subscription_is_passed_over(tmp_path: Path) -> None:
    """A reader's consumer, and what is no advisory at all: nothing is buried, and what follows is looked at."""
    async with Source.running(tmp_path) as source:
        await source.publish("bad")
        of_a_reader = b'{"type": "x.terminated", "stream": "S", "consumer": "read-0123", "stream_seq": 1}'
        for consumer, body in (("read-0123", of_a_reader), (DURABLE, b"not json")):
            subject = f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{STREAM}.{consumer}"
            await source.streams.connection.request(subject, body)
        reply = await pulled(source)
        assert reply is not None
        await source.streams.connection.request(reply, b"+TERM last")
        await until(lambda: said(source))
        await collected(source)
        assert [letter.reason for letter in (await stored_letters(source)).values()] == ["last"]
