"""The agent as a process: how it starts, says where it is, drains on SIGTERM, and what it weighs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh import native
from mesh.control.agents import AgentProcess
from mesh.errors import ConfigError
from tests.contract.agent_mesh import PATIENT, Http, Streams, event, read_answer, until, write_directory
from tests.forks import whole

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
MAX_REST_MB = 70  # design, section 11
START_S = 60  # for a process that starts or ends, on a busy machine


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


class Running:
    """A `mesh-agent run` process."""

    def __init__(self, base: Path, process: asyncio.subprocess.Process) -> None:
        self.base = base
        self.process = process

    @classmethod
    async def start(cls, base: Path, nats_url: str, **settings: object) -> Running:
        """Start it; it may not be ready yet."""
        environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run", "--config", str(base / "agent.toml")),
            env={**os.environ, "MESH_AGENT_NATS_URL": nats_url, **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        return cls(base, process)

    @property
    def ports_file(self) -> Path:
        """Where it says that it is ready."""
        return self.base / "ports.json"

    async def ready(self) -> Http:
        """Wait for `ports.json`."""
        await until(self.ports_file.exists, timeout_s=START_S)
        ports = json.loads(self.ports_file.read_text())
        assert ports["pid"] == self.process.pid
        assert sorted(ports) == ["health_url", "pid", "url", "webhooks_url"]
        return Http(ports["url"], (self.base / "token").read_text().strip())

    async def end(self, *signals: signal.Signals) -> tuple[int, list[dict[str, object]]]:
        """Send *signals* and wait; the exit status and the log."""
        for number in signals:
            self.process.send_signal(number)
        async with asyncio.timeout(START_S):
            _, stderr = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in stderr.decode().splitlines()]

    async def kill(self) -> None:
        """Whatever state it is in."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()


async def test_a_process_says_where_it_is_and_drains_on_sigterm(streams: Streams, tmp_path: Path) -> None:
    """`ports.json` names the bound addresses once ready; SIGTERM ends it with 0, and the file is gone."""
    running = await Running.start(write_directory(tmp_path), streams.server.url)
    try:
        http = await running.ready()
        assert running.ports_file.stat().st_mode & 0o777 == 0o600
        assert (await http.post(event())).status == 202
        status, log = await running.end(signal.SIGTERM)
    finally:
        await running.kill()
    names = [line["event"] for line in log]
    assert status == 0, log
    assert (log[0]["event"], log[0]["native"]) == ("starting", native.compiled is not None)
    assert [name for name in names if name in {"ready", "draining", "drained"}] == ["ready", "draining", "drained"]
    assert not running.ports_file.exists()
    assert http.token not in json.dumps(log)
    assert "ada@" not in json.dumps(log)


async def test_what_was_accepted_is_finished_before_the_end(streams: Streams, tmp_path: Path) -> None:
    """Requests in progress at SIGTERM are answered, and each event with a 202 is stored."""
    running = await Running.start(write_directory(tmp_path), streams.server.url, **PATIENT)
    try:
        http = await running.ready()
        before = await streams.stored()
        batches = [[event() for _ in range(500)] for _ in range(4)]
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        posts = [asyncio.create_task(http.post(batch, headers=headers)) for batch in batches]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        ended = asyncio.create_task(running.end(signal.SIGTERM))
        answers = await asyncio.gather(*posts, return_exceptions=True)
        status, log = await ended
    finally:
        await running.kill()
    accepted = sum(a.json["accepted"] for a in answers if not isinstance(a, BaseException) and a.status == 202)
    assert status == 0, log
    assert accepted >= 500
    assert await streams.stored() == before + 2 * accepted


async def test_a_second_signal_ends_it_at_once(streams: Streams, tmp_path: Path) -> None:
    """With a request that never ends, the first SIGTERM waits and the second does not."""
    running = await Running.start(write_directory(tmp_path), streams.server.url, drain_s=60, body_timeout_s=60)
    try:
        http = await running.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        head = f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\nAuthorization: Bearer {http.token}\r\n"
        writer.write(f"{head}Content-Type: application/cloudevents+json\r\nExpect: 100-continue\r\n".encode())
        writer.write(b"Content-Length: 9\r\n\r\n{")
        assert (await read_answer(reader)).status == 100
        running.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return (await http.post(event())).status == 503

        await until(draining)
        status, log = await running.end(signal.SIGTERM)
        writer.close()
    finally:
        await running.kill()
    assert status == 130
    assert "drain_aborted" in [line["event"] for line in log]


