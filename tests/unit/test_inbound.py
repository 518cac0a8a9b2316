"""Then and now: what a reader is handed of a copy that was made under the policies of now, or of some time ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from mesh.errors import RevisionNeeded
from mesh.inbound import Admitted, Reading, Withheld
from mesh.policy.bundle import Bundle
from mesh.policy.compile import Plans
from mesh.policy.history import lineage, since
from mesh.signing import Received, Verified
from mesh.subjects import parse_physical
from tests.unit.policy_world import BASE, bundle

TYPE = "crm.contact.updated.v1"
NOW_MS = 1_000_000
STEP_MS = 1_000  # between two revisions; a copy is stored in the middle
DATA: dict[str, Any] = {"name": "Ada Lindqvist", "email": "ada@example.com", "country": "DE", "note": "call"}
WITHOUT_NAME = {name: value for name, value in DATA.items() if name != "name"}

WORLD = {name: BASE[name] for name in ("tenant.yaml", "crm.yaml")}
VIEWS = """\
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: acme, owner: security}
spec:
  mask: [{tags: [public], as: clear}, {tags: [pii.contact.email], as: MASK}, {tags: [pii.name], as: drop}]
  otherwise: OTHER
ROWS"""
CRM = """\
apiVersion: mesh/v1
kind: Access
metadata: {name: crm, tenant: acme, owner: security}
spec:
  allow:
    - {id: crm-publishes, who: {teams: [crm, analytics]}, publish: ["crm.>"]}
    - {id: crm-reads, who: {teams: [crm]}, subscribe: ["crm.>"], view: clear}
