"""What manifests must be that the API's schema does not say. Pure, over what `kubectl kustomize` printed.

A schema alone finds two of thirteen faults that people make; a server would find most of the others, and none is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.k8s.objects import (
    WORKLOADS,
    Object,
    PodOf,
    name_of,
    namespace_of,
    of_kind,
    pods_of,
    selects,
    walk,
)
from tests.k8s.pod_checks import pod_faults, quantity

ENUMS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "unhealthyPodEvictionPolicy": {"IfHealthyBudget", "AlwaysAllow"},
    "failurePolicy": {"Fail", "Ignore"},
    "matchPolicy": {"Exact", "Equivalent"},
    "reinvocationPolicy": {"Never", "IfNeeded"},
    "sideEffects": {"None", "NoneOnDryRun"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
}  # the API's enumerations, which its JSON schema leaves out
RESTART = {"Pod": {"Always", "OnFailure", "Never"}, "Job": {"OnFailure", "Never"}}
BROAD = {"", "*"}


def faults(docs: list[Object], *, given: Iterable[str] = (), elsewhere: Iterable[Mapping[str, str]] = ()) -> list[str]:
    """Everything that is wrong with *docs*, each with the object it is wrong with.

    Args:
        docs: The rendered objects.
        given: ConfigMaps and Secrets that whoever installs makes: `Secret/mesh-control-keys`.
        elsewhere: Labels of pods that another installation brings.
    """
    pods = pods_of(docs)
    found = [f"{pod.owner}: {fault}" for pod in pods for fault in pod_faults(pod)]
    found += [f"{name_of(doc)}: {fault}" for doc in docs for fault in _object_faults(doc, docs, pods, list(elsewhere))]
    return found + list(_references(docs, pods, set(given)))


def _object_faults(
    doc: Object, docs: list[Object], pods: list[PodOf], elsewhere: list[Mapping[str, str]]
) -> Iterator[str]:
    yield from _enums(doc)
    match doc["kind"]:
        case kind if kind in WORKLOADS:
            yield from _workload(doc)
        case "Secret":
            yield "a secret is no manifest"
        case "Service":
            yield from _service(doc, pods)
        case "PodDisruptionBudget":
            yield from _budget(doc, pods)
        case "NetworkPolicy":
            yield from _network(doc, pods, elsewhere)
        case "PodMonitor" | "ServiceMonitor":
            yield from _monitor(doc, docs, pods, elsewhere)
        case "Role" | "ClusterRole":
            yield from _role(doc)
        case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
            yield from _webhooks(doc, docs)


def _enums(doc: Object) -> Iterator[str]:
    if doc["kind"] == "CustomResourceDefinition":
        return
    for path, key, value in walk(doc.get("spec", doc)):
        if key in ENUMS and isinstance(value, str) and value not in ENUMS[key]:
            yield f"{path}.{key} is {value}, not one of {', '.join(sorted(ENUMS[key]))}"
        if key in {"storage", "sizeLimit"} and not isinstance(value, dict) and quantity(value) is None:
            yield f"{path}.{key} of {value!r} is no quantity"


def _workload(doc: Object) -> Iterator[str]:
    spec = doc["spec"]
    labels = spec["template"].get("metadata", {}).get("labels") or {}
    if doc["kind"] != "Job" and not (spec.get("selector", {}).get("matchLabels") and selects(spec["selector"], labels)):
        yield "its selector does not take its own pods"
    policy = spec["template"]["spec"].get("restartPolicy", "Always")
    if policy not in RESTART.get(doc["kind"], {"Always"}):
        yield f"its pods cannot have the restartPolicy {policy}"


def _taken(selector: Mapping[str, str], namespace: str, pods: list[PodOf]) -> list[PodOf]:
    return [p for p in pods if p.namespace == namespace and selects({"matchLabels": selector}, p.labels)]


def _service(doc: Object, pods: list[PodOf]) -> Iterator[str]:
    taken = _taken(doc["spec"].get("selector") or {}, namespace_of(doc), pods)
    if not taken:
        yield "it selects no pod"
    names = [port.get("name") for port in doc["spec"]["ports"]]
    if len(set(names)) != len(names) or (len(names) > 1 and None in names):
        yield "its ports need a name each"
    for port in doc["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        if isinstance(target, str) and not all(target in _port_names(pod) for pod in taken):
            yield f"no container has a port {target}"


def _port_names(pod: PodOf) -> set[str]:
    return {port["name"] for c in pod.containers for port in c.get("ports") or [] if "name" in port}


def _budget(doc: Object, pods: list[PodOf]) -> Iterator[str]:
    spec = doc["spec"]
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "it needs one of minAvailable and maxUnavailable"
    if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
        yield "a pod that does not get ready would keep a node from being drained"
    selector = spec.get("selector") or {}
    if not any(p.namespace == namespace_of(doc) and selects(selector, p.labels) for p in pods):
        yield "it selects no pod"


def _network(doc: Object, pods: list[PodOf], elsewhere: list[Mapping[str, str]]) -> Iterator[str]:
    selector = doc["spec"]["podSelector"]
    here = [p.labels for p in pods if p.namespace == namespace_of(doc)]
    if not any(selects(selector, labels) for labels in [*here, *elsewhere]):
        yield "it selects no pod"
    for rule in [*(doc["spec"].get("ingress") or []), *(doc["spec"].get("egress") or [])]:
        if not rule.get("ports"):
            yield "a rule lets every port through"
        for port in rule.get("ports") or []:
            if not isinstance(port.get("port"), int):
                yield f"the port {port.get('port')} is no number: names of a sidecar's ports do not resolve everywhere"
    for direction in ("Ingress", "Egress"):
        if direction.lower() in doc["spec"] and direction not in (doc["spec"].get("policyTypes") or []):
            yield f"its rules for {direction} do not count: not in policyTypes"


def _monitor(doc: Object, docs: list[Object], pods: list[PodOf], elsewhere: list[Mapping[str, str]]) -> Iterator[str]:
    selector, wanted = doc["spec"]["selector"], doc["spec"].get("endpoints") or doc["spec"].get("podMetricsEndpoints")
    if doc["kind"] == "PodMonitor":
        named = [(p.labels, _port_names(p)) for p in pods]
    else:
        services = of_kind(docs, "Service")
        named = [(s["metadata"].get("labels") or {}, {p.get("name") for p in s["spec"]["ports"]}) for s in services]
    taken = [ports for labels, ports in named if selects(selector, labels)]
    if not taken and not any(selects(selector, labels) for labels in elsewhere):
        yield "it selects nothing"
    for endpoint in wanted:
        if any(endpoint["port"] not in ports for ports in taken):
            yield f"there is no port {endpoint['port']}"


def _role(doc: Object) -> Iterator[str]:
    for rule in doc.get("rules") or []:
        for key in ("apiGroups", "resources", "verbs"):
            if any("*" in item for item in rule.get(key) or []):
                yield f"it has a wildcard in {key}"
        if {"escalate", "bind", "impersonate"} & set(rule.get("verbs") or []):
            yield "it can give itself rights"
        if "secrets" in (rule.get("resources") or []) and not rule.get("resourceNames"):
            yield "it reads every Secret"


def _webhooks(doc: Object, docs: list[Object]) -> Iterator[str]:
    injected = (doc["metadata"].get("annotations") or {}).get("cert-manager.io/inject-ca-from", "")
    certificates = {f"{namespace_of(c)}/{c['metadata']['name']}" for c in of_kind(docs, "Certificate")}
    for hook in doc["webhooks"]:
        name = hook["name"]
        if hook.get("failurePolicy") != "Fail":
            yield f"{name}: a pod would run without its agent while nobody answers"
        if not (hook.get("objectSelector") or {}).get("matchLabels"):
            yield f"{name}: it is asked about every pod of the cluster"
        if not hook.get("namespaceSelector"):
            yield f"{name}: it is asked about the namespaces that it needs itself"
        if hook.get("sideEffects") != "None" or not 1 <= hook.get("timeoutSeconds", 10) <= 10:
            yield f"{name}: side effects, or a wait of more than 10 s"
        if any("*" in item for rule in hook["rules"] for key in ("apiGroups", "resources") for item in rule[key]):
            yield f"{name}: a wildcard in its rules"
        if "caBundle" not in hook["clientConfig"] and injected not in certificates:
            yield f"{name}: nobody says whose certificate it is known by"
        yield from (f"{name}: {fault}" for fault in _hook_service(hook["clientConfig"].get("service") or {}, docs))


def _hook_service(asked: Mapping[str, Any], docs: list[Object]) -> Iterator[str]:
    for service in of_kind(docs, "Service"):
        if (namespace_of(service), service["metadata"]["name"]) == (asked.get("namespace"), asked.get("name")):
            if asked.get("port", 443) not in {port["port"] for port in service["spec"]["ports"]}:
                yield f"its Service has no port {asked.get('port', 443)}"
            return
    yield "there is no such Service"


# --- what refers to what ---------------------------------------------------------------------------------------------


def _references(docs: list[Object], pods: list[PodOf], given: set[str]) -> Iterator[str]:
    """ConfigMaps, Secrets and service accounts that nobody makes; two objects of one name."""
    made = {(name_of(doc), namespace_of(doc)) for doc in docs}
    made |= {(f"Secret/{c['spec']['secretName']}", namespace_of(c)) for c in of_kind(docs, "Certificate")}
    for pod in pods:
        account = pod.spec.get("serviceAccountName")
        needed = {*_needed(pod.spec), *([] if account is None else [f"ServiceAccount/{account}"])}
        for name in sorted(needed):
            if (name, pod.namespace) not in made and name not in given:
                yield f"{pod.owner}: nobody makes {name}"
    identities = [(doc["apiVersion"], name_of(doc), namespace_of(doc)) for doc in docs]
    yield from (f"{name}: there are two" for name in sorted({i[1] for i in identities if identities.count(i) > 1}))
    for doc in of_kind(docs, "RoleBinding", "ClusterRoleBinding"):
        role = f"{doc['roleRef']['kind']}/{doc['roleRef']['name']}"
        if role not in {name_of(d) for d in docs} and not re.match(r"ClusterRole/(system:|view$|edit$)", role):
            yield f"{name_of(doc)}: there is no {role}"


def _needed(spec: Object) -> Iterator[str]:
    """What a pod does not start without."""
    for _path, key, value in walk(spec):
        if not isinstance(value, dict) or value.get("optional"):
            continue
        match key:
            case "configMap" | "configMapRef" | "configMapKeyRef":
                yield f"ConfigMap/{value['name']}"
            case "secret" | "secretRef" | "secretKeyRef":
                yield f"Secret/{value.get('secretName', value.get('name'))}"
