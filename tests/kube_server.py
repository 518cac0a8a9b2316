"""Two stand-ins for a Kubernetes API server, over real TLS: one says what was recorded, one keeps policy objects."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import yaml
from aiohttp import web

from mesh.ca import RootCA
from mesh.control.reconcile import now_ms
from mesh.kubernetes.api import Api
from mesh.kubernetes.names import API_VERSION, GROUP, PLURALS
from tests.conftest import ROOT

KINDS = {plural: kind for kind, plural in PLURALS.items()}
ROLE = next(
    role["rules"]
    for role in yaml.safe_load_all((ROOT / "deploy/k8s/base/roles.yaml").read_text())
    if role["kind"] == "ClusterRole" and role["metadata"]["name"] == "mesh-control-policies"
)


@asynccontextmanager
async def tls(directory: Path, app: web.Application) -> AsyncIterator[Api]:
    """*app* as an API server, whose files lie in *directory*."""
    root = RootCA.create("mesh.local", now_ms=now_ms())
    certificate, key = root.issue_ca(now_ms=now_ms()).issue_tls_server(["127.0.0.1"], now_ms=now_ms())
    for name, content in (("ca.crt", root.cert_pem), ("tls.crt", certificate), ("tls.key", key), ("token", b"ours\n")):
        (directory / name).write_bytes(content)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield Api(url, ca_file=directory / "ca.crt", token_file=directory / "token")
    finally:
        await runner.cleanup()


@dataclass
class Script:
    """Answers calls in turn, with (status, body); after the last one it says nothing more."""

    answers: list[tuple[int, bytes]]
    asked: list[dict[str, str]] = field(default_factory=list)
    seen: list[list[str]] = field(default_factory=list)  # what a client made of the answers, each time it changed

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The next answer."""
        self.asked.append(dict(request.query))
        if not self.answers:
            await anyio.sleep_forever()
        status, body = self.answers.pop(0)
        return web.Response(status=status, body=body, content_type="application/json")

    def app(self) -> web.Application:
        """To be served."""
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self.handle)
        return app


