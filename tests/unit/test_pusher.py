"""Turns of one push target, without a server: who is asked again, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import msgspec
import pytest

from agent.push import pause
from agent.push.pusher import Pusher
from agent.push.requests import Request
from agent.push.sender import Sender
from agent.push.settings import PushTarget
from agent.push.verdict import Later, Refused, Taken, Verdict
from mesh.subscription import Subscription

pytestmark = pytest.mark.anyio


class Stand:
    """Stands for a subscription that has some events and then no more, and for an application."""

    def __init__(self, ids: str, later: dict[str, int]) -> None:
        self._waiting = list(ids)
        self._later = later
        self.settled: list[str] = []
        self.all_settled = anyio.Event()
        self._wanted = len(ids)

    async def next(self) -> Any:
        """The next delivery, at once; for ever none after the last."""
        if not self._waiting:
            await anyio.sleep_forever()
        return self._delivery(self._waiting.pop(0))

    async def send(self, request: Request, message: str) -> Verdict:
        """Later as often as said, then taken; refused where nothing was said. Another request may overtake it."""
        assert message
        id_ = msgspec.json.decode(request.body)["id"]
        await anyio.lowlevel.checkpoint()
        if id_ not in self._later:
            return Refused("http-400")
        self._later[id_] -= 1
        return Later("http-429") if self._later[id_] >= 0 else Taken()

    def _delivery(self, id_: str) -> Any:
        async def reject(_: str) -> None:
            self._settle(f"{id_} refused")

        event = SimpleNamespace(
            fields={"id": id_, "source": "/s", "type": "t"},
            key=("/s", id_),
            attempt=1,
            replay="",
            redrive="",
            stale_trust=False,
        )
        return SimpleNamespace(
            event=event, size=10, ack=lambda: self._settle(f"{id_} taken"), reject=reject, hand_back=lambda: None
        )

    def _settle(self, what: str) -> None:
        self.settled.append(what)
        if len(self.settled) == self._wanted:
            self.all_settled.set()


@pytest.mark.parametrize("concurrency", [1, 2, 16])
@pytest.mark.parametrize(
    ("ids", "later"),
    [("AB", {"A": 3}), ("ABCDEFGHIJ", {"A": 3}), ("ABC", {"A": 3, "B": 3}), ("ABCD", {"A": 7, "C": 4})],
)
async def test_what_was_put_aside_is_asked_again_when_nothing_else_comes(
    ids: str, later: dict[str, int], concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others were refused, none was taken, and no more come: what was told "later" gets its answer all the same."""
    monkeypatch.setattr(pause, "FIRST_PAUSE_S", 0.001)
    stand = Stand(ids, dict(later))
    target = PushTarget(name="contacts", url="http://localhost/", concurrency=concurrency)
    pusher = Pusher(target, cast("Sender", stand))
    async with anyio.create_task_group() as group:
        group.start_soon(pusher.run, cast("Subscription", stand))
        with anyio.fail_after(60):
            await stand.all_settled.wait()
        pusher.stop()
    assert sorted(stand.settled) == [f"{id_} {'taken' if id_ in later else 'refused'}" for id_ in ids]
