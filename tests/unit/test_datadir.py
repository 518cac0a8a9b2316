from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mesh.control.datadir import DataDirectory, hex_key, write_if_changed, write_private
from mesh.errors import ConfigError


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, directories are 0700 and files 0600."""
    before = os.umask(0)
    try:
        data = DataDirectory.open(tmp_path / "deep" / "data")
        data.token("desk")
        data.dedupe_key("desk")
        data.domain_key("acme", "person")
        data.cipher_key("acme", "security.random")
    finally:
        os.umask(before)
    found = [path for path in [data.root, *data.root.rglob("*")] if mode(path) != (0o700 if path.is_dir() else 0o600)]
    assert found == []


def test_a_second_open_finds_the_same_secrets(tmp_path: Path) -> None:
    """A restart goes on with its keys."""
    first = DataDirectory.open(tmp_path / "d")
    first.lock_file.touch()  # as every start does first
    first.dedupe_key("desk")
    second = DataDirectory.open(tmp_path / "d")
    assert first.dedupe_key("desk") == second.dedupe_key("desk")
    assert first.token("desk").read_text() == second.token("desk").read_text()
    assert first.dedupe_key("desk") != first.dedupe_key("lake")
    assert len(first.token("desk").read_text().strip()) == 43


def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path) -> None:
    """A new key would quietly make new tokens and message ids."""
    path = tmp_path / "k.key"
    write_private(path, b"not a key")
    with pytest.raises(ConfigError, match="is not a key"):
        hex_key(path)
    assert path.read_bytes() == b"not a key"


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    """Writing the same again does not wake who watches the file."""
    path = tmp_path / "f"
    assert write_if_changed(path, b"a")
    assert not write_if_changed(path, b"a")
    assert write_if_changed(path, b"b")


def test_a_file_cannot_be_the_data_directory(tmp_path: Path) -> None:
    """Misuse is a clear error."""
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="cannot be the data directory"):
        DataDirectory.open(tmp_path / "f")


def test_an_empty_directory_of_ours_may_be_used(tmp_path: Path) -> None:
    """Somebody made it, private and empty: it is taken as it is."""
    (tmp_path / "d").mkdir(mode=0o700)
    assert DataDirectory.open(tmp_path / "d").root == tmp_path / "d"


@pytest.mark.parametrize("permissions", [0o750, 0o701, 0o720, 0o755])
def test_a_directory_open_to_others_is_refused_and_left_as_it_is(tmp_path: Path, permissions: int) -> None:
    """We change no directory that we did not make, and put no key where others may look, even where a mesh ran."""
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(permissions)
    (path / "mesh.lock").touch()
    with pytest.raises(ConfigError, match="open to other users") as refused:
        DataDirectory.open(path)
    assert "chmod 700" in refused.value.next
    assert mode(path) == permissions


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """A mistaken `--data ~` neither mixes keys into somebody's files nor changes a mode; nor does a planted link."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    (path / "letters.txt").touch()
    with pytest.raises(ConfigError, match="is not empty, and no mesh made it"):
        DataDirectory.open(path)
    (path / "mesh.lock").symlink_to(path / "letters.txt")
    with pytest.raises(ConfigError, match="is not empty, and no mesh made it"):
        DataDirectory.open(path)
    assert sorted(file.name for file in path.iterdir()) == ["letters.txt", "mesh.lock"]


def test_parents_that_were_there_keep_their_mode(tmp_path: Path) -> None:
    """Only what is made is made private."""
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(0o755)
    data = DataDirectory.open(parent / "deep" / "data")
    write_private(parent / "beside", b"")
    assert [mode(path) for path in (parent, parent / "deep", data.root)] == [0o755, 0o700, 0o700]
