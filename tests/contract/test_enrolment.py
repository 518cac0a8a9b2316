"""The enrolment door on a real server, asked by agents over their own accounts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from nacl.public import PrivateKey

from agent.enrolment import _refusal
from mesh import audit
from mesh.certificates import check_chain, make_csr
from mesh.control import enrol
from mesh.control.attest import Attested, Attestor, FileAttestor
from mesh.control.attest_kubernetes import KubernetesAttestor
from mesh.control.enrol import Enrolment
from mesh.control.reconcile import now_ms
from mesh.control.standing import Standing
from mesh.control.truststore import TrustStore
from mesh.enrolment import MAX_MESSAGE_BYTES, Answer, read_answer, seal_request
from mesh.errors import MeshError, NotAttested, Unavailable, WorkloadBarred
from mesh.identity import Signer
from mesh.jetstream.connection import Connection
from mesh.keys import key_id
from mesh.kubernetes.api import Api
from tests.contract.policy_mesh import PolicyMesh, reads, until
from tests.kubernetes_api import UID, serving

pytestmark = pytest.mark.anyio

AGENT, OTHER = "crm-adapter", "desk"
SPIFFE = f"spiffe://mesh.local/ns/acme/sa/{AGENT}"
DAY_MS = 86_400_000


@dataclass
class World:
    """One tenant's door, and connections of two agents."""

    mesh: PolicyMesh
    store: TrustStore
    standing: Standing
    attestor: FileAttestor
    directory: Path
    agents: dict[str, Connection]
    told: list[tuple[str, dict[str, Any]]]
    asking: list[bytes]  # every request that went over the wire

    def token(self, agent: str) -> bytes:
        """What the agent reads from its file."""
        return (self.directory / agent).read_bytes().strip()

    def request(self, agent: str = AGENT, *, seed: bytes | None = None, csr: bytes | None = None) -> bytes:
        """A request as the agent would seal it."""
        made = csr or make_csr(seed or secrets.token_bytes(32))
        return seal_request(made, self.token(agent), self.mesh.authority.enrol_public)

    async def ask(self, data: bytes, agent: str = AGENT) -> Answer:
        """Ask as *agent* does."""
        self.asking.append(data)
        reply = await self.agents[agent].request(f"ctl.enrol.{agent}", data)
        return read_answer(reply.data)

    async def refused(self, data: bytes, agent: str = AGENT) -> str:
        """The code it is refused with."""
        answer = await self.ask(data, agent)
        assert answer.chain is None
        return str((answer.error or {})["code"])


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """For all tests of this file."""
    directory = tmp_path_factory.mktemp("enrolment")
    async with PolicyMesh.running(directory) as mesh:
        await mesh.apply(reads("bare"))
        store = TrustStore(mesh.control, mesh.authority, "acme", directory / "admin" / "acme.statement")
        await store.open()
        standing, attestor = (
            Standing(directory / "admin" / "standing.json"),
            FileAttestor(directory / "admin" / "enrol"),
        )
        for agent, held in mesh.policies.grants.agents.items():
            attestor.hand_out(agent, held.spiffe_id, directory / agent)
        agents = {name: await mesh.workload(name) for name in (AGENT, OTHER)}
        world = World(mesh, store, standing, attestor, directory, agents, [], [])
        async with anyio.create_task_group() as group:
            group.start_soon(door(world).run)
            await mesh.control.flush(5)
            yield world
            group.cancel_scope.cancel()


def door(
    world: World, attestor: Attestor | None = None, *, clock: Callable[[], float] = anyio.current_time
) -> Enrolment:
    """A door to that tenant."""
    return Enrolment(
        world.mesh.control,
        world.mesh.authority,
        world.store,
        world.standing,
        attestor or world.attestor,
        agents=lambda: world.mesh.policies.grants.agents,
        told=lambda kind, **facts: world.told.append((kind, facts)),
        clock=clock,
    )


@pytest.fixture
def barred(world: World) -> Iterator[Callable[[], None]]:
    """Bars the agent until the test ends."""
    yield lambda: world.standing.bar(AGENT)
    world.standing.admit(AGENT)