"""


def world(
    *grants: str,
    deny: str = "",
    mask: str = "clear",
    otherwise: str = "clear",
    rows: str = "",
    subscribes: str | None = "",
    extra: str = "",
) -> dict[str, str]:
    """The documents of one revision.

    Args:
        grants: Analytics' read grants, as what follows `subscribe: [...]` in the line.
        deny: Types that analytics is denied.
        mask: Of e-mail in the view `masked`.
        otherwise: Of that view.
        rows: Of that view.
        subscribes: The view that its Subscription names, empty for none, None for no Subscription.
        extra: More documents.
    """
    lines = "".join(
        f'    - {{id: g{number}, who: {{teams: [analytics]}}, subscribe: ["crm.>"], {grant}}}\n'
        for number, grant in enumerate(grants)
    )
    refusal = f'  deny: [{{id: no, who: {{teams: [analytics]}}, subscribe: ["{deny}"]}}]\n' if deny else ""
    head = "apiVersion: mesh/v1\nkind: Access\nmetadata: {name: more, tenant: acme, owner: security}\nspec:\n"
    files = {
        **WORLD,
        "crm-access.yaml": CRM,
        "views.yaml": VIEWS.replace("MASK", mask)
        .replace("OTHER", otherwise)
        .replace("ROWS", rows and f"  rows: {rows}\n"),
    }
    if lines or refusal:
        files["access.yaml"] = head + (f"  allow:\n{lines}" if lines else "") + refusal
    if subscribes is not None:
        view = f", view: {subscribes}" if subscribes else ""
        files["sub.yaml"] = (
            "apiVersion: mesh/v1\nkind: Subscription\nmetadata: {name: contacts, tenant: acme, team: analytics}\n"
            f'spec: {{types: ["crm.contact.>"]{view}}}\n'
        )
    if extra:
        files["extra.yaml"] = extra
    return files


def chain(*revisions: dict[str, str]) -> list[Plans]:
    """One bundle after the other, each naming those before it; number n is stored at n seconds."""
    made: list[Plans] = []
    for number, files in enumerate(revisions, 1):
        before = made[-1].bundle if made else None
        new: Bundle = bundle(base=files)
        new = msgspec.structs.replace(
            new,
            revision=number,
            previous=before.digest if before else "",
            lineage=lineage(before, STEP_MS * (number - 1), NOW_MS) if before else (),
            since=since(before, new.policies, number),
        )
        made.append(Plans(new))
    return made


def copy(view: str, revision: object, *, data: Any = None, type_: str = TYPE, stream_ms: int | None = None) -> Verified:
    """A verified copy in *view*, made under *revision*."""
    fields: dict[str, Any] = {"specversion": "1.0", "id": "e-1", "source": "/crm", "type": type_, "view": view}
    fields |= {"policyrevision": revision, "data": DATA if data is None else data}
    at = revision if isinstance(revision, int) else 0
    subject = f"ev.local.{view}.s00.{type_}"
    received = Received(
        subject=subject, body=b"{}", msg_ids=("m",), signature="s", stream="EV_local_crm", sequence=9,
        stream_ms=STEP_MS * at + 500 if stream_ms is None else stream_ms, deliveries=2, reply="r",
    )  # fmt: skip
    return Verified(received, fields, parse_physical(subject), "spiffe://mesh.test/ns/acme/sa/crm-adapter", "kid")


def reading(plans: Sequence[Plans], *, subscription: str | None = "contacts") -> Reading:
    """How analytics reads under the last of *plans*."""
    past = {each.bundle.revision: each for each in plans}
    return Reading(plans[-1], "analytics", subscription, past=past.__getitem__)


def handed(plans: Sequence[Plans], verified: Verified, *, subscription: str | None = "contacts") -> Any:
    """The data that analytics is handed, or the reason why it is not."""
    outcome = reading(plans, subscription=subscription).admit(verified, now_ms=NOW_MS)
    return outcome.fields["data"] if isinstance(outcome, Admitted) else outcome.reason


# --- as now ----------------------------------------------------------------------------------------------------------


def test_a_team_is_handed_its_view() -> None:
    """What a handler gets says where it came from and which rule let it through, and is the copy itself."""
    verified = copy("masked", 1)
    admitted = reading(chain(world("view: masked"))).admit(verified, now_ms=NOW_MS)
    assert isinstance(admitted, Admitted)
    assert (admitted.key, admitted.view, admitted.attempt, admitted.rule) == (("/crm", "e-1"), "masked", 2, "g0")
    assert (admitted.sequence, admitted.stream, admitted.correlationid) == (9, "EV_local_crm", "e-1")
    assert admitted.fields is verified.fields


@pytest.mark.parametrize(
    ("view", "type_", "subscription", "reason"),
    [
        ("clear", TYPE, "contacts", "other-view"),
        ("clear", TYPE, None, "no-allow-matched"),
        ("masked", "hr.salary.raised.v1", "contacts", "no-allow-matched"),
        ("masked", TYPE, "another", "other-view"),
        ("masked", TYPE, None, None),
    ],
)
def test_a_copy_the_reader_may_not_see_now_is_withheld(
    view: str, type_: str, subscription: str | None, reason: str | None
) -> None:
    """However it got into the durable: another view, another type, a subscription that is none."""
    plans = chain(world("view: masked"))
    got = handed(plans, copy(view, 1, type_=type_), subscription=subscription)
    assert got == (DATA if reason is None else reason)


def test_a_subscription_takes_copies_of_its_own_view_alone() -> None:
    """The team may read both views; the subscription names one, so an event does not come twice."""
    plans = chain(world("view: masked", "view: clear", subscribes="masked"))
    assert handed(plans, copy("masked", 1)) == DATA
    assert handed(plans, copy("clear", 1)) == "other-view"


def test_a_copy_from_a_newer_revision_is_judged_as_now() -> None:
    """Our bundle is behind: what the source masked it has masked by newer rules."""
    assert handed(chain(world("view: masked")), copy("masked", 9)) == DATA


def test_an_expired_grant_hands_nothing_over_and_says_which_rules_expire() -> None:
    """A grant holds until its second; `expiring` names what has to be recorded."""
    plans = chain(world('view: masked, expires: "1970-01-01T00:20:00Z", reason: a trial', subscribes="masked"))
    reads = reading(plans)
    assert reads.expiring == {"g0": 1_200_000}
    assert isinstance(reads.admit(copy("masked", 1), now_ms=1_199_999), Admitted)
    assert reads.admit(copy("masked", 1), now_ms=1_200_000) == Withheld("no-allow-matched", None)
    assert reading(chain(world("view: masked"))).expiring == {}


# --- then and now: views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "view", "expected"),
    [
        # a change of view: the copy in the view of then, and no other
        (world("view: masked"), world("view: clear"), "masked", DATA),
        (world("view: masked"), world("view: clear"), "clear", "not-granted-then"),
        # the same by the subscription's own choice
        (world("view: masked", "view: clear", subscribes="masked"),
         world("view: masked", "view: clear", subscribes="clear"), "masked", DATA),
        (world("view: masked", "view: clear", subscribes="masked"),
         world("view: masked", "view: clear", subscribes="clear"), "clear", "not-granted-then"),
        # a new grant opens no history
        (world(subscribes=None), world("view: masked"), "masked", "not-granted-then"),
        # unless it says so, from then on, and in its own view
        (world(subscribes=None), world('view: masked, since: "1970-01-01T00:00:01Z"'), "masked", DATA),
        (world(subscribes=None), world('view: masked, since: "1970-01-01T00:00:02Z"'), "masked", "not-granted-then"),
        (world(subscribes=None), world('view: masked, since: "1970-01-01T00:00:01Z"'), "clear", "not-granted-then"),
        # and never beside the view that the reader had
        (world("view: clear"), world('view: masked, since: "1970-01-01T00:00:01Z"'), "masked", "not-granted-then"),
        (world("view: clear"), world('view: masked, since: "1970-01-01T00:00:01Z"'), "clear", WITHOUT_NAME),
        # a new subscription of a team that had the grant
        (world("view: masked", subscribes=None), world("view: masked"), "masked", DATA),
        (world("view: masked", "view: clear", subscribes=None),
         world("view: masked", "view: clear", subscribes="clear"), "masked", "not-granted-then"),
        # no view of the type now
        (world("view: masked"), world("view: masked", deny="crm.contact.>"), "masked", "rule"),
        (world("view: masked"), world(subscribes=""), "masked", "no-allow-matched"),
        # inactive then, for its team had two views and it named none
        (world("view: masked", "view: clear"), world("view: clear"), "clear", DATA),
    ],
)  # fmt: skip
def test_a_copy_is_handed_over_in_the_view_of_then(
    then: dict[str, str], now: dict[str, str], view: str, expected: object
) -> None:
    """A change of view neither doubles an event nor skips it, and a grant opens no history unless it says `since`."""
    assert handed(chain(then, now), copy(view, 1)) == expected


def test_a_view_that_was_not_there_then_opens_nothing() -> None:
    """A copy that says it was made in a view which its revision does not know is nobody's, whatever `since` says."""
    fresh = "apiVersion: mesh/v1\nkind: View\nmetadata: {name: fresh, tenant: acme, owner: security}\n"
    now = world(
        'view: fresh, since: "1970-01-01T00:00:01Z"', subscribes="fresh", extra=fresh + "spec: {otherwise: redact}\n"
    )
    assert handed(chain(world(subscribes=None), now), copy("fresh", 1)) == "not-granted-then"


