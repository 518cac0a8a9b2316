from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mesh.ca import RootCA
from mesh.control import attest_kubernetes
from mesh.control.attest import FileAttestor
from mesh.control.attest_kubernetes import POD_NAME, POD_UID, REVIEWS_PATH, KubernetesAttestor
from mesh.control.reconcile import now_ms
from mesh.errors import ConfigError, MeshError, NotAttested, Unavailable
from mesh.kubernetes.api import Api
from tests.kubernetes_api import UID, ApiServer, of_user, review, serving

pytestmark = pytest.mark.anyio

SPIFFE = "spiffe://mesh.local/ns/acme/sa/"
TOKEN = "header.payload.signature"


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_token_from_a_file_stands_for_its_agent_alone(tmp_path: Path) -> None:
    """Each agent's own; nothing else is anybody's, and only digests are kept."""
    attestor = FileAttestor(tmp_path / "digests")
    tokens = {}
    for agent in ("desk", "lake"):
        attestor.hand_out(agent, SPIFFE + agent, tmp_path / agent)
        tokens[agent] = (tmp_path / agent).read_bytes().strip()
        assert (tmp_path / agent).stat().st_mode & 0o777 == 0o600
    assert [(await attestor.attest(tokens[agent])).spiffe_id for agent in tokens] == [SPIFFE + "desk", SPIFFE + "lake"]
    for stranger in (b"", b"x", tokens["desk"] + b"\n", tokens["desk"][:-1], tokens["desk"].swapcase()):
        with pytest.raises(NotAttested):
            await attestor.attest(stranger)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "digests").iterdir())
    assert not any(token in kept for token in tokens.values())


async def test_a_token_outlives_a_restart_and_ends_with_the_next(tmp_path: Path) -> None:
    """The same file is not replaced; a new token ends the old one, for the next process too."""
    file = tmp_path / "enrol.token"
    FileAttestor(tmp_path / "digests").hand_out("desk", SPIFFE + "desk", file)
    first = file.read_bytes().strip()
    attestor = FileAttestor(tmp_path / "digests")
    attestor.hand_out("desk", SPIFFE + "other", file)
    assert file.read_bytes().strip() == first
    assert (await attestor.attest(first)).spiffe_id == SPIFFE + "other"
    attestor.hand_out("desk", SPIFFE + "desk", file, anew=True)
    second = file.read_bytes().strip()
    for known in (attestor, FileAttestor(tmp_path / "digests")):
        with pytest.raises(NotAttested):
            await known.attest(first)
        assert (await known.attest(second)).spiffe_id == SPIFFE + "desk"


async def test_a_file_that_we_did_not_write_is_no_token(tmp_path: Path) -> None:
    """What somebody put where the token belongs is replaced, not believed."""
    file = tmp_path / "enrol.token"
    file.write_bytes(b"guessed\n")
    attestor = FileAttestor(tmp_path / "digests")
    attestor.hand_out("desk", SPIFFE + "desk", file)
    with pytest.raises(NotAttested):
        await attestor.attest(b"guessed")
    assert (await attestor.attest(file.read_bytes().strip())).spiffe_id == SPIFFE + "desk"


