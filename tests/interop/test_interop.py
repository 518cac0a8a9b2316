"""Other people's software on each side of the agent, and W3C Trace Context through all of it.

The CloudEvents SDKs for Python and JavaScript publish everything once and receive it; the NATS client for JavaScript
pulls a durable of its own. The tests look at what came through each door.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tests.conftest import ROOT
from tests.contract.push_mesh import Posted
from tests.interop.world import DEADLINE_S, MODES, TEAM, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # the first test starts a mesh on a busy machine

TYPE, SOURCE = "shop.order.placed.v1", "/shop"
JSON = "application/json"
DOOR = "/v1/events"
EURO, GREETING = "Euro \u20ac \U0001f600", "Gr\u00fc\u00dfe"
EVENTS: dict[str, dict[str, Any]] = {
    "json": {"subject": "order-17", "region": "eu1", "datacontenttype": JSON, "data": {"country": "DE", "lines": [1]}},
    "unicode": {"subject": EURO, "note": 'a "b" 100%', "datacontenttype": JSON, "data": {"text": GREETING}},
    "bytes": {"datacontenttype": "application/octet-stream", "data": b"\x00\xff\r\n\x80"},
    "text": {"datacontenttype": "text/plain", "data": "K\u00f6ln"},
    "nested": {"datacontenttype": JSON, "data": {"list": [1, 2.5, None, {"a": "\u5317\u4eac"}]}},
    "empty": {"datacontenttype": JSON},
}  # fmt: skip
TRACES: list[dict[str, Any]] = json.loads((ROOT / "tests" / "tables" / "trace_context.json").read_text())
TRACE = ("traceparent", "tracestate")


@dataclass
class Sent:
    """The mesh, and what both SDKs have published: fields by id. `data` may be bytes."""

    world: World
    events: dict[str, dict[str, Any]]
    traces: dict[str, dict[str, Any]]

    @property
    def ids(self) -> set[str]:
        """Of everything."""
        return set(self.events) | set(self.traces)


def named(language: str, mode: str) -> dict[str, dict[str, Any]]:
    """The events that one SDK publishes in one mode, by id."""
    ids = {name: f"{language}-{mode}-{name}" for name in EVENTS}
    return {ids[name]: {"id": ids[name], "type": TYPE, "source": SOURCE, **event} for name, event in EVENTS.items()}


def by_python(world: World, mode: str) -> dict[str, dict[str, Any]]:
    """Publish with the SDK for Python."""
    write = {"structured": to_structured_event, "binary": to_binary_event}[mode]
    for event in (events := named("python", mode)).values():
        message = write(CloudEvent({k: v for k, v in event.items() if k != "data"}, event.get("data")))
        world.ask("POST", DOOR, message.headers.items(), message.body)
    return events


def by_node(world: World) -> dict[str, dict[str, Any]]:
    """Publish with the SDK for JavaScript."""
    events = {mode: named("node", mode) for mode in MODES["node"]}
    given = [{"mode": mode, "fields": in_json(event)} for mode, some in events.items() for event in some.values()]
    said = world.run_node("cloudevents_publish.mjs", {"url": world.url + DOOR, "token": world.token, "events": given})
    assert {answer["status"] for answer in said} == {202}, said
    return {id_: event for some in events.values() for id_, event in some.items()}


def in_json(event: dict[str, Any]) -> dict[str, Any]:
    """With its bytes as the JSON format has them."""
    if isinstance(event.get("data"), bytes):
        return {
            **{name: value for name, value in event.items() if name != "data"},
            "data_base64": b64encode(event["data"]).decode(),
        }
    return event


def traced(world: World) -> dict[str, dict[str, Any]]:
    """Post the rows of the trace table, each as an event of its own in binary mode; what each is to carry, by id."""
    for number, row in enumerate(TRACES):
        event = {"id": f"trace-{number}", "specversion": "1.0", "type": TYPE, "source": SOURCE, **row.get("event", {})}
        headers = [(name, value) for name, value in row["headers"]]
        headers += [(f"ce-{name}", value.replace(" ", "%20")) for name, value in event.items()]
        world.ask("POST", DOOR, headers)
    return {f"trace-{number}": row["out"] for number, row in enumerate(TRACES)}


@pytest.fixture(scope="module")
def sent(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """A mesh in which everything was published."""
    with World.running(node, tmp_path_factory.mktemp("interop")) as world:
        events = by_python(world, "structured") | by_python(world, "binary") | by_node(world)
        yield Sent(world, events, traced(world))


async def until(arrived: Callable[[], set[str]], wanted: set[str]) -> None:
    """Wait until all of them are there."""
    with anyio.move_on_after(DEADLINE_S):
        while wanted - arrived():
            await anyio.sleep(0.05)
    assert not wanted - arrived()


def same(found: dict[str, Any], event: dict[str, Any]) -> bool:
    """Whether *found* has each attribute of *event*, and its data."""
    return {name: found.get(name) for name in event} == event and found.get("data") == event.get("data")


# --- the SDK for Python ----------------------------------------------------------------------------------------------


def pushed(sent: Sent, mode: str) -> dict[str, Posted]:
    """The requests of one mode at the Python application, by id."""
    return {posted.id: posted for posted in sent.world.python_app.posted if posted.request.path == f"/{mode}"}


def parsed(posted: Posted) -> dict[str, Any]:
    """What the SDK for Python makes of a request."""
    headers = {
        name: value for name, value in posted.headers.items() if name.lower().startswith(("ce-", "content-type"))
    }
    event = from_http_event(HTTPMessage(headers=headers, body=posted.body))
    return {**event.get_attributes(), "data": event.get_data()}


@pytest.mark.parametrize("mode", MODES["python"])
async def test_the_python_sdk_reads_what_is_pushed(sent: Sent, mode: str) -> None:
    """Each event, whoever published it and in whatever mode, has the attributes and the data that it was given."""
    await until(lambda: set(pushed(sent, mode)), sent.ids)
    found = {id_: parsed(posted) for id_, posted in pushed(sent, mode).items() if id_ in sent.events}
    assert [id_ for id_, event in sent.events.items() if not same(found[id_], event)] == []


# --- the SDK for JavaScript ------------------------------------------------------------------------------------------


def received(sent: Sent, mode: str) -> dict[str, dict[str, Any]]:
    """What Node's application got in one mode, by id."""
    assert sent.world.node_app.process.poll() is None, "it has died: see what it wrote to stderr"
    return {line["fields"]["id"]: line for line in sent.world.node_app.received if line["path"] == f"/{mode}"}


