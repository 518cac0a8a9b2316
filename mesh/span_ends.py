"""What a span that was begun is told before it ends: where its events rest, or what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.errors import MeshError
from mesh.tracing import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class Published:
    """The span of what is published: `context` is for events that have none."""

    def __init__(self, context: dict[str, str], span: Span) -> None:
        self.context = context
        self._span = span

    def stored(self, streams: set[str]) -> None:
        """Every copy rests in one of *streams*; one that has all of them is the destination."""
        if len(streams) == 1:
            self._span.set_attribute("messaging.destination.name", next(iter(streams)))


class Pushed:
    """The span of one push: `context` goes with the request, and what was pushed is settled `below`."""

    def __init__(self, context: dict[str, str], span: Span, trace: Any) -> None:
        self.context = context
        self.below: Context = trace.set_span_in_context(span)
        self._span = span
        self._trace = trace

    def headers(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """*fields* of a request with our context instead of the one that the event was created in."""
        kept = [(name, value) for name, value in fields if name not in {TRACEPARENT, TRACESTATE}]
        return kept + list(self.context.items())

    def failed(self, reason: str) -> None:
        """The application did not take it: a code says why."""
        mark(self._span, reason, self._trace)


def error_type(error: BaseException) -> str:
    """A word of a closed set for *error*: our code, or a class."""
    return error.code if isinstance(error, MeshError) else type(error).__name__


def mark(span: Span, kind: str | None, trace: Any) -> None:
    """It ended with *kind* of error; None: with none."""
    if kind is not None:
        span.set_attribute("error.type", kind)
        span.set_status(trace.StatusCode.ERROR)
