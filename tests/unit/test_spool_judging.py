"""What the spool decides before it sends: may a copy still go, and under which generation of its id."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent.spool.egress import Egress
from agent.spool.record import Copy, Sent
from agent.spool.spool import Spool
from mesh.errors import RevisionNeeded
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle, seal_bundle
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, POLICY_SEED, Streams

NOW_MS = 2_000_000_000_000
OURS = "spiffe://mesh.local/ns/acme/sa/crm-adapter"


def plans_of(*policies: str) -> list[Plans]:
    """The plans of these revisions, the first one of revision 1."""
    made: list[Plans] = []
    bundle = None
    for text in policies:
        bundle = open_bundle(seal_bundle(Streams.next_bundle(text, bundle, NOW_MS), POLICY_SEED), POLICY_KEY)
        made.append(Plans(bundle))
    return made


def copy(view: str, *, revision: int = 1, type_: str = "crm.contact.created.v1", **fields: Any) -> Copy:
    """A copy as it was made under revision 1."""
    data = {"country": "DE", "email": "p1_token"} | ({"name": "Ada"} if view == "clear" else {})
    body: dict[str, Any] = {"specversion": "1.0", "id": "e", "source": "/crm", "type": type_, "data": data}
    body |= {"view": view, "policyrevision": revision, "tenant": "acme", **fields}
    encoded = msgspec.json.encode(body)
    return Copy(f"ev.local.{view}.s00.{type_}", "/crm", "e", None, encoded)


def judge(kept: Copy, *policies: str, missing: bool = False) -> Any:
    """What becomes of a copy while the last of *policies* is in force: the fields that are sent, or the reason."""
    plans = plans_of(*policies)

    def past(revision: int) -> Plans:
        if missing:
            raise RevisionNeeded("not here", revision=revision)
        return plans[revision - 1]

    verdict = Egress(OURS, past).judge(kept, plans[-1], NOW_MS)
    return verdict if isinstance(verdict, str) else msgspec.json.decode(verdict)


def changed(old: str, new: str, text: str = POLICIES) -> str:
    """Other policies."""
    assert old in text
    return text.replace(old, new)


REDACTED = changed("{tags: [public], as: clear}", "{tags: [public], as: redact}")
ROWS = changed("  mask:\n    - {tags: [public]", "  rows: data.country == 'FR'\n  mask:\n    - {tags: [public]")
NO_SUPPORT = changed('teams: [support]}, subscribe: ["crm.contact.>"]', 'teams: [support]}, subscribe: ["crm.lead.>"]')
NO_PUBLISH = changed('publish: ["crm.>", "github.>"]', 'publish: ["crm.deal.>", "github.>"]').replace(
    '["crm.contact.>", "crm.deal.>", "github.>"]', '["crm.deal.>", "github.>"]'
).replace('subscribe: ["crm.contact.>"], view: service', 'subscribe: ["crm.deal.>"], view: service')  # fmt: skip


def test_under_the_same_policies_it_goes_as_it_is() -> None:
    """The very bytes that were kept."""
    kept = copy("service")
    assert Egress(OURS, lambda _: pytest.fail("not asked")).judge(kept, plans_of(POLICIES)[0], NOW_MS) is kept.body


def test_what_is_stricter_now_is_applied() -> None:
    """And it stays a copy of its revision: readers judge by that."""
    sent = judge(copy("service"), POLICIES, REDACTED)
    assert sent["data"]["country"] == "[REDACTED]"
    assert sent["data"]["email"] == "p1_token"
    assert sent["policyrevision"] == 1


def test_another_revision_that_changes_nothing_changes_nothing() -> None:
    """The same bytes again."""
    assert judge(copy("service"), POLICIES, POLICIES + "\n# a comment\n") == msgspec.json.decode(copy("service").body)


@pytest.mark.parametrize(
    ("kept", "policies", "reason"),
    [
        (copy("service"), (POLICIES, NO_PUBLISH), "publisher-not-allowed"),
        (copy("service"), (POLICIES, NO_SUPPORT), "no-reader"),
        (copy("service"), (POLICIES, ROWS), "row-filter"),
        (copy("gone"), (POLICIES, POLICIES), "no-reader"),
        (copy("service", revision=0), (POLICIES, POLICIES), "unknown-revision"),
        (copy("service", expirytime="2033-05-18T03:33:20Z"), (POLICIES,), "event-expired"),
        (copy("service", expirytime="2033-05-18T03:33:20Z"), (POLICIES, NO_PUBLISH), "event-expired"),
    ],
)
def test_what_may_not_be_sent_any_more_says_why(kept: Copy, policies: tuple[str, ...], reason: str) -> None:
    """Each has its stable reason."""
    assert judge(kept, *policies) == reason


def test_an_event_that_expires_later_goes() -> None:
    """One millisecond is enough."""
    assert isinstance(judge(copy("service", expirytime="2033-05-18T03:33:20.001Z"), POLICIES), dict)


def test_policies_that_decide_are_waited_for() -> None:
    """Older ones that are not here, and newer ones than ours: nothing is decided without them."""
    with pytest.raises(RevisionNeeded) as older:
        judge(copy("service"), POLICIES, REDACTED, missing=True)
    assert older.value.details["revision"] == 1
    with pytest.raises(RevisionNeeded) as newer:
        judge(copy("service", revision=7), POLICIES)
    assert newer.value.details["revision"] == 7


# --- generations -----------------------------------------------------------------------------------------------------

KID = "now"


def next_sent(sent: Sent, *, revoked: bool = False, distrusted: bool = False) -> Sent:
    """How a copy that was sent like that is sent at `NOW_MS`, with the key `KID`."""

    def believed(first_signed_ms: int, _kids: tuple[str, ...]) -> bool:
        return not distrusted and NOW_MS - first_signed_ms <= 100_000

    spool = SimpleNamespace(
        _keys=SimpleNamespace(kid=lambda: KID, revoked=lambda _kids, _ms: revoked),
        now_ms=lambda: NOW_MS,
        publisher=SimpleNamespace(believed=believed),
    )
    return Spool.next_sent(cast("Spool", spool), sent)


@pytest.mark.parametrize(
    ("sent", "then"),
    [
        (Sent(), Sent(0, NOW_MS, (KID,))),
        (Sent(3, 0, ()), Sent(3, NOW_MS, (KID,))),
        (Sent(0, NOW_MS - 80_000, (KID,)), Sent(0, NOW_MS - 80_000, (KID,))),
        (Sent(1, NOW_MS - 80_000, ("old",)), Sent(1, NOW_MS - 80_000, ("old", KID))),
        (Sent(0, NOW_MS - 95_000, (KID,)), Sent(1, NOW_MS, (KID,))),
        (Sent(4, NOW_MS - 3_600_000, ("old",)), Sent(5, NOW_MS, (KID,))),
        (Sent(0, NOW_MS + 3_600_000, (KID,)), Sent(1, NOW_MS, (KID,))),
    ],
)
def test_an_id_is_kept_while_an_ack_of_it_proves_something(sent: Sent, then: Sent) -> None:
    """Young, it goes on as it was, however many processes it took; old, or from a wrong clock, under another id."""
    assert next_sent(sent) == then


def test_a_revoked_key_ends_an_id() -> None:
    """Whoever finds out: this process, whose key it was, or the trust statement, of a process before."""
    young = Sent(0, NOW_MS - 1000, ("old",))
    assert next_sent(young, revoked=True) == Sent(1, NOW_MS, (KID,))
    assert next_sent(young, distrusted=True) == Sent(1, NOW_MS, (KID,))
