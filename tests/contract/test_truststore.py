"""The trust store against a real server: what goes out, and what a store that lies, forgets or goes back cannot do."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from nacl.bindings import crypto_sign_seed_keypair

from mesh.ca import MeshCA
from mesh.control import stream_clock, trust_upkeep, truststore
from mesh.control.nats_server import NatsServer, plain_config
from mesh.control.reconcile import now_ms
from mesh.control.stored_certificates import DAY_MS, FULL_PERCENT, KEEP_MS, UNKNOWN_MS
from mesh.control.stream_clock import MAX_OFFSET_MS
from mesh.control.trust import Authority
from mesh.control.trust_requests import LEAD_MS, Asked, cut_of
from mesh.control.truststore import TrustStore
from mesh.errors import BadCertificate, BadSubject, BadTrustStatement, ConfigError, Overloaded, RequestFailed, TooLarge
from mesh.identity import Keyring, TrustStatement
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.jetstream.topology import Sizes, desired
from mesh.watch import NOTICE_SUBJECT, TRUST_KEY

pytestmark = pytest.mark.anyio

SIZES = Sizes(event_bytes=16 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)
AGENT = "spiffe://mesh.local/ns/acme/sa/crm-adapter"
BUCKET = "mesh_trust"
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Connection]:
    """A connection to a server with the fixed streams, for all tests of this file."""
    directory = tmp_path_factory.mktemp("truststore")
    nats = await NatsServer.start(plain_config(directory / "store"), directory)
    try:
        connection = await Connection.open(nats.url, name="control", creds=None)
        try:
            changes = plan(desired("local", (), (), SIZES), await manage.read_actual(connection))
            await manage.apply(connection, changes)
            yield connection
        finally:
            await connection.close()
    finally:
        await nats.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA and the trust key, made a while ago."""
    directory = tmp_path_factory.mktemp("authority")
    at_ms = now_ms() - 100 * DAY_MS
    return Authority(directory / "trust", directory / "admin", trust_domain="mesh.local", now_ms=at_ms)


class World:
    """One control plane after the other, on the same files and the same bucket."""

    def __init__(self, connection: Connection, authority: Authority, directory: Path) -> None:
        self.connection = connection
        self.authority = authority
        self.file = directory / "trust" / "acme.statement"
        self.copies = directory / "trust" / "acme.certificates"
        self.bucket = KeyValue(connection, BUCKET)

    async def start(self, *, tenant: str = "acme") -> TrustStore:
        """A control plane that starts now."""
        store = TrustStore(self.connection, self.authority, tenant, self.file)
        await store.open()
        return store

    def chain(self, *, at_ms: int = 0, lifetime_s: float = 86_400, ca: MeshCA | None = None) -> bytes:
        """A certificate of a new key, made at *at_ms* (now unless given)."""
        public, _ = crypto_sign_seed_keypair(secrets.token_bytes(32))
        issuer = ca or self.authority.ca
        return issuer.issue(AGENT, public, now_ms=at_ms or now_ms(), lifetime_s=lifetime_s)

    async def put(self, chain: bytes) -> str:
        """Store a certificate as an earlier control plane did, long ago."""
        certificate = Keyring(self.authority.roots, None).add(chain)
        await self.bucket.put(f"cert.{certificate.kid}", chain)
        return certificate.kid

    async def stored(self) -> TrustStatement:
        """The statement as a reader finds it."""
        entry = await self.bucket.get(TRUST_KEY)
        assert entry is not None
        keyring = Keyring(self.authority.roots, self.authority.trust_public, tenant="acme")
        return keyring.apply(entry.value)

    async def kids(self) -> set[str]:
        """The keys whose certificate is in the bucket."""
        body = {"subjects_filter": f"$KV.{BUCKET}.cert.*"}
        found = (await manage.api(self.connection, f"STREAM.INFO.KV_{BUCKET}", body))["state"].get("subjects") or {}
        return {subject.rpartition(".")[2] for subject in found}

    @asynccontextmanager
    async def limited(self, **limits: int) -> AsyncIterator[None]:
        """Give the bucket other limits for the length of the block."""
        config = (await manage.stream_info(self.connection, f"KV_{BUCKET}"))["config"]
        await manage.api(self.connection, f"STREAM.UPDATE.KV_{BUCKET}", {**config, **limits})
        try:
            yield
        finally:
            await manage.api(self.connection, f"STREAM.UPDATE.KV_{BUCKET}", config)

    @contextmanager
    def notices(self) -> Iterator[list[int]]:
        """The epochs of which everybody is told, as they come."""
        told: list[int] = []
        listener = self.connection.listen(
            NOTICE_SUBJECT, lambda _s, _r, _h, data: told.append(msgspec.json.decode(data)["revision"])
        )
        try:
            yield told
        finally:
            listener.close()

    async def forget(self) -> None:
        """Lose everything that the bucket holds."""
        await manage.api(self.connection, f"STREAM.PURGE.KV_{BUCKET}")


