"""The envelope: only the policy key's bundles open, and only the next ones follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from mesh.errors import BadBundle, BundleChain, BundleFormat, BundleRollback, BundleSignature
from mesh.policy.bundle import FORMAT, Bundle, Past
from mesh.policy.envelope import MAX_ENVELOPE_BYTES, follows, open_bundle, seal_bundle
from tests.unit.policy_world import bundle

SEED, OTHER = bytes(range(32)), bytes(range(1, 33))
KEY = crypto_sign_seed_keypair(SEED)[0]


@dataclass
class Chain:
    """Revisions that follow each other, as the control plane makes them."""

    bundles: list[Bundle]

    @classmethod
    def of(cls, count: int, *, keep: int = 1000, **fields: Any) -> Chain:
        """*count* revisions; each names at most *keep* before it."""
        made = [msgspec.structs.replace(bundle(), format=FORMAT, **fields)]
        for revision in range(2, count + 1):
            last = made[-1]
            past = (*last.lineage, Past(last.revision, last.digest, revision * 1000))[-keep:]
            made.append(msgspec.structs.replace(last, revision=revision, previous=last.digest, lineage=past))
        return cls(made)

    def __getitem__(self, revision: int) -> Bundle:
        """By number, from 1."""
        return self.bundles[revision - 1]


CHAIN = Chain.of(5)
SEALED = seal_bundle(CHAIN[5], SEED)


def test_a_sealed_bundle_opens_as_it_was() -> None:
    """Bundle and digest survive the envelope, lineage included."""
    opened = open_bundle(SEALED, KEY)
    assert opened == CHAIN[5]
    assert opened.digest == CHAIN[5].digest
    assert [past.revision for past in opened.lineage] == [1, 2, 3, 4]


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_flipped_bit_is_refused(place: int, change: int) -> None:
    """No byte of an envelope can be another one, in the head or in the bundle."""
    data = bytearray(SEALED)
    data[place] ^= change
    with pytest.raises((BundleSignature, BundleFormat)):
        open_bundle(bytes(data), KEY)


@given(st.integers(0, len(SEALED) - 1))
def test_a_cut_envelope_is_refused(length: int) -> None:
    """Nothing of a bundle is believed before all of it is there."""
    with pytest.raises(BundleSignature):
        open_bundle(SEALED[:length], KEY)


def test_another_signer_is_refused() -> None:
    """A bundle that somebody else signed, whatever key it names."""
    foreign = seal_bundle(CHAIN[5], OTHER)
    with pytest.raises(BundleSignature, match="not signed by the policy key"):
        open_bundle(foreign, KEY)
    ours, theirs = SEALED.split(b".", 2), foreign.split(b".", 2)
    with pytest.raises(BundleSignature, match="not what was signed"):
        open_bundle(b".".join([ours[0], ours[1], theirs[2]]), KEY)


@pytest.mark.parametrize(
    "data", [b"", b"\n", CHAIN[5].encode(), b"mesh-policy-1.", b"x" * 300, b"mesh-trust-1.a.b\n{}"]
)
def test_what_has_no_envelope_is_not_signed(data: bytes) -> None:
    """An unsigned bundle is refused, however good it looks."""
    with pytest.raises(BundleSignature):
        open_bundle(data, KEY)


def test_an_unknown_version_says_so() -> None:
    """An envelope to come, and a bundle format to come, are told from damage."""
    with pytest.raises(BundleFormat) as refused:
        open_bundle(SEALED.replace(b"mesh-policy-1", b"mesh-policy-2"), KEY)
    assert (refused.value.expected, refused.value.got) == ("mesh-policy-1", "mesh-policy-2")
    with pytest.raises(BundleFormat):
        open_bundle(seal_bundle(msgspec.structs.replace(bundle(), format="mesh.policy/2"), SEED), KEY)


def test_an_oversized_envelope_is_refused_unread() -> None:
    """What NATS could carry and we never make is not even hashed."""
    with pytest.raises(BadBundle, match="limit"):
        open_bundle(SEALED + b" " * MAX_ENVELOPE_BYTES, KEY)


def test_a_key_of_another_length_is_no_key() -> None:
    """A wrong policy key is a fault of ours, never an accepted bundle."""
    with pytest.raises((BundleSignature, ValueError, CryptoError)):
        open_bundle(SEALED, KEY[:-1])


@pytest.mark.parametrize("newer", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("current", [1, 2, 3, 4, 5])
def test_only_newer_revisions_follow(newer: int, current: int) -> None:
    """The next one, one after a gap in what we saw, and the same one again; an older one is a replay."""
    if newer >= current:
        follows(CHAIN[newer], CHAIN[current])
    else:
        with pytest.raises(BundleRollback):
            follows(CHAIN[newer], CHAIN[current])


def test_another_bundle_of_the_same_revision_is_refused() -> None:
    """Two bundles never share a number."""
    fork = msgspec.structs.replace(CHAIN[5], created_ms=CHAIN[5].created_ms + 1)
    with pytest.raises(BundleRollback):
        follows(fork, CHAIN[5])


def test_a_bundle_of_another_chain_is_refused() -> None:
    """One that says another bundle than ours was in force as our revision, and one of another tenant."""
    other = Chain.of(5, created_ms=77)
    with pytest.raises(BundleChain, match="does not follow"):
        follows(other[5], CHAIN[3])
    with pytest.raises(BundleChain, match="another tenant"):
        follows(msgspec.structs.replace(CHAIN[5], tenant="fund"), CHAIN[3])


def test_who_was_away_for_longer_than_the_lineage_follows_by_number() -> None:
    """Where the newer bundle no longer names ours, its signature and number are what there is."""
    short = Chain.of(9, keep=2)
    follows(short[9], CHAIN[3])
    with pytest.raises(BundleChain):
        follows(short[9], msgspec.structs.replace(CHAIN[3], revision=7))


def _skips(made: Bundle) -> Bundle:
    return msgspec.structs.replace(made, revision=made.revision + 1)


@pytest.mark.parametrize(
    "broken",
    [
        _skips(CHAIN[4]),
        msgspec.structs.replace(CHAIN[5], lineage=CHAIN[5].lineage[:2] + CHAIN[5].lineage[3:]),
        msgspec.structs.replace(CHAIN[5], lineage=()),
        msgspec.structs.replace(CHAIN[5], previous=""),
        msgspec.structs.replace(CHAIN[5], previous="0" * 64),
        msgspec.structs.replace(CHAIN[1], previous="0" * 64),
        msgspec.structs.replace(CHAIN[1], lineage=CHAIN[2].lineage),
    ],
    ids=["skipped", "gap", "no lineage", "no previous", "other previous", "first with previous", "first with lineage"],
)
def test_a_skipped_number_or_a_gap_is_refused(broken: Bundle) -> None:
    """A signed bundle whose own list of predecessors does not add up is not opened."""
    with pytest.raises(BundleChain):
        open_bundle(seal_bundle(broken, SEED), KEY)