async def test_an_agent_gets_a_certificate_that_everybody_can_check(world: World) -> None:
    """For its own id and key, for a day, under the mesh CA; it is in the store before the agent has it."""
    seed = secrets.token_bytes(32)
    answer = await world.ask(world.request(seed=seed))
    assert answer.chain is not None, answer.error
    signer = Signer.from_seed(seed, answer.chain)
    held = check_chain(answer.chain, world.mesh.authority.roots)
    assert (held.spiffe_id, held.kid) == (SPIFFE, signer.kid)
    assert held.issuer_kid == world.mesh.authority.ca.kid
    assert DAY_MS <= held.not_after_ms - held.not_before_ms <= DAY_MS + 120_000
    stored = await world.store.certificate(signer.kid)
    assert stored is not None
    assert stored.chain == answer.chain
    assert world.told[-1] == (
        audit.ENROLLED, {"workload": AGENT, "spiffe_id": SPIFFE, "kid": signer.kid, "attested": "file"},
    )  # fmt: skip


async def test_names_in_a_request_count_for_nothing(world: World) -> None:
    """A request that asks to be somebody else, a CA, or more, gets what the policies say."""
    private = Ed25519PrivateKey.generate()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh.local/ns/acme/sa/lake")])
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lake")])
    ).add_extension(names, critical=True)
    ca = x509.BasicConstraints(ca=True, path_length=None)
    csr = builder.add_extension(ca, critical=True).sign(private, None).public_bytes(Encoding.DER)
    answer = await world.ask(world.request(csr=csr))
    assert answer.chain is not None, answer.error
    assert check_chain(answer.chain, world.mesh.authority.roots).spiffe_id == SPIFFE


async def test_nothing_that_was_sent_over_the_wire_holds_a_token(world: World) -> None:
    """The broker sees who asks, and no token to ask with; nor does the audit trail."""
    await world.ask(world.request())
    tokens = [world.token(agent) for agent in (AGENT, OTHER)]
    assert world.asking
    assert not [token for token in tokens for data in world.asking if token in data]
    assert not [token for token in tokens if token.decode() in repr(world.told)]


async def test_one_request_is_one_certificate(world: World) -> None:
    """A broker that plays a request again gets an error, then and after the key was revoked or the store lost it."""
    seed = secrets.token_bytes(32)
    request, again = world.request(seed=seed), world.request(seed=seed)
    answer = await world.ask(request)
    assert answer.chain is not None, answer.error
    for data in (request, again):
        assert await world.refused(data) == "bad-enrolment"
    revoked = secrets.token_bytes(32)
    await world.store.revoke({key_id(Ed25519PrivateKey.from_private_bytes(revoked).public_key().public_bytes_raw()): 1})
    assert await world.refused(world.request(seed=revoked)) == "bad-enrolment"


async def test_of_two_requests_for_one_key_at_once_one_is_answered(world: World) -> None:
    """Whoever plays a request again does it at once."""
    request = world.request()
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await world.ask(request))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
    assert len([answer for answer in answers if answer.chain is not None]) == 1


async def test_an_agent_cannot_ask_in_another_s_name(world: World) -> None:
    """NATS takes no request on another's subject, and another's token counts on no other subject than his."""
    with pytest.raises(Unavailable) as nobody:
        await world.agents[OTHER].request(f"ctl.enrol.{AGENT}", world.request())
    assert nobody.value.details["reason"] == "no-responders"
    assert await world.refused(world.request(AGENT), OTHER) == "not-attested"
    assert await world.refused(world.request(OTHER), AGENT) == "not-attested"
    team = await world.mesh.team("support")
    for name in (AGENT, "team-support"):
        with pytest.raises(Unavailable):
            await team.request(f"ctl.enrol.{name}", world.request())


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda _: b"", "bad-enrolment"),
        (lambda _: b"x" * 400, "bad-enrolment"),
        (lambda world: world.request()[:-1], "bad-enrolment"),
        (lambda world: world.request(csr=b"none"), "bad-enrolment"),
        (lambda world: world.request(csr=_unproven()), "bad-enrolment"),
        (
            lambda world: seal_request(make_csr(bytes(32)), b"guessed", world.mesh.authority.enrol_public),
            "not-attested",
        ),
        (
            lambda world: seal_request(
                make_csr(bytes(32)), world.token(AGENT), bytes(PrivateKey.generate().public_key)
            ),
            "bad-enrolment",
        ),
    ],
)
async def test_what_is_no_request_gets_no_certificate(world: World, make: Callable[[World], bytes], code: str) -> None:
    """Each with its code; and it is recorded, without what came."""
    assert await world.refused(make(world)) == code
    assert world.told[-1] == (audit.ENROLMENT_REFUSED, {"workload": AGENT, "code": code})