def _listening(path: Path) -> bool:
    """Whether somebody takes connections there: a socket is in its place a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def test_it_starts_without_nats_and_goes_on_trying(tmp_path: Path) -> None:
    """With no server the process is up, alive and not ready; nothing is written about readiness."""
    base = write_directory(tmp_path)
    running = await Running.start(base, "nats://127.0.0.1:9", http_socket=str(tmp_path / "s"))
    try:
        await until(lambda: _listening(tmp_path / "s"), timeout_s=START_S)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        token = (base / "token").read_text().strip()
        writer.write(f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        answer = await read_answer(reader)
        writer.close()
        assert (answer.status, answer.json["code"]) == (503, "nats-unreachable")
        assert not running.ports_file.exists()
        status, _ = await running.end(signal.SIGTERM)
        assert status == 0
    finally:
        await running.kill()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("event.crt", "event.key"), "identity"),
        (("dedupe.key", "token"), "dedupe.key is not a key"),
        (("token", None), "token cannot be read"),
        (("hook.secret", ""), "hook.secret is too short"),
    ],
)
async def test_a_wrong_file_ends_the_start_with_what_to_do(
    tmp_path: Path, change: tuple[str, str | None], says: str
) -> None:
    """A missing or wrong file of ours ends the process with 2 and a sentence that names it, never its content."""
    base = write_directory(tmp_path)
    name, source = change
    if source is None:
        (base / name).unlink()
    else:
        (base / name).write_bytes((base / source).read_bytes() if source else b"short\n")
    running = await Running.start(base, "nats://127.0.0.1:9")
    _, stderr = await running.process.communicate()
    assert running.process.returncode == 2
    assert says in stderr.decode()
    assert (base / "hook.next").read_text().strip() not in stderr.decode()


async def test_a_token_that_is_missing_says_who_writes_one(tmp_path: Path) -> None:
    """What the control plane hands out is not made by looking at a setting: the next step names what writes it."""
    base = write_directory(tmp_path)
    settings = (base / "agent.toml").read_text().replace('"event.key"', '""').replace('"event.crt"', '""')
    (base / "agent.toml").write_text(settings)
    (base / "enrol.token").unlink()
    running = await Running.start(base, "nats://127.0.0.1:9")
    _, stderr = await running.process.communicate()
    assert running.process.returncode == 2
    assert "enrol.token cannot be read: No such file" in stderr.decode()
    assert "`mesh up`" in stderr.decode()
    assert "`mesh trust admit AGENT`" in stderr.decode()


NOT_STARTED = '{"event":"not_started","code":"bad-config"}'


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise ExceptionGroup('both', [ValueError('one'), OSError('no such door')])", "OSError: no such door"),
        ("raise ExceptionGroup('all', [ExceptionGroup('in', [KeyError('x')])])", "KeyError: 'x'"),
        (f"print({NOT_STARTED!r}); sys.exit('  next: check it')", NOT_STARTED),
        ("sys.exit('mesh-agent: no name in agent.toml\\n  next: add it there')", "mesh-agent: no name in agent.toml"),
        (r"sys.exit('killed by hand\n ----')", "killed by hand"),
        ("sys.exit(1)", "nothing in its log"),
    ],
)
async def test_what_an_agent_said_last_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    """Where an agent ends at its start, `got` is its last event or error: no frame, nothing of an earlier run."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").touch()
    (tmp_path / "agent" / "__main__.py").write_text(f"import sys\n{program}\n")
    monkeypatch.chdir(tmp_path)  # where `python -m agent` looks first

    async def nothing() -> None:
        """Nobody has to be told."""

    file = tmp_path / "log" / "desk.log"
    file.parent.mkdir()
    file.write_text('{"event":"drained"}\n')
    process = AgentProcess("desk", tmp_path, log_file=file, settings={}, ready=nothing, ended=nothing)
    with pytest.raises(ConfigError) as failed:
        await process.start()
    assert failed.value.got == says


async def test_it_is_light(streams: Streams, tmp_path: Path) -> None:
    """At rest the process takes no more than the design allows, and never loads the command line library."""
    with whole():
        running = await Running.start(write_directory(tmp_path), streams.server.url)
    try:
        http = await running.ready()
        assert (await http.post(event())).status == 202
        pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1])
        maps = Path(f"/proc/{running.process.pid}/maps").read_text()
        await running.end(signal.SIGTERM)
    finally:
        await running.kill()
    assert pages * os.sysconf("SC_PAGE_SIZE") / 1e6 <= MAX_REST_MB
    assert "pydantic" not in maps


async def test_config_shows_values_and_origins_and_no_secret(tmp_path: Path) -> None:
    """`mesh-agent config` prints every value with where it came from, and file names for secrets."""
    base = write_directory(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "config", "-c", str(base / "agent.toml"), "--json"),
        env={**os.environ, "MESH_AGENT_DRAIN_S": "25"},
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    stdout, _ = await process.communicate()
    shown = json.loads(stdout)
    assert shown["drain_s"] == {"value": 25.0, "unit": "s", "origin": "MESH_AGENT_DRAIN_S"}
    assert shown["name"]["origin"] == "agent.toml"
    assert shown["webhooks"]["value"]["main"]["secret_files"] == ["hook.secret", "hook.next"]
    assert (base / "hook.secret").read_text().strip() not in stdout.decode()
