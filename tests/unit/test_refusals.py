from __future__ import annotations

import base64
import json

import pytest

from mesh.jetstream.link import Credentials
from mesh.jetstream.refusals import explain

NOW_S = 1_700_000_000.0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Error: nats: 'Authorization Violation'", "credentials-refused"),
        ("'User Authentication Expired'", "credentials-expired"),
        ("'User Authentication Revoked'", "credentials-revoked"),
        ("Error: nats: 'maximum account active connections exceeded'", "account-closed"),
        ("SSLError: [SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired", "certificate-expired"),
        ("SSLError: [SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate", "certificate-refused"),
        ("SSLError: [SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", "certificate-refused"),
        ("SSLError: [SSL: TLSV1_ALERT_DECODE_ERROR] tlsv1 alert decode error", "certificate-refused"),
        ("SSLError: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "certificate-refused"),
        ("SSLCertVerificationError: certificate verify failed: certificate has expired", "server-not-trusted"),
        ("SSLError: [SSL: WRONG_VERSION_NUMBER] wrong version number", "server-without-tls"),
        ("Error: nats: empty response from server when expecting INFO message", "server-with-tls"),
    ],
)
def test_what_was_said_has_a_reason_and_a_next_step(said: str, reason: str) -> None:
    """The words of server, OpenSSL and nats-py, as they were heard from 2.15.1, 3.0 and 2.16."""
    refusal = explain(said, expires_s=None, now_s=NOW_S)
    assert refusal is not None
    assert refusal.reason == reason
    assert refusal.next


@pytest.mark.parametrize("said", ["ConnectionRefusedError: [Errno 111] Connection refused", "TimeoutError: ", ""])
def test_a_server_that_is_away_refuses_nobody(said: str) -> None:
    """Nobody there and nobody answering are no refusals: they pass by themselves."""
    assert explain(said, expires_s=None, now_s=NOW_S) is None


@pytest.mark.parametrize(("ends_in_s", "reason"), [(-1, "credentials-expired"), (1, "credentials-refused")])
def test_our_own_file_says_what_the_server_does_not(ends_in_s: float, reason: str) -> None:
    """A server says the same to expired and to unknown credentials; the JWT has its end in it."""
    refusal = explain("'Authorization Violation'", expires_s=NOW_S + ends_in_s, now_s=NOW_S)
    assert refusal is not None
    assert refusal.reason == reason


@pytest.mark.parametrize(
    ("jwt", "expires_s"),
    [
        ({"exp": 1_700_000_000}, 1_700_000_000.0),
        ({"exp": 0}, None),
        ({"iat": 5}, None),
        ({"exp": "soon"}, None),
        (None, None),
    ],
)
def test_the_end_of_a_jwt_is_read_from_it(jwt: dict[str, object] | None, expires_s: float | None) -> None:
    """Seconds where it says when; what cannot be read ends no connection."""
    payload = "?" if jwt is None else base64.urlsafe_b64encode(json.dumps(jwt).encode()).decode().rstrip("=")
    assert Credentials(f"head.{payload}.sig", b"").expires_s == expires_s
