"""What no event and no mask should do to the compiled loops: both refuse it alike, and nothing crashes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.native import build
from mesh.policy.actions import DROPPED, REDACTED
from mesh.policy.walkers import UNMET, as_it_is, unmet
from tests.conftest import ROOT
from tests.unit import native_sanitized
from tests.unit.native_twins import GIVEN, PYTHON, SETS, compares, compiled, hostile, outcome
from tests.unit.native_walks import (
    KINDS,
    VALUES,
    Items,
    Members,
    Number,
    OddError,
    Text,
    node_of,
    raising,
    value_of,
    walk_of,
)

WALKING = ("Node", "masking_dict", "dropping_dict", "item_list", "shown")
MASKS = {"text": "masked", "drop": DROPPED, "unmet": UNMET, "null": None}


def _spoil(value: Any, how: str) -> None:
    """What a mask has no business doing to what it is in."""
    if how == "empty":
        value.clear()
    elif isinstance(value, list):
        value[:] = value[1:] if how == "shrink" else [f"other {i}" for i in range(len(value))]
    elif how == "shrink":
        del value[next(iter(value))]
    else:
        value |= {name: f"another {i}" for i, name in enumerate(value)}


@compares(*WALKING)
def test_a_mask_that_spoils_what_it_is_in() -> None:
    """It empties, shrinks or refills the object or array it was called from: both do the same, and nothing is freed."""
    for kind in KINDS:
        for how in ("empty", "shrink", "refill"):
            for answer in MASKS.values():
                for part in (lambda i: f"scalar {i}", lambda i: {f"inner {i}": f"value {i}"}, lambda i: [f"item {i}"]):
                    did = []
                    for twins in SETS:
                        value = value_of(kind, part)

                        def spoil(_part: Any, value: Any = value, answer: Any = answer, how: str = how) -> Any:
                            _spoil(value, how)
                            return answer

                        walk = walk_of(kind, twins, node_of(twins, spoil, spoil, spoil))
                        did.append(repr((outcome(walk, value), value)))
                    assert did[1] == did[0], (kind, how, answer)


@compares(*WALKING)
def test_a_mask_that_spoils_what_is_around_it() -> None:
    """Two levels up: what is walked further in is held too."""
    for outer in KINDS:
        for inner in ("masking_dict", "dropping_dict", "item_list"):
            did = []
            for twins in SETS:
                value = value_of(outer, lambda i, inner=inner: value_of(inner, lambda j: f"scalar {i} {j}"))  # type: ignore[misc]

                def spoil(_part: Any, value: Any = value) -> Any:
                    value.clear()
                    return "masked"

                inside = walk_of(inner, twins, node_of(twins, spoil))
                walk = walk_of(outer, twins, node_of(twins, None, inside, inside))
                did.append(repr((outcome(walk, value), value)))
            assert did[1] == did[0], (outer, inner)


@compares(*WALKING)
def test_a_mask_that_goes_on_adding() -> None:
    """Else an object would be walked for ever."""
    for kind in ("masking_dict", "dropping_dict", "shown"):
        for twins in SETS:
            value = value_of(kind, str)

            def more(part: Any, value: Any = value) -> Any:
                assert len(value) < 100
                value[f"one more {len(value)}"] = 1
                return part

            assert outcome(walk_of(kind, twins, node_of(twins, more)), value) == ("raises", RuntimeError)


@compares(*WALKING)
def test_a_mask_that_replaces_itself() -> None:
    """What is called is held until it has answered, though its node has another by then."""

    class Once:
        def __init__(self, node: Any) -> None:
            self.node, self.answer = node, ["this one's"] * 3

        def __call__(self, _value: Any) -> Any:
            self.node.act, self.node.on_dict, self.node.on_list = None, as_it_is, as_it_is
            return self.answer

    for kind in KINDS:
        for part in (str, lambda i: {"i": i}, lambda i: [i]):
            for twins in SETS:
                node = node_of(twins)
                node.act, node.on_dict, node.on_list = Once(node), Once(node), Once(node)
                kind_of, answer = outcome(walk_of(kind, twins, node), value_of(kind, part))
                assert (kind_of, "this one's" in repr(answer)) == ("answers", True)


@compares(*WALKING)
def test_a_mask_thatraisings() -> None:
    """What it raises goes on, from every place."""
    for kind in KINDS:
        for part in (str, lambda i: {"i": i}, lambda i: [i], lambda i: (i,)):
            did = [outcome(walk_of(kind, t, node_of(t, raising, raising, raising)), value_of(kind, part)) for t in SETS]
            assert did[0] == did[1]
            assert did[1] == ("raises", OddError) or part(1) == (1,)


@compares(*WALKING)
def test_names_that_are_no_names() -> None:
    """Members called by numbers, by a subclass of str, and by one that empties the object when it is compared."""

    class Evil(str):
        __slots__ = ()
        spoils: dict[Any, Any]

        def __eq__(self, other: object) -> bool:
            self.spoils.clear()
            return False

        __hash__ = str.__hash__

    for kind in ("masking_dict", "dropping_dict", "listed", "shown"):
        did = []
        for twins in SETS:
            value: Any = {Text("name 1"): "a", 2: "b", (3,): ["c"], None: 1}
            did.append(
                repr(outcome(walk_of(kind, twins, node_of(twins, lambda part: [part], as_it_is, as_it_is)), value))
            )
        assert did[1] == did[0], kind

    def _shown(twins: Any, node: Any, value: Any) -> Any:
        return twins("shown")(value, {"evil": node}, node, None, print)

    for twins in SETS:
        node = node_of(twins)
        walks: list[Callable[[Any], Any]] = [
            twins("masking_dict")({"evil": node}, node, classified=True, shows=True),
            twins("dropping_dict")({"evil": node}, node, classified=True),
            partial(_shown, twins, node),
        ]
        for walk in walks:
            Evil.spoils = {Evil("evil"): "a value of its own", "another": ["and its own"]}
            outcome(walk, Evil.spoils)


@compares(*WALKING)
def test_depth() -> None:
    """As deep as an event may be, both answer alike; far deeper, both refuse."""
    for depth, expected in ((64, "answers"), (5_000, "raises")):
        for wrap in (lambda value: {"a": value}, lambda value: [value]):
            did = []
            for twins in SETS:
                node = node_of(twins, lambda part: "masked")
                node.on_dict = walk_of("masking_dict", twins, node)
                node.on_list = walk_of("item_list", twins, node)
                value: Any = "scalar"
                for _ in range(depth):
                    value = wrap(value)
                did.append(outcome(walk_of("shown", twins, node), {"data": value}))
            assert [kind for kind, _ in did] == [expected] * 2
            assert did[0][1] is did[1][1] is RecursionError or did[0] == did[1]


# --- arguments of every kind -----------------------------------------------------------------------------------------

ODD_ARGUMENTS: list[Any] = [
    None, True, 0, -1, 3, 2**31, 2**63 - 1, 2**63, 10**400, 1.5, float("nan"), "", "text", "\ud800", "\0", b"",
    b"bytes", bytearray(3), [], [None], ["text"], {}, {"a": 1}, (), (1, 2, 3), Text("t"), Number(3), Members(a=1),
    Items([1]), object(), print, len, DROPPED, UNMET, REDACTED, unmet, frozenset(), Exception,
]  # fmt: skip
ARGUMENTS = st.lists(st.sampled_from(ODD_ARGUMENTS) | VALUES, max_size=6)


@hostile
@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(sorted(PYTHON)), ARGUMENTS, st.dictionaries(st.sampled_from(["classified", "size"]), VALUES))
def test_any_arguments(name: str, arguments: list[Any], named: dict[str, Any]) -> None:
    """Whatever a compiled twin is called with, and whatever it makes is called with, it answers or raises."""
    twin = getattr(compiled(), name)
    for more in ({}, named):
        made = outcome(twin, *arguments, **more)[1]
        for method in (made, *(getattr(made, each, None) for each in ("digest", "token", "read"))):
            if callable(method) and method not in ODD_ARGUMENTS:
                for cut in range(3):
                    outcome(method, *arguments[:cut])


def test_no_subclass_is_walked() -> None:
    """The walkers are for what msgspec made of JSON; what only looks like it is refused, whole."""
    node = node_of(SETS[1])
    for kind in KINDS[:4]:
        for value in (Members(a=1), Items([1]), (), None, "text"):
            assert outcome(walk_of(kind, SETS[1], node), value) == ("raises", TypeError)
    assert outcome(walk_of("shown", SETS[1], node), Members(a=1)) == ("raises", TypeError)
    for names in ({"a": 1}, Members(a=node), None):
        assert outcome(compiled().masking_dict, names, node, classified=True, shows=True) == ("raises", TypeError)


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_what_is_told_once_has_its_shape(name: str) -> None:
    """Too little of it changes nothing."""
    for arguments in ((), GIVEN[name][:-1], (*GIVEN[name], None)):
        assert outcome(getattr(compiled(), name), *arguments) == ("raises", TypeError)


# --- under the sanitizers --------------------------------------------------------------------------------------------

SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def test_comparisons_under_sanitizers(tmp_path: Path) -> None:
    """All comparisons once more, against a module that ends the process where C does what it may not."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    named = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = Path(named.stdout.strip())
    if not library.is_absolute():
        pytest.skip(f"`{compiler[0]}` has no AddressSanitizer: there is no libasan.so")
    module = build.build(tmp_path / build.NAME, *SANITIZED)
    environment = {name: value for name, value in os.environ.items() if name != "MESH_NATIVE"} | {
        "LD_PRELOAD": str(library),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    run = subprocess.run(
        [sys.executable, "-m", native_sanitized.__name__, str(module)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-8_000:]
    assert int(run.stdout) > len(PYTHON)
