"""A request at the control plane's door is an operator's, unchanged, of now, and counts once."""

from __future__ import annotations

import pytest

from mesh.control.proof import WINDOW_MS, Proofs, prove
from mesh.errors import NotAttested

KEY, NOW_MS = bytes(range(32)), 1_795_300_000_000
SUBJECT, BODY = "ctl.policy.apply", b'{"files":"..."}'


def proof(**changed: object) -> str:
    """The proof of the request, or of another one."""
    said = {"tenant": "acme", "subject": SUBJECT, "body": BODY, "at_ms": NOW_MS, "nonce": bytes(16)} | changed
    key = said.pop("key", KEY)
    return prove(key, **said)  # type: ignore[arg-type]


def proofs() -> Proofs:
    """A door that was opened a while ago."""
    return Proofs(KEY, "acme", since_ms=NOW_MS - 2 * WINDOW_MS)


def test_an_operators_request_is_believed_once() -> None:
    """The second time it is a replay, until the window has passed; and then it is too old."""
    door = proofs()
    door.check(proof(), subject=SUBJECT, body=BODY, now_ms=NOW_MS)
    for later_ms in (0, WINDOW_MS, WINDOW_MS + 1):
        door.check(
            proof(at_ms=NOW_MS + later_ms, nonce=bytes([later_ms % 251 + 1]) * 16),
            subject=SUBJECT,
            body=BODY,
            now_ms=NOW_MS + later_ms,
        )
        with pytest.raises(NotAttested):
            door.check(proof(), subject=SUBJECT, body=BODY, now_ms=NOW_MS + later_ms)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "none"),
        ("1.2.3", "another text"),
        (proof().replace("1.", "2.", 1), "another text"),
        (proof(key=bytes(32)), "another key"),
        (proof(tenant="globex"), "something else"),
        (proof(subject="ctl.policy.rollback"), "something else"),
        (proof(body=b"{}"), "something else"),
        (proof(at_ms=NOW_MS - WINDOW_MS - 1), "another time"),
        (proof(at_ms=NOW_MS + WINDOW_MS + 1), "another time"),
        (proof()[:-1] + ("A" if proof()[-1] != "A" else "B"), "something else"),
    ],
)
def test_anything_else_is_refused(given: str, says: str) -> None:
    """No proof, another request's, another tenant's, another key's, another time's; the error says which."""
    with pytest.raises(NotAttested) as refused:
        proofs().check(given, subject=SUBJECT, body=BODY, now_ms=NOW_MS)
    assert says in refused.value.got


def test_what_was_asked_before_the_start_is_refused() -> None:
    """Who just started does not know what was used before."""
    with pytest.raises(NotAttested, match="operator"):
        Proofs(KEY, "acme", since_ms=NOW_MS + 1).check(proof(), subject=SUBJECT, body=BODY, now_ms=NOW_MS + 5)


def test_memory_of_used_proofs_ends_with_their_window() -> None:
    """A door that is asked for years remembers a minute."""
    door = proofs()
    for n in range(500):
        at_ms = NOW_MS + n * 1000
        door.check(proof(at_ms=at_ms, nonce=n.to_bytes(16, "big")), subject=SUBJECT, body=BODY, now_ms=at_ms)
    assert len(door._used) <= 2 * WINDOW_MS // 1000 + 1