@pytest.fixture
async def world(server: Connection, authority: Authority, tmp_path: Path) -> World:
    """An empty bucket, no copies."""
    made = World(server, authority, tmp_path)
    await made.forget()
    return made


def kid() -> str:
    """The id of some key."""
    public, _ = crypto_sign_seed_keypair(secrets.token_bytes(32))
    return Keyring([ca.cert_pem], None).add(ca.issue(AGENT, public, now_ms=now_ms())).kid


async def length(told: list[int], count: int) -> list[int]:
    """*told* once it has *count* items."""
    with anyio.fail_after(60):
        while len(told) < count:
            await anyio.sleep(0.01)
    return list(told)


ca = MeshCA.create("mesh.local", now_ms=now_ms())


# --- certificates ----------------------------------------------------------------------------------------------------


async def test_a_published_certificate_is_what_readers_find(world: World) -> None:
    """It lies under its key id, byte for byte, known and present; publishing it again changes nothing."""
    store = await world.start()
    chain = world.chain()
    kid = await store.publish(chain)
    entry = await world.bucket.get(f"cert.{kid}")
    assert entry is not None
    assert entry.value == chain
    assert Keyring(world.authority.roots, None).add(entry.value).spiffe_id == AGENT
    assert await store.publish(chain) == kid
    assert (await world.bucket.get(f"cert.{kid}")) == entry
    assert await store.known(kid)
    assert [held.kid for held in store.present(now_ms())] == [kid]
    assert not await store.known("AAAAAAAAAAAAAAAAAAAAAA")


async def test_a_key_has_one_certificate(world: World) -> None:
    """Another certificate for a key that has one is refused, by this control plane and by the next one."""
    public, _ = crypto_sign_seed_keypair(secrets.token_bytes(32))
    first, second = (world.authority.ca.issue(AGENT, public, now_ms=now_ms() - back) for back in (0, HOUR_MS))
    store = await world.start()
    kid = await store.publish(first)
    for control in (store, await world.start()):
        with pytest.raises(BadCertificate):
            await control.publish(second)
    world.copies.joinpath(kid).unlink()
    with pytest.raises(BadCertificate):
        await (await world.start()).publish(second)
    entry = await world.bucket.get(f"cert.{kid}")
    assert entry is not None
    assert entry.value == first


async def test_a_certificate_of_another_root_is_not_published(world: World) -> None:
    """Only what our roots stand behind goes out."""
    store = await world.start()
    with pytest.raises(BadCertificate):
        await store.publish(world.chain(ca=ca))
    assert await world.kids() == set()


async def test_a_certificate_counts_before_it_is_stored(world: World) -> None:
    """Whoever revokes all that a workload holds sees a key that is being published: nothing slips through between."""
    store = await world.start()
    async with anyio.create_task_group() as group:
        group.start_soon(store.publish, world.chain())
        await anyio.lowlevel.checkpoint()
        assert len(store.present(now_ms())) == 1
        assert await world.kids() == set()
    assert await world.kids() == {held.kid for held in store.present(now_ms())}


