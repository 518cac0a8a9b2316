"""The walk in `policies/README.md`, run as it stands there: the edits, the commands, and what they print."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from mesh.cli import app
from mesh.cli.output import console
from tests.journey.meshes import mesh_up

pytestmark = pytest.mark.timeout(300)  # a mesh of its own, and twenty commands one after the other

SECTION = "## A change from beginning to end"
OMITTED = "..."
ASK_STATUS = "echo exit $?"  # after a command that does not end with 0
COMMAND_S = 60
SETTLE_S = 20  # for reports and records that were sent and are not stored yet
REPORTS = ("mesh policy shadow report", "mesh policy status", "mesh audit")
WIDTH = 110  # the README's
AUTHOR = "ines"

# What is another one each time: time stamps, digests, instances, and how long something took or was ago.
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b"), "<hex>"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|m)\b"), "<span>"),
)


class Block(NamedTuple):
    """One fenced block of the walk."""

    language: str
    text: str


def blocks(root: Path) -> list[Block]:
    """The walk's blocks, in order."""
    text = (root / "policies" / "README.md").read_text().partition(SECTION)[2]
    return [Block(*found) for found in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)]


def edit(directory: Path, text: str) -> None:
    """Make the change of a `diff` block: a file's name after `+++`, then old and new lines with some around them."""
    head, *lines = text.splitlines()
    file = directory / head.removeprefix("+++ ")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    before = file.read_text() if file.exists() else ""
    assert before.count(old) == 1 or not before, f"{head}: not there, or there twice"
    file.write_text(before.replace(old, new) if before else new)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a `console` block, and the lines it is said to print."""
    command, shown = "", list[str]()
    for is_command, lines in groupby(text.splitlines(), key=lambda line: line.startswith("$ ")):
        if not is_command:
            shown = list(lines)
            yield command, shown
            command = ""
            continue
        for line in lines:
            if command:
                yield command, []
            command = line.removeprefix("$ ")
    if command:
        yield command, []


def plain(lines: list[str]) -> list[str]:
    """*lines* without what changes: columns are as wide as what is in them."""
    found = []
    for text in lines:
        for pattern, instead in CHANGING:
            text = pattern.sub(instead, text)  # noqa: PLW2901 - one after the other
        found.append(" ".join(text.split()))
    return [text for text in found if text]


def same(shown: list[str], printed: list[str]) -> bool:
    """Whether *printed* is what is *shown*, where `...` stands for any lines."""
    parts = [re.escape(line) + "\n" if line != OMITTED else "(.*\n)*?" for line in shown]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in printed)) is not None


def run(command: str, environment: dict[str, str]) -> list[str]:
    """What *command* prints. `mesh` runs in this process: the same code, without the second that Python takes to start.

    Anything else is a process of its own.
    """
    words, _, after = command.partition("; ")
    name, *arguments = shlex.split(words)
    if name != "mesh":
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert name == "python", command
        return (done.stdout + done.stderr).splitlines()
    with ThreadPoolExecutor(1) as thread:  # the command has an event loop of its own
        result = thread.submit(CliRunner().invoke, app, arguments, env=environment).result()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert after in {"", ASK_STATUS}, command
    assert after or result.exit_code == 0, f"{command}: {result.exit_code}"
    return [*result.output.splitlines(), *([f"exit {result.exit_code}"] if after else [])]


def settled(command: str, shown: list[str], environment: dict[str, str]) -> list[str]:
    """What *command* prints; one that asks about agents is asked again while their answer is on its way."""
    until = time.monotonic() + SETTLE_S
    while True:
        printed = run(command, environment)
        asks = command.startswith(REPORTS)
        if not asks or same(plain(shown), plain(printed)) or time.monotonic() > until:
            return printed


@pytest.fixture
def walked(
    tmp_path_factory: pytest.TempPathFactory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[str], list[str]]]:
    """Every command of the walk, what is shown of it, and what it printed in a directory and a mesh of its own."""
    directory = tmp_path_factory.mktemp("walk")
    shutil.copytree(root / "policies", directory / "policies")
    found = []
    monkeypatch.setattr(console, "width", WIDTH)
    with mesh_up(directory, directory / "policies") as mesh, chdir(directory):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")} | {
            "LOGNAME": AUTHOR,
            "NO_COLOR": "1",
            "MESH_CONTEXT": str(mesh.data),
        }
        for block in blocks(root):
            if block.language == "diff":
                edit(directory, block.text)
                continue
            found += [(command, shown, settled(command, shown, environment)) for command, shown in commands(block.text)]
    return found


def test_every_command_prints_what_the_walk_shows(walked: list[tuple[str, list[str], list[str]]]) -> None:
    """From a new field to the rollback, each command prints what `policies/README.md` says, and ends as it says."""
    different = [
        f"$ {command}\n" + "\n".join(plain(printed))
        for command, shown, printed in walked
        if not same(plain(shown), plain(printed))
    ]
    assert not different, "\n\n".join(different)


def test_the_walk_goes_through_every_tool(walked: list[tuple[str, list[str], list[str]]]) -> None:
    """The walk shows each of the commands that a change goes through."""
    used = {word for command, _, _ in walked for word in re.findall(r"mesh policy ([a-z-]+)", command)}
    tools = {"lint", "test", "explain", "who-can-see", "diff", "shadow", "apply", "status", "history", "rollback"}
    assert used >= tools
