"""Spans of what the mesh does with an event, where somebody wants them. OpenTelemetry's messaging conventions.

    publish <type>      PRODUCER  an event from when a door or an embedded agent took it to its last copy; its creation
    process <type>      CONSUMER  a handler of the library, or a push; linked to the creation context
    fetch <type>        CLIENT    what an application pulled over HTTP; linked to the creation context of each
    ack <type>          CLIENT    how one was settled, below its `process` or `fetch`; or `nak`, or `dead_letter`

An event's own `traceparent` is never overwritten: it says where the event was created. Where it has none, it is given
that of its `publish` span. `process` is a trace of its own, linked, unless `MESH_TRACES_PROCESS=parent` puts it below
the creation context. What the library pulls ahead has no span: the conventions forbid one until the application has it.
Nor has an event that failed verification: nobody believes its trace. Only events that are sampled cost anything: the
door decides, and whoever handles an event follows.

Nothing of OpenTelemetry is imported until tracing is on. Then `tracer` is set, and that is all that hot code looks at.

Source: semantic conventions 1.44.0, messaging spans (development); `conventions.py` has names and attributes.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mesh import logs
from mesh.conventions import Conventions
from mesh.sampling import Sampling
from mesh.span_ends import Published, Pushed, error_type, mark
from mesh.tracing import TRACEPARENT, TRACESTATE, sampled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence
    from contextlib import AsyncExitStack

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind
    from opentelemetry.trace import Tracer as OtelTracer

    from mesh.inbound import Admitted

ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)

tracer: Tracer | None = None  # None: tracing is off
_sending = False  # whether this process sends telemetry: metrics alone have no tracer


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
    if tracer is not None or _sending:
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
        _send(sending=True)
        stack.callback(_send, sending=False)


def _send(*, sending: bool) -> None:
    global _sending  # noqa: PLW0603 - as above
    _sending = sending


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
        self._says = Conventions(common)
        self._open: dict[int, tuple[Span, Any]] = {}
        self.samples = samples or Sampling()
        logs.look_for_trace(self._current)

    # --- publishing --------------------------------------------------------------------------------------------------

    @contextmanager
    def publish(self, events: Sequence[Mapping[str, Any]], request: Mapping[str, str]) -> Iterator[Published]:
        """The `publish` span around this block, current in it.

        Args:
            events: The attributes of each.
            request: The trace of the request that they came with, as attributes; empty where it had none.
        """
        own = [event for event in events if TRACEPARENT in event]
        parent = self._extract(request or ({} if not own else own[0]))
        links = [link for event in own if (link := self._link(event)) is not None]
        attributes = self._says.of(events, "publish", "send")
        span = self._start("publish", events, self._trace.SpanKind.PRODUCER, parent, links, attributes)
        with self._current_span(span):
            yield Published(self._carried(span), span)

    def ambient(self) -> dict[str, str]:
        """The trace of whoever calls, as attributes; empty for none."""
        span = self._trace.get_current_span()
        return self._carried(span) if span.get_span_context().is_valid else {}

    # --- processing --------------------------------------------------------------------------------------------------

    def enter(self, key: int, event: Admitted, team: str, durable: str) -> Context | None:
        """A handler begins with *event*: its `process` span begins and is current, if the event is sampled.

        Returns:
            Below what the event is to be settled; None where it is not sampled.
        """
        if not self.follows(event):
            return None
        span = self._process([event], team, durable)
        self._open[key] = span, self._context.attach(within := self._trace.set_span_in_context(span))
        return within

    def leave(self, key: int, error: BaseException | None) -> None:
        """The handler ended."""
        found = self._open.pop(key, None)
        if found is None:
            return
        span, token = found
        mark(span, None if error is None else error_type(error), self._trace)
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

    def fetched(
        self, events: Sequence[Admitted], team: str, durable: str, request: Mapping[str, str], began_ns: int
    ) -> Context | None:
        """An application got *events* that it had asked for at *began_ns*, Unix time, in a request of that trace.

        Returns:
            As `enter`. None where none of them is sampled.
        """
        followed = [event for event in events if self.follows(event)]
        if not followed:
            return None
        links = [
            self._trace.Link(link.context, {"messaging.message.id": event.id})
            for event in followed
            if (link := self._link(event.fields)) is not None
        ]
        attributes = self._says.consumed(events, team, durable, operation="fetch", kind="receive", batch=True)
        fields = [event.fields for event in events]
        kind = self._trace.SpanKind.CLIENT
        span = self._start("fetch", fields, kind, self._extract(request), links, attributes, began_ns)
        span.end()
        return self._trace.set_span_in_context(span)

    def settled(  # noqa: PLR0917 - two callers, both in handling
        self,
        verb: str,
        event: Admitted,
        place: tuple[str, str],
        below: Context | None,
        began_ns: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """An event was settled as *verb*; one that takes no time is written beside others, and its span has no length.

        Args:
            verb: `ack`, `nak` or `dead_letter`.
            event: Which.
            place: Its team and durable.
            below: Its `process` or `fetch`; without one the span is below whatever is current.
            began_ns: When it began, Unix time; None for now.
            error: Why it was not settled after all.
        """
        if not self.follows(event):
            return
        attributes = self._says.consumed([event], *place, operation=verb, kind="settle")
        link = None if below is not None else self._link(event.fields)
        links = [] if link is None else [link]
        span = self._start(verb, [event.fields], self._trace.SpanKind.CLIENT, below, links, attributes, began_ns)
        mark(span, None if error is None else error_type(error), self._trace)
        span.end()

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
        attributes = self._says.consumed(events, team, durable, operation="process", kind="process")
        links = [link for one in fields if (link := self._link(one)) is not None]
        parent = self._extract(fields[0]) if self._below and len(events) == 1 else None
        around = self._trace.get_current_span().get_span_context()
        if parent is not None and around.is_valid:
            links.append(self._trace.Link(around))  # of whoever called, which would have been the parent
        return self._start("process", fields, self._trace.SpanKind.CONSUMER, parent, links, attributes)

    def _start(  # noqa: PLR0917 - four callers, all here
        self,
        verb: str,
        events: Sequence[Mapping[str, Any]],
        kind: SpanKind,
        parent: Any,
        links: list[Link],
        attributes: dict[str, Any],
        began_ns: int | None = None,
    ) -> Span:
        name = self._says.named(verb, events, attributes)
        return self._otel.start_span(name, parent, kind, attributes, links, began_ns)

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
            mark(span, error_type(error), self._trace)
            raise
        finally:
            self._context.detach(token)
            span.end()

    def _current(self) -> str | None:
        context: SpanContext = self._trace.get_current_span().get_span_context()
        if tracer is not self or not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
