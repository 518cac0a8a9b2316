"""Spans by OpenTelemetry's messaging conventions: names, kinds, links, and what is never overwritten."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from agent import core
from agent.pull.handing import Handing
from agent.receipts import CopyReceipt, Receipt
from agent.settings import AgentSettings
from agent.tasks import Tasks
from agent.traced import publish
from mesh import logs, spans
from mesh.conventions import MAX_NAMES, OTHER
from mesh.delivery import Ack, DeadLetter, Outcome, Retry
from mesh.errors import Denied, StreamUnavailable
from mesh.event import Draft, Limits
from mesh.feed import Pulled
from mesh.handling import Delivery, handling
from mesh.inbound import Admitted
from mesh.otlp import DROPPED, Batches, sampling
from mesh.sampling import Sampling
from mesh.spans import Tracer

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
        self.otel = provider.get_tracer("mesh")
        self.tracer = Tracer(self.otel, samples, below=below, common={"server.port": 4222})

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
    settings = AgentSettings(name="crm-adapter", tenant="acme", team="crm")

    def __init__(self, error: Exception | None = None) -> None:
        self.drafts: list[Draft] = []
        self._error = error

    async def publish_drafts(self, drafts: Sequence[Draft]) -> list[Any]:
        """Keep them."""
        self.drafts += drafts
        if self._error is not None:
            raise self._error
        copies = [CopyReceipt("clear", "EV_local_crm", 1), CopyReceipt("minimal", "EV_local_crm", 2)]
        return [Receipt(draft.fields["id"], "stream", duplicate=False, copies=copies) for draft in drafts]

    def check_open(self) -> None:
        """It is."""

    def _draft(self, event: Draft) -> Draft:
        return event


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


def below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether *parent* is that of *span*."""
    context = parent.get_span_context()
    return span.parent is not None and context is not None and span.parent.span_id == context.span_id


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
        "messaging.destination.name": "EV_local_crm",
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


async def test_an_event_s_own_context_is_linked_where_it_is_the_parent_too(made: Made) -> None:
    """A request without a trace: the span is below whoever created the event, and says so by a link as well."""
    await published(made, {}, draft(traceparent=SAMPLED))
    span = made.only(f"publish {TYPE}")
    assert span.parent is not None
    assert [link.context.span_id for link in span.links] == [span.parent.span_id] == [int(SPAN, 16)]


@pytest.mark.parametrize("many", [False, True])
async def test_what_an_application_publishes_through_its_own_agent_has_a_span(made: Made, many: bool) -> None:
    """Without any door: below whatever the application is doing, and the event's creation context."""
    agent: Any = Agent()
    with made.otel.start_as_current_span("working") as working:
        await (core.Agent.publish_many(agent, [draft()]) if many else core.Agent.publish(agent, draft()))
    span = made.spans[f"publish {TYPE}"]
    assert span.parent is not None
    assert span.parent.span_id == working.get_span_context().span_id
    assert agent.drafts[0].fields["traceparent"] == traceparent(span)


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


class Handler:
    """A subscription that has delivered one event, and settles it as it is told."""

    def __init__(self, event: Admitted, outcome: Outcome | BaseException | None = None) -> None:
        self.team, self.address = "support", SimpleNamespace(durable="support--contacts")
        self.settler = self.protection = self.feed = self.settler_of = self
        self._outcome = outcome
        pulled = Pulled(event, event.key, SimpleNamespace(body=b"{}"), None)  # type: ignore[arg-type]  # a stand-in
        self.delivery = Delivery(pulled, self, None)  # type: ignore[arg-type]  # a stand-in

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None

    async def fail(self, *_: Any) -> Any:
        """As the settler would."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    bury = fail

    async def handle(self, error: Exception | None = None) -> None:
        """The handler returns, or raises."""
        async with self.delivery:
            if error is not None:
                raise error


async def test_a_process_span_is_linked_to_the_creation_context(made: Made) -> None:
    """A trace of its own by default, with what is known of the delivery; its ack is below it."""
    await Handler(admitted(traceparent=SAMPLED)).handle()
    span, ack = made.spans[f"process {TYPE}"], made.spans[f"ack {TYPE}"]
    assert (span.kind, span.parent) == (SpanKind.CONSUMER, None)
    (link,) = span.links
    assert (format_trace_id(link.context.trace_id), format_span_id(link.context.span_id)) == (TRACE, SPAN)
    expected = {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "EV_local_crm",
        "messaging.destination.subscription.name": "support--contacts",
        "messaging.consumer.group.name": "support",
        "messaging.nats.stream": "EV_local_crm",
        "messaging.nats.sequence": 7,
        "messaging.nats.delivery_count": 2,
    }
    assert expected.items() <= dict(span.attributes or {}).items()
    assert dict(ack.attributes or {}) == dict(span.attributes or {}) | {
        "messaging.operation.name": "ack",
        "messaging.operation.type": "settle",
    }
    assert ack.kind is SpanKind.CLIENT
    assert below(ack, span)


@pytest.mark.parametrize(
    ("outcome", "verb"), [(Retry(30.0), "nak"), (DeadLetter("attempts-exhausted", "x"), "dead_letter"), (Ack(), "ack")]
)
async def test_a_failed_handler_s_event_is_settled_in_a_span(made: Made, outcome: Outcome, verb: str) -> None:
    """By what became of it, below its `process`; the error is that span's, for settling it went well."""
    await Handler(admitted(traceparent=SAMPLED), outcome).handle(ValueError("a secret"))
    span, settled = made.spans[f"process {TYPE}"], made.spans[f"{verb} {TYPE}"]
    assert len(made.spans) == 2
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "error.type" not in (settled.attributes or {})
    assert (settled.attributes or {})["messaging.operation.type"] == "settle"
    assert below(settled, span)
    assert "a secret" not in span.to_json() + settled.to_json()


