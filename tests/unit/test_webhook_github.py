"""GitHub webhooks: who signed, and which event a delivery is."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.webhooks import github
from agent.webhooks.provider import Incoming
from agent.webhooks.settings import WebhookSource
from mesh.errors import BadAttribute, BadWebhookSignature
from mesh.event import draft_from_fields
from mesh.subjects import check_type

BODY = b'{"action": "opened", "number": 7}'
SECRET = b"a secret of 32 characters or more"
NEXT = b"another secret, used from tomorrow"
HEADERS = {github.EVENT: "pull_request", github.DELIVERY: "72d3162e-cc78-11e3-81ab-4c9367dc0958"}

MAIN = github.GitHub(WebhookSource(name="main", provider="github", secret_files=("s",)))


def verify(headers: dict[str, str], body: bytes, secrets: list[bytes]) -> None:
    """As the door calls it."""
    MAIN.verify(Incoming(headers, body, "", "POST"), secrets, now_s=0)


def translate(headers: dict[str, str], payload: object) -> dict[str, Any]:
    """The one event of a delivery."""
    (fields,) = MAIN.translate(Incoming(headers, b"", "", "POST"), payload)
    return fields


def signature(body: bytes, secret: bytes) -> dict[str, str]:
    """The header as GitHub makes it."""
    return {github.SIGNATURE: "sha256=" + hmac.new(secret, body, sha256).hexdigest()}


def test_the_published_example_verifies() -> None:
    """The example of GitHub's own documentation is accepted."""
    body, secret = b"Hello, World!", b"It's a Secret to Everybody"
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    verify({github.SIGNATURE: f"sha256={digest}"}, body, [secret])


@pytest.mark.parametrize("secret", [SECRET, NEXT])
def test_either_secret_verifies_while_one_is_rotated(secret: bytes) -> None:
    """With two secrets configured, a delivery signed with either is accepted."""
    verify(signature(BODY, secret), BODY, [SECRET, NEXT])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {github.SIGNATURE: ""},
        {github.SIGNATURE: "sha1=" + "0" * 40},
        {github.SIGNATURE: "sha256=" + "0" * 64},
        {github.SIGNATURE: "sha256=" + "0" * 63 + "\u00e9"},
        {github.SIGNATURE: "SHA256=" + hmac.new(SECRET, BODY, sha256).hexdigest()},
        {github.SIGNATURE: signature(BODY, SECRET)[github.SIGNATURE] + " "},
        signature(BODY, b"somebody else's secret, of course"),
        signature(BODY + b" ", SECRET),
    ],
)
def test_any_other_signature_is_refused(headers: dict[str, str]) -> None:
    """A missing, malformed or foreign signature is refused, and so is one over another body."""
    with pytest.raises(BadWebhookSignature):
        verify(headers, BODY, [SECRET])


@pytest.mark.parametrize(
    ("event", "payload", "type_"),
    [
        ("push", {"ref": "refs/heads/main"}, "github.push.v1"),
        ("pull_request", {"action": "opened"}, "github.pull_request.opened.v1"),
        ("check_run", {"action": "requested_action"}, "github.check_run.requested_action.v1"),
        ("Odd-Event", {"action": "Two Words!"}, "github.odd-event.two_words_.v1"),
        ("push", {"action": 7}, "github.push.v1"),
        ("push", {"action": ""}, "github.push.v1"),
        ("push", ["not", "an", "object"], "github.push.v1"),
        ("issues", {"action": "x" * 80}, f"github.issues.{'x' * 47}_{sha256(b'x' * 80).hexdigest()[:16]}.v1"),
    ],
)
def test_event_and_action_make_the_type(event: str, payload: object, type_: str) -> None:
    """The type is `github.<event>[.<action>].v1` in the grammar of types, whatever the provider sends."""
    fields = translate({**HEADERS, github.EVENT: event}, payload)
    assert check_type(fields["type"]) == type_
    assert fields["source"] == "/github/main"
    assert fields["id"] == HEADERS[github.DELIVERY]
    assert fields["data"] == payload


def test_a_ping_is_an_event() -> None:
    """What GitHub sends to try the address travels the whole way, so that the address is known to work."""
    fields = translate({**HEADERS, github.EVENT: "ping"}, {"zen": "Keep it logically awesome."})
    assert fields["type"] == "github.ping.v1"


@pytest.mark.parametrize("missing", [github.EVENT, github.DELIVERY])
@pytest.mark.parametrize("value", ["", "a b", "\r\nNats-Msg-Id: x", "x" * 99, "\u00fc"])
def test_a_delivery_must_say_what_it_is(missing: str, value: str) -> None:
    """Without a well-formed event name and delivery id there is no event, and the value is not repeated."""
    with pytest.raises(BadAttribute) as caught:
        translate({**HEADERS, missing: value}, {})
    assert not value or value not in repr(caught.value.as_dict())


@given(st.text(alphabet=st.characters(codec="ascii"), min_size=1, max_size=64), st.text(min_size=1, max_size=100))
def test_every_action_gives_an_event_that_is_accepted(event: str, action: str) -> None:
    """No action of a provider can make a type outside the grammar."""
    try:
        fields = translate({**HEADERS, github.EVENT: event}, {"action": action})
    except BadAttribute:
        return
    assert draft_from_fields(fields, now_ms=0).type == fields["type"]
