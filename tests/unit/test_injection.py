"""What the injector makes of a pod, asked with the reviews of a real API server (`tests/tables/kubernetes`)."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import BadAdmissionReview, ConfigError, NotInjectable
from mesh.kubernetes.admission import judge, read_review
from mesh.kubernetes.fragment import Fragment, read_fragment
from mesh.kubernetes.injection import patch
from mesh.kubernetes.names import INJECTED
from tests.conftest import ROOT
from tests.json_patch import applied

RECORDED = ROOT / "tests/tables/kubernetes/admission"
FRAGMENT_FILE = ROOT / "deploy/k8s/components/native-sidecar/fragment/sidecar.yaml"
FRAGMENT = read_fragment(FRAGMENT_FILE.read_text())
BARE = [
    "request_create_bare_pod", "request_create_dry_run", "request_create_existing_init_containers",
    "request_create_job_pod", "request_create_pss_restricted", "request_create_replicaset_pod",
    "reinvocation_1_first_call", "reinvocation_by_builtin_1_first_call",
]  # fmt: skip


REVIEW = (
    b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1",'
    b'"request":{"uid":"1","operation":"CREATE","kind":{"kind":"Pod"},"object":{"a":[%b]}}}'
)


def recorded(name: str) -> dict[str, Any]:
    """One recorded body."""
    return dict(json.loads((RECORDED / f"{name}.json").read_text()))


def pod_of(name: str = "request_create_replicaset_pod") -> dict[str, Any]:
    """The pod of a recorded request."""
    return dict(recorded(name)["request"]["object"])


def injected(pod: dict[str, Any], fragment: Fragment = FRAGMENT) -> dict[str, Any]:
    """*pod* with its sidecar."""
    return dict(applied(pod, patch(pod, "store", fragment)))


def defaulted(pod: dict[str, Any]) -> dict[str, Any]:
    """*pod* as the server sent it again in `reinvocation_by_builtin_2`: with defaults, and a token for everybody."""
    made = copy.deepcopy(pod)
    token = next(v["name"] for v in made["spec"]["volumes"] if v["name"].startswith("kube-api-access"))
    for container in made["spec"]["initContainers"]:
        container |= {
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        }
        where = {"name": token, "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        container["volumeMounts"] = [*container.get("volumeMounts", []), where]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                container[probe] |= {"successThreshold": 1}
                container[probe]["httpGet"] |= {"scheme": "HTTP"}
        for variable in container.get("env", []):
            if variable.get("value") == "":
                del variable["value"]
            elif "valueFrom" in variable:
                variable["valueFrom"]["fieldRef"] |= {"apiVersion": "v1"}
    return made


# --- what a pod gets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BARE)
def test_a_pod_that_asks_gets_its_agent_first(name: str) -> None:
    """The sidecar is before every other init container, with all of its volumes, in the name of the pod's account."""
    pod = injected(pod_of(name))["spec"]
    sidecar = pod["initContainers"][0]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("mesh-agent", "Always")
    assert sidecar == FRAGMENT.container
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) >= {mount["name"] for mount in sidecar["volumeMounts"]}
    assert volumes["mesh-credentials"]["secret"]["secretName"] == "mesh-orders"
    assert volumes["mesh-config"]["configMap"]["name"] == "mesh-orders"
    assert "AGENT" not in json.dumps(pod["volumes"])


@pytest.mark.parametrize("name", BARE)
def test_an_application_gets_the_token_of_the_door_and_no_other_volume(name: str) -> None:
    """Whatever shares the pod's address, only the sidecar mounts the credentials."""
    pod = injected(pod_of(name))["spec"]
    for container in pod["containers"]:
        mounts = [m for m in container["volumeMounts"] if m["name"] in FRAGMENT.volume_names]
        assert mounts == [{"name": "mesh-door", "mountPath": "/etc/mesh/door", "readOnly": True}]
    for container in pod["initContainers"][1:]:
        assert not [m for m in container.get("volumeMounts", []) if m["name"] in FRAGMENT.volume_names]


