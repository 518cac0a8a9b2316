"""Listing and watching, against bytes that a real API server sent (`tests/tables/kubernetes/watch`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.errors import ApiServerRefused, ConfigError, MeshError, NotFound, RequestFailed, Unavailable, VersionExpired
from mesh.kubernetes import api as api_module
from mesh.kubernetes import watch as module
from mesh.kubernetes.api import Answer, Api
from mesh.kubernetes.watch import FAILED, Watch
from tests.conftest import ROOT
from tests.kube_server import Script, tls

pytestmark = pytest.mark.anyio

RECORDED = ROOT / "tests/tables/kubernetes"
PATH = "/apis/mesh.dev/v1alpha1/namespaces/shop/meshpolicies"


def stream(name: str) -> tuple[int, bytes]:
    """A recorded watch, byte for byte."""
    return 200, (RECORDED / f"watch/{name}.jsonl").read_bytes()


def answer(name: str) -> tuple[int, bytes]:
    """A recorded answer."""
    said = json.loads((RECORDED / f"{name}.json").read_text())["response"]
    return said["status"], json.dumps(said["body"]).encode()


def listed(version: str, *names: str) -> tuple[int, bytes]:
    """A list of the recorded shape with other objects in it."""
    body = json.loads(answer("watch/list")[1])
    body["metadata"]["resourceVersion"] = version
    body["items"] = [{"metadata": {"namespace": "shop", "name": name, "resourceVersion": "1"}} for name in names]
    return 200, json.dumps(body).encode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)


@asynccontextmanager
async def following(directory: Path, *answers: tuple[int, bytes]) -> AsyncIterator[tuple[Watch, Script]]:
    """A watch that is given *answers* in turn."""
    script = Script(list(answers))
    async with tls(directory, script.app()) as api, anyio.create_task_group() as group:
        watch = Watch(api, PATH, lambda: script.seen.append(names(watch)))
        group.start_soon(watch.run)
        yield watch, script
        group.cancel_scope.cancel()


async def until(done: Callable[[], bool]) -> None:
    """Wait for *done*."""
    with anyio.fail_after(60):
        while not done():
            await anyio.sleep(0.005)


def names(watch: Watch) -> list[str]:
    """The objects it knows."""
    return sorted(name.partition("/")[2] for name in watch.objects)


async def test_a_list_and_the_changes_after_it(tmp_path: Path) -> None:
    """Each event counts, and the next watch goes on from the last version."""
    async with following(tmp_path, listed("501", "a", "b"), stream("watch_added_modified_status_deleted_bookmark")) as (
        watch,
        script,
    ):
        await until(lambda: len(script.asked) == 3)
        assert names(watch) == ["a", "b"]  # `incident-routing` came, changed, and went
        assert script.asked[1]["resourceVersion"] == "501"
        assert script.asked[1]["allowWatchBookmarks"] == "true"
        assert script.asked[2]["resourceVersion"] == "512"  # of the bookmark


async def test_each_change_is_seen_as_it_was_sent(tmp_path: Path) -> None:
    """Spec, then status; what is kept is what the server last said."""
    seen: list[dict[str, Any]] = []
    script = Script([listed("501"), stream("watch_added_modified_status_deleted_bookmark")])
    async with tls(tmp_path, script.app()) as api, anyio.create_task_group() as group:
        watch = Watch(api, PATH, lambda: seen.append(dict(watch.objects)))
        group.start_soon(watch.run)
        await until(lambda: len(script.asked) == 3)
        group.cancel_scope.cancel()
    steps = [known.get("shop/incident-routing") for known in seen]
    assert [None if one is None else one["metadata"]["generation"] for one in steps] == [None, 1, 2, 2, None]
    assert ["status" in one for one in steps if one is not None] == [False, False, True]
    assert not any("managedFields" in one["metadata"] for one in steps if one is not None)


async def test_a_list_in_pages_counts_whole(tmp_path: Path) -> None:
    """With the kind that only the list says."""
    page = json.loads(answer("watch/list_page_1")[1])
    rest = json.loads(listed("601", "z")[1])
    pages = [(200, json.dumps(part).encode()) for part in (page, rest)]
    async with following(tmp_path, *pages) as (watch, script):
        await until(lambda: len(script.asked) == 3)
        assert names(watch) == ["a", "z"]
        assert script.asked[1]["continue"] == page["metadata"]["continue"]
        assert script.asked[2]["resourceVersion"] == "601"
        assert {one["kind"] for one in watch.objects.values()} == {"MeshPolicy"}


@pytest.mark.parametrize("expired", ["watch_410_too_old_for_watch_cache", "watch_410_after_etcd_compaction"])
async def test_a_version_that_is_forgotten_means_a_new_list(tmp_path: Path, expired: str) -> None:
    """What is known stays until the new list is whole, and then what went meanwhile is gone."""
    async with following(tmp_path, listed("1", "a", "b"), stream(expired), listed("700", "b", "c")) as (watch, script):
        await until(lambda: len(script.asked) == 4)
        assert "watch" not in script.asked[2]
        assert script.asked[3]["resourceVersion"] == "700"
        assert script.seen == [["a", "b"], ["b", "c"]]
        assert names(watch) == ["b", "c"]


async def test_a_version_that_the_server_never_had_means_a_new_list(tmp_path: Path) -> None:
    """A cluster that was restored from a backup counts on from an older version."""
    never = answer("watch/list_future_resource_version")
    async with following(tmp_path, listed("900", "a"), never, never, listed("7", "b")) as (watch, script):
        await until(lambda: len(script.asked) == 5)
        assert [asked.get("resourceVersion") for asked in script.asked] == [None, "900", "900", None, "7"]
        assert names(watch) == ["b"]


async def test_a_page_that_is_forgotten_leaves_what_was_known(tmp_path: Path) -> None:
    """Half a list would take rights away: it is read again from its first page."""
    answers = answer("watch/list_page_1"), answer("watch/list_410_continue_expired"), listed("9", "q")
    async with following(tmp_path, *answers) as (watch, script):
        await until(lambda: watch.synced)
        assert script.seen == [["q"]]
        assert "continue" not in script.asked[2]


@pytest.mark.parametrize(
    "refused", ["errors/rbac_forbidden_list", "errors/unauthorized", "watch/list_future_resource_version"]
)
async def test_a_refusal_is_counted_and_asked_again(tmp_path: Path, refused: str) -> None:
    """A right that is granted later, or a server that catches up, is enough: nobody restarts anything."""
    before = FAILED.value(path=PATH)
    async with following(tmp_path, answer(refused), answer(refused), listed("5", "a")) as (watch, _):
        await until(lambda: watch.synced)
        assert names(watch) == ["a"]
    assert FAILED.value(path=PATH) == before + 2


async def test_a_stream_that_breaks_goes_on_after_what_came(tmp_path: Path) -> None:
    """Cut within a line: the events before it counted."""
    status, body = stream("watch_added_modified_status_deleted_bookmark")
    first = body.index(b"\n") + 1
    async with following(tmp_path, listed("501"), (status, body[: first + 40])) as (watch, script):
        await until(lambda: len(script.asked) == 3)
        assert names(watch) == ["incident-routing"]
        assert script.asked[2]["resourceVersion"] == "506"


@pytest.mark.parametrize("line", [b"{}\n", b"not json\n", b"\xff\n", b'{"type":"ADDED","object":{"metadata":{}}}\n'])
async def test_a_line_that_is_no_event_changes_nothing(tmp_path: Path, line: bytes) -> None:
    """The watch begins again where it was."""
    async with following(tmp_path, listed("501", "a"), (200, line)) as (watch, script):
        await until(lambda: len(script.asked) == 3)
        assert (names(watch), script.asked[2]["resourceVersion"]) == (["a"], "501")


async def test_a_line_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers in the API server's place fills no memory."""
    monkeypatch.setattr(api_module, "MAX_LINE_BYTES", 1000)
    before = FAILED.value(path=PATH)
    async with following(tmp_path, listed("501", "a"), (200, b"x" * 200_000)) as (_, script):
        await until(lambda: len(script.asked) == 3)
    assert FAILED.value(path=PATH) == before + 1


