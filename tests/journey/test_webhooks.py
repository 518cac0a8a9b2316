"""One agent with a source for each provider in a real mesh: what the providers' own libraries send reaches its team."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import anyio
import pytest
from yarl import URL

from agent.keys import read
from mesh.cli.session import operator_session
from mesh.client import connect
from mesh.control.datadir import LOCK_NAME, private_directory
from tests.journey.meshes import RunningMesh, mesh_up, stored
from tests.tables.webhook_rows import JSON, ROWS, UNTIMED, Row
from tests.tables.webhook_signers import SECRETS, Signers

HOST = "hooks.example.org"  # what the providers were given; the agent is behind a proxy that passes Host on
AGENT = "hooks"
VIEW = "clear"
DEADLINE_S = 60

pytestmark = pytest.mark.anyio

SOURCES = sorted({row.signer for row in ROWS})  # two generic ones and two of Standard Webhooks among them
TOML = """
name = "hooks"
tenant = "acme"
http_port = 0
webhooks_port = 0
health_port = 0
"""
POLICIES = """
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec: {teams: {integration: {agents: [hooks]}}}
---
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: Access
metadata: {name: hooks, tenant: acme, owner: security}
spec:
  allow:
    - {id: hooks-publish, who: {teams: [integration]}, publish: [TYPES], sources: ["/**"]}
    - {id: hooks-read, who: {teams: [integration]}, subscribe: [TYPES], view: clear}
  deny:
    - id: no-deletions
      who: {teams: [integration]}
      publish: ["hubspot.>"]
      when: "has(data.subscriptionType) && data.subscriptionType == 'contact.deletion'"
      reason: "what HubSpot forgets stays forgotten"
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: all, tenant: acme, team: integration}
spec: {types: [TYPES], view: clear, start: all}
"""


class Delivery(NamedTuple):
    """A request as its provider sends it now."""

    row: Row
    body: bytes
    headers: dict[str, str]


class Answer(NamedTuple):
    """What the door said."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@pytest.fixture(scope="module")
def signers(node: Path) -> Iterator[Signers]:
    """The providers."""
    made = Signers(node)
    yield made
    made.close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh whose one agent has all the sources: `mesh up` leaves an `agent.toml` that is there as it is."""
    directory = tmp_path_factory.mktemp("mesh")
    (directory / "policies").mkdir()
    types = ", ".join(f'"{domain}.>"' for domain in sorted({*map(_domain, SOURCES)}))
    (directory / "policies" / "hooks.yaml").write_text(POLICIES.replace("TYPES", types))
    base = private_directory(directory / "data" / "agents" / AGENT)
    (directory / "data" / LOCK_NAME).touch(0o600)  # the mark of a data directory
    (base / "agent.toml").write_text(TOML + "".join(_table(base, source) for source in SOURCES))
    with mesh_up(directory, directory / "policies") as running:
        yield running


def _domain(source: str) -> str:
    """The first word of a source's types."""
    own = next(row for row in ROWS if row.signer == source).provider in ("standard", "generic")
    return source if own else source.partition("-")[0]


