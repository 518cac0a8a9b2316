"""The examples' scripts, run as the pods run them, against a door with the answers of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from tests.k8s.rendering import DEPLOY

TOKEN = "t" * 43
PATIENCE_S = 30
CONTACT = {"id": "4711", "version": 7, "email": "jo@example.com"}
CLOSED = 0  # in the place of a status: the connection closes, and nothing was answered
EVENT = {"specversion": "1.0", "id": "c-1", "type": "crm.contact.updated.v1", "source": "/crm", "data": {}}


class Door(ThreadingHTTPServer):
    """Answers as *answers* says, and remembers what came.

    Attributes:
        seen: (method, path, token, content type, body) of each request.
        changed: Told of each.
    """

    daemon_threads = True

    def __init__(self, answers: Callable[[str, str, int], tuple[int, object]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.seen: list[tuple[str, str, str, str, Any]] = []
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def wait_for(self, count: int, path: str) -> list[Any]:
        """The bodies of the first *count* requests below *path*, once they are there."""

        def bodies() -> list[Any]:
            return [body for _, at, _, _, body in self.seen if at.startswith(path)]

        with self.changed:
            assert self.changed.wait_for(lambda: len(bodies()) >= count, PATIENCE_S), self.seen
            return bodies()[:count]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        door = cast("Door", self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "")
        with door.changed:
            count = len([1 for _, path, *_ in door.seen if path == self.path])
            kind = self.headers.get("Content-Type", "")
            door.seen.append((self.command, self.path, token, kind, json.loads(body) if body else None))
            door.changed.notify_all()
        status, said = door.answers(self.command, self.path, count)
        if status == CLOSED:
            return
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not said."""


@contextmanager
def _door(answers: Callable[[str, str, int], tuple[int, object]]) -> Iterator[Door]:
    with Door(answers) as door:
        thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield door
        finally:
            door.shutdown()
            thread.join()


