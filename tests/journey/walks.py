"""A walk in a README, run as it stands there: the edits, the commands, and what they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from mesh.cli import app

OMITTED = "..."
ASK_STATUS = "echo exit $?"  # after a command that does not end with 0
COMMAND_S = 60
SETTLE_S = 60  # for reports and records that were sent and are not stored yet
# Of what is on its way.
REPORTS = ("mesh policy shadow report", "mesh policy status", "mesh audit", "mesh dlq list", "mesh trust audit")
WIDTH = 110  # the README's
AUTHOR = "ines"

# What is another one each time: time stamps, key ids, digests, instances, how long something took or was ago, and how
# many records there are: each minute an agent says how far it has counted.
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"(?<![\w-])[\w-]{22}(?![\w-])"), "<key>"),
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "<hex>"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|m)\b"), "<span>"),
    (re.compile(r"\b\d+ records( by \d+ writers?)?"), "<records>"),
)
COUNTED = " sequence-mark "


class Step(NamedTuple):
    """One command of a walk, what is shown of it, and what it printed."""

    command: str
    shown: list[str]
    printed: list[str]


class Block(NamedTuple):
    """One fenced block of the walk."""

    language: str
    text: str


def blocks(readme: Path, section: str) -> list[Block]:
    """The blocks of the walk below the heading *section*, in order."""
    text = readme.read_text().partition(section)[2]
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
    for text in (line for line in lines if COUNTED not in line):
        for pattern, instead in CHANGING:
            text = pattern.sub(instead, text)  # noqa: PLW2901 - one after the other
        found.append(" ".join(text.split()))
    return [text for text in found if text]


def same(shown: list[str], printed: list[str]) -> bool:
    """Whether *printed* is what is *shown*, where `...` stands for any lines."""
    parts = [re.escape(line) + "\n" if line != OMITTED else "(.*\n)*?" for line in shown]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in printed)) is not None


class Failed(AssertionError):
    """A command that was to succeed did not."""


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
    if not after and result.exit_code:
        raise Failed(f"{command}: {result.exit_code}\n{result.output}")
    return [*result.output.splitlines(), *([f"exit {result.exit_code}"] if after else [])]


def settled(command: str, shown: list[str], environment: dict[str, str]) -> list[str]:
    """What *command* prints; one that asks about agents is asked again while their answer is on its way."""
    until = time.monotonic() + SETTLE_S
    asks = command.startswith(REPORTS)
    while True:
        try:
            printed = run(command, environment)
        except Failed:
            if not asks or time.monotonic() > until:
                raise
            continue
        if not asks or same(plain(shown), plain(printed)) or time.monotonic() > until:
            return printed


def walk(blocks: list[Block], directory: Path, data: Path) -> list[Step]:
    """Do what the *blocks* say, in *directory* and with the mesh below *data*."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")} | {
        "LOGNAME": AUTHOR,
        "NO_COLOR": "1",
        "MESH_CONTEXT": str(data),
    }
    found = []
    for block in blocks:
        if block.language == "diff":
            edit(directory, block.text)
            continue
        found += [Step(command, shown, settled(command, shown, environment)) for command, shown in commands(block.text)]
    return found


def different(steps: list[Step]) -> str:
    """What each command printed that did not print what is shown; empty where all did."""
    return "\n\n".join(
        f"$ {step.command}\n" + "\n".join(plain(step.printed))
        for step in steps
        if not same(plain(step.shown), plain(step.printed))
    )
