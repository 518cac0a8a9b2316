from __future__ import annotations

from typing import Any

import pytest

from mesh.demo.account import Input, Receipt, hidden, latencies, masked_fields, missing, percentile

SENT: dict[str, Any] = {
    "source": "/crm",
    "id": "1",
    "type": "crm.contact.updated.v1",
    "data": {"name": "Ada", "n": [1, 2]},
}


def receipt(kind: str = "done", **more: Any) -> Receipt:
    """One line of a receipt file."""
    values: dict[str, Any] = {
        "kind": kind, "team": "support", "subscription": "s", "source": "/crm", "id": "1", "view": "v",
        "stream": "EV", "sequence": 1, "attempt": 1, "at_ms": 1010,
    }  # fmt: skip
    return Receipt(**{**values, **more})


def test_a_due_event_without_a_receipt_is_missing() -> None:
    """Only a handler that succeeded, or a dead letter, takes a due pair off the list."""
    wanted = {("support", ("/crm", "1")), ("support", ("/crm", "2")), ("fraud", ("/crm", "1"))}
    receipts = [receipt("done"), receipt("delivered", id="2")]
    assert missing(wanted, receipts, {("fraud", ("/crm", "1"))}) == {("support", ("/crm", "2"))}


@pytest.mark.parametrize(
    ("seen", "paths"),
    [
        (SENT, []),
        ({**SENT, "data": {"name": "[REDACTED]", "n": [1, 2]}}, ["data.name"]),
        ({**SENT, "data": {"n": [1, 3]}}, ["data.n[1]", "data.name"]),
        ({**SENT, "data": None}, ["data.n[0]", "data.n[1]", "data.name"]),
        ({**SENT, "view": "v"}, []),
    ],
)
def test_hidden_names_every_value_that_does_not_show(seen: dict[str, Any], paths: list[str]) -> None:
    """A value that is gone, changed or inside a hidden container counts; what the mesh adds does not."""
    assert hidden(SENT, seen) == paths


def test_masked_fields_count_each_copy_once() -> None:
    """A redelivery shows the same copy, so its masked fields do not count again."""
    inputs = {("/crm", "1"): Input(agent="a", fields=SENT, sent_ms=1000)}
    masked = {**SENT, "data": {"n": [1, 2]}}
    receipts = [receipt("delivered", fields=masked), receipt("delivered", fields=masked, attempt=2)]
    assert masked_fields(inputs, receipts) == 1


def test_latency_is_of_first_deliveries_before_the_kill() -> None:
    """Redeliveries, and what a killed team got after its kill, do not count."""
    inputs = {("/crm", "1"): Input(agent="a", fields=SENT, sent_ms=1000)}
    receipts = [
        receipt("delivered"),
        receipt("delivered", attempt=2, at_ms=9000),
        receipt("delivered", team="lake", at_ms=5000),
    ]
    assert latencies(inputs, receipts, skip={"lake": 1005}) == {"p50": 10.0, "p99": 10.0}


def test_percentile_of_nothing_is_zero() -> None:
    """A run without deliveries has a figure too."""
    assert percentile([], 0.99) == 0.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
