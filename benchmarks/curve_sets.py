"""Policies in which one thing is more: views that teams read, or agents that publish."""

from __future__ import annotations

from benchmarks.policy_sets import POLICIES, VIEW

_VIEW = """\
---
apiVersion: mesh/v1
kind: View
metadata: {name: %(view)s, tenant: bench, owner: bench}
spec:
  mask:
    - {tags: [public], as: clear}
    - {tags: [pii.name], as: drop}
    - {tags: [freetext], as: redact}
    - {tags: [pii.contact.email], as: pseudonym, with: {domain: %(view)s}}
    - {tags: [pii.contact.phone], as: partial, with: {style: phone}}
  otherwise: redact
---
apiVersion: mesh/v1
kind: Access
metadata: {name: access-%(view)s, tenant: bench, owner: bench}
spec:
  allow:
    - {id: read-%(view)s, who: {teams: [team-%(view)s]}, subscribe: ["shop.order.>"], view: %(view)s}
"""
_TEAMS = "{shop: {agents: [shop]}, reader: {agents: [reader]}}"


def view_names(count: int) -> list[str]:
    """The views; the first is the one that the reading team reads."""
    return [VIEW, *(f"view-{number}" for number in range(2, count + 1))]


def agent_names(count: int) -> list[str]:
    """The publishing agents; the first is the one that every benchmark has."""
    return ["shop", *(f"shop-{number:03d}" for number in range(2, count + 1))]


def with_views(count: int) -> dict[str, str]:
    """Policies under which an event becomes *count* copies, each with the same four masks."""
    names = view_names(count)[1:]
    teams = "".join(f", team-{name}: {{agents: []}}" for name in names)
    text = POLICIES.replace(_TEAMS, _TEAMS.removesuffix("}") + teams + "}")
    return {"bench.yaml": text + "".join(_VIEW % {"view": name} for name in names)}


def with_agents(count: int) -> dict[str, str]:
    """Policies under which *count* agents of one team publish."""
    return {"bench.yaml": POLICIES.replace("agents: [shop]", f"agents: [{', '.join(agent_names(count))}]")}
