"""kill -9 of the agent under load: nothing that got 202 is lost, nothing is stored twice or unsigned."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from mesh.cli.session import operator_session
from mesh.context import AgentAddress
from mesh.control.agents import AgentProcess
from mesh.control.datadir import write_private
from mesh.control.up import Options, running
from tests.journey.meshes import stored

KILLS = 20
SEED = 20261122
LIVES_S = (0.02, 0.6)  # from being ready to the next kill
ADAPTERS = 8  # each sends its next request once the last one was answered
BATCH = 5  # events; every third request is a batch
PAUSE_S = 0.005  # between two requests of an adapter: the restarts need some of the machine
ANSWER_S = 5.0  # then an adapter sends the same again
SOURCE = "/crm"
VIEWS = ("clear", "masked")

POLICIES = """\
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec: {teams: {crm: {agents: [crm-adapter]}, support: {agents: []}}}
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: contacts, tenant: acme, owner: crm}
spec: {types: ["crm.>"], fields: {data.id: [public], data.email: [pii.contact.email]}}
---
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: acme, owner: security}
spec:
  mask: [{tags: [public], as: clear}, {tags: [pii.contact.email], as: pseudonym, with: {domain: contact}}]
  otherwise: redact
---
apiVersion: mesh/v1
kind: Access
metadata: {name: all, tenant: acme, owner: security}
spec:
  allow:
    - {id: publish, who: {teams: [crm]}, publish: ["crm.contact.>"]}
    - {id: own, who: {teams: [crm]}, subscribe: ["crm.contact.>"], view: clear}
    - {id: read, who: {teams: [support]}, subscribe: ["crm.contact.>"], view: masked}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: own, tenant: acme, team: crm}
spec: {types: ["crm.contact.>"]}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["crm.contact.>"]}
"""

pytestmark = pytest.mark.anyio


class Adapters:
    """Applications beside one agent: they send, and send again with the same ids until they are told 202."""

    def __init__(self, address: AgentAddress, token: str) -> None:
        self._url = f"{address.url}/v1/events"
        self._token = token
        self._running = True
        self._number = 0
        self.accepted: dict[str, list[dict[str, Any]]] = {}
        self.unanswered = 0

    async def run(self) -> None:
        """Send until `stop`, and then until the last request has its 202."""
        headers = {"Authorization": f"Bearer {self._token}"}
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http, anyio.create_task_group() as group:
            for _ in range(ADAPTERS):
                group.start_soon(self._adapter, http)

    def stop(self) -> None:
        """Begin nothing new."""
        self._running = False

    async def _adapter(self, http: aiohttp.ClientSession) -> None:
        while self._running:
            self._number += 1
            await self._until_accepted(http, [self._event() for _ in range(1 if self._number % 3 else BATCH)])
            await anyio.sleep(PAUSE_S)

    def _event(self) -> dict[str, Any]:
        self._number += 1
        number = f"c-{self._number:06d}"
        data = {"id": number, "email": f"{number}@example.com"}
        return {"specversion": "1.0", "id": number, "source": SOURCE, "type": "crm.contact.updated.v1", "data": data}

    async def _until_accepted(self, http: aiohttp.ClientSession, events: list[dict[str, Any]]) -> None:
        single = len(events) == 1
        kind = "application/cloudevents+json" if single else "application/cloudevents-batch+json"
        while True:
            try:
                body = aiohttp.JsonPayload(events[0] if single else events, content_type=kind)
                async with http.post(self._url, data=body) as response:
                    answer = await response.json()
                    if response.status == 202:
                        receipts = [answer] if single else answer["events"]
                        self.accepted.update({receipt["id"]: receipt["copies"] for receipt in receipts})
                        return
                    assert response.status == 503, answer
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                self.unanswered += 1
            await anyio.sleep(0.02)


async def _kill_now_and_then(agent: AgentProcess) -> None:
    chance = random.Random(SEED)
    for _ in range(KILLS):
        await anyio.sleep(chance.uniform(*LIVES_S))
        agent.kill()
        await agent.start()  # at the same address


async def test_every_accepted_event_is_stored_once_in_each_view(tmp_path: Path) -> None:
    """Through 20 kills, an event with a 202 is stored once in each view, where its receipt says, and verifies."""
    write_private(tmp_path / "policies" / "all.yaml", POLICIES.encode())
    async with running(Options(data=tmp_path / "data", policies=tmp_path / "policies")) as mesh:
        address = mesh.file.tenants["acme"].agents["crm-adapter"]
        adapters = Adapters(address, Path(address.token_file).read_text().strip())
        (tenant,) = mesh._tenants
        agent = tenant.workloads.processes["crm-adapter"]
        async with anyio.create_task_group() as group:
            group.start_soon(adapters.run)
            with anyio.fail_after(100):
                await _kill_now_and_then(agent)
            adapters.stop()
        async with operator_session(str(tmp_path / "data")) as session:
            messages = await stored(session)
            copies: Counter[tuple[str, str]] = Counter()
            places = {}
            for message in messages:
                fields = (await session.verify(message)).fields  # V1 to V9: unsigned or changed would raise
                copies[fields["id"], fields["view"]] += 1
                places[fields["id"], fields["view"]] = message.stream, message.sequence
    assert adapters.unanswered >= KILLS / 2  # the kills did hit requests
    assert len(adapters.accepted) > KILLS * ADAPTERS
    wanted = {(id_, view) for id_ in adapters.accepted for view in VIEWS}
    assert {pair: count for pair, count in copies.items() if count > 1} == {}
    assert copies.keys() == wanted
    promised = {(id_, c["view"]): (c["stream"], c["seq"]) for id_, found in adapters.accepted.items() for c in found}
    assert places == promised
