"""Problem documents: what a caller reads when something is refused."""

from __future__ import annotations

import pytest

from agent import problems
from mesh import errors
from mesh.errors import Denied, MeshError, MethodNotAllowed, StreamUnavailable, TooLarge, Unauthorized


def test_a_refusal_says_what_was_expected_and_what_to_do() -> None:
    """An error of ours becomes code, status, detail, expected, got, next, and the facts it carries."""
    error = TooLarge("the body has 9 bytes, limit 8", expected="at most 8", got="9", next="send less", limit=8, size=9)
    assert problems.document(error, instance="7f") == {
        "type": "urn:mesh:problem:too-large",
        "title": "Too large",
        "status": 413,
        "code": "too-large",
        "detail": "the body has 9 bytes, limit 8",
        "expected": "at most 8",
        "got": "9",
        "next": "send less",
        "instance": "urn:mesh:request:7f",
        "limit": 8,
        "size": 9,
    }


def test_a_denial_names_the_rule() -> None:
    """A 403 of the policies carries rule and reason."""
    document = problems.document(Denied("no", rule="no-test-accounts", reason="rule"), instance="1")
    assert (document["status"], document["rule"], document["reason"]) == (403, "no-test-accounts", "rule")


def test_a_foreign_exception_shows_nothing_of_itself() -> None:
    """What nobody foresaw is 500 `internal` without its text, which may quote an event."""
    document = problems.document(ValueError("ada@example.org"), instance="1")
    assert (document["status"], document["code"]) == (500, "internal")
    assert "ada" not in str(document)


def test_details_that_are_no_plain_facts_stay_out() -> None:
    """Only texts, numbers and lists of them are shown; nothing overwrites a member of the standard."""
    error = MeshError("x", status=1, code="y", thing=object(), pairs={"a": 1}, failed=[1, 2])
    document = problems.document(error, instance="1")
    assert document["code"] == "mesh-error"
    assert document["failed"] == [1, 2]
    assert "thing" not in document
    assert "pairs" not in document


def test_headers_fit_the_status() -> None:
    """503 says when to come back, 401 how to ask, 405 what is allowed."""
    assert problems.headers(StreamUnavailable("x"), retry_after_s=2)["Retry-After"] == "2"
    assert problems.headers(StreamUnavailable("x", retry_after_s=7.5), retry_after_s=2)["Retry-After"] == "7"
    assert problems.headers(Unauthorized("x"), retry_after_s=2)["WWW-Authenticate"] == "Bearer"
    assert problems.headers(MethodNotAllowed("x", allow="POST"), retry_after_s=2)["Allow"] == "POST"


@pytest.mark.parametrize("kind", errors.catalogue(), ids=lambda kind: kind.code)
def test_every_error_of_the_mesh_makes_a_document(kind: type[MeshError]) -> None:
    """Each class of the tree has a title and a status that HTTP knows."""
    error = kind.__new__(kind)
    MeshError.__init__(error, "x")
    document = problems.document(error, instance="1")
    assert 400 <= document["status"] < 600
    assert document["title"]
    assert problems.encode(document)
