"""One resource of the API server, listed and then watched: `objects` is what it has, a little late.

    list      page by page; only the whole list replaces what is known
    watch     from the list's version; each event or bookmark moves the version on
    410       the server has forgotten the version: the list is read again, what is known stays until then
    anything else that ends a watch: again from the last version, after a pause that doubles; the second time in a row
              the list is read again: a cluster that was restored may not reach that version for days

Source: Kubernetes, API concepts, "Efficient detection of changes".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mesh import logs
from mesh.errors import MeshError, Unavailable, VersionExpired
from mesh.kubernetes.api import failure
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.kubernetes.api import Api

PAGE = 500  # objects; as kubectl has it
WATCH_S = 240.0  # the server ends a watch then: a connection that died silently is found within that time
SILENCE_S = WATCH_S + 30
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

FAILED = counter(
    "mesh.control.watch_failed", unit="{failure}", watch="rising: policies of the cluster are not followed; see the log"
)

log = logs.get("control")


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: dict[str, Any]


class Watch:
    """Follows one resource.

    Args:
        api: The API server.
        path: Of the resource's list, such as `/api/v1/namespaces`.
        changed: Called after each change of `objects`.

    Attributes:
        objects: By `<namespace>/<name>`, without the record of who owns their fields; never half a list.
        synced: There has been a whole list.
    """

    def __init__(self, api: Api, path: str, changed: Callable[[], None]) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.synced = False
        self._api = api
        self._path = path
        self._changed = changed
        self._pause_s = 0.0
        self._version = ""  # to watch from; empty: the list is read first

    async def run(self) -> None:
        """Follow it until cancelled."""
        FAILED.at(path=self._path)  # from 0: the rise from nothing to 1 is none to Prometheus
        while True:
            try:
                if not self._version:
                    self._version = await self.read()
                await self._watch()
            except VersionExpired as error:
                self._version = ""
                log.info("watch_expired", path=self._path, got=error.got)
            except MeshError as error:
                FAILED.add(path=self._path)
                if self._pause_s:
                    self._version = ""
                log.warning("watch_failed", path=self._path, code=error.code, error=error.message, got=error.got)
            pause_s, self._pause_s = self._pause_s, min(max(self._pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            await anyio.sleep(pause_s)  # the first time at once, and after each watch in which something came

    async def read(self) -> str:
        """Read the whole list; its version.

        Raises:
            MeshError: As `Api.call` and `Answer.require`; what was known before stays.
        """
        found: dict[str, dict[str, Any]] = {}
        params = {"limit": str(PAGE)}
        while True:
            page = (await self._api.call("GET", self._path, params=params)).require()
            try:
                kind, group = str(page.get("kind", "")).removesuffix("List"), page.get("apiVersion", "")
                for item in page["items"]:
                    found[key(item)] = _kept({"apiVersion": group, "kind": kind, **item})
                more, version = page["metadata"].get("continue"), page["metadata"]["resourceVersion"]
            except (KeyError, TypeError, AttributeError) as error:
                raise Unavailable("the API server's answer is no list", got=type(error).__name__) from error
            if not more:
                break
            params = {"limit": str(PAGE), "continue": more}
        if not self.synced or found != self.objects:
            self.objects, self.synced = found, True
            self._changed()
        return str(version)

    async def _watch(self) -> None:
        """Follow until the server ends the watch. What has come counts also where it ends badly."""
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": f"{WATCH_S:.0f}",
        }
        async with aclosing(self._api.lines(self._path, params, timeout_s=SILENCE_S)) as lines:
            async for line in lines:
                self._version = self._take(_event(line))
                self._pause_s = 0.0

    def _take(self, event: _Event) -> str:
        """Take one event; the version it stands for."""
        if event.type == "ERROR":
            raise failure(int(event.object.get("code", 500)), str(event.object.get("message", "")))
        version = str(event.object.get("metadata", {}).get("resourceVersion", ""))
        if not version:
            raise Unavailable("an event of the API server has no version", got=event.type[:32])
        name = key(event.object)
        if event.type in {"ADDED", "MODIFIED"}:
            self.objects[name] = _kept(event.object)
            self._changed()
        elif event.type == "DELETED":
            self.objects.pop(name, None)
            self._changed()
        return version  # of a bookmark, and of what a later server may add, the version counts


def key(item: Mapping[str, Any]) -> str:
    """What an object is known by among those of its resource."""
    metadata = item["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"


def _kept(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "metadata": {k: v for k, v in item["metadata"].items() if k != "managedFields"}}


def _event(line: bytes) -> _Event:
    try:
        return msgspec.json.decode(line, type=_Event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable("a line of the API server is no event", got=f"{len(line)} bytes") from error
