"""The trust statement and the certificates as every process keeps them: adopted, refused, on disk, read again."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import anyio
import pytest

from mesh.anchors import open_keyring
from mesh.ca import MeshCA
from mesh.errors import BadCertificate, BadTrustStatement, ConfigError, TrustRollback, Unavailable
from mesh.identity import Signer
from mesh.trust_files import TrustFiles, chain_file
from mesh.trust_watch import AGE, REFUSED, TrustWatch
from tests.contract.agent_mesh import now_ms, until
from tests.contract.consumer_mesh import TENANT, Source, new_signer, sealed_statement
from tests.contract.test_backlog import Since

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant with a statement and one certificate."""
    async with Source.running(tmp_path) as running:
        yield running


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where a process keeps what it trusts."""
    return tmp_path / "kept"


def watch(source: Source, directory: Path | None = None, on_change: Callable[[], None] | None = None) -> TrustWatch:
    """A process that starts."""
    keyring = open_keyring(source.directory / "trust", tenant=TENANT)
    return TrustWatch(source.streams.connection, keyring, directory=directory, on_change=on_change)


async def once(watching: TrustWatch, *kids: str) -> None:
    """Run until the statement and these certificates are there, and all that is to be kept is on disk."""
    async with anyio.create_task_group() as group:
        group.start_soon(watching.run)
        await until(lambda: watching.keyring.statement is not None)
        for kid in kids:
            await watching.certificate(kid)
        group.cancel_scope.cancel()


def epoch_of(watching: TrustWatch) -> int:
    """Of the statement in force; 0 for none."""
    held = watching.keyring.statement
    return 0 if held is None else held.epoch


# --- adopted ---------------------------------------------------------------------------------------------------------


async def test_a_notice_brings_it_at_once_and_only_other_revocations_are_told(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_change` is called when somebody is revoked, or no longer, and not for the statement of every 10 s."""
    monkeypatch.setattr("mesh.watch.POLL_S", 3600.0)
    told: list[Mapping[str, int]] = []

    def changed() -> None:
        held = watching.keyring.statement
        assert held is not None
        told.append(held.revoked)

    watching = watch(source, on_change=changed)
    kid, at_ms = source.signer.kid, now_ms()
    async with anyio.create_task_group() as group:
        group.start_soon(watching.run)
        await until(lambda: epoch_of(watching) == 1)
        for revoked in ({}, {kid: at_ms}, {kid: at_ms}, {kid: at_ms - 1}, {}):
            await source.state(revoked)
            await until(lambda: epoch_of(watching) == source.epoch)
        group.cancel_scope.cancel()
    assert told == [{kid: at_ms}, {kid: at_ms - 1}, {}]


@pytest.mark.parametrize(
    ("put", "error"),
    [
        (lambda s: sealed_statement(s.epoch - 1, now_ms()), TrustRollback),
        (lambda s: sealed_statement(s.epoch, now_ms() + 1), TrustRollback),
        (lambda s: sealed_statement(s.epoch + 1, now_ms(), tenant="fund"), BadTrustStatement),
        (lambda s: sealed_statement(s.epoch + 1, now_ms()).replace(b'"sig":"', b'"sig":"AAAA'), BadTrustStatement),
        (lambda _: b"", BadTrustStatement),
    ],
    ids=["older", "same-epoch-other-words", "of-another-tenant", "other-signature", "nothing"],
)
async def test_what_does_not_hold_up_is_an_alarm_and_changes_nothing(
    source: Source, put: Callable[[Source], bytes], error: type[Exception]
) -> None:
    """Refused with its code, counted, and the last good statement stays; a good one after it is adopted."""
    told: list[int] = []
    watching = watch(source, on_change=lambda: told.append(1))
    await source.state({source.signer.kid: 5})
    await watching.refresh()
    before, refused = watching.keyring.statement, Since(REFUSED, code=error.code)  # type: ignore[attr-defined]  # ours
    await source.put_statement(put(source))
    with pytest.raises(error):
        await watching.refresh()
    await watching.look()
    assert (watching.keyring.statement, refused(), told) == (before, 2, [1])
    await source.state({source.signer.kid: 5})
    await watching.refresh()
    assert epoch_of(watching) == source.epoch


async def test_a_statement_that_is_gone_is_one_that_was_set_back(source: Source) -> None:
    """Before the first there is none, and nobody is alarmed; after it somebody holds it back, and it stays in force."""
    watching, refused = watch(source), Since(REFUSED, code=TrustRollback.code)
    await source.trust.delete("trust")
    await watching.refresh()
    assert (epoch_of(watching), refused()) == (0, 0)
    await source.state({source.signer.kid: 5})
    await watching.refresh()
    await source.trust.delete("trust")
    with pytest.raises(TrustRollback, match="gone"):
        await watching.refresh()
    await watching.look()
    assert (watching.keyring.revoked_from(source.signer.kid), refused()) == (5, 2)


