"""`mesh control` on the command line: what it makes, and what it says where it cannot run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh.cli import app
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.nats_config import plain_config
from mesh.control.nats_server import NatsServer
from mesh.control.run_status import adopt_keys, check_keys
from mesh.control.vault_files import KEY_FILES

MISUSE = 2

cli = CliRunner()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory that `init` made."""
    path = tmp_path / "mesh"
    assert cli.invoke(app, ["control", "init", "--data", str(path)]).exit_code == 0
    return path


def test_init_makes_the_key_files_once(data: Path) -> None:
    """A second time changes nothing, and `--json` names them."""
    before = {name: (data / name).read_bytes() for name in (*KEY_FILES, "nats/operator.conf")}
    said = cli.invoke(app, ["control", "init", "--data", str(data), "--json"])
    assert json.loads(said.stdout)["key_files"] == list(KEY_FILES)
    assert {name: (data / name).read_bytes() for name in before} == before
    assert {(data / name).stat().st_mode & 0o777 for name in before} == {0o600}


@pytest.mark.anyio
async def test_a_server_starts_with_what_init_made(data: Path, tmp_path: Path) -> None:
    """Beside its own listeners and store."""
    part = (data / "nats" / "operator.conf").read_text().replace('"accounts"', json.dumps(str(tmp_path / "accounts")))
    server = await NatsServer.start(plain_config(tmp_path / "store") + part, tmp_path / "server")
    await server.stop()


@pytest.mark.parametrize("missing", ["admin/state.key", "nats/keys/_control.account.nk"])
def test_a_directory_without_the_mesh_s_keys_is_no_replica_s(data: Path, missing: str) -> None:
    """It would make keys of its own."""
    (data / missing).unlink()
    said = cli.invoke(app, ["control", "run", "--data", str(data), "--nats-url", "nats://127.0.0.1:1", "--json"])
    assert said.exit_code == MISUSE
    assert missing in json.loads(said.stdout)["error"]["got"]
    assert not (data / missing).exists()


def test_key_files_that_lie_elsewhere_are_taken_into_the_data_directory(data: Path, tmp_path: Path) -> None:
    """As private as all the rest there, and nothing else of what lies beside them."""
    mine = DataDirectory.open(tmp_path / "mine")
    adopt_keys(mine, data)
    check_keys(mine)
    assert {path.relative_to(mine.root).as_posix() for path in mine.root.rglob("*") if path.is_file()} == set(KEY_FILES)
    assert {(mine.root / name).stat().st_mode & 0o777 for name in KEY_FILES} == {0o600}


def test_no_copy_is_made_of_the_key_that_may_be_taken_away(data: Path, tmp_path: Path) -> None:
    """It goes from a replica with the file that was mounted, and comes back with it; a replica's own stays."""
    mine = DataDirectory.open(tmp_path / "mine")
    ours, theirs = mine.root / "admin/root.key", data / "admin/root.key"
    content = theirs.read_bytes()
    write_private(ours, b"a copy of an earlier version")
    for _ in range(2):
        adopt_keys(mine, data)
        assert ours.read_bytes() == content
    theirs.unlink()
    assert not ours.exists()
    adopt_keys(mine, data)
    check_keys(mine)
    assert not ours.exists()
    theirs.write_bytes(content)
    assert ours.read_bytes() == content

    adopt_keys(DataDirectory(data), data)
    assert not theirs.is_symlink()
    other = DataDirectory.open(tmp_path / "other")
    write_private(other.root / "admin/root.key", b"the only one")
    theirs.unlink()
    adopt_keys(other, data)
    assert (other.root / "admin/root.key").read_bytes() == b"the only one"


def test_options_that_do_not_fit_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything starts."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    run = ["control", "run", "--data", str(data), "--nats-url", "nats://127.0.0.1:1"]
    for more in (["--attest", "hope"], ["--attest", "kubernetes"], ["--tls-ca", "ca.crt"], ["--replica", "a b"]):
        assert cli.invoke(app, [*run, *more]).exit_code == MISUSE
    shutil.rmtree(data)
    assert cli.invoke(app, run).exit_code == MISUSE
