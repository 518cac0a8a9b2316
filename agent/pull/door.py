"""The routes below `/v1/subscriptions/`: fetch the events of one of the team's subscriptions, and settle them.

    GET  /v1/subscriptions/<name>/events     `max`, `wait_s`, `lease_s`, `ack=auto`; with `Accept: text/event-stream`
                                             server-sent events, see `stream`
    POST /v1/subscriptions/<name>/ack        {"leases": [...]}
    POST /v1/subscriptions/<name>/retry      the same and `delay_s`, `reason`
    POST /v1/subscriptions/<name>/reject     the same and `reason`
    POST /v1/subscriptions/<name>/extend     the same and `lease_s`

A fetch waits for one event and answers with that and what is there beside it; with none in time the list is empty. A
client that goes away before its answer is written leaves no lease behind, nor does one that has not read it after half
a lease or `body_timeout_s`. Any number of clients share a subscription;
where it is ordered, one event of a key is out at a time.

While the agent drains nothing more is fetched (503 `draining`), waiting polls end, and what is leased can be settled
until the drain is over; then it is handed back.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from agent import answers, presence, requests
from agent.pull import asking, stream
from agent.pull.handing import Handing
from agent.tasks import Tasks
from mesh.errors import Disconnected, Draining, NoBundle, Overloaded, SubscriptionPushed, UnsupportedMediaType
from mesh.event import encode
from mesh.telemetry import counter
from mesh.tracing import of_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

    from aiohttp.web import BaseRequest, StreamResponse

    from agent.consuming import Consuming
    from agent.keys import Secrets
    from agent.pull.leases import Lease
    from agent.settings import AgentSettings
    from mesh.policy.grants import SubscriptionGrant
    from mesh.subscription import Delivery

JSON: Final = "application/json"
EVENTS: Final = "events"
_route = re.compile(rf"{asking.PREFIX}([a-z0-9]+(?:-[a-z0-9]+)*)/({'|'.join((EVENTS, *asking.VERBS))})").fullmatch

POLLS = counter(
    "mesh.agent.pull.polls", "{request}", "by end: `lost` rising: clients give up before wait_s; `empty`: nothing to do"
)


class Pull:
    """Answers for the team's subscriptions.

    Args:
        settings: The agent's.
        consuming: Where the events come from.
        pushed: The subscriptions that have a push target: those cannot be pulled.
    """

    def __init__(self, settings: AgentSettings, consuming: Consuming, pushed: frozenset[str]) -> None:
        self._settings = settings
        self._consuming = consuming
        self._pushed = pushed
        self._tasks = Tasks()
        self._handings: dict[str, Handing] = {}
        self._waiting: set[anyio.CancelScope] = set()
        self._pulls = 0
        self.draining = False

    @property
    def failed(self) -> asyncio.Event:
        """Set once a part of it has died; only a restart of the process helps."""
        return self._tasks.failed

    def state(self) -> dict[str, int]:
        """The open leases of each subscription that was pulled."""
        return {name: len(handing.leases) for name, handing in self._handings.items()}

    async def answer(self, request: BaseRequest, token: Secrets) -> StreamResponse:
        """Answer one request; Host, Origin and header fields are checked.

        Raises:
            MeshError: Its problem document is the answer.
        """
        found = _route(request.rel_url.raw_path)
        if found is None:
            raise requests.no_such_path(
                f"{asking.PREFIX}<subscription>/{EVENTS}, or /{', /'.join(asking.VERBS)}", next="see /openapi.json"
            )
        name, verb = found.groups()
        requests.check_method(request, "GET" if verb == EVENTS else "POST")
        requests.check_token(request, token)
        requests.check_encoding(request)
        if name in self._pushed:
            raise SubscriptionPushed(
                "the agent pushes this subscription",
                expected="a subscription without a [push] table in agent.toml",
                next="remove its push target, or add a second subscription",
            )
        if verb == EVENTS:
            return await self._fetch(request, name)
        return await self._settle(request, name, verb)

    async def drain(self, timeout_s: float) -> None:
        """Hand nothing more out; what is leased may be settled for *timeout_s* seconds, then it is handed back."""
        self.stop()
        await self.settled(timeout_s)
        self._give_up()

    def stop(self) -> None:
        """Hand nothing more out, and end whoever waits; what is leased is settled as before."""
        self.draining = True
        self.end_waits()

    async def settled(self, timeout_s: float) -> list[str]:
        """Wait until no lease is open, at most so long; the subscriptions that then have one."""
        with anyio.move_on_after(timeout_s):
            for handing in self._handings.values():
                while len(handing.leases):
                    await handing.changed()
        return sorted(name for name, open_ in self.state().items() if open_)

    async def close(self) -> None:
        """End at once: every lease is given up."""
        self.stop()
        self._give_up()
        await self._tasks.cancel()

    def end_waits(self) -> None:
        """Whoever waits for an event waits no longer."""
        for scope in tuple(self._waiting):
            scope.cancel()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Wait for an event in this block: for so long, and not beyond the drain."""
        with anyio.move_on_after(seconds) as scope:
            self._waiting.add(scope)
            try:
                if self.draining:
                    scope.cancel()
                yield scope
            finally:
                self._waiting.discard(scope)

    def _give_up(self) -> None:
        for handing in self._handings.values():
            handing.close()

    # --- fetching ----------------------------------------------------------------------------------------------------

    async def _fetch(self, request: BaseRequest, name: str) -> StreamResponse:
        asked = asking.fetch(request.rel_url.query.items(), self._settings)
        if self.draining:
            raise Draining(
                "the agent is shutting down and hands nothing out",
                expected="a running agent",
                next="ask again after Retry-After",
            )
        with self._counted():
            began_s = time.monotonic()
            grant = await self._granted(name, asked.wait_s)
            lease_s = (
                min(grant.retry.ack_wait_s, self._settings.max_lease_s) if asked.lease_s is None else asked.lease_s
            )
            handing = self._handing(name)
            with handing.fetching():
                subscription = await self._consuming.subscription(name)
                asked = asked._replace(lease_s=lease_s)
                if stream.wanted(request):
                    POLLS.add(1, end="stream")
                    return await stream.Stream(self, handing, subscription, asked).answer(request)
                leases: list[Lease[Delivery]] = []
                trace = of_request(request.headers.items())
                left_s = max(0.0, began_s + asked.wait_s - time.monotonic())
                with self.waiting(left_s) as scope, presence.watched(request, scope.cancel):
                    leases = await handing.take(subscription, asked.most, lease_s, trace)
                if not leases and not self._consuming.connected and not self.draining:
                    raise Disconnected("NATS is away", expected="a connection", next="ask again after Retry-After")
                return await self._hand_over(request, handing, leases, asked)

    async def _hand_over(
        self, request: BaseRequest, handing: Handing, leases: Sequence[Lease[Delivery]], asked: asking.Fetch
    ) -> StreamResponse:
        """Write the answer; what cannot be written is handed back at once."""
        tokens = [lease.token for lease in leases]
        body = b'{"events":[' + b",".join(_shown(lease) for lease in leases) + b"]}"
        response = answers.answer(200, body, JSON, {"Cache-Control": "no-store"})
        limit_s = min((asked.lease_s or 0.0) / 2, self._settings.body_timeout_s)
        written = False
        try:
            async with presence.flushed(request, timeout_s=limit_s):
                await response.prepare(request)
                await response.write_eof()
            written = True
        finally:
            POLLS.add(1, end="lost" if not written else "events" if leases else "empty")
            if not written:
                handing.hand_back(tokens)
        if asked.auto_ack:
            for token in tokens:
                handing.ack(token)
        return response

    async def _granted(self, name: str, wait_s: float) -> SubscriptionGrant:
        """What the policies say of the subscription; the first bundle is waited for."""
        await self._consuming.start()
        grant: SubscriptionGrant | None = None
        with self.waiting(wait_s):
            while grant is None:
                try:
                    grant = await self._consuming.grant(name)
                except NoBundle:
                    await self._consuming.adopted()
        return await self._consuming.grant(name) if grant is None else grant

    def _handing(self, name: str) -> Handing:
        handing = self._handings.get(name)
        if handing is None:
            s = self._settings
            handing = Handing(
                name,
                limit=s.max_leases,
                settle_s=s.give_up_s,
                idle_s=s.pull_idle_s,
                leave=partial(self._consuming.release, name),
                tasks=self._tasks,
            )
            self._handings[name] = handing
        return handing

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._pulls >= self._settings.max_pulls:
            raise Overloaded(
                f"{self._pulls} requests wait for events, which is the limit",
                expected=f"at most {self._settings.max_pulls} long polls and streams",
                next="share one among workers, and ask for more events at once",
            )
        self._pulls += 1
        try:
            yield
        finally:
            self._pulls -= 1

    # --- settling ----------------------------------------------------------------------------------------------------

    async def _settle(self, request: BaseRequest, name: str, verb: str) -> StreamResponse:
        if requests.media_type(request.headers) != JSON:
            raise UnsupportedMediaType(
                "the content type is not JSON", expected=JSON, got="another, or none", next=f"set Content-Type: {JSON}"
            )
        s = self._settings
        body = await requests.read_body(request, asking.MAX_BODY_BYTES, timeout_s=s.body_timeout_s)
        asked = asking.settle(body, s)
        if name not in self._handings:
            await self._consuming.grant(name)  # there is such a subscription; nothing of it was fetched here
        results = await self._handing(name).settle(verb, asked)
        return answers.answer(200, msgspec.json.encode({"results": results}), JSON, {"Cache-Control": "no-store"})


def _shown(lease: Lease[Delivery]) -> bytes:
    """One event of an answer."""
    event = lease.held.event
    fields: dict[str, Any] = {"lease": lease.token, "attempt": event.attempt, "expires_s": lease.lease_s}
    if event.replayed:
        fields["replayed"] = True
    if event.stale_trust:
        fields["stale_trust"] = True
    return msgspec.json.encode(fields)[:-1] + b',"event":' + encode(event.fields) + b"}"
