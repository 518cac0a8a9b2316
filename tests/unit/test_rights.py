"""What an account's claims let its users do, in words, and what of it is beyond what was compiled: rows, no server."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.jetstream import excess
from mesh.jetstream.accounts import Account, Export, Import, workload_subscribe
from mesh.jetstream.excess import ADVICE, Flag
from mesh.jetstream.imports import workload_imports
from mesh.jetstream.rights import EVERYTHING, Rights, rights_of
from mesh.jetstream.topology import Config, ConsumerSpec, StreamSpec, desired
from mesh.policy.grants import SubscriptionGrant
from mesh.subjects import Pattern

OWNER = "A" + "O" * 55
DESK = "A" + "D" * 55
USER, OTHER = "U" + "D" * 55, "U" + "X" * 55
STREAM = "EV_local_crm"
CONSUMERS: dict[tuple[str, str], Config] = {
    (STREAM, "support--contacts"): {"filter_subject": "ev.local.masked.*.crm.contact.>"},
    (STREAM, "analytics--all"): {"filter_subjects": ["ev.local.bare.*.crm.>", "ev.local.masked.*.crm.>"]},
    (STREAM, "whole"): {},
    (STREAM, "support--calls--s00"): {"filter_subject": "ev.local.masked.s00.crm.call.>"},
    (STREAM, "support--calls--s15"): {"filter_subject": "ev.local.masked.s15.crm.call.>"},
}
NEXT, ACK = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}", f"$JS.ACK.{STREAM}"


def rights(*subjects: str, kind: str = "service", account: str = OWNER) -> Rights:
    """Of an account that imports these."""
    taken = [{"account": account, "subject": subject, "type": kind} for subject in subjects]
    return rights_of({"imports": taken}, owner=OWNER, consumers=CONSUMERS)


# --- in words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        (["ev.local.clear.*.crm.>"], Rights(publish=("crm.> in clear (site local)",))),
        (
            ["ev.local.masked.*.crm.>", "ev.local.clear.*.crm.>"],
            Rights(publish=("crm.> in clear, masked (site local)",)),
        ),
        (["ev.*.*.*.crm.a.v1"], Rights(publish=("crm.a.v1 in every view (every site)",))),
        (["ev.local.clear.s03.crm.>"], Rights(publish=("crm.> in clear (site local, slot s03 alone)",))),
        (["ev.>"], Rights(publish=("events on ev.>, in any view",))),
        (["ev.local.>"], Rights(publish=("events on ev.local.>, in any view",))),
        (["dlq.support.contacts"], Rights(publish=("dead letters of support/contacts",))),
        (["audit.desk"], Rights(publish=("audit records of desk",))),
        (["report.desk.*"], Rights(publish=("reports of desk",))),
        (["ctl.enrol.desk"], Rights(publish=("requests for certificates of desk",))),
        (["ctl.policy.apply"], Rights(publish=("requests on ctl.policy.apply",))),
        (["$KV.mesh_policy.bundle"], Rights(publish=("requests on $KV.mesh_policy.bundle",))),
        (
            [f"{NEXT}.support--contacts", f"{ACK}.support--contacts.>"],
            Rights(read=(f"crm.contact.> in masked: support--contacts on {STREAM}",)),
        ),
        (
            [f"{NEXT}.analytics--all", f"{ACK}.analytics--all.>"],
            Rights(read=(f"crm.> in bare, masked: analytics--all on {STREAM}",)),
        ),
        ([f"{NEXT}.whole"], Rights(read=(f"everything on >: whole on {STREAM}, without an ack",))),
        ([f"{NEXT}.gone"], Rights(read=(f"nothing: gone on {STREAM} is not there",))),
        (
            [f"{NEXT}.support--contacts--replay", f"{NEXT}.support--contacts--redrive"],
            Rights(read=("what is replayed or redriven to support--contacts, while something is, without an ack",)),
        ),
        (
            [f"{NEXT}.support--calls--s00", f"{NEXT}.support--calls--s15"],
            Rights(read=(f"crm.call.> in masked: support--calls--s* on {STREAM}, without an ack",)),
        ),
        ([f"{NEXT}.*"], Rights(read=(f"what every durable in * on {STREAM} delivers, without an ack",))),
        (
            [f"{ACK}.support--contacts.>"],
            Rights(read=(f"the next event of support--contacts on {STREAM}, through its ack subject (+NXT)",)),
        ),
        (
            ["$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle.*"],
            Rights(read=("policy bundles (bundle.*)",)),
        ),
        (["$JS.API.DIRECT.GET.REPORTS.report.desk.*"], Rights(read=("reports (desk.*)",))),
        ([f"$JS.API.DIRECT.GET.{STREAM}"], Rights(read=(f"any stored message of {STREAM}",))),
        (
            [f"$JS.API.DIRECT.GET.{STREAM}.ev.local.clear.>"],
            Rights(read=(f"any stored message of {STREAM} on ev.local.clear.>",)),
        ),
        ([f"$JS.API.STREAM.MSG.GET.{STREAM}"], Rights(read=(f"any stored message of {STREAM}, by sequence",))),
        (["$JS.API.STREAM.INFO.X"], Rights(read=("through the JetStream API: $JS.API.STREAM.INFO.X",))),
        (
            [f"$JS.API.CONSUMER.CREATE.{STREAM}.>"],
            Rights(create=(f"through the JetStream API: $JS.API.CONSUMER.CREATE.{STREAM}.>",)),
        ),
        (["$JS.API.>"], Rights(create=("through the JetStream API: $JS.API.>",))),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_import_in_words(subjects: list[str], expected: Rights) -> None:
    """Each subject is a right to publish, to read or to create; a pull says what its durable delivers."""
    assert rights(*subjects) == expected


def test_streams_and_other_accounts_in_words() -> None:
    """A stream import is read; what is of another account names it."""
    assert rights("ctl.notice", kind="stream") == Rights(read=("notices",))
    assert rights("ev.>", kind="stream") == Rights(read=("messages on ev.>",))
    assert rights("ev.>", account=DESK) == Rights(publish=(f"ev.> of the account {DESK}",))


def test_an_account_with_streams_can_do_everything_in_it() -> None:
    """JetStream in an account without limits on its users; closed, it can do nothing."""
    tenant = Account(OWNER, "acme", jetstream=True)
    found = rights_of(tenant.claims(), owner=OWNER, consumers={})
    assert (found.publish, found.read) == ((EVERYTHING,), (EVERYTHING,))
    assert found.create
    assert rights_of(replace(tenant, closed=True).claims(), owner=OWNER, consumers={}) == Rights()


def test_what_every_workload_has_is_left_out_once_it_is_told() -> None:
    """The usual imports are known sentences, and none of them makes anything."""
    usual = workload_imports(OWNER, "desk")
    account = Account(DESK, "acme/desk", imports=frozenset(usual))
    told = rights_of(account.claims(), owner=OWNER, consumers={})
    assert told == Rights(
        publish=("audit records of desk", "reports of desk", "requests for certificates of desk"),
        read=(
            "certificates and the trust statement (>)",
            "notices",
            "policy bundles (bundle)",
            "policy bundles (bundle.*)",
            "policy bundles (shadow)",
            "reports (desk.*)",
        ),
    )
    keys = [(one.account, one.subject) for one in usual]
    assert rights_of(account.claims(), owner=OWNER, consumers={}, leave_out=keys) == Rights()


# --- accounts --------------------------------------------------------------------------------------------------------

MEANT = Account(
    DESK, "acme/desk", imports=frozenset([Import(OWNER, "ev.local.clear.*.crm.>")]), revocations={OTHER: 100}
)


def account_codes(live: dict[str, Any], meant: Account = MEANT) -> list[str]:
    """The codes of what *live* has beyond *meant*."""
    flags = excess.account_flags("agent desk", live, meant.claims(), owner=OWNER, consumers=CONSUMERS)
    return [flag.code for flag in flags]


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"imports": []}, []),  # less is no excess
        ({"imports": [Import(OWNER, "ev.>").claims()]}, ["extra-import"]),
        ({"imports": [Import(OWNER, "ev.local.clear.*.crm.>", "stream").claims()]}, ["extra-import"]),
        ({"imports": [{**Import(OWNER, "ev.local.clear.*.crm.>").claims(), "share": True}]}, ["extra-import"]),
        ({"imports": [Import(DESK, "x").claims(), Import(DESK, "y").claims()]}, ["extra-import"] * 2),
        ({"exports": [Export("x").claims()]}, ["extra-export"]),
        ({"revocations": {}}, ["revocation-missing"]),
        ({"revocations": {OTHER: 99}}, ["revocation-missing"]),
        ({"revocations": {OTHER: 101, USER: 5}}, []),
        ({"signing_keys": [DESK]}, ["account-claim"]),
        ({"default_permissions": {"pub": {}, "sub": {}}}, ["account-claim"]),
        ({"default_permissions": {}}, []),
        ({"limits": {**MEANT.claims()["limits"], "leaf": -1}}, ["account-limit"]),
        ({"limits": {**MEANT.claims()["limits"], "disk_storage": -1}}, ["account-limit"]),
        ({"limits": {**MEANT.claims()["limits"], "conn": 5}}, []),
        ({"limits": {**MEANT.claims()["limits"], "wildcards": False}}, []),
    ],
)
def test_an_account_beyond_what_it_has_to_be(change: dict[str, Any], codes: list[str]) -> None:
    """Every import, export, limit and claim more is flagged, and every revocation less."""
    assert account_codes({**MEANT.claims(), **change}) == codes


def test_an_account_that_has_to_be_closed() -> None:
    """Open, or with imports left, it is flagged; closed it is not."""
    closed = replace(MEANT, imports=frozenset(), closed=True)
    assert account_codes(closed.claims(), closed) == []
    assert account_codes(MEANT.claims(), closed) == ["extra-import", "account-limit"]


# --- users -----------------------------------------------------------------------------------------------------------

LIMITS = workload_subscribe("desk")


@pytest.mark.parametrize(
    ("change", "nats", "codes"),
    [
        ({}, {}, []),
        ({"sub": OTHER}, {}, ["user-unknown"]),
        ({"sub": "U" + "R" * 55, "iat": 7}, {}, ["user-revoked"]),
        ({"sub": "U" + "R" * 55, "iat": 8}, {}, ["user-unknown"]),
        ({"iss": OWNER}, {}, ["user-signed-by-another"]),
        ({}, {"sub": {}}, ["user-unlimited"]),
        ({}, {"sub": {"deny": ["x"]}}, ["user-unlimited"]),
        ({}, {"sub": {"allow": [*LIMITS, "_INBOX_lake.>"]}}, ["user-subject"]),
        ({}, {"sub": {"allow": ["ctl.notice"]}}, []),
        ({}, {"resp": {"max": 1}}, ["user-responses"]),
        ({}, {"bearer_token": True}, ["user-bearer"]),
    ],
)
def test_a_user_beyond_what_was_given_out(change: dict[str, Any], nats: dict[str, Any], codes: list[str]) -> None:
    """Another key, another signature, more subjects than its inbox and the notices."""
    claims = {"sub": USER, "iss": DESK, "iat": 9, **change, "nats": {"sub": {"allow": list(LIMITS)}, "pub": {}, **nats}}
    flags = excess.user_flags(
        "agent desk", claims, account=DESK, expected=USER, subscribe=LIMITS, revoked={"U" + "R" * 55: 7}
    )
    assert [flag.code for flag in flags] == codes


def test_the_control_planes_user_needs_no_limit() -> None:
    """It may subscribe to everything in its account; it is still only one key."""
    claims = {"sub": USER, "iss": DESK, "iat": 9, "nats": {"sub": {}}}
    for expected, codes in ((USER, []), (None, ["user-unknown"])):
        flags = excess.user_flags("c", claims, account=DESK, expected=expected, subscribe=None, revoked={})
        assert [flag.code for flag in flags] == codes


# --- streams and consumers -------------------------------------------------------------------------------------------

GRANT = SubscriptionGrant("support", "contacts", "masked", (Pattern.parse("crm.contact.>"),))
TOPOLOGY = desired("local", ["crm"], [GRANT])
(CONSUMER,) = TOPOLOGY.consumers


def stream(name: str) -> StreamSpec:
    """As the mesh makes it."""
    return next(spec for spec in TOPOLOGY.streams if spec.name == name)


def stream_codes(name: str, change: dict[str, Any], state: dict[str, Any]) -> list[str]:
    """The codes of a stream that is as it has to be but for *change*."""
    return [f.code for f in excess.stream_flags(stream(name), {**stream(name).config(), **change}, state)]


@pytest.mark.parametrize("name", [spec.name for spec in TOPOLOGY.streams])
def test_a_stream_as_it_was_made_has_no_flag(name: str) -> None:
    """Whatever its size and age limits are."""
    assert stream_codes(name, {"max_bytes": 1, "max_age": 5, "num_replicas": 3}, {"first_seq": 1}) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (STREAM, {"allow_rollup_hdrs": True}),
        (STREAM, {"allow_msg_schedules": True}),
        (STREAM, {"allow_msg_ttl": True}),
        (STREAM, {"duplicate_window": 1}),
        (STREAM, {"discard": "old"}),
        (STREAM, {"retention": "workqueue"}),
        (STREAM, {"subjects": ["ev.>"]}),
        (STREAM, {"storage": "memory"}),
        (STREAM, {"mirror": {"name": "X"}}),
        (STREAM, {"sources": [{"name": "X"}]}),
        (STREAM, {"republish": {"src": ">", "dest": "x"}}),
        (STREAM, {"subject_transform": {"src": ">", "dest": "x"}}),
        (STREAM, {"no_ack": True}),
        ("AUDIT", {"deny_delete": False}),
        ("AUDIT", {"deny_purge": False}),
        ("KV_mesh_trust", {"subject_delete_marker_ttl": 10**9}),
    ],
)
def test_a_stream_without_one_of_its_guards(name: str, change: dict[str, Any]) -> None:
    """Each setting that lets stored events leave, be replaced, be wiped or be taken for others."""
    assert stream_codes(name, change, {}) == ["stream-setting"]


@pytest.mark.parametrize(
    ("name", "state", "codes"),
    [
        (STREAM, {"num_deleted": 1}, ["messages-deleted"]),
        ("DLQ", {"num_deleted": 1, "first_seq": 2}, []),
        ("REDRIVE", {"num_deleted": 1, "first_seq": 2}, []),
        (STREAM, {"first_seq": 900}, []),  # aged
        ("AUDIT", {"first_seq": 2}, ["messages-deleted"]),
        ("ADVISORY", {"first_seq": 2}, []),  # the oldest give way
        ("REPORTS", {"num_deleted": 9}, []),  # the newest of each instance
        ("KV_mesh_trust", {"num_deleted": 9, "first_seq": 9}, []),
    ],
)
def test_messages_that_are_gone(name: str, state: dict[str, Any], codes: list[str]) -> None:
    """Holes where nothing makes any, and a beginning that was cut off where nothing ages."""
    assert stream_codes(name, {}, state) == codes


def test_a_stream_that_nobody_compiled() -> None:
    """It is named with what it stores."""
    flags = list(excess.stream_flags(None, {"name": "COPY", "subjects": ["a", "b"]}, {}))
    assert flags == [Flag("stream COPY", "stream-unknown", "nobody compiled it; it stores a, b")]


def consumer_codes(
    change: dict[str, Any], spec: ConsumerSpec | None = CONSUMER, *, draining: bool = False, ours: bool = False
) -> list[str]:
    """The codes of a durable that is as it has to be but for *change*."""
    config = {**CONSUMER.config(), **change}
    flags = excess.consumer_flags(spec, STREAM, "support--contacts", config, draining=draining, ours=ours)
    return [flag.code for flag in flags]


OLD_VIEW = ["ev.local.clear.*.crm.contact.>", "ev.local.masked.*.crm.contact.>"]


@pytest.mark.parametrize(
    ("change", "draining", "codes"),
    [
        ({}, False, []),
        ({"filter_subject": "ev.local.masked.*.crm.contact.created.v1"}, False, []),
        ({"filter_subject": "ev.local.masked.*.crm.>"}, False, ["consumer-filter"]),
        ({"filter_subject": "ev.local.clear.*.crm.contact.>"}, False, ["consumer-filter"]),
        ({"filter_subject": None}, False, ["consumer-filter"]),
        ({"filter_subject": None, "filter_subjects": OLD_VIEW}, False, ["consumer-filter"]),
        ({"filter_subject": None, "filter_subjects": OLD_VIEW}, True, []),
        ({"filter_subject": "ev.local.clear.*.crm.>"}, True, ["consumer-filter"]),
        ({"filter_subject": ">"}, True, ["consumer-filter"]),
        ({"deliver_subject": "victim.cmd"}, False, ["consumer-pushes"]),
        ({"ack_policy": "none"}, False, ["consumer-setting"]),
    ],
)
def test_a_consumer_beyond_its_grants(change: dict[str, Any], draining: bool, codes: list[str]) -> None:
    """Filters wider than the grants, unless an old view of granted types still drains; pushing; no acks."""
    assert consumer_codes(change, draining=draining) == codes


def test_a_consumer_that_nobody_compiled() -> None:
    """It is flagged unless the control plane made it; that it pushes is flagged whoever made it."""
    assert consumer_codes({}, None) == ["consumer-unknown"]
    assert consumer_codes({}, None, ours=True) == []
    assert consumer_codes({"deliver_subject": "x"}, None, ours=True) == ["consumer-pushes"]


# --- listeners -------------------------------------------------------------------------------------------------------

LOCAL = {"server_name": "n", "host": "127.0.0.1", "port": 4222, "auth_required": True, "cluster": {}, "leaf": {}}
TLS = {"tls_required": True, "tls_verify": True}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"host": "::1"}, []),
        ({"host": "localhost"}, []),
        ({"host": "0.0.0.0"}, ["tls-off"]),  # noqa: S104 - the row
        ({"host": "nats.example"}, ["tls-off"]),
        ({"host": "10.0.0.1", "tls_required": True}, ["tls-one-sided"]),
        ({"host": "10.0.0.1", **TLS}, []),
        ({"cluster": {"addr": "127.0.0.1", "cluster_port": 6222}}, []),
        ({"cluster": {"addr": "0.0.0.0", "cluster_port": 6222}}, ["tls-off"]),  # noqa: S104 - the row
        ({"cluster": {"addr": "10.0.0.1", "cluster_port": 6222, "tls_required": True}}, []),
        ({"auth_required": False}, ["no-authentication"]),
        ({"leaf": {"host": "127.0.0.1", "port": 7422}, "mqtt": {"port": 1883}}, ["other-door", "other-door"]),
    ],
)
def test_what_a_server_lets_the_network_do(change: dict[str, Any], codes: list[str]) -> None:
    """TLS with client certificates beyond loopback, authentication everywhere, and no door but the one."""
    assert [flag.code for flag in excess.server_flags({**LOCAL, **change})] == codes


@pytest.mark.parametrize(
    ("address", "version", "codes"),
    [("127.0.0.1", "", []), ("10.0.0.7", "1.3", []), ("10.0.0.7", "", ["tls-off"]), ("10.0.0.7", "1.2", ["tls-off"])],
)
def test_a_connection_from_another_machine(address: str, version: str, codes: list[str]) -> None:
    """TLS 1.3 or a flag."""
    assert [flag.code for flag in excess.connection_flags("agent desk", address, version)] == codes


def test_every_flag_has_advice(root: Path) -> None:
    """Each code that is raised says what to do next, and there is no advice for a code that is not."""
    files = ("mesh/jetstream/excess.py", "mesh/control/trust_audit.py")
    raised = {
        code for name in files for code in re.findall(r'Flag\(\s*where,\s*"([a-z-]+)"', (root / name).read_text())
    }
    assert raised == set(ADVICE)
    assert all(ADVICE.values())
