"""The processes that tests start quickly are the ones they would start slowly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks

COMMANDS = [["mesh", "--version"], ["mesh", "bogus"], ["agent", "run", "--config", "agent.toml"]]


def started(command: list[str], directory: Path) -> tuple[forks.Popen, tuple[int, bytes, bytes]]:
    """The process, and how it ended."""
    process = forks.Popen(
        [sys.executable, "-m", *command], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=60)
    return process, (process.returncode, out, err)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_forked_program_does_what_the_whole_one_does(command: list[str], tmp_path: Path) -> None:
    """It prints the same and ends with the same status, and only one of the two was forked."""
    quick, ended = started(command, tmp_path)
    with forks.whole():
        slow, expected = started(command, tmp_path)
    assert (quick.forked, slow.forked) == (True, False)
    assert ended == expected


def test_a_program_of_the_same_name_is_not_mistaken(tmp_path: Path) -> None:
    """Where the directory has a program of that name, it is that one which runs."""
    (tmp_path / "mesh.py").write_text("print('another')")
    assert started(["mesh"], tmp_path)[1] == (0, b"another\n", b"")


def test_a_forked_program_is_our_child() -> None:
    """It is ours from its first moment until we have waited for it, as every child is."""
    process = forks.Popen([sys.executable, "-m", "mesh", "--version"], stdout=subprocess.DEVNULL)
    about = Path(f"/proc/{process.pid}")
    assert process.forked
    assert int((about / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    assert process.wait(timeout=60) == 0
    assert not about.exists()
