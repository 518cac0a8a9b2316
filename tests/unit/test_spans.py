"""Spans by OpenTelemetry's messaging conventions: names, kinds, links, and what is never overwritten."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from agent.traced import publish
from mesh import logs, spans
from mesh.errors import Denied
from mesh.event import Draft, Limits
from mesh.handling import handling
from mesh.inbound import Admitted
from mesh.otlp import DROPPED, Batches, sampling
from mesh.spans import MAX_NAMES, OTHER, Sampling, Tracer

pytestmark = pytest.mark.anyio

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
TYPE = "crm.contact.updated.v1"


class Made:
    """A tracer, and what it made."""

    def __init__(self, samples: Sampling | None = None, *, below: bool = False) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = Tracer(provider.get_tracer("mesh"), samples, below=below, common={"server.port": 4222})

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """By name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def only(self, name: str) -> ReadableSpan:
        """The one that was made."""
        assert list(self.spans) == [name]
        return self.spans[name]


@pytest.fixture
def made() -> Iterator[Made]:
    """Tracing is on."""
    made = Made()
    spans.use(made.tracer)
    yield made
    spans.use(None)


class Agent:
    """Takes what it is given."""

    limits = Limits()

    def __init__(self, error: Exception | None = None) -> None:
        self.drafts: list[Draft] = []
        self._error = error

    async def publish_drafts(self, drafts: Sequence[Draft]) -> list[Any]:
        """Keep them."""
        self.drafts += drafts
        if self._error is not None:
            raise self._error
        return []


def draft(**more: str) -> Draft:
    """An accepted event."""
    return Draft({"specversion": "1.0", "id": "1", "source": "/crm", "type": TYPE, "correlationid": "c", **more})


def admitted(**more: str) -> Admitted:
    """An event that may be handled."""
    return Admitted(draft(**more).fields, "clear", "spiffe://x", "EV_local_crm", 7, 0, 2, None)


def traceparent(span: ReadableSpan) -> str:
    """Its context."""
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


async def published(made: Made, request: dict[str, str], *drafts: Draft, error: Exception | None = None) -> list[Draft]:
    """What an agent is given of *drafts*."""
    agent = Agent(error)
    await publish(agent, list(drafts), request, made.tracer)  # type: ignore[arg-type]  # a stand-in
    return agent.drafts


# --- publish ---------------------------------------------------------------------------------------------------------


async def test_a_publish_span_is_what_the_conventions_say(made: Made) -> None:
    """Name, kind and attributes; below the span of the request, and the event's creation context."""
    (sent,) = await published(made, {"traceparent": SAMPLED, "tracestate": "a=1"}, draft())
    span = made.only(f"publish {TYPE}")
    assert span.kind is SpanKind.PRODUCER
    assert span.parent is not None
    assert (format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id)) == (TRACE, SPAN)
    assert sent.fields["traceparent"] == traceparent(span)
    assert sent.fields["tracestate"] == "a=1"
    assert dict(span.attributes or {}) == {
        "messaging.system": "nats",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.template": TYPE,
        "messaging.message.id": "1",
        "messaging.message.conversation_id": "c",
        "cloudevents.event_id": "1",
        "cloudevents.event_source": "/crm",
        "cloudevents.event_type": TYPE,
        "cloudevents.event_spec_version": "1.0",
        "server.port": 4222,
    }


async def test_an_events_own_context_stays(made: Made) -> None:
    """Whoever created the event said so: the span is linked to that, and the event is as it was."""
    own = SAMPLED.replace(SPAN, "c" * 16)
    (sent,) = await published(made, {"traceparent": SAMPLED}, draft(traceparent=own))
    span = made.only(f"publish {TYPE}")
    assert sent.fields["traceparent"] == own
    assert [format_span_id(link.context.span_id) for link in span.links] == ["c" * 16]


async def test_what_nobody_records_is_not_touched(made: Made) -> None:
    """An unsampled request makes no span; its events carry its context as they do without tracing."""
    (sent,) = await published(made, {"traceparent": UNSAMPLED}, draft())
    assert sent.fields["traceparent"] == UNSAMPLED
    assert not made.spans


async def test_an_event_that_begins_unsampled_gets_no_context() -> None:
    """Nothing is added to it: not a byte."""
    made = Made(Sampling(0.0))
    (sent,) = await published(made, {}, draft())
    assert "traceparent" not in sent.fields
    assert not made.spans


