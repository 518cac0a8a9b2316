"""The rules, the dashboard and Prometheus' own tools, as the tests of this directory read them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy" / "k8s"
PLACE = DEPLOY / "observability"
RULES, RULES_TEST, DASHBOARD = PLACE / "rules.yml", PLACE / "rules_test.yml", PLACE / "dashboard.json"
RULE_OBJECT = PLACE / "prometheusrule.yaml"
SCALER = DEPLOY / "components" / "keda" / "scaledobject.yaml"
TOOLS = ROOT / ".tools" / "usr" / "bin"
OURS = re.compile(r"\b(?:mesh|messaging)_[a-z0-9_]+")  # a recorded name has colons


def tool(name: str) -> Path:
    """One of Prometheus' programs."""
    found = TOOLS / name
    assert found.exists(), f"{name} is not there: run make tools"
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=110)


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """By name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, without its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Of the dashboard's panels, with its variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [re.sub(r"\$(?!__)\w+", "x", expr.replace("$__rate_interval", "5m")) for expr in found]


def metrics_of(text: str) -> set[str]:
    """The metrics of ours that an expression names, without what a label or a string holds."""
    plain = re.sub(r'"[^"]*"', '""', text)
    return set(OURS.findall(re.sub(r"\{[^}]*\}|(?:by|on|group_left|without) *\([^)]*\)", " ", plain)))


def named() -> set[str]:
    """Every metric that rules, dashboard or scaler name."""
    query = yaml.safe_load(SCALER.read_text())["spec"]["triggers"][0]["metadata"]["query"]
    return set().union(*map(metrics_of, [*(rule["expr"] for rule in rules()), *expressions(), query]))
