"""Policies in a request: packed into one message, unpacked within a bound."""

from __future__ import annotations

import zlib
from base64 import b64encode

import pytest

from mesh.control import door
from mesh.control.door import pack, unpack
from mesh.errors import BadAttribute, TooLarge


def test_packed_policies_come_back() -> None:
    """Text, names and fixtures byte for byte."""
    files, fixtures = {"a/b.yaml": "kind: View  # ü\n"}, {"fixtures/x.json": bytes(range(256))}
    assert unpack(pack(files, fixtures)) == (files, fixtures)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small message that would fill the memory is refused at the bound."""
    monkeypatch.setattr(door, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(TooLarge):
        unpack(b64encode(zlib.compress(b" " * 1_000_000)).decode())


def test_what_fits_no_message_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both sizes."""
    monkeypatch.setattr(door, "MAX_PACKED_BYTES", 50)
    with pytest.raises(TooLarge) as refused:
        pack({"a.yaml": "x" * 10 + "".join(map(str, range(500)))}, {})
    assert refused.value.details["limit"] == 50


@pytest.mark.parametrize(
    "text",
    ["", "!", "AAAA", 7, None, b64encode(b"no zlib").decode(), b64encode(zlib.compress(b"[]")).decode(), "A" * 900_001],
)
def test_anything_else_is_refused(text: object) -> None:
    """Neither base64, nor zlib, nor our shape, nor text at all."""
    with pytest.raises(BadAttribute):
        unpack(text)
