"""A candidate beside the bundle in force: final decisions are compared, and only what differs is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.shadow import DISAGREED, ShadowRun
from mesh.errors import BadBundle, BundleFormat, BundleSignature
from mesh.policy import shadow as module
from mesh.policy.bundle import Bundle
from mesh.policy.candidate import Candidate, Head, open_candidate, seal_candidate
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle, seal_bundle
from mesh.policy.history import lineage
from mesh.policy.shadow import Disagreement, Shadow
from mesh.shadow_watch import Trial
from tests.unit.policy_world import BASE, Keys, access, bundle, document, event, plans

NOW_MS = 1_790_000_000_000
TYPE = "crm.contact.updated.v1"
CONTACT = {"name": "Ada Lovelace", "email": "ada@example.org", "country": "DE", "phone": "+49 30 1234567"}
NO_TESTS = access(
    "deny", deny=[{"id": "no-tests", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.test == true"}]
)


def changed(name: str, old: str, new: str) -> dict[str, str]:
    """The base set with one text replaced."""
    assert old in BASE[name]
    return BASE | {name: BASE[name].replace(old, new)}


def disagreements(
    candidate: Plans, fields: dict[str, Any] | None = None, *, active: Plans | None = None, now_ms: int = NOW_MS
) -> list[tuple[str, str, str, str, str]]:
    """(kind, about, path, active, candidate) of every disagreement about one event, sorted."""
    shadow = Shadow(active or plans(), candidate, "crm-adapter")
    found = shadow.compare(fields or event(CONTACT), now_ms=now_ms)
    return sorted((d.kind, d.about, d.path, d.active, d.candidate) for d in found)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_equal_bundles_never_disagree() -> None:
    """The same policies, compiled twice, agree on an event."""
    assert disagreements(plans()) == []


@pytest.mark.parametrize(
    ("data", "because"), [({"test": True}, "no-tests"), ({}, "error-in-deny (no-tests)"), ({"test": False}, None)]
)
def test_a_deny_shows_as_would_deny(data: dict[str, Any], because: str | None) -> None:
    """A new deny disagrees on the events that it refuses, with the rule that lets them through now."""
    found = disagreements(plans(NO_TESTS), event(data))
    expected = [
        ("team_loses", "analytics", "", "masked", "none"),
        ("team_loses", "crm", "", "clear", "none"),
        ("would_deny", "", "", "crm-publishes", because or ""),
    ]
    assert found == (expected if because else [])


def test_a_lost_allow_shows_as_would_deny() -> None:
    """What no rule of the candidate allows is told, though no rule of it denies."""
    less = changed(
        "access.yaml", 'who: {teams: [crm]}, publish: ["crm.>"]', 'who: {teams: [crm]}, publish: ["crm.deal.>"]'
    )
    less["access.yaml"] = less["access.yaml"].replace('subscribe: ["crm.>"]', 'subscribe: ["crm.deal.>"]')
    assert ("would_deny", "", "", "crm-publishes", "no-allow-matched") in disagreements(plans(base=less))


def test_a_wider_allow_shows_as_would_allow() -> None:
    """What is refused now and would be published is told, with who would receive it."""
    wider = changed("access.yaml", 'publish: ["crm.>"]', 'publish: ["crm.>", "hr.>"]')
    wider["access.yaml"] = wider["access.yaml"].replace(
        'subscribe: ["crm.>"], view: masked', 'subscribe: ["crm.>", "hr.>"], view: masked'
    )
    found = disagreements(plans(base=wider), event(CONTACT, type="hr.contact.updated.v1"))
    assert found == [
        ("team_gains", "analytics", "", "none", "masked"),
        ("would_allow", "", "", "no-allow-matched", "crm-publishes"),
    ]


def test_two_refusals_are_no_disagreement() -> None:
    """For another reason or by another rule, a refusal stays one."""
    assert disagreements(plans(NO_TESTS), event({"test": True}, type="hr.x.y.v1")) == []


@pytest.mark.parametrize(
    ("old", "new", "path", "before", "after"),
    [
        ("{tags: [pii.name], as: drop}", "{tags: [pii.name], as: clear}", "data.name", "drop", "clear"),
        ("{tags: [public], as: clear}", "{tags: [public], as: redact}", "data.country", "clear", "redact"),
    ],
)
def test_a_changed_mask_names_the_policys_path(old: str, new: str, path: str, before: str, after: str) -> None:
    """A mask that changes shows by view and by the path of the classification."""
    found = disagreements(plans(base=changed("views.yaml", old, new)))
    assert found == [("mask_changed", "masked", path, before, after)]


def test_a_changed_default_shows_as_unclassified() -> None:
    """Members that no path names are told by that word: their names are the event's."""
    found = disagreements(plans(base=changed("views.yaml", "otherwise: redact", "otherwise: drop")))
    assert ("mask_changed", "masked", "unclassified", "redact", "drop") in found
    assert ("mask_changed", "masked", "data.email", "redact", "drop") in found  # classified, and no line names its tag
    assert "phone" not in json.dumps(found)