def test_what_lies_between_does_not_count() -> None:
    """A grant that was away and came back hands over what was stored while it held, and nothing in between."""
    plans = chain(world("view: masked"), world(), world("view: masked"))
    assert handed(plans, copy("masked", 1)) == DATA
    assert handed(plans, copy("masked", 2)) == "not-granted-then"
    assert handed(plans, copy("masked", 3)) == DATA


def test_an_unrelated_change_asks_nobody() -> None:
    """Where nothing that analytics reads by has changed, an old copy is as good as a new one: no old bundle is read."""
    head = "apiVersion: mesh/v1\nkind: View\nmetadata: {name: other, tenant: acme, owner: security}\n"
    more = head + "spec: {otherwise: drop}\n"
    plans = chain(world("view: masked"), world("view: masked", extra=more))

    def past(revision: int) -> Plans:
        raise AssertionError(revision)

    verified = copy("masked", 1)
    outcome = Reading(plans[-1], "analytics", "contacts", past=past).admit(verified, now_ms=NOW_MS)
    assert isinstance(outcome, Admitted)
    assert outcome.fields is verified.fields


@pytest.mark.parametrize("revision", [0, -1, True, "1", None, 1.0])
def test_a_revision_nobody_remembers_is_withheld(revision: object) -> None:
    """A copy that does not say by which policies it was made is not judged by guesses."""
    plans = chain(world("view: masked"), world("view: clear"))
    assert handed(plans, copy("masked", revision, stream_ms=1_500)) == "unknown-revision"


def test_a_revision_before_the_lineage_is_withheld() -> None:
    """Its policies are gone: the streams should have dropped the copy by then."""
    plans = chain(world("view: masked"), world("view: clear"), world("view: masked"))
    short = msgspec.structs.replace(plans[-1].bundle, lineage=plans[-1].bundle.lineage[1:])
    assert handed([*plans[:2], Plans(short)], copy("masked", 1)) == "unknown-revision"
    assert handed(plans, copy("masked", 1)) == DATA


def test_plans_that_are_not_here_are_asked_for() -> None:
    """`RevisionNeeded` names the revision, and nothing is decided without it."""
    plans = chain(world("view: masked"), world("view: clear"))

    def past(revision: int) -> Plans:
        raise RevisionNeeded("not here", revision=revision)

    with pytest.raises(RevisionNeeded) as needed:
        Reading(plans[-1], "analytics", "contacts", past=past).admit(copy("masked", 1), now_ms=NOW_MS)
    assert needed.value.details["revision"] == 1