async def test_what_cannot_be_kept_is_not_handed_out(world: World) -> None:
    """Without room for our own copy there is no certificate, and the key counts as never seen."""
    store = await world.start()
    shutil.rmtree(world.copies)
    world.copies.write_text("in the way")
    with pytest.raises(ConfigError):
        await store.publish(world.chain())
    assert await world.kids() == set()
    assert store.present(now_ms()) == []


async def test_what_the_store_says_it_refused_still_counts(world: World) -> None:
    """Who has seen a certificate may show it to readers, whatever it answered: whoever revokes sees the key."""
    store = await world.start()
    async with world.limited(max_msg_size=16):
        with pytest.raises(RequestFailed):
            await store.publish(world.chain())
    (held,) = store.present(now_ms())
    assert [path.name for path in world.copies.iterdir()] == [held.kid]
    await world.start()
    assert await world.kids() == {held.kid}


async def test_a_broker_cannot_hide_a_key(world: World) -> None:
    """What the bucket lost is still known to whoever revokes, and the next control plane puts it back."""
    kids = {await (await world.start()).publish(world.chain()) for _ in range(3)}
    await world.forget()
    store = await world.start()
    assert {held.kid for held in store.present(now_ms())} == kids
    assert await world.kids() == kids
    assert {held.kid for held in await store.certificates()} == kids


