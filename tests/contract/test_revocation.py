"""What a consumer makes of revoked keys and of trust that is withheld, set back or lost: real server, real feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mesh.errors import Unavailable
from mesh.feed import STALE
from mesh.fetching import Fetcher
from mesh.identity import Certificate, TrustStatement
from mesh.jetstream.connection import Connection
from mesh.reading import ReadingTeam, TeamReader
from mesh.signing import Received, Verified, Verifier
from mesh.trust_watch import REFUSED, TrustWatch
from mesh.unhandled import REJECTED
from tests.contract.agent_mesh import TRUST_KEY, now_ms, until
from tests.contract.consumer_mesh import GRACE, STRICT, TENANT, Clock, Source, new_signer, sealed_statement, take
from tests.contract.test_backlog import Since

pytestmark = pytest.mark.anyio

MINUTE_MS, HOUR_MS = 60_000, 3_600_000


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant whose policies say nothing of trust: grace."""
    async with Source.running(tmp_path) as running:
        yield running


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant that wants delivery to pause as soon as trust is stale."""
    async with Source.running(tmp_path, STRICT) as running:
        yield running


# --- revoked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["key", "issuer"])
async def test_what_waits_for_a_handler_is_judged_again(source: Source, what: str) -> None:
    """Verified before the revocation came, handed over after: what the stream took before the cut, and nothing else."""
    kid = source.signer.kid if what == "key" else source.signer.issuer_kid
    async with source.reader() as reader, reader.subscription() as reading:
        times = await source.publish("1", "2", "3", "4")
        first = await take(reading, 1)
        await until(lambda: len(reading.feed._ready) == 3)
        await source.state({kid: times[2]})
        await reader.at(source.epoch)
        kept = [f"{n + 1}" for n, at in enumerate(times) if n and at < times[2]]
        got = await take(reading, len(kept))
        assert reading.feed.take() is None
        await until(source.settled)
    assert [handed.id for handed in (*first, *got)] == ["1", *kept]
    assert {reason for reason, _ in await source.buried()} == {"key-revoked"}
    assert [sequence for _, sequence in await source.buried()] == list(range(len(kept) + 2, 5))


async def test_another_key_of_the_same_workload_goes_on(source: Source) -> None:
    """Revoking one key of an agent says nothing about its next one; events of both are told apart in one queue."""
    other = new_signer(source.ca)
    await source.certify(other)
    async with source.reader() as reader, reader.subscription() as reading:
        await source.publish("old-1")
        await source.publish("new-1", signer=other)
        await source.publish("old-2")
        await source.publish("new-2", signer=other)
        await until(lambda: len(reading.feed._ready) == 4)
        await source.state({source.signer.kid: 0})
        await reader.at(source.epoch)
        assert [handed.id for handed in await take(reading, 2)] == ["new-1", "new-2"]
        await until(source.settled)


async def test_a_statement_that_revokes_nothing_else_judges_nothing_again(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements come every 10 s: what waits is not verified again for each of them."""
    async with source.reader() as reader, reader.subscription() as reading:
        await source.publish("1", "2")
        await until(lambda: len(reading.feed._ready) == 2)
        verified: list[int] = []
        verify = Verifier.verify

        def counted(self: Verifier, received: Received) -> Verified:
            verified.append(received.sequence)
            return verify(self, received)

        monkeypatch.setattr(Verifier, "verify", counted)
        await source.state({})
        await reader.at(source.epoch)
        await take(reading, 2)
        assert verified == []
        await source.state({source.signer.kid: now_ms() + HOUR_MS})
        await reader.at(source.epoch)
        await source.publish("3")
        await until(lambda: verified == [3])


# --- known to nobody -------------------------------------------------------------------------------------------------


