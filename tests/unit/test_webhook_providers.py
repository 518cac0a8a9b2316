"""Every provider, by requests that its own library signs: who is believed, when, and which events a delivery is."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]  # none published
from twilio.rest.api.v2010.account.call import CallInstance  # type: ignore[import-untyped]  # none published
from twilio.rest.api.v2010.account.message import MessageInstance  # type: ignore[import-untyped]  # none published

from agent.webhooks import PROVIDERS
from agent.webhooks.provider import Incoming, Provider
from agent.webhooks.settings import TOLERANCE_S, read_sources
from mesh.errors import BadWebhookSignature, ConfigError, InputError, WebhookNotFresh
from mesh.event import draft_from_fields
from mesh.subjects import check_type
from tests.tables.webhook_rows import AT_S, JSON, ROWS, UNTIMED, URL, URL_SIGNED, Row
from tests.tables.webhook_signers import FORM, SECRETS, Signers

OURS = {signer: [secret.ours.encode() for secret in pair] for signer, pair in SECRETS.items()}
TIMED = [row for row in ROWS if row.provider not in UNTIMED]


@pytest.fixture(scope="module")
def signers(node: Path) -> Iterator[Signers]:
    """The providers."""
    made = Signers(node)
    yield made
    made.close()


class Headers(dict[str, str]):
    """Looked up without regard to case, as those of a request are."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in fields.items()})

    def get(self, name: str, default: Any = None) -> Any:
        """A field."""
        return super().get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())


def provider_of(row: Row) -> Provider:
    """The provider as the settings of *row* make it."""
    table = {"provider": row.provider, "secret_files": ["s"], "url": URL + row.name, **row.options}
    (source,) = read_sources({row.name: table}, "agent.toml")
    return PROVIDERS[row.provider](source)


def delivery(row: Row, signers: Signers, *, secret: int = 0, at_s: int = AT_S, again: bool = False) -> Incoming:
    """*row* as its provider sends it, signed."""
    body = row.retry_body if again and row.retry_body else row.body
    headers = {"Content-Type": JSON, **row.headers, **(row.retry if again else {})}
    theirs = SECRETS[row.signer][secret].theirs
    signed = signers.sign(row.signer, theirs, body, at_s=at_s, url=row.url, headers=headers)
    return Incoming(Headers({**headers, **signed}), body, row.url, "POST")


def events_of(provider: Provider, incoming: Incoming) -> list[dict[str, Any]]:
    """What the door publishes: accepted drafts, as fields."""
    payload = provider.payload(incoming)
    assert provider.answer(incoming, payload) is None
    return [draft_from_fields(fields, now_ms=0).fields for fields in provider.translate(incoming, payload)]


# --- who is believed, and what it becomes ----------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_delivery_becomes_its_events(row: Row, signers: Signers) -> None:
    """A request that the provider's library signed is believed, and has type, id, time, subject and data as written."""
    provider, incoming = provider_of(row), delivery(row, signers)
    provider.verify(incoming, OURS[row.signer][:1], now_s=AT_S)
    found = events_of(provider, incoming)
    data = row.data if row.data is not None else (provider.payload(incoming),)
    assert [fields.get("data") for fields in found] == list(data)
    for fields, event in zip(found, row.events, strict=True):
        assert check_type(fields["type"]) == event.type
        assert fields["type"].endswith(".v1")
        assert (fields["id"], fields.get("subject")) == (event.id, event.subject)
        assert fields["time"] == (event.time or "1970-01-01T00:00:00.000Z")
        assert fields["source"] == f"/{row.provider}/{row.name}"


@pytest.mark.parametrize("secret", [0, 1])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_either_secret_is_believed_while_one_is_rotated(row: Row, secret: int, signers: Signers) -> None:
    """With two secrets configured, a delivery signed with either is accepted."""
    provider_of(row).verify(delivery(row, signers, secret=secret), OURS[row.signer], now_s=AT_S)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_retry_is_the_same_event(row: Row, signers: Signers) -> None:
    """What the provider sends again a minute later, signed anew, has the same ids under the same source."""
    provider = provider_of(row)
    first, again = delivery(row, signers), delivery(row, signers, at_s=AT_S + 60, again=True)
    provider.verify(again, OURS[row.signer], now_s=AT_S + 60)
    one, other = events_of(provider, first), events_of(provider, again)
    assert [(e["source"], e["id"], e["type"]) for e in one] == [(e["source"], e["id"], e["type"]) for e in other]


