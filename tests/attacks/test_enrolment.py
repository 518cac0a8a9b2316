"""Getting a certificate that is not one's own: `ctl.enrol.<agent>`, from workloads and from the broker between.

NATS says who asks, the token says it again, the CSR proves the key. The broker is trusted with none of it: requests
are sealed, and it is free to keep, repeat, drop and replace what passes.
"""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from nacl.public import PrivateKey, SealedBox
from nats.errors import TimeoutError as NatsTimeout

from agent.enrolment import Enroller
from agent.settings import load
from mesh.ca import MeshCA
from mesh.certificates import make_csr
from mesh.control.enrol import BURST
from mesh.enrolment import Answer, encode_answer, seal_request
from mesh.errors import MeshError
from mesh.identity import Signer
from mesh.jetstream.connection import Connection
from tests.attacks.connecting import lets_in
from tests.attacks.insider import Wire, contact, now_ms, sealed, until
from tests.attacks.keys import ask, authority, enrol, enrol_key, public, send, token_of
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

FLOOD = 4000  # requests: they pass in half a second
SMALL_ORDER = (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f")


def new_csr() -> bytes:
    """A request for a new key."""
    return make_csr(secrets.token_bytes(32))


def der(csr: x509.CertificateSigningRequest) -> bytes:
    """As it is sent."""
    return csr.public_bytes(Encoding.DER)


def code_of(answer: object) -> str:
    """The code of an answer's error."""
    error = getattr(answer, "error", None)
    assert error is not None
    return str(error["code"])


async def test_another_agents_token(world: World) -> None:
    """Enrol as another agent, with its token.

    Holds: lake's NATS credentials, and crm-adapter's enrolment token, read from a backup. Tries: to enrol with it under
    its own subject. Stopped: the token has to be that of the agent that NATS says is asking.
    """
    assert (await ask(world, "lake", new_csr())).chain is not None
    assert code_of(await ask(world, "lake", new_csr(), token=token_of(world, "crm-adapter"))) == "not-attested"
    assert code_of(await ask(world, "lake", new_csr(), token=token_of(world, "rival"))) == "not-attested"
    assert code_of(await ask(world, "lake", new_csr(), token=b"x" * 43)) == "not-attested"


async def test_another_agents_subject(world: World) -> None:
    """Enrol as another agent, with its token and on its subject.

    Holds: lake's and team crm's NATS credentials, and crm-adapter's token. Tries: `ctl.enrol.crm-adapter`,
    `ctl.enrol.*` and the same in another tenant. Stopped: an agent's account imports its own subject, a team's none.
    """
    request = seal_request(new_csr(), token_of(world, "crm-adapter"), enrol_key(world))
    assert (await ask(world, "crm-adapter", new_csr())).chain is not None
    admin = await world.insider("acme")
    asked = await admin.nc.subscribe("ctl.enrol.>")
    await admin.nc.flush()
    for name in ("lake", "desk", "team-crm", "rival"):
        thief = await world.insider(name)
        for subject in ("ctl.enrol.crm-adapter", "ctl.enrol.*", "ctl.enrol.>", "ctl.enrol", "ctl.enrol.crm-adapter.x"):
            assert await thief.ask(subject, request, timeout_s=0.2) is None
    await admin.nc.flush()
    assert asked.pending_msgs == 0
    await asked.unsubscribe()


async def test_a_replayed_request(world: World) -> None:
    """Have the control plane answer the same request again, for the chain, or to use up its patience.

    Holds: the broker, which keeps what passes. Tries: to send an agent's sealed request once more, in its name.
    Stopped: a key is enrolled once; and the chain in the answer is for a key that the broker does not have.
    """
    request = seal_request(new_csr(), token_of(world, "desk"), enrol_key(world))
    assert (await send(world, "desk", request)).chain is not None
    broker = await world.insider("acme")
    assert code_of(await send(world, "desk", request, by=broker)) == "bad-enrolment"


async def test_a_request_that_the_broker_changes(world: World) -> None:
    """Put another key into a request that passes, or read its token.

    Holds: the broker; it sees the sealed request and what it is sealed to. Tries: to open it, to change a bit, to seal
    a CSR of its own without the token, and with a token that it makes up. Stopped: only the control plane opens what is
    sealed; a request is sealed whole, token and key together.
    """
    token = token_of(world, "desk")
    request = seal_request(new_csr(), token, enrol_key(world))
    broker = await world.insider("acme")
    assert authority(world).open_request(request).token == token
    assert token not in request
    for key in (PrivateKey.generate(), PrivateKey(enrol_key(world))):
        with pytest.raises(Exception, match="decrypt"):
            SealedBox(key).decrypt(request)
    changed = bytearray(request)
    changed[-1] ^= 1
    whole = msgspec.json.encode({"csr": new_csr(), "token": b"guess"})
    for attempt in (
        bytes(changed),
        request[:-1],
        b"",
        b"{}",
        whole,
        seal_request(new_csr(), b"guess", enrol_key(world)),
    ):
        assert code_of(await send(world, "desk", attempt, by=broker)) in {"bad-enrolment", "not-attested"}
    assert (await send(world, "desk", request)).chain is not None


async def test_an_answer_that_the_broker_changes(world: World) -> None:
    """Have an agent sign with a key whose certificate is somebody else's.

    Holds: the broker, and the chains of others. Tries: to answer with lake's chain, with one of a CA of its own, with
    an error. Stopped: the agent believes a chain for its key alone, from its own roots. Nothing honest is signed by it.
    """
    directory = world.data.agent("desk")
    settings = load((directory / "agent.toml").read_text(), {"MESH_AGENT_NATS_URL": world.mesh.server.url}).settings
    agent = Enroller(settings, directory)
    connection: Any = await Connection.open(world.mesh.server.url, name="desk", creds=world.creds("desk").read_bytes())
    try:
        assert (await agent.enrol(connection)).spiffe_id == "spiffe://mesh.local/ns/acme/sa/desk"
    finally:
        await connection.close()
    others = (await ask(world, "lake", new_csr())).chain
    rogue = MeshCA.create("mesh.local", now_ms=now_ms()).issue(
        "spiffe://mesh.local/ns/acme/sa/desk", public(secrets.token_bytes(32)), now_ms=now_ms()
    )
    assert others is not None
    answers = (Answer(chain=others), Answer(chain=rogue), Answer(chain=b""), Answer(error={"code": "x"}))
    endless = b'{"error": {"code": "overloaded", "retry_after_s": ' + b"9" * 400 + b"}}"
    for said in (*map(encode_answer, answers), b"{}", endless):
        liar: Any = Liar(said)
        with pytest.raises(MeshError):
            await agent.enrol(liar)


class Liar:
    """A connection in whose place the broker answers."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def request(self, _subject: str, _payload: bytes, **_options: object) -> Any:
        """What the broker says."""
        return SimpleNamespace(data=self._answer)


async def test_a_weak_key(world: World) -> None:
    """Enrol a key whose signatures anybody can make.

    Holds: an agent's credentials and token. Tries: an Ed25519 key of small order, with a CSR that such a key "signs".
    Stopped: the CSR is read with a list of the weak encodings, before anything is believed.
    """
    honest = secrets.token_bytes(32)
    assert (await ask(world, "desk", make_csr(honest))).chain is not None
    template = make_csr(secrets.token_bytes(32))
    known = x509.load_der_x509_csr(template).public_key().public_bytes_raw()  # type: ignore[union-attr]
    for key in SMALL_ORDER:
        assert code_of(await ask(world, "desk", template.replace(known, key))) in {"weak-key", "bad-enrolment"}
    forged = template.replace(known, SMALL_ORDER[1])
    signature = x509.load_der_x509_csr(template).signature
    universal = SMALL_ORDER[1] + bytes(32)  # R is the identity, S is 0: right under the identity for every message
    assert code_of(await ask(world, "desk", forged.replace(signature, universal))) in {"weak-key", "bad-enrolment"}


async def test_keys_of_other_kinds(world: World) -> None:
    """Enrol a key that is no event key.

    Holds: an agent's credentials and token. Tries: RSA and P-256, as a TLS key has. Stopped: an event key is Ed25519.
    """
    assert (await ask(world, "desk", new_csr())).chain is not None
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())):
        assert code_of(await ask(world, "desk", der(builder.sign(key, hashes.SHA256())))) == "bad-enrolment"


async def test_a_key_that_one_does_not_have(world: World) -> None:
    """Have another agent's public key certified under one's own name, to claim its events.

    Holds: desk's credentials and token, and crm-adapter's public key, which is in every certificate. Tries: a CSR with
    that key signed by another, and one with a flipped signature. Stopped: the CSR proves possession.
    """
    victim = await world.signer("crm-adapter")
    key = x509.load_der_x509_certificate(victim.certificate[: _length(victim.certificate)]).public_key()
    csr = new_csr()
    known = x509.load_der_x509_csr(csr).public_key().public_bytes_raw()  # type: ignore[union-attr]
    assert (await ask(world, "desk", new_csr())).chain is not None
    swapped = csr.replace(known, key.public_bytes_raw())  # type: ignore[union-attr]
    flipped = csr[:-1] + bytes([csr[-1] ^ 1])
    for attempt in (swapped, flipped, b"", b"0" * 100):
        assert code_of(await ask(world, "desk", attempt)) == "bad-enrolment"


def _length(chain: bytes) -> int:
    """Of the first item of a chain."""
    size = chain[1] & 0x7F
    return 2 + size + int.from_bytes(chain[2 : 2 + size], "big")


async def test_names_in_a_request(world: World) -> None:
    """Ask for another's name.

    Holds: desk's credentials and token. Tries: a CSR with crm-adapter's SPIFFE id as SAN, its name as subject, CA
    rights and the key usage of a server. Stopped: the CA sets the id itself and takes nothing from the request but the
    key.
    """
    key = Ed25519PrivateKey.generate()
    names = [x509.UniformResourceIdentifier("spiffe://mesh.local/ns/acme/sa/crm-adapter"), x509.DNSName("nats")]
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "crm-adapter")]))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, None)
    )
    answer = await ask(world, "desk", der(csr))
    if answer.chain is None:
        assert code_of(answer) == "bad-enrolment"
        return
    signer = Signer.from_seed(key.private_bytes_raw(), answer.chain)
    assert signer.spiffe_id == "spiffe://mesh.local/ns/acme/sa/desk"
    assert await world.put(sealed(signer)) == "publisher-not-allowed"
    leaf = x509.load_der_x509_certificate(answer.chain[: _length(answer.chain)])
    assert not [e for e in leaf.extensions if isinstance(e.value, x509.BasicConstraints) and e.value.ca]


async def test_a_key_that_somebody_else_enrolled(world: World) -> None:
    """Enrol one key under two names, to blame the other.

    Holds: the credentials and tokens of desk and of lake, and one key. Tries: to enrol it as both. Stopped: a key that
    the trust store has seen is not certified again.
    """
    seed = secrets.token_bytes(32)
    assert (await ask(world, "desk", make_csr(seed))).chain is not None
    assert code_of(await ask(world, "lake", make_csr(seed))) == "bad-enrolment"


async def test_a_revoked_key(world: World) -> None:
    """Have a revoked key certified anew.

    Holds: crm-adapter's credentials and token, and a key that was stolen and revoked. Tries: to enrol it again.
    Stopped: a key that was seen, or is revoked, is not certified.
    """
    seed = secrets.token_bytes(32)
    answer = await ask(world, "crm-adapter", make_csr(seed))
    assert answer.chain is not None
    signer = Signer.from_seed(seed, answer.chain)
    assert await world.put(sealed(signer)) == "delivered"
    await world.asked("trust.revoke", kid=signer.kid, now=True)
    await (await world.reader()).refuses(signer.kid)
    assert code_of(await ask(world, "crm-adapter", make_csr(seed))) == "bad-enrolment"
    assert await world.put(sealed(signer)) == "key-revoked"


async def test_keeping_an_agent_from_its_certificate(world: World) -> None:
    """Use up what an agent may ask for, and the control plane's time, without its token.

    Holds: lake's NATS credentials, and no token. Tries: thousands of requests, sealed with a guess and not sealed at
    all, without waiting for an answer. Stopped: certificates are counted once a token was attested; what comes faster
    than a few tries a second is dropped unread. Lake itself and the others enrol on.
    """
    thief, door = await world.insider("lake"), world.control().enrolment
    guess = seal_request(new_csr(), b"guess", enrol_key(world))
    dropped = door._drops
    for n in range(FLOOD):
        await thief.nc.publish("ctl.enrol.lake", guess if n % 2 else b"x" * 300, reply=thief.nc.new_inbox())
    await thief.nc.flush()
    assert (await ask(world, "desk", new_csr())).chain is not None
    await until(lambda: door._drops - dropped > FLOOD * 3 // 4)

    async def enrols() -> bool:
        try:
            answer = await ask(world, "lake", new_csr(), timeout_s=0.5)
        except NatsTimeout:
            return False
        return answer.chain is not None

    await until(enrols)


async def test_asking_too_often(world: World) -> None:
    """Fill the trust store, or keep the control plane from certifying others.

    Holds: rival's credentials and token. Tries: requests as fast as they go. Stopped: each workload has so many, then
    one a minute; others enrol on.
    """
    codes = []
    for _ in range(BURST + 5):
        answer = await ask(world, "rival", new_csr())
        codes.append("" if answer.error is None else answer.error["code"])
        if codes[-1]:
            break
    assert codes[0] == ""
    assert codes[-1] == "overloaded"
    assert (await ask(world, "desk", new_csr())).chain is not None


async def test_a_barred_workload(world: World) -> None:
    """Go on after the workload was revoked, until somebody notices.

    Holds: everything of lake's: NATS credentials, enrolment token, an event key. Tries: to publish, to enrol a new key,
    to connect, and all of it again after the honest lake was admitted. Stopped: its keys are refused, its account is
    closed, its requests too; who is admitted gets other credentials and another token.
    """
    scores = await world.reader("support", "scores")
    thief, signer = await world.stranger("lake", world.creds("lake")), await enrol(world, "lake")
    token, creds = token_of(world, "lake"), world.creds("lake").read_bytes()
    subject = "ev.local.service.s00.lake.score.computed.v1"
    fields = {"source": "/analytics", "type": "lake.score.computed.v1"}

    def event() -> Wire:
        return sealed(signer, contact(**fields), subject=subject)

    assert await world.put(event(), thief, scores) == "delivered"
    await world.asked("trust.revoke", agent="lake", now=True)
    await scores.refuses(signer.kid)
    await until(lambda: thief.nc.is_closed)
    assert await world.put(event(), reader=scores) == "key-revoked"
    broker = await world.insider("acme")
    request = seal_request(new_csr(), token, enrol_key(world))
    assert code_of(await send(world, "lake", request, by=broker)) == "workload-barred"
    await world.asked("trust.admit", agent="lake")
    assert world.creds("lake").read_bytes() != creds
    assert (
        code_of(await send(world, "lake", seal_request(new_csr(), token, enrol_key(world)), by=broker))
        == "not-attested"
    )
    lines = creds.decode().splitlines()
    assert not await lets_in(world, lines[1], lines[-2])
    assert await world.put(event(), reader=scores) == "key-revoked"
    world._clients.pop("lake", None)
    assert (await ask(world, "lake", new_csr())).chain is not None
