"""The state of a control plane on a real server: what the next leader finds, and who may write it."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mesh.control import run as run_module
from mesh.control import vault as vault_module
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.nats_config import plain_config
from mesh.control.nats_server import NatsServer
from mesh.control.run import ReplicaOptions
from mesh.control.vault import BUCKET, PART_BYTES, STREAM, Vault
from mesh.control.vault_bucket import ensure_bucket
from mesh.control.vault_files import KEY_FILES, is_state, missing_keys, read_state, write_state
from mesh.control.vault_head import HEAD, read_head
from mesh.errors import ConfigError, Deposed, Unavailable
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api
from mesh.jetstream.store import KeyValue
from tests.ports import free_ports

pytestmark = pytest.mark.anyio

STANDING = "admin/standing/acme.json"


@pytest.fixture
async def connection(shared_nats: NatsServer) -> AsyncIterator[Connection]:
    """With an empty bucket."""
    connection = await Connection.open(shared_nats.url, name="control")
    try:
        await ensure_bucket(connection, 1)
        await api(connection, f"STREAM.PURGE.{STREAM}")
        yield connection
    finally:
        await connection.close()


def replicas(tmp_path: Path, *, key: bytes = b"11" * 32) -> tuple[DataDirectory, DataDirectory]:
    """Two data directories with one state key."""
    made = [DataDirectory.open(tmp_path / name) for name in ("r1", "r2")]
    for data in made:
        write_private(data.lock_file, b"")
        write_private(data.admin / "state.key", key)
    return made[0], made[1]


async def parts(connection: Connection) -> set[str]:
    """The ids of all parts that are stored."""
    info = await api(connection, f"STREAM.INFO.{STREAM}", {"subjects_filter": f"$KV.{BUCKET}.part.>"})
    return {subject.split(".")[3] for subject in info["state"].get("subjects") or ()}


# --- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("admin/ca.key", True),
        ("admin/nats.creds", True),
        ("admin/bundles/acme.bundle", True),
        ("admin/trust/acme.statement", True),
        ("admin/trust/acme.certificates/kid", False),  # of a day, and in the trust store
        ("admin/standing/acme.json", True),
        ("admin/enrol/acme/crm-adapter.json", True),
        ("admin/domains/acme/customer-contact.key", True),
        ("admin/state.key", False),
        ("admin/state.generation", False),
        ("admin/root.key", False),
        ("admin/tls.key", False),
        ("nats/keys/acme.account.nk", True),
        ("nats/keys/acme/desk.user.nk", True),
        ("nats/keys/operator.operator.nk", False),
        ("nats/keys/_control/control.user.nk", False),
        ("nats/accounts/AABC.jwt", False),
        ("agents/desk/dedupe.key", True),
        ("agents/desk/agent.toml", False),  # its owner's
        ("agents/desk/spool.key", False),
        ("agents/desk/ports.json", False),
        ("agents/desk/webhooks/github.secret", True),
        ("agents/desk/.dedupe.key.x1", False),  # a write that was cut off
        ("teams/support/nats.creds", True),
        ("teams/support/trust/statement", False),
        ("admin/standing/../../x.json", False),
        ("mesh.json", False),
    ],
)
def test_what_is_made_once_is_state_and_nothing_else(name: str, state: bool) -> None:
    """Not the keys that whoever runs the mesh hands out, and nothing that belongs to one process."""
    assert is_state(name) is state


def test_a_state_with_a_strange_file_is_written_nowhere(tmp_path: Path) -> None:
    """Nothing in it is written."""
    data, _ = replicas(tmp_path)
    with pytest.raises(ConfigError):
        write_state(data.root, {STANDING: b"{}", "../outside": b"x"})
    assert read_state(data.root) == {}
    assert not (tmp_path / "outside").exists()


def test_a_root_key_that_is_kept_elsewhere_is_not_missing(tmp_path: Path) -> None:
    """All other key files are."""
    data, _ = replicas(tmp_path)
    assert missing_keys(data.root) == [name for name in KEY_FILES if name not in {"admin/root.key", "admin/state.key"}]


# --- the bucket ------------------------------------------------------------------------------------------------------


async def test_the_next_leader_finds_what_was_saved(connection: Connection, tmp_path: Path) -> None:
    """Each file, and none that was deleted; modes are private, and what is stored shows nothing."""
    first, second = replicas(tmp_path)
    vault = Vault(connection, first)
    await vault.take(1)
    write_private(first.root / STANDING, b'{"barred": ["desk"]}')
    write_private(first.agent("desk") / "dedupe.key", b"the-secret-of-desk")
    write_private(second.root / "admin/standing/gone.json", b"{}")
    await vault.save()
    await Vault(connection, second).take(2)
    assert read_state(second.root) == read_state(first.root)
    assert (second.agent("desk") / "dedupe.key").stat().st_mode & 0o777 == 0o600
    for subject in (HEAD, *(f"part.{name}.0" for name in await parts(connection))):
        entry = await KeyValue(connection, BUCKET).get(subject)
        assert entry is not None
        assert b"desk" not in entry.value


async def test_whoever_led_before_can_write_nothing_more(connection: Connection, tmp_path: Path) -> None:
    """What the next one took is what stands."""
    first, second = replicas(tmp_path)
    before, after = Vault(connection, first), Vault(connection, second)
    await before.take(1)
    await after.take(2)
    write_private(first.root / STANDING, b'{"barred": []}')
    with pytest.raises(Deposed):
        await before.save()
    await after.save()
    assert not (second.root / STANDING).exists()
    with pytest.raises(Deposed):
        await Vault(connection, first).take(1)


async def test_a_save_that_changes_nothing_writes_nothing(connection: Connection, tmp_path: Path) -> None:
    """And one that does leaves only its own parts behind."""
    data, _ = replicas(tmp_path)
    vault = Vault(connection, data)
    await vault.take(1)
    stored = (await api(connection, f"STREAM.INFO.{STREAM}"))["state"]["last_seq"]
    await vault.save()
    assert (await api(connection, f"STREAM.INFO.{STREAM}"))["state"]["last_seq"] == stored
    for number in range(3):
        write_private(data.root / STANDING, b"%d" % number)
        await vault.save()
    assert len(await parts(connection)) == 1


async def test_a_state_of_several_parts_arrives_whole(connection: Connection, tmp_path: Path) -> None:
    """A bundle alone may be larger than a part."""
    first, second = replicas(tmp_path)
    write_private(first.bundle("acme"), secrets.token_bytes(2 * PART_BYTES))
    await Vault(connection, first).take(1)
    assert await Vault(connection, second).follow()
    assert read_state(second.root) == read_state(first.root)


async def test_a_replica_that_waits_follows(connection: Connection, tmp_path: Path) -> None:
    """And does not write where nothing changed."""
    first, second = replicas(tmp_path)
    vault, copy = Vault(connection, first), Vault(connection, second)
    assert not await copy.follow()
    write_private(first.root / STANDING, b"1")
    await vault.take(1)
    assert await copy.follow()
    assert not await copy.follow()
    write_private(first.root / STANDING, b"2")
    await vault.save()
    assert await copy.follow()
    assert (second.root / STANDING).read_bytes() == b"2"


async def test_an_older_state_is_not_believed(connection: Connection, tmp_path: Path) -> None:
    """Servers with an old store, or none: a replica that has seen more puts its own back when it leads."""
    first, second = replicas(tmp_path)
    vault = Vault(connection, first)
    await vault.take(1)
    old = await KeyValue(connection, BUCKET).get(HEAD)
    assert old is not None
    kept = {f"part.{n}.0": await KeyValue(connection, BUCKET).get(f"part.{n}.0") for n in await parts(connection)}
    write_private(first.root / STANDING, b'{"barred": ["desk"]}')
    await vault.save()
    await Vault(connection, second).follow()
    await api(connection, f"STREAM.PURGE.{STREAM}")
    for key, entry in kept.items():
        assert entry is not None
        await KeyValue(connection, BUCKET).put(key, entry.value)
    await KeyValue(connection, BUCKET).put(HEAD, old.value)
    copy = Vault(connection, second)
    assert not await copy.follow()
    assert (second.root / STANDING).exists()
    await copy.take(3)
    (first.root / STANDING).unlink()
    await Vault(connection, first).take(4)
    assert (first.root / STANDING).read_bytes() == b'{"barred": ["desk"]}'


async def test_a_lost_state_is_put_back(connection: Connection, tmp_path: Path) -> None:
    """By the first leader that has a copy."""
    first, second = replicas(tmp_path)
    write_private(first.root / STANDING, b"1")
    await Vault(connection, first).take(1)
    await api(connection, f"STREAM.PURGE.{STREAM}")
    await Vault(connection, first).take(2)
    await Vault(connection, second).take(3)
    assert (second.root / STANDING).read_bytes() == b"1"


async def test_another_state_key_opens_nothing(connection: Connection, tmp_path: Path) -> None:
    """And changes nothing."""
    first, second = replicas(tmp_path)
    write_private(second.admin / "state.key", b"22" * 32)
    write_private(first.root / STANDING, b"1")
    await Vault(connection, first).take(1)
    with pytest.raises(ConfigError, match=r"state\.key"):
        await Vault(connection, second).take(2)
    assert read_state(second.root) == {}
    await Vault(connection, first).take(3)
    assert read_state(first.root) == {STANDING: b"1"}


async def test_a_state_that_somebody_changed_does_not_open(connection: Connection, tmp_path: Path) -> None:
    """Neither a byte of it, nor the head's word on how old it is."""
    first, second = replicas(tmp_path)
    await Vault(connection, first).take(1)
    store = KeyValue(connection, BUCKET)
    head = await store.get(HEAD)
    assert head is not None
    await store.put(HEAD, head.value.replace(b'"generation":1', b'"generation":9'))
    with pytest.raises(ConfigError):
        await Vault(connection, second).take(2)
    await store.put(HEAD, head.value)
    (name,) = await parts(connection)
    part = await store.get(f"part.{name}.0")
    assert part is not None
    await store.put(f"part.{name}.0", part.value[:-1] + bytes([part.value[-1] ^ 1]))
    with pytest.raises(ConfigError):
        await Vault(connection, second).take(2)