# --- who is not ------------------------------------------------------------------------------------------------------


def _signature(row: Row, signers: Signers) -> str:
    """The header that holds the signature."""
    made = signers.sign(row.signer, SECRETS[row.signer][0].theirs, row.body, at_s=AT_S, url=row.url, headers={
        "Content-Type": JSON, **row.headers,
    })  # fmt: skip
    return next(name for name in made if not name.lower().endswith(("timestamp", "x-at")))


def _with(incoming: Incoming, name: str, value: str | None) -> Incoming:
    fields = {**incoming.headers, name.lower(): value or ""}
    return incoming._replace(headers=Headers(fields))


def _flip(text: str) -> str:
    """*text* with its last letter or digit changed: another digest of the same form."""
    at = max(index for index, char in enumerate(text) if char.isalnum())
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


TAMPERED: dict[str, Callable[[Incoming, str], Incoming]] = {
    "a byte more in the body": lambda i, _: i._replace(body=i.body + b" "),
    "a byte less": lambda i, _: i._replace(body=i.body[:-1]),
    "no body": lambda i, _: i._replace(body=b""),
    "no signature": lambda i, name: _with(i, name, None),
    "another signature": lambda i, name: _with(i, name, i.headers[name][: -8 - 1] + "AAAAAAAA="),
    "the signature changed at its end": lambda i, name: _with(i, name, _flip(i.headers[name])),
    "the signature cut short": lambda i, name: _with(i, name, i.headers[name][:-4]),
    "space after it": lambda i, name: _with(i, name, i.headers[name] + "\t"),
    "letters beyond ASCII in it": lambda i, name: _with(i, name, i.headers[name][:-1] + "é"),
    "bytes that are no text in it": lambda i, name: _with(i, name, i.headers[name][:-1] + "\udcff"),
}


@pytest.mark.parametrize("tampered", TAMPERED)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_tampered_delivery_is_refused(row: Row, tampered: str, signers: Signers) -> None:
    """A change to the body or to the signature is 401, and the error repeats nothing of either."""
    incoming = TAMPERED[tampered](delivery(row, signers), _signature(row, signers))
    with pytest.raises(BadWebhookSignature) as caught:
        provider_of(row).verify(incoming, OURS[row.signer], now_s=AT_S)
    assert type(caught.value) is BadWebhookSignature
    assert caught.value.status == 401
    said = repr(caught.value.as_dict())
    assert not any(secret.decode() in said for secret in OURS[row.signer])


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_somebody_elses_signature_is_refused(row: Row, signers: Signers) -> None:
    """A genuine request of another account does not fit."""
    with pytest.raises(BadWebhookSignature):
        provider_of(row).verify(delivery(row, signers, secret=1), OURS[row.signer][:1], now_s=AT_S)


class Alter(NamedTuple):
    """What is changed beside body and signature, for schemes that sign it."""

    row: Row
    case: str
    change: Callable[[Incoming], Incoming]


ALTERED = [
    *(Alter(row, "the URL", lambda i: i._replace(url=i.url.replace("hooks.", "other.")))
      for row in ROWS if row.signer in URL_SIGNED),
    *(Alter(row, "the query", lambda i: i._replace(url=i.url + "&more=1"))
      for row in ROWS if row.signer in URL_SIGNED and row.query),
    *(Alter(row, "the method", lambda i: i._replace(method="PUT"))
      for row in ROWS if row.signer in ("hubspot", "generic-signed-id")),
    *(Alter(row, "the id", lambda i: _with(i, "webhook-id", "msg_other"))
      for row in ROWS if row.provider == "standard"),
    *(Alter(row, "the id", lambda i: _with(i, "X-Id", "a-2")) for row in ROWS if row.signer == "generic-signed-id"),
    *(Alter(row, "the timestamp", lambda i: _timestamp(i, _another)) for row in TIMED),
    *(Alter(row, "the timestamp in other digits", lambda i: _timestamp(i, lambda text: text.replace("1", "\u0661")))
      for row in TIMED),
    *(Alter(row, "no timestamp", lambda i: _timestamp(i, lambda _: "")) for row in TIMED),
    *(Alter(row, "a zero before the timestamp", lambda i: _timestamp(i, lambda text: "0" + text)) for row in TIMED),
    *(Alter(row, "a sign before the timestamp", lambda i: _timestamp(i, lambda text: "+" + text)) for row in TIMED),
]  # fmt: skip