@pytest.mark.parametrize("name", BARE)
def test_what_was_there_stays(name: str) -> None:
    """Nothing of the pod is taken away or reordered."""
    before, after = pod_of(name), injected(pod_of(name))
    assert after["spec"]["initContainers"][1:] == before["spec"].get("initContainers", [])
    for old, new in zip(before["spec"]["containers"], after["spec"]["containers"], strict=True):
        assert {**new, "volumeMounts": new["volumeMounts"][: len(old["volumeMounts"])]} == old
    assert after["spec"]["volumes"][: len(before["spec"]["volumes"])] == before["spec"]["volumes"]
    kept = {k: v for k, v in after["metadata"]["annotations"].items() if k != INJECTED}
    assert kept == before["metadata"].get("annotations", {})


def test_in_a_team_s_namespace_a_label_of_the_pod_names_the_tenant() -> None:
    """A pod of namespace acme-billing is no agent of a tenant acme-billing; its id has the namespace all the same."""
    pod = pod_of()
    pod["metadata"]["labels"]["mesh.dev/tenant"] = "acme"
    made = applied(pod, patch(pod, "acme-billing", FRAGMENT))
    env = made["spec"]["initContainers"][0]["env"]
    assert [e for e in env if e["name"] == "MESH_AGENT_TENANT"] == [{"name": "MESH_AGENT_TENANT", "value": "acme"}]
    assert {"fieldPath": "metadata.namespace"} in [e["valueFrom"]["fieldRef"] for e in env if "valueFrom" in e]
    assert patch(made, "acme-billing", FRAGMENT) == []
    with pytest.raises(NotInjectable, match="cannot name a tenant"):
        patch(pod | {"metadata": {"labels": {"mesh.dev/tenant": "a..b"}}}, "acme-billing", FRAGMENT)


# --- twice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BARE)
def test_a_second_pass_changes_nothing(name: str) -> None:
    """Neither over the result, nor over what the API server makes of it in between."""
    once = injected(pod_of(name))
    assert patch(once, "store", FRAGMENT) == []
    assert patch(defaulted(once), "store", FRAGMENT) == []


def test_a_container_that_another_webhook_added_gets_the_token_too() -> None:
    """The recorded reinvocation: a log shipper came after the first call; the second adds what is lacking, no more."""
    once = injected(pod_of("reinvocation_1_first_call"))
    shipper = next(c for c in pod_of("reinvocation_2_second_call")["spec"]["containers"] if c["name"] == "log-shipper")
    shipper = {k: v for k, v in shipper.items() if k != "volumeMounts"}
    once["spec"]["containers"].append(shipper)
    again = patch(once, "store", FRAGMENT)
    assert [op["path"] for op in again] == ["/spec/containers/1/volumeMounts"]
    assert patch(applied(once, again), "store", FRAGMENT) == []


def test_the_sidecar_comes_back_to_the_front() -> None:
    """Another webhook may put an init container before it, which then runs without the door."""
    once = injected(pod_of())
    once["spec"]["initContainers"].insert(0, {"name": "istio-init", "image": "istio"})
    again = injected(once)
    assert [c["name"] for c in again["spec"]["initContainers"]] == ["mesh-agent", "istio-init"]
    assert patch(again, "store", FRAGMENT) == []


_names = st.sampled_from(["app", "web", "worker", "init"])
_containers = st.lists(_names, min_size=1, max_size=3, unique=True)


@settings(max_examples=60, deadline=None)
@given(_containers, st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True), st.booleans(), st.booleans())
def test_one_pass_is_always_enough(apps: list[str], inits: list[str], annotated: bool, empty: bool) -> None:
    """Whatever the pod has or lacks, also where the API server writes an empty list."""
    some: dict[str, Any] = {"volumeMounts": []} if empty else {}
    pod: dict[str, Any] = {
        "metadata": {"labels": {"mesh.dev/inject": "true"}, **({"annotations": {"x": "y"}} if annotated else {})},
        "spec": {
            "serviceAccountName": "orders",
            "containers": [{"name": name, "image": "x", **some} for name in apps],
            **({"initContainers": [{"name": name, "image": "x"} for name in inits]} if inits or empty else {}),
            **({"volumes": []} if empty else {}),
        },
    }
    once = injected(pod)
    assert patch(once, "store", FRAGMENT) == []
    assert once["spec"]["initContainers"][0]["name"] == "mesh-agent"


# --- a sidecar that the pod brings -----------------------------------------------------------------------------------


