"""The benchmarks run on a real mesh, and refuse to say how fast a run was that lost an event."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from nats.aio.client import Client

from benchmarks import __main__ as command
from benchmarks import loads, peers

ASKED = ["--quick", "--only", "publish", "--json"]


@pytest.fixture(autouse=True)
def _no_faststream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `bench` is not installed, installed or not."""
    monkeypatch.setattr(peers, "faststream_installed", lambda: False)


def test_quick_run_has_every_figure_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Medians at the top with what stands behind them; the peer that is not installed is null with a reason."""
    assert command.main(ASKED) == 0
    document = json.loads(capsys.readouterr().out)
    for figure in ("publish_ratio", "publish_per_s", "publish_async_per_s", "core_publish_per_s"):
        assert document[figure] > 0
        assert document["spread"][figure]["low"] <= document[figure] <= document["spread"][figure]["high"]
    assert document["targets"]["publish_ratio"]["must"] == 1.15
    assert document["faststream_publish_ratio"] is None
    assert "make install-bench" in document["absent"]["faststream_publish_ratio"]
    assert document["commit"]
    assert document["versions"]["nats-py"]
    assert document["machine"]["cores"]


def test_lost_event_leaves_no_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that stores one event too few is found out by what the stream holds, and nothing is printed."""
    publish_async = loads.publish_async

    async def one_too_few(
        clients: Sequence[Client], subjects: Sequence[str], body: bytes, count: int, *, ids: Sequence[str]
    ) -> float:
        return await publish_async(clients, subjects, body, count - 1, ids=ids)

    monkeypatch.setattr(loads, "publish_async", one_too_few)
    assert command.main(ASKED) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "not valid: publish: events lost or stored twice" in printed.err
