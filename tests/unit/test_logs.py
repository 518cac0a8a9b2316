"""What an operator reads, and what never gets into it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mesh import logs
from mesh.errors import BadSignature
from tests.conftest import ROOT

SECRET = "anna@mail.example.com"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Where the lines of one test go."""
    stream = io.StringIO()
    before = {name: logging.getLogger(name).level for name in (None, "mesh")}
    yield stream
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logs._Handler)]:
        root.removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def _lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_off_a_terminal_each_event_is_one_json_line(out: io.StringIO) -> None:
    """Time, level, service, log, event and the fields, one object a line."""
    logs.setup("agent", stream=out)
    logs.get("feed").info("event_rejected", code="bad-signature", id="e-1", sequence=7)
    (line,) = _lines(out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "service": "agent",
        "log": "feed",
        "event": "event_rejected",
        "code": "bad-signature",
        "id": "e-1",
        "sequence": 7,
    }


def test_on_a_terminal_the_line_is_short(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person gets time, level, log, event and `name=value`, coloured unless NO_COLOR is set."""
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    logs.setup("agent", stream=out)
    logs.get("feed").warning("stream_full", stream="EV_local_crm")
    assert "\x1b[33mwarning" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    logs.setup("agent", stream=out)
    logs.get("feed").warning("stream_full", stream="EV_local_crm")
    assert re.fullmatch(r"[\d:.]{12} warning feed stream_full stream=EV_local_crm", out.getvalue().splitlines()[-1])


@pytest.mark.parametrize("json", [True, False])
def test_no_field_breaks_the_line(out: io.StringIO, json: bool) -> None:
    """Line breaks, escapes and lone surrogates in a field neither start a line nor reach a terminal."""
    logs.setup("agent", json=json, stream=out)
    logs.get("feed").info("x_happened", subject="a\nb\x1b[31m\x00\u2028\ud800")
    assert out.getvalue().count("\n") == 1
    assert not set("\x1b\x00\u2028\ud800") & set(out.getvalue())


def test_fields_are_short_and_bytes_are_only_counted(out: io.StringIO) -> None:
    """A payload handed in by mistake does not get into the log whole."""
    logs.setup("agent", stream=out)
    logs.get("feed").info("x_happened", body=SECRET.encode(), text="x" * 10_000)
    (line,) = _lines(out)
    assert line["body"] == f"<{len(SECRET)} bytes>"
    assert len(line["text"]) == logs.MAX_TEXT + 1


def test_fields_cannot_pose_as_the_line_s_own(out: io.StringIO) -> None:
    """A field called `level` does not change what the line says of itself."""
    logs.setup("agent", stream=out)
    logs.get("feed").error("x_happened", level="debug", service="other", time="never")
    (line,) = _lines(out)
    assert (line["level"], line["service"]) == ("error", "agent")
    assert line["time"] != "never"


def _fail(error: Exception) -> None:
    raise error


def test_foreign_exception_is_named_but_not_quoted(out: io.StringIO) -> None:
    """An exception that is not ours shows its type and place; its text may hold an event's values."""
    logs.setup("agent", stream=out)
    for error in (ValueError(SECRET), BadSignature("the proof does not fit", expected="a", got="b")):
        try:
            _fail(error)
        except (ValueError, BadSignature) as caught:
            logs.get("feed").exception("handler_failed", caught, id="e-1")
    foreign, ours = _lines(out)
    assert SECRET not in out.getvalue()
    assert foreign["error"] == "ValueError"
    assert foreign["raised_at"].startswith("test_logs.py:")
    assert (ours["code"], ours["message"]) == ("bad-signature", "the proof does not fit")


def test_library_records_keep_their_arguments_to_themselves(out: io.StringIO) -> None:
    """Of another library's line only the unformatted first line is written, and nothing below a warning."""
    logs.setup("agent", stream=out)
    library = logging.getLogger("some.library")
    library.info("connected to %s", SECRET)
    try:
        _fail(KeyError(SECRET))
    except KeyError:
        library.exception("cannot handle %s\nmessage: %s", SECRET, SECRET)
    (line,) = _lines(out)
    assert SECRET not in out.getvalue()
    assert (line["event"], line["log"]) == ("library_log", "some.library")
    assert (line["text"], line["error"]) == ("cannot handle %s", "KeyError")


def test_without_set_up_the_last_resort_says_it_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who uses the library and sets up no logging reads the fields as well, in one line; below a warning nothing."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = logs.get("x")
    log.error("nats_refused", reason="account-closed", next="`mesh trust list`\nshows 100% of them", body=b"secret")
    log.info("x_happened")
    assert capsys.readouterr().err == (
        "nats_refused reason=account-closed next=`mesh trust list`�shows 100% of them body=<6 bytes>\n"
    )


def test_setup_twice_writes_each_line_once(out: io.StringIO) -> None:
    """A second set-up replaces the first."""
    logs.setup("agent", stream=out)
    logs.setup("control", stream=out)
    logs.get("feed").info("x_happened")
    assert [line["service"] for line in _lines(out)] == ["control"]


def test_a_stream_that_fails_stops_nobody(out: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """A closed stream costs the line, not the caller, and the record does not appear elsewhere in another form."""
    logs.setup("agent", stream=out)
    out.close()
    logs.get("feed").info("x_happened", id=SECRET)
    assert capsys.readouterr() == ("", "")


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in [*ROOT.glob("mesh/**/*.py"), *ROOT.glob("agent/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level)) if hasattr(
                    logs.Log, level
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_event_names_are_snake_case_constants() -> None:
    """Every event name in the tree can be searched for: one literal word, in snake_case."""
    bad = []
    for place, call in _calls():
        match call.args[:1]:
            case [ast.Constant(value=str(name))] if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
                continue
        bad.append(place)
    assert not bad, "the first argument of a log call is its event name"
