"""The table of figures: fair to both sides, and it says when a promise is missed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import yaml

from benchmarks import bench_agent_start, bench_apply, bench_policy
from benchmarks.fleet_members import Adoption, Findings, Seen, Sent
from benchmarks.fleet_policies import LAST, agent_names, field_of, type_of
from benchmarks.fleet_policies import files as fleet_files
from benchmarks.machine import ROOT
from benchmarks.policy_sets import files
from benchmarks.report import nested
from benchmarks.runner import TABLE, Key, Spread, discover, interleave, measure, of_table, ratio
from mesh.policy.load import load
from mesh.policy.suite import run


class _Question:
    """A benchmark module, as the runner sees one."""

    NAME = "planted"

    def __init__(self, keys: Mapping[str, Key], figures: Mapping[str, float | Spread]) -> None:
        self.KEYS = keys
        self._figures = figures

    async def run(self, quick: bool) -> Mapping[str, float | Spread]:
        return self._figures


@pytest.mark.anyio
async def test_contestants_take_turns() -> None:
    """Each round runs every contestant once, and every second round backwards."""
    order = []

    def contestant(name: str) -> object:
        async def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    figures = await interleave({n: contestant(n) for n in ("a", "b")}, rounds=3, rest_s=0)  # type: ignore[misc]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_ratio_is_taken_round_by_round() -> None:
    """A slow round of the machine slows both sides and does not move the ratio."""
    assert ratio([20, 2, 40], [10, 1, 20]) == Spread(2, 2, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "must", "aim"),
    [
        (Key("x", must=1.15, aim=1.6), 1.7, True, True),
        (Key("x", must=1.15, aim=1.6), 1.15, True, False),
        (Key("x", must=1.15, aim=1.6), 1.1, False, False),
        (Key("ms", must=5, aim=2, better="less"), 6, False, False),
        (Key("ms", must=5, aim=2, better="less"), 2, True, True),
        (Key("MB"), 45, None, None),
    ],
)
def test_figure_is_judged_the_right_way_round(key: Key, value: float, must: bool | None, aim: bool | None) -> None:
    """More is better for a ratio, less for a latency; without a target there is no verdict."""
    (row,) = measure(_Question({"figure": key}, {"figure": value}), quick=True)
    assert (row.meets_must, row.meets_aim) == (must, aim)


def test_unexplained_figure_is_refused() -> None:
    """A figure without unit and meaning does not get into the table, and none may be left out."""
    with pytest.raises(ValueError, match="KEYS explains"):
        measure(_Question({"a": Key("x")}, {"b": 1.0}), quick=True)


def test_questions_are_found_by_file() -> None:
    """Every `bench_*.py` has a name of its own and explains its figures."""
    questions = discover()
    assert len({q.NAME for q in questions}) == len(questions)
    assert all(q.KEYS for q in questions)
    with pytest.raises(SystemExit, match="no benchmark is called 'nothing'"):
        discover("nothing")


def test_agent_fits_its_pod() -> None:
    """What the benchmark allows an agent at rest is what its pod asks for, and at full load what it is held to."""
    pod = yaml.safe_load((ROOT / "deploy/k8s/components/native-sidecar/fragment/sidecar.yaml").read_text())["spec"]
    asked = pod["template"]["spec"]["initContainers"][0]["resources"]
    for key, mebibytes in (("idle", asked["requests"]["memory"]), ("load", asked["limits"]["memory"])):
        figure = bench_agent_start.KEYS[f"agent_rss_mb.{key}"]
        assert figure.must is not None
        assert figure.must <= int(mebibytes.removesuffix("Mi"))
        assert mebibytes in figure.what


def test_table_has_the_design_s_questions_in_its_order() -> None:
    """Figures of all questions can stand in one document, and those of the table come as the design has them."""
    questions = discover()
    nested((key, 0) for question in questions for key in question.KEYS)  # raises where two are called the same
    names = [question.NAME for question in of_table(questions)]
    assert names == [name for name in TABLE if name in names]
    assert {"publish", "consume", "policy", "apply"} <= set(names)


@pytest.mark.parametrize("documents", [1, 10, 100])
def test_policy_sets_load_without_a_warning(documents: int) -> None:
    """A set has as many documents as it says (the four that an event needs at least), and nothing in it is dead."""
    policies = load(files(documents))
    assert len(policies.documents) == max(4, documents)
    assert not policies.warnings


def test_policy_figures_are_of_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the policy benchmark's figures is there, and its own checks of the event, condition and masks pass."""
    monkeypatch.setattr(bench_policy, "DOCUMENTS", (1, 10))
    monkeypatch.setattr(bench_policy, "MANY", 10)
    figures = bench_policy.measured(rounds=1)
    assert {"condition_us", "mask_pipeline_us", "decide_us", "documents_ratio", "load_ms_10"} <= figures.keys()
    assert all(spread.low > 0 for spread in figures.values())


# --- what the apply benchmark counts as harm -------------------------------------------------------------------------

TYPE = type_of(0)
CHANGES = [bench_apply.Change("mask", 0, 2, 1_000, 0.0), bench_apply.Change("grant", 0, 3, 2_000, 0.0)]
ADOPTIONS = [Adoption("agent-000", 2, 1_500), Adoption("agent-000", 3, 2_500)]


def body(view: str, *fields: str, type_: str = LAST) -> bench_apply._Body:
    """A stored copy of the event."""
    return bench_apply._Body("e", type_, view, 2, dict.fromkeys(fields, "v"))


@pytest.mark.parametrize(
    ("sent_ns", "type_", "error", "stored", "seen", "harm"),
    [
        (1_400, LAST, "", [body("masked", field_of(0))], [Seen("e", LAST, 1, 1, (field_of(0),))], (0, 0, 0)),
        (1_600, LAST, "", [body("masked", field_of(1))], [Seen("e", LAST, 2, 2, (field_of(1),))], (0, 0, 0)),
        (1_600, LAST, "", [body("masked", field_of(0))], [Seen("e", LAST, 2, 2, ())], (1, 0, 0)),
        (1_400, LAST, "", [body("masked")], [Seen("e", LAST, 1, 2, (field_of(0),))], (1, 0, 0)),
        (2_600, TYPE, "", [body("masked"), body("other", type_=TYPE)], [Seen("e", TYPE, 3, 3, ())], (1, 0, 0)),
        (1_400, LAST, "denied", [], [], (0, 1, 0)),
        (1_400, LAST, "", [], [Seen("e", LAST, 1, 1, ())], (0, 0, 1)),
        (1_400, LAST, "", [body("masked")], [], (0, 0, 1)),
    ],
    ids=[
        "before-the-change", "narrowed", "field-stored", "field-handed-over", "type-stored", "refused", "not-stored",
        "not-delivered",
    ],
)  # fmt: skip
def test_harm_is_counted(  # noqa: PLR0917 - one row
    sent_ns: int, type_: str, error: str, stored: list[bench_apply._Body], seen: list[Seen], harm: tuple[int, int, int]
) -> None:
    """An event counts as leaked, refused or lost where it is, and only there."""
    found = Findings(ADOPTIONS, [Sent("e", type_, "agent-000", 1, sent_ns, error)], seen)
    assert tuple(bench_apply._harm(CHANGES, found, stored).values()) == harm


def test_each_fleet_revision_takes_one_thing_away() -> None:
    """The policies of a fleet load and pass their tests, first and last revision alike."""
    for masks, grants in ((0, 0), (1, 0), (30, 30)):
        policies = load(fleet_files(agent_names(25), masks=masks, grants=grants))
        assert not policies.warnings
        assert run(policies, {}, 0).passed
