"""`mesh dlq`: what the commands ask, page by page, and how fast they send."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from mesh.cli import dlq, dlq_pages, output
from mesh.cli.dlq_sending import Sending, send
from mesh.cli.dlq_shown import show_letter
from mesh.errors import ConfigError, StreamUnavailable


class Door:
    """Answers with pages, and remembers what it was asked and how long was waited between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pages: dict[str, Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.slept: list[float] = []
        self._pages = list(pages)
        monkeypatch.setattr(dlq_pages, "ask", self._ask)
        monkeypatch.setattr(anyio, "sleep", self._sleep)
        monkeypatch.setattr(anyio, "current_time", lambda: sum(self.slept))

    async def _ask(self, _connection: object, verb: str, body: dict[str, Any], *, noun: str) -> dict[str, Any]:
        assert (verb, noun) == ("redrive", "dlq")
        self.asked.append(body)
        if not self._pages:
            raise StreamUnavailable("REDRIVE did not take a letter", next="ask again")
        return {"refused": [], "last": 250, **self._pages.pop(0)}

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def page(first: int, count: int, following: int) -> dict[str, Any]:
    """A page of letters that were sent."""
    return {"sent": list(range(first, first + count)), "next": following}


@pytest.mark.anyio
async def test_a_rate_is_kept_over_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 a second: after each page as long as its letters take; nothing is waited for after the last."""
    door = Door(monkeypatch, page(1, 50, 50), page(51, 50, 100), page(101, 20, 0))
    sending = Sending()
    await send(None, {"dry_run": False}, 50.0, sending)  # type: ignore[arg-type]  # the door is ours
    assert (len(sending.sent), sending.refused, sending.last) == (120, [], 250)
    assert door.slept == [1.0, 1.0]
    assert [(body["after"], body["last"], body["limit"]) for body in door.asked] == [
        (0, 0, 50),
        (50, 250, 50),
        (100, 250, 50),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("rate", "limit"), [(0.5, 1), (1.0, 1), (99.9, 99), (5000.0, 100)])
async def test_a_request_sends_at_most_a_second_s_worth(
    monkeypatch: pytest.MonkeyPatch, rate: float, limit: int
) -> None:
    """And never more than the door takes at once."""
    door = Door(monkeypatch, page(1, 1, 1), page(2, 1, 0))
    await send(None, {"dry_run": False}, rate, Sending())  # type: ignore[arg-type]  # the door is ours
    assert door.asked[0]["limit"] == limit
    assert door.slept == [1 / rate]


@pytest.mark.anyio
async def test_a_dry_run_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, so nothing has to be slow."""
    door = Door(monkeypatch, page(1, 100, 100), page(101, 1, 0))
    await send(None, {"dry_run": True}, 100.0, Sending())  # type: ignore[arg-type]  # the door is ours
    assert door.slept == []


# --- an error midway -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def nowhere(*_: object, **__: object) -> AsyncIterator[tuple[None, None]]:
    """No mesh: the door is ours."""
    yield None, None


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_midway_says_what_was_sent_before(monkeypatch: pytest.MonkeyPatch, *, as_json: bool) -> None:
    """Its run and how many letters: without them nobody could tell what is under way."""
    monkeypatch.setattr(dlq, "operator_connection", nowhere)
    monkeypatch.setattr("secrets.token_hex", lambda *_: "run-1")
    monkeypatch.setattr(output.errors, "width", 200)
    Door(monkeypatch, page(1, 3, 3))
    done = CliRunner().invoke(dlq.app, ["redrive", "--all", *(["--json"] if as_json else [])])
    assert done.exit_code == output.NO
    if as_json:
        told = json.loads(done.stdout)
        assert (told["error"]["code"], told["run"], told["sent"]) == ("stream-unavailable", "run-1", 3)
    else:
        assert "3 letters sent back before that, in run run-1" in done.stderr


# --- files -----------------------------------------------------------------------------------------------------------


def write(file: Path, error: Exception | None = None, *, meanwhile: bytes = b"") -> None:
    """Write letters; it breaks off with *error*, or somebody makes a file of that name meanwhile."""
    with dlq._new_file(file) as output:
        output.write(b"letters")
        assert not file.exists()
        if meanwhile:
            file.write_bytes(meanwhile)
        if error is not None:
            raise error


def test_an_export_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    """What broke off leaves nothing, and nothing that is there is written over."""
    file = tmp_path / "letters"
    with pytest.raises(StreamUnavailable):
        write(file, StreamUnavailable("gone"))
    assert list(tmp_path.iterdir()) == []
    write(file)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"letters", 0o600)
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ConfigError):
        write(file)
    other = tmp_path / "other"
    with pytest.raises(ConfigError):
        write(other, meanwhile=b"somebody else's")
    assert other.read_bytes() == b"somebody else's"
    assert sorted(tmp_path.iterdir()) == [file, other]


# --- what a writer says ----------------------------------------------------------------------------------------------


def test_a_letter_of_no_time_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Its moments are the writer's word."""
    record = {
        "first_ms": 10**16, "first_error": "a", "last_ms": 10**16, "last_error": "b", "event": {"id": "1"},
        "history": [{"at_ms": 10**16, "error": "c"}],
    }  # fmt: skip
    show_letter({
        "letter": 1, "team": "support", "subscription": "contacts", "at_ms": 1, "reason": "r", "type": "", "run": "",
        "record": record,
    })  # fmt: skip
    said = capsys.readouterr().out
    assert "a (?)" in said
    assert "1 ?" in said


@pytest.mark.parametrize("rows", [[], [("x",)]])
def test_a_title_is_no_markup(capsys: pytest.CaptureFixture[str], rows: list[tuple[str]]) -> None:
    """A source may be named like a tag."""
    output.print_table("/crm/[/x]", ("a column as wide as the title",), rows)
    assert "/crm/[/x]" in capsys.readouterr().out
