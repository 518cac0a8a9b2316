"""The keys that an attacker may have got hold of, as they are made."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.certificates import make_csr
from mesh.control.datadir import DataDirectory
from mesh.control.proof import HEADER, KEY_FILE, NONCE_BYTES, prove
from mesh.control.trust import Authority
from mesh.enrolment import ENROL_SUBJECT, Answer, read_answer, seal_request
from mesh.identity import Signer
from mesh.keys import SpiffeId
from tests.attacks.insider import DEADLINE_S

if TYPE_CHECKING:
    from tests.attacks.insider import Insider
    from tests.attacks.world import World


async def enrol(world: World, agent: str) -> Signer:
    """A key of the insider's own, certified as *agent*'s: he has its credentials and its token, and asks."""
    seed = secrets.token_bytes(32)
    answer = await ask(world, agent, make_csr(seed))
    assert answer.chain is not None, answer.error
    return Signer.from_seed(seed, answer.chain)


async def ask(
    world: World,
    agent: str,
    csr: bytes,
    *,
    token: bytes | None = None,
    by: Insider | None = None,
    timeout_s: float = 10,
) -> Answer:
    """Ask for a certificate with any CSR and, unless given, the agent's token."""
    sealed = seal_request(csr, token_of(world, agent) if token is None else token, enrol_key(world))
    return await send(world, agent, sealed, by=by, timeout_s=timeout_s)


async def send(world: World, agent: str, request: bytes, *, by: Insider | None = None, timeout_s: float = 10) -> Answer:
    """Send any bytes where *agent* enrols, with its credentials or another's."""
    client = by or await world.insider(agent)
    return read_answer((await client.nc.request(f"{ENROL_SUBJECT}.{agent}", request, timeout=timeout_s)).data)


def token_of(world: World, agent: str) -> bytes:
    """The enrolment token of an agent, from its file."""
    return (world.data.agent(agent) / "enrol.token").read_bytes().strip()


def enrol_key(world: World) -> bytes:
    """What requests are sealed to: anybody may read it."""
    return bytes.fromhex((world.data.trust / "enrol.pub").read_text())


def authority(world: World) -> Authority:
    """The control plane's own keys."""
    return Authority(world.data.trust, world.data.admin, trust_domain="mesh.local", now_ms=1)


def proof(world: World, subject: str, body: bytes, tenant: str = "acme") -> dict[str, str]:
    """What an operator's request carries: the key is in the control plane's directory, and the broker has it not."""
    key = (world.data.admin / KEY_FILE).read_text().strip()
    nonce, at_ms = secrets.token_bytes(NONCE_BYTES), time.time_ns() // 1_000_000
    return {HEADER: prove(bytes.fromhex(key), tenant=tenant, subject=subject, body=body, at_ms=at_ms, nonce=nonce)}


def found(root: Path, *, at_ms: int) -> None:
    """Begin a data directory in which the mesh's CA is as old as that."""
    data = DataDirectory.open(root)
    data.lock_file.touch(0o600)
    Authority(data.trust, data.admin, trust_domain="mesh.local", now_ms=at_ms)


def public(seed: bytes) -> bytes:
    """The public key of a seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


async def issued(world: World, agent: str, *, at_ms: int, tenant: str = "acme") -> Signer:
    """A key of *agent* that the mesh's CA certified at another time, known to everybody."""
    seed = secrets.token_bytes(32)
    spiffe_id = SpiffeId.for_agent("mesh.local", tenant, agent)
    chain = authority(world).ca.issue(spiffe_id, public(seed), now_ms=at_ms)
    signer = Signer.from_seed(seed, chain)
    await trust(world, signer.kid, chain, tenant=tenant)
    return signer


async def trust(world: World, kid: str, certificate: bytes, *, tenant: str = "acme") -> None:
    """Put a certificate where everybody looks: the broker can."""
    admin = await world.admin(tenant)
    await admin.nc.request(f"$KV.mesh_trust.cert.{kid}", certificate, timeout=DEADLINE_S)
