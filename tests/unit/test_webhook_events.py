"""From a provider's words to attributes: ids never collide, types and times are always in their grammar."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.webhooks import PROVIDERS, checks, events, forms
from agent.webhooks.provider import FORM, JSON, Incoming
from agent.webhooks.settings import read_sources
from mesh.attributes import GRAMMAR
from mesh.errors import BadAttribute, BadWebhookSignature, InputError, MeshError
from mesh.event import draft_from_fields, rfc3339
from mesh.subjects import check_type
from tests.tables.webhook_rows import AT_S, ROWS, URL, Row

WORDS = st.text(min_size=1, max_size=80) | st.text(alphabet="ab:~./ \u00e9\x00", min_size=1, max_size=8)
NUMBERS = st.integers(-(2**62), 2**62)


@given(st.lists(WORDS | NUMBERS, min_size=2, max_size=2), st.lists(WORDS | NUMBERS, min_size=2, max_size=2))
def test_different_values_are_different_ids(one: list[Any], other: list[Any]) -> None:
    """Ids of several values are in the grammar, and equal only where all values are, whatever stands in them."""
    a, b = events.event_id(*one, what="x"), events.event_id(*other, what="x")
    assert GRAMMAR["id"](a)
    assert (a == b) == ([str(v) for v in one] == [str(v) for v in other])


@given(WORDS, WORDS)
def test_different_names_are_different_ids(one: str, other: str) -> None:
    """So are ids of one value."""
    a, b = events.event_id(one, what="x"), events.event_id(other, what="x")
    assert GRAMMAR["id"](a)
    assert (a == b) == (one == other)


@pytest.mark.parametrize(
    ("values", "id"),
    [
        (["evt_1MqqbKLt4dXK03v5qaIbiNCC"], "evt_1MqqbKLt4dXK03v5qaIbiNCC"),
        (["a:b"], "a:b"),
        (["a:b", 7], "a~3Ab:7"),
        (["a b~"], "a~20b~7E"),
        (["K\u00f6ln"], "K~C3~B6ln"),
        (["\udcff"], "~ED~B3~BF"),
        (["x" * 256], "x" * 256),
        (["x" * 257], f"~~{sha256(b'x' * 257).hexdigest()}"),
    ],
)
def test_an_id_is_as_the_provider_wrote_it(values: list[Any], id: str) -> None:
    """What is in the grammar stays; other bytes are escaped, and an id that is too long is a hash of itself."""
    assert events.event_id(*values, what="x") == id


@pytest.mark.parametrize("value", [None, "", True, 1.5, [], {}, 2**63])
def test_an_id_needs_a_value(value: Any) -> None:
    """Nothing, a truth, a fraction or a container names no event."""
    with pytest.raises(BadAttribute):
        events.event_id("a", value, what="x")


@given(st.lists(st.text(max_size=90), max_size=12))
def test_every_name_gives_a_type(names: list[str]) -> None:
    """No name of a provider can make a type outside the grammar."""
    if not any(names):
        with pytest.raises(BadAttribute):
            events.type_of("stripe", names)
        return
    assert check_type(events.type_of("stripe", names)).endswith(".v1")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("orders/create", ["orders", "create"]),
        ("jira:issue_updated", ["jira", "issue_updated"]),
        ("a..b", ["a", "b"]),
        ("", []),
        (None, []),
        (7, []),
    ],
)
def test_names_fall_into_words(name: Any, parts: list[str]) -> None:
    """Dots, colons and slashes separate the words of an event's name."""
    assert events.parts(name) == parts


def test_long_names_do_not_collide() -> None:
    """Two names that begin alike and are too long for a token are two types; words beyond eight share the last."""
    one, other = events.type_of("x", ["a" * 80 + "b"]), events.type_of("x", ["a" * 80 + "c"])
    assert one != other
    assert events.type_of("x", list("abcdefgh")) == "x.a.b.c.d.e.f_g_h.v1"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2021-03-25T05:09:27Z", 1616648967000),
        ("2021-03-25t05:09:27.123456789z", 1616648967123),
        ("2021-03-25T07:09:27+02:00", 1616648967000),
        ("2021-02-29T00:00:00Z", None),
        ("2021-12-31T23:59:60Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("2021-03-25 05:09:27", None),
        ("2021-03-25T05:09:27+0200", None),
        (7, None),
        (None, None),
    ],
)
def test_times_are_read_strictly(text: Any, ms: int | None) -> None:
    """An RFC 3339 time is milliseconds; what is none, or is out of range, is no time."""
    assert events.from_rfc3339(text) == ms


@given(st.none() | st.integers() | st.floats() | st.text(max_size=20) | st.booleans(), st.sampled_from([1, 1000]))
def test_every_number_is_a_time_or_none(value: Any, per_s: int) -> None:
    """What comes out can be written as a time."""
    ms = events.milliseconds(value, per_s=per_s)
    assert ms is None or GRAMMAR["time"](rfc3339(ms))


@pytest.mark.parametrize(
    "text", ["", " 1", "+1", "-1", "1.0", "1_0", "0x1", "1" * 17, "\u0661", "\u00b2", "1\n", "00", "0790"]
)
def test_a_signed_time_is_plain_digits(text: str) -> None:
    """Seconds and milliseconds are 1 to 16 ASCII digits, the first not 0, and nothing else that Python reads."""
    assert checks.digits("t", "790") == 790
    with pytest.raises(BadWebhookSignature):
        checks.digits("t", text)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"a=1&b=", {"a": "1", "b": ""}),
        (b"a=1&a=2&a=3", {"a": ["1", "2", "3"]}),
        (b"a=%C3%B6+%2B", {"a": "\u00f6 +"}),
        (b"a=\xc3\xb6", {"a": "\u00f6"}),
    ],
)
def test_a_form_is_an_object(body: bytes, fields: dict[str, Any]) -> None:
    """Fields are texts; a name that comes again has them all."""
    assert forms.as_object(forms.parse(body)) == fields


