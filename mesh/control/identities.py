"""Everybody who has an account in one tenant, as the control plane made them: the measure of what is live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mesh.control.reconcile import CONTROL, SYSTEM, team_workload
from mesh.jetstream.accounts import Account, workload_subscribe
from mesh.jetstream.imports import TEAM_PREFIX, publish_imports, subscription_imports, workload_imports
from mesh.jetstream.rights import Rights, rights_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesh.control.accounts import Accounts
    from mesh.control.reconcile import Operator
    from mesh.control.standing import Standing
    from mesh.jetstream.imports import Import
    from mesh.jetstream.rights import Consumers
    from mesh.policy.grants import Grants

Kind = Literal["control plane", "agent", "team", "gone"]

_ORDER: tuple[Kind, ...] = ("control plane", "agent", "team", "gone")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who may connect.

    Attributes:
        name: An agent, a team, or `control` and `system`, the control plane's own.
        kind: `gone` is an agent or `team-<team>` that the policies do not know any more.
        account: Its account as it has to be.
        user: Public key of its one user; None where it has none.
        subscribe: All that its user may subscribe to; None for the control plane.
        revoked: Users it had, each with the Unix second up to which its JWTs are refused.
        spiffe_id: What its event key is certified for; empty where it has none.
        barred: Whether its trust was withdrawn.
    """

    name: str
    kind: Kind
    account: Account
    user: str | None
    subscribe: tuple[str, ...] | None
    revoked: Mapping[str, int]
    spiffe_id: str = ""
    barred: bool = False

    @property
    def where(self) -> str:
        """For people: `agent desk`, `team support`."""
        return f"{self.kind} {self.name}"


def identities(operator: Operator, accounts: Accounts, standing: Standing | None, grants: Grants) -> list[Identity]:
    """Everybody: the control plane, agents, teams, and those whom the policies do not know any more.

    Args:
        operator: Whose keys are known.
        accounts: Of the tenant.
        standing: Who is barred, and which users are revoked.
        grants: Of the policies in force.
    """
    tenant, compiled = accounts.tenant, compiled_imports(grants, accounts.owner)
    system = Account(operator.public(SYSTEM), SYSTEM)
    found = [
        Identity("system", "control plane", system, _user(operator, SYSTEM), None, {}),
        Identity(
            "control", "control plane", accounts.wanted_tenant(), _user(operator, f"{tenant}/{CONTROL}"), None, {}
        ),
    ]
    for name in sorted({*compiled, *operator.keys.accounts(tenant)}):
        agent, known = grants.agents.get(name), name in compiled
        team = name.startswith(TEAM_PREFIX)
        found.append(
            Identity(
                name=name.removeprefix(TEAM_PREFIX) if known else name,
                kind="gone" if not known else "team" if team else "agent",
                account=accounts.wanted(name, compiled.get(name)),
                user=_user(operator, f"{tenant}/{name}") if known else None,
                subscribe=workload_subscribe(name),
                revoked=(standing.users.get(name) or {}) if standing is not None else {},
                spiffe_id="" if agent is None else agent.spiffe_id,
                barred=standing is not None and name in standing.barred,
            )
        )
    return sorted(found, key=lambda one: (_ORDER.index(one.kind), one.name))


def compiled_imports(grants: Grants, owner: str) -> dict[str, list[Import]]:
    """What *grants* give each workload in NATS, beyond what every workload has.

    Args:
        grants: Of the policies in force.
        owner: Public key of the tenant's account.
    """
    found = {name: publish_imports(owner, grants.site, held.publish) for name, held in grants.agents.items()}
    for team in grants.teams:
        mine = [grant for grant in grants.active if grant.team == team]
        found[team_workload(team)] = subscription_imports(owner, grants.site, grants.domains, mine)
    return found


def described(
    one: Identity, claims: Sequence[Mapping[str, Any]], *, owner: str, consumers: Consumers
) -> dict[str, Any]:
    """What an identity can do, as the servers have it.

    Args:
        one: Who.
        claims: Of its account under `nats`, as each server has them; the rights of all servers add up.
        owner: Public key of the tenant's account.
        consumers: Of the tenant, by stream and name.

    Returns:
        `publish`, `read` and `create`; `usual` where it has what every workload has, which is then told once for all.
    """
    workload = f"{TEAM_PREFIX}{one.name}" if one.kind == "team" else one.name
    usual = {(i.account, i.subject) for i in workload_imports(owner, workload)}
    has_usual = bool(claims) and all(usual <= _taken(nats) for nats in claims)
    left_out = usual if has_usual else ()
    rights = [rights_of(nats, owner=owner, consumers=consumers, leave_out=left_out) for nats in claims]
    if one.name == SYSTEM and one.kind == "control plane":
        said = "every account's JWT, and so every right of everybody"
        rights.append(Rights(read=("what the servers say about themselves",), create=(said,)))
    return {
        "identity": one.name,
        "kind": one.kind,
        "account": one.account.public,
        "spiffe_id": one.spiffe_id,
        "state": _state(one, claims),
        "publish": _all(right.publish for right in rights),
        "read": _all(right.read for right in rights),
        "create": _all(right.create for right in rights),
        "usual": has_usual,
    }


def _state(one: Identity, claims: Sequence[Mapping[str, Any]]) -> str:
    if not claims:
        return "no account"
    if any(nats.get("limits", {}).get("conn") != 0 for nats in claims):
        return "open"
    return "barred" if one.barred else "closed"


def _taken(nats: Mapping[str, Any]) -> set[tuple[Any, Any]]:
    return {(one.get("account"), one.get("subject")) for one in nats.get("imports", ())}


def _all(sentences: Iterable[Iterable[str]]) -> list[str]:
    return sorted({sentence for some in sentences for sentence in some})


def _user(operator: Operator, name: str) -> str | None:
    key = operator.keys.find("user", name)
    return None if key is None else key.public