async def test_a_save_that_got_no_answer_is_no_loss_of_the_lead(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is stored, and nobody said so: the next save finds its own."""
    data, _ = replicas(tmp_path)
    vault = Vault(connection, data)
    await vault.take(1)
    put = KeyValue.put

    async def unanswered(self: KeyValue, key: str, value: bytes, expected_revision: int | None = None) -> int:
        revision = await put(self, key, value, expected_revision)
        if key == HEAD:
            raise Unavailable("no answer")
        return revision

    write_private(data.root / STANDING, b"1")
    with monkeypatch.context() as patched:
        patched.setattr(KeyValue, "put", unanswered)
        with pytest.raises(Unavailable):
            await vault.save()
    await vault.save()
    write_private(data.root / STANDING, b"2")
    await vault.save()


# --- servers that come back with an old store, or none ---------------------------------------------------------------


async def head(connection: Connection) -> int:
    """The generation that is stored; 0 for none."""
    entry = await KeyValue(connection, BUCKET).get(HEAD)
    return 0 if entry is None else read_head(entry).generation


async def put_back(connection: Connection, vault: Vault) -> None:
    """Wait until all that *vault* knows is stored again."""
    before = vault.generation
    with anyio.fail_after(60):
        while await head(connection) <= before:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("left", ["nothing", "an older state", "an older leader's"])
async def test_a_leader_puts_back_what_the_servers_lost(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Although nothing changed since: the next leader, whose directory is empty, finds who is barred."""
    monkeypatch.setattr(vault_module, "SAVE_EVERY_S", 0.01)
    monkeypatch.setattr(vault_module, "READ_AGAIN_S", 0.01)
    first, second = replicas(tmp_path)
    vault, store = Vault(connection, first), KeyValue(connection, BUCKET)
    if left == "an older leader's":
        await Vault(connection, first).take(1)
    else:
        await vault.take(2)
    old = await store.get(HEAD)
    if left == "an older leader's":
        await vault.take(2)
    write_private(first.root / STANDING, b'{"barred": ["desk"]}')
    await vault.save()
    await api(connection, f"STREAM.PURGE.{STREAM}")
    if left != "nothing":
        assert old is not None
        await store.put(HEAD, old.value)
    async with anyio.create_task_group() as group:
        group.start_soon(vault.run)
        await put_back(connection, vault)
        group.cancel_scope.cancel()
    await Vault(connection, second).take(3)
    assert (second.root / STANDING).read_bytes() == b'{"barred": ["desk"]}'


async def test_a_leader_looks_as_soon_as_the_servers_are_back(tmp_path: Path) -> None:
    """A real one that lost its last seconds in a power cut, as it is started again."""
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path / "server", port=free_ports(1)[0])
    connection = await Connection.open(server.url, name="control")
    try:
        await ensure_bucket(connection, 1)
        data, _ = replicas(tmp_path)
        vault = Vault(connection, data)
        await vault.take(1)
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        write_private(data.root / STANDING, b'{"barred": ["desk"]}')
        await vault.save()
        async with anyio.create_task_group() as group:
            group.start_soon(vault.run)
            await anyio.wait_all_tasks_blocked()
            server.kill()
            shutil.rmtree(tmp_path / "store")
            shutil.copytree(tmp_path / "copy", tmp_path / "store")
            await server.restart()
            with anyio.fail_after(60):
                while not connection.connected:
                    await anyio.sleep(0.01)
            await put_back(connection, vault)
            group.cancel_scope.cancel()
    finally:
        await connection.close()
        await server.stop()


