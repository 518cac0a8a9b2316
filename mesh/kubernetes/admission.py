"""One admission review: who asks for the sidecar, and what is answered.

Only a pod that is created, and asks for it by its label, gets one; everything else is let through as it is, so that an
injector in the way never stops a pod that runs.

Source: Kubernetes, AdmissionReview admission.k8s.io/v1.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mesh.errors import BadAdmissionReview, MeshError, NotInjectable
from mesh.kubernetes.fragment import Fragment
from mesh.kubernetes.injection import GRACE, MIN_GRACE_S, Operation, patch
from mesh.kubernetes.names import INJECT

MAX_PARTS = 200_000  # of a body: 20 MiB and 20 ms once read; a large pod with its managed fields has some thousand


class _Kind(msgspec.Struct, frozen=True):
    kind: str
    group: str = ""


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """The part of an admission request that counts here."""

    uid: str
    kind: _Kind
    operation: str
    namespace: str = ""
    sub_resource: str = ""
    object: dict[str, Any] | None = None


class _Review(msgspec.Struct, frozen=True):
    api_version: Literal["admission.k8s.io/v1"] = msgspec.field(name="apiVersion")
    kind: Literal["AdmissionReview"]
    request: Request


class Verdict(msgspec.Struct, frozen=True):
    """What is answered.

    Attributes:
        uid: Of the request.
        patch: What is added; empty where nothing is.
        refusal: Why the pod may not run; None where it may.
    """

    uid: str
    patch: list[Operation] = []
    refusal: MeshError | None = None

    @property
    def outcome(self) -> str:
        """`injected`, `unchanged` or `refused`."""
        return "refused" if self.refusal is not None else "injected" if self.patch else "unchanged"

    def review(self) -> dict[str, Any]:
        """The AdmissionReview that is sent back."""
        response: dict[str, Any] = {"uid": self.uid, "allowed": self.refusal is None}
        if self.refusal is not None:
            error = self.refusal
            message = f"{error.message} ({error.code}). Next: {error.next}"
            response["status"] = {"code": error.status, "reason": "Forbidden", "message": message}
        elif self.patch:
            response["patchType"] = "JSONPatch"
            response["patch"] = base64.b64encode(msgspec.json.encode(self.patch)).decode()
            if any(operation["path"] == GRACE for operation in self.patch):
                response["warnings"] = [f"the pod gets {MIN_GRACE_S} s to end, so that its agent can"]
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def read_review(body: bytes) -> Request:
    """The request of an AdmissionReview.

    Raises:
        BadAdmissionReview: It is none of version v1, or of more parts than a pod can have.
    """
    parts = body.count(b"{") + body.count(b"[") + body.count(b",")
    if parts > MAX_PARTS:
        raise BadAdmissionReview(
            "the review has too many parts",
            expected=f"at most {MAX_PARTS}",
            got=str(parts),
            next="make the pod smaller",
        )
    try:
        return msgspec.json.decode(body, type=_Review).request
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAdmissionReview(
            "that is no AdmissionReview",
            expected="admission.k8s.io/v1",
            got=f"{len(body)} bytes, {type(error).__name__}",
            next="register the injector for admissionReviewVersions [v1]",
        ) from None


def judge(request: Request, fragment: Fragment) -> Verdict:
    """What becomes of *request*."""
    pod = request.object
    is_pod = (request.kind.group, request.kind.kind, request.sub_resource) == ("", "Pod", "")
    if not is_pod or request.operation != "CREATE" or pod is None or not _asks(pod):
        return Verdict(request.uid)
    try:
        return Verdict(request.uid, patch(pod, request.namespace, fragment))
    except NotInjectable as error:
        return Verdict(request.uid, refusal=error)


def _asks(pod: Mapping[str, Any]) -> bool:
    return (pod.get("metadata", {}).get("labels") or {}).get(INJECT) == "true"
