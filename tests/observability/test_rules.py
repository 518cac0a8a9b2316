"""Rules, their tests and the dashboard: what promtool says of them, and that each name in them exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability import rule_object
from tests.observability.files import (
    DASHBOARD,
    DEPLOY,
    OURS,
    RULE_OBJECT,
    RULES,
    RULES_TEST,
    alerts,
    expressions,
    metrics_of,
    named,
    panels,
    promtool,
)

REGISTRY = """\
import importlib, pkgutil, re
import agent, agent.docs, mesh.control
agent.docs._metrics()
for module in pkgutil.walk_packages(mesh.control.__path__, "mesh.control."):
    importlib.import_module(module.name)
from mesh import telemetry
for metric in telemetry.DEFAULT.metrics.values():
    if hasattr(metric, "at"):
        metric.at()
telemetry.DEFAULT.metrics["mesh.agent.request.duration"].at(door="intake", status="2xx")
print(telemetry.render_prometheus().decode())
"""


def exposed() -> set[str]:
    """Every metric of the code, by the names that Prometheus stores."""
    done = subprocess.run([sys.executable, "-c", REGISTRY], capture_output=True, text=True, check=True)
    found = set()
    for name, kind in re.findall(r"(?m)^# TYPE (\S+) (\S+)$", done.stdout):
        found |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return found


def test_promtool_takes_the_rules() -> None:
    """Every expression parses, and no rule is there twice."""
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_and_does_not_fire() -> None:
    """The unit tests of the rules pass; each alert has a case of both kinds."""
    done = promtool("test", "rules", RULES_TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    for alert in alerts():
        kinds = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == alert}
        assert kinds == {True, False}, alert


def test_a_wrong_bound_is_found(tmp_path: Path) -> None:
    """The unit tests are tests: with another bound they fail."""
    (tmp_path / "rules.yml").write_text(RULES.read_text().replace("apply_age_seconds > 60", "apply_age_seconds > 600"))
    (tmp_path / "rules_test.yml").write_text(only(RULES_TEST.read_text(), "MeshPolicyNotApplied"))
    assert promtool("test", "rules", tmp_path / "rules_test.yml").returncode == 1


def only(tests: str, alert: str) -> str:
    """The unit tests of one alert."""
    document = yaml.safe_load(tests)
    wanted = [t for t in document["tests"] if any(case["alertname"] == alert for case in t["alert_rule_test"])]
    return yaml.safe_dump(document | {"tests": wanted})


def test_each_alert_says_what_to_do() -> None:
    """A severity, a sentence, and the place in the guide, which is there."""
    sections = {title.lower() for title in re.findall(r"(?m)^#+ (\S+)$", (DEPLOY / "README.md").read_text())}
    assert set(map(str.lower, alerts())) <= sections
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"deploy/k8s/README.md#{name.lower()}"


def test_the_operators_object_has_the_same_rules() -> None:
    """prometheusrule.yaml is made of rules.yml."""
    assert RULE_OBJECT.read_text() == rule_object.text(), "run python -m tests.observability.rule_object"


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_is_whole() -> None:
    """An id, panels with ids of their own, and a data source that whoever imports it chooses."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "tenant": "query", "team": "query"}
    for panel in panels():
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def check(tmp_path: Path, found: list[str]) -> subprocess.CompletedProcess[str]:
    """What promtool says of expressions: as recording rules, for there is no other way to ask it offline."""
    made = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(found)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    return promtool("check", "rules", file)


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    """With its variables filled in."""
    found = expressions()
    assert len(found) > 30
    done = check(tmp_path, found)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_parenthesis_is_found(tmp_path: Path) -> None:
    """The check is one."""
    assert check(tmp_path, [expressions()[0], "sum(rate(mesh_agent_accepted_total[5m])"]).returncode == 1


# --- names -----------------------------------------------------------------------------------------------------------


def test_every_metric_that_is_named_exists() -> None:
    """Rules, dashboard and scaler name only what the code's registry has."""
    assert len(named()) > 30
    assert not named() - exposed()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (mesh_x) (mesh_a_total{b="mesh_c"}) / on (job) group_left (t) mesh_i', {"mesh_a_total", "mesh_i"}),
        ("mesh:recorded:ratio1h > 1 and messaging_duration_seconds_count", {"messaging_duration_seconds_count"}),
    ],
)  # fmt: skip
def test_names_are_found_in_expressions(expression: str, names: set[str]) -> None:
    """Labels, strings and recorded names are none."""
    assert metrics_of(expression) == names
    assert OURS.search(expression)
