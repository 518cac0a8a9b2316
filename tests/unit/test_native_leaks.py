"""Thousands of calls of each compiled twin leave nothing behind, those that are refused included."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.policy.actions import DROPPED, REDACTED
from mesh.policy.walkers import UNMET, as_it_is, unmet
from tests.unit.native_twins import PYTHON, SETS, compared, compiled, outcome
from tests.unit.native_walks import KINDS, node_of, raising, value_of, walk_of

CALLS = 3_000


def _item(subject: Any = "orders", id: Any = "A" * 22, body: Any = b"body") -> tuple[Any, ...]:
    return subject, id, body


def _event(**odd: Any) -> Any:
    event = {"subject": "s", "token": 1, "msg_id": "m", "signature": "é", "traceparent": "t", "body": b"b"}
    return SimpleNamespace(**event | odd)


def _masked(kind: str, act: Any, part: Any) -> Callable[[], Any]:
    walk = walk_of(kind, SETS[1], node_of(SETS[1], act, act or as_it_is, act or as_it_is))
    return partial(walk, value_of(kind, lambda i: part))


def _made(name: str, *arguments: Any, **named: Any) -> Callable[[], Any]:
    return partial(getattr(compiled(), name), *arguments, **named)


def _cycle() -> Any:
    """A node that leads to itself, as one of `**.name` does."""
    node = node_of(SETS[1])
    node.on_dict = walk_of("masking_dict", SETS[1], node)
    node.on_list = walk_of("item_list", SETS[1], node)
    return compiled().tokens("p", node.on_dict, node.on_list)


def _uses() -> dict[str, list[Callable[[], Any]]]:
    """Calls of each twin, of those that are refused too."""
    c = compiled()
    keyed, run, node = c.Keyed(b"key", 16, b"person"), c.AckRun("_INBOX.", 7), node_of(SETS[1])
    digits = c.last_digits(2, 7, 15, "+")
    ack = b'MSG _INBOX.12 7 27\r\n{"stream":"orders","seq":34}\r\n'
    walked = [
        (kind, act, part)
        for kind in KINDS
        for act in (None, lambda part: DROPPED, lambda part: UNMET, lambda part: [part], raising)
        for part in ("scalar", {"a": 1}, [1], (1,))
    ]
    walks = {kind: [_masked(kind, act, part) for other, act, part in walked if other == kind] for kind in KINDS}
    fields = {
        "specversion": "1.0",
        "id": "i",
        "source": "/s",
        "type": "t",
        "time": "2026-01-01T00:00:00Z",
        "subject": "s",
    }
    return {
        "plain": [
            _made("plain", fields, {"/s": True}, {"t": True}),
            _made("plain", fields | {"id": ""}, {}, {}),
            _made("plain", None, {}, {}),
            _made("plain", fields | {"a": 1}, {"/s": True}, {"t": True}),
        ],
        "frames": [
            _made("frames", [_event(), _event(traceparent=None)], "i"),
            _made("frames", [_event(), _event(msg_id="\n")], "i"),
            *(_made("frames", [_event(), _event(**{name: []})], "i") for name in vars(_event())),
            _made("frames", [_event(token=-1)], "i"),
            _made("frames", [_event(token=10**30)], "i"),
            _made("frames", [object()], "i"),
            _made("frames", [], "\ud800"),
        ],
        "extended": [_made("extended", b"{}", b"x" * 20), _made("extended", "", b"")],
        "numbered": [_made("numbered", b"{}", b"x", n) for n in (1, -1, 10**30, "n")],
        "brackets_exceed": [_made("brackets_exceed", b"[" * 999, 5), _made("brackets_exceed", b"[", "n")],
        "batch": [
            _made("batch", [_item()] * 5, bytes(80)),
            _made("batch", [_item(), _item(id="no")], bytes(32)),
            _made("batch", [_item(), _item("\n")], bytes(32)),
            _made("batch", [_item(), _item("\ud800")], bytes(32)),
            _made("batch", [_item(), _item(body="text")], bytes(32)),
            _made("batch", [], b""),
        ],
        "Keyed": [
            _made("Keyed", b"key", 16, b"person"),
            _made("Keyed", b"k" * 65, 16),
            _made("Keyed", "key"),
            *(partial(hash, text) for hash in (keyed.digest, keyed.token) for text in ("té", 1, "\ud800")),
        ],
        "AckRun": [
            _made("AckRun", "_INBOX.", 7),
            _made("AckRun", "\ud800", 7),
            _made("AckRun", "i", 10**30),
            *(partial(run.read, data, at) for data in (ack * 3, b"", None) for at in (0, 1, 10**4, "at")),
        ],
        "redact": [_made("redact", "text"), _made("redact", 1)],
        "drop": [_made("drop", "text")],
        "last_digits": [
            _made("last_digits", 2, 7, 15, "+"),
            _made("last_digits", 2, 1, 0, "+"),
            *(partial(digits, value) for value in ("+1234567", "é", 1, "12x")),
        ],
        "tokens": [
            _made("tokens", "p", str, str),
            _made("tokens", 1, 2, 3),
            *(
                partial(c.tokens("p", token, str), value)
                for value in ("text", 12.5, None, "\ud800")
                for token in (lambda text: text + "-", keyed.token, raising, len)
            ),
        ],
        "Node": [_made("Node", frozenset(), unmet), _made("Node", 1), lambda: setattr(node, "classified", "odd")],
        "masking_dict": [
            *walks["masking_dict"],
            _made("masking_dict", {"a": node}, node, classified=1, shows=0),
            _made("masking_dict", {"a": 1}, node, classified=1, shows=0),
            _cycle,
        ],
        "dropping_dict": [
            *walks["dropping_dict"],
            *walks["listed"],
            _made("dropping_dict", {"a": node}, node, classified=1),
            _made("dropping_dict", {"a": 1}, node, classified=1),
        ],
        "item_list": [
            *walks["item_list"],
            _made("item_list", node, None, classified=True),
            _made("item_list", 1, None, classified=True),
        ],
        "shown": [
            *walks["shown"],
            _made("shown", {}, {}, node, None),
            _made("shown", {"a": 1}, {"a": 1}, node, None, print),
        ],
    }


def test_every_twin_is_looked_at_for_leaks() -> None:
    """A new one has a row below."""
    assert compared() == set(_uses())


@pytest.mark.parametrize("name", sorted(PYTHON))
def test_no_leaks(name: str) -> None:
    """Thousands of calls leave no memory behind, and no reference to what everybody shares; refused ones likewise."""
    shared = (None, True, False, DROPPED, UNMET, REDACTED, as_it_is, unmet, "", b"", TypeError, type(None))
    uses = _uses()[name]
    times = CALLS // len(uses) + 1

    def run() -> tuple[int, list[int]]:
        for use in uses:
            for _ in range(times):
                outcome(use)
        gc.collect()
        return sys.getallocatedblocks(), [sys.getrefcount(each) for each in shared]

    run()
    blocks, references = run()
    blocks_after, references_after = run()
    allowed = times // 2  # what comes and goes beside; a leak is one for each call, or more
    assert blocks_after - blocks < allowed
    assert [after - before for before, after in zip(references, references_after, strict=True)] < [allowed] * len(
        shared
    )
    for before, after in zip(references, references_after, strict=True):
        assert abs(after - before) < allowed
