"""What `kubectl apply -k` would send: it fits the API of each version, and is right beyond that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import yaml

from mesh import __version__
from tests.k8s.objects import Object, of_kind, pods_of
from tests.k8s.rendering import DEPLOY, WHOLE, rendered, schema_faults, versions
from tests.k8s.semantics import faults

# What whoever installs makes, as README.md says.
GIVEN = {
    "Secret/mesh-control-keys", "Secret/mesh-control-tls", "Secret/mesh-nats-operator", "Secret/nats-tls",
    "ConfigMap/kube-root-ca.crt", "ConfigMap/mesh-trust",
    *(f"Secret/mesh-{agent}{end}" for agent in ("crm-adapter", "desk") for end in ("", "-door")),
}  # fmt: skip
ELSEWHERE = [
    {"app.kubernetes.io/name": "nats"},
    {"mesh.dev/inject": "true"},
]  # the upstream chart's pods, and adapters'
FRAGMENT = DEPLOY / "components/native-sidecar/fragment/sidecar.yaml"


def checked(docs: list[Object]) -> list[str]:
    """Everything we find wrong."""
    return [*schema_faults(docs, versions()[-1]), *faults(docs, given=GIVEN, elsewhere=ELSEWHERE)]


@pytest.mark.parametrize("name", WHOLE)
def test_manifests_are_right(name: str) -> None:
    """What a person may apply has none of the faults that we know."""
    assert faults(rendered(name), given=GIVEN, elsewhere=ELSEWHERE) == []


@pytest.mark.parametrize("version", versions())
def test_manifests_fit_the_api(version: str) -> None:
    """Every object fits the schema of every version from 1.33 on, without a field that it does not know."""
    seen: dict[str, Object] = {}
    for name in WHOLE:
        for doc in rendered(name):
            seen.setdefault(repr(doc), doc)
    assert schema_faults(list(seen.values()), version) == []


def test_versions_are_those_of_the_wheel() -> None:
    """A newer wheel brings newer versions into the test above by itself."""
    assert versions()[0] == "1.33"
    assert len(versions()) >= 5


# --- seeded faults ---------------------------------------------------------------------------------------------------


def _consumer() -> tuple[list[Object], Object, Object, Object]:
    """The example consumer, its pod's spec, its application and its agent."""
    docs = rendered("examples/consumer")
    (pod,) = pods_of(docs)
    return docs, pod.spec, pod.spec["containers"][0], pod.spec["initContainers"][0]


def _of(docs: list[Object], kind: str) -> Object:
    return next(of_kind(docs, kind))


def _plain_init(spec: Object, app: Object, at: int = 1, **more: Any) -> None:
    keep = ("image", "securityContext", "resources")
    spec["initContainers"].insert(at, {"name": "migrate", **{k: app[k] for k in keep}, **more})