def test_a_new_classification_shows_by_its_path() -> None:
    """A tag added to a field changes its mask where a line names that tag."""
    more = document("Classification", "phones", {"types": ["crm.>"], "fields": {"data.phone": ["public"]}})
    assert disagreements(plans(more)) == [("mask_changed", "masked", "data.phone", "redact", "clear")]


def test_masks_below_a_subtree_are_compared() -> None:
    """One side judges a container whole and the other its members: each member is compared with the whole."""
    more = document("Classification", "deep", {"types": ["crm.>"], "fields": {"data.address.**": ["public"]}})
    fields = event({"address": {"city": "Bonn", "lines": ["a", {"b": 1}]}})
    assert disagreements(plans(more), fields) == [("mask_changed", "masked", "data.address.**", "redact", "clear")]


def test_empty_containers_are_compared() -> None:
    """An object with nothing in it is one value: unclassified, or what a `.**` path makes of it."""
    dropping = plans(base=changed("views.yaml", "otherwise: redact", "otherwise: drop"))
    assert disagreements(dropping, event({})) == [("mask_changed", "masked", "unclassified", "redact", "drop")]
    more = document("Classification", "deep", {"types": ["crm.>"], "fields": {"data.address.**": ["public"]}})
    assert disagreements(plans(more), event({"address": {}})) == [
        ("mask_changed", "masked", "data.address.**", "redact", "clear")
    ]


def test_a_row_filter_shows_as_views_and_teams() -> None:
    """A copy that the candidate's rows leave out is told, with the team that would no longer get it."""
    rows = changed("views.yaml", "spec:\n  mask:", "spec:\n  rows: \"data.country == 'FR'\"\n  mask:")
    lost = [("team_loses", "analytics", "", "masked", "none"), ("view_removed", "masked", "", "", "")]
    assert disagreements(plans(base=rows)) == lost
    gained = [("team_gains", "analytics", "", "none", "masked"), ("view_added", "masked", "", "", "")]
    assert disagreements(plans(), active=plans(base=rows)) == gained
    assert disagreements(plans(base=rows), event(CONTACT | {"country": "FR"})) == []


def test_a_grant_in_another_view_shows_by_team() -> None:
    """A team that would read another view is told even where both views are copied anyway."""
    third = document("View", "plain", {"otherwise": "redact"})
    reads = {"id": "support-reads", "who": {"teams": ["support"]}, "subscribe": ["crm.>"]}
    now = plans(third, access(allow=[reads | {"view": "masked"}]))
    after = plans(third, access(allow=[reads | {"view": "plain"}]))
    assert disagreements(after, active=now) == [
        ("team_view", "support", "", "masked", "plain"),
        ("view_added", "plain", "", "", ""),
    ]


def test_an_expired_grant_grants_nothing() -> None:
    """Both sides are asked at the time of the event."""
    brief = access(
        "break-glass",
        allow=[
            {"id": "inc", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "clear",
             "expires": "2026-12-01T00:00:00Z", "reason": "INC-1"},
        ],
    )  # fmt: skip
    end_ms = 1_796_083_200_000
    assert disagreements(plans(brief), now_ms=end_ms - 1) == [("team_gains", "support", "", "none", "clear")]
    assert disagreements(plans(brief), now_ms=end_ms) == []