def _unproven() -> bytes:
    """A certificate request whose signature is another key's."""
    csr, other = bytearray(make_csr(bytes(32))), make_csr(bytes(31) + b"\x01")
    csr[-64:] = other[-64:]
    return bytes(csr)


async def test_a_barred_workload_gets_no_certificate(world: World, barred: Callable[[], None]) -> None:
    """Until it is admitted."""
    barred()
    assert await world.refused(world.request()) == "workload-barred"
    world.standing.admit(AGENT)
    assert (await world.ask(world.request())).chain is not None


async def test_a_workload_barred_while_it_is_attested_gets_none(world: World, barred: Callable[[], None]) -> None:
    """The attestor takes its time; what happened meanwhile counts, and no certificate is left behind."""

    class Slow:
        async def attest(self, token: bytes) -> Attested:
            barred()
            return await world.attestor.attest(token)

    seed = secrets.token_bytes(32)
    with pytest.raises(WorkloadBarred):
        await door(world, Slow()).enrol(AGENT, world.request(seed=seed))
    kid = key_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
    assert not await world.store.known(kid)


async def test_an_attestor_that_is_away_costs_no_key(world: World) -> None:
    """The agent is told to ask again, nothing was issued, and the same request is answered later."""
    request = world.request()

    class Away:
        async def attest(self, token: bytes) -> Attested:
            raise Unavailable("the API server did not answer")

    with pytest.raises(Unavailable):
        await door(world, Away()).enrol(AGENT, request)
    assert (await world.ask(request)).chain is not None


async def test_nobody_holds_a_certificate_that_was_not_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store does not take it, the agent gets an error and no chain."""

    async def full(chain: bytes) -> str:
        raise Unavailable(f"no room for {len(chain)} bytes")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "publish", full)
        assert await world.refused(world.request()) == "unavailable"


async def test_a_fault_of_ours_is_an_answer_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of what went wrong, and the door goes on."""

    async def broken(_token: bytes) -> Attested:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(world.attestor, "attest", broken)
        answer = await world.ask(world.request())
    assert answer.error is not None
    assert (answer.error["code"], "secret" in str(answer.error)) == ("mesh-error", False)
    assert (await world.ask(world.request())).chain is not None


class Spending:
    """A door at a time of the test's choosing, and what it says to request after request."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now_s = 100.0
        self.door = door(world, clock=lambda: self.now_s)

    async def code(self, data: bytes, agent: str = AGENT) -> str:
        """Empty where there is a certificate; else the error's, with the wait it names."""
        try:
            await self.door.enrol(agent, data)
        except MeshError as error:
            retry_s = error.details.get("retry_after_s")
            return error.code if retry_s is None else f"{error.code} {retry_s}"
        return ""


async def test_an_agent_that_asks_too_often_waits_alone(world: World) -> None:
    """So many certificates at once, then one a minute; it is told when, and the others are answered."""
    spending = Spending(world)
    assert {await spending.code(world.request()) for _ in range(enrol.BURST)} == {""}
    assert await spending.code(world.request()) == f"overloaded {enrol.REFILL_S}"
    assert await spending.code(world.request(OTHER), OTHER) == ""
    spending.now_s += enrol.REFILL_S + 1
    assert [await spending.code(world.request()) for _ in range(2)] == ["", f"overloaded {enrol.REFILL_S - 1}"]


async def test_who_has_no_token_uses_up_no_certificate_of_the_agent(world: World) -> None:
    """Its connection alone buys a few tries a second; the agent's own request is answered between them."""
    spending = Spending(world)
    guess = seal_request(make_csr(bytes(32)), b"guessed", world.mesh.authority.enrol_public)
    assert {await spending.code(guess) for _ in range(enrol.TRIES)} == {"not-attested"}
    for _ in range(3):
        assert await spending.code(guess) == "overloaded 0.1"
        spending.now_s += 0.11
        assert await spending.code(world.request()) == ""
        assert await spending.code(guess) == "not-attested"
    assert await spending.code(world.request(OTHER), OTHER) == ""
    spending.now_s += 10
    assert {await spending.code(world.request()) for _ in range(enrol.BURST - 3)} == {""}