async def test_a_watch_that_is_refused_says_so(tmp_path: Path) -> None:
    """The right to list is not the right to watch."""
    before = FAILED.value(path=PATH)
    async with following(tmp_path, listed("5", "a"), answer("errors/rbac_forbidden_watch")) as (watch, script):
        await until(lambda: len(script.asked) == 3)
        assert names(watch) == ["a"]
    assert FAILED.value(path=PATH) == before + 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestFailed), (401, ApiServerRefused), (403, ApiServerRefused), (404, NotFound), (409, RequestFailed),
        (410, VersionExpired), (422, RequestFailed), (429, Unavailable), (500, Unavailable), (302, Unavailable),
    ],
)  # fmt: skip
def test_a_status_is_an_error_of_ours(status: int, error: type[MeshError]) -> None:
    """With what the server said, cut short."""
    said = json.dumps({"kind": "Status", "message": "no " * 400}).encode()
    with pytest.raises(error) as raised:
        Answer(status, said).require()
    assert f"HTTP {status}: no no" in raised.value.got
    assert len(raised.value.got) < 400


def test_outside_a_cluster_there_is_no_api_server() -> None:
    """And inside, its address is found, also where it is IPv6."""
    with pytest.raises(ConfigError, match="no API server"):
        Api.in_cluster({})
    for host, url in (("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        assert Api.in_cluster({"KUBERNETES_SERVICE_HOST": host})._url == url
