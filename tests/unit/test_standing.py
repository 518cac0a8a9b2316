"""Who is barred and which users are revoked: kept in a file, and never guessed."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.control import standing as module
from mesh.control import trust_upkeep
from mesh.control.datadir import write_private
from mesh.control.standing import NOBODY, Standing
from mesh.errors import ConfigError, Unavailable

USER, OTHER = "U" + "A" * 55, "U" + "B" * 55


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where it is kept; nothing is there yet."""
    return tmp_path / "standing" / "acme.json"


def test_nobody_is_barred_at_first(file: Path) -> None:
    """Without a file everybody is in good standing, and none is written."""
    standing = Standing(file)
    assert (standing.barred, dict(standing.users)) == (frozenset(), {})
    assert not file.exists()


def test_a_barred_workload_stays_barred_until_it_is_admitted(file: Path) -> None:
    """Across restarts; the others are not touched."""
    Standing(file).bar("crm-adapter")
    Standing(file).bar("team-support")
    assert Standing(file).barred == {"crm-adapter", "team-support"}
    Standing(file).admit("crm-adapter")
    assert Standing(file).barred == {"team-support"}
    Standing(file).admit("crm-adapter")  # again changes nothing
    assert Standing(file).barred == {"team-support"}


def test_a_revoked_user_stays_revoked(file: Path) -> None:
    """Also when its workload is admitted again; of two times the later counts, as it refuses more."""
    standing = Standing(file)
    standing.bar("crm-adapter")
    standing.revoke_user("crm-adapter", USER, 2000)
    standing.revoke_user("crm-adapter", USER, 1000)
    standing.revoke_user("crm-adapter", OTHER, 3000)
    standing.admit("crm-adapter")
    again = Standing(file)
    assert {name: dict(users) for name, users in again.users.items()} == {"crm-adapter": {USER: 2000, OTHER: 3000}}
    assert again.barred == frozenset()


def test_a_replaced_user_is_good_until_it_is_revoked(file: Path) -> None:
    """When that is to be stays known across restarts; revoked, it is as any other, and nothing is due any more."""
    standing = Standing(file)
    standing.end_user("crm-adapter", USER, 2000)
    standing.end_user("crm-adapter", OTHER, 3000)
    again = Standing(file)
    assert {name: dict(users) for name, users in again.ending.items()} == {"crm-adapter": {USER: 2000, OTHER: 3000}}
    assert dict(again.users) == {}
    again.revoke_user("crm-adapter", USER, 2100)
    again.keep_user("crm-adapter", OTHER)
    again = Standing(file)
    assert dict(again.ending) == {}
    assert dict(again.users["crm-adapter"]) == {USER: 2100}


class Upkeep:
    """A renewal of which one user ends, once, and accounts that take no refresh at first."""

    def __init__(self) -> None:
        self.due, self.tries, self.refreshed = ["crm-adapter"], 0, anyio.Event()

    def end(self, _: float) -> list[str]:
        """Revoked, and told once."""
        due, self.due = self.due, []
        return due

    async def refresh(self, workload: str) -> None:
        """NATS is away at first."""
        assert workload == "crm-adapter"
        self.tries += 1
        if self.tries == 1:
            raise Unavailable("away")
        self.refreshed.set()


@pytest.mark.anyio
async def test_a_user_whose_time_is_over_is_cut_off_however_long_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What NATS did not take at once is tried again, though the user is no longer among those that are due."""
    monkeypatch.setattr(trust_upkeep, "USERS_EVERY_S", 0.01)
    upkeep: Any = Upkeep()
    async with anyio.create_task_group() as group:
        group.start_soon(trust_upkeep.end_users, upkeep, upkeep)
        with anyio.fail_after(60):
            await upkeep.refreshed.wait()
        group.cancel_scope.cancel()
    assert upkeep.tries == 2


def test_the_file_of_whom_no_overlap_concerns_is_as_it_was(file: Path) -> None:
    """A version before reads it: one can go back."""
    Standing(file).end_user("crm-adapter", USER, 2000)
    Standing(file).revoke_user("crm-adapter", USER, 2000)
    assert json.loads(file.read_bytes()).keys() == {"barred", "users"}


def test_a_new_tenant_has_the_file_from_its_first_start_on(file: Path) -> None:
    """Empty as it is: the next start tells nobody barred from a file that was lost. One that is there stays."""
    Standing(file).begin(is_new=True)
    assert json.loads(file.read_bytes()) == json.loads(NOBODY)
    Standing(file).bar("crm-adapter")
    for is_new in (True, False):
        standing = Standing(file)
        standing.begin(is_new=is_new)
        assert standing.barred == Standing(file).barred == {"crm-adapter"}


def test_a_lost_file_is_not_nobody(file: Path) -> None:
    """It would let every barred workload back; what the error says to write into it is taken."""
    with pytest.raises(ConfigError, match="is missing") as refused:
        Standing(file).begin(is_new=False)
    assert not file.exists()
    assert NOBODY in refused.value.next
    file.parent.mkdir()
    file.write_text(NOBODY)
    standing = Standing(file)
    standing.begin(is_new=False)
    assert (standing.barred, dict(standing.users)) == (frozenset(), {})


def test_the_file_is_private(file: Path) -> None:
    """It says whom the mesh distrusts; nobody else reads or writes it."""
    Standing(file).bar("crm-adapter")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"barred": "x"}', b'{"barred": [], "more": 1}', b"\xff"])
def test_a_damaged_file_is_no_file(file: Path, content: bytes) -> None:
    """A start that cannot read who is barred does not happen: it would let everybody in."""
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="who is barred"):
        Standing(file)


def test_a_change_that_cannot_be_saved_is_none(file: Path) -> None:
    """What is not on disk would be forgotten at the next start, so nobody is told that it is so."""
    file.parent.write_text("in the way")
    with pytest.raises(ConfigError):
        Standing(file)
    file.parent.unlink()
    standing = Standing(file)
    standing.bar("crm-adapter")
    file.unlink()
    file.mkdir()
    (file / "x").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        standing.bar("desk")
    with pytest.raises(ConfigError):
        standing.revoke_user("desk", USER, 1)
    assert standing.barred == {"crm-adapter"}
    assert dict(standing.users) == {}


Change = Callable[[Standing], None]
TWO_CHANGES: list[tuple[Change, Change]] = [
    (lambda s: s.bar("crm-adapter"), lambda s: s.bar("desk")),
    (lambda s: s.bar("crm-adapter"), lambda s: s.admit("lake")),
    (lambda s: s.bar("crm-adapter"), lambda s: s.revoke_user("lake", USER, 1)),
    (lambda s: s.revoke_user("lake", USER, 1), lambda s: s.revoke_user("lake", OTHER, 1)),
]


@pytest.mark.parametrize("changes", TWO_CHANGES)
def test_two_changes_at_once_are_both_made(
    file: Path, changes: tuple[Change, Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered in threads: a bar that the other change writes over would let a thief go on."""
    started, together = Standing(file), threading.Barrier(2)
    one_by_one = Standing(file.with_name("other.json"))
    for standing in (started, one_by_one):
        standing.bar("lake")
    for change in changes:
        change(one_by_one)

    def write(path: Path, content: bytes) -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # until both have begun to write, where nothing keeps them from it
        write_private(path, content)

    monkeypatch.setattr(module, "write_private", write)
    with ThreadPoolExecutor(2) as threads:
        for made in [threads.submit(change, started) for change in changes]:
            made.result()
    for standing in (started, Standing(file)):
        assert (standing.barred, dict(standing.users)) == (one_by_one.barred, dict(one_by_one.users))
