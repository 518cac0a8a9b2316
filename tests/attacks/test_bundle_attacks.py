"""Whoever can write the policy store still cannot make an agent run other policies than the control plane signed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core import Agent
from agent.settings import load as load_settings
from mesh.base64url import b64u
from mesh.errors import Denied
from mesh.keys import key_id
from mesh.policy.bundle import MAX_BUNDLE_BYTES, PAYLOAD_TYPE, Bundle, Past
from mesh.policy.envelope import open_bundle, seal_bundle
from mesh.statements import pae
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, POLICY_SEED, Streams, event, until, write_directory

pytestmark = pytest.mark.anyio

ANOTHER_SEED = bytes(range(1, 33))
DENYING = POLICIES.rstrip() + "\n    - {id: none, who: {teams: [crm]}, publish: ['crm.contact.>'], when: \"true\"}\n"


@dataclass
class World:
    """A mesh at revision 3, whose first revision allowed more, and an agent that runs it."""

    streams: Streams
    agent: Agent
    base: Path
    first: bytes
    second: bytes
    current: bytes

    @property
    def bundle(self) -> Bundle:
        """The one in force."""
        return open_bundle(self.current, POLICY_KEY)


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One mesh for all attacks."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with Streams.running(tmp_path_factory.mktemp("nats")) as streams:
        envelopes = [await streams.envelope()]
        for _ in range(2):
            await streams.hand_out(policies=DENYING)
            envelopes.append(await streams.envelope())
        async with agent_at(base, streams) as agent:
            yield World(streams, agent, base, *envelopes)


def agent_at(base: Path, streams: Streams, *, spool: str = "spool.db") -> Agent:
    """An agent of this directory."""
    environ = {"MESH_AGENT_NATS_URL": streams.server.url, "MESH_AGENT_SPOOL_FILE": spool}
    return Agent(load_settings((base / "agent.toml").read_text(), environ).settings, base)


def flipped(envelope: bytes, place: int) -> bytes:
    """One bit changed."""
    return envelope[:place] + bytes([envelope[place] ^ 1]) + envelope[place + 1 :]


def sealed(world: World, **changes: Any) -> bytes:
    """The bundle in force with *changes*, signed by the policy key: what only a leaked or a mistaken key makes."""
    return seal_bundle(msgspec.structs.replace(world.bundle, **changes), POLICY_SEED)


def signed_raw(payload: bytes, seed: bytes = POLICY_SEED) -> bytes:
    """Any payload, signed by the policy key as a bundle is, whoever's key *seed* is."""
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(pae(PAYLOAD_TYPE, payload))
    return b"mesh-policy-1.%b.%b\n%b" % (key_id(POLICY_KEY).encode(), b64u(signature).encode(), payload)


def next_after(world: World, *lineage: Past) -> dict[str, Any]:
    """The changes that make the bundle in force the one after *lineage*."""
    return {"revision": lineage[-1].revision + 1, "previous": lineage[-1].digest, "lineage": lineage}


def payload(envelope: bytes) -> bytes:
    """What was signed."""
    return envelope.partition(b"\n")[2]


FORGED = "0" * 64