def _another(timestamp: str) -> str:
    return timestamp.replace("1790", "1791").replace("2026-", "2027-")


def _timestamp(incoming: Incoming, change: Callable[[str], str]) -> Incoming:
    """*incoming* with its timestamp changed, wherever the scheme has it."""
    fields = dict(incoming.headers)
    for name, value in incoming.headers.items():
        if name == "stripe-signature":
            stamp, _, rest = value.partition(",")
            fields[name] = f"t={change(stamp.removeprefix('t='))},{rest}"
        elif name.endswith(("timestamp", "x-at")):
            fields[name] = change(value)
    return incoming._replace(headers=Headers(fields))


@pytest.mark.parametrize("alter", ALTERED, ids=lambda a: f"{a.row}, {a.case}")
def test_what_else_is_signed_may_not_change(alter: Alter, signers: Signers) -> None:
    """URL, method, id and time are as good as the body where the scheme signs them."""
    row = alter.row
    with pytest.raises(BadWebhookSignature) as caught:
        provider_of(row).verify(alter.change(delivery(row, signers)), OURS[row.signer], now_s=AT_S)
    assert not isinstance(caught.value, WebhookNotFresh)


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off_s", "fresh"),
    [(TOLERANCE_S, True), (TOLERANCE_S + 1, False), (-TOLERANCE_S, True), (-TOLERANCE_S - 1, False), (86_400, False)],
)
@pytest.mark.parametrize("row", TIMED, ids=str)
def test_a_signed_time_has_a_tolerance_both_ways(row: Row, off_s: float, fresh: bool, signers: Signers) -> None:
    """A genuine delivery that comes late, or from the future, is refused beyond the tolerance, under a code of its own.

    So is one that was kept and is posted again later.
    """
    provider, incoming = provider_of(row), delivery(row, signers)
    if fresh:
        provider.verify(incoming, OURS[row.signer], now_s=AT_S + off_s)
        return
    with pytest.raises(WebhookNotFresh) as caught:
        provider.verify(incoming, OURS[row.signer], now_s=AT_S + off_s)
    assert (caught.value.status, caught.value.code) == (401, "webhook-not-fresh")


@pytest.mark.parametrize("row", TIMED, ids=str)
def test_a_source_has_a_tolerance_of_its_own(row: Row, signers: Signers) -> None:
    """`tolerance_s` of the source counts."""
    provider = provider_of(row._replace(options={**row.options, "tolerance_s": 30}))
    provider.verify(delivery(row, signers), OURS[row.signer], now_s=AT_S + 30)
    with pytest.raises(WebhookNotFresh):
        provider.verify(delivery(row, signers), OURS[row.signer], now_s=AT_S + 31)


@pytest.mark.parametrize("row", [row for row in ROWS if row.provider in UNTIMED], ids=str)
def test_a_replay_without_a_signed_time_is_the_same_event(row: Row, signers: Signers) -> None:
    """Where no time is signed, the very same request a year later is believed, and is the same event."""
    provider, incoming = provider_of(row), delivery(row, signers)
    provider.verify(incoming, OURS[row.signer], now_s=AT_S + 31_536_000)
    assert [fields["id"] for fields in events_of(provider, incoming)] == [event.id for event in row.events]


@pytest.mark.parametrize("row", [row for row in ROWS if row.provider == "twilio"], ids=str)
def test_no_header_of_twilio_makes_another_event_of_a_replay(row: Row, signers: Signers) -> None:
    """All of a Twilio id is signed: an idempotency token of somebody's own changes nothing."""
    provider, incoming = provider_of(row), delivery(row, signers)
    for other in (incoming, _with(incoming, "I-Twilio-Idempotency-Token", "another")):
        assert [fields["id"] for fields in events_of(provider, other)] == [event.id for event in row.events]


# --- published examples ----------------------------------------------------------------------------------------------

_SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
_TWILIO_FORM = {
    "CallSid": "CA1234567890ABCDE", "Caller": "+14158675309", "Digits": "1234", "From": "+14158675309",
    "To": "+18005551212",
}  # fmt: skip


