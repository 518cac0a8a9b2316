"""The door of the application: `POST /v1/events` in the three CloudEvents HTTP modes, and what describes the doors.

202 means durable: every copy is acknowledged by the stream. A batch is checked and decided whole before any of it is
published, so bad input and a denial publish nothing. Where a copy is not acknowledged in time the answer is 503, and
sending the same again is safe.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from agent import answers, requests
from agent.answers import ACCEPTED, JSON
from agent.door import Door
from agent.openapi import PATHS, document
from agent.pull import asking as pull
from agent.receipts import BatchReceipt
from agent.traced import adopt, publish
from mesh import spans
from mesh.errors import InputError, UnsupportedMediaType
from mesh.event import (
    BATCH_CONTENT_TYPE,
    CONTENT_TYPE,
    draft_from_binary,
    draft_from_structured,
    drafts_from_batch,
    events_of_batch,
)
from mesh.tracing import of_request

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from agent.answers import Answer
    from agent.core import Agent
    from agent.keys import Secrets
    from agent.pull.door import Pull
    from agent.receipts import Receipt
    from mesh.event import Draft

EVENTS = "/v1/events"
_MODES = (CONTENT_TYPE, BATCH_CONTENT_TYPE)  # in which the body holds all of the events
_BINARY_MARK = "ce-specversion"
_CLOUDEVENTS = "application/cloudevents"


class Intake(Door):
    """The application's door.

    Args:
        agent: Publishes.
        token: Who may.
        puller: Answers for the team's subscriptions; None where the agent reads nothing.
    """

    name = "intake"

    def __init__(self, agent: Agent, token: Secrets, puller: Pull | None = None) -> None:
        super().__init__(agent.settings)
        self._agent = agent
        self._pull = puller
        self._token = token
        self._documents: dict[str, bytes] = {}

    def part(self, request: BaseRequest) -> str:
        """A long poll takes as long as it takes, and has its own series."""
        return pull.NAME if request.rel_url.raw_path.startswith(pull.PREFIX) else self.name

    async def route(self, request: BaseRequest) -> StreamResponse:
        """Answer one request.

        Raises:
            MeshError: Its problem document is the answer.
        """
        requests.check_origin(request, self.own_names)
        requests.check_fields(request, self._settings)
        path = request.rel_url.raw_path
        if path in PATHS:
            requests.check_method(request, "GET")
            return self._describe(PATHS[path])
        if path.startswith(pull.PREFIX) and self._pull is not None:
            return await self._pull.answer(request, self._token)
        if path != EVENTS:
            raise requests.no_such_path(f"{EVENTS} or {next(iter(PATHS))}", next="see /openapi.json")
        requests.check_method(request, "POST")
        requests.check_token(request, self._token)
        requests.check_encoding(request)
        self._agent.check_open()
        return await self._events(request)

    async def _events(self, request: BaseRequest) -> Answer:
        limits = self._agent.limits
        kind = requests.media_type(request.headers)
        if kind not in _MODES:
            _check_binary(request, kind)
        limit = limits.max_batch_bytes if kind == BATCH_CONTENT_TYPE else limits.max_event_bytes
        async with self._agent.bytes_held(requests.announced(request, limit)):
            body = await requests.read_body(request, limit, timeout_s=self._settings.body_timeout_s)
            trace = of_request(request.headers.items())
            if kind in _MODES:
                receipts = await self._publish_body(kind, body, trace)
            else:
                receipts = await self._publish([self._binary(request, body)], trace)
        answer = answers.answer(ACCEPTED, _written(receipts, kind), JSON)
        if kind in _MODES and not trace:
            answer.again = partial(self._more, kind, limit, requests.bearer(request))
        return answer

    async def _more(self, kind: str, limit: int, token: bytes, body: bytes) -> bytes:
        """Accept the body of a request with the head of an earlier one: what of the checks can come out otherwise now.

        Raises:
            MeshError: Its problem document is the answer.
        """
        requests.check_bearer(token, self._token)
        self._agent.check_open()
        requests.check_size(len(body), limit)
        async with self._agent.bytes_held(len(body)):
            return _written(await self._publish_body(kind, body, {}), kind)

    async def _publish(self, drafts: list[Draft], trace: dict[str, str]) -> list[Receipt]:
        """Publish the events of a request, whose own trace is *trace*."""
        if spans.tracer is not None:
            return await publish(self._agent, drafts, trace, spans.tracer)
        adopt(drafts, trace, self._agent.limits.max_event_bytes)
        return await self._agent.publish_drafts(drafts)

    async def _publish_body(self, kind: str, body: bytes, trace: dict[str, str]) -> list[Receipt]:
        """Publish the events of a body that holds all of them: unread, where nothing here has to look at them first."""
        limits, outbound = self._agent.limits, self._agent.outbound
        single = kind == CONTENT_TYPE
        if not trace and spans.tracer is None and outbound is not None:
            events = [body] if single else events_of_batch(body, limits)
            if outbound.decides_at_once(len(events)):  # else one that is none would wait for room before it is told
                try:
                    return await self._agent.publish_drafts(events)
                except InputError as error:
                    if single:
                        error.details.pop("index", None)  # of one
                    raise
        now_ms = self._agent.clock_ms()
        if single:
            return await self._publish([draft_from_structured(body, now_ms=now_ms, limits=limits)], trace)
        return await self._publish(drafts_from_batch(body, now_ms=now_ms, limits=limits), trace)

    def _binary(self, request: BaseRequest, body: bytes) -> Draft:
        """The event of a request in binary mode."""
        now_ms, limits = self._agent.clock_ms(), self._agent.limits
        content_type = request.headers.get("Content-Type")
        return draft_from_binary(request.headers.items(), body, content_type, now_ms=now_ms, limits=limits)

    def _describe(self, door: str) -> Answer:
        if door not in self._documents:
            self._documents[door] = msgspec.json.encode(document(self._settings, door))
        return answers.answer(200, self._documents[door], JSON)


def _check_binary(request: BaseRequest, kind: str) -> None:
    if kind.startswith(_CLOUDEVENTS) or _BINARY_MARK not in request.headers:
        raise UnsupportedMediaType(
            "the content type is none of the CloudEvents HTTP modes",
            expected=f"{CONTENT_TYPE}, {BATCH_CONTENT_TYPE}, or ce- header fields beside any other type",
            got="another" if kind else "none",
            next=f"set Content-Type: {CONTENT_TYPE}",
        )


def _written(receipts: list[Receipt], kind: str) -> bytes:
    """The receipts as JSON: of one event, or of a batch."""
    if kind == BATCH_CONTENT_TYPE:
        return msgspec.json.encode(BatchReceipt(len(receipts), receipts))
    return msgspec.json.encode(receipts[0])