async def test_a_batch_is_one_span(made: Made) -> None:
    """With their number; events of one type name it, of several do not."""
    await published(made, {}, draft(), draft(id="2"))
    span = made.only(f"publish {TYPE}")
    assert (span.attributes or {})["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in (span.attributes or {})
    made.exporter.clear()
    await published(made, {}, draft(), draft(type="crm.deal.won.v1"))
    assert made.only("publish").kind is SpanKind.PRODUCER


async def test_a_failed_publish_has_its_code(made: Made) -> None:
    """`error.type` is our stable code, and nothing of the event is in the span."""
    with pytest.raises(Denied):
        await published(made, {}, draft(), error=Denied("no"))
    span = made.only(f"publish {TYPE}")
    assert (span.attributes or {})["error.type"] == Denied.code
    assert not span.status.is_ok
    assert not span.events


async def test_names_end_at_a_bound(made: Made) -> None:
    """However many types somebody invents, a collector sees so many names and one for the rest."""
    for number in range(MAX_NAMES + 5):
        await published(made, {}, draft(type=f"crm.t{number}.v1"))
    assert len(made.spans) == MAX_NAMES + 1
    assert f"publish {OTHER}" in made.spans


# --- process ---------------------------------------------------------------------------------------------------------


def handled(made: Made, event: Admitted, error: BaseException | None = None) -> None:
    """A handler had it."""
    made.tracer.enter(1, event, "support", "support--contacts")
    made.tracer.leave(1, error)


def test_a_process_span_is_linked_to_the_creation_context(made: Made) -> None:
    """A trace of its own by default, with what is known of the delivery; its ack is below it."""
    handled(made, admitted(traceparent=SAMPLED))
    span, ack = made.spans[f"process {TYPE}"], made.spans[f"ack {TYPE}"]
    assert (span.kind, span.parent) == (SpanKind.CONSUMER, None)
    (link,) = span.links
    assert (format_trace_id(link.context.trace_id), format_span_id(link.context.span_id)) == (TRACE, SPAN)
    expected = {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.subscription.name": "support--contacts",
        "messaging.consumer.group.name": "support",
        "messaging.nats.stream": "EV_local_crm",
        "messaging.nats.sequence": 7,
        "messaging.nats.delivery_count": 2,
    }
    assert expected.items() <= dict(span.attributes or {}).items()
    assert (ack.kind, (ack.attributes or {})["messaging.operation.type"]) == (SpanKind.CLIENT, "settle")
    assert ack.parent is not None
    assert span.get_span_context() is not None
    assert ack.parent.span_id == span.get_span_context().span_id  # type: ignore[union-attr]  # there is one


def test_a_process_span_is_a_child_where_that_is_asked_for() -> None:
    """`MESH_TRACES_PROCESS=parent`: one trace from door to handler."""
    made = Made(below=True)
    handled(made, admitted(traceparent=SAMPLED))
    span = made.spans[f"process {TYPE}"]
    assert span.parent is not None
    assert format_trace_id(span.parent.trace_id) == TRACE
    assert len(span.links) == 1


@pytest.mark.parametrize("event", [admitted(), admitted(traceparent=UNSAMPLED), admitted(traceparent="")])
def test_an_event_that_is_not_sampled_has_no_span(made: Made, event: Admitted) -> None:
    """Whoever created it decided; nothing is kept for it."""
    handled(made, event)
    assert not made.spans
    assert not made.tracer._open


def test_a_failed_handler_has_its_error(made: Made) -> None:
    """The class of the error, never its text; and no ack."""
    handled(made, admitted(traceparent=SAMPLED), ValueError("a secret"))
    span = made.only(f"process {TYPE}")
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "a secret" not in span.to_json()


def test_a_push_carries_the_context_of_its_span(made: Made) -> None:
    """The application's own spans are below ours; the event names its creation context as before."""
    event = admitted(traceparent=SAMPLED)
    with made.tracer.push([event], "support", "support--contacts") as pushed:
        assert pushed is not None
        headers = dict(pushed.headers([("traceparent", SAMPLED), ("tracestate", "a=1"), ("Mesh-Attempt", "1")]))
    span = made.only(f"process {TYPE}")
    assert headers == {"Mesh-Attempt": "1", "traceparent": traceparent(span)}
    assert event.fields["traceparent"] == SAMPLED


# --- off, and out ----------------------------------------------------------------------------------------------------


def test_nothing_is_imported_while_tracing_is_off() -> None:
    """The agent and the library, without the environment's word: not one module of OpenTelemetry."""
    code = "import sys, agent.lifecycle, mesh.client, mesh.subscription, agent.push.targets, agent.pull.door; "
    code += "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_environment_turns_it_on(environ: dict[str, str], asked: bool) -> None:
    """Off by default, and the standard variables decide."""
    assert spans.wanted(environ) is asked


@pytest.mark.parametrize(
    ("name", "argument", "parent", "recorded"),
    [
        ("", "", None, True),
        ("", "", UNSAMPLED, False),
        ("always_off", "", SAMPLED, False),
        ("always_on", "", UNSAMPLED, True),
        ("parentbased_always_off", "", None, False),
        ("parentbased_traceidratio", "0", None, False),
        ("parentbased_traceidratio", "0", SAMPLED, True),
        ("traceidratio", "0", SAMPLED, False),
        ("traceidratio", "1", None, True),
        ("traceidratio", "many", None, True),
        ("jaeger_remote", "", None, True),
    ],
)
def test_samplers_of_the_specification(name: str, argument: str, parent: str | None, recorded: bool) -> None:
    """Those of the SDK specification; what we do not know is the default."""
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert sampling(environ)(parent) is recorded


class Stuck(SpanExporter):
    """Takes nothing until it may."""

    def __init__(self) -> None:
        self.began, self.free = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Wait."""
        self.began.set()
        self.free.wait(30)
        self.batches.append(len(spans))
        return SpanExportResult.SUCCESS if len(self.batches) > 1 else SpanExportResult.FAILURE


def test_a_collector_that_hangs_holds_up_nobody() -> None:
    """The queue is bounded, whoever ends a span does not wait, and what was lost is counted by reason."""
    exporter = Stuck()
    batches = Batches(exporter, queue=10, batch=4, delay_s=0.01)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(batches)
    tracer = provider.get_tracer("t")
    full, refused = DROPPED.value(reason="queue-full"), DROPPED.value(reason="not-taken")
    tracer.start_span("a").end()
    assert exporter.began.wait(30)
    for _ in range(14):
        tracer.start_span("a").end()
    assert DROPPED.value(reason="queue-full") - full == 5  # one is being sent, and counts among the ten
    exporter.free.set()
    assert batches.force_flush()
    provider.shutdown()
    assert sum(exporter.batches) == 10
    assert DROPPED.value(reason="not-taken") - refused == exporter.batches[0]


# --- logs ------------------------------------------------------------------------------------------------------------


def line_of(write: Any) -> dict[str, Any]:
    """The JSON line that *write* makes."""
    out = io.StringIO()
    handler = logs.setup("test", json=True, stream=out)
    try:
        write()
    finally:
        logs.setup("test", json=True, stream=io.StringIO())
        handler.close()
    line: dict[str, Any] = json.loads(out.getvalue())
    return line


def test_a_line_has_the_trace_of_what_is_worked_on(made: Made) -> None:
    """That of the current span; else of the event that is handled; else of the request; else none."""
    log = logs.get("test")
    assert "trace_id" not in line_of(lambda: log.info("idle"))
    with logs.of_trace(SAMPLED):
        line = line_of(lambda: log.info("refused", code="x"))
    assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)
    token = handling.set(admitted(traceparent=UNSAMPLED))
    line = line_of(lambda: log.info("handled"))
    assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)
    made.tracer.enter(1, admitted(traceparent=SAMPLED), "support", "d")
    line = line_of(lambda: log.info("handled"))
    made.tracer.leave(1, None)
    handling.reset(token)
    assert f"00-{line['trace_id']}-{line['span_id']}" == traceparent(made.spans[f"process {TYPE}"])[:-3]


def test_a_line_shows_no_value_that_calls_itself_a_trace() -> None:
    """What is no valid `traceparent` is left out: it could be anything."""
    with logs.of_trace("ada@example.org"):
        line = line_of(lambda: logs.get("test").info("refused"))
    assert "trace_id" not in line
    assert "ada" not in json.dumps(line)