def test_a_damaged_digest_is_an_error(tmp_path: Path) -> None:
    """Not a workload that quietly cannot enrol."""
    FileAttestor(tmp_path).hand_out("desk", SPIFFE + "desk", tmp_path / "token")
    (tmp_path / "desk.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        FileAttestor(tmp_path)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    """An API server."""
    (tmp_path / "api").mkdir()
    async with serving(tmp_path / "api") as server:
        yield server


@pytest.fixture
def attestor(api: ApiServer, tmp_path: Path) -> KubernetesAttestor:
    """Asks that server."""
    (tmp_path / "token").write_text("ours-1\n")
    return KubernetesAttestor(
        Api(api.url, ca_file=api.ca_file, token_file=tmp_path / "token"), trust_domain="mesh.local"
    )


async def test_a_pod_is_who_the_api_server_says(attestor: KubernetesAttestor, api: ApiServer, tmp_path: Path) -> None:
    """Namespace and service account make the id, the pod is kept for the record; our own token is read each time."""
    attested = await attestor.attest(TOKEN.encode())
    assert attested.spiffe_id == "spiffe://mesh.local/ns/acme/sa/crm-adapter"
    assert (attested.by, attested.facts["pod_uid"]) == ("kubernetes", UID)
    assert TOKEN not in repr(attested)
    (tmp_path / "token").write_text("ours-2\n")
    await attestor.attest(TOKEN.encode())
    assert [bearer for bearer, _ in api.asked] == ["Bearer ours-1", "Bearer ours-2"]
    assert api.asked[0][1]["spec"] == {"token": TOKEN, "audiences": ["mesh-ca"]}


@pytest.mark.parametrize(
    ("answered", "match"),
    [
        (review(authenticated=False, error="[invalid bearer token, token has expired]"), "does not know"),
        (review(authenticated=False), "does not know"),
        ({"kind": "TokenReview", "status": {}}, "does not know"),
        (review(audiences=["https://kubernetes.default.svc"]), "another audience"),
        (review(audiences=None), "another audience"),  # a server that knows no audiences ignores ours
        (of_user(username="system:node:worker-1"), "no service account's"),
        (of_user(username="system:serviceaccount:acme:crm-adapter:x"), "no service account's"),
        (of_user(username="system:serviceaccount:acme/../root:crm-adapter"), "no service account's"),
        (of_user(username="system:serviceaccount:acme:crm-adapter\n"), "no service account's"),
        (of_user(username="system:serviceaccount::crm-adapter"), "no service account's"),
        (of_user(extra=None), "bound to no pod"),
        (of_user(extra={POD_NAME: ["desk-0"], POD_UID: []}), "bound to no pod"),
    ],
)
async def test_a_token_that_is_no_agent_s_is_refused(
    attestor: KubernetesAttestor, api: ApiServer, answered: dict[str, Any], match: str
) -> None:
    """Not known, for somebody else, no service account's, or one that nothing ends."""
    api.answer = lambda: web.json_response(answered, status=201)
    with pytest.raises(NotAttested, match=match) as refused:
        await attestor.attest(TOKEN.encode())
    assert TOKEN not in str(refused.value.as_dict())


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda: web.json_response({"kind": "Status", "code": 403}, status=403), "lets us review no tokens"),
        (lambda: web.json_response({"kind": "Status", "code": 401}, status=401), "lets us review no tokens"),
        (lambda: web.json_response({"kind": "Status", "code": 429}, status=429), "is no TokenReview"),
        (lambda: web.json_response(review(), status=500), "is no TokenReview"),
        (lambda: web.json_response({"kind": "Status"}, status=201), "is no TokenReview"),
        (lambda: web.Response(body=b"\xff", status=201), "is no TokenReview"),
        (lambda: web.json_response(text=json.dumps(review()) + " " * 70_000, status=201), "is no TokenReview"),
        (lambda: web.Response(status=307, headers={"Location": REVIEWS_PATH}), "is no TokenReview"),
    ],
)
async def test_an_api_server_that_gives_no_review_is_away(
    attestor: KubernetesAttestor, api: ApiServer, answer: Callable[[], web.StreamResponse], match: str
) -> None:
    """Nobody is attested, and the agent may ask again; our token goes to no other server."""
    api.answer = answer
    with pytest.raises(Unavailable, match=match):
        await attestor.attest(TOKEN.encode())
    assert len(api.asked) == 1


async def test_an_api_server_that_does_not_answer_costs_its_time_limit(
    attestor: KubernetesAttestor, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, a closed port and a file that is missing are all `unavailable`."""
    monkeypatch.setattr(attest_kubernetes, "TIMEOUT_S", 0.2)
    api.silent = True
    with pytest.raises(Unavailable, match="did not answer"):
        await attestor.attest(TOKEN.encode())
    closed = KubernetesAttestor(
        Api("https://127.0.0.1:1", ca_file=api.ca_file, token_file=tmp_path / "token"), trust_domain="mesh.local"
    )
    with pytest.raises(Unavailable, match="did not answer"):
        await closed.attest(TOKEN.encode())
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match="cannot be asked"):
        await closed.attest(TOKEN.encode())


async def test_an_api_server_of_another_ca_is_told_nothing(api: ApiServer, tmp_path: Path) -> None:
    """The system's roots do not count, and neither does anybody else's CA."""
    (tmp_path / "token").write_text("ours")
    (tmp_path / "ca.crt").write_bytes(RootCA.create("mesh.local", now_ms=now_ms()).cert_pem)
    stranger = KubernetesAttestor(
        Api(api.url, ca_file=tmp_path / "ca.crt", token_file=tmp_path / "token"), trust_domain="mesh.local"
    )
    with pytest.raises(Unavailable, match="did not answer"):
        await stranger.attest(TOKEN.encode())
    assert api.asked == []


async def test_what_cannot_be_a_token_is_not_sent(attestor: KubernetesAttestor, api: ApiServer) -> None:
    """Nor is anybody asked in the clear."""
    for token in (b"\xff", b"x" * 8193):
        with pytest.raises(NotAttested, match="no service-account token"):
            await attestor.attest(token)
    assert api.asked == []
    with pytest.raises(ConfigError, match="over TLS alone"):
        Api("http://127.0.0.1:1", ca_file=Path(), token_file=Path())


@pytest.mark.parametrize(
    ("answered", "status", "says"),
    [({}, 403, "service account"), (review(audiences=[]), 201, "serviceAccountToken")],
)
async def test_every_refusal_says_what_to_do(
    attestor: KubernetesAttestor, api: ApiServer, answered: dict[str, Any], status: int, says: str
) -> None:
    """An operator reads the agent's log and knows which role or volume is missing."""
    api.answer = lambda: web.json_response(answered, status=status)
    with pytest.raises(MeshError) as refused:
        await attestor.attest(TOKEN.encode())
    assert says in refused.value.next
