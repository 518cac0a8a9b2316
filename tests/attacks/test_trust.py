"""Whom to believe: stolen keys, certificates of the attacker's own, statements brought back or held back.

The broker can lie about none of it, since all is signed; what is left to him is to bring the old and to withhold the
new.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.base64url import b64u
from mesh.ca import MeshCA
from mesh.certificates import split_chain
from mesh.control.truststore import TrustStore
from mesh.identity import Signer, TrustStatement
from mesh.keys import SpiffeId, key_id
from mesh.unhandled import REJECTED
from tests.attacks.insider import CRM, DEADLINE_S, contact, now_ms, sealed, until
from tests.attacks.keys import authority, enrol, issued, public, trust
from tests.attacks.world import Reader, World

pytestmark = pytest.mark.anyio

ADAPTER = SpiffeId.for_agent("mesh.local", "acme", "crm-adapter")


async def test_a_stolen_key(world: World) -> None:
    """Sign with a stolen key, after the theft was noticed.

    Holds: an event key of crm-adapter's, good for hours, and its NATS credentials. Tries: to go on after the key was
    revoked; to date events back to before that. Stopped: V8, by the stream's clock, which no signer sets. What the
    honest agent signs with its own key is handed over all the while, and so is what was stored before.
    """
    reader, thief = await world.reader(), await enrol(world, "crm-adapter")
    by = await world.insider("crm-adapter")
    assert await world.put(sealed(thief), by) == "delivered"
    waiting = sealed(thief, signed_ms=now_ms() - 5_000)
    answer = await world.asked("trust.revoke", kid=thief.kid, now=True)
    await reader.refuses(thief.kid)
    assert await world.put(sealed(thief), by) == "key-revoked"
    assert await world.put(waiting, by) == "key-revoked"
    assert await world.put(sealed(thief, signed_ms=answer["cut_ms"] - 1), by) == "key-revoked"
    await world.handed_over(await world.publish())


async def test_publishing_while_the_key_is_revoked(world: World) -> None:
    """Use the moments between the command and the last consumer that hears of it.

    Holds: a stolen event key, and a stream of events signed with it. Tries: to publish without a pause while it is
    revoked. Stopped: the cut lies a second ahead, so that every consumer knows before it comes; none accepts anything
    stored at or after it.
    """
    reader, thief = await world.reader(), await enrol(world, "crm-adapter")
    by = await world.insider("crm-adapter")
    assert await world.put(sealed(thief), by) == "delivered"
    sent: list[int] = []
    async with anyio.create_task_group() as group:

        async def publish() -> None:
            while True:
                wire = sealed(thief)
                answer = await by.ask(wire.subject, wire.body, wire.headers)
                assert answer is not None
                sent.append(int(msgspec.json.decode(answer.data)["seq"]))
                await anyio.sleep(0.005)

        group.start_soon(publish)
        answer = await world.asked("trust.revoke", kid=thief.kid)
        await until(lambda: now_ms() > answer["cut_ms"])
        before = len(sent)
        await until(lambda: len(sent) > before + 20)
        group.cancel_scope.cancel()
    letters = [(f"{reader.team}/{reader.subscription}", CRM, sequence) for sequence in sent]
    await until(
        lambda: all((CRM, s) in reader.events or key in world.letters for s, key in zip(sent, letters, strict=True))
    )
    accepted = [reader.events[CRM, s].stream_ms for s in sent if (CRM, s) in reader.events]
    refused = [world.letters[key] for key in letters if key in world.letters]
    assert accepted
    assert refused
    assert max(accepted) < answer["cut_ms"]
    assert {letter.reason for letter in refused} == {"key-revoked"}


async def test_bringing_an_old_statement_back(world: World) -> None:
    """Undo a revocation by bringing back the statement before it.

    Holds: the broker, every statement there ever was, and a stolen key that was revoked. Tries: the old statement, to
    the reader that knows the new one, and to one that starts anew and has only its files. Stopped: the epoch rises; a
    reader keeps the newest beside its credentials; the control plane issues the next one from its own copy.
    """
    reader, thief = await world.reader(), await enrol(world, "crm-adapter")
    admin = await world.admin()
    assert await world.put(sealed(thief)) == "delivered"
    old = (await admin.nc.request("$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.trust", timeout=DEADLINE_S)).data
    await world.asked("trust.revoke", kid=thief.kid, now=True)
    await reader.refuses(thief.kid)
    files = world.data.team("support") / "trust"
    await until(lambda: any(thief.kid.encode() in _payload(file.read_bytes()) for file in files.glob("*statement*")))
    async with withheld(world):
        await bring(world, old)
        assert await world.put(sealed(thief)) == "key-revoked"
        fresh = await world.another(reader)
        assert await world.put(sealed(thief), reader=fresh) == "key-revoked"
    await world.control().store.statement()
    assert (
        await admin.nc.request("$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.trust", timeout=DEADLINE_S)
    ).data != old


def _payload(sealed_statement: bytes) -> bytes:
    """What a statement says."""
    try:
        return msgspec.json.decode(sealed_statement, type=_Envelope).payload
    except msgspec.MsgspecError:
        return b""


class _Envelope(msgspec.Struct):
    payload: bytes


@asynccontextmanager
async def withheld(world: World, tenant: str = "acme") -> AsyncIterator[None]:
    """Keep the control plane from issuing statements, for the length of the block; afterwards it goes on."""
    issue = TrustStore._issue

    async def nothing(self: TrustStore, revoked: dict[str, int]) -> None:
        if self.tenant != tenant:
            await issue(self, revoked)

    TrustStore._issue = nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrustStore._issue = issue  # type: ignore[method-assign]


async def bring(world: World, statement: bytes, tenant: str = "acme") -> None:
    """Put a statement where everybody reads it, and tell them: the broker can."""
    admin = await world.admin(tenant)
    await admin.nc.request("$KV.mesh_trust.trust", statement, timeout=DEADLINE_S)
    await admin.nc.publish("ctl.notice", b'{"kind":"trust"}')
    await admin.nc.flush()


async def test_a_forged_statement(world: World) -> None:
    """Revoke honest keys, or take revocations back, by a statement of one's own.

    Holds: the broker. Tries: statements of a higher epoch that revoke crm-adapter's key: signed by another key, of
    another tenant, for another purpose, altered. Stopped: a statement is signed by the trust key, for this tenant, as a
    statement. One that the control plane makes is believed.
    """
    reader, signer = await world.reader(), await world.signer("crm-adapter")
    held = world.control().store
    assert await world.put(sealed(signer)) == "delivered"
    facts = {"epoch": held.epoch + 50, "issued_ms": now_ms(), "revoked": {signer.kid: 0}}
    right = authority(world).statement(tenant="globex", epoch=held.epoch + 50, now_ms=now_ms(), revoked={signer.kid: 0})
    own = TrustStatement(tenant="acme", **facts).seal(secrets.token_bytes(32))  # type: ignore[arg-type]
    altered = right.replace(b"payload", b"paylord", 1)
    for attempt in (own, right, altered, b"", b"{}", b"[" * 10_000):
        await bring(world, attempt)
        assert await world.put(sealed(signer)) == "delivered"
    await world.asked("trust.revoke", kid=(other := await enrol(world, "crm-adapter")).kid, now=True)
    await reader.refuses(other.kid)


async def test_holding_statements_back(world: World) -> None:
    """Keep consumers from hearing of a revocation, for as long as one likes.

    Holds: the broker, and a stolen key. Tries: to freeze the trust store: nothing newer comes. Stopped: a statement
    says when it was issued; once it is older than 60 s a strict tenant pauses, and a lenient one marks what it hands
    over and pauses after its grace. With a young one both hand over.
    """
    acme, globex = await world.reader(), await world.reader("sales", "leads", tenant="globex")
    honest, rival = await world.signer("crm-adapter"), await world.signer("rival")
    leads = {"tenant": "globex", "source": "/sales"}
    assert await world.put(sealed(rival, contact(**leads)), await world.admin("globex"), globex) == "delivered"
    async with withheld(world), withheld(world, "globex"):
        for tenant in ("acme", "globex"):
            epoch = world.control(tenant).store.epoch + 1
            old = authority(world).statement(tenant=tenant, epoch=epoch, now_ms=now_ms() - 120_000, revoked={})
            await bring(world, old, tenant)
        await until(lambda: marked(world, honest, acme))
        paused = REJECTED.value(code="stale-trust")
        by = await world.admin("globex")

        async def pauses() -> bool:
            event = sealed(rival, contact(**leads))
            assert await by.reaches(event.subject, event.body, event.headers)
            return REJECTED.value(code="stale-trust") > paused

        await until(pauses)
        before = len(globex.events)
        assert await pauses()
        assert len(globex.events) == before
    for tenant in ("acme", "globex"):
        for _ in range(2):  # the first has the epoch of the one that was brought
            await world.control(tenant).store.statement()
    await until(lambda: not_marked(world, honest))


async def marked(world: World, signer: Signer, reader: Reader) -> bool:
    """Whether an honest event is handed over as one of which nobody knows whether its key still counts."""
    wire = sealed(signer)
    assert await world.put(wire, reader=reader) == "delivered"
    return (await world.handed_over(wire.id)).stale_trust


async def not_marked(world: World, signer: Signer) -> bool:
    """The opposite."""
    return not await marked(world, signer, await world.reader())


async def test_certificates_of_ones_own(world: World) -> None:
    """Bring a certificate along that makes one's key crm-adapter's.

    Holds: the broker, so that the trust store says what he likes. Tries: a leaf of a CA of his own, with the same name
    as ours; one of a leaf that plays CA; a self-signed one; ours under another key id. Stopped: chains lead to the
    roots that each reader has in a file; nothing in the store is believed for being there.
    """
    honest = await world.signer("crm-adapter")
    assert await world.put(sealed(honest)) == "delivered"
    rogue = MeshCA.create("mesh.local", now_ms=now_ms())
    ours = split_chain(honest.certificate)
    seed = secrets.token_bytes(32)
    theirs = rogue.issue(ADAPTER, public(seed), now_ms=now_ms())
    leaf, *above = split_chain(theirs)
    for chain in (
        theirs,
        leaf,
        leaf + b"".join(ours[1:]),
        leaf + ours[0] + b"".join(ours[1:]),
        theirs + b"".join(ours[1:]),
    ):
        attacker = Signer.from_seed(seed, theirs)
        await trust(world, attacker.kid, chain)
        assert await world.put(sealed(attacker)) == "unknown-key"
    assert above
    mine = Signer.from_seed(seed, theirs)
    await trust(world, mine.kid, honest.certificate)
    assert await world.put(sealed(mine)) == "unknown-key"


async def test_certificates_for_something_else(world: World) -> None:
    """Sign events with a certificate of the mesh that is for TLS.

    Holds: crm-adapter's TLS certificate and key, which the mesh CA signed; and the broker. Tries: it as an event
    certificate. Stopped: an event leaf has the private usage alone and an Ed25519 key; no profile passes for another.
    """
    honest = await world.signer("crm-adapter")
    assert await world.put(sealed(honest)) == "delivered"
    chain_pem, _key = authority(world).ca.issue_tls_client(ADAPTER, now_ms=now_ms())
    items = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(chain_pem)]
    seed = secrets.token_bytes(32)
    event = Signer.from_seed(
        seed, MeshCA.create("mesh.local", now_ms=now_ms()).issue(ADAPTER, public(seed), now_ms=now_ms())
    )
    await trust(world, event.kid, b"".join(items))
    assert await world.put(sealed(event)) == "unknown-key"


async def test_a_key_of_small_order_in_the_store(world: World) -> None:
    """Have a key believed under which one signature fits every event.

    Holds: the broker, and a CA that once certified a weak key by mistake: its signature is real. Tries: the certificate
    in the trust store, and a signature that is right for any message under that key. Stopped: keys are looked at again
    wherever they are read.
    """
    honest = await world.signer("crm-adapter")
    assert await world.put(sealed(honest)) == "delivered"
    for key in (b"\x01" + bytes(31), bytes(32)):
        with pytest.raises(Exception, match=r"(?i)weak|small"):
            authority(world).ca.issue(ADAPTER, key, now_ms=now_ms())
        wire = sealed(honest)
        parts = wire.headers["Mesh-Signature"].split(".")
        universal = b64u(b"\x01" + bytes(63))
        forged = ".".join([parts[0], key_id(key), *parts[2:7], universal])
        chain = honest.certificate.replace(_public_of(honest), key)
        await trust(world, key_id(key), chain)
        assert await world.put(wire.with_(headers={"Mesh-Signature": forged})) == "unknown-key"


def _public_of(signer: Signer) -> bytes:
    leaf = x509.load_der_x509_certificate(split_chain(signer.certificate)[0])
    return leaf.public_key().public_bytes_raw()  # type: ignore[union-attr]


async def test_a_stolen_mesh_ca(world: World) -> None:
    """Certify keys oneself, with the online CA's key.

    Holds: the mesh CA's key, for a while. Tries: a key in crm-adapter's name, after the theft was noticed and the CA
    replaced. Stopped: a statement revokes the CA's key id, and with it all that it certified; agents enrol anew at
    once, and what they publish goes on.
    """
    reader = await world.reader()
    thief = await issued(world, "crm-adapter", at_ms=now_ms())
    assert await world.put(sealed(thief)) == "delivered"
    stolen = authority(world).ca
    await world.asked("trust.rotate", ca=True, everybody=True)
    await world.asked("trust.revoke", kid=stolen.kid, now=True)
    await reader.refuses(stolen.kid)
    assert await world.put(sealed(thief)) == "key-revoked"
    seed = secrets.token_bytes(32)
    later = Signer.from_seed(seed, stolen.issue(ADAPTER, public(seed), now_ms=now_ms()))
    await trust(world, later.kid, later.certificate)
    assert await world.put(sealed(later)) == "key-revoked"
    await world.handed_over(await world.publish())
    assert authority(world).ca.kid != stolen.kid