async def test_a_later_leader_s_state_is_never_put_back(connection: Connection, tmp_path: Path) -> None:
    """Nor one that an earlier leader saved in its last moment: it has to be read first."""
    first, second = replicas(tmp_path)
    before, after = Vault(connection, first), Vault(connection, second)
    await before.take(1)
    read, late = after._read, False

    async def overtaken() -> object:
        nonlocal late
        found = await read()
        if not late:
            late = True
            write_private(first.root / STANDING, b'{"barred": ["desk"]}')
            await before.save()
        return found

    after._read = overtaken  # type: ignore[method-assign,assignment]
    with pytest.raises(Deposed):
        await after.take(2)
    await Vault(connection, second).take(3)
    assert (second.root / STANDING).read_bytes() == b'{"barred": ["desk"]}'


# --- replicas that wait ----------------------------------------------------------------------------------------------


async def test_a_state_that_is_not_whole_is_waited_for(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lags has no part yet: the next look finds it."""
    monkeypatch.setattr(vault_module, "READ_AGAIN_S", 0.0)
    first, second = replicas(tmp_path)
    write_private(first.root / STANDING, b"1")
    vault, copy = Vault(connection, first), Vault(connection, second)
    await vault.take(1)
    (name,) = await parts(connection)
    part = await KeyValue(connection, BUCKET).get(f"part.{name}.0")
    assert part is not None
    await api(connection, f"STREAM.PURGE.{STREAM}", {"filter": f"$KV.{BUCKET}.part.>"})
    with pytest.raises(Unavailable):
        await copy.follow()
    await KeyValue(connection, BUCKET).put(f"part.{name}.0", part.value)
    assert await copy.follow()
    assert (second.root / STANDING).read_bytes() == b"1"


async def test_a_full_disk_ends_no_replica_that_waits(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its copy as soon as there is room."""
    first, second = replicas(tmp_path)
    write_private(first.root / STANDING, b"1")
    await Vault(connection, first).take(1)
    copy, options = Vault(connection, second), ReplicaOptions(data=second.root, nats_url="", replica="cp-2")

    def full(_root: Path, _files: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(vault_module, "write_state", full)
        await run_module._follow(copy, options, second)
    assert read_state(second.root) == {}
    await run_module._follow(copy, options, second)
    assert read_state(second.root) == read_state(first.root)


async def test_a_mesh_without_a_tenant_says_nothing_in_its_mesh_file(connection: Connection, tmp_path: Path) -> None:
    """Whoever reads `mesh.json` finds all that is in it ready: it is not there before the first bundle."""
    first, second = replicas(tmp_path)
    write_private(first.root / STANDING, b"1")
    await Vault(connection, first).take(1)
    options = ReplicaOptions(data=second.root, nats_url="", replica="cp-2")
    await run_module._follow(Vault(connection, second), options, second)
    assert (second.root / STANDING).exists()
    assert not second.mesh_file.exists()
