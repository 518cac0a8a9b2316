"""An agent's event key: enrolled, renewed, cut and held, against the real enrolment door and trust store."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from agent import identity as identity_module
from agent import renewal as renewal_module
from agent.core import Agent
from agent.identity import Identity
from agent.settings import load
from mesh.ca import MeshCA
from mesh.certificates import read_csr, split_chain
from mesh.control import issuing as issuing_module
from mesh.control.attest import Attested, FileAttestor
from mesh.control.datadir import write_private
from mesh.control.nats_server import NatsServer, ServerTls, plain_config
from mesh.enrolment import Answer, encode_answer, open_request
from mesh.errors import (
    ClockWrong,
    ConfigError,
    KeyRevoked,
    NotAttested,
    NotEnrolled,
    StreamUnavailable,
    Unavailable,
    WorkloadBarred,
)
from mesh.identity import seed_to_pem
from mesh.jetstream import wire
from mesh.jetstream.store import KeyValue
from mesh.jetstream.tls import TlsFiles
from mesh.keys import SpiffeId, key_id
from mesh.signing import Verified
from mesh.trust_watch import TrustWatch
from tests.contract.agent_mesh import (
    ENROL_KEY,
    PATIENT,
    Control,
    Streams,
    event,
    judged,
    now_ms,
    until,
    write_directory,
)

pytestmark = pytest.mark.anyio

OURS = str(SpiffeId.for_agent("mesh.local", "acme", "crm-adapter"))
HOUR_MS = 3_600_000
DEAL = {"type": "crm.deal.won.v1", "data": {"amount": 1}}  # one copy, in the view `clear`


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An agent's directory."""
    return write_directory(tmp_path / "agent")


@pytest.fixture
async def control(streams: Streams, base: Path) -> Control:
    """The control plane for that agent; it answers nothing yet."""
    return await Control.of(streams, base)


def agent_of(base: Path, url: str, **settings: object) -> Agent:
    """An agent that enrols, not yet started."""
    settings = {"event_key_file": "", "event_cert_file": "", "nats_url": url, **PATIENT, **settings}
    environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
    return Agent(load((base / "agent.toml").read_text(), environ).settings, base)


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    """Started and closed; it may not be ready."""
    await agent.start()
    try:
        yield agent
    finally:
        await agent.close()


def identity_of(agent: Agent) -> Identity:
    """What keeps its key."""
    assert agent._identity is not None
    return agent._identity


def kid_of(agent: Agent) -> str:
    """The key it seals with."""
    return agent.keys.signer.kid


async def publish(agent: Agent, *ids: str) -> None:
    """One event each, durable when this returns."""
    for id_ in ids:
        await agent.publish(event(id=id_, **DEAL))


async def seen(streams: Streams, base: Path, after: int) -> dict[str, list[str]]:
    """What a consumer makes of everything stored after a sequence: the ids it accepts by key, and its refusals."""
    found: dict[str, list[str]] = {}
    for verdict in await judged(streams, base, after=after):
        key = verdict.kid if isinstance(verdict, Verified) else verdict.code
        found.setdefault(key, []).append(verdict.fields["id"] if isinstance(verdict, Verified) else "")
    return found


# --- enrolling -------------------------------------------------------------------------------------------------------


