"""The admission policy's expressions, evaluated as the API server does: by Google's CEL, over pods as they arrive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from cel_expr_python import cel

from tests.k8s.objects import Object, of_kind, pods_of
from tests.k8s.rendering import rendered

POLICY = next(of_kind(rendered("overlays/prod"), "ValidatingAdmissionPolicy"))


def _evaluated(text: str, **given: Any) -> Any:
    env = cel.NewEnv(variables=dict.fromkeys(given, cel.Type.DYN))
    return env.compile(text).eval(data=given).plain_value()


def refusals(pod: Object, before: Object | None = None, part: str = "") -> list[str]:
    """The messages of the validations that do not hold for *pod*: created, or changed from *before* by *part* of it."""
    request = {"operation": "UPDATE" if before else "CREATE"} | ({"subResource": part} if part else {})
    given: dict[str, Any] = {"object": pod, "oldObject": before, "request": request, "variables": {}}
    for variable in POLICY["spec"]["variables"]:
        given["variables"][variable["name"]] = _evaluated(variable["expression"], **given)
    return [v["message"] for v in POLICY["spec"]["validations"] if _evaluated(v["expression"], **given) is not True]


def _pod(name: str = "examples/consumer") -> Object:
    """A pod of an example, as the API server gets it."""
    (pod,) = pods_of(rendered(name))
    return {"metadata": {"labels": dict(pod.labels)}, "spec": copy.deepcopy(pod.spec)}


@pytest.mark.parametrize("name", ["examples/adapter", "examples/consumer"])
def test_pod_with_its_agent_is_let_in(name: str) -> None:
    """With the native sidecar, and with the agent as a plain container."""
    pod = _pod(name)
    assert refusals(pod) == []
    (agent,) = pod["spec"].pop("initContainers")
    agent.pop("restartPolicy")
    pod["spec"]["containers"].append(agent)
    assert refusals(pod) == []


def _mount(container: Object, volume: str) -> None:
    container.setdefault("volumeMounts", []).append({"name": volume, "mountPath": "/x"})


def _volume(spec: Object, source: Object) -> None:
    spec["volumes"].append({"name": "mine", **source})


def _from(secret: str) -> Object:
    return {"valueFrom": {"secretKeyRef": {"name": secret, "key": "nats.creds"}}}


TOKEN = {"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "mesh-ca"}}]}}
REFUSED: dict[str, tuple[Callable[[Object], Any], str]] = {
    "no agent": (lambda s: s.pop("initContainers"), "has to have its agent"),
    "an agent that ends before its application": (
        lambda s: s["initContainers"][0].pop("restartPolicy"),
        "has to have its agent",
    ),
    "another container first": (
        lambda s: s["initContainers"].insert(0, {"name": "migrate", "image": "x:1"}),
        "the first of initContainers",
    ),
    "the application has the credentials": (
        lambda s: _mount(s["containers"][0], "mesh-credentials"),
        "only the container mesh-agent",
    ),
    "an init container has them": (
        lambda s: s["initContainers"].append(
            {"name": "x", "volumeMounts": [{"name": "mesh-tls", "mountPath": "/x"}]},
        ),
        "only the container mesh-agent",
    ),
    "somebody who looks has them": (
        lambda s: s.update(
            ephemeralContainers=[{"name": "debug", "volumeMounts": [{"name": "mesh-state", "mountPath": "/x"}]}]
        ),
        "only the container mesh-agent",
    ),
    "the Secret under another name": (
        lambda s: _volume(s, {"secret": {"secretName": "mesh-desk"}}),
        "in the agent's volumes alone",
    ),
    "another agent's Secret": (
        lambda s: _volume(s, {"secret": {"secretName": "mesh-crm-adapter"}}),
        "in the agent's volumes alone",
    ),
    "the Secret as a variable": (
        lambda s: s["containers"][0]["env"].append({"name": "X", **_from("mesh-desk")}),
        "no variables of another",
    ),
    "the Secret as variables": (
        lambda s: s["containers"][0].update(envFrom=[{"secretRef": {"name": "mesh-desk"}}]),
        "no variables of another",
    ),
    "the Secret as a variable of somebody who looks": (
        lambda s: s.update(ephemeralContainers=[{"name": "debug", "env": [{"name": "X", **_from("mesh-desk-tls")}]}]),
        "no variables of another",
    ),
    "the Secret as variables of somebody who looks": (
        lambda s: s.update(ephemeralContainers=[{"name": "debug", "envFrom": [{"secretRef": {"name": "mesh-desk"}}]}]),
        "no variables of another",
    ),
    "somebody who looks into the agent": (
        lambda s: s.update(ephemeralContainers=[{"name": "debug", "targetContainerName": "mesh-agent"}]),
        "nobody looks into",
    ),
    "an agent that runs something else": (
        lambda s: s["initContainers"][0].update(command=["sh"]),
        "no command of its own",
    ),
    "the Secret among others": (
        lambda s: _volume(s, {"projected": {"sources": [{"secret": {"name": "mesh-desk-tls"}}]}}),
        "in the agent's volumes alone",
    ),
    "an enrolment token": (lambda s: _volume(s, TOKEN), "in the agent's volumes alone"),
    "the node's network": (lambda s: s.update(hostNetwork=True), "shares neither"),
    "the node's processes": (lambda s: s.update(hostPID=True), "shares neither"),
    "each other's processes": (lambda s: s.update(shareProcessNamespace=True), "shares neither"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_pod_is_refused(why: str) -> None:
    """What would run without its agent, or with what is the agent's, with the reason."""
    pod = _pod()
    plant, said = REFUSED[why]
    plant(pod["spec"])
    (message,) = refusals(pod)
    assert said in message