def test_a_look_without_a_subscription_shows_what_the_team_had() -> None:
    """`mesh events` has no subscription: any view that a grant of then showed, tightened to one of now."""
    plans = chain(world("view: masked", "view: clear"), world("view: masked", mask="redact"))
    assert handed(plans, copy("masked", 1), subscription=None)["email"] == "[REDACTED]"
    assert handed(plans, copy("clear", 1), subscription=None)["email"] == "[REDACTED]"
    assert handed(chain(world("view: masked"), world("view: clear")), copy("clear", 1), subscription=None) == (
        "not-granted-then"
    )


# --- then and now: masks and rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "email"),
    [
        (world("view: masked"), world("view: masked", mask="redact"), "[REDACTED]"),
        (world("view: masked"), world("view: masked", mask="drop"), None),
        (world("view: masked"), world("view: masked", mask="partial, with: {style: email}"), "a***@***.com"),
        (world("view: masked"), world("view: masked", mask="pseudonym, with: {domain: customer}"), "[REDACTED]"),
        (world("view: masked", mask="redact"), world("view: masked"), "as stored"),
        (world("view: clear"), world("view: masked", mask="redact"), "[REDACTED]"),
    ],
)
def test_whatever_is_stricter_now_is_applied(then: dict[str, str], now: dict[str, str], email: str | None) -> None:
    """A mask that came later is applied where the value can still be read, else it is redacted; none is undone."""
    view = "clear" if "view: clear" in then["access.yaml"] else "masked"
    stored = DATA | {"email": "as stored"} if email == "as stored" else DATA
    got = handed(chain(then, now), copy(view, 1, data=stored))
    assert got.get("email") == email
    assert got["country"] == "DE"


def test_a_classification_that_came_later_counts() -> None:
    """A field that was unclassified when the copy was made is masked by the tag it has now."""
    tags = "apiVersion: mesh/v1\nkind: Classification\nmetadata: {name: notes, tenant: acme, owner: crm}\n"
    later = tags + 'spec: {types: ["crm.>"], fields: {data.note: [pii.name]}}\n'
    plans = chain(world("view: masked"), world("view: masked", extra=later))
    assert handed(plans, copy("masked", 1, data=WITHOUT_NAME)) == {"email": DATA["email"], "country": "DE"}


def test_the_stored_copy_is_not_changed() -> None:
    """A dead letter carries the event as it was delivered, with the signature that fits it."""
    verified = copy("masked", 1)
    before = msgspec.json.encode(verified.fields)
    handed(chain(world("view: masked"), world("view: masked", mask="redact")), verified)
    assert msgspec.json.encode(verified.fields) == before


@pytest.mark.parametrize(
    ("then", "now", "country", "expected"),
    [
        (world("view: masked"), world("view: masked", rows="data.country == 'DE'"), "DE", "handed over"),
        (world("view: masked"), world("view: masked", rows="data.country == 'DE'"), "FR", "row-filter"),
        (world("view: masked"), world("view: masked", rows="data.region == 'DE'"), "DE", "row-filter"),
        (world("view: masked"), world("view: masked", rows="data.email == 'ada@example.com'"), "DE", "handed over"),
        (world("view: masked", mask="redact"), world("view: masked", rows="data.email == 'ada@example.com'"), "DE",
         "row-filter"),
        (world("view: masked", mask="redact", rows="data.email == 'ada@example.com'"),
         world("view: masked", mask="drop", rows="data.email == 'ada@example.com'"), "DE", "handed over"),
        (world("view: masked", rows="data.country == 'DE'"), world("view: masked"), "FR", "handed over"),
    ],
)  # fmt: skip
def test_a_row_filter_that_came_later_is_asked(
    then: dict[str, str], now: dict[str, str], country: str, expected: str
) -> None:
    """Over the copy, where that shows all it reads in clear; else the copy is withheld. One it has passed counts."""
    got = handed(chain(then, now), copy("masked", 1, data=DATA | {"country": country}))
    assert ("handed over" if isinstance(got, dict) else got) == expected


def test_copies_of_one_revision_share_the_work() -> None:
    """What changed since a revision is worked out once for a type and a view."""
    reads = reading(chain(world("view: masked"), world("view: masked", mask="redact")))
    for _ in range(3):
        assert isinstance(reads.admit(copy("masked", 1), now_ms=NOW_MS), Admitted)
    assert len(reads._passages) == 1