async def test_age_is_a_level_while_it_runs(source: Source) -> None:
    """Seconds since the statement was issued; gone with the process, so that nobody alerts on a ghost."""
    await source.state(issued_ms=now_ms() - 100_000)
    watching = watch(source)
    async with anyio.create_task_group() as group:
        group.start_soon(watching.run)
        await until(lambda: epoch_of(watching) == source.epoch)
        ((_, level),) = AGE.series()
        assert 100 <= level < 100 + 60
        group.cancel_scope.cancel()
    assert list(AGE.series()) == []


# --- certificates ----------------------------------------------------------------------------------------------------


async def test_a_certificate_under_another_keys_id_is_refused(source: Source) -> None:
    """Else whoever asks for the one would believe to have it, and ask for ever."""
    watching, wanted = watch(source), new_signer(source.ca)
    await source.trust.put(f"cert.{wanted.kid}", source.signer.certificate)
    with pytest.raises(BadCertificate):
        await watching.certificate(wanted.kid)
    assert await watching.certificate("A" * 22) is None


async def test_certificates_come_from_disk_without_the_bucket(source: Source, kept: Path) -> None:
    """Those that were used; what was never fetched is not there, and that it cannot be read is said."""
    other = new_signer(source.ca)
    await source.certify(other)
    await once(watch(source, kept), source.signer.kid)
    await source.lose_bucket()
    again = watch(source, kept)
    assert again.load() is not None
    found = await again.certificate(source.signer.kid)
    assert found is not None
    assert found.spiffe_id == source.signer.spiffe_id
    with pytest.raises(Unavailable):
        await again.certificate(other.kid)


async def test_one_that_has_ended_is_asked_for_anew(source: Source, kept: Path) -> None:
    """The key may have been certified again meanwhile; where nobody has it, what is kept judges the backlog."""
    ended = new_signer(source.ca, issued_ms=now_ms() - 2 * DAY_MS)
    await source.certify(ended)
    await once(watch(source, kept), ended.kid)
    renewed = source.ca.issue(ended.spiffe_id, _public(ended, source), now_ms=now_ms())
    await source.trust.put(f"cert.{ended.kid}", renewed)
    again = watch(source, kept)
    found = await again.certificate(ended.kid)
    assert found is not None
    assert found.not_after_ms > now_ms()
    assert len(again.keyring.certificates()) == 2
    await source.trust.delete(f"cert.{ended.kid}")
    pruned = await watch(source, kept).certificate(ended.kid)
    await source.lose_bucket()
    offline = await watch(source, kept).certificate(ended.kid)
    for found in (pruned, offline):
        assert found is not None
        assert found.not_after_ms < now_ms()


def _public(signer: Signer, source: Source) -> bytes:
    return watch(source).keyring.add(signer.certificate).public_key


# --- on disk ---------------------------------------------------------------------------------------------------------


async def test_what_lies_on_disk_is_believed_no_more_than_what_arrives(source: Source, kept: Path) -> None:
    """Another tenant's statement, another root's certificate, another key's: refused, and the bucket is asked."""
    stranger = new_signer(MeshCA.create("mesh.local", now_ms=now_ms()))
    await once(watch(source, kept), source.signer.kid)
    TrustFiles(kept).write({"statement": sealed_statement(99, now_ms(), {source.signer.kid: 0}, tenant="fund")})
    for content in (stranger.certificate, new_signer(source.ca).certificate, b"nothing", b""):
        TrustFiles(kept).write({chain_file(source.signer.kid): content})
        again = watch(source, kept)
        assert again.load() is None
        found = await again.certificate(source.signer.kid)
        assert found is not None
        assert found.kid == source.signer.kid
        assert again.keyring.find(stranger.kid) is None


async def test_the_epoch_outlives_the_process(source: Source, kept: Path) -> None:
    """The one of the last revocation at once, the ones between at least once a minute."""
    before = await source.state()
    await source.state({source.signer.kid: 7})
    await once(watch(source, kept))
    await source.put_statement(before)
    again = watch(source, kept)
    held = again.load()
    assert held is not None
    assert (held.epoch, held.revoked) == (source.epoch, {source.signer.kid: 7})
    with pytest.raises(TrustRollback):
        await again.refresh()


