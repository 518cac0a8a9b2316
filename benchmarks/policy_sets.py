"""The policies that events are measured under: one publisher, one view with four masks and a condition, one reader.

`files` puts others around them.
"""

from __future__ import annotations

TYPE = "shop.order.placed.v1"
VIEW = "masked"
POLICIES = """\
apiVersion: mesh/v1
kind: Tenant
metadata: {name: bench, owner: bench}
spec: {teams: {shop: {agents: [shop]}, reader: {agents: [reader]}}}
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: orders, tenant: bench, owner: shop}
spec:
  types: ["shop.order.>"]
  fields:
    data.order: [public]
    data.amount: [public]
    data.currency: [public]
    data.country: [public]
    data.status: [public]
    "data.items[*].**": [public]
    data.note: [freetext]
    data.customer.id: [public]
    data.customer.segment: [public]
    data.customer.name: [pii.name]
    data.customer.email: [pii.contact.email]
    data.customer.phone: [pii.contact.phone]
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: bench, owner: bench}
spec:
  mask:
    - {tags: [public], as: clear}
    - {tags: [pii.name], as: drop}
    - {tags: [freetext], as: redact}
    - {tags: [pii.contact.email], as: pseudonym, with: {domain: contact}}
    - {tags: [pii.contact.phone], as: partial, with: {style: phone}}
  otherwise: redact
---
apiVersion: mesh/v1
kind: Access
metadata: {name: access, tenant: bench, owner: bench}
spec:
  allow:
    - id: shop-publishes
      who: {teams: [shop]}
      publish: ["shop.order.>"]
      when: "data.amount > 10.0 && data.country in ['DE', 'FR']"
    - {id: reader-reads, who: {teams: [reader]}, subscribe: ["shop.order.>"], view: masked}
"""

_TEAM = "team-%d"

_CLASSIFICATION = """\
apiVersion: mesh/v1
kind: Classification
metadata: {name: class-%(n)d, tenant: bench, owner: %(team)s}
spec:
  types: ["area%(area)d.thing.>"]
  fields:
    data.id: [public]
    data.amount: [financial]
    data.person.name: [pii.name]
    data.person.email: [pii.contact.email]
    "data.lines[*].sku": [public]
    "data.address.**": [pii.location]
"""
_VIEW = """\
apiVersion: mesh/v1
kind: View
metadata: {name: view-%(n)d, tenant: bench, owner: bench}
spec:
  rows: "!has(data.region) || data.region == 'r%(n)d'"
  mask:
    - {tags: [public], as: clear}
    - {tags: [pii.contact.email], as: pseudonym, with: {domain: contact}}
    - {tags: [pii.name], as: drop}
  otherwise: redact
"""
_ACCESS = """\
apiVersion: mesh/v1
kind: Access
metadata: {name: access-%(n)d, tenant: bench, owner: bench}
spec:
  allow:
    - {id: publish-%(n)d, who: {teams: [%(team)s]}, publish: ["area%(area)d.thing.>"], when: "data.amount > %(n)d.0"}
    - {id: read-%(n)d, who: {teams: [%(team)s]}, subscribe: ["area%(area)d.thing.>"], view: masked}
    - {id: orders-%(n)d, who: {teams: [%(team)s]}, subscribe: ["shop.order.placed.v%(n)d"], view: masked}
  deny:
    - {id: no-%(n)d, who: {teams: [%(team)s]}, subscribe: ["shop.order.cancelled.v%(n)d"]}
    - {id: no-shop-%(n)d, who: {teams: [shop]}, publish: ["shop.order.cancelled.v%(n)d"]}
"""
_SUBSCRIPTION = """\
apiVersion: mesh/v1
kind: Subscription
metadata: {name: things-%(n)d, tenant: bench, team: %(team)s}
spec: {types: ["area%(area)d.thing.>"], view: masked, start: new}
"""
_KINDS = (_ACCESS, _CLASSIFICATION, _VIEW, _SUBSCRIPTION)
DOCUMENTS_A_TEAM = 20  # a tenant of 1,000 documents has about 50 teams


def files(documents: int) -> dict[str, str]:
    """YAML text by file name: the documents that the measured event needs, and others up to *documents*.

    What the event needs is four documents (tenant, classification, view and access), so fewer are not made. The others
    are of every kind: three quarters about other types, and among the rules of a quarter some on the event's own types
    (other versions of it, so that they stand beside the rules that decide and are not asked).
    """
    more = max(0, documents - 4)
    teams = "".join(f", {_TEAM % n}: {{agents: [agent-{n}]}}" for n in range(more // DOCUMENTS_A_TEAM + 1))
    base = POLICIES.replace("reader: {agents: [reader]}", "reader: {agents: [reader]}" + teams)
    found = {"base.yaml": base}
    for n in range(more):
        team = _TEAM % (n // DOCUMENTS_A_TEAM)
        text = _KINDS[n % len(_KINDS)] % {"n": n, "team": team, "area": n - n % len(_KINDS)}
        found[f"more-{n:04d}.yaml"] = text
    return found