def bringing(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> dict[str, Any]:
    """A pod with its sidecar, as *change* left sidecar and spec."""
    pod = injected(pod_of())
    change(pod["spec"]["initContainers"][0], pod["spec"])
    return pod


def volume(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the pod's volumes."""
    return next(v for v in spec["volumes"] if v["name"] == name)


def _svid(_: dict[str, Any], spec: dict[str, Any]) -> None:
    found = volume(spec, "mesh-tls")
    del found["secret"]
    found["csi"] = {"driver": "spiffe.csi.cert-manager.io", "readOnly": True}


def _older(sidecar: dict[str, Any], spec: dict[str, Any]) -> None:
    """Of a version that had another image, one variable less, and no webhooks."""
    sidecar["image"] = "nats-event-mesh:0.0.9"
    sidecar["env"].pop()
    sidecar["volumeMounts"] = [m for m in sidecar["volumeMounts"] if m["name"] != "mesh-webhooks"]
    spec["volumes"].remove(volume(spec, "mesh-webhooks"))


def _tokens(sidecar: dict[str, Any], spec: dict[str, Any]) -> None:
    """What a cloud adds to each container."""
    spec["volumes"].append({"name": "cloud", "projected": {"sources": []}})
    sidecar["volumeMounts"].append({"name": "cloud", "mountPath": "/var/run/secrets/cloud/token", "readOnly": True})
    sidecar["env"].append({"name": "CLOUD_ROLE", "value": "x"})


THEIRS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "by digest": lambda c, _: c.update(image=f"nats-event-mesh@sha256:{'a' * 64}"),
    "an older version": _older,
    "settings in a ConfigMap with a hash": lambda _, s: volume(s, "mesh-config")["configMap"].update(name="mesh-o-x1"),
    "an SVID": _svid,
    "another name": lambda c, _: c["env"].append({"name": "MESH_AGENT_NAME", "value": "lake"}),
    "traces": lambda c, _: c["env"].append({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://x:4318"}),
    "limits of the namespace": lambda c, _: c["resources"]["limits"].update(cpu="1"),
    "a cloud's tokens": _tokens,
    "users of a range": lambda c, _: c["securityContext"].update(runAsUser=1000700000, runAsGroup=1000700000),
}


@pytest.mark.parametrize("why", THEIRS)
def test_a_pod_may_bring_its_sidecar(why: str) -> None:
    """What its team, another version, or another webhook says of it stays as it is."""
    assert patch(bringing(THEIRS[why]), "store", FRAGMENT) == []


def _code(c: dict[str, Any], s: dict[str, Any], path: str = "/opt/mesh/lib") -> None:
    s["volumes"].append({"name": "code", "emptyDir": {}})
    c["volumeMounts"].append({"name": "code", "mountPath": path})


NOT_OURS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "another image": (lambda c, _: c.update(image="elsewhere/nats-event-mesh:0.1.0"), "image"),
    "a command": (lambda c, _: c.update(command=["sh", "-c", "cat /etc/mesh/credentials/*"]), "command"),
    "other arguments": (lambda c, _: c.update(args=["python", "-c", "1"]), "args"),
    "no sidecar": (lambda c, _: c.pop("restartPolicy"), "restartPolicy"),
    "a start of its own": (lambda c, _: c["lifecycle"].update(postStart={"exec": {"command": ["x"]}}), "lifecycle"),
    "another end": (lambda c, _: c["lifecycle"].update(preStop={"exec": {"command": ["x"]}}), "lifecycle"),
    "a probe that runs something": (lambda c, _: c.update(startupProbe={"exec": {"command": ["x"]}}), "startupProbe"),
    "a path for Python": (lambda c, _: c["env"].append({"name": "PYTHONPATH", "value": "/x"}), "variable PYTHONPATH"),
    "a library before ours": (lambda c, _: c["env"].append({"name": "LD_PRELOAD", "value": "/x"}), "LD_PRELOAD"),
    "variables from elsewhere": (lambda c, _: c.update(envFrom=[{"configMapRef": {"name": "x"}}]), "envFrom"),
    "code over ours": (_code, "mount code"),
    "code by a way round": (lambda c, s: _code(c, s, "/etc/mesh/../../opt/mesh"), "mount code"),
    "a capability": (lambda c, _: c["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]), "securityContext"),
    "a root that can be written": (
        lambda c, _: c["securityContext"].update(readOnlyRootFilesystem=False),
        "securityContext",
    ),
    "root": (lambda c, _: c["securityContext"].update(runAsUser=0), "securityContext"),
    "two": (lambda c, s: s["initContainers"].append(c), "there are two"),
    "another's credentials": (
        lambda _, s: volume(s, "mesh-credentials")["secret"].update(secretName="mesh-lake"),
        "volume mesh-credentials",
    ),
    "settings from a Secret": (
        lambda _, s: volume(s, "mesh-config").update(configMap=None, secret={"secretName": "x"}),
        "volume mesh-config",
    ),
}


@pytest.mark.parametrize("why", NOT_OURS)
def test_a_sidecar_that_could_run_something_else_is_refused(why: str) -> None:
    """It has the agent's credentials, so what runs in it is the mesh's alone; the refusal names what is in the way."""
    change, match = NOT_OURS[why]
    with pytest.raises(NotInjectable, match=match):
        patch(bringing(change), "store", FRAGMENT)


# --- who is asked about ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "request_create_label_absent_no_selector", "request_update_pod", "request_update_pod_image_put",
        "request_update_ephemeralcontainers",
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_let_through(name: str) -> None:
    """A pod without the label, and every change of a pod that runs: an injector in the way must never stop one."""
    verdict = judge(read_review((RECORDED / f"{name}.json").read_bytes()), FRAGMENT)
    assert verdict.outcome == "unchanged"
    assert verdict.review()["response"] == {"uid": verdict.uid, "allowed": True}


def test_the_answer_has_the_shape_that_a_real_server_took() -> None:
    """The same members as the recorded answer of a webhook, with the uid of the request and a patch in base64."""
    theirs = recorded("webhook_response_injected")
    request = read_review((RECORDED / "request_create_replicaset_pod.json").read_bytes())
    ours = judge(request, FRAGMENT).review()
    assert {**ours, "response": None} == {**theirs, "response": None}
    assert set(ours["response"]) == set(theirs["response"])
    assert ours["response"]["uid"] == theirs["response"]["uid"] == request.uid
    decoded = json.loads(base64.b64decode(ours["response"]["patch"]))
    assert applied(pod_of(), decoded) == injected(pod_of())


def test_a_refusal_has_the_shape_that_a_real_server_took() -> None:
    """As the recorded denial: whoever creates the pod reads code, reason and message, with the fix."""
    theirs = recorded("error_webhook_denied")["webhookResponse"]["response"]
    ours = judge(read_review((RECORDED / "request_create_host_network.json").read_bytes()), FRAGMENT).review()
    assert set(ours["response"]) == set(theirs)
    assert {**ours["response"]["status"], "message": ""} == {**theirs["status"], "message": ""}
    assert "not-injectable" in ours["response"]["status"]["message"]
    assert "remove hostNetwork" in ours["response"]["status"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b"[]", b"{}", b"[" * 100_000,
        b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"1"}}',
        b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"kind":{"kind":"Pod"}}}',
        REVIEW % b",".join([b"{}"] * 100_001),
        REVIEW % b",".join([b"1"] * 200_001),
    ],
)  # fmt: skip
def test_what_is_no_review_is_refused(body: bytes) -> None:
    """With one error, whatever it is."""
    with pytest.raises(BadAdmissionReview):
        read_review(body)