@contextmanager
def _running(script: str, tmp_path: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    environment = {"PATH": os.environ["PATH"], "AGENT_TOKEN_FILE": str(token), **variables}
    command = [sys.executable, "-I", str(DEPLOY / "examples" / script)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _ended(process: subprocess.Popen[str]) -> str:
    """What it printed, once SIGTERM ended it."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("first", [202, 503, 429, CLOSED])
def test_adapter_posts_until_it_is_durable(tmp_path: Path, first: int) -> None:
    """Each contact once where it is taken, again where it is not durable now; then it ends on SIGTERM."""

    def answers(method: str, path: str, count: int) -> tuple[int, object]:
        if path == "/crm":
            return 200, [CONTACT, CONTACT | {"version": 8}]
        return (first, {"code": "spool-full"}) if count == 0 else (202, {"durable": "stream"})

    with (
        _door(answers) as door,
        _running("adapter/adapter.py", tmp_path, AGENT_URL=door.url, CRM_URL=f"{door.url}/crm") as process,
    ):
        expected = ["4711-7", "4711-8"] if first == 202 else ["4711-7", "4711-7", "4711-8"]
        posted = door.wait_for(len(expected), "/v1/events")
        assert [event["id"] for event in posted] == expected
        _, _, token, kind, event = next(one for one in door.seen if one[1] == "/v1/events")
        assert (token, kind) == (f"Bearer {TOKEN}", "application/cloudevents+json")
        assert event["data"] == {"contact": CONTACT}
        _ended(process)


def test_adapter_leaves_what_is_refused_for_good(tmp_path: Path) -> None:
    """A policy that says no is no reason to stand still."""

    def answers(method: str, path: str, count: int) -> tuple[int, object]:
        if path == "/crm":
            return 200, [CONTACT, CONTACT | {"version": 8}]
        return (403, {"code": "denied"}) if count == 0 else (502, b"<html>")

    with (
        _door(answers) as door,
        _running("adapter/adapter.py", tmp_path, AGENT_URL=door.url, CRM_URL=f"{door.url}/crm") as process,
    ):
        assert [event["id"] for event in door.wait_for(2, "/v1/events")] == ["4711-7", "4711-8"]
        _ended(process)


def test_consumer_settles_each_event(tmp_path: Path) -> None:
    """What it handled is acked by its lease; what it cannot read becomes a dead letter."""
    base = "/v1/subscriptions/contacts"

    def answers(method: str, path: str, count: int) -> tuple[int, object]:
        if method == "POST":
            return 200, {"results": []}
        if count:
            return 200, {"events": []}
        return 200, {"events": [{"lease": "one", "event": EVENT}, {"lease": "two", "event": {"id": "no-type"}}]}

    with (
        _door(answers) as door,
        _running("consumer/consumer.py", tmp_path, AGENT_URL=door.url, SUBSCRIPTION="contacts") as process,
    ):
        assert door.wait_for(1, f"{base}/ack") == [{"leases": ["one"]}]
        assert door.wait_for(1, f"{base}/reject") == [{"leases": ["two"], "reason": "KeyError"}]
        assert "handled crm.contact.updated.v1 c-1" in _ended(process)


@pytest.mark.parametrize("first", [(503, {"code": "no-bundle"}), (200, b"<html>"), (CLOSED, None)])
def test_consumer_bears_an_agent_that_is_not_there_yet(tmp_path: Path, first: tuple[int, object]) -> None:
    """It asks again, and goes on once there is an answer."""

    def answers(method: str, path: str, count: int) -> tuple[int, object]:
        return first if count == 0 else (200, {"events": []})

    with (
        _door(answers) as door,
        _running("consumer/consumer.py", tmp_path, AGENT_URL=door.url, SUBSCRIPTION="contacts") as process,
    ):
        door.wait_for(2, "/v1/subscriptions/contacts/events")
        _ended(process)


# Runs an example's `main` again and again in one process, against answers that come at once, and sends it SIGTERM at
# its next line each time, or the next of `threading`. Then once more, while it waits, from another thread: such a
# signal cuts no wait short, like one that comes between the last look and the wait.
MOMENTS = """
import faulthandler, importlib.util, io, itertools, json, signal, sys, threading, urllib.request
from urllib.error import URLError

LONG_S = 3600.0
answers = json.loads(sys.argv[2])

def run(signals, wait_s):
    spec = importlib.util.spec_from_file_location("example", sys.argv[1])
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.EVERY_S = example.AGAIN_S = wait_s
    asked = []

    def urlopen(request, timeout):
        answer = answers[len(asked) % len(answers)]
        asked.append(request)
        if answer is None:
            raise URLError("none")
        return io.BytesIO(json.dumps(answer).encode())

    example.urlopen = urlopen
    faulthandler.dump_traceback_later(20, exit=True)
    signals()
    example.main()
    sys.settrace(None)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return len(asked)

def at_line(number):
    lines = itertools.count()

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in (sys.argv[1], threading.__file__):
            return None
        if event == "line" and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL and next(lines) == number:
            signal.raise_signal(signal.SIGTERM)
        return trace

    sys.settrace(trace)

def from_a_thread():
    def when_it_waits():
        main, before = threading.main_thread().ident, None
        while (at := str(sys._current_frames()[main])) != before or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            before = at
            threading.Event().wait(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=when_it_waits, daemon=True).start()

number = 0
while run(lambda: at_line(number), 0.0) <= 2 * len(answers):
    number += 1
run(from_a_thread, LONG_S)
print(f"ended at {number} moments")
"""


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ("adapter/adapter.py", [[CONTACT], None, {}]),
        ("consumer/consumer.py", [{"events": [{"lease": "a", "event": EVENT}, {"lease": "b", "event": {}}]}, {}, None]),
    ],
)
def test_examples_end_whenever_sigterm_comes(tmp_path: Path, script: str, answers: list[object]) -> None:
    """Whatever they do just then, and whether or not it cuts a wait short."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    variables = {"AGENT_URL": "http://a", "CRM_URL": "http://c", "SUBSCRIPTION": "s", "AGENT_TOKEN_FILE": str(token)}
    command = [sys.executable, "-I", "-c", MOMENTS, str(DEPLOY / "examples" / script), json.dumps(answers)]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4_000:]
    assert int(run.stdout.split()[-2]) > 40