@pytest.mark.parametrize(("later_ms", "written"), [(59_000, False), (60_000, True)])
async def test_a_statement_without_news_is_written_once_a_minute(
    source: Source, kept: Path, later_ms: int, *, written: bool
) -> None:
    """A disk is not written every 10 s by every process for words that say nothing new."""
    issued_ms = now_ms()
    await source.state(issued_ms=issued_ms)
    await once(watch(source, kept))
    first = (kept / "statement").read_bytes()
    again = watch(source, kept)
    again.load()
    await source.state(issued_ms=issued_ms + later_ms)
    async with anyio.create_task_group() as group:
        group.start_soon(again.run)
        await until(lambda: epoch_of(again) == source.epoch)
        group.cancel_scope.cancel()
    assert ((kept / "statement").read_bytes() != first) is written


async def test_what_comes_while_the_disk_is_busy_is_written_together(
    source: Source, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the disk: certificates are there at once, and one write takes all that came meanwhile."""
    busy, batches = threading.Event(), []
    write = TrustFiles.write

    def slow(self: TrustFiles, contents: Mapping[str, bytes]) -> None:
        batches.append(set(contents))
        assert busy.wait(20)
        write(self, contents)

    monkeypatch.setattr(TrustFiles, "write", slow)
    signers = [new_signer(source.ca) for _ in range(5)]
    for signer in signers:
        await source.certify(signer)
    watching = watch(source, kept)
    async with anyio.create_task_group() as group:
        group.start_soon(watching.run)
        await until(lambda: batches)
        for signer in signers:
            assert await watching.certificate(signer.kid) is not None
        assert batches == [{"statement"}]
        busy.set()
        await until(lambda: all((kept / chain_file(signer.kid)).exists() for signer in signers))
        group.cancel_scope.cancel()
    assert batches == [{"statement"}, {chain_file(signer.kid) for signer in signers}]


async def test_a_directory_that_cannot_be_written_is_said_once(
    source: Source, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And all goes on without it."""
    kept.write_text("a file where the directory should be")
    watching = watch(source, kept)
    assert watching.load() is None
    await once(watching, source.signer.kid)
    assert watching.keyring.find(source.signer.kid) is not None
    said = [record for record in caplog.records if record.getMessage() == "trust_not_kept"]
    assert len(said) == 1


async def test_nothing_of_it_is_for_others_to_read(source: Source, kept: Path) -> None:
    """It is no secret, but what a process goes by is its own."""
    await once(watch(source, kept), source.signer.kid)
    files = sorted(kept.iterdir())
    assert [file.name for file in files] == sorted([chain_file(source.signer.kid), "statement"])
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}
    assert oct(kept.stat().st_mode & 0o777) == "0o700"


async def test_certificates_go_when_no_stored_event_needs_them(source: Source, kept: Path) -> None:
    """31 days after their end; and what is no certificate at once."""
    old, recent = (new_signer(source.ca, issued_ms=now_ms() - days * DAY_MS, lifetime_s=60) for days in (6, 4))
    TrustFiles(kept).write({chain_file(signer.kid): signer.certificate for signer in (old, recent)})
    TrustFiles(kept).write({chain_file("A" * 22): b"nothing", "statement": b"stays"})
    assert TrustFiles(kept).prune(now_ms() + 26 * DAY_MS) == 2
    assert {file.name for file in kept.iterdir()} == {chain_file(recent.kid), "statement"}


@pytest.mark.parametrize("kid", ["../../../etc/passwd", "statement", "", "A" * 21 + "/"])
def test_a_key_id_names_no_other_file(kept: Path, kid: str) -> None:
    """It comes with an event, from whoever may publish."""
    kept.mkdir()
    for name in ("statement", "statement.cert", ".cert"):
        (kept / name).write_text("secret")
    assert TrustFiles(kept).chain(kid) is None


# --- anchors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [("ca.crt", None), ("trust.pub", None), ("trust.pub", b"zz"), ("trust.pub", b"00" * 32), ("trust.pub", b"")],
    ids=["no-root", "no-trust-key", "not-hex", "weak-key", "empty"],
)
async def test_anchors_that_are_none_are_said_at_once(source: Source, file: str, content: bytes | None) -> None:
    """Without them nobody could be believed; the error says which files belong there."""
    path = source.directory / "trust" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_keyring(source.directory / "trust")
    assert "trust.pub" in caught.value.expected


async def test_two_roots_in_one_file_are_both_believed(source: Source) -> None:
    """So a mesh changes its root without a day on which half of its events are not believed."""
    other = MeshCA.create("mesh.local", now_ms=now_ms() - DAY_MS)
    path = source.directory / "trust" / "ca.crt"
    path.write_bytes(path.read_bytes() + other.root_pem)
    keyring = open_keyring(source.directory / "trust")
    for signer in (source.signer, new_signer(other)):
        assert keyring.add(signer.certificate).kid == signer.kid
