"""The door's Unix socket is never open wider than it is meant to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.listener import SOCKET_MODE, bind_unix


def test_a_socket_has_its_mode_from_its_first_moment(tmp_path: Path) -> None:
    """Whatever the umask, nobody but owner and group could ever connect; the umask is as before."""
    before = os.umask(0)
    try:
        with bind_unix(str(tmp_path / "door")) as bound:
            assert stat.S_IMODE(Path(bound.getsockname()).stat().st_mode) == SOCKET_MODE
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_a_taken_path_is_refused(tmp_path: Path) -> None:
    """A file that is there stays as it is."""
    path = tmp_path / "door"
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        bind_unix(str(path))
    assert path.read_text() == "mine"
