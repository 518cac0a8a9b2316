"""A file is replaced whole, by its owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mesh.files import replace_file


def test_a_file_is_replaced_and_private(tmp_path: Path) -> None:
    """The new content is there under mode 0600, whatever the umask and the mode before; nothing else is left."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        replace_file(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of it: the content before is there, whole, and no half of the new one."""
    path = tmp_path / "key"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mesh.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
