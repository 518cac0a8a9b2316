"""What a push request says beside its event, and that no value of an event can add a field to it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from agent.push import requests
from agent.push.signature import message_id, read_secret, sign
from mesh.errors import ConfigError
from mesh.event import BATCH_CONTENT_TYPE, CONTENT_TYPE
from mesh.inbound import Admitted

FIELDS: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/crm",
    "type": "crm.contact.created.v1",
    "datacontenttype": "application/json",
    "data": {"country": "DE"},
}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECRET = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
FIELD = re.compile(r"[!-~](?:[\t -~]*[!-~])?")


def admitted(fields: dict[str, Any] | None = None, **more: Any) -> Admitted:
    """An event in a handler's hands."""
    return Admitted(fields or FIELDS, "service", "spiffe://x", "EV", 1, 1, more.pop("attempt", 1), "r", **more)


def test_a_live_event_names_its_subscription_and_attempt() -> None:
    """Nothing else is said of an ordinary event."""
    assert requests.beside(admitted(attempt=3), "contacts") == [
        ("Mesh-Subscription", "contacts"),
        ("Mesh-Attempt", "3"),
    ]


def test_runs_and_stale_trust_are_said() -> None:
    """An application can tell a replay, a redrive, and what came while revocations were unknown."""
    said = dict(requests.beside(admitted(replay="r-1", redrive="d-2", stale_trust=True), "contacts"))
    assert (said["Mesh-Replay"], said["Mesh-Redrive"], said["Mesh-Stale-Trust"]) == ("r-1", "d-2", "true")


def test_the_trace_goes_on() -> None:
    """`traceparent` and `tracestate` of the event are those of the request, unchanged."""
    said = dict(requests.beside(admitted({**FIELDS, "traceparent": TRACE, "tracestate": "a=1,b=2"}), "contacts"))
    assert (said["traceparent"], said["tracestate"]) == (TRACE, "a=1,b=2")


@pytest.mark.parametrize(
    "value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "\r\n\r\nGET / HTTP/1.1", "\x7f", "\u0085", "\u2028"]
)
@pytest.mark.parametrize("name", ["subject", "region", "traceparent", "tracestate", "datacontenttype", "partitionkey"])
def test_no_value_breaks_out_of_its_field(name: str, value: str) -> None:
    """Whatever an attribute holds, each header field is one line of printable ASCII."""
    event = admitted({**FIELDS, name: value}, replay=value)
    request = requests.binary(event.fields)
    for field, text in [*request.headers, *requests.beside(event, "contacts")]:
        assert FIELD.fullmatch(text), (field, text)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.booleans(), max_size=4))
def test_any_attributes_make_a_sound_request(extra: dict[str, Any]) -> None:
    """Names and values of any kind: names are tokens, values one line."""
    try:
        request = requests.binary({**FIELDS, **extra})
    except UnicodeEncodeError:  # a lone surrogate: no JSON text brings one
        return
    for field, text in request.headers:
        assert re.fullmatch(r"[A-Za-z0-9-]+", field)
        assert text == "" or FIELD.fullmatch(text), text


@pytest.mark.parametrize(
    "media",
    [
        "application/cloudevents+json",
        "APPLICATION/CLOUDEVENTS+JSON",
        "application/cloudevents-batch+json; charset=utf-8",
        "application/cloudevents",
        "application/cloudevents+xml",
    ],
)
@pytest.mark.parametrize("make", [requests.binary, requests.structured, lambda fields: requests.batch([fields])])
def test_no_data_passes_for_an_event(media: str, make: Callable[[dict[str, Any]], requests.Request]) -> None:
    """Data that calls itself an event stays data: in no mode can a receiver read it as an event of its own."""
    forged = {"specversion": "1.0", "id": "x", "source": "/bank", "type": "bank.transfer.approved.v1"}
    request = make({**FIELDS, "datacontenttype": media, "data": forged})
    read = msgspec.json.decode(request.body)
    (event,) = read if isinstance(read, list) else [read]
    assert (event["source"], event["type"], event["data"]) == ("/crm", "crm.contact.created.v1", forged)
    assert dict(request.headers)["Content-Type"] in (CONTENT_TYPE, BATCH_CONTENT_TYPE)


# --- Standard Webhooks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_the_official_library_accepts_either_secret(secret: bytes) -> None:
    """While a secret is rotated, a receiver with the old one and one with the new one both accept."""
    request = requests.structured(FIELDS)
    now_s = int(time.time())  # the library compares with the real clock
    headers = dict(sign(message_id("/crm", "1"), request.body, [read_secret(SECRET), read_secret(OTHER)], now_s=now_s))
    assert Webhook(secret.decode()).verify(request.body, headers) == FIELDS


def test_a_changed_body_is_not_accepted() -> None:
    """The signature covers every byte."""
    now_s = int(time.time())
    headers = dict(sign("evt_1", b"{}", [read_secret(SECRET)], now_s=now_s))
    with pytest.raises(Exception, match="signature"):
        Webhook(SECRET.decode()).verify(b"{ }", headers)


def test_the_id_is_the_same_for_every_attempt_and_another_for_every_event() -> None:
    """Receivers deduplicate by it: source and id together name an event. It holds no full stop."""
    ids = {message_id(*key) for key in (("/a", "1"), ("/a", "2"), ("/b", "1"), ("/a", "1"))}
    assert len(ids) == 3
    assert not any("." in id_ for id_ in ids)


@pytest.mark.parametrize("text", [b"", b"whsec_", b"not base64!", b"c2hvcnQ=", b"whsec_" + b"A" * 92])
def test_a_secret_of_another_form_is_refused(text: bytes) -> None:
    """24 to 64 bytes in base64; the error does not repeat what is there."""
    with pytest.raises(ConfigError) as caught:
        read_secret(text)
    assert caught.value.got == "another text"
