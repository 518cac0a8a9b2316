"""The policies of a large fleet: many agents that publish, a team that reads all of it, one that reads less each time.

Each revision takes one thing away from the one before: a field from what `reader` sees, or a type from `second`.
"""

from __future__ import annotations

from collections.abc import Sequence

TENANT = "bench"
DOMAIN = "fleet"
STEPS = 30  # fields and types there are to take away
AGENTS_A_TEAM = 10
READER, SECOND = "reader", "second"
SUBSCRIPTION = "all"
MASKED, OTHER = "masked", "other"  # the views that they read

_POLICIES = """\
apiVersion: mesh/v1
kind: Tenant
metadata: {name: bench, owner: bench}
spec:
  teams:
    reader: {agents: []}
    second: {agents: []}
%(teams)s
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: orders, tenant: bench, owner: bench}
spec:
  types: ["fleet.order.>"]
  fields:
    data.sent: [public]
%(fields)s
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: bench, owner: bench}
spec:
  mask:
    - {tags: [public], as: clear}
%(masks)s
  otherwise: redact
---
apiVersion: mesh/v1
kind: View
metadata: {name: other, tenant: bench, owner: bench}
spec:
  mask: [{tags: [public], as: clear}]
  otherwise: drop
---
apiVersion: mesh/v1
kind: Access
metadata: {name: access, tenant: bench, owner: bench}
spec:
  allow:
    - {id: publish, who: {teams: [%(makers)s]}, publish: ["fleet.order.>"]}
    - {id: read, who: {teams: [reader]}, subscribe: ["fleet.order.>"], view: masked}
    - {id: read-less, who: {teams: [second]}, subscribe: [%(types)s], view: other}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: all, tenant: bench, team: reader}
spec: {types: ["fleet.order.>"], start: all, max_in_flight: 10000}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: all, tenant: bench, team: second}
spec: {types: ["fleet.order.>"], start: all, max_in_flight: 10000}
---
apiVersion: mesh/v1
kind: PolicyTest
metadata: {name: fleet, tenant: bench, owner: bench}
spec:
  cases:
    - {as: {team: reader}, subscribe: fleet.order.k00.v1, set: {data.sent: 1}, expect: {decision: allow, view: masked}}
    - {as: {team: second}, subscribe: fleet.order.last.v1, set: {data.sent: 1}, expect: {decision: allow, view: other}}
"""
LAST = "fleet.order.last.v1"  # the type that `second` keeps


def type_of(step: int) -> str:
    """The type that the grant of `second` loses at *step*."""
    return f"fleet.order.k{step:02d}.v1"


def field_of(step: int) -> str:
    """The field that the view of `reader` drops from *step* on."""
    return f"f{step:02d}"


def agent_names(count: int) -> list[str]:
    """The publishing agents."""
    return [f"agent-{number:03d}" for number in range(count)]


def team_of(agent: str) -> str:
    """The team of an agent: so many share one."""
    return f"make-{int(agent.removeprefix('agent-')) // AGENTS_A_TEAM:02d}"


def files(agents: Sequence[str], *, masks: int, grants: int) -> dict[str, str]:
    """YAML text by file name, with the first *masks* fields hidden and the first *grants* types withdrawn."""
    teams: dict[str, list[str]] = {}
    for agent in agents:
        teams.setdefault(team_of(agent), []).append(agent)
    hidden = [f"t{step:02d}" for step in range(masks)]
    shown = [f"t{step:02d}" for step in range(masks, STEPS)]
    lines = [(shown, "clear"), (hidden, "drop")]
    text = _POLICIES % {
        "teams": "\n".join(f"    {team}: {{agents: [{', '.join(names)}]}}" for team, names in teams.items()),
        "fields": "\n".join(f"    data.{field_of(step)}: [t{step:02d}]" for step in range(STEPS)),
        "masks": "\n".join(f"    - {{tags: [{', '.join(tags)}], as: {action}}}" for tags, action in lines if tags),
        "makers": ", ".join(teams),
        "types": ", ".join([LAST, *(type_of(step) for step in range(grants, STEPS))]),
    }
    return {"fleet.yaml": text}
