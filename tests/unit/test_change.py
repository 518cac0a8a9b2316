"""What has to hold before a change of policies is made: one connection pulls all that a team is delivered."""

from __future__ import annotations

import pytest

from mesh.control.change import MAX_DURABLES, check_durables
from mesh.errors import PolicyError
from mesh.policy.grants import Grants, SubscriptionGrant
from mesh.subjects import Pattern


def grants(domains: int, *subscriptions: SubscriptionGrant) -> Grants:
    """Of a tenant whose types are of so many domains."""
    return Grants(
        tenant="acme",
        site="local",
        agents={},
        teams={"support": (), "analytics": ()},
        subscriptions={(grant.team, grant.name): grant for grant in subscriptions},
        streams={f"d{n}": f"EV_local_d{n}" for n in range(domains)},
    )


def reads(name: str, *, ordered: bool = False, team: str = "support", active: bool = True) -> SubscriptionGrant:
    """A subscription to every type there is."""
    return SubscriptionGrant(team, name, "clear", (Pattern.parse(">"),), ordered=ordered, active=active)


def test_an_ordered_subscription_has_a_durable_for_each_slot_and_stream() -> None:
    """57 streams fit one connection, with their replays and the redrive; 58 do not, and the error says what to do."""
    check_durables(grants(57, reads("all", ordered=True)))
    with pytest.raises(PolicyError) as refused:
        check_durables(grants(58, reads("all", ordered=True)))
    assert f"team support come to 987 durables, limit {MAX_DURABLES}" in str(refused.value)
    assert refused.value.got == "all"
    assert "order_by" in refused.value.next


def test_subscriptions_of_a_team_add_up() -> None:
    """Those of one team, and only while they are delivered anything."""
    many = [reads(f"s{n}", ordered=True) for n in range(6)]
    check_durables(grants(9, *many))
    with pytest.raises(PolicyError, match="1026 durables"):
        check_durables(grants(10, *many))
    check_durables(grants(10, *many[1:], reads("s0", ordered=True, team="analytics")))
    check_durables(grants(10, *many[1:], reads("s0", ordered=True, active=False)))