Plant: TypeAlias = Callable[[list[Object], Object, Object, Object], Any]
_PROBE = {"httpGet": {"path": "/", "port": 80}}
SEEDED: dict[str, tuple[Plant, str]] = {  # the thirteen that other checkers were measured with
    "a field that does not exist": (lambda d, s, a, g: a.update(imagePullPolcy="IfNotPresent"), "imagePullPolcy"),
    "an enumeration's value": (lambda d, s, a, g: a.update(imagePullPolicy="Sometimes"), "Sometimes"),
    "a quantity": (lambda d, s, a, g: a["resources"]["requests"].update(memory="32Mb"), "is no quantity"),
    "a selector": (
        lambda d, s, a, g: _of(d, "Deployment")["spec"]["selector"]["matchLabels"].update(app="x"),
        "does not take its own pods",
    ),
    "a port name": (
        lambda d, s, a, g: a.update(ports=[{"name": "a-very-long-port-name", "containerPort": 1}]),
        "is not 1 to 15",
    ),
    "a volume": (
        lambda d, s, a, g: a["volumeMounts"].append({"name": "cache", "mountPath": "/c"}),
        "no volume cache",
    ),
    "a probe of a plain init container": (
        lambda d, s, a, g: _plain_init(s, a, livenessProbe=_PROBE),
        "a plain init container has no livenessProbe",
    ),
    "a request above its limit": (lambda d, s, a, g: a["resources"]["requests"].update(memory="1Gi"), "more memory"),
    "both fields of a disruption budget": (
        lambda d, s, a, g: _of(d, "PodDisruptionBudget")["spec"].update(minAvailable=1),
        "one of minAvailable and maxUnavailable",
    ),
    "a text for a number": (lambda d, s, a, g: _of(d, "Deployment")["spec"].update(replicas="2"), "replicas"),
    "privileged without escalation": (lambda d, s, a, g: a["securityContext"].update(privileged=True), "refuses both"),
    "the port of a probe": (
        lambda d, s, a, g: g["livenessProbe"]["httpGet"].update(port="health"),
        "a port health that it does not have",
    ),
    "no seccomp profile": (lambda d, s, a, g: s["securityContext"].pop("seccompProfile"), "no seccomp"),
}
OURS: dict[str, tuple[Plant, str]] = {  # and what is this project's own
    "an image without a version": (lambda d, s, a, g: a.update(image="registry:5000/app"), "no tag and no digest"),
    "an image that moves": (lambda d, s, a, g: a.update(image="app:latest"), "`latest`"),
    "a tag that is always pulled": (lambda d, s, a, g: a.update(imagePullPolicy="Always"), "another image tomorrow"),
    "credentials for the application": (
        lambda d, s, a, g: a["volumeMounts"].append({"name": "mesh-credentials", "mountPath": "/c"}),
        "which is the agent's",
    ),
    "an agent that is not first": (
        lambda d, s, a, g: _plain_init(s, a, at=0),
        "not the first",
    ),
    "an agent that ends before its application": (lambda d, s, a, g: g.pop("restartPolicy"), "no native sidecar"),
    "an agent that goes on pulling": (lambda d, s, a, g: g.pop("lifecycle"), "no preStop"),
    "a switch in the network": (
        lambda d, s, a, g: g["lifecycle"].update(preStop={"httpGet": {"path": "/drain", "port": 8482}}),
        "a switch in the network",
    ),
    "a grace that is too short": (lambda d, s, a, g: s.update(terminationGracePeriodSeconds=20), "below the"),
    "a drain that is too long": (
        lambda d, s, a, g: g["env"].append({"name": "MESH_AGENT_DRAIN_S", "value": "60"}),
        "below the",
    ),
    "a hasty liveness probe": (lambda d, s, a, g: g["livenessProbe"].update(failureThreshold=3), "less than 200 s"),
    "a spool larger than its disk": (
        lambda d, s, a, g: next(e for e in g["env"] if "SPOOL_MAX" in e["name"]).update(value="536870912"),
        "less than twice",
    ),
    "a limit of CPU": (lambda d, s, a, g: g["resources"]["limits"].update(cpu="100m"), "take seconds"),
    "a token of the API server": (lambda d, s, a, g: s.pop("automountServiceAccountToken"), "token of the API server"),
    "files that open to the group": (
        lambda d, s, a, g: s["securityContext"].pop("fsGroupChangePolicy"),
        "to the group",
    ),
    "the node's network": (lambda d, s, a, g: s.update(hostNetwork=True), "hostNetwork"),
    "a Secret nobody makes": (
        lambda d, s, a, g: next(v for v in s["volumes"] if v["name"] == "mesh-door")["secret"].update(secretName="x"),
        "nobody makes Secret/x",
    ),
    "a secret in the manifests": (
        lambda d, s, a, g: d.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}),
        "a secret is no manifest",
    ),
    "a secret in a variable": (
        lambda d, s, a, g: a["env"].append({"name": "CRM_PASSWORD", "value": "hunter2"}),
        "is written out",
    ),
    "a named port in a network policy": (
        lambda d, s, a, g: _of(d, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0].update(port="mesh-health"),
        "is no number",
    ),
    "a network policy for nobody": (
        lambda d, s, a, g: _of(d, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].update(x="y"),
        "selects no pod",
    ),
    "a broken pod that keeps its node": (
        lambda d, s, a, g: _of(d, "PodDisruptionBudget")["spec"].pop("unhealthyPodEvictionPolicy"),
        "from being drained",
    ),
}


def test_there_are_thirteen() -> None:
    """None of the measured faults was dropped."""
    assert len(SEEDED) == 13


@pytest.mark.parametrize("fault", [*SEEDED, *OURS])
def test_seeded_fault_is_found(fault: str) -> None:
    """Each fault that is put into good manifests is found; that there are no others, a test above says."""
    docs, spec, app, agent = _consumer()
    plant, said = {**SEEDED, **OURS}[fault]
    plant(docs, spec, app, agent)
    assert [found for found in checked(docs) if said in found], checked(docs)


