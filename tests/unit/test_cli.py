"""What commands print and ask without a mesh: tables, how long they wait, and what they say when nothing comes."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from mesh.cli import LazyGroup, operator, output
from mesh.cli.policy.request import READS_S, ask
from mesh.cli.trust import keys
from mesh.cli.trust.options import lets_back
from mesh.context import Context, MeshFile, TenantAddress
from mesh.control.datadir import DataDirectory
from mesh.errors import ConfigError, Disconnected, NotFound, Unavailable

if TYPE_CHECKING:
    from mesh.cli.operator import OperatorConnection

pytestmark = pytest.mark.anyio

KID = "-AAAAAAAA_AAAAAAAAAAAA"


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 60])
def test_a_column_that_is_kept_is_never_broken(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """However long the other cells are, a key id is one word; the others fold and none is cut."""
    out = io.StringIO()
    monkeypatch.setattr(output, "console", Console(width=width, file=out, highlight=False))
    who, state = "spiffe://mesh.local/ns/acme/sa/" + "x" * 40, "revoked from 2026-11-22T08:00:00Z"
    output.print_table(
        "Event keys", ("agent", "key", "until", "state"), [(who, KID, "2026-11-22T08:00:00Z", state)], keep=("key",)
    )
    assert KID in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert sorted(out.getvalue().replace("\n", " ").replace(" ", "")) == sorted(
        f"Event keys agent key until state{who}{KID}2026-11-22T08:00:00Z{state}".replace(" ", "")
    )


# --- asking ----------------------------------------------------------------------------------------------------------


class Silent:
    """A connection on which no answer comes."""

    def __init__(self, error: Unavailable) -> None:
        self._error = error
        self.waited_s = 0.0

    def proof(self, _subject: str, _body: bytes) -> dict[str, str]:
        """The header of a request."""
        return {}

    async def request(self, _subject: str, _data: bytes, *, headers: dict[str, str], timeout_s: float) -> Any:
        """Wait as long as we are told to, in no time."""
        assert headers == {}
        self.waited_s = timeout_s
        raise self._error


async def unanswered(connection: Silent, noun: str, verb: str) -> Unavailable:
    """What a command is told."""
    with pytest.raises(Unavailable) as caught:
        await ask(cast("OperatorConnection", connection), verb, {}, noun=noun)
    return caught.value


@pytest.mark.parametrize(
    ("noun", "verb", "within_s"),
    [
        ("trust", "list", 5),
        ("trust", "show", 5),
        ("trust", "audit", 15),
        ("policy", "status", 5),
        ("policy", "history", 5),
        ("trust", "revoke", 30),
        ("policy", "apply", 30),
    ],
)
async def test_who_looks_waits_for_seconds(noun: str, verb: str, within_s: float) -> None:
    """A control plane that hangs keeps nobody who only looks; and it says how long it was waited for."""
    connection = Silent(Unavailable("no answer", reason="timeout"))
    error = await unanswered(connection, noun, verb)
    assert connection.waited_s == within_s
    assert f"no answer within {within_s} s" in error.message
    assert ("not known" in error.message) == (verb not in READS_S)
    assert error.details["reason"] == "timeout"


@pytest.mark.parametrize(
    ("noun", "verb", "look", "again"),
    [
        ("trust", "revoke", "`mesh trust list`", "asking again is safe"),
        ("trust", "rotate", "`mesh trust list`", "asking again is safe"),
        ("policy", "apply", "`mesh policy status`", "asking again is safe"),
        ("policy", "rollback", "`mesh policy status`", "by its number"),  # without one, twice is two steps back
        ("policy", "shadow-start", "`mesh policy shadow report`", "asking again is safe"),
    ],
)
@pytest.mark.parametrize("lost", [False, True])
async def test_a_change_without_an_answer_may_be_done(
    noun: str, verb: str, look: str, again: str, *, lost: bool
) -> None:
    """Whoever changes something is told that nobody knows, where to look, and whether to ask again."""
    failure = Disconnected("the connection to NATS ended") if lost else Unavailable("no answer", reason="timeout")
    error = await unanswered(Silent(failure), noun, verb)
    assert isinstance(error, Disconnected) == lost
    assert "it is not known whether this was done" in error.message
    assert look in error.next
    assert again in error.next


async def test_nobody_there_is_told_apart_from_nobody_answering() -> None:
    """Without a control plane nothing was done, and that is what is said."""
    error = await unanswered(Silent(Unavailable("nobody", reason="no-responders")), "trust", "revoke")
    assert (error.message, error.next) == ("no control plane runs in this mesh", "start it, then ask again")


# --- the mesh's directory --------------------------------------------------------------------------------------------


def test_a_mesh_is_stopped_where_nobody_holds_its_lock(tmp_path: Path) -> None:
    """Held: it runs. There and not held: it does not. Not there: we cannot tell. And looking holds nothing."""
    data = DataDirectory(tmp_path)
    assert operator._stopped(data) is False
    data.lock_file.touch()
    assert operator._stopped(data) is True
    with data.lock_file.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert operator._stopped(data) is False


@pytest.mark.parametrize(
    ("path", "made", "next_"),
    [
        ("admin/operator.key", "admin", "restart `mesh up`: it writes it again"),
        ("admin/operator.key", ".", "run this where the mesh runs"),
        ("admin", "admin", "look at the file system it lies on"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_helps(tmp_path: Path, path: str, made: str, next_: str) -> None:
    """A secret that is gone comes back with a restart; one on another machine does not."""
    (tmp_path / made).mkdir(exist_ok=True)
    with pytest.raises(ConfigError) as caught:
        operator._read(tmp_path / path)
    assert caught.value.next == next_


def test_a_file_of_somebody_else_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not read it has to be the user who started the mesh."""

    def refused(_file: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)  # tests may run as root, whom nothing is denied
    with pytest.raises(ConfigError) as caught:
        operator._read(tmp_path / "operator.key")
    assert caught.value.next == "run this where the mesh runs, as the user who started it"


@pytest.mark.parametrize(
    ("workload", "line"),
    [
        ("crm-adapter", "`mesh trust admit crm-adapter` lets it back"),
        ("team-support", "`mesh trust admit --team support` lets it back"),
    ],
)
def test_who_is_barred_comes_back_by_a_line_to_copy(workload: str, line: str) -> None:
    """An agent by its name, a team by an option."""
    assert lets_back(workload) == line


def test_an_agent_without_a_key_is_an_agent() -> None:
    """The mesh, a key or who is barred knows it; a team is none."""
    mesh = MeshFile(nats_url="", data="", site="local", tenants={"acme": TenantAddress(agents={}, teams={})})
    place = Context(mesh=mesh, path="", tenant="acme")
    said = {"tenant": "acme", "keys": [{"agent": "desk"}, {"agent": ""}], "barred": ["lake", "team-support"]}
    keys._check_known("lake", said, place)
    keys._check_known("desk", said, place)
    for name in ("team-support", "nobody", ""):
        with pytest.raises(NotFound) as caught:
            keys._check_known(name, said, place)
        assert caught.value.expected == "desk, lake"


def test_a_command_beside_those_of_other_modules_is_kept() -> None:
    """What is written as `@app.command` is not lost among what is imported when it is asked for."""
    app = typer.Typer(cls=LazyGroup)
    app.command("here")(lambda: typer.echo("said"))
    app.callback()(lambda: None)
    assert CliRunner().invoke(app, ["here"]).output == "said\n"