async def test_what_was_not_issued_is_not_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away for long costs an agent none of its certificates."""
    spending = Spending(world)

    async def away(_chain: bytes) -> str:
        raise Unavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "publish", away)
        for _ in range(enrol.BURST + 1):
            assert await spending.code(world.request()) == "unavailable"
            spending.now_s += 1
    assert await spending.code(world.request()) == ""
    assert spending.door._asking[AGENT].certificates.left == enrol.BURST - 1


async def test_a_flood_of_refusals_is_told_in_part_and_counted(world: World) -> None:
    """60, then one each minute that says how many there were between: nobody fills the trail."""
    spending = Spending(world)
    before = len(world.told)
    for _ in range(enrol.TOLD + 40):
        assert await spending.code(b"") == "bad-enrolment"
        spending.now_s += 0.2
    assert len(world.told) - before == enrol.TOLD
    spending.now_s += 61
    await spending.code(b"")
    assert world.told[-1][1]["untold"] == 40


async def test_a_flood_of_large_requests_is_not_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What no request can be as large as is dropped unread, and the next one is answered."""
    with pytest.raises(Unavailable):
        await world.agents[AGENT].request(f"ctl.enrol.{AGENT}", b"x" * (MAX_MESSAGE_BYTES + 1), timeout_s=0.2)
    await until(lambda: _is("enrolment_dropped" in caplog.messages))
    assert (await world.ask(world.request())).chain is not None


async def test_a_flood_of_one_agent_leaves_room_for_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its requests hang, few of them are held; the rest is dropped without an answer."""
    attest, hanging, ended = world.attestor.attest, 0, anyio.Event()

    async def slow(token: bytes) -> Attested:
        nonlocal hanging
        if token == world.token(AGENT):
            hanging += 1
            await ended.wait()
            raise NotAttested("too late")
        return await attest(token)

    with monkeypatch.context() as patch:
        patch.setattr(world.attestor, "attest", slow)
        flooder = world.agents[AGENT]
        for _ in range(enrol.AT_ONCE + 8):
            await flooder.publish(f"ctl.enrol.{AGENT}", world.request(), reply=flooder.new_inbox())
        await flooder.flush(5)
        try:
            assert (await world.ask(world.request(OTHER), OTHER)).chain is not None
            await until(lambda: _is(hanging == enrol.WAITING_EACH))
        finally:
            ended.set()
    assert (await world.ask(world.request())).chain is not None


async def _is(true: bool) -> bool:
    return true


async def test_nobody_works_for_an_agent_that_has_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited too long behind others is dropped, so that an overload ends."""
    monkeypatch.setattr(enrol, "MAX_WAIT_S", -1.0)
    seed = secrets.token_bytes(32)
    with pytest.raises(Unavailable):
        await world.agents[AGENT].request(f"ctl.enrol.{AGENT}", world.request(seed=seed), timeout_s=0.2)
    kid = key_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
    assert not await world.store.known(kid)


async def test_a_new_mesh_ca_signs_the_next_certificate(world: World) -> None:
    """Nobody has to be told: the root is the same."""
    before = world.mesh.authority.ca.kid
    assert world.mesh.authority.renew_ca(now_ms(), force=True)
    answer = await world.ask(world.request())
    assert answer.chain is not None, answer.error
    assert check_chain(answer.chain, world.mesh.authority.roots).issuer_kid == world.mesh.authority.ca.kid != before


async def test_a_pod_enrols_with_the_token_of_its_service_account(world: World, tmp_path: Path) -> None:
    """The same door with another attestor: the pod stands in the record, and another account's pod is refused."""
    (tmp_path / "token").write_text("ours")
    async with serving(tmp_path) as api:
        asked = Api(api.url, ca_file=api.ca_file, token_file=tmp_path / "token")
        attestor = KubernetesAttestor(asked, trust_domain="mesh.local")
        chain = await door(world, attestor).enrol(AGENT, world.request())
        assert check_chain(chain, world.mesh.authority.roots).spiffe_id == SPIFFE
        kind, facts = world.told[-1]
        assert (kind, facts["attested"], facts["pod_uid"]) == (audit.ENROLLED, "kubernetes", UID)
        with pytest.raises(NotAttested):
            await door(world, attestor).enrol(OTHER, world.request())


@pytest.mark.parametrize(
    ("said", "retry_s"),
    [("9" * 400, 3600.0), ("-1e300", 0.0), ("-" + "9" * 400, 0.0), ("7.5", 7.5), ('"x"', None), ("null", None)],
)
def test_what_a_refusal_asks_an_agent_to_wait_is_bounded(said: str, retry_s: float | None) -> None:
    """A broker may answer in the control plane's place: with a number that is none for a clock, too."""
    answer = read_answer(b'{"error": {"code": "overloaded", "retry_after_s": ' + said.encode() + b"}}")
    assert _refusal(answer.error or {}).details.get("retry_after_s") == retry_s