@dataclass
class Cluster:
    """Namespaces and policy objects, with versions, generations, watches and Events."""

    version: int = 500
    stores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    history: dict[str, list[tuple[int, str, dict[str, Any]]]] = field(default_factory=dict)
    forgotten: int = 0  # a watch from before this version gets 410
    events: list[dict[str, Any]] = field(default_factory=list)
    lists: int = 0
    refuse_status: int = 0  # with which status writes of status are answered; 0: they go through
    watching: dict[str, int] = field(default_factory=dict)
    broken: anyio.Event = field(default_factory=anyio.Event)

    # --- what people do ----------------------------------------------------------------------------------------------

    def namespace(self, name: str, **labels: str) -> None:
        """Make a namespace, or label it otherwise; `tenant` stands for `mesh.dev/tenant`."""
        labels = {f"mesh.dev/{key}": value for key, value in labels.items()}
        self._store("namespaces", "ADDED", {"kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def end(self, name: str) -> None:
        """Begin to delete a namespace."""
        found = self.stores["namespaces"][f"/{name}"]
        made = {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-11-22T00:00:00Z"}}
        self._store("namespaces", "MODIFIED", made)

    def apply(self, item: dict[str, Any]) -> None:
        """Create an object, or change it: another spec is another generation."""
        plural, known = PLURALS[item["kind"]], self.get(item)
        before = {} if known is None else known
        generation = before.get("metadata", {}).get("generation", 0) + (before.get("spec") != item["spec"])
        made = {**before, **item, "apiVersion": API_VERSION}
        made["metadata"] = {**item["metadata"], "generation": generation, "uid": f"uid-{item['metadata']['name']}"}
        self._store(plural, "ADDED" if known is None else "MODIFIED", made)

    def delete(self, item: dict[str, Any]) -> None:
        """Delete an object."""
        plural, known = PLURALS[item["kind"]], self.get(item)
        assert known is not None
        self._store(plural, "DELETED", known)
        del self.stores[plural][_key(item)]

    def get(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """An object as it is."""
        return self.stores.get(PLURALS[item["kind"]], {}).get(_key(item))

    def condition(self, item: dict[str, Any], name: str) -> dict[str, Any]:
        """One condition of an object; empty where it has none."""
        found = self.get(item) or {}
        return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == name), {})

    def forget(self) -> None:
        """End every watch, and forget every version there was."""
        self.forgotten = self.version + 1
        self.version += 1
        self.cut()

    def cut(self) -> None:
        """End every watch."""
        self.broken.set()
        self.broken = anyio.Event()

    def _store(self, plural: str, what: str, item: dict[str, Any]) -> None:
        self.version += 1
        made = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        self.stores.setdefault(plural, {})[_key(item)] = made
        self.history.setdefault(plural, []).append((self.version, what, made))

    # --- what a client sees ------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        """To be served."""
        app, root = web.Application(middlewares=[_authorised]), f"/apis/{API_VERSION}"
        app.router.add_get("/api/v1/{plural:namespaces}", self._list)
        app.router.add_get(root + "/{plural}", self._list)
        app.router.add_patch(root + "/namespaces/{namespace}/{plural}/{name}/status", self._status)
        app.router.add_post("/api/v1/namespaces/{namespace}/events", self._event)
        return app

    async def _list(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if "watch" in request.query:
            return await self._watch(request, plural)
        self.lists += 1
        items = sorted(self.stores.get(plural, {}).items())
        start, size = int(request.query.get("continue", "0")), int(request.query["limit"])
        more = str(start + size) if start + size < len(items) else ""
        bare = [{k: v for k, v in item.items() if k not in {"kind", "apiVersion"}} for _, item in items]
        page = {
            "kind": f"{KINDS.get(plural, 'Namespace')}List",
            "apiVersion": API_VERSION if plural in KINDS else "v1",
            "metadata": {"resourceVersion": str(self.version), **({"continue": more} if more else {})},
            "items": bare[start : start + size],
        }
        return web.json_response(page)

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        seen, broken = int(request.query["resourceVersion"]), self.broken
        if seen < self.forgotten:
            expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old: {seen}"}
            await response.write(_line("ERROR", expired))
            return response
        self.watching[plural] = self.watching.get(plural, 0) + 1
        with suppress(ConnectionResetError):  # nobody watches any more
            while not broken.is_set():
                for version, what, item in self.history.get(plural, []):
                    if version > seen:
                        seen = version
                        await response.write(_line(what, item))
                await anyio.sleep(0.01)
        return response

    async def _status(self, request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/merge-patch+json"
        if self.refuse_status:
            return web.json_response({"kind": "Status", "message": "forbidden"}, status=self.refuse_status)
        part = request.match_info
        found = self.stores.get(part["plural"], {}).get(f"{part['namespace']}/{part['name']}")
        if found is None:
            return web.json_response({"kind": "Status", "code": 404, "message": "not found"}, status=404)
        body = await request.json()
        assert set(body) == {"status"}
        merged = {**found, "status": {**found.get("status", {}), **body["status"]}}
        self._store(part["plural"], "MODIFIED", merged)
        return web.json_response(merged)

    async def _event(self, request: web.Request) -> web.StreamResponse:
        self.events.append(await request.json())
        return web.json_response({}, status=201)


@web.middleware
async def _authorised(request: web.Request, handler: Any) -> web.StreamResponse:
    """As RBAC would: what the control plane's role does not say, it may not."""
    part = request.match_info
    resource = part.get("plural", "events") + ("/status" if request.method == "PATCH" else "")
    group = GROUP if part.get("plural") in KINDS else ""
    verb = {"POST": "create", "PATCH": "patch", "GET": "watch" if "watch" in request.query else "list"}[request.method]
    for rule in ROLE:
        if verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"]:
            return await handler(request)  # type: ignore[no-any-return]
    return web.json_response({"kind": "Status", "message": f"cannot {verb} {resource}"}, status=403)


def _key(item: dict[str, Any]) -> str:
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def _line(what: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": what, "object": item}).encode() + b"\n"