# --- who cannot have one ---------------------------------------------------------------------------------------------


def changed(**spec: Any) -> dict[str, Any]:
    """A recorded pod with other members of its spec."""
    pod = pod_of()
    pod["spec"] |= spec
    return pod


def app(**members: Any) -> dict[str, Any]:
    """The same, with other members of its container."""
    pod = pod_of()
    pod["spec"]["containers"][0] |= members
    return pod


@pytest.mark.parametrize(
    ("pod", "match"),
    [
        (changed(serviceAccountName="default"), "no service account of its own"),
        (changed(serviceAccountName=""), "no service account of its own"),
        (changed(serviceAccountName="orders.v2"), "cannot name an agent"),
        (changed(serviceAccountName="o" * 41), "cannot name an agent"),
        (changed(hostNetwork=True), "host's network"),
        (changed(hostPID=True), "host's processes"),
        (changed(shareProcessNamespace=True), "process namespace"),
        (changed(initContainers=[{"name": "mesh-agent", "image": "mine"}]), "another one than the injector's"),
        (pod_of("request_create_already_injected"), "another one than the injector's"),
        (app(name="mesh-agent"), "not among the initContainers"),
        (changed(volumes=[{"name": "mesh-credentials", "emptyDir": {}}]), "another one than the agent's"),
        (app(volumeMounts=[{"name": "mesh-credentials", "mountPath": "/x"}]), "the agent's alone"),
        (app(volumeMounts=[{"name": "mesh-state", "mountPath": "/x"}]), "the agent's alone"),
        (changed(initContainers=[{"name": "i", "volumeMounts": [{"name": "mesh-tls"}]}]), "the agent's alone"),
        (app(ports=[{"containerPort": 8482}]), "and so the agent"),
        (app(ports=[{"containerPort": 1, "name": "mesh-health"}]), "and so the agent"),
        (app(volumeMounts=[{"name": "data", "mountPath": "/etc/mesh/door"}]), "where the token"),
    ],
)
def test_a_pod_that_cannot_have_it_is_refused(pod: dict[str, Any], match: str) -> None:
    """Each time with what to do; nothing is made that could run without its agent, or lend its rights to others."""
    with pytest.raises(NotInjectable, match=match) as refused:
        patch(pod, "store", FRAGMENT)
    assert refused.value.next