class Published(NamedTuple):
    """A request and its signature as a provider's page, or its library's own tests, print them."""

    provider: str
    page: str
    secret: bytes
    at_s: int
    incoming: Incoming


PUBLISHED = [
    Published("github", 'GitHub Docs, "Validating webhook deliveries"', b"It's a Secret to Everybody", 0, Incoming(
        Headers({"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}),
        b"Hello, World!", "", "POST")),
    Published("slack", 'Slack Docs, "Verifying requests from Slack"', b"8f742231b10e8888abcd99yyyzzz85a5", 1531420618,
        Incoming(Headers({
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        }), _SLACK_BODY, "", "POST")),
    Published("standard", "the tests of the reference libraries", b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330,
        Incoming(Headers({
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }), b'{"test": 2432232314}', "", "POST")),
    Published("twilio", 'Twilio Docs, "Webhook security"', b"12345", 0, Incoming(
        Headers({"X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8=", "Content-Type": FORM}),
        urlencode(_TWILIO_FORM).encode(), "https://mycompany.com/myapp.php?foo=1&bar=2", "POST")),
]  # fmt: skip


@pytest.mark.parametrize("example", PUBLISHED, ids=lambda e: e.provider)
def test_a_published_example_is_believed(example: Published) -> None:
    """The example of the provider's own page is accepted."""
    row = next(row for row in ROWS if row.provider == example.provider)
    provider_of(row).verify(example.incoming, [example.secret], now_s=example.at_s)


# --- what one provider alone does ------------------------------------------------------------------------------------


def first(provider: str) -> Row:
    """The first row of *provider*."""
    return next(row for row in ROWS if row.provider == provider)


@pytest.mark.parametrize(
    ("header", "believed"),
    [
        ("t={t},v1={bad},v1={good}", True),
        ("t={t},v0={bad},v1={good}", True),
        ("v1={good},t={t}", True),
        ("t={t},v0={good}", False),
        ("t={t},t={t},v1={good}", False),
        ("t={t},v1=", False),
        ("v1={good}", False),
        ("t={t}", False),
        ("t={t} ,v1={good}", False),
        ("t={t},v1={many},v1={good}", False),
    ],
)
def test_stripe_signs_with_each_secret(header: str, believed: bool, signers: Signers) -> None:
    """Several `v1` may stand in the header and one of them fits; of `t` there is exactly one."""
    row = first("stripe")
    incoming = delivery(row, signers)
    good = incoming.headers["Stripe-Signature"].rpartition("=")[2]
    text = header.format(t=AT_S, good=good, bad="0" * 64, many=",v1=".join(["0" * 64] * 20))
    changed = _with(incoming, "Stripe-Signature", text)
    if believed:
        provider_of(row).verify(changed, OURS["stripe"], now_s=AT_S)
    else:
        with pytest.raises(BadWebhookSignature):
            provider_of(row).verify(changed, OURS["stripe"], now_s=AT_S)


def test_slack_sees_its_challenge(signers: Signers) -> None:
    """`url_verification` is signed like everything else, answered with its challenge, and no event."""
    row = first("slack")._replace(
        body=b'{"token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": "3eZbrw1aBm2rZgRNFdxV", "type": "url_verification"}'
    )
    provider, incoming = provider_of(row), delivery(row, signers)
    provider.verify(incoming, OURS["slack"], now_s=AT_S)
    answer = provider.answer(incoming, provider.payload(incoming))
    assert answer == (200, b"3eZbrw1aBm2rZgRNFdxV", "text/plain")
    with pytest.raises(BadWebhookSignature):
        provider.verify(_with(incoming, "X-Slack-Signature", "v0=" + "0" * 64), OURS["slack"], now_s=AT_S)


@pytest.mark.parametrize("challenge", ["7", '""', '"' + "x" * 2000 + '"', "null"])
def test_slack_gets_no_other_challenge_back(challenge: str) -> None:
    """What is no challenge is not repeated."""
    row = first("slack")
    incoming = Incoming(
        Headers({"Content-Type": JSON}),
        f'{{"type": "url_verification", "challenge": {challenge}}}'.encode(),
        "",
        "POST",
    )
    provider = provider_of(row)
    with pytest.raises(InputError):
        provider.answer(incoming, provider.payload(incoming))


def test_slack_may_try_a_commands_certificate() -> None:
    """`ssl_check` of a slash command is answered and is no event."""
    incoming = Incoming(Headers({"Content-Type": FORM}), b"ssl_check=1&token=x", "", "POST")
    provider = provider_of(first("slack"))
    assert provider.answer(incoming, provider.payload(incoming)) == (200, b"", "text/plain")


@pytest.mark.parametrize("media", [JSON, FORM, "", "text/plain"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.provider == "slack"], ids=str)
def test_slacks_content_type_decides_nothing(row: Row, media: str, signers: Signers) -> None:
    """The content type is not signed, so a delivery under another is the same event: text in it becomes no form."""
    body = row.body.replace(b"channel_join", b"&command=/x&trigger_id=1&")
    incoming = delivery(row._replace(body=body), signers)
    provider = provider_of(row)
    assert events_of(provider, _with(incoming, "Content-Type", media)) == events_of(provider, incoming)


def test_a_standard_webhook_may_carry_both_kinds(signers: Signers) -> None:
    """While a source goes over from HMAC to Ed25519 both signatures stand in the header, and either secret fits."""
    row = first("standard")
    hmac_made, ed_made = delivery(row, signers), delivery(row._replace(scheme="standard-ed25519"), signers)
    both = f"{ed_made.headers['webhook-signature']} {hmac_made.headers['webhook-signature']}"
    for secrets in (
        OURS["standard"][:1],
        OURS["standard-ed25519"][:1],
        [OURS["standard"][1], OURS["standard-ed25519"][0]],
    ):
        provider_of(row).verify(_with(hmac_made, "webhook-signature", both), secrets, now_s=AT_S)


def test_a_public_key_is_no_hmac_secret(signers: Signers) -> None:
    """Who knows the public key, as everybody does, cannot sign an HMAC with it."""
    row = first("standard")
    public = SECRETS["standard-ed25519"][0].ours
    forged = signers.sign(
        "standard", public.replace("whpk_", "whsec_"), row.body, at_s=AT_S, url="", headers=row.headers
    )
    incoming = Incoming(Headers({**row.headers, **forged}), row.body, "", "POST")
    with pytest.raises(BadWebhookSignature):
        provider_of(row).verify(incoming, [public.encode()], now_s=AT_S)


@pytest.mark.parametrize(
    ("secret", "good"),
    [
        (SECRETS["standard"][0].ours, True),
        (SECRETS["standard"][0].ours.removeprefix("whsec_"), True),
        (SECRETS["standard-ed25519"][0].ours, True),
        (SECRETS["standard-ed25519"][0].theirs, False),
        ("whsec_not base64 at all!", False),
        ("whsec_c2hvcnQ=", False),
        ("whpk_c2hvcnQ=", False),
        ("whpk_" + b64encode(bytes(32)).decode(), False),
    ],
)
def test_a_standard_secret_has_its_form(secret: str, good: bool) -> None:
    """A secret that could verify nothing, a private key, and a public key of small order are refused at the start."""
    provider = provider_of(first("standard"))
    if good:
        provider.check_secret(secret.encode())
        return
    with pytest.raises(ConfigError) as caught:
        provider.check_secret(secret.encode())
    assert secret[6:] not in repr(caught.value.as_dict())


@pytest.mark.parametrize("signed_url", ["https://hooks.example.org/x?a=1", "https://hooks.example.org:443/x?a=1"])
@pytest.mark.parametrize("url", ["https://hooks.example.org/x?a=1", "https://hooks.example.org:443/x?a=1"])
def test_twilio_signs_with_or_without_the_port(url: str, signed_url: str, signers: Signers) -> None:
    """Twilio is not consistent about the port, so both are tried; another query is another URL."""
    row = first("twilio")
    headers = {**row.headers}
    secret = SECRETS["twilio"][0].theirs
    signed = signers.sign("twilio", secret, row.body, at_s=AT_S, url=signed_url, headers=headers)
    incoming = Incoming(Headers({**headers, **signed}), row.body, url, "POST")
    provider_of(row).verify(incoming, OURS["twilio"], now_s=0)
    other = incoming._replace(url="https://hooks.example.org/x?a=2")
    with pytest.raises(BadWebhookSignature):
        provider_of(row).verify(other, OURS["twilio"], now_s=0)


class _Repeated(dict[str, list[str]]):
    """A form with names that come again, as Twilio's library takes one from Django."""

    def getlist(self, name: str) -> list[str]:
        """All values of a name."""
        return self[name]


def test_twilio_signs_a_repeated_field_once_a_value(signers: Signers) -> None:
    """Of a field that comes again Twilio signs each distinct value once, sorted; the event has them all."""
    row, fields = first("twilio"), {"MessageSid": ["SM" + "1a" * 16], "MessageStatus": ["sent"], "Tag": ["b", "a", "b"]}
    body = urlencode(fields, doseq=True).encode()
    signature = RequestValidator(SECRETS["twilio"][0].theirs).compute_signature(row.url, _Repeated(fields))
    incoming = Incoming(Headers({**row.headers, "X-Twilio-Signature": signature}), body, row.url, "POST")
    provider_of(row).verify(incoming, OURS["twilio"], now_s=0)
    (event,) = events_of(provider_of(row), incoming)
    assert event["data"]["Tag"] == ["b", "a", "b"]


def test_twilio_json_needs_its_hash_in_the_url(signers: Signers) -> None:
    """A JSON body whose hash is not in the signed URL, or is there twice, is not signed at all."""
    row = next(row for row in ROWS if row.provider == "twilio" and row.query.startswith("?bodySHA256"))
    for query in ("", row.query + "&" + row.query[1:], row.query.replace("bodySHA256", "bodysha256")):
        incoming = delivery(row._replace(query=query), signers)
        with pytest.raises(BadWebhookSignature):
            provider_of(row).verify(incoming, OURS["twilio"], now_s=0)


def test_twilio_algorithms_are_named() -> None:
    """A shared key's algorithm is one of two; what is unknown is refused, not replaced."""
    row = first("twilio")
    incoming = Incoming(
        Headers({"Content-Type": FORM, "X-Twilio-Signature": "x" * 27 + "=", "X-Twilio-Webhooks-Signature-Settings":
                 "key=k,algorithm=HMAC_MD5"}), row.body, row.url, "POST")  # fmt: skip
    with pytest.raises(BadWebhookSignature) as caught:
        provider_of(row).verify(incoming, OURS["twilio"], now_s=0)
    assert "HMAC_SHA256" in caught.value.expected


_SID = "SM" + "1a" * 16


def _known(instance: Any) -> list[str]:
    """The statuses of one of the library's classes."""
    return [value for name, value in vars(instance.Status).items() if name.isupper()]


@pytest.mark.parametrize(
    "moved",
    [
        {"MessageStatus": "deliver", "edTo": "+1"},
        {"MessageStatus": "deliveredTo+1"},
        {"MessageStatusdelivered": "To+1"},
    ],
)
def test_a_cut_status_of_twilio_is_refused(moved: dict[str, str], signers: Signers) -> None:
    """Letters moved between a status and its neighbour fit the same signature, and make no event."""
    row = first("twilio")._replace(
        body=urlencode({"MessageSid": _SID, "MessageStatus": "delivered", "To": "+1"}).encode()
    )
    provider = provider_of(row)
    incoming = delivery(row, signers)._replace(body=urlencode({"MessageSid": _SID, **moved}).encode())
    provider.verify(incoming, OURS["twilio"], now_s=0)
    with pytest.raises(InputError):
        provider.translate(incoming, provider.payload(incoming))


@pytest.mark.parametrize(
    ("sid", "field", "status"),
    [
        *(("MessageSid", "MessageStatus", status) for status in _known(MessageInstance)),
        *(("CallSid", "CallStatus", status) for status in _known(CallInstance)),
    ],
)
def test_every_status_of_twilios_library_is_an_event(sid: str, field: str, status: str) -> None:
    """What Twilio's own library knows as the status of a message or a call is taken."""
    provider = provider_of(first("twilio"))
    body = urlencode({sid: _SID, field: status}).encode()
    incoming = Incoming(Headers({"Content-Type": FORM}), body, "", "POST")
    (event,) = provider.translate(incoming, provider.payload(incoming))
    assert event["type"].split(".")[2] == status


def test_verbs_of_one_call_are_events_of_their_own(signers: Signers) -> None:
    """Requests for one call in one state differ by their fields, so none stands for another; a repeat is the same."""
    row, ids = first("twilio"), []
    for digits in ("1", "2", "1"):
        form = urlencode({"CallSid": "CA" + "2b" * 16, "CallStatus": "in-progress", "Digits": digits}).encode()
        (fields,) = events_of(provider_of(row), delivery(row._replace(body=form), signers))
        ids.append(fields["id"])
    assert ids[0] == ids[2] != ids[1]


def test_one_bad_notification_refuses_hubspots_batch(signers: Signers) -> None:
    """A batch is taken whole or not at all: one notification without its ids refuses all."""
    row = first("hubspot")
    broken = row._replace(body=row.body.replace(b'"eventId": 3816279480, ', b""))
    assert broken.body != row.body
    provider, incoming = provider_of(row), delivery(broken, signers)
    provider.verify(incoming, OURS["hubspot"], now_s=AT_S)
    with pytest.raises(InputError):
        provider.translate(incoming, provider.payload(incoming))


_STAYS = {"portalId": 34, "eventId": 7, "occurredAt": 1, "subscriptionType": "deal.other"}
_OF_OBJECTS = {**_STAYS, "subscriptionId": 7, "objectId": 7}
_OF_ENDS = {**_STAYS, "fromObjectId": 7, "toObjectId": 7, "associationType": "OTHER", "associationRemoved": True}


def hubspots(number: int) -> dict[str, Any]:
    """The first notification of one of HubSpot's rows."""
    row = [row for row in ROWS if row.provider == "hubspot"][number]
    return dict(provider_of(row).payload(Incoming({}, row.body, "", "POST"))[0])


def hubspots_id(item: dict[str, Any]) -> str:
    """Of the event that *item* becomes."""
    (event,) = provider_of(first("hubspot")).translate(Incoming({}, b"", "", "POST"), [item])
    return str(event["id"])


@pytest.mark.parametrize(
    ("number", "name", "other"),
    [(number, *of) for number, given in enumerate((_OF_OBJECTS, _OF_ENDS)) for of in given.items()],
)
def test_hubspot_ids_are_made_of_all_that_stays(number: int, name: str, other: Any) -> None:
    """HubSpot's `eventId` is not unique: notifications that differ in any of these are different events."""
    item = hubspots(number)
    assert hubspots_id(item) != hubspots_id({**item, name: other})


@pytest.mark.parametrize(
    ("number", "name"),
    [(number, name) for number, given in enumerate((_OF_OBJECTS, _OF_ENDS)) for name in given],
)
def test_hubspot_ids_need_all_but_the_subscription(number: int, name: str) -> None:
    """What is missing is refused; a subscription may be, and makes another id than one that is named."""
    item = hubspots(number)
    without = {key: value for key, value in item.items() if key != name}
    if name == "subscriptionId":
        assert hubspots_id(without) == hubspots_id(item).replace(":25:", ":")
        return
    with pytest.raises(InputError):
        hubspots_id(without)


@pytest.mark.parametrize(("given", "kept"), [("a-b.myshopify.com", "a-b.myshopify.com"), ("", None), ("a\udcff", None)])
def test_shopifys_shop_is_kept(given: str, kept: str | None, signers: Signers) -> None:
    """An app's deliveries say which shop they are from; what is no domain is left out."""
    row = first("shopify")
    incoming = _with(delivery(row, signers), "X-Shopify-Shop-Domain", given)
    (event,) = events_of(provider_of(row), incoming)
    assert event.get("shopdomain") == kept


_NAMELESS = [row for row in ROWS if not row.query.startswith("?bodySHA256")]  # such JSON is named by its hash


@pytest.mark.parametrize("body", [b"{}", b"[]", b"[{}]", b"", b"a=b", b"7"])
@pytest.mark.parametrize("row", _NAMELESS, ids=str)
def test_a_delivery_has_to_say_what_it_is(row: Row, body: bytes) -> None:
    """A genuine body that names no event, in its headers neither, is a bad request; a batch of none is none."""
    provider = provider_of(row)
    incoming = Incoming(Headers({"Content-Type": row.headers.get("Content-Type", JSON)}), body, row.url, "POST")
    with suppress(InputError):
        assert provider.translate(incoming, provider.payload(incoming)) == []
