"""Spans of what the mesh does with an event, where somebody wants them. OpenTelemetry's messaging conventions.

    publish <type>    PRODUCER   the agent's door: from an accepted event to its last copy; the event's creation context
    process <type>    CONSUMER   a handler of the library, or a push; linked to the creation context
    ack <type>        CLIENT     its settlement, where the handler succeeded

`<type>` is the event's: policies list types, and after `MAX_NAMES` different ones names end in `_OTHER`. An event's own
`traceparent` is never overwritten: it says where the event was created. Where it has none, it is given that of its
`publish` span. `process` is a trace of its own, linked, unless `MESH_TRACES_PROCESS=parent` puts it below the creation
context. Only events that are sampled cost anything: the door decides, and whoever handles an event follows.

Nothing of OpenTelemetry is imported until tracing is on. Then `tracer` is set, and that is all that hot code looks at.

Source: semantic conventions 1.44.0, messaging (development); the names of `messaging.nats.*` are ours.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mesh import logs
from mesh.errors import MeshError
from mesh.tracing import TRACEPARENT, TRACESTATE, sampled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence
    from contextlib import AsyncExitStack

    from opentelemetry.trace import Link, Span, SpanContext, SpanKind
    from opentelemetry.trace import Tracer as OtelTracer

    from mesh.inbound import Admitted

MAX_NAMES: Final = 512  # event types in span names; a mesh has tens
OTHER: Final = "_OTHER"  # the conventions' word for what would be too many
ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)

tracer: Tracer | None = None  # None: tracing is off


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names somebody to send telemetry to."""
    return any(map(environ.get, ENDPOINTS)) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def use(new: Tracer | None) -> None:
    """Make spans with *new* from now on; None: make none."""
    global tracer  # noqa: PLW0603 - one per process, like the logs; hot code reads one name
    tracer = new


async def begin(
    stack: AsyncExitStack,
    service: str,
    attributes: Mapping[str, str],
    common: Mapping[str, str | int] | None = None,
) -> None:
    """Make spans and send them until *stack* closes, if the environment asks for it or the application makes its own.

    Args:
        stack: Ends it.
        service: The process, for a collector; `OTEL_SERVICE_NAME` has the last word.
        attributes: More of its resource.
        common: Attributes of each span.
    """
    if tracer is not None:
        return
    if "opentelemetry.sdk.trace" in sys.modules:
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            use(Tracer(trace.get_tracer("mesh"), common=common))  # the application's: ours are among its spans
            stack.callback(use, None)
            return
    if wanted():
        from mesh.otlp import exporting

        await stack.enter_async_context(exporting(service, attributes, common))


class Sampling:
    """Which events are recorded: as whoever began the trace says, else one in so many.

    Args:
        ratio: Of the traces that begin here, 0 to 1.
        follow: Whether the decision of whoever began a trace counts.
    """

    def __init__(self, ratio: float = 1.0, *, follow: bool = True) -> None:
        self._ratio = ratio
        self._follow = follow

    def __call__(self, parent: str | None) -> bool:
        """Whether to record an event whose trace is *parent*, a valid `traceparent`, or begins here."""
        if parent is not None and self._follow:
            return sampled(parent)
        return self._ratio >= 1.0 or random.random() < self._ratio  # noqa: S311 - no secret


