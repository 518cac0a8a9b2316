"""The bundle: equal policies give equal bytes, and what is not a bundle is refused before anything runs on it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadBundle
from mesh.policy.bundle import FORMAT, MAX_BUNDLE_BYTES, Bundle, Past, compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy.model import Access, AccessSpec, Deny, Metadata, Who
from tests.unit.policy_world import BASE, access, bundle, document

SUBSCRIPTION = document("Subscription", "s", {"types": ["crm.>"], "retry": {"backoff": ["1s"]}}, team="analytics")


def changed(**fields: Any) -> bytes:
    """The bytes of the base's bundle with top-level *fields* replaced."""
    return json.dumps(json.loads(bundle().encode()) | fields).encode()


def test_a_bundle_survives_its_bytes() -> None:
    """Decoding gives the same bundle, digest included."""
    made = bundle(SUBSCRIPTION)
    again = Bundle.decode(made.encode())
    assert again == made
    assert again.digest == made.digest
    assert (made.tenant, made.revision, made.site, made.trust_domain) == ("acme", 1, "local", "mesh.test")


def test_equal_policies_give_equal_bytes() -> None:
    """Neither the order of files and documents nor of keys, nor comments, change the digest; a right does."""
    turned = {name[::-1] + ".yaml": "# a comment\n" + text for name, text in reversed(BASE.items())}
    turned["views.yaml.yaml"] = "---\n".join(reversed(turned.pop("lmay.sweiv.yaml").split("---\n")))
    assert bundle(base=turned).digest == bundle().digest
    assert (
        bundle(access(deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.x"]}])).digest
        != bundle().digest
    )


def test_the_bytes_are_canonical_json() -> None:
    """Keys are sorted, there is no white space, defaults are left out."""
    data = bundle(SUBSCRIPTION).encode()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert b"max_in_flight" not in data
    assert json.loads(data)["format"] == FORMAT


def test_each_tenant_has_a_bundle_of_its_own() -> None:
    """No document of one tenant is in another's bundle; the digest before is carried by tenant."""
    other = BASE["tenant.yaml"].replace("acme", "fund")
    made = compile_bundles(
        load(BASE | {"fund.yaml": other}),
        revision=2,
        site="local",
        trust_domain="mesh.test",
        created_ms=1,
        lineage={"acme": (Past(1, "0" * 64, 1),)},
    )
    assert {t: {d.tenant for d in b.policies} for t, b in made.items()} == {"acme": {"acme"}, "fund": {"fund"}}
    assert (made["acme"].previous, made["fund"].previous) == ("0" * 64, "")
    assert made["acme"].revision == 2


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b" " * (MAX_BUNDLE_BYTES + 1),
        changed(format="mesh.policy/2"), changed(format=""), changed(revision=0), changed(revision="1"),
        changed(site="a.b"), changed(tenant="ACME"), changed(tenant="fund"), changed(policies=[]),
        changed(created_ms=-1), changed(policies=[{"kind": "Nope"}]),
        bundle().encode().replace(b'"otherwise":"redact"', b'"otherwise":"shown"'),
        bundle().encode().replace(b'"otherwise":"redact"', b'"otherwhise":"redact"'),
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    """Damaged, foreign, oversized or of another format: one error, and nothing half adopted."""
    with pytest.raises(BadBundle):
        Bundle.decode(data)


def test_a_header_may_say_more_than_we_know() -> None:
    """A newer control plane adds to the header: its bundles are read, and named by all their bytes."""
    made = Bundle.decode(changed(rings=["canary"], lineage=[]))
    assert made.policies == bundle().policies
    assert made.digest == sha256(changed(rings=["canary"], lineage=[])).hexdigest()
    assert made.digest != bundle().digest


def test_policies_may_not_say_more_than_we_know() -> None:
    """A word that nobody understands might be a restriction."""
    data = json.loads(bundle().encode())
    data["policies"][0]["spec"]["quorum"] = 2
    with pytest.raises(BadBundle):
        Bundle.decode(json.dumps(data).encode())


def test_tests_stay_outside() -> None:
    """A PolicyTest is for the control plane: no agent gets it, and it changes no digest."""
    case = {"as": {"team": "analytics"}, "subscribe": "crm.a.b.v1", "expect": {"decision": "deny"}, "event": "e.json"}
    test = yaml.safe_dump(
        {
            "apiVersion": "mesh/v1",
            "kind": "PolicyTest",
            "metadata": {"name": "t", "tenant": "acme", "owner": "security"},
            "spec": {"cases": [case]},
        }
    )
    assert bundle(test).digest == bundle().digest


def test_an_unknown_format_says_so() -> None:
    """An agent that is behind learns that it is behind, not that the bundle is broken."""
    with pytest.raises(BadBundle, match="format this version does not know") as caught:
        Bundle.decode(changed(format="mesh.policy/2", policies="of a shape to come"))
    assert (caught.value.expected, caught.value.got) == (FORMAT, "mesh.policy/2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"crm.>"', b'"crm..>"'),
        (b'"view":"masked"', b'"view":"nobody"'),
        (b'"data.name"', b'"data..name"'),
        (b'"otherwise":"redact"', b'"like":"nobody"'),
        (b'"otherwise":"redact"', b'"rows":"=="'),
    ],
)
def test_policies_that_do_not_parse_make_no_plans(old: bytes, new: bytes) -> None:
    """A bundle whose bytes were tampered with but still decode does not run."""
    data = bundle().encode()
    assert old in data
    with pytest.raises(BadBundle):
        Plans(Bundle.decode(data.replace(old, new)))


BYTES = bundle().encode()
DIGEST = bundle().digest


@given(st.integers(0, len(BYTES) - 1), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_means_other_policies(place: int, value: int) -> None:
    """Whatever one byte becomes, the answer is a bundle that says what it says, or `BadBundle`."""
    data = bytearray(BYTES)
    data[place] = value
    try:
        found = Bundle.decode(bytes(data))
        Plans(found).grants()
    except BadBundle:
        assert bytes(data) != BYTES
    else:
        assert (found.digest == DIGEST) == (bytes(data) == BYTES)


def test_a_bundle_that_nats_could_not_carry_is_refused_when_made() -> None:
    """A bundle over the limit is refused by the control plane, not by the agents."""
    made = bundle()
    reason = "x" * 1000
    rules = tuple(Deny(id=f"d{n}", who=Who(teams=("crm",)), publish=("crm.>",), reason=reason) for n in range(900))
    large = Access(metadata=Metadata(name="large", tenant="acme"), spec=AccessSpec(deny=rules))
    with pytest.raises(BadBundle, match=f"limit {MAX_BUNDLE_BYTES}"):
        msgspec.structs.replace(made, policies=(*made.policies, large)).encode()


def test_documents_read_the_same_from_yaml_and_from_the_bundle() -> None:
    """Nothing is lost between the file and the agent."""
    policies = load(BASE | {"s.yaml": SUBSCRIPTION})
    again = Bundle.decode(bundle(SUBSCRIPTION).encode()).policies
    assert {(d.kind, d.metadata.name): d for d in again} == {
        (d.value.kind, d.value.metadata.name): d.value for d in policies.documents
    }
    assert msgspec.json.decode(msgspec.json.encode(again[0]), type=type(again[0])) == again[0]
