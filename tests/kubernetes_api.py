"""A stand-in for the Kubernetes API server, over real TLS, that answers TokenReviews as it is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from mesh.ca import RootCA
from mesh.control.attest_kubernetes import POD_NAME, POD_UID, REVIEWS_PATH
from mesh.control.reconcile import now_ms

UID = "0d9f3a63-9a3e-4f0e-a1c4-7f2d0d1d9d55"  # of the pod


def review(**changes: Any) -> dict[str, Any]:
    """A TokenReview as an API server 1.31 answers it, but for what is changed in its status."""
    user = {
        "username": "system:serviceaccount:acme:crm-adapter",
        "uid": "8a0c6be1-5c1f-4a52-8f5e-61b0f2a7a3d0",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:acme", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=7b1f..."],
            "authentication.kubernetes.io/node-name": ["kind-worker"],
            POD_NAME: ["crm-adapter-7d9c9c6f8-x2x5v"],
            POD_UID: [UID],
        },
    }
    status = {"authenticated": True, "user": user, "audiences": ["mesh-ca"], **changes}
    return {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "status": status}


def of_user(**changes: Any) -> dict[str, Any]:
    """A review of another user."""
    return review(user={**review()["status"]["user"], **changes})


@dataclass
class ApiServer:
    """An HTTPS server that answers reviews as it is told, and remembers how it was asked."""

    url: str
    ca_file: Path
    answer: Callable[[], web.StreamResponse] = lambda: web.json_response(review(), status=201)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    silent: bool = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One review."""
        self.asked.append((request.headers.get("Authorization", ""), await request.json()))
        if self.silent:
            await anyio.sleep_forever()
        return self.answer()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[ApiServer]:
    """An API server with a CA of its own, whose files lie in *directory*."""
    root = RootCA.create("mesh.local", now_ms=now_ms())
    certificate, key = root.issue_ca(now_ms=now_ms()).issue_tls_server(["127.0.0.1"], now_ms=now_ms())
    for name, content in (("ca.crt", root.cert_pem), ("tls.crt", certificate), ("tls.key", key)):
        (directory / name).write_bytes(content)
    server = ApiServer("", directory / "ca.crt")
    app = web.Application()
    app.router.add_post(REVIEWS_PATH, server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