def _hook(docs: list[Object]) -> Object:
    hook: Object = _of(docs, "MutatingWebhookConfiguration")["webhooks"][0]
    return hook


def _drop(docs: list[Object], kind: str) -> None:
    docs[:] = [doc for doc in docs if doc["kind"] != kind]


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda d: _of(d, "ClusterRole")["rules"][0].update(verbs=["*"]), "a wildcard in verbs"),
        (lambda d: _of(d, "ClusterRole")["rules"][0].update(resources=["secrets"]), "every Secret"),
        (lambda d: _of(d, "Service")["spec"]["selector"].update(x="y"), "selects no pod"),
        (lambda d: _of(d, "ServiceMonitor")["spec"]["endpoints"][0].update(port="http"), "no port http"),
        (lambda d: _of(d, "PodMonitor")["spec"]["selector"]["matchLabels"].update(x="y"), "selects nothing"),
        (lambda d: _of(d, "ClusterRoleBinding")["roleRef"].update(name="x"), "there is no ClusterRole/x"),
        (lambda d: d.append(_of(d, "Namespace")), "there are two"),
        (lambda d: _hook(d).update(failurePolicy="Ignore"), "run without its agent"),
        (lambda d: _hook(d).update(objectSelector={}), "every pod of the cluster"),
        (lambda d: _hook(d).pop("namespaceSelector"), "that it needs itself"),
        (lambda d: _hook(d).update(timeoutSeconds=30), "more than 10 s"),
        (lambda d: _hook(d)["rules"][0].update(resources=["*/*"]), "a wildcard in its rules"),
        (lambda d: _hook(d)["clientConfig"]["service"].update(port=8443), "no port 8443"),
        (lambda d: _hook(d)["clientConfig"]["service"].update(name="x"), "there is no such Service"),
        (lambda d: _drop(d, "Certificate"), "whose certificate"),
    ],
)
def test_fault_in_the_control_plane_is_found(plant: Any, said: str) -> None:
    """The same for what only the control plane has."""
    docs = rendered("overlays/prod")
    plant(docs)
    assert [found for found in faults(docs, given=GIVEN, elsewhere=ELSEWHERE) if said in found]


# --- one source ------------------------------------------------------------------------------------------------------


def test_sidecar_has_this_version() -> None:
    """The image that the fragment names, which the injector takes as it is, is this version's."""
    fragment = yaml.safe_load(FRAGMENT.read_text())["spec"]["template"]["spec"]
    assert fragment["initContainers"][0]["image"] == f"nats-event-mesh:{__version__}"
    images = {c["image"] for name in WHOLE for pod in pods_of(rendered(name)) for c in pod.containers}
    assert all(image.endswith(f"nats-event-mesh:{__version__}") for image in images if not image.startswith("nats:"))


def test_plain_sidecar_is_the_same_container() -> None:
    """The component for older clusters differs in where the agent stands, and in nothing else."""
    native = yaml.safe_load(FRAGMENT.read_text())["spec"]["template"]["spec"]
    plain = yaml.safe_load((DEPLOY / "components/plain-sidecar/sidecar.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = native["initContainers"]
    assert container.pop("restartPolicy") == "Always"
    assert plain == {"containers": [container], "volumes": native["volumes"]}


def test_fragment_has_no_comments_inside() -> None:
    """A comment within a patch breaks kustomize where it meets a list in brackets."""
    text = FRAGMENT.read_text()
    assert "#" not in text[text.index("apiVersion") :]


def test_every_directory_is_rendered() -> None:
    """No overlay, example or component is without a test."""
    found = {str(p.parent.relative_to(DEPLOY)) for p in DEPLOY.rglob("kustomization.yaml")}
    components = {name for name in found if name.startswith("components/")}
    used = {"base/crds", "components/native-sidecar/fragment", "observability"}
    assert found - components - used == set(WHOLE)
    assert {name.split("/")[1] for name in components} == set(COMPONENTS)


# --- components that no overlay has ----------------------------------------------------------------------------------

COMPONENTS = {  # each on top of what it is for
    "admission-policy": "base",
    "agent-certificate": "examples/consumer",
    "cert-manager": "base",
    "injector-webhook": "overlays/prod",
    "keda": "examples/consumer",
    "native-sidecar": "examples/consumer",
    "netpol": "examples/consumer",
    "plain-sidecar": "plain",
    "prometheus-operator": "base",
    "spiffe": "examples/consumer",
}
