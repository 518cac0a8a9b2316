"""Writes prometheusrule.yaml, the rules as the Prometheus Operator reads them."""

from __future__ import annotations

from typing import Any

import yaml

from tests.observability.files import RULE_OBJECT, RULES


def rule_object() -> dict[str, Any]:
    """The object around the groups of rules.yml."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mesh", "namespace": "mesh-system"},
        "spec": yaml.safe_load(RULES.read_text()),
    }


def text() -> str:
    """It as YAML."""
    head = "# Made from rules.yml by `python -m tests.observability.rule_object`.\n"
    return head + yaml.safe_dump(rule_object(), sort_keys=False, width=1000)


if __name__ == "__main__":
    RULE_OBJECT.write_text(text())