async def test_copies_from_a_backup_hide_no_key(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`admin/` restored from an old backup: keys enrolled since are seen by whoever revokes, loudly, and kept again."""
    store = await world.start()
    old = await store.publish(world.chain())
    backup = world.file.parent.with_name("backup")
    shutil.copytree(world.file.parent, backup)
    since, ended = await store.publish(world.chain()), await world.put(world.chain(at_ms=now_ms() - 2 * DAY_MS))
    shutil.rmtree(world.file.parent)
    shutil.copytree(backup, world.file.parent)
    with caplog.at_level(logging.ERROR):
        restored = await world.start()
    assert {held.kid for held in restored.present(now_ms())} == {old, since}
    assert {path.name for path in world.copies.iterdir()} == {old, since}
    assert "certificates_taken_up" in caplog.text
    caplog.clear()
    again = await world.start()
    assert {held.kid for held in again.present(0)} == {old, since}
    assert ended in {held.kid for held in await again.certificates()}
    assert "certificates_taken_up" not in caplog.text


async def test_a_store_full_of_certificates_takes_statements(world: World) -> None:
    """Whoever enrols until nothing fits keeps others from enrolling, and nobody from being revoked."""
    store = await world.start()
    async with world.limited(max_bytes=50_000):
        refused: Overloaded | None = None
        for _ in range(100):
            try:
                await store.publish(world.chain())
            except Overloaded as error:
                refused = error
                break
        assert refused is not None
        assert f"less than {FULL_PERCENT} % of 50000 bytes" in str(refused.expected)
        assert "mesh trust list --all" in str(refused.next)
        kids = await world.kids()
        assert {held.kid for held in store.present(now_ms())} == kids
        assert {path.name for path in world.copies.iterdir()} == kids
        await store.statement()
        await store.revoke(dict.fromkeys(kids, 1000))
        assert (await world.stored()).revoked == dict.fromkeys(kids, 1000)
    await store.publish(world.chain())


async def test_a_certificate_under_another_id_is_none(world: World) -> None:
    """A bucket that shows one key's certificate under another's id shows nothing."""
    store = await world.start()
    real = await store.publish(world.chain())
    entry = await world.bucket.get(f"cert.{real}")
    assert entry is not None
    await world.bucket.put("cert.AAAAAAAAAAAAAAAAAAAAAA", entry.value)
    await world.bucket.put("cert.AAAAAAAAAAAAAAAAAAAAAQ", b"junk")
    assert await store.certificate("AAAAAAAAAAAAAAAAAAAAAA") is None
    assert [held.kid for held in await store.certificates()] == [real]
    with pytest.raises(BadSubject):
        await store.certificate(">")


async def test_a_mesh_without_copies_takes_what_is_stored(world: World) -> None:
    """The first start after an upgrade: what has not ended is present, and every statement goes on."""
    now = now_ms()
    kept, ended = world.chain(), world.chain(at_ms=now - 2 * DAY_MS)
    kids = [await world.put(chain) for chain in (kept, ended)]
    store = await world.start()
    assert [held.kid for held in store.present(now)] == kids[:1]
    assert sorted(path.name for path in world.copies.iterdir()) == kids[:1]
    assert {held.kid for held in await store.certificates()} == set(kids)


# --- statements ------------------------------------------------------------------------------------------------------


async def test_a_revocation_goes_out_signed_and_is_noticed(world: World) -> None:
    """The epoch rises with each statement, readers can open it, and everybody is told to look."""
    store = await world.start()
    first = await world.stored()
    told: list[bytes] = []
    listener = world.connection.listen(NOTICE_SUBJECT, lambda _s, _r, _h, data: told.append(data))
    key, cut = kid(), now_ms()
    await store.revoke({key: cut})
    second = await world.stored()
    assert (first.tenant, first.revoked, second.revoked) == ("acme", {}, {key: cut})
    assert first.epoch < second.epoch == store.epoch
    with anyio.fail_after(60):
        while not told:
            await anyio.sleep(0.01)
    listener.close()
    assert told == [b'{"kind":"trust","revision":%d}' % second.epoch]
    assert dict(store.revoked) == {key: cut}


async def test_the_earlier_cut_counts(world: World) -> None:
    """Nobody gives a key time back: a later cut changes nothing, an earlier one does."""
    store = await world.start()
    key = kid()
    await store.revoke({key: 5000})
    epoch = store.epoch
    await store.revoke({key: 9000})
    assert (store.epoch, (await world.stored()).revoked) == (epoch, {key: 5000})
    await store.revoke({key: 1000})
    assert (await world.stored()).revoked == {key: 1000}


async def test_statements_go_on_after_a_restart(world: World) -> None:
    """The next control plane goes on with the epoch, and what was revoked stays revoked."""
    store = await world.start()
    key = kid()
    await store.revoke({key: 1000})
    again = await world.start()
    stored = await world.stored()
    assert stored.revoked == {key: 1000}
    assert store.epoch < again.epoch == stored.epoch


@pytest.mark.parametrize("left", ["an old statement", "nothing", "a forgery", "another tenant's"])
async def test_a_broker_cannot_take_a_revocation_back(
    world: World, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a store that went back in time shows at the start, our own copy stands, loudly, and goes out again."""
    store = await world.start()
    old = await world.bucket.get(TRUST_KEY)
    assert old is not None
    key = kid()
    await store.revoke({key: 1000})
    epoch = store.epoch
    forged = TrustStatement(tenant="acme", epoch=10**9, issued_ms=now_ms(), revoked={}).seal(bytes(32))
    others = world.authority.statement(tenant="other", epoch=10**9, now_ms=now_ms(), revoked={})
    shown = {"an old statement": old.value, "a forgery": forged, "another tenant's": others}
    await world.forget()
    if left in shown:
        await world.bucket.put(TRUST_KEY, shown[left])
    with caplog.at_level(logging.ERROR):
        await world.start()
    stored = await world.stored()
    assert stored.revoked == {key: 1000}
    assert stored.epoch > epoch
    assert "trust_statement_put_back" in caplog.text


async def test_a_copy_from_a_backup_takes_no_revocation_back(world: World) -> None:
    """Our own files restored from an old backup: what the store knows better counts, and the epoch goes on."""
    store = await world.start()
    backup = world.file.read_bytes()
    key = kid()
    await store.revoke({key: 1000})
    world.file.write_bytes(backup)
    await world.start()
    stored = await world.stored()
    assert stored.revoked == {key: 1000}
    assert stored.epoch > store.epoch


@pytest.mark.parametrize("content", [b"", b"{}", b"junk"])
async def test_a_damaged_copy_stops_the_start(world: World, content: bytes) -> None:
    """Nobody revoked is not a guess to make."""
    await world.start()
    world.file.write_bytes(content)
    with pytest.raises(BadTrustStatement, match=r"acme\.statement"):
        await world.start()


async def test_a_copy_of_another_tenant_stops_the_start(world: World) -> None:
    """A file that was put in the wrong place is not believed."""
    await world.start()
    world.file.write_bytes(world.authority.statement(tenant="other", epoch=7, now_ms=now_ms(), revoked={}))
    with pytest.raises(BadTrustStatement, match="another tenant"):
        await world.start()


async def test_nothing_goes_out_that_readers_refuse(world: World) -> None:
    """No key id, no time, or more keys than a statement holds: an error, and the statement before stays."""
    store = await world.start()
    before = await world.stored()
    for kids in ({"no key id": 1}, {kid(): -1}):
        with pytest.raises(BadTrustStatement):
            await store.revoke(kids)
    with pytest.raises(TooLarge):
        await store.revoke({f"{number:021d}A": 1_700_000_000_000 for number in range(25_000)})
    assert await world.stored() == before
    key = kid()
    await store.revoke({key: 1})
    assert (await world.stored()).revoked == {key: 1}


async def test_a_statement_that_cannot_be_kept_goes_out_all_the_same(world: World) -> None:
    """A full disk is said, and the revocation counts: everybody else reads it from the store."""
    store, key = await world.start(), kid()
    world.file.unlink()
    world.file.mkdir()
    with pytest.raises(ConfigError, match=r"acme\.statement"):
        await store.revoke({key: 1000})
    assert (await world.stored()).revoked == {key: 1000}


@pytest.mark.parametrize("by", ["the next statement", "whoever asks again", "the next control plane"])
async def test_a_revocation_that_the_store_refused_is_owed(world: World, by: str) -> None:
    """It was answered with an error, and is again while nobody was told; it goes out as soon as the store takes it."""
    store, key = await world.start(), kid()
    async with world.limited(max_msg_size=16):
        for _ in range(2):
            with pytest.raises(RequestFailed):
                await store.revoke({key: 1000})
    assert (await world.stored()).revoked == {}
    match by:
        case "the next statement":
            await store.statement()
        case "whoever asks again":
            await store.revoke({key: 1000})
        case _:
            await world.start()
    assert (await world.stored()).revoked == {key: 1000}


async def test_a_revocation_that_cannot_be_kept_is_noticed_and_owed(world: World) -> None:
    """A full disk delays the notice of nobody; until there is a copy of our own, whoever asks again hears so."""
    store, key = await world.start(), kid()
    world.file.unlink()
    world.file.mkdir()
    with world.notices() as told:
        for _ in range(2):
            with pytest.raises(ConfigError):
                await store.revoke({key: 1000})
        assert (await length(told, 2))[-1] == store.epoch
    world.file.rmdir()
    await store.revoke({key: 1000})
    assert TrustStatement.open(world.file.read_bytes(), world.authority.trust_public).revoked == {key: 1000}


async def test_a_mesh_from_a_backup_is_believed_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything restored as it was hours ago: readers that have seen all statements since take the next one."""
    at_ms = now_ms() - HOUR_MS
    monkeypatch.setattr(truststore, "now_ms", lambda: at_ms)
    store = await world.start()
    entry, backup = await world.bucket.get(TRUST_KEY), world.file.read_bytes()
    assert entry is not None
    for _ in range(30):
        at_ms += int(trust_upkeep.STATEMENT_EVERY_S * 1000)
        await store.statement()
    reader = Keyring(world.authority.roots, world.authority.trust_public, tenant="acme")
    latest = await world.bucket.get(TRUST_KEY)
    assert latest is not None
    seen = reader.apply(latest.value)
    await world.bucket.put(TRUST_KEY, entry.value)
    world.file.write_bytes(backup)
    at_ms += 5_000
    await world.start()
    restored = await world.bucket.get(TRUST_KEY)
    assert restored is not None
    assert reader.apply(restored.value).epoch > seen.epoch


async def test_the_epoch_rises_though_the_clock_goes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back, and several statements in a second, cost one number each."""
    at_ms = now_ms()
    monkeypatch.setattr(truststore, "now_ms", lambda: at_ms)
    store = await world.start()
    epochs = [store.epoch]
    for step_ms in (0, -HOUR_MS, 0):
        at_ms += step_ms
        await store.statement()
        epochs.append(store.epoch)
    assert epochs == [epochs[0] + number for number in range(4)]


# --- the server's clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours_ms", "followed_ms"), [(-10_000, 10_000), (10_000, -10_000), (-HOUR_MS, MAX_OFFSET_MS)])
async def test_cuts_lie_in_the_servers_time(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ours_ms: int, followed_ms: int
) -> None:
    """Our clock is off: what is revoked from now on is so by the clock that stamps events; a lie moves that little."""
    monkeypatch.setattr(stream_clock, "now_ms", lambda: now_ms() + ours_ms)
    with caplog.at_level(logging.ERROR):
        store = await world.start()
        await store.statement()
    assert [record.message.split()[0] for record in caplog.records].count("server_clock_off") == 1
    assert abs(store.offset_ms - followed_ms) < 5_000
    at_ms = 1_700_000_000_000
    assert cut_of(Asked(), at_ms, offset_ms=store.offset_ms) == at_ms + store.offset_ms + LEAD_MS
    assert cut_of(Asked(now=True), at_ms, offset_ms=store.offset_ms) == at_ms + store.offset_ms
    assert cut_of(Asked(from_ms=at_ms - 1), at_ms, offset_ms=store.offset_ms) == at_ms - 1


async def test_a_clock_like_ours_moves_no_cut(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A stamp within the time of the put shows no difference, and nothing is said."""
    with caplog.at_level(logging.ERROR):
        store = await world.start()
    assert store.offset_ms == 0
    assert "server_clock_off" not in caplog.text


# --- pruning ---------------------------------------------------------------------------------------------------------


async def test_pruning_drops_what_nothing_can_need(world: World) -> None:
    """A certificate goes 31 days after its end, its revocation with it; nothing goes before."""
    now = now_ms()
    aged = {days: await world.put(world.chain(at_ms=now - days * DAY_MS)) for days in (10, 31, 33, 60)}
    store = await world.start()
    fresh, unknown = await store.publish(world.chain()), kid()
    kids = [*aged.values(), fresh, unknown]
    await store.revoke(dict.fromkeys(kids, now))
    assert await store.prune(now) == 2
    left = {aged[10], aged[31], fresh}
    assert await world.kids() == left
    assert set((await world.stored()).revoked) == {*left, unknown}
    assert await store.prune(now) == 0


async def test_pruning_forgets_our_copies_of_what_ended(world: World) -> None:
    """Our own copies last as long as a certificate does; the store keeps it for whoever reads what it sealed."""
    store = await world.start()
    kid = await store.publish(world.chain())
    assert await store.prune(now_ms() + 2 * DAY_MS) == 0
    assert store.present(0) == []
    assert list(world.copies.iterdir()) == []
    assert await world.kids() == {kid}


async def test_a_copy_that_ended_while_we_were_away_is_forgotten(world: World) -> None:
    """The next start shows nothing that has ended as present, and keeps no file of it."""
    chain = world.chain(at_ms=now_ms() - 2 * DAY_MS)
    kid = await world.put(chain)
    world.copies.mkdir(parents=True)
    (world.copies / kid).write_bytes(chain)
    store = await world.start()
    assert store.present(0) == []
    assert list(world.copies.iterdir()) == []


async def test_a_damaged_copy_of_a_certificate_is_said_and_left(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One bad file is no reason to stop; whoever restores it finds it where it was."""
    store = await world.start()
    kid = await store.publish(world.chain())
    (world.copies / "damaged").write_bytes(b"junk")
    (world.copies / ".cut-off").write_bytes(b"half")
    with caplog.at_level(logging.ERROR):
        again = await world.start()
    assert [held.kid for held in again.present(now_ms())] == [kid]
    assert "kept_certificate_refused" in caplog.text
    assert (world.copies / "damaged").exists()


async def test_an_intermediate_stays_revoked_while_it_is_valid(world: World) -> None:
    """Its key could certify others until its end, whatever became of those it certified; so could an unknown one."""
    now = now_ms()
    store = await world.start()
    issuer, unknown = world.authority.ca, kid()
    await world.put(world.chain(at_ms=now))
    await store.revoke({issuer.kid: now, unknown: now})
    await store.prune(now + 100 * DAY_MS)
    assert set(store.revoked) == {issuer.kid, unknown}
    later = await world.start()
    await later.prune(now + 101 * DAY_MS)
    assert set(later.revoked) == {issuer.kid, unknown}
    await world.put(world.chain(at_ms=now))
    await later.prune(issuer.not_after_ms + KEEP_MS + 1)
    assert set(later.revoked) == {unknown}
    await later.prune(now + UNKNOWN_MS + 1)
    assert dict(later.revoked) == {}


# --- running ---------------------------------------------------------------------------------------------------------


async def test_it_is_issued_again_and_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees that it is still kept up, and what has ended goes while it runs."""
    monkeypatch.setattr(trust_upkeep, "STATEMENT_EVERY_S", 0.02)
    old = await world.put(world.chain(at_ms=now_ms() - 60 * DAY_MS))
    store = await world.start()
    first = store.epoch
    async with anyio.create_task_group() as group:
        group.start_soon(store.run)
        with anyio.fail_after(60):
            while (await world.stored()).epoch < first + 3 or old in await world.kids():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_a_notice_of_a_revocation_is_repeated(world: World) -> None:
    """A core notice may be lost, and the cut is near: whoever missed it hears of it twice more. A reissue has none."""
    store = await world.start()
    first = store.epoch
    with world.notices() as told:
        async with anyio.create_task_group() as group:
            group.start_soon(store.run)
            assert (
                await length(told, 2) == [first] * 2
            )  # of what was in force at the start: what runs already missed it
            await store.revoke({kid(): 1000})
            revoked = store.epoch
            assert await length(told, 5) == [*[first] * 2, *[revoked] * 3]
            await store.statement()
            await store.revoke({kid(): 1000})
            assert await length(told, 8) == [*[first] * 2, *[revoked] * 3, *[store.epoch] * 3]
            group.cancel_scope.cancel()


async def test_only_other_revocations_are_news(world: World) -> None:
    """What is only issued again is none: a fleet would read it all at once, and all look every ten seconds anyway."""
    store = await world.start()

    async def news() -> bool:
        if not store._changed.is_set():
            return False
        await store.changed()
        return True

    assert await news()
    await store.statement()
    assert not await news()
    key = kid()
    await store.revoke({key: 1000})
    assert await news()
    await store.revoke({key: 1000})
    await store.statement()
    assert not await news()


async def test_it_is_issued_at_once_when_the_server_is_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time without a connection nobody waits for the next turn, ten seconds later."""
    monkeypatch.setattr(trust_upkeep, "STATEMENT_EVERY_S", 3600.0)
    store = await world.start()
    first = store.epoch
    async with anyio.create_task_group() as group:
        group.start_soon(store.run)
        await anyio.lowlevel.checkpoint()
        await world.connection.rebuild()
        with anyio.fail_after(60):
            while store.epoch == first:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_a_failure_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A statement that cannot be issued is said in the log, and the next one is tried."""
    monkeypatch.setattr(trust_upkeep, "STATEMENT_EVERY_S", 0.02)
    store = await world.start()
    world.file.unlink()
    world.file.mkdir()
    async with anyio.create_task_group() as group:
        with caplog.at_level(logging.ERROR):
            group.start_soon(store.run)
            with anyio.fail_after(60):
                while "trust_statement_failed" not in caplog.text:
                    await anyio.sleep(0.01)
        world.file.rmdir()
        with anyio.fail_after(60):
            while not world.file.is_file():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