def route(effect: str = "copy", to: str = "crm.review.contact.v1", when: str = "data.country == 'DE'") -> str:
    """A Route document."""
    line = {"id": "review", "match": {"types": [TYPE]}, "when": when, "effect": effect, "to": to}
    return document("Route", "routes", {"routes": [line]})


def test_a_new_route_shows_with_its_copies() -> None:
    """A copy that a route would make is told by the route, and by the views of its type."""
    found = disagreements(plans(route()))
    assert ("route_changed", "review", "", "none", "copy to crm.review.contact.v1") in found
    assert {about for kind, about, *_ in found if kind == "view_added"} == {"clear", "masked"}
    assert disagreements(plans(route()), event(CONTACT | {"country": "FR"})) == []


def test_a_routed_copy_is_filtered_as_the_event_it_is() -> None:
    """Rows see the copy: its own type, and the original as its cause."""
    rows = "event.type == 'crm.contact.updated.v1' || event.causationid != 'e-1'"
    base = changed("views.yaml", "spec:\n  mask:", f'spec:\n  rows: "{rows}"\n  mask:')
    found = disagreements(plans(route(), base=base), active=plans(base=base))
    assert {about for kind, about, *_ in found if kind == "view_added"} == {"clear"}


def test_a_move_takes_the_event_from_its_readers() -> None:
    """A copy route that becomes a move is told, and what the type's readers no longer get."""
    found = disagreements(plans(route("move")), active=plans(route()))
    assert ("route_changed", "review", "", "copy to crm.review.contact.v1", "move to crm.review.contact.v1") in found
    assert {about for kind, about, *_ in found if kind == "view_removed"} == {"clear", "masked"}


def test_an_agent_that_the_candidate_does_not_know_is_refused() -> None:
    """A candidate without the agent would deny everything it says."""
    gone = changed("tenant.yaml", "crm: {agents: [crm-adapter]}", "crm: {agents: [other]}")
    assert ("would_deny", "", "", "crm-publishes", "no-allow-matched") in disagreements(plans(base=gone))


# --- counting --------------------------------------------------------------------------------------------------------


def test_disagreements_are_counted_by_event() -> None:
    """Each event counts once for each way it differs, and the last one's id is kept."""
    shadow = Shadow(plans(), plans(base=changed("views.yaml", "as: drop", "as: clear")), "crm-adapter")
    for number in range(5):
        shadow.compare(event(CONTACT if number else {}, id=f"e-{number}"), now_ms=NOW_MS)
    tally = shadow.tally()
    assert (tally.compared, tally.disagreed, tally.other) == (5, 4, 0)
    ((found, count, last),) = [(c.found, c.count, c.event) for c in tally.found]
    assert found == Disagreement("mask_changed", TYPE, "masked", "data.name", "drop", "clear")
    assert (count, last) == (4, "e-4")


def test_what_finds_no_room_counts_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are a publisher's to choose: beyond the bound they are only counted."""
    monkeypatch.setattr(module, "MAX_FOUND", 3)
    shadow = Shadow(plans(), plans(base=changed("views.yaml", "as: drop", "as: clear")), "crm-adapter")
    for number in range(5):
        shadow.compare(event(CONTACT, type=f"crm.t{number}.v1"), now_ms=NOW_MS)
    tally = shadow.tally()
    assert (len(tally.found), tally.other, tally.disagreed) == (3, 2, 5)


def test_the_sample_is_by_id_and_near_its_size() -> None:
    """The same ids are chosen everywhere; all of them at 1, a part at 0.1."""
    whole, tenth, again = (Shadow(plans(), plans(), "crm-adapter", sample=s) for s in (1.0, 0.1, 0.1))
    ids = [f"evt-{number}" for number in range(5000)]
    assert all(whole.chosen(i) for i in ids)
    chosen = [i for i in ids if tenth.chosen(i)]
    assert chosen == [i for i in ids if again.chosen(i)]
    assert 400 < len(chosen) < 600