def as_bytes(fields: dict[str, Any]) -> dict[str, Any]:
    """With the bytes of its data as bytes."""
    data = fields.get("data")
    return {**fields, "data": bytes(data["bytes"])} if isinstance(data, dict) and "bytes" in data else fields


@pytest.mark.parametrize("mode", MODES["node"])
async def test_the_javascript_sdk_reads_what_is_pushed(sent: Sent, mode: str) -> None:
    """The same, in JavaScript, and in batches too; its own validation passes."""
    await until(lambda: set(received(sent, mode)), sent.ids)
    found = received(sent, mode)
    assert {line["valid"] for line in found.values()} == {True}
    assert [id_ for id_, event in sent.events.items() if not same(as_bytes(found[id_]["fields"]), event)] == []


# --- the NATS client for JavaScript ----------------------------------------------------------------------------------


async def test_the_javascript_nats_client_consumes_and_verifies(sent: Sent) -> None:
    """A team's credentials pull its durable; each event verifies, with one bit changed none does, and all are acked."""
    world = sent.world
    file = world.kit.host.context(team=TEAM)
    team = file.team_address()
    address = team.subscriptions["plain"]
    may = [[f"spiffe://mesh.local/ns/acme/sa/{TEAM}", TYPE, SOURCE]]
    asked = {
        "url": file.mesh.nats_url, "creds": team.creds_file, "inboxPrefix": f"_INBOX_team-{TEAM}", "may": may,
        "stream": address.stream, "durable": address.durable, "count": len(sent.ids), "tenant": "acme",
        "root": str(file.data / "trust" / "ca.crt"),
    }  # fmt: skip
    lines = await anyio.to_thread.run_sync(world.run_node, "consume.mjs", asked)
    assert {line["event"]["id"] for line in lines} == sent.ids
    assert {(line["verdict"], line["changed"]) for line in lines} == {("accept", "refuse V9 bad-signature")}
    assert {line["event"]["id"]: line["traceparent"] or None for line in lines} == {
        id_: sent.traces.get(id_, {}).get("traceparent") for id_ in sent.ids
    }
    await world.kit.nothing(TEAM, "plain")