async def test_what_cannot_be_settled_says_why(made: Made) -> None:
    """It is handed back instead, and its span has the code."""
    unsettled = Handler(admitted(traceparent=SAMPLED), StreamUnavailable("no"))
    with pytest.raises(StreamUnavailable):
        await unsettled.handle(ValueError())
    assert (made.spans[f"nak {TYPE}"].attributes or {})["error.type"] == StreamUnavailable.code


async def test_an_event_is_settled_as_the_handler_said(made: Made) -> None:
    """`retry` in its hands is the settlement; its clean end is no ack beside it."""
    handler = Handler(admitted(traceparent=SAMPLED))
    async with handler.delivery:
        handler.delivery.retry(5.0)
    assert set(made.spans) == {f"process {TYPE}", f"nak {TYPE}"}


async def test_an_event_that_no_block_handles_is_settled_beside_its_creation(made: Made) -> None:
    """Taken from the iterator and acked: linked to the creation context, for there is no `process` to be below."""
    Handler(admitted(traceparent=SAMPLED)).delivery.ack()
    (link,) = made.only(f"ack {TYPE}").links
    assert format_span_id(link.context.span_id) == SPAN


def test_what_is_fetched_is_linked_event_by_event(made: Made) -> None:
    """One span for the request, from its begin; links name the events that are recorded, the count is of all."""
    request = {"traceparent": SAMPLED.replace(SPAN, "d" * 16)}
    events = [admitted(traceparent=SAMPLED), admitted(id="2")]
    within = made.tracer.fetched(events, "support", "support--contacts", request, 1_000)
    span = made.only(f"fetch {TYPE}")
    assert (span.kind, span.start_time) == (SpanKind.CLIENT, 1_000)
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == "d" * 16
    assert [(format_span_id(link.context.span_id), dict(link.attributes or {})) for link in span.links] == [
        (SPAN, {"messaging.message.id": "1"})
    ]
    attributes = dict(span.attributes or {})
    assert (attributes["messaging.operation.type"], attributes["messaging.batch.message_count"]) == ("receive", 2)
    assert "messaging.message.id" not in attributes
    delivery = Handler(events[0]).delivery
    delivery.settle_below(within)
    delivery.ack()
    assert below(made.spans[f"ack {TYPE}"], span)


async def test_what_is_leased_is_settled_below_its_fetch(made: Made) -> None:
    """The pull door: the request's trace has the fetch, and what the application says of the event is below that."""
    delivery = Handler(admitted(traceparent=SAMPLED)).delivery
    tasks = Tasks()
    handing = Handing("contacts", limit=1, settle_s=1.0, idle_s=60.0, leave=anyio.sleep_forever, tasks=tasks)

    class Subscription:
        async def next(self) -> Delivery:
            return delivery

    try:
        (lease,) = await handing.take(Subscription(), 1, 30.0, {"traceparent": SAMPLED})  # type: ignore[arg-type]  # so
        assert handing.ack(lease.token)
    finally:
        await tasks.cancel()
    fetch, ack = made.spans[f"fetch {TYPE}"], made.spans[f"ack {TYPE}"]
    assert fetch.parent is not None
    assert format_trace_id(fetch.parent.trace_id) == TRACE
    assert below(ack, fetch)


async def test_an_embedded_agent_traces_while_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its process would, where the environment asks for it; and no longer."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    agent: Any = SimpleNamespace(settings=Agent.settings, _telemetry=AsyncExitStack())
    for step in ("start", "wait_ready", "drain", "close"):
        setattr(agent, step, AsyncMock())
    assert await core.Agent.__aenter__(agent) is agent
    assert spans.tracer is not None
    await core.Agent.__aexit__(agent, None, None, None)
    assert spans.tracer is None


def test_a_fetch_that_nobody_records_has_no_span(made: Made) -> None:
    """Whatever the request says: the events decide."""
    assert made.tracer.fetched([admitted()], "support", "d", {"traceparent": SAMPLED}, 1_000) is None
    assert not made.spans


def test_a_process_span_is_a_child_where_that_is_asked_for() -> None:
    """`MESH_TRACES_PROCESS=parent`: one trace from door to handler, and what it was called from is linked."""
    made = Made(below=True)
    with made.otel.start_as_current_span("caller") as caller:
        made.tracer.enter(1, admitted(traceparent=SAMPLED), "support", "support--contacts")
        made.tracer.leave(1, None)
    span = made.spans[f"process {TYPE}"]
    assert span.parent is not None
    assert (format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id)) == (TRACE, SPAN)
    linked = [link.context.span_id for link in span.links]
    assert linked == [int(SPAN, 16), caller.get_span_context().span_id]


@pytest.mark.parametrize("event", [admitted(), admitted(traceparent=UNSAMPLED), admitted(traceparent="")])
async def test_an_event_that_is_not_sampled_has_no_span(made: Made, event: Admitted) -> None:
    """Whoever created it decided; nothing is kept for it."""
    await Handler(event, Retry(1.0)).handle(ValueError())
    assert not made.spans
    assert not made.tracer._open


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
