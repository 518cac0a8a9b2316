"""Without our library: plain nats-py reads a team's durable, and Node verifies what it read."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import nats
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.certificates import split_chain
from mesh.cli.session import operator_session
from tests.journey.meshes import RunningMesh, contact, stored, wait_settled

SCRIPT = Path(__file__).parents[1] / "node" / "verify.mjs"
SOURCE = "/salesforce/eu"
TYPE = "crm.contact.updated.v1"
COUNT = 12

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Posted:
    """What was accepted over HTTP: ids of single events and of a batch, and the copies that were promised."""

    ids: list[str]
    copies: int


@pytest.fixture(scope="module")
async def posted(mesh: RunningMesh) -> Posted:
    """Contacts posted in every CloudEvents mode to the agent's door, with nothing but HTTP."""
    agent = mesh.file.tenants["acme"].agents["crm-adapter"]
    bearer = {"Authorization": f"Bearer {Path(agent.token_file).read_text().strip()}"}
    events = [
        {"specversion": "1.0", "id": f"plain-{n}", "source": SOURCE, "type": TYPE, "data": contact(changed=["email"])}
        for n in range(COUNT)
    ]
    copies = 0
    async with aiohttp.ClientSession(agent.url, headers=bearer) as http:
        for event in events[: COUNT // 3]:
            copies += await _post(http, event, {"Content-Type": "application/cloudevents+json"})
        for event in events[COUNT // 3 : 2 * COUNT // 3]:
            attributes = {f"ce-{name}": str(value) for name, value in event.items() if name != "data"}
            copies += await _post(http, event["data"], {**attributes, "Content-Type": "application/json"})
        rest = events[2 * COUNT // 3 :]
        copies += await _post(http, rest, {"Content-Type": "application/cloudevents-batch+json"})
    return Posted([str(event["id"]) for event in events], copies)


async def _post(http: aiohttp.ClientSession, body: object, headers: dict[str, str]) -> int:
    """Post one request; returns how many copies the answer names."""
    async with http.post("/v1/events", data=json.dumps(body), headers=headers) as response:
        assert response.status == 202, await response.text()
        answer = await response.json()
        return sum(len(receipt["copies"]) for receipt in answer.get("events", [answer]))


@pytest.fixture(scope="module")
async def pulled(mesh: RunningMesh, posted: Posted) -> list[dict[str, Any]]:
    """What plain nats-py pulled for support and acked, as the Node verifier takes it."""
    team = mesh.file.tenants["acme"].teams["support"]
    address = team.subscriptions["contacts"]
    client = await nats.connect(
        mesh.file.nats_url, user_credentials=team.creds_file, inbox_prefix=b"_INBOX_team-support"
    )
    try:
        subscription = await client.jetstream().pull_subscribe_bind(address.durable, address.stream)
        events: list[dict[str, Any]] = []
        with anyio.fail_after(60):
            while len(events) < COUNT:
                for message in await subscription.fetch(COUNT - len(events), timeout=30):
                    events.append(await _for_node(client, message))
                    await message.ack()
        await client.flush()
    finally:
        await client.close()
    return events


async def _for_node(client: Client, message: Msg) -> dict[str, Any]:
    headers = message.headers or {}
    signature = headers["Mesh-Signature"]
    subject = f"$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.cert.{signature.split('.')[1]}"
    entry = await client.request(subject, timeout=30)  # it would have half a second
    certificate = x509.load_der_x509_certificate(split_chain(entry.data)[0])  # the leaf; its issuer follows
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (spiffe_id,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    key = certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {
        "subject": message.subject,
        "msgIds": [headers["Nats-Msg-Id"]],
        "signature": signature,
        "bodyB64": b64encode(message.data).decode(),
        "streamMs": int(message.metadata.timestamp.timestamp() * 1000),
        "tenant": "acme",
        "publicKeyB64": b64encode(key).decode(),
        "spiffeId": spiffe_id,
        "notBeforeMs": int(certificate.not_valid_before_utc.timestamp() * 1000),
        "notAfterMs": int(certificate.not_valid_after_utc.timestamp() * 1000),
        "may": [["spiffe://mesh.local/ns/acme/sa/crm-adapter", TYPE, SOURCE]],
    }


def _judge(node: Path, events: list[dict[str, Any]]) -> list[str]:
    lines = "".join(json.dumps(event) + "\n" for event in events)
    done = subprocess.run([node, SCRIPT], input=lines, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


async def test_plain_client_reads_its_teams_view(
    mesh: RunningMesh, posted: Posted, pulled: list[dict[str, Any]]
) -> None:
    """Every posted event arrives once, masked for the team, and plain acks settle them at the server."""
    bodies = [_body(event) for event in pulled]
    assert sorted(body["id"] for body in bodies) == sorted(posted.ids)
    for body in bodies:
        assert body["view"] == "service"
        assert body["data"]["contact"]["email"] == "a***@***.com"
        assert body["data"]["changed"] == ["email"]
    address = mesh.file.tenants["acme"].teams["support"].subscriptions["contacts"]
    async with operator_session(str(mesh.data)) as session:
        await wait_settled(session, address.stream, address.durable)


def _body(event: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(b64decode(event["bodyB64"]))
    return decoded


async def test_node_accepts_each_and_refuses_a_flipped_byte(node: Path, pulled: list[dict[str, Any]]) -> None:
    """With certificates from the trust bucket alone, Node accepts each event, and none with one bit changed."""
    assert _judge(node, pulled) == ["accept"] * COUNT
    tampered = []
    for event in pulled:
        body = bytearray(b64decode(event["bodyB64"]))
        body[body.index(b'"DE"') + 1] ^= 1  # another country: still a sound CloudEvent
        tampered.append({**event, "bodyB64": b64encode(body).decode()})
    assert _judge(node, tampered) == ["refuse V9 bad-signature"] * COUNT


async def test_nothing_stored_is_unsigned(mesh: RunningMesh, posted: Posted) -> None:
    """Every message of every event stream passes V1 to V9, and the 202 answers named them all."""
    async with operator_session(str(mesh.data)) as session:
        messages = await stored(session)
        for message in messages:
            assert message.signature is not None
            await session.verify(message)
    assert len(messages) == posted.copies >= 3 * COUNT
