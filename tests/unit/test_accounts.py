"""JWTs of operator mode and the imports that are a grant, without a server."""

from __future__ import annotations

import base64

import nkeys
import pytest

from mesh.errors import IdentityError, TooLarge
from mesh.jetstream import accounts
from mesh.jetstream.accounts import Import, Nkey
from mesh.policy.grants import PublishGrant, SubscriptionGrant
from mesh.subjects import Pattern

OPERATOR = Nkey.from_random("operator", bytes(32))
TENANT = Nkey.from_random("account", b"t" * 32)
USER = Nkey.from_random("user", b"u" * 32)
IAT = 1_700_000_000


def subjects(imports: list[Import]) -> list[str]:
    """Their subjects."""
    return [i.subject for i in imports]


def patterns(*texts: str) -> tuple[Pattern, ...]:
    """Parsed."""
    return tuple(Pattern.parse(text) for text in texts)


@pytest.mark.parametrize(("kind", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")])
def test_a_key_reads_back_from_its_seed(kind: str, letter: str) -> None:
    """Seed to key gives the same public key, whose first letter is its kind; the seed is in no repr."""
    key = Nkey.from_random(kind, b"k" * 32)  # type: ignore[arg-type]
    assert key.public[0] == letter
    assert len(key.public) == 56
    assert key.seed.startswith(f"S{letter}")
    assert Nkey(key.seed).public == key.public
    assert key.seed not in repr(key)


@pytest.mark.parametrize("seed", ["", "S", "SUAB", "x" * 58, "SU" + "A" * 56, "ÄÖÜ", "UA" + "A" * 56])
def test_a_broken_seed_is_an_identity_error(seed: str) -> None:
    """What does not decode raises our error, which does not repeat the seed."""
    with pytest.raises(IdentityError) as refusal:
        Nkey(seed)
    assert len(seed) < 10 or seed not in str(refusal.value.as_dict())


def test_the_same_keys_and_times_give_the_same_token() -> None:
    """Tokens are deterministic, whatever the order of imports."""
    imports = [Import(TENANT.public, subject) for subject in ("b", "a", "c.>")]
    first = accounts.account_jwt(OPERATOR, TENANT.public, "acme", imports=imports, iat=IAT)
    assert first == accounts.account_jwt(OPERATOR, TENANT.public, "acme", imports=imports[::-1], iat=IAT)
    assert first != accounts.account_jwt(OPERATOR, TENANT.public, "acme", imports=imports, iat=IAT + 1)


def test_a_token_is_signed_by_its_issuer() -> None:
    """Header and claims verify under the key that `iss` names; one changed byte does not."""
    token = accounts.user_jwt(TENANT, USER.public, "control", iat=IAT)
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    pair = nkeys.from_seed(bytearray(TENANT.seed.encode()))
    assert pair.verify(signed.encode(), raw)
    with pytest.raises(nkeys.ErrInvalidSignature):
        pair.verify(signed.encode() + b"x", raw)
    claims = accounts.claims_of(token)
    assert (claims["iss"], claims["sub"], claims["iat"]) == (TENANT.public, USER.public, IAT)


def test_grants_compare_without_their_time() -> None:
    """`grants_of` is equal for equal grants of different times, and different for different grants."""
    one = accounts.account_jwt(OPERATOR, TENANT.public, "desk", imports=[Import("A", "a")], iat=IAT)
    later = accounts.account_jwt(OPERATOR, TENANT.public, "desk", imports=[Import("A", "a")], iat=IAT + 60)
    other = accounts.account_jwt(OPERATOR, TENANT.public, "desk", imports=[Import("A", "b")], iat=IAT)
    assert accounts.grants_of(one) == accounts.grants_of(later) != accounts.grants_of(other)


def test_only_a_tenant_account_has_jetstream() -> None:
    """Storage limits stand in an account with JetStream alone; a closed account takes no connection."""
    plain = accounts.claims_of(accounts.account_jwt(OPERATOR, TENANT.public, "desk", iat=IAT))["nats"]["limits"]
    tenant = accounts.claims_of(accounts.account_jwt(OPERATOR, TENANT.public, "acme", jetstream=True, iat=IAT))
    closed = accounts.claims_of(accounts.account_jwt(OPERATOR, TENANT.public, "desk", closed=True, iat=IAT))
    assert "disk_storage" not in plain
    assert tenant["nats"]["limits"]["disk_storage"] == -1
    assert (plain["conn"], closed["nats"]["limits"]["conn"]) == (256, 0)
    assert (plain["leaf"], tenant["nats"]["limits"]["leaf"]) == (0, 0)  # nobody joins a server of his own


def test_a_workload_holds_so_much_of_the_server_and_no_more() -> None:
    """Connections of its account, subscriptions of each, whichever user it is; the control plane has no such limit."""
    plain = accounts.claims_of(accounts.account_jwt(OPERATOR, TENANT.public, "desk", iat=IAT))["nats"]["limits"]
    tenant = accounts.claims_of(accounts.account_jwt(OPERATOR, TENANT.public, "acme", jetstream=True, iat=IAT))
    desk = accounts.user_jwt(TENANT, USER.public, "desk", subscribe=accounts.workload_subscribe("desk"), iat=IAT)
    control = accounts.user_jwt(TENANT, USER.public, "control", iat=IAT)
    assert (plain["subs"], plain["conn"], plain["payload"]) == (1000, 256, -1)
    assert [tenant["nats"]["limits"][name] for name in ("subs", "conn", "payload")] == [-1, -1, -1]
    assert [accounts.claims_of(token)["nats"]["subs"] for token in (desk, control)] == [1000, -1]


def test_revoked_users_stand_in_the_account() -> None:
    """By public key, with the second up to which their JWTs are refused; an account without any has no such claim."""
    plain = accounts.account_jwt(OPERATOR, TENANT.public, "desk", iat=IAT)
    token = accounts.account_jwt(OPERATOR, TENANT.public, "desk", revocations={USER.public: IAT - 1}, iat=IAT)
    assert accounts.claims_of(token)["nats"]["revocations"] == {USER.public: IAT - 1}
    assert "revocations" not in accounts.claims_of(plain)["nats"]
    assert accounts.grants_of(plain) != accounts.grants_of(token)


def test_an_account_over_the_servers_limit_is_refused_before_it_is_signed() -> None:
    """Over 1 MiB, less the frame that pushes it, the error names both sizes and what to do; nothing is signed."""

    class Unused(Nkey):
        def sign(self, message: bytes) -> bytes:
            raise AssertionError(message[:20])

    imports = [Import(TENANT.public, f"ev.local.clear.*.crm.thing-{n}.{'x' * 60}.>") for n in range(4000)]
    with pytest.raises(TooLarge) as refusal:
        accounts.account_jwt(Unused(OPERATOR.seed), TENANT.public, "desk", imports=imports, iat=IAT)
    assert refusal.value.details["limit"] == 1_048_000 < refusal.value.details["size"]
    token = accounts.account_jwt(OPERATOR, TENANT.public, "desk", imports=imports[:2000], iat=IAT)
    with pytest.raises(AssertionError):
        accounts.account_jwt(Unused(OPERATOR.seed), TENANT.public, "desk", imports=imports[:2000], iat=IAT)
    signed = token.rpartition(".")[0]
    assert len(token) == len(signed) + 1 + 86  # the size that was checked is the size it has


def test_a_creds_file_carries_token_and_seed() -> None:
    """The two blocks every NATS client reads."""
    lines = accounts.creds_file("a.b.c", "SUXYZ").decode().splitlines()
    assert lines[0] == "-----BEGIN NATS USER JWT-----"
    assert lines[1] == "a.b.c"
    assert "-----BEGIN USER NKEY SEED-----" in lines
    assert lines[lines.index("-----BEGIN USER NKEY SEED-----") + 1] == "SUXYZ"


def test_a_user_subscribes_to_what_is_named() -> None:
    """A workload's user hears its inbox and the notices; the control plane's has no such list."""
    names = accounts.workload_subscribe("desk")
    token = accounts.user_jwt(TENANT, USER.public, "desk", subscribe=names, iat=IAT)
    assert accounts.claims_of(token)["nats"]["sub"] == {"allow": ["_INBOX_desk.>", "ctl.notice"]}
    assert accounts.claims_of(accounts.user_jwt(TENANT, USER.public, "control", iat=IAT))["nats"]["sub"] == {}


def test_what_every_workload_imports() -> None:
    """Its own audit, report, report read and enrolment, the bundles, the trust store, the notices; nothing else."""
    imports = accounts.workload_imports("A", "desk")
    assert subjects(imports) == [
        "audit.desk",
        "report.desk.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.shadow",
        "$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.>",
        "$JS.API.DIRECT.GET.REPORTS.report.desk.*",
        "ctl.enrol.desk",
        "ctl.notice",
    ]
    assert [i.kind for i in imports] == ["service"] * 8 + ["stream"]


def test_a_teams_own_account_asks_for_no_certificate() -> None:
    """It signs no event: it has what an agent has, but for the subject of enrolment."""
    of_team, of_agent = (subjects(accounts.workload_imports("A", name)) for name in ("team-desk", "desk"))
    assert [s.replace("team-desk", "desk") for s in of_team] == [s for s in of_agent if s != "ctl.enrol.desk"]


def test_a_publishers_imports_are_its_grants() -> None:
    """One import a view and pattern, all slots; a pattern that another one contains is left out (NATS refuses it)."""
    grants = [
        PublishGrant("masked", Pattern.parse("crm.contact.>")),
        PublishGrant("clear", Pattern.parse("crm.contact.updated.v1")),
        PublishGrant("clear", Pattern.parse("crm.contact.>")),
        PublishGrant("clear", Pattern.parse("crm.order.placed")),
    ]
    assert subjects(accounts.publish_imports("A", "local", grants)) == [
        "ev.local.clear.*.crm.contact.>",
        "ev.local.clear.*.crm.order.placed.*",
        "ev.local.masked.*.crm.contact.>",
    ]


def test_a_consumers_imports_name_its_durable_exactly() -> None:
    """A pull, an ack and a dead-letter subject for each durable; only a version of the ack subject has a wildcard."""
    grant = SubscriptionGrant("support", "contacts", "clear", patterns("crm.contact.>", "hr.>", "erp.x"))
    assert subjects(accounts.subscription_imports("A", "local", ("crm", "hr", "shop"), [grant])) == [
        "$JS.API.CONSUMER.MSG.NEXT.EV_local_crm.support--contacts",
        "$JS.ACK.EV_local_crm.support--contacts.>",
        "$JS.API.CONSUMER.MSG.NEXT.EV_local_hr.support--contacts",
        "$JS.ACK.EV_local_hr.support--contacts.>",
        "$JS.API.CONSUMER.MSG.NEXT.EV_local_crm.support--contacts--replay",
        "$JS.ACK.EV_local_crm.support--contacts--replay.>",
        "$JS.API.CONSUMER.MSG.NEXT.EV_local_hr.support--contacts--replay",
        "$JS.ACK.EV_local_hr.support--contacts--replay.>",
        "$JS.API.CONSUMER.MSG.NEXT.REDRIVE.support--contacts--redrive",
        "$JS.ACK.REDRIVE.support--contacts--redrive.>",
        "dlq.support.contacts",
    ]


def test_an_ordered_consumer_imports_each_slot_and_one_replay() -> None:
    """Sixteen durables in each stream, and beside them what a replay and a redrive pull from, without a slot."""
    grant = SubscriptionGrant("support", "contacts", "clear", patterns("crm.>"), ordered=True)
    taken = subjects(accounts.subscription_imports("A", "local", ("crm",), [grant]))
    pulls = [subject.rpartition(".")[2] for subject in taken if "MSG.NEXT" in subject]
    slots = [f"support--contacts--s{slot:02d}" for slot in range(16)]
    assert pulls == [*slots, "support--contacts--replay", "support--contacts--redrive"]
    assert len(taken) == 2 * len(pulls) + 1


def test_no_import_is_wider_than_an_export() -> None:
    """Each thing a workload can import lies in a family the tenant exports, with the same kind."""
    grant = SubscriptionGrant("support", "contacts", "clear", patterns("crm.>"))
    imports = [
        *accounts.workload_imports("A", "desk"),
        *accounts.publish_imports("A", "local", [PublishGrant("clear", Pattern.parse("crm.>"))]),
        *accounts.subscription_imports("A", "local", ("crm",), [grant]),
    ]
    for taken in imports:
        families = [
            e
            for e in accounts.TENANT_EXPORTS
            if e.kind == taken.kind and (taken.subject + ".").startswith(e.subject.removesuffix(">").rstrip(".") + ".")
        ]
        assert len(families) == 1, taken