async def test_an_agent_enrols_at_its_start(
    streams: Streams, base: Path, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """Each start takes a key of its own, which is in no file; consumers find its certificate and believe it."""
    caplog.set_level(logging.DEBUG)
    after, files = await streams.stored(), set(base.rglob("*"))
    kids = []
    async with control.answering():
        for n in range(2):
            async with agent_of(base, streams.server.url) as agent:
                await publish(agent, f"start-{n}")
                kids.append(kid_of(agent))
                state = agent.state()["identity"]
                assert (state["kid"], state["trust_read"], state["refused"]) == (kids[-1], True, None)
                assert 86_000 < state["certificate_left_s"] <= 86_400
    assert await seen(streams, base, after) == {kids[0]: ["start-0"], kids[1]: ["start-1"]}
    made = {path.relative_to(base).parts[0] for path in set(base.rglob("*")) - files}
    assert made <= {"admin", "bundle.last", "spool.db", "spool.key"}
    token = (base / "enrol.token").read_text().strip()
    assert not any(token in repr(vars(record)) for record in caplog.records)
    assert token not in repr(control.told)


async def test_without_a_control_plane_it_is_not_enrolled_and_goes_on_asking(
    streams: Streams, base: Path, control: Control
) -> None:
    """Without a spool the door says so, 503; once somebody answers the agent is ready by itself."""
    async with running(agent_of(base, streams.server.url, spool_file="")) as agent:
        await until(lambda: identity_of(agent).problem is not None and agent.state()["bundle_revision"])
        assert agent.not_ready() == [NotEnrolled.code]
        with pytest.raises(NotEnrolled) as refused:
            await agent.publish(event())
        assert (refused.value.status, refused.value.retryable) == (503, True)
        with pytest.raises(NotEnrolled):
            await agent.wait_ready(0.01)
        async with control.answering():
            await until(lambda: not agent.not_ready())
            assert identity_of(agent).problem is None
            await publish(agent, "after")


OTHER_CA = MeshCA.create("mesh.local", now_ms=now_ms())
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()


def _chain(chain: bytes) -> bytes:
    return encode_answer(Answer(chain=chain))


WRONG: dict[str, tuple[Callable[[bytes, MeshCA], bytes], str]] = {
    "for another id": (lambda key, ca: _chain(ca.issue(f"{OURS}-2", key, now_ms=now_ms())), "bad-certificate"),
    "for another key": (lambda _, ca: _chain(ca.issue(OURS, OTHER_KEY, now_ms=now_ms())), "bad-certificate"),
    "of another CA": (lambda key, _: _chain(OTHER_CA.issue(OURS, key, now_ms=now_ms())), "bad-certificate"),
    "without its issuer": (
        lambda key, ca: _chain(split_chain(ca.issue(OURS, key, now_ms=now_ms()))[0]),
        "bad-certificate",
    ),
    "no certificate": (lambda *_: _chain(b"0"), "bad-certificate"),
    "no answer": (lambda *_: b"{}", "bad-enrolment"),
    "no JSON": (lambda *_: b"\xff", "bad-enrolment"),
    "a refusal": (lambda *_: encode_answer(Answer(error=NotAttested("no").as_dict())), "not-attested"),
    "an unknown refusal": (lambda *_: encode_answer(Answer(error={"code": 7, "message": None})), "bad-enrolment"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_answer_gives_no_key(
    streams: Streams, base: Path, control: Control, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands between can answer what he likes: only a chain of our CA for our key and our id is taken."""
    monkeypatch.setattr(renewal_module, "ASK_AGAIN_S", (0.02,))
    answer, code = WRONG[name]
    asked: list[bytes] = []

    def lie(subject: str, reply: str, _headers: bytes | None, data: bytes) -> None:
        asked.append(key := read_csr(open_request(data, ENROL_KEY).csr))
        assert subject == "ctl.enrol.crm-adapter"
        streams.connection.write(wire.publish_frame(reply, answer(key, control.authority.ca)))

    liar = streams.connection.listen("ctl.enrol.*", lie)
    try:
        async with running(agent_of(base, streams.server.url)) as agent:
            await until(lambda: len(asked) >= 2 and agent.state()["bundle_revision"])
            assert agent.state()["identity"]["refused"] == code
            assert agent.not_ready() == [NotEnrolled.code]
            assert len(set(asked)) == len(asked), "each attempt takes another key"
            liar.close()
            async with control.answering():
                await until(lambda: not agent.not_ready())
    finally:
        liar.close()


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("enrol.token", None, "enrol.token cannot be read"),
        ("enrol.token", " ", "enrol.token is empty"),
        ("trust/enrol.pub", None, "enrol.pub cannot be read"),
        ("trust/enrol.pub", "00", "enrol.pub is not a key"),
        ("trust/trust.pub", None, "holds no trust anchors"),
        ("trust/ca.crt", "none", "ca.crt holds no roots"),
    ],
)
def test_what_enrolling_needs_is_there_from_the_start(base: Path, file: str, content: str | None, says: str) -> None:
    """A missing or damaged file ends the start with a sentence that names it."""
    if content is None:
        (base / file).unlink()
    else:
        (base / file).write_text(content)
    with pytest.raises(ConfigError, match=says):
        agent_of(base, "nats://127.0.0.1:9")


# --- renewing --------------------------------------------------------------------------------------------------------


async def test_a_key_is_renewed_at_half_its_life(streams: Streams, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server's clock; the old key signs until then, and what it sealed goes on to be believed."""
    monkeypatch.setattr(renewal_module, "JITTER", 0.0)
    monkeypatch.setattr(renewal_module, "RENEW_GAP_S", 0.0)
    control = await Control.of(streams, base, made_ms=now_ms() - 24 * HOUR_MS)
    after = await streams.stored()
    ids: list[str] = []
    async with control.answering():
        with monkeypatch.context() as earlier:
            earlier.setattr(issuing_module, "now_ms", lambda: now_ms() - 12 * HOUR_MS + 34_000)  # 60 s are backdated
            async with AsyncExitStack() as stack:
                agent = await stack.enter_async_context(agent_of(base, streams.server.url))
                first = kid_of(agent)
                earlier.undo()
                async with asyncio.timeout(60):
                    while kid_of(agent) == first:
                        ids.append(f"half-{len(ids)}")
                        await publish(agent, ids[-1])
                await publish(agent, "renewed")
                second = kid_of(agent)
    assert await seen(streams, base, after) == {first: ids, second: ["renewed"]}
    assert [told["kid"] for told in control.told] == [first, second]
    assert not control.store.revoked


async def test_a_clock_that_is_off_renews_nothing(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirteen hours ahead the certificate seems past its half; the measured offset says that it is not."""
    monkeypatch.setattr(renewal_module, "RENEW_GAP_S", 0.0)
    agent = agent_of(base, streams.server.url)
    agent.clock_ms = lambda: now_ms() + 13 * HOUR_MS
    async with control.answering(), running(agent):
        await agent.wait_ready(20)
        await until(lambda: agent.not_ready() == [ClockWrong.code])
        count, identity = len(control.told), identity_of(agent)
        assert identity._renewal is not None
        identity._renewal.wake()
        await identity._connection.flush(5)
        assert not identity._renewal._needs_key(identity._now_ms())
        assert len(control.told) == count <= 2


# --- a key that is revoked -------------------------------------------------------------------------------------------


async def test_a_cut_that_is_announced_costs_nothing(streams: Streams, base: Path, control: Control) -> None:
    """Under load, the key is replaced before its cut: no event is refused, none is sealed by it after."""
    after = await streams.stored()
    ids: list[str] = []
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        first, cut_ms = kid_of(agent), now_ms() + 15_000  # as `mesh trust rotate` does
        await publish(agent, "before")
        await control.store.revoke({first: cut_ms})
        while kid_of(agent) == first:
            ids.append(f"cut-{len(ids)}")
            await publish(agent, ids[-1])
            assert not agent.not_ready()
        second = kid_of(agent)
        await publish(agent, "after")
    assert now_ms() < cut_ms
    found = await seen(streams, base, after)
    assert sorted(found) == sorted([first, second])
    assert [*found[first], *found[second]] == ["before", *ids, "after"]


async def test_a_cut_without_notice_holds_what_is_accepted(streams: Streams, base: Path, control: Control) -> None:
    """Cut at once: what is accepted waits the few milliseconds for another key, and the door never says no."""
    after, gate = await streams.stored(), asyncio.Event()
    gate.set()
    control.enrolment._attestor = Slow(control.attestor, gate)
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        first = kid_of(agent)
        gate.clear()
        await control.store.revoke({first: now_ms()})
        await until(lambda: agent.state()["identity"]["certificate_left_s"] == 0)
        held = asyncio.create_task(publish(agent, "held"))
        assert not agent.not_ready()
        await identity_of(agent)._connection.flush(5)
        assert not held.done()
        gate.set()
        await held
        second = kid_of(agent)
    assert await seen(streams, base, after) == {second: ["held"]}


async def test_a_copy_that_may_have_been_stored_after_the_cut_is_no_proof(
    streams: Streams, base: Path, control: Control
) -> None:
    """A server that hangs over the cut stores what the old key sealed; its ack ends nothing, the event goes anew."""
    after, gate = await streams.stored(), asyncio.Event()
    gate.set()
    control.enrolment._attestor = Slow(control.attestor, gate)
    async with control.answering(), agent_of(base, streams.server.url, spool_file="", give_up_s=60) as agent:
        first = kid_of(agent)
        gate.clear()
        await control.store.revoke({first: (cut_ms := now_ms() + 1500)})
        await until(lambda: identity_of(agent).used.cut_ms(agent.keys.signer) == cut_ms)
        streams.server.pause()
        hung = asyncio.create_task(publish(agent, "hung"))
        await until(lambda: now_ms() > cut_ms)
        streams.server.resume()
        gate.set()
        await hung
        second = kid_of(agent)
    assert await seen(streams, base, after) == {KeyRevoked.code: [""], second: ["hung"]}


async def test_a_key_that_was_cut_while_the_agent_was_away_seals_nothing(
    streams: Streams, base: Path, control: Control
) -> None:
    """After a connect trust is read before anything is sent: what waited goes out under the next key alone."""
    after = await streams.stored()
    line = Line(streams.server.port)
    async with control.answering(), line.open() as url, agent_of(base, url) as agent:
        await publish(agent, "before")
        first = kid_of(agent)
        line.cut()
        await until(lambda: not agent.state()["nats_connected"])
        waiting = asyncio.create_task(publish(agent, "away"))
        await control.store.revoke({first: now_ms()})
        line.mend()
        await waiting
        assert kid_of(agent) != first
    assert await seen(streams, base, after) == {first: ["before"], kid_of(agent): ["away"]}


async def test_trust_that_cannot_be_read_holds_everything(streams: Streams, base: Path, control: Control) -> None:
    """A statement that does not hold up is none: nothing is sent by it, and it ends by itself."""
    store = KeyValue(streams.connection, "mesh_trust")
    await store.put("trust", b"{}")
    async with control.answering(), agent_of(base, streams.server.url, spool_file="", give_up_s=0.3) as agent:
        assert agent.state()["identity"]["trust_read"] is False
        with pytest.raises(StreamUnavailable):
            await publish(agent, "unread")
        await control.store.statement()
        await until(lambda: agent.state()["identity"]["trust_read"])
        await publish(agent, "read")


async def test_a_link_that_returns_between_two_reads_is_read_for(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one server after another restarts: what could not be read over the one link is read over the next."""
    pauses = Pauses(0.5)
    monkeypatch.setattr(identity_module, "READ_AGAIN_S", pauses)
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        identity = identity_of(agent)
        with monkeypatch.context() as leaderless:

            async def unavailable(_: TrustWatch) -> None:
                raise Unavailable("the bucket has no leader")

            leaderless.setattr(TrustWatch, "refresh", unavailable)
            for count in (2, 3):
                await identity._connection._keeper.end_link()
                await until(lambda count=count: identity._links == count and pauses.taken)
            assert identity._connection.connected
        await publish(agent, "read")
        assert agent.state()["identity"]["trust_read"] is True


async def test_a_read_that_does_not_count_is_followed_by_a_pause(
    streams: Streams, base: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that falls under every read is no reason to load the bucket with reads."""
    pauses, reads, refresh = Pauses(0.01), [0], TrustWatch.refresh
    monkeypatch.setattr(identity_module, "READ_AGAIN_S", pauses)
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        identity = identity_of(agent)
        with monkeypatch.context() as flapping:

            async def fallen(trust: TrustWatch) -> None:
                await refresh(trust)
                reads[0] += 1
                identity._links += 1  # as after a link that fell and returned meanwhile

            flapping.setattr(TrustWatch, "refresh", fallen)
            await identity._connection._keeper.end_link()
            await until(lambda: reads[0] >= 5)
            assert not identity._trusted
            assert reads[0] - pauses.taken <= 2  # one under way, and the poll's
        await publish(agent, "read")


@pytest.mark.parametrize("when", ["from the start", "after a connect"])
async def test_a_statement_that_is_missing_holds_everything(
    streams: Streams, base: Path, control: Control, when: str
) -> None:
    """A mesh has one as soon as its control plane ran, so whoever shows none may be hiding that our key is revoked."""
    bucket = KeyValue(streams.connection, "mesh_trust")
    if when == "from the start":
        await bucket.delete("trust")
    async with control.answering(), running(agent_of(base, streams.server.url)) as agent:
        identity = identity_of(agent)
        if when == "after a connect":
            await until(lambda: identity._trusted and not agent.not_ready())
            await bucket.delete("trust")
            await identity._connection._keeper.end_link()
            await until(lambda: identity._links == 2)
        await until(lambda: not agent.not_ready())
        reads, refresh = [0], identity._trust.refresh

        async def counted() -> None:
            try:
                await refresh()
            finally:
                reads[0] += 1

        identity._trust.refresh = counted  # type: ignore[method-assign]  # to know that it was read, and in vain
        held = asyncio.create_task(publish(agent, "held"))
        await until(lambda: reads[0] >= 3)
        assert agent.state()["identity"]["trust_read"] is False
        assert not held.done()
        await control.store.statement()
        await held
        assert agent.state()["identity"]["trust_read"] is True


async def test_a_revoked_issuer_is_left_at_once(streams: Streams, base: Path, control: Control) -> None:
    """All certificates of an intermediate go with it; the agent has one of the next before the cut."""
    after = await streams.stored()
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        await publish(agent, "old")
        first, issuer = kid_of(agent), agent.keys.signer.issuer_kid
        control.authority.renew_ca(now_ms(), force=True)
        await control.store.revoke({issuer: now_ms() + 1000})
        await until(lambda: kid_of(agent) != first)
        await publish(agent, "new")
        assert agent.keys.signer.issuer_kid == control.authority.ca.kid != issuer
    assert await seen(streams, base, after) == {first: ["old"], kid_of(agent): ["new"]}


async def test_a_certificate_of_a_revoked_issuer_is_no_key(streams: Streams, base: Path, control: Control) -> None:
    """While the control plane issues under what its own statement revokes, the agent takes nothing and says so."""
    async with control.answering():
        await control.store.revoke({control.authority.ca.kid: now_ms()})
        async with running(agent_of(base, streams.server.url)) as agent:
            await until(lambda: agent.state()["identity"]["refused"] == "bad-certificate")
            control.authority.renew_ca(now_ms(), force=True)
            await until(lambda: not agent.not_ready())


async def test_a_barred_workload_is_told(streams: Streams, base: Path, control: Control) -> None:
    """Revoked and barred: no key at the cut, not ready, and the code says why; admitted, it goes on by itself."""
    async with control.answering(), agent_of(base, streams.server.url) as agent:
        first = kid_of(agent)
        control.standing.bar("crm-adapter")
        await control.store.revoke({first: now_ms()})
        await until(lambda: agent.not_ready() == [NotEnrolled.code])
        with pytest.raises(NotEnrolled) as refused:
            await publish(agent, "barred")
        assert refused.value.got == WorkloadBarred.code
        control.standing.admit("crm-adapter")
        await until(lambda: not agent.not_ready())
        await publish(agent, "admitted")


async def test_managed_key_files_are_cut_until_they_are_replaced(
    streams: Streams, base: Path, control: Control
) -> None:
    """An agent whose key others manage never enrols by itself: it waits for other files."""
    after = await streams.stored()
    kids = [write_key(base, control)]
    await control.store.publish(certificate_of(base))
    managed = {"event_key_file": "event.key", "event_cert_file": "event.crt", "file_check_s": 0}
    async with control.answering(), agent_of(base, streams.server.url, **managed) as agent:
        await publish(agent, "managed")
        await control.store.revoke({kids[0]: now_ms() + 1})  # what was stored in this millisecond stays good
        await until(lambda: agent.not_ready() == [NotEnrolled.code])
        kids.append(write_key(base, control))
        await control.store.publish(certificate_of(base))
        await until(lambda: not agent.not_ready())
        await publish(agent, "replaced")
    assert await seen(streams, base, after) == {kids[0]: ["managed"], kids[1]: ["replaced"]}
    assert not control.told


# --- the connection --------------------------------------------------------------------------------------------------


async def test_it_connects_with_its_tls_files(base: Path, tmp_path: Path) -> None:
    """The three files of the settings, relative to the agent's directory, are what it shows and believes."""
    ca, names = MeshCA.create("mesh.local", now_ms=now_ms()), {}
    for name, (chain, key) in {
        "server": ca.issue_tls_server(["127.0.0.1"], now_ms=now_ms()),
        "client": ca.issue_tls_client(OURS, now_ms=now_ms()),
    }.items():
        files = TlsFiles(base / "nats-ca.crt", base / f"{name}.crt", base / f"{name}.key")
        for file, content in zip(files, (ca.root_pem, chain, key), strict=True):
            write_private(file, content)
        names[name] = files
    own = names["server"]
    tls = f"tls {{ cert_file: '{own.cert}', key_file: '{own.key}', ca_file: '{own.ca}', verify: true"
    config = f"{plain_config(tmp_path / 'store')}\n{tls}, handshake_first: true }}"
    server = await NatsServer.start(config, tmp_path / "nats", tls=ServerTls(own, names["client"]))
    given = {"nats_ca_file": "nats-ca.crt", "nats_cert_file": "client.crt", "nats_key_file": "client.key"}
    try:
        async with running(agent_of(base, server.url, **given)) as agent:
            await until(lambda: agent.state()["nats_connected"])
    finally:
        await server.stop()


# --- all of it under load --------------------------------------------------------------------------------------------


async def test_ten_thousand_events_over_three_rotations_and_a_restart(tmp_path: Path) -> None:
    """Every event is accepted, and believed by a consumer once: none is lost, none is refused."""
    base = write_directory(tmp_path / "agent")
    async with Streams.running(tmp_path / "nats") as streams:
        control = await Control.of(streams, base)
        async with control.answering(), agent_of(base, streams.server.url) as agent:
            load = Load(agent, at_least=10_000)
            kids = [kid_of(agent)]

            async def rotated(kid: str, lead_ms: int) -> int:
                cut_ms = now_ms() + lead_ms
                await control.store.revoke({kid: cut_ms})
                await until(lambda: kid_of(agent) != kids[-1])
                kids.append(kid_of(agent))
                return cut_ms

            async with load.running():
                await until(lambda: load.done > 1_000)
                await rotated(kids[-1], 15_000)  # as `mesh trust rotate` does
                await until(lambda: load.done > 3_000)
                streams.server.kill()
                await streams.server.restart()
                await until(lambda: streams.connection.connected)
                cut_ms = await rotated(kids[-1], 1_000)  # as `mesh trust revoke` does
                await until(lambda: now_ms() > cut_ms and load.done > 7_000)
                control.authority.renew_ca(now_ms(), force=True)
                await rotated(agent.keys.signer.issuer_kid, 1_000)
        found = await seen(streams, base, 0)
        found.pop(KeyRevoked.code, None)  # what a busy server stored at its key's cut or after is stored again, anew
        assert sorted(found) == sorted(kids), {key: len(ids) for key, ids in found.items()}
        ids = [id_ for accepted in found.values() for id_ in accepted]
        assert load.done >= 10_000
        assert len(ids) == len(set(ids)) == load.done
        assert set(ids) == load.ids


# --- props -----------------------------------------------------------------------------------------------------------


class Pauses:
    """How long to wait between attempts: always the same. Counts how often somebody asked."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self.taken = 0

    def __len__(self) -> int:
        """As a tuple of one."""
        return 1

    def __getitem__(self, _: int) -> float:
        """The pause."""
        self.taken += 1
        return self._pause_s


class Slow:
    """An attestor that waits."""

    def __init__(self, attestor: FileAttestor, gate: asyncio.Event) -> None:
        self._attestor = attestor
        self._gate = gate

    async def attest(self, token: bytes) -> Attested:
        """See `Attestor`."""
        await self._gate.wait()
        return await self._attestor.attest(token)


class Line:
    """A connection to the server that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._mended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """The URL of its other end."""
        self._mended.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """End what is connected, and let nobody in."""
        self._mended.clear()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def mend(self) -> None:
        """Let whoever asks in."""
        self._mended.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._mended.wait()
        there, onward = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, onward]
        await asyncio.gather(_copy(reader, onward), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


class Load:
    """Callers that publish until there are enough events, and as long as they are told to."""

    def __init__(self, agent: Agent, *, at_least: int) -> None:
        self._agent = agent
        self._at_least = at_least
        self._stop = asyncio.Event()
        self._made = 0
        self.done = 0
        self.ids: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Four of them; leaving waits until each of their requests is answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._publish())
            try:
                yield
            finally:
                self._stop.set()

    async def _publish(self) -> None:
        while self._made < self._at_least or not self._stop.is_set():
            ids = [f"e-{self._made + n}" for n in range(25)]
            self._made += len(ids)
            await self._agent.publish_many([event(id=id_, **DEAL) for id_ in ids])
            self.ids.update(ids)
            self.done += len(ids)
            await asyncio.sleep(0.02)  # the machine is shared: a rotation is to fall into the load, not behind it


def write_key(base: Path, control: Control) -> str:
    """New managed key files; their kid."""
    seed = secrets.token_bytes(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    chain = control.authority.ca.issue(OURS, public, now_ms=now_ms())
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in split_chain(chain))
    write_private(base / "event.crt", pem)
    write_private(base / "event.key", seed_to_pem(seed))
    return key_id(public)


def certificate_of(base: Path) -> bytes:
    """The chain in the managed files, DER."""
    certificates = x509.load_pem_x509_certificates((base / "event.crt").read_bytes())
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates)