class Tracer:
    """Makes the spans of one process.

    Args:
        otel: Makes them; it records every one that it is asked for.
        samples: Asked before.
        below: Whether `process` is a child of the creation context instead of linked to it.
        common: Attributes of every span.
    """

    def __init__(
        self,
        otel: OtelTracer,
        samples: Sampling | None = None,
        *,
        below: bool = False,
        common: Mapping[str, str | int] | None = None,
    ) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._otel = otel
        self._trace, self._context = trace, context
        self._propagator = TraceContextTextMapPropagator()  # the mesh carries no other context, whatever is configured
        self._below = below
        self._common = {"messaging.system": "nats", **(common or {})}
        self._names: set[str] = set()
        self._open: dict[int, tuple[Span, Any]] = {}
        self.samples = samples or Sampling()
        logs.look_for_trace(self._current)

    # --- publishing --------------------------------------------------------------------------------------------------

    @contextmanager
    def publish(self, events: Sequence[Mapping[str, Any]], request: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """The `publish` span around this block, current in it; gives its own context, for events that have none.

        Args:
            events: The attributes of each.
            request: The trace of the request that they came with, as attributes; empty where it had none.
        """
        own = [event for event in events if TRACEPARENT in event]
        parent = request or ({} if not own else own[0])
        links = [link for event in own if event is not parent and (link := self._link(event)) is not None]
        attributes = self._of(events, "publish", "send")
        span = self._start("publish", events, self._trace.SpanKind.PRODUCER, self._extract(parent), links, attributes)
        with self._current_span(span):
            yield self._carried(span)

    # --- processing --------------------------------------------------------------------------------------------------

    def enter(self, key: int, event: Admitted, team: str, durable: str) -> None:
        """A handler begins with *event*: its `process` span begins and is current, if the event is sampled."""
        if not self.follows(event):
            return
        span = self._process([event], team, durable)
        self._open[key] = span, self._context.attach(self._trace.set_span_in_context(span))

    def leave(self, key: int, error: BaseException | None) -> None:
        """The handler ended."""
        found = self._open.pop(key, None)
        if found is None:
            return
        span, token = found
        _failed(span, None if error is None else error_type(error), self._trace)
        if error is None:
            self._settled(span)
        span.end()
        self._context.detach(token)

    @contextmanager
    def push(self, events: Sequence[Admitted], team: str, durable: str) -> Iterator[Pushed | None]:
        """The `process` span around the request that pushes *events*; None where none of them is sampled."""
        followed = [event for event in events if self.follows(event)]
        if not followed:
            yield None
            return
        span = self._process(events, team, durable)
        with self._current_span(span):
            yield Pushed(self._carried(span), span, self._trace)

    @staticmethod
    def follows(event: Admitted) -> bool:
        """Whether whoever created *event* records its trace."""
        parent = event.fields.get(TRACEPARENT)
        return parent is not None and sampled(parent)

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Add the context of the current span, if there is one, to the fields of a request."""
        self._propagator.inject(headers)

    # --- parts -------------------------------------------------------------------------------------------------------

    def _process(self, events: Sequence[Admitted], team: str, durable: str) -> Span:
        fields = [event.fields for event in events]
        attributes = self._of(fields, "process", "process")
        attributes |= {"messaging.consumer.group.name": team, "messaging.destination.subscription.name": durable}
        if len(events) == 1:
            attributes["messaging.nats.stream"] = events[0].stream
            attributes["messaging.nats.sequence"] = events[0].sequence
            attributes["messaging.nats.delivery_count"] = events[0].attempt
        links = [link for one in fields if (link := self._link(one)) is not None]
        parent = self._extract(fields[0]) if self._below and len(events) == 1 else None
        return self._start("process", fields, self._trace.SpanKind.CONSUMER, parent, links, attributes)

    def _settled(self, span: Span) -> None:
        """The `ack`: written beside others, so it has no length."""
        attributes: dict[str, Any] = dict(getattr(span, "attributes", None) or {})
        attributes |= {"messaging.operation.name": "ack", "messaging.operation.type": "settle"}
        name = getattr(span, "name", "process").replace("process", "ack", 1)
        context = self._trace.set_span_in_context(span)
        self._otel.start_span(name, context, self._trace.SpanKind.CLIENT, attributes).end()

    def _start(  # noqa: PLR0917 - three callers, all here
        self,
        verb: str,
        events: Sequence[Mapping[str, Any]],
        kind: SpanKind,
        parent: Any,
        links: list[Link],
        attributes: dict[str, Any],
    ) -> Span:
        names = {self._name(event["type"]) for event in events}
        if len(names) == 1:
            attributes["messaging.destination.template"] = name = names.pop()
            verb = f"{verb} {name}"
        return self._otel.start_span(verb, parent, kind, attributes, links)

    def _name(self, type_: str) -> str:
        if type_ in self._names or len(self._names) < MAX_NAMES:
            self._names.add(type_)
            return type_
        return OTHER

    def _of(self, events: Sequence[Mapping[str, Any]], name: str, kind: str) -> dict[str, Any]:
        """What the conventions say of one message, or of so many."""
        found: dict[str, Any] = {
            **self._common,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
        }
        if len(events) != 1:
            return found | {"messaging.batch.message_count": len(events)}
        event = events[0]
        found |= {f"cloudevents.event_{key}": event[key] for key in ("id", "source", "type")}
        found["cloudevents.event_spec_version"] = event.get("specversion", "1.0")
        found["messaging.message.id"] = event["id"]
        if correlation := event.get("correlationid"):
            found["messaging.message.conversation_id"] = correlation
        return found

    def _extract(self, fields: Mapping[str, Any]) -> Any:
        """The context that *fields* name; of whoever calls, where they name none."""
        return self._propagator.extract(fields) if TRACEPARENT in fields else None

    def _link(self, fields: Mapping[str, Any]) -> Link | None:
        context = self._extract(fields)
        if context is None:
            return None
        return self._trace.Link(self._trace.get_current_span(context).get_span_context())

    def _carried(self, span: Span) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return {name: value for name, value in carrier.items() if name != TRACESTATE or value}

    @contextmanager
    def _current_span(self, span: Span) -> Iterator[None]:
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            _failed(span, error_type(error), self._trace)
            raise
        finally:
            self._context.detach(token)
            span.end()

    def _current(self) -> str | None:
        context: SpanContext = self._trace.get_current_span().get_span_context()
        if tracer is not self or not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Pushed:
    """The span of one push: `context` goes with the request."""

    def __init__(self, context: dict[str, str], span: Span, trace: Any) -> None:
        self.context = context
        self._span = span
        self._trace = trace

    def headers(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """*fields* of a request with our context instead of the one that the event was created in."""
        kept = [(name, value) for name, value in fields if name not in {TRACEPARENT, TRACESTATE}]
        return kept + list(self.context.items())

    def failed(self, reason: str) -> None:
        """The application did not take it: a code says why."""
        _failed(self._span, reason, self._trace)


def error_type(error: BaseException) -> str:
    """A word of a closed set for *error*: our code, or a class."""
    return error.code if isinstance(error, MeshError) else type(error).__name__


def _failed(span: Span, kind: str | None, trace: Any) -> None:
    if kind is not None:
        span.set_attribute("error.type", kind)
        span.set_status(trace.StatusCode.ERROR)
