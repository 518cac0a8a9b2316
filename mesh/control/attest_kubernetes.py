"""Attestation in Kubernetes: a projected service-account token, and the API server's TokenReview of it.

    volumes:
    - projected: {sources: [{serviceAccountToken: {path: enrol.token, audience: mesh-ca, expirationSeconds: 600}}]}

The audience keeps a token that was stolen for us from opening anything else, and one that is for the API server from
enrolling. The pod it is bound to ends it: a token that outlives its pod is refused by the API server. Who reviews needs
the right to create `tokenreviews` (ClusterRole `mesh-control-attest`), nothing more.

Source: Kubernetes API, authentication.k8s.io/v1 TokenReview.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import msgspec

from mesh.control.attest import Attested
from mesh.errors import NotAttested, Unavailable

if TYPE_CHECKING:
    from mesh.kubernetes.api import Api

AUDIENCE = "mesh-ca"
TIMEOUT_S = 5.0  # of one review; it takes a few milliseconds, and the agent asks again
MAX_TOKEN_BYTES = 8192  # one has about 1,200
MAX_ANSWER_BYTES = 65_536  # it carries the token back, and names of groups
MAX_REVIEWS = 16  # under way at once: a whole mesh that restarts does not fall upon the API server
REVIEWS_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"

_USER = re.compile(r"system:serviceaccount:([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?):([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)")


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct, frozen=True):
    authenticated: bool = False
    audiences: list[str] | None = None
    error: str = ""
    user: _User = _User()


class _Review(msgspec.Struct, frozen=True):
    kind: str
    status: _Status = _Status()


class KubernetesAttestor:
    """Asks the API server whose a token is.

    Args:
        api: The API server.
        trust_domain: Of the ids: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
        audience: The audience that tokens have to be for.
    """

    def __init__(self, api: Api, *, trust_domain: str, audience: str = AUDIENCE) -> None:
        self._api = api
        self._trust_domain = trust_domain
        self._audience = audience
        self._room = asyncio.Semaphore(MAX_REVIEWS)

    async def attest(self, token: bytes) -> Attested:
        """See `Attestor`."""
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise _refused("the enrolment token is no service-account token", got=f"{len(token)} bytes")
        async with self._room:
            status = await self._review(token.decode())
        if not status.authenticated:
            raise _refused("the API server does not know the enrolment token", got=status.error[:200])
        if self._audience not in (status.audiences or ()):
            raise _refused("the enrolment token is for another audience", got=", ".join(status.audiences or ())[:200])
        matched = _USER.fullmatch(status.user.username)
        if matched is None:
            raise _refused("the enrolment token is no service account's", got=status.user.username[:200])
        pod_uid = _first(status.user, POD_UID)
        if not pod_uid:  # `kubectl create token` makes such: nothing would end it
            raise _refused("the enrolment token is bound to no pod", got="a token without a pod")
        namespace, account = matched[1], matched[3]
        facts = {"namespace": namespace, "pod": _first(status.user, POD_NAME), "pod_uid": pod_uid}
        return Attested(f"spiffe://{self._trust_domain}/ns/{namespace}/sa/{account}", "kubernetes", facts)

    async def _review(self, token: str) -> _Status:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        answer = await self._api.call("POST", REVIEWS_PATH, body, timeout_s=TIMEOUT_S, most=MAX_ANSWER_BYTES)
        return _status(answer.status, answer.content)


def _status(code: int, content: bytes) -> _Status:
    """The status of a TokenReview that was answered with *code*."""
    if code in {401, 403}:
        raise Unavailable(
            "the API server lets us review no tokens",
            expected="the right to create tokenreviews: the ClusterRole mesh-control-attest",
            got=f"HTTP {code}",
            next="bind it to the control plane's service account",
        )
    try:
        if code in {200, 201} and len(content) <= MAX_ANSWER_BYTES:
            review = msgspec.json.decode(content, type=_Review)
            if review.kind == "TokenReview":
                return review.status
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # said below, like every other answer that is no review
    raise Unavailable("the API server's answer is no TokenReview", got=f"HTTP {code}, {len(content)} bytes")


def _first(user: _User, name: str) -> str:
    return next(iter((user.extra or {}).get(name, [])), "")


def _refused(message: str, *, got: str) -> NotAttested:
    return NotAttested(
        message,
        expected=f"a projected service-account token of the agent's own pod, for the audience {AUDIENCE}",
        got=got,
        next="mount a serviceAccountToken volume with that audience and name it in enrol_token_file",
    )