def test_application_may_have_secrets_of_its_own() -> None:
    """As volumes and variables, beside the token of the door; and somebody may look at it."""
    pod = _pod()
    _volume(pod["spec"], {"secret": {"secretName": "crm-api"}})
    _volume(pod["spec"], {"projected": {"sources": [{"secret": {"name": "mesh-desk-door"}}]}})
    pod["spec"]["containers"][0] |= {"env": [{"name": "X", **_from("crm-api")}], "envFrom": [{"configMapRef": {}}]}
    pod["spec"]["ephemeralContainers"] = [{"name": "debug", "targetContainerName": "consumer"}]
    assert refusals(pod) == []


def test_pod_that_runs_is_not_kept_from_ending() -> None:
    """One from before the policy loses its finalizers, and a label that is no question; who asks anew is judged."""
    old = {
        "metadata": {"labels": {"mesh.dev/inject": "true"}},
        "spec": {"containers": [{"name": "app", "image": "a:1"}]},
    }
    assert refusals(old)
    assert refusals(old, before=old) == []
    assert refusals(old, before=old, part="ephemeralcontainers")
    assert refusals(old, before={**old, "metadata": {"labels": {"app": "x"}}})
    assert refusals(old, before={**old, "metadata": {}})


def test_running_agent_keeps_its_image() -> None:
    """Whoever may patch pods puts nothing else where the credentials are; the application's image is its own."""
    before, after = _pod(), _pod()
    after["spec"]["containers"][0]["image"] = "app:2"
    assert refusals(after, before=before) == []
    after["spec"]["initContainers"][0]["image"] = "elsewhere/app:2"
    (message,) = refusals(after, before=before)
    assert "image of a running agent" in message


def test_bare_pod_is_refused_and_no_expression_fails() -> None:
    """A pod with nothing that is optional: an expression that fails would refuse it with another message."""
    (message,) = refusals({"metadata": {}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}})
    assert "has to have its agent" in message


def test_policy_asks_about_pods_that_want_the_mesh() -> None:
    """By the label, on creation and on change, ephemeral containers as well; what cannot be asked is refused."""
    constraints = POLICY["spec"]["matchConstraints"]
    assert constraints["objectSelector"] == {"matchLabels": {"mesh.dev/inject": "true"}}
    assert constraints["resourceRules"][0]["resources"] == ["pods", "pods/ephemeralcontainers"]
    assert POLICY["spec"]["failurePolicy"] == "Fail"
    (binding,) = of_kind(rendered("overlays/prod"), "ValidatingAdmissionPolicyBinding")
    assert binding["spec"] == {"policyName": POLICY["metadata"]["name"], "validationActions": ["Deny"]}