# --- pull over HTTP --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pulled(sent: Sent) -> dict[str, dict[str, Any]]:
    """All events as the pull door hands them out, each acked, by id."""
    path = "/v1/subscriptions/pulled"
    found: dict[str, dict[str, Any]] = {}
    while set(found) < sent.ids:
        events = sent.world.ask("GET", f"{path}/events?wait_s=20")["events"]
        assert events, sent.ids - set(found)
        body = json.dumps({"leases": [one["lease"] for one in events]}).encode()
        results = sent.world.ask("POST", f"{path}/ack", [("Content-Type", JSON)], body)["results"]
        assert all(one["ok"] for one in results)
        found |= {one["event"]["id"]: one["event"] for one in events}
    return found


async def test_pull_hands_out_what_was_published(sent: Sent, pulled: dict[str, dict[str, Any]]) -> None:
    """The same events in the JSON format of CloudEvents, whoever published them."""
    assert [id_ for id_, event in sent.events.items() if not same(pulled[id_], in_json(event))] == []
    await sent.world.kit.nothing(TEAM, "pulled")


# --- trace context ---------------------------------------------------------------------------------------------------


def trace(fields: dict[str, Any]) -> dict[str, str]:
    """What it says of a trace."""
    return {name: fields[name] for name in TRACE if fields.get(name) is not None}


def wrong(sent: Sent, found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The rows whose trace is another one, by name."""
    return {TRACES[int(id_[6:])]["name"]: found[id_] for id_, out in sent.traces.items() if found[id_] != out}


@pytest.mark.parametrize("mode", MODES["python"])
async def test_a_push_carries_the_trace_in_the_event_and_beside_it(sent: Sent, mode: str) -> None:
    """In either mode: the attributes, and the HTTP fields that instrumented applications read."""
    await until(lambda: set(pushed(sent, mode)), set(sent.traces))
    found = {id_: pushed(sent, mode)[id_] for id_ in sent.traces}
    assert wrong(sent, {id_: trace(parsed(posted)) for id_, posted in found.items()}) == {}
    assert wrong(sent, {id_: trace(dict(posted.headers)) for id_, posted in found.items()}) == {}


async def test_node_finds_the_trace_in_the_event_and_beside_it(sent: Sent) -> None:
    """As Python does."""
    await until(lambda: set(received(sent, "binary")), set(sent.traces))
    found = {id_: received(sent, "binary")[id_] for id_ in sent.traces}
    assert wrong(sent, {id_: trace(line["fields"]) for id_, line in found.items()}) == {}
    assert wrong(sent, {id_: trace(line) for id_, line in found.items()}) == {}


def test_pull_hands_the_trace_out(sent: Sent, pulled: dict[str, dict[str, Any]]) -> None:
    """As attributes of the event."""
    assert wrong(sent, {id_: trace(pulled[id_]) for id_ in sent.traces}) == {}


async def test_the_library_hands_the_trace_over(sent: Sent) -> None:
    """As attributes of the event."""
    events = await sent.world.kit.expect(TEAM, "library", count=len(sent.ids), timeout_s=DEADLINE_S)
    found = {event.id: trace(dict(event.fields)) for event in events}
    assert wrong(sent, found) == {}
    assert [id_ for id_ in sent.events if found[id_]] == []