async def test_a_key_that_nobody_certified_keeps_nobody_waiting(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many events it seals, and however often they come: the bucket is asked once a while, the others go on."""
    monkeypatch.setattr("mesh.fetching.ASK_AGAIN_S", 60.0)
    monkeypatch.setattr("mesh.judging.UNKNOWN_KEY_RETRY_S", 0.05)
    asked: list[str] = []
    certificate = TrustWatch.certificate

    async def counted(self: TrustWatch, kid: str) -> Certificate | None:
        asked.append(kid)
        return await certificate(self, kid)

    monkeypatch.setattr(TrustWatch, "certificate", counted)
    unknown = Since(REJECTED, code="unknown-key")
    thief = new_signer(source.ca)
    await source.publish(*(f"x-{n}" for n in range(100)), signer=thief)
    async with source.reader() as reader, reader.subscription() as reading:
        await until(lambda: unknown() >= 300)
        await source.publish("honest")
        assert [handed.id for handed in await take(reading, 1)] == ["honest"]
        assert asked == [thief.kid, source.signer.kid]


async def test_many_keys_that_nobody_certified_are_asked_for_together(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more with each event: the line waits for a round trip now and then, not for one each; the order stays."""
    certificate, read = TrustWatch.certificate, Fetcher.certificates
    reads, rounds = [0], [0]
    gate = anyio.Event()

    async def counted(self: TrustWatch, kid: str) -> Certificate | None:
        reads[0] += 1
        await gate.wait()
        return await certificate(self, kid)

    async def round_of(self: Fetcher, line: Iterable[Received]) -> bool:
        rounds[0] += 1
        return await read(self, line)

    monkeypatch.setattr(TrustWatch, "certificate", counted)
    monkeypatch.setattr(Fetcher, "certificates", round_of)
    monkeypatch.setattr("mesh.judging.UNKNOWN_KEY_RETRY_S", 60.0)
    certified = [new_signer(source.ca) for _ in range(3)]
    for signer in certified:
        await source.certify(signer)
    for number in range(30):
        signer = new_signer(source.ca) if number % 10 else certified[number // 10]
        await source.publish(f"e-{number}", signer=signer)
    async with source.reader() as reader, reader.subscription() as reading:
        await until(lambda: reading.feed.pending == 30)  # the first round asks for those that were there when it began
        gate.set()
        assert [handed.id for handed in await take(reading, 3)] == ["e-0", "e-10", "e-20"]
        assert (reads[0], rounds[0] <= 2) == (30, True)


async def test_a_certificate_may_be_late_but_not_for_ever(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that lags costs nothing but time; what stays unknown for longer is a dead letter within seconds."""
    monkeypatch.setattr("mesh.judging.UNKNOWN_KEY_RETRY_S", 0.05)
    monkeypatch.setattr("mesh.fetching.ASK_AGAIN_S", 0.04)
    monkeypatch.setattr("mesh.fetching.PATIENCE_S", 60.0)
    monkeypatch.setattr("mesh.judging.PATIENCE_DELIVERIES", 10_000)
    unknown = Since(REJECTED, code="unknown-key")
    late, thief = new_signer(source.ca), new_signer(source.ca)
    await source.publish("late", signer=late)
    await source.publish("never", signer=thief)
    async with source.reader() as reader, reader.subscription() as reading:
        await until(lambda: unknown() >= 20)
        assert await source.buried() == []
        await source.certify(late)
        assert [handed.id for handed in await take(reading, 1)] == ["late"]
        monkeypatch.setattr("mesh.fetching.PATIENCE_S", 0.1)
        await until(source.settled)
    assert await source.buried() == [("unknown-key", 2)]


# --- withheld --------------------------------------------------------------------------------------------------------


async def test_grace_goes_on_marked_and_then_pauses(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that keeps newer statements back gets an hour of marked events, then none, and loses nobody's event."""
    monkeypatch.setattr("mesh.judging.STALE_RETRY_S", 0.05)
    monkeypatch.setattr("mesh.judging.STALE_RETRY_MAX_S", 0.05)
    clock = Clock.of_feeds(monkeypatch)
    marked, paused = Since(STALE), Since(REJECTED, code="stale-trust")
    async with source.reader() as reader, reader.subscription() as reading:
        got = []
        for number, ahead_ms in enumerate((0, 2 * MINUTE_MS, 59 * MINUTE_MS)):
            clock.ahead_ms = ahead_ms
            await source.publish(f"e-{number}")
            got += await take(reading, 1)
        assert [handed.stale_trust for handed in got] == [False, True, True]
        assert (marked(), paused()) == (2, 0)
        clock.ahead_ms = HOUR_MS + MINUTE_MS
        await source.publish("waits")
        await until(lambda: paused() >= 3)
        assert reading.feed.take() is None
        await source.state(issued_ms=clock())
        (after,) = await take(reading, 1)
        assert (after.id, after.stale_trust) == ("waits", False)
        await until(source.settled)
    assert await source.buried() == []


async def test_strict_pauses_at_once_and_hands_over_all_of_it_later(
    strict: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often an event came while delivery was paused: it is handled, in place of being buried."""
    monkeypatch.setattr("mesh.judging.STALE_RETRY_S", 0.02)
    monkeypatch.setattr("mesh.judging.STALE_RETRY_MAX_S", 0.02)
    clock = Clock.of_feeds(monkeypatch)
    paused = Since(REJECTED, code="stale-trust")
    async with strict.reader() as reader, reader.subscription() as reading:
        await strict.publish("before")
        assert [handed.id for handed in await take(reading, 1)] == ["before"]
        clock.ahead_ms = MINUTE_MS + 5_000
        await strict.publish("1", "2")
        await until(lambda: paused() > 2 * 12)  # more than the attempts allow: attempts times the crash factor is 10
        assert reading.feed.take() is None
        await strict.state(issued_ms=clock())
        got = await take(reading, 2)
        assert {(handed.id, handed.stale_trust) for handed in got} == {("1", False), ("2", False)}
        assert min(handed.attempt for handed in got) > 10
        await until(strict.settled)
    assert await strict.buried() == []


@pytest.mark.parametrize(("policies", "marked"), [(GRACE, True), (STRICT, False)])
async def test_what_waits_here_when_trust_becomes_stale_is_ruled_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policies: str, marked: bool
) -> None:
    """Without one more event arriving: grace marks what is ready, strict hands it back."""
    monkeypatch.setattr("mesh.feed.TRUST_CHECK_S", 0.02)
    paused = Since(REJECTED, code="stale-trust")
    clock = Clock.of_feeds(monkeypatch)
    async with (
        Source.running(tmp_path, policies) as source,
        source.reader() as reader,
        reader.subscription() as reading,
    ):
        await source.publish("1", "2")
        await until(lambda: len(reading.feed._ready) == 2)
        clock.ahead_ms = 2 * MINUTE_MS
        await until(lambda: reading.feed._revision == -1)
        if marked:
            assert [handed.stale_trust for handed in await take(reading, 2)] == [True, True]
        else:
            assert reading.feed.take() is None
            assert paused() == 2


async def test_a_tenant_that_becomes_strict_pauses_what_it_had_let_through(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle changes the rule while the process runs, for what is stale already."""
    clock = Clock.of_feeds(monkeypatch)
    paused = Since(REJECTED, code="stale-trust")
    async with source.reader() as reader, reader.subscription() as reading:
        clock.ahead_ms = 2 * MINUTE_MS
        await source.publish("1", "2")
        assert [handed.stale_trust for handed in await take(reading, 1)] == [True]
        await until(lambda: len(reading.feed._ready) == 1)
        revision = (await source.streams.hand_out(policies=STRICT)).revision
        await until(lambda: reader.bundle.state.revision == revision)
        assert reading.feed.take() is None
        assert paused() == 1


async def test_before_the_first_statement_nothing_is_handed_over(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that shows no statement at all to a new reader gets no event past it."""
    monkeypatch.setattr("mesh.judging.STALE_RETRY_S", 0.05)
    monkeypatch.setattr("mesh.judging.STALE_RETRY_MAX_S", 0.05)
    paused = Since(REJECTED, code="stale-trust")
    await source.trust.delete("trust")
    await source.publish("1")
    async with source.reader() as reader, reader.subscription() as reading:
        await until(lambda: paused() >= 2)
        assert reading.feed.take() is None
        await source.state()
        assert [handed.id for handed in await take(reading, 1)] == ["1"]


# --- set back, lost --------------------------------------------------------------------------------------------------


async def set_back(source: Source, before: bytes) -> None:
    """The statement from before the revocation, word for word."""
    await source.put_statement(before)


async def issue_less(source: Source, _before: bytes) -> None:
    """A statement of the tenant beside, signed by the same trust key, that revokes nothing."""
    await source.put_statement(sealed_statement(source.epoch + 100, now_ms(), tenant="fund"))


async def forge(source: Source, _before: bytes) -> None:
    """A statement that says more than it was signed for."""
    honest = sealed_statement(source.epoch + 100, now_ms(), {"A" * 22: 0})
    await source.put_statement(honest.replace(b'"sig":"', b'"sig":"AAAA'))


@pytest.mark.parametrize("attack", [set_back, issue_less, forge])
async def test_a_revocation_is_not_taken_back_by_a_restart(
    source: Source, tmp_path: Path, attack: Callable[[Source, bytes], Awaitable[None]]
) -> None:
    """Whoever writes to the bucket, and waits until its readers start again, still cannot have the old statement."""
    kept, refused = tmp_path / "kept", Since(REJECTED, code="key-revoked")
    before = await source.state()
    async with source.reader(kept) as reader:
        await reader.at(source.epoch)
        await source.state({source.signer.kid: now_ms()})
        await reader.at(source.epoch)
    alarms = REFUSED.total()
    await attack(source, before)
    await source.publish("stolen")
    async with source.reader(kept) as reader, reader.subscription() as reading:
        await until(lambda: refused() == 1)
        assert reading.feed.take() is None
        assert reader.epoch == source.epoch
    assert REFUSED.total() > alarms


async def test_without_what_was_kept_a_set_back_would_work(source: Source) -> None:
    """The control to the test above: a reader that remembers nothing takes the older statement for the newest."""
    before = await source.state()
    await source.state({source.signer.kid: now_ms()})
    await source.put_statement(before)
    await source.publish("stolen")
    async with source.reader() as reader, reader.subscription() as reading:
        assert [handed.id for handed in await take(reading, 1)] == ["stolen"]


async def test_a_reader_starts_and_verifies_without_the_bucket(source: Source, tmp_path: Path) -> None:
    """Statement and certificate come from disk: what was revoked stays so, and the backlog is handed over."""
    kept = tmp_path / "kept"
    stolen, other = source.signer, new_signer(source.ca)
    await source.certify(other)
    refused = Since(REJECTED, code="key-revoked")
    async with source.reader(kept) as reader, reader.subscription() as reading:
        await source.publish("1")
        await source.publish("2", signer=other)
        await take(reading, 2)
        await source.state({stolen.kid: now_ms()})
        await reader.at(source.epoch)
        await until(source.settled)
    await source.lose_bucket()
    await source.publish("3", signer=other)
    await source.publish("4", signer=stolen)
    await source.publish("5", signer=other)
    async with source.reader(kept) as reader, reader.subscription() as reading:
        with pytest.raises(Unavailable):
            await reader.trust.refresh()
        assert [(handed.id, handed.stale_trust) for handed in await take(reading, 2)] == [("3", False), ("5", False)]
        await until(lambda: refused() == 1)


async def test_what_is_kept_is_as_old_as_it_is(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart does not make trust young again: without the bucket a reader pauses an hour after what it kept."""
    kept, paused = tmp_path / "kept", Since(REJECTED, code="stale-trust")
    async with source.reader(kept) as reader:
        await reader.at(source.epoch)
        await until((kept / "statement").exists)
    statement = TrustStatement.open((kept / "statement").read_bytes(), TRUST_KEY)
    assert statement.epoch == source.epoch
    await source.lose_bucket()
    clock = Clock.of_feeds(monkeypatch)
    clock.ahead_ms = HOUR_MS + MINUTE_MS
    await source.publish("1")
    async with source.reader(kept) as reader, reader.subscription() as reading:
        await until(lambda: paused() == 1)
        assert reading.feed.take() is None


@asynccontextmanager
async def team_process(source: Source, team: Path) -> AsyncIterator[TeamReader]:
    """What `mesh.connect(team="support")` opens, on a connection of its own, in a team's directory."""
    who = ReadingTeam(TENANT, "support", trust=source.directory / "trust", files=team, ciphers=team / "ciphers")
    connection = await Connection.open(source.streams.server.url, name="team-support")
    try:
        reader = TeamReader(who, connection)
        await reader.first_state()
        async with anyio.create_task_group() as group:
            group.start_soon(reader.trust.run)
            group.start_soon(reader.bundle.run)
            yield reader
            group.cancel_scope.cancel()
    finally:
        await connection.close()


async def test_the_library_begins_with_what_its_team_kept(source: Source, tmp_path: Path) -> None:
    """Bundle, statement and certificates lie beside the team's credentials; set back, lost or there, it starts."""
    team = tmp_path / "teams" / "support"
    team.mkdir(parents=True)
    before = await source.state()
    await source.state({source.signer.kid: 7})
    async with team_process(source, team) as reader:
        assert await reader.trust.certificate(source.signer.kid) is not None
        await until((team / "bundle.last").exists)
    await source.put_statement(before)
    async with team_process(source, team) as reader:
        assert reader.trust.keyring.revoked_from(source.signer.kid) == 7
    await source.lose_bucket()
    async with team_process(source, team) as reader:
        held = reader.trust.keyring.statement
        assert held is not None
        assert (held.epoch, held.revoked) == (source.epoch, {source.signer.kid: 7})
        assert await reader.trust.certificate(source.signer.kid) is not None
    assert sorted(file.name for file in (team / "trust").iterdir()) == sorted(
        [f"{source.signer.kid}.cert", "statement"]
    )


async def test_under_load_nothing_at_or_after_the_cut_is_handed_over(source: Source) -> None:
    """The key is revoked from a second ahead while its events stream in; all before the cut come, and none after it."""
    handed: dict[str, int] = {}
    async with source.reader() as reader, reader.subscription() as reading, anyio.create_task_group() as group:

        async def handle() -> None:
            while True:
                async with await reading.next() as event:
                    handed[event.id] = event.stream_ms

        group.start_soon(handle)
        times: dict[str, int] = {}
        cut_ms = 0
        number = 0
        while not cut_ms or max(times.values()) < cut_ms + 200:
            number += 1
            times |= dict(zip([f"e-{number}"], await source.publish(f"e-{number}"), strict=True))
            if number == 50:
                cut_ms = now_ms() + 1000
                await source.state({source.signer.kid: cut_ms})
        await until(source.settled)
        group.cancel_scope.cancel()
    assert set(handed) == {id_ for id_, at_ms in times.items() if at_ms < cut_ms}
    assert {reason for reason, _ in await source.buried()} == {"key-revoked"}