SECRET = "x-secret-"
values = st.recursive(
    st.integers() | st.booleans() | st.none() | st.text(max_size=5).map(SECRET.__add__),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "email", "country", "address", "x-secret-member"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ACTIVE = plans()
CANDIDATES = [
    plans(base=changed("views.yaml", "as: drop", "as: clear")),
    plans(base=changed("views.yaml", "otherwise: redact", "otherwise: drop")),
    plans(document("Classification", "deep", {"types": ["crm.>"], "fields": {"**.name": ["public"]}})),
    plans(NO_TESTS),
    plans(route()),
]


@given(values, st.sampled_from(CANDIDATES))
def test_no_report_holds_a_value(data: Any, candidate: Plans) -> None:
    """Neither values nor member names of an event get into what is reported, and the event is not changed."""
    shadow = Shadow(ACTIVE, candidate, "crm-adapter")
    fields = event(data, id="id-1", subject=SECRET + "subject")
    before = json.dumps(fields)
    shadow.compare(fields, now_ms=NOW_MS)
    assert SECRET not in repr(shadow.tally())
    assert json.dumps(fields) == before


@given(values, st.sampled_from(CANDIDATES[:3]))
def test_masks_that_agree_show_the_same_values(data: Any, candidate: Plans) -> None:
    """Where no mask is said to change, neither bundle shows a value that the other hides."""
    fields = event(data)
    found = Shadow(ACTIVE, candidate, "crm-adapter").compare(fields, now_ms=NOW_MS)
    shown = [sorted(map(repr, scalars(p.view("masked", TYPE).mask(fields, Keys())))) for p in (ACTIVE, candidate)]
    assert shown[0] == shown[1] or any(d.kind == "mask_changed" for d in found)


def scalars(value: Any) -> Iterator[Any]:
    """Every scalar in *value* that says something."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from scalars(inner)
    elif value not in (None, "[REDACTED]"):
        yield value


# --- the candidate's envelope ----------------------------------------------------------------------------------------

SEED = bytes(range(32))


def public(seed: bytes = SEED) -> bytes:
    """The key that belongs to a seed."""
    from nacl.bindings import crypto_sign_seed_keypair

    return bytes(crypto_sign_seed_keypair(seed)[0])


def following(current: Bundle, *extra: str) -> Bundle:
    """A bundle that would come after *current*."""
    past = lineage(current, current.created_ms, current.created_ms)
    made = bundle(*extra)
    return Bundle(
        tenant=made.tenant, revision=current.revision + 1, site=made.site, trust_domain=made.trust_domain,
        created_ms=made.created_ms, policies=made.policies, previous=current.digest, lineage=past, format=made.format,
    )  # fmt: skip


def candidate(*extra: str, sample: float = 1.0, started_ms: int = 7) -> Candidate:
    """A candidate beside the base set."""
    return Candidate(Head(sample=sample, started_ms=started_ms), following(bundle(), *extra))


def test_a_sealed_candidate_opens() -> None:
    """What was sealed is what is opened, the sample included."""
    opened = open_candidate(seal_candidate(candidate(sample=0.25), SEED), public())
    assert opened == candidate(sample=0.25)
    assert opened.bundle.revision == 2


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda data: data[:-1], BundleSignature),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], BundleSignature),
        (lambda data: data.replace(b'"sample":1.0', b'"sample":0.0'), BundleSignature),
        (lambda data: data.replace(b"mesh-shadow-1", b"mesh-shadow-2"), BundleFormat),
        (lambda data: data.partition(b"\n")[2], BundleSignature),
        (lambda data: b"", BundleSignature),
        (lambda data: b"mesh-shadow-1.x", BundleSignature),
        (lambda data: data + b" " * 1_000_000, BadBundle),
        (lambda data: seal_candidate(candidate(), bytes(32)), BundleSignature),
        (lambda data: seal_bundle(candidate().bundle, SEED), BundleSignature),
    ],
)
def test_a_spoilt_candidate_is_refused(spoil: Callable[[bytes], bytes], error: type[BadBundle]) -> None:
    """A flipped bit, another signer, another version, a bundle in its place: none is tried."""
    with pytest.raises(error):
        open_candidate(spoil(seal_candidate(candidate(), SEED)), public())


def test_a_candidate_never_passes_for_a_bundle() -> None:
    """Nobody has applied it: put in the place of a bundle, in either envelope, its signature does not hold."""
    sealed = seal_candidate(candidate(), SEED)
    head, _, payload = sealed.partition(b"\n")
    renamed = head.replace(b"mesh-shadow-1", b"mesh-policy-1")
    for attempt in (sealed, renamed + b"\n" + payload, renamed + b"\n" + payload.partition(b"\n")[2]):
        with pytest.raises(BundleSignature):
            open_bundle(attempt, public())


# --- at the agent ----------------------------------------------------------------------------------------------------


def run(*extra: str, sample: float = 1.0) -> ShadowRun:
    """An agent's trial of the base set with *extra* documents."""
    made = ShadowRun("crm-adapter")
    made.in_force(plans())
    made.adopt(Trial(candidate(*extra, sample=sample)))
    return made


def test_without_a_candidate_there_is_nothing_to_report() -> None:
    """The usual case costs one look and says nothing."""
    quiet = ShadowRun("crm-adapter")
    quiet.in_force(plans())
    quiet.compare(event(CONTACT), NOW_MS)
    assert quiet.report() is None
    assert not quiet.running


def test_a_report_says_what_was_tried_and_found() -> None:
    """Revision, digest and sample of the candidate, and what differed, counted; the metric by kind."""
    tried = run(NO_TESTS)
    before = DISAGREED.value(kind="would_deny")
    tried.compare(event({"test": True}), NOW_MS)
    tried.compare(event({"test": False}), NOW_MS)
    report = tried.report()
    assert report is not None
    facts = {name: report[name] for name in ("revision", "sample", "compared", "disagreed", "failed")}
    assert facts == {"revision": 2, "sample": 1.0, "compared": 2, "disagreed": 1, "failed": 0}
    assert {found["found"]["kind"] for found in report["found"]} == {"would_deny", "team_loses"}
    assert DISAGREED.value(kind="would_deny") == before + 1
    json.dumps(report)


def test_a_candidate_that_fails_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in a comparison is counted, and the caller never hears of it."""
    tried = run(NO_TESTS)

    def fails(*_: object) -> None:
        raise RuntimeError("anything")

    monkeypatch.setattr(Shadow, "_compare", fails)
    tried.compare(event({"test": True}), NOW_MS)
    report = tried.report()
    assert report is not None
    assert (report["failed"], report["compared"]) == (1, 0)


def test_comparing_takes_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the share is skipped and counted; time that passes makes room again."""
    clock = [100.0, 0.0]
    monkeypatch.setattr("agent.shadow.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("agent.shadow.time.thread_time", lambda: clock[1])
    tried = run(NO_TESTS)
    plain = Shadow.compare

    def slow(*args: Any, **more: Any) -> set[Disagreement]:
        clock[1] += 0.2
        return plain(*args, **more)

    monkeypatch.setattr(Shadow, "compare", slow)
    counts = []
    for passed_s in (0.0, 0.0, 0.0, 1.4, 1.6):
        clock[0] += passed_s
        tried.compare(event(CONTACT), NOW_MS)
        report = tried.report()
        assert report is not None
        counts.append((report["compared"], report["skipped"]))
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2)]


def test_a_trial_ends_when_its_revision_is_reached() -> None:
    """Once an apply has used the candidate's number, the trial is over."""
    tried = run(NO_TESTS)
    states = [tried.running]
    tried.in_force(Plans(candidate(NO_TESTS).bundle))
    states.append(tried.running)
    assert states == [True, False]
    assert tried.report() is None


def test_a_refused_candidate_is_reported() -> None:
    """Who looks at the report learns why an agent does not try it."""
    tried = run(NO_TESTS)
    tried.adopt(None, "bundle-signature")
    assert tried.report() == {"refused": "bundle-signature"}
    tried.adopt(None)
    assert tried.report() is None


def test_news_is_told_once() -> None:
    """A look at the store asks for a report only where there is something new to say."""
    tried = run(NO_TESTS)
    told: list[None] = []
    tried.on_news = lambda: told.append(None)
    tried.looked()
    tried.report()
    tried.looked()
    assert len(told) == 1
    tried.compare(event({"test": True}), NOW_MS)
    tried.looked()
    assert len(told) == 2
