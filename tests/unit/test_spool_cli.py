"""`mesh-agent spool inspect | export`: what a stopped agent's spool holds, and who may see how much of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.spool.database import Database, Row
from agent.spool.record import Copy
from mesh.errors import ConfigError, SpoolDamaged

MIB = 1024 * 1024
SECRET = "ada@example.org"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A stopped agent's directory: two copies that wait, one refused."""
    (tmp_path / "agent.toml").write_text('name = "crm-adapter"\ntenant = "acme"\n')
    body = json.dumps({"id": "e", "data": {"email": SECRET}}).encode()
    copy = Copy("ev.local.clear.s00.crm.deal.won.v1", "/crm", "e", None, body)
    database = opened(tmp_path)
    database.begin()
    database.append([Row(n, "EV_local_crm", 1_700_000_000_000 + n, copy) for n in (1, 2, 3)])
    database.refuse([Row(2, "EV_local_crm", 1_700_000_000_002, copy)], "no-reader", 1_700_000_009_000)
    database.commit()
    database.close()
    return tmp_path


def opened(directory: Path) -> Database:
    """As the agent has it."""
    return Database(directory / "spool.db", directory / "spool.key", max_bytes=MIB)


def run(base: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and what was said."""
    result = CliRunner().invoke(app, ["spool", *arguments, "--config", str(base / "agent.toml")])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_inspect_counts_and_names_and_shows_no_value(base: Path) -> None:
    """Copies by stream, the refused ones with their reason; twice the same, so looking changes nothing."""
    for _ in range(2):
        status, text = run(base, "inspect")
        assert status == 0
        assert "EV_local_crm  2 copies" in text
        assert "refused  no-reader  crm.deal.won.v1  /crm  e  view clear" in text
        assert SECRET not in text
    status, text = run(base, "inspect", "--json")
    found = json.loads(text)
    assert found["streams"]["EV_local_crm"]["copies"] == 2
    assert (found["refused_copies"], found["damaged"]) == (1, 0)
    assert found["refused"][0]["reason"] == "no-reader"
    assert SECRET not in text


def test_export_writes_everything_for_its_owner_alone(base: Path) -> None:
    """JSON lines, decrypted, 0600; a file that is there stays; the spool is as it was."""
    out = base / "out.jsonl"
    status, text = run(base, "export", str(out))
    assert (status, "decrypted" in text) == (0, True)
    assert out.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["table"], line["id"], line["event"]["data"]["email"]) for line in lines] == [
        ("copies", 1, SECRET),
        ("copies", 3, SECRET),
        ("refused", 2, SECRET),
    ]
    with pytest.raises(ConfigError, match="cannot be made"):
        run(base, "export", str(out))
    assert "2 copies" in run(base, "inspect")[1]


def test_refused_copies_may_be_discarded_once_they_are_exported(base: Path) -> None:
    """And only those: what waits goes on waiting."""
    assert run(base, "export", str(base / "out.jsonl"), "--discard-refused")[0] == 0
    found = json.loads(run(base, "inspect", "--json")[1])
    assert (found["refused_copies"], found["streams"]["EV_local_crm"]["copies"]) == (0, 2)


def test_a_running_agent_is_left_alone(base: Path) -> None:
    """Both say that another process has the spool."""
    database = opened(base)
    try:
        for arguments in (["inspect"], ["export", str(base / "out.jsonl")]):
            with pytest.raises(ConfigError, match="another process"):
                run(base, *arguments)
    finally:
        database.close()
    assert not (base / "out.jsonl").exists()


def test_without_its_key_nobody_reads_it(base: Path) -> None:
    """The error says what to restore."""
    (base / "spool.key").unlink()
    with pytest.raises(SpoolDamaged) as refused:
        run(base, "inspect")
    assert "restore the key file" in refused.value.next


def test_what_can_be_read_of_a_damaged_spool_is(base: Path) -> None:
    """Exit status 1 and how many rows cannot be read; the others are written."""
    content = bytearray((base / "spool.db").read_bytes())
    at = content.index(b"EV_local_crm") + 40  # within a sealed row, not in SQLite's own structure
    content[at] ^= 1
    (base / "spool.db").write_bytes(bytes(content))
    assert run(base, "inspect")[0] == 1
    status, text = run(base, "export", str(base / "out.jsonl"))
    assert (status, "1 rows cannot be read" in text) == (1, True)
    assert len((base / "out.jsonl").read_text().splitlines()) == 2


def test_a_damaged_log_is_not_called_sound(base: Path) -> None:
    """What it lost nobody can count: both say so, exit with 1, and say what to move and keep."""
    database = opened(base)
    for n in range(10, 20):
        database.begin()
        database.append([Row(n, "EV_local_crm", 1, Copy("ev.l.v.s00.a.b.v1", "/a", "e", None, b"{}".ljust(3000)))])
        database.commit()
    log = bytearray((base / "spool.db-wal").read_bytes())
    database.close()
    log[len(log) // 2] ^= 1
    (base / "spool.db-wal").write_bytes(log)
    for arguments in (["inspect"], ["export", str(base / "out.jsonl")]):
        status, text = run(base, *arguments)
        assert status == 1
        assert "spool.db-wal is damaged" in text
        assert "spool_key_file" in text
        assert "rows cannot be read" not in text
    status, text = run(base, "inspect", "--json")
    assert (status, json.loads(text)["damaged"]) == (1, 1)
    assert (base / "spool.db-wal").read_bytes() == log


def test_there_may_be_none(tmp_path: Path) -> None:
    """No spool yet, or none wanted: said so."""
    (tmp_path / "agent.toml").write_text('name = "a"\ntenant = "acme"\n')
    with pytest.raises(ConfigError, match="no spool at"):
        run(tmp_path, "inspect")
    (tmp_path / "agent.toml").write_text('name = "a"\ntenant = "acme"\nspool_file = ""\n')
    with pytest.raises(ConfigError, match="no spool"):
        run(tmp_path, "inspect")
    assert [file.name for file in tmp_path.iterdir()] == ["agent.toml"]