def _table(base: Path, source: str) -> str:
    """One source of the settings, its two secrets in files."""
    row = next(row for row in ROWS if row.signer == source)
    files = [f"webhooks/{source}.secret", f"webhooks/{source}.next"]
    (base / "webhooks").mkdir(exist_ok=True, mode=0o700)
    for file, secret in zip(files, SECRETS[source], strict=True):
        (base / file).write_text(secret.ours + "\n")
    lines = ["", f"[webhooks.{source}]", f'provider = "{row.provider}"', f"secret_files = {json.dumps(files)}"]
    lines += [f'hosts = ["{HOST}"]', f'url = "https://{HOST}/v1/webhooks/{source}"']
    if scheme := row.options.get("scheme"):
        lines += [f"[webhooks.{source}.scheme]", *(f"{name} = {json.dumps(value)}" for name, value in scheme.items())]
    return "\n".join([*lines, ""])


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a mind of its own."""
    async with aiohttp.ClientSession() as session:
        yield session


def sign(signers: Signers, row: Row, *, ago_s: int = 0, again: bool = False, secret: int = 0) -> Delivery:
    """*row* as its provider sends it, signed *ago_s* seconds ago."""
    body = row.retry_body if again and row.retry_body else row.body
    headers = {"Content-Type": JSON, **row.headers, **(row.retry if again else {})}
    url = f"https://{HOST}/v1/webhooks/{row.signer}{row.query}"
    at_s = int(time.time()) - ago_s
    theirs = SECRETS[row.signer][secret].theirs
    return Delivery(row, body, headers | signers.sign(row.signer, theirs, body, at_s=at_s, url=url, headers=headers))


async def post(mesh: RunningMesh, http: aiohttp.ClientSession, delivery: Delivery) -> Answer:
    """What a proxy passes on: the path, the query as it came, Host, headers and bytes."""
    base = mesh.file.tenants["acme"].agents[AGENT].webhooks_url
    url = URL(f"{base}/v1/webhooks/{delivery.row.signer}{delivery.row.query}", encoded=True)
    async with http.post(url, data=delivery.body, headers={**delivery.headers, "Host": HOST}) as response:
        return Answer(response.status, response.content_type, await response.read())


async def copies(mesh: RunningMesh) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Every stored copy by source and id, whatever its stream."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    async with operator_session(str(mesh.data)) as session:
        for message in await stored(session):
            event = json.loads(message.body)
            found.setdefault((event["source"], event["id"]), []).append(event)
    return found


def expected() -> dict[tuple[str, str], tuple[str, str | None]]:
    """Type and subject of every event of the rows, by source and id."""
    return {
        (f"/{row.provider}/{row.signer}", event.id): (event.type.replace("erp.", f"{row.signer}."), event.subject)
        for row in ROWS
        for event in row.events
    }


async def test_every_provider_is_taken_and_a_retry_is_one_event(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """Each delivery is answered as its provider expects and stored once, though it comes twice, signed by each secret.

    The team reads each event once, verified, with the type, the subject and the data that it was sent with.
    """
    for row in ROWS:
        for again in (False, True):
            answer = await post(mesh, http, sign(signers, row, again=again, secret=int(again)))
            plain = {"slack": (200, "text/plain"), "twilio": (200, "text/xml")}.get(row.provider)
            assert (answer.status, answer.kind) == (plain or (202, JSON)), (row, answer)
            if plain is None:
                receipts = answer.json.get("events", [answer.json])
                assert [receipt["duplicate"] for receipt in receipts] == [again] * len(row.events)
    wanted = expected()
    found = await copies(mesh)
    assert {key: [copy["view"] for copy in copies] for key, copies in found.items()} == {key: [VIEW] for key in wanted}
    read: dict[tuple[str, str], tuple[str, str | None]] = {}
    with anyio.fail_after(DEADLINE_S):
        async with connect(mesh.data, team="integration") as m, m.subscription("all") as everything:
            while len(read) < len(wanted):
                async with await everything.next() as event:
                    key = (event.source, event.id)
                    assert key not in read
                    read[key] = (event.type, event.fields.get("subject"))
                    assert event.data == found[key][0]["data"]
    assert read == wanted


async def test_what_is_not_genuine_is_stored_nowhere(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """Tampered deliveries get 401, and so do those whose signed time is an hour ago, under a code of its own."""
    before = await copies(mesh)
    for row in ROWS:
        genuine = sign(signers, row)
        answer = await post(mesh, http, genuine._replace(body=genuine.body + b" "))
        assert (answer.status, answer.json["code"]) == (401, "bad-webhook-signature"), row
        if row.provider not in UNTIMED:
            late = await post(mesh, http, sign(signers, row, ago_s=3600))
            assert (late.status, late.json["code"]) == (401, "webhook-not-fresh"), row
    assert await copies(mesh) == before


async def test_a_batch_is_published_whole_or_not_at_all(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """Where policy refuses one notification of HubSpot's batch, the answer names it, and none is stored."""
    row = next(row for row in ROWS if row.provider == "hubspot")
    items = [{**item, "objectId": 124} for item in json.loads(row.body)]
    items[1]["subscriptionType"] = "contact.deletion"
    before = await copies(mesh)
    answer = await post(mesh, http, sign(signers, row._replace(body=json.dumps(items).encode())))
    assert (answer.status, answer.json["code"], answer.json["index"]) == (403, "denied", 1)
    assert await copies(mesh) == before
    both = [{**item, "subscriptionType": "contact.creation"} for item in items]
    answer = await post(mesh, http, sign(signers, row._replace(body=json.dumps(both).encode())))
    assert (answer.status, answer.json["accepted"]) == (202, 2)


async def test_slack_sees_its_challenge_at_the_door(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """The address verifies itself at Slack, and nothing is stored for it."""
    row = next(row for row in ROWS if row.provider == "slack")
    body = b'{"token": "x", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY", "type": "url_verification"}'
    before = await copies(mesh)
    answer = await post(mesh, http, sign(signers, row._replace(body=body)))
    assert answer == (200, "text/plain", b"3eZbrw1aBm2rZgRNFdxV2595E9CY")
    assert await copies(mesh) == before


async def test_a_form_has_the_limit_of_every_body(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """A form above the event's limit is 413 before anybody looks at its signature."""
    row = next(row for row in ROWS if row.provider == "twilio")
    genuine = sign(signers, row)
    answer = await post(mesh, http, genuine._replace(body=genuine.body + b"&Body=" + b"x" * (256 << 10)))
    assert (answer.status, answer.json["code"]) == (413, "too-large")


async def test_a_secret_is_rotated_while_the_agent_runs(
    mesh: RunningMesh, signers: Signers, http: aiohttp.ClientSession
) -> None:
    """A new secret counts as soon as its file has it, and a malformed one leaves the last good ones in force."""
    row = next(row for row in ROWS if row.signer == "standard")
    file = mesh.data / "agents" / AGENT / "webhooks" / "standard.secret"
    good = read(file, "a secret")
    file.write_text("whsec_this is not base64\n")
    assert (await post(mesh, http, sign(signers, row))).status == 202
    file.write_text(SECRETS["standard"][1].ours + "\n")
    with anyio.fail_after(DEADLINE_S):
        while (await post(mesh, http, sign(signers, row))).status != 401:
            await anyio.sleep(0.05)
    assert (await post(mesh, http, sign(signers, row, secret=1))).status == 202
    file.write_bytes(good)