@pytest.mark.parametrize("body", [b"a", b"a=%FF", b"\xff=1", b"a=1&&b=2", b"&".join([b"a=1"] * 1001)])
def test_a_form_is_read_strictly(body: bytes) -> None:
    """What is no form, no UTF-8, or too many fields is a bad request."""
    with pytest.raises(InputError):
        forms.parse(body)


# --- whatever comes --------------------------------------------------------------------------------------------------

_SECRETS = [b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b"whpk_" + b"A" * 43 + b"=", b"a secret of some length", b"\xff"]
_HEADERS = sorted({
    "Content-Type", "X-Hub-Signature-256", "X-GitHub-Event", "X-GitHub-Delivery", "Stripe-Signature", "X-Shopify-Topic",
    "X-Shopify-Hmac-Sha256", "X-Shopify-Event-Id", "X-Shopify-Webhook-Id", "X-Shopify-Triggered-At",
    "X-Slack-Signature", "X-Slack-Request-Timestamp", "webhook-id", "webhook-timestamp", "webhook-signature",
    "X-HubSpot-Signature-v3", "X-HubSpot-Request-Timestamp", "X-Twilio-Signature",
    "X-Twilio-Webhooks-Signature-Settings", "X-Zendesk-Webhook-Signature", "X-Zendesk-Webhook-Signature-Timestamp",
    "X-Zendesk-Webhook-Invocation-Id", "X-Hub-Signature", "X-Atlassian-Webhook-Identifier", "X-Event-Key",
    "X-Erp-Signature", "X-Erp-Timestamp", "X-Mac", "X-At", "X-Id",
})  # fmt: skip
_ALMOST = st.sampled_from([
    "sha256=" + "0" * 64, "v0=" + "0" * 64, "A" * 43 + "=", "A" * 27 + "=", "v1=" + "A" * 86 + "==", "0" * 64, JSON,
    FORM,
    f"t={AT_S},v1=" + "0" * 64, "v1," + "A" * 43 + "= v1a," + "A" * 86 + "==", "v1a,", ",", " ", "=", "t=,v1=",
    str(AT_S), "9" * 16, "9" * 17, "2026-09-21T14:13:20Z", "2026-02-29T00:00:00Z", "algorithm=HMAC_SHA256", "issues",
    "orders/create", "7da5ad1d-3c34-4be6-a1c1-b4d7e2b1f2f1",
])  # fmt: skip
_VALUES = _ALMOST | st.text(max_size=60) | st.text(alphabet="0123456789abcdef=,. \udcff", max_size=70)
_KNOWN = st.sampled_from([
    "id", "type", "event", "event_id", "event_time", "action", "created", "timestamp", "data", "object", "payload",
    "challenge", "view", "hash", "trigger_id", "command", "user", "channel", "item", "subtype", "repository",
    "full_name", "issue", "key", "webhookEvent", "eventKey", "page", "time", "subject", "token", "portalId",
    "subscriptionId", "eventId", "objectId", "occurredAt", "subscriptionType", "meta", "at", "lines", "ssl_check",
    "MessageSid", "MessageStatus", "CallSid", "CallStatus", "Timestamp", "SequenceNumber", "minute_rate_limited",
])  # fmt: skip
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from(["event_callback", "url_verification", "app_rate_limited", "block_actions", "SM" + "0" * 32,
                       "zen:event-type:a.b", "2026-09-21T14:13:20Z"])
)  # fmt: skip
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KNOWN | st.text(max_size=5), inner, max_size=6),
    max_leaves=15,
)
_BODIES = st.one_of(
    st.binary(max_size=200),
    _TREES.map(lambda tree: json.dumps(tree).encode()),
    st.dictionaries(_KNOWN, _TREES, max_size=8).map(lambda tree: json.dumps(tree).encode()),
    st.lists(st.dictionaries(_KNOWN, _TREES, max_size=8), max_size=3).map(lambda tree: json.dumps(tree).encode()),
    st.lists(st.tuples(_KNOWN, st.text(alphabet='aS0%+&={}"', max_size=30)), max_size=6).map(
        lambda fields: "&".join(f"{name}={value}" for name, value in fields).encode()
    ),
)
_ONE_EACH = {row.provider if not row.scheme else row.scheme: row for row in reversed(ROWS)}


@pytest.mark.parametrize("row", _ONE_EACH.values(), ids=str)
@settings(max_examples=60)  # of each provider
@given(headers=st.dictionaries(st.sampled_from(_HEADERS), _VALUES, max_size=12), body=_BODIES, url=st.text(max_size=30))
def test_whatever_comes_is_an_error_of_ours(row: Row, headers: dict[str, str], body: bytes, url: str) -> None:
    """Arbitrary headers and bytes never verify and raise only `MeshError`, and so would what follows."""
    table = {"provider": row.provider, "secret_files": ["s"], "url": URL, **row.options}
    (source,) = read_sources({row.name: table}, "agent.toml")
    provider = PROVIDERS[row.provider](source)
    incoming = Incoming(headers, body, url, "POST")
    with pytest.raises(BadWebhookSignature):
        provider.verify(incoming, _SECRETS, now_s=AT_S)
    try:
        payload = provider.payload(incoming)
        if provider.answer(incoming, payload) is None:
            for fields in provider.translate(incoming, payload):
                draft_from_fields(fields, now_ms=0)
    except MeshError as error:
        repr(error.as_dict())
