"""Real webhook payloads that nobody here wrote, through the door, the policies and the stream to their readers."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import aiohttp
import anyio
import pytest

from mesh.cli.session import operator_session
from mesh.client import connect
from mesh.jetstream.manage import api
from tests.conftest import SHARED_DATA
from tests.journey.meshes import RunningMesh

DATA = SHARED_DATA / "github_webhooks.json"
PERSONAL = frozenset({"login", "email", "name"})
SHORTEST = 5  # characters: shorter strings turn up by chance
DEADLINE_S = 60

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not DATA.exists(), reason="the real payloads are not part of the project"),
]

Payload = tuple[str, str, dict[str, Any]]  # delivery id, event, payload


@pytest.fixture(scope="module")
def payloads() -> list[Payload]:
    """Every example with a delivery id of its own."""
    groups = json.loads(DATA.read_bytes())
    return [(str(uuid4()), group["name"], example) for group in groups for example in group["examples"]]


@pytest.fixture(scope="module")
async def posted(mesh: RunningMesh, payloads: list[Payload]) -> list[dict[str, Any]]:
    """All of them posted to the webhook door, signed as GitHub signs; the 202 bodies."""
    agent = mesh.file.tenants["acme"].agents["github-adapter"]
    secret = (mesh.data / "agents" / "github-adapter" / "webhooks" / "github.secret").read_bytes().strip()
    receipts = []
    async with aiohttp.ClientSession() as http:
        for delivery, event, payload in payloads:
            body = json.dumps(payload).encode()
            headers = {
                "Content-Type": "application/json",
                "X-GitHub-Event": event,
                "X-GitHub-Delivery": delivery,
                "X-Hub-Signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest(),
            }
            async with http.post(f"{agent.webhooks_url}/v1/webhooks/github", data=body, headers=headers) as response:
                assert response.status == 202, (event, await response.text())
                receipts.append(await response.json())
    return receipts


async def test_every_payload_comes_back_equal_in_the_clear_view(
    mesh: RunningMesh, payloads: list[Payload], posted: list[dict[str, Any]]
) -> None:
    """The owners get each payload JSON-equal, under its mapped type, source and id."""
    sent = {delivery: (event, payload) for delivery, event, payload in payloads}
    got: dict[str, Any] = {}
    with anyio.fail_after(DEADLINE_S):
        async with connect(mesh.data, team="engineering") as m, m.subscription("builds") as builds:
            while len(got) < len(sent):
                async with await builds.next() as event:
                    got[event.id] = event
    assert len(posted) == len(payloads) == 329
    for delivery, (name, payload) in sent.items():
        event = got[delivery]
        action = payload.get("action")
        assert event.data == payload
        assert event.type == ".".join(["github", name, *([action] if action else []), "v1"])
        assert event.source == "/github/github"
        assert event.view == "clear"


async def test_no_personal_string_is_in_any_stored_message_of_the_masked_view(
    mesh: RunningMesh, payloads: list[Payload], posted: list[dict[str, Any]]
) -> None:
    """No login, e-mail or name of five characters or more stands in a masked message: body, headers or subject."""
    types = {
        delivery: ".".join(["github", name, *([action] if (action := payload.get("action")) else []), "v1"])
        for delivery, name, payload in payloads
    }
    assert posted
    personal = {text for _, _, payload in payloads for text in _personal(payload)}
    async with operator_session(str(mesh.data)) as session:
        last = (await api(session.connection, "STREAM.INFO.EV_local_github"))["state"]["last_seq"]
        masked = 0
        for sequence in range(1, last + 1):
            answer = await api(session.connection, "STREAM.MSG.GET.EV_local_github", {"seq": sequence})
            message = answer["message"]
            if not message["subject"].startswith("ev.local.minimal."):
                continue
            masked += 1
            body = json.loads(b64decode(message["data"]))
            assert body["type"] == types[body["id"]]
            assert body["source"] == "/github/github"
            shown = "\n".join([*_strings(body), b64decode(message["hdrs"]).decode(), message["subject"]])
            for mapped in (body["type"], body["source"]):  # from the delivery's headers and action, not from a person:
                shown = shown.replace(mapped, "")  # a login "github" or a job named "deploy" stands in them by chance
            found = {text for text in personal if text in shown}
            assert not found, (message["subject"], len(found))
    assert len(personal) > 100
    assert masked == len(payloads)


def _personal(value: Any) -> Iterator[str]:
    """Every string under a personal member name, anywhere."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in PERSONAL and isinstance(inner, str) and len(inner) >= SHORTEST:
                yield inner
            yield from _personal(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _personal(inner)


def _strings(value: Any) -> Iterator[str]:
    """Every string value: member names aside."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value