def test_an_application_may_mount_what_is_public() -> None:
    """The trust of the mesh, and the agent's settings; and its own mount of the token stays as it is."""
    own = [{"name": name, "mountPath": f"/{name}"} for name in ("mesh-trust", "mesh-config", "mesh-door")]
    assert injected(app(volumeMounts=own))["spec"]["containers"][0]["volumeMounts"] == own


def test_a_pod_gets_the_time_in_which_its_agent_ends() -> None:
    """And whoever creates it is told; a longer time stays."""
    pod = changed(terminationGracePeriodSeconds=5)
    assert injected(pod)["spec"]["terminationGracePeriodSeconds"] == 30
    assert injected(changed(terminationGracePeriodSeconds=90))["spec"]["terminationGracePeriodSeconds"] == 90
    review = recorded("request_create_replicaset_pod")
    review["request"]["object"] = pod
    answer = judge(read_review(json.dumps(review).encode()), FRAGMENT).review()
    assert "30 s to end" in answer["response"]["warnings"][0]


def test_a_namespace_that_cannot_be_a_tenant_is_refused() -> None:
    """Its name is the tenant's."""
    with pytest.raises(NotInjectable, match="cannot name a tenant"):
        patch(pod_of(), "s" * 41, FRAGMENT)


def test_a_stateful_set_may_bring_the_disk_of_the_spool() -> None:
    """Its volumeClaimTemplate has the name of that volume, and no other."""
    own = {"name": "mesh-state", "persistentVolumeClaim": {"claimName": "mesh-state-orders-0"}}
    made = injected(changed(volumes=[own, *pod_of()["spec"]["volumes"]]))
    assert [v for v in made["spec"]["volumes"] if v["name"] == "mesh-state"] == [own]


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("restartPolicy: Always", "restartPolicy: Never", "another one"),
        ("- name: mesh-agent", "- name: agent", "another one"),
        ("initContainers:", "containers:", "shape"),
        ("- {name: mesh-tls, mountPath", "- {name: mesh-x, mountPath", "volumes"),
        ("spec:", "spec: [", "no YAML"),
    ],
)
def test_a_file_that_is_no_sidecar_is_refused(old: str, new: str, match: str) -> None:
    """Before a pod gets half of one."""
    text = FRAGMENT_FILE.read_text()
    assert old in text
    with pytest.raises(ConfigError, match=match):
        read_fragment(text.replace(old, new))


def test_another_file_has_another_digest() -> None:
    """So that a pod says which sidecar it has."""
    other = read_fragment(FRAGMENT_FILE.read_text().replace("cpu: 50m", "cpu: 60m"))
    assert other.digest != FRAGMENT.digest
    assert injected(pod_of(), other)["metadata"]["annotations"][INJECTED] == other.digest
