"""kill -9 of an agent whose stream is away and comes back: what got 202 arrives, in order, once, believed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path

import msgspec
import pytest

from mesh.signing import Verified
from tests.contract.agent_mesh import Control, Http, Streams, event, judged, until, write_directory
from tests.contract.test_agent_process import Running

pytestmark = pytest.mark.anyio

SEED = 20261122
ROUNDS = 1
SOURCES = 4  # each sends its next event once the last one has its 202
SETTINGS = {"event_key_file": "", "event_cert_file": "", "spool_after_s": 0.1}


class Adapter:
    """One source: sends until it is told 202, whatever happens to the agent meanwhile."""

    def __init__(self, base: Path, number: int) -> None:
        self.source = f"/crm/{number}"
        self.accepted: dict[str, str] = {}  # id: where it rested, in the order of sending
        self.stopped = False
        self._base = base
        self._number = 0

    async def run(self) -> None:
        """Until `stopped`, and then until the last one has its 202."""
        while not self.stopped:
            self._number += 1
            id_ = f"e-{self._number:05d}"
            self.accepted[id_] = await self._send(id_)

    async def _send(self, id_: str) -> str:
        body = event(id=id_, source=self.source, type="crm.deal.won.v1", data={"n": self._number})
        while True:
            try:
                ports = json.loads((self._base / "ports.json").read_text())
                http = Http(ports["url"], (self._base / "token").read_text().strip())
                answer = await http.post(body)
            except (OSError, ValueError, EOFError, TimeoutError, msgspec.DecodeError):
                await asyncio.sleep(0.02)  # it is being restarted
                continue
            if answer.status == 202:
                return str(answer.json["durable"])
            assert answer.status == 503, answer.body
            await asyncio.sleep(0.02)


async def test_killed_at_any_moment_of_an_outage(tmp_path: Path) -> None:
    """Killed while it spools, starts without NATS and drains: each accepted event is stored once and in order."""
    chance = random.Random(SEED)
    base = write_directory(tmp_path / "agent")
    async with Streams.running(tmp_path / "nats") as streams:
        control = await Control.of(streams, base)
        agent = await Running.start(base, streams.server.url, **SETTINGS)
        async with control.answering():
            try:
                await agent.ready()
                adapters = [Adapter(base, number) for number in range(SOURCES)]
                sending = [asyncio.create_task(adapter.run()) for adapter in adapters]
                for _ in range(ROUNDS):
                    streams.server.kill()
                    for wait_s in (chance.uniform(0.1, 0.6), chance.uniform(0.0, 0.3)):  # when it is killed, at random
                        await until(lambda: any("spool" in a.accepted.values() for a in adapters))
                        await asyncio.sleep(wait_s)
                        agent = await _killed(agent, base, streams)
                        if not streams.server.running:
                            await streams.server.restart()
                            await until(lambda: streams.connection.connected)
                for adapter in adapters:
                    adapter.stopped = True
                await asyncio.wait_for(asyncio.gather(*sending), 60)

                async def drained() -> bool:  # an agent that ends does not wait for a stream that hangs for a moment
                    return await streams.stored() >= sum(len(adapter.accepted) for adapter in adapters)

                await until(drained, timeout_s=60)
                status, _ = await agent.end(signal.SIGTERM)
                assert status == 0
            finally:
                await agent.kill()
        verdicts = await judged(streams, base)
    assert [verdict for verdict in verdicts if not isinstance(verdict, Verified)] == []
    for adapter in adapters:
        stored = [v.fields["id"] for v in verdicts if isinstance(v, Verified) and v.fields["source"] == adapter.source]
        assert stored == list(adapter.accepted)
        assert "spool" in adapter.accepted.values()


async def _killed(agent: Running, base: Path, streams: Streams) -> Running:
    await agent.kill()
    (base / "ports.json").unlink(missing_ok=True)
    agent = await Running.start(base, streams.server.url, **SETTINGS)
    await agent.ready()
    return agent
