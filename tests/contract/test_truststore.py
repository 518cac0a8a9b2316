"""The trust store against a real server: what goes out, and what a store that lies, forgets or goes back cannot do."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from nacl.bindings import crypto_sign_seed_keypair

from mesh.ca import MeshCA
from mesh.control import trust_upkeep
from mesh.control.nats_server import NatsServer, plain_config
from mesh.control.reconcile import now_ms
from mesh.control.trust import Authority
from mesh.control.truststore import DAY_MS, KEEP_MS, UNKNOWN_MS, TrustStore
from mesh.errors import BadCertificate, BadSubject, BadTrustStatement, ConfigError, TooLarge
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


async def test_a_broker_cannot_hide_a_key(world: World) -> None:
    """What the bucket lost is still known to whoever revokes, and the next control plane puts it back."""
    kids = {await (await world.start()).publish(world.chain()) for _ in range(3)}
    await world.forget()
    store = await world.start()
    assert {held.kid for held in store.present(now_ms())} == kids
    assert await world.kids() == kids
    assert {held.kid for held in await store.certificates()} == kids


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
    with anyio.fail_after(5):
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
    assert (stored.epoch, stored.revoked) == (store.epoch + 1, {key: 1000})
    assert again.epoch == stored.epoch


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
    assert (stored.epoch, stored.revoked) == (epoch + 1, {key: 1000})
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
    assert (stored.epoch, stored.revoked) == (store.epoch + 1, {key: 1000})


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
        with anyio.fail_after(10):
            while (await world.stored()).epoch < first + 3 or old in await world.kids():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_it_is_issued_at_once_when_the_server_is_back(world: World) -> None:
    """After a time without a connection nobody waits ten seconds for a statement that is young enough."""
    store = await world.start()
    first = store.epoch
    async with anyio.create_task_group() as group:
        group.start_soon(store.run)
        await anyio.lowlevel.checkpoint()
        await world.connection.rebuild()
        with anyio.fail_after(8):
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
            with anyio.fail_after(10):
                while "trust_statement_failed" not in caplog.text:
                    await anyio.sleep(0.01)
        world.file.rmdir()
        with anyio.fail_after(10):
            while not world.file.is_file():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