ATTACKS: dict[str, tuple[Callable[[World], bytes], str]] = {
    # replays: each was in force once, and allowed more
    "the first revision again": (lambda w: w.first, "bundle-rollback"),
    "the revision before again": (lambda w: w.second, "bundle-rollback"),
    # bits
    "a bit of the key id": (lambda w: flipped(w.current, 20), "bundle-signature"),
    "a bit of the signature": (lambda w: flipped(w.current, 60), "bundle-signature"),
    "a bit of the policies": (lambda w: flipped(w.current, len(w.current) // 2), "bundle-signature"),
    "the last bit": (lambda w: flipped(w.current, len(w.current) - 1), "bundle-signature"),
    "a byte more": (lambda w: w.current + b" ", "bundle-signature"),
    "half of it": (lambda w: w.current[: len(w.current) // 2], "bundle-signature"),
    "an older signature around newer policies": (
        lambda w: w.first.partition(b"\n")[0] + b"\n" + payload(w.current), "bundle-signature",
    ),
    # another signer
    "another signer": (
        lambda w: seal_bundle(
            msgspec.structs.replace(w.bundle, **next_after(w, *w.bundle.lineage, Past(3, w.bundle.digest, 3))),
            ANOTHER_SEED,
        ),
        "bundle-signature",
    ),
    "another signer who names our key": (lambda w: signed_raw(payload(w.current), ANOTHER_SEED), "bundle-signature"),
    "nobody": (lambda w: payload(w.current), "bundle-signature"),
    # the chain, with the right key
    "a skipped number": (lambda w: sealed(w, revision=5), "bundle-chain"),
    "a skipped number in the lineage": (
        lambda w: sealed(w, **next_after(w, *w.bundle.lineage, Past(4, FORGED, 4))), "bundle-chain",
    ),
    "another predecessor": (
        lambda w: sealed(w, **next_after(w, *w.bundle.lineage, Past(3, FORGED, 3))), "bundle-chain",
    ),
    "another bundle of the same number": (lambda w: sealed(w, author="somebody"), "bundle-rollback"),
    "a rollback that is none": (lambda w: sealed(w, rollback_of=1), "bundle-rollback"),
    "a lower number with a rollback's mark": (
        lambda w: sealed(w, **next_after(w, w.bundle.lineage[0]), rollback_of=1), "bundle-rollback",
    ),
    "no lineage at all": (lambda w: sealed(w, revision=4, lineage=(), previous=""), "bundle-chain"),
    "another tenant's": (
        lambda w: signed_raw(payload(w.current).replace(b'"acme"', b'"ecma"')), "bundle-chain",
    ),
    # forms
    "nothing": (lambda _: b"", "bundle-signature"),
    "an envelope of tomorrow": (lambda w: w.current.replace(b"mesh-policy-1", b"mesh-policy-2", 1), "bundle-format"),
    "a bundle of tomorrow": (lambda _: signed_raw(b'{"format":"mesh.policy/2"}'), "bundle-format"),
    "no bundle": (lambda _: signed_raw(b"[]"), "bad-bundle"),
    "half of JSON": (lambda w: signed_raw(payload(w.current)[:-1]), "bad-bundle"),
    "a pit of brackets": (lambda _: signed_raw(b"[" * 500_000), "bad-bundle"),
    "far too much": (lambda w: w.current + b" " * MAX_BUNDLE_BYTES, "bad-bundle"),
    "an unknown word in a policy": (
        lambda w: signed_raw(payload(w.current).replace(b'"otherwise"', b'"otherways"')), "bad-bundle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_is_refused_loudly_and_the_good_bundle_stays(world: World, name: str) -> None:
    """The agent goes on denying what its policies deny, says what it refused, and keeps the good one on disk."""
    attack, code = ATTACKS[name]
    await world.streams.put(attack(world))
    await until(lambda: refused(world.agent) is not None)
    assert refused(world.agent) == code
    assert world.agent.state()["bundle_revision"] == 3
    with pytest.raises(Denied) as denied:
        await world.agent.publish(event())
    assert denied.value.details["rule"] == "none"
    assert world.agent.not_ready() == []
    await world.streams.put(world.current)
    await until(lambda: refused(world.agent) is None)
    await until(lambda: (world.base / "bundle.last").read_bytes() == world.current)


def refused(agent: Agent) -> str | None:
    """The code of the last refusal; None once a good bundle came after it."""
    found = agent.state()["bundle_refused"]
    return found and str(found["code"])


@pytest.mark.parametrize("name", ["a bit of the policies", "another signer", "a skipped number", "nothing"])
async def test_with_nothing_else_everything_is_denied(world: World, name: str, tmp_path: Path) -> None:
    """An agent that has never had a good bundle allows nothing because of a bad one."""
    attack, code = ATTACKS[name]
    await world.streams.put(attack(world))
    agent = agent_at(write_directory(tmp_path), world.streams)
    try:
        await agent.start()
        await until(lambda: refused(agent) == code)
        assert agent.not_ready() == ["no-valid-bundle"]
    finally:
        await agent.close()
        await world.streams.put(world.current)
        await until(lambda: refused(world.agent) is None)


async def test_an_older_bundle_is_refused_after_a_restart_too(world: World) -> None:
    """The store is set back while the agent is away: the file beside it remembers."""
    await until((world.base / "bundle.last").exists)
    await world.streams.put(world.first)
    async with agent_at(world.base, world.streams, spool="") as again:  # a spool has one agent
        await until(lambda: refused(again) == "bundle-rollback")
        with pytest.raises(Denied):
            await again.publish(event())
    await world.streams.put(world.current)
    await until(lambda: refused(world.agent) is None)


async def test_a_rollback_is_a_new_revision(tmp_path: Path) -> None:
    """Older policies come back under the next number, and everything that follows them follows."""
    async with (
        Streams.running(tmp_path / "nats") as streams,
        agent_at(write_directory(tmp_path / "agent"), streams) as agent,
    ):
        await streams.hand_out(policies=DENYING)
        await until(lambda: agent.state()["bundle_revision"] == 2)
        with pytest.raises(Denied):
            await agent.publish(event())
        await streams.hand_out(policies=POLICIES)
        await until(lambda: agent.state()["bundle_revision"] == 3)
        assert (await agent.publish(event())).copies
