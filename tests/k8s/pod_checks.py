"""What a pod must be that the API's schema does not say: references, ports, quantities, probes, rights, the sidecar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from typing import Any

from agent.lifecycle import CLOSE_S
from agent.settings import ENV_PREFIX, AgentSettings
from tests.k8s.objects import SIDECAR, Object, PodOf

PRIVATE = {
    "mesh-tls", "mesh-credentials", "mesh-domains", "mesh-ciphers", "mesh-webhooks", "mesh-enrol", "mesh-state",
    "mesh-run",
}  # fmt: skip
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
SLACK_S = 5  # of the grace, above what ends in it
DEFAULT_GRACE_S = 30
SLOW_S = 200  # a liveness probe is the last resort
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: dict[str | None, int | Fraction] = {
    None: 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}")
_SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|KEY|CREDENTIALS?)$")
_TAG = re.compile(r":([A-Za-z0-9_][A-Za-z0-9_.-]*)$")


def quantity(text: Any) -> Fraction | None:
    """A resource quantity; None where it is none."""
    found = _QUANTITY.fullmatch(str(text))
    return None if found is None else Fraction(found[1]) * _UNITS[found[2]]


def variables(container: Object) -> dict[str, Any]:
    """Its environment: values, and None for what a reference gives."""
    return {entry["name"]: entry.get("value") for entry in container.get("env") or []}


def setting(container: Object, name: str) -> Any:
    """A number of the agent's settings: of its environment, else the default."""
    given = variables(container).get(f"{ENV_PREFIX}{name.upper()}")
    default = next(f.default for f in fields(AgentSettings) if f.name == name)
    return float(given) if given else default


def pod_faults(pod: PodOf) -> Iterator[str]:
    """Everything that is wrong with one pod."""
    for container in pod.containers:
        for check in (_image, _rights, _resources, _ports_of, _probes_of, _written_out):
            yield from (f"{container['name']}: {fault}" for fault in check(pod, container))
    for check_pod in (_names, _volumes, _token, _grouped, _shared, _sidecar):
        yield from check_pod(pod)


# --- one container ---------------------------------------------------------------------------------------------------


def _image(_pod: PodOf, container: Object) -> Iterator[str]:
    image = str(container.get("image", ""))
    tag = _TAG.search(image.partition("@")[0])
    if not _DIGEST.search(image) and tag is None:
        yield f"the image {image!r} has no tag and no digest"
    if tag is not None and tag[1] == "latest":
        yield "the image is `latest`"
    if container.get("imagePullPolicy") == "Always" and not _DIGEST.search(image):
        yield "a tag that is always pulled may be another image tomorrow"


def _rights(pod: PodOf, container: Object) -> Iterator[str]:
    """Pod Security `restricted`, and a root that cannot be written."""
    own, shared = container.get("securityContext") or {}, pod.spec.get("securityContext") or {}

    def either(key: str) -> Any:
        return own.get(key, shared.get(key))

    if own.get("privileged"):
        yield "it is privileged"
    if own.get("privileged") and own.get("allowPrivilegeEscalation") is False:
        yield "privileged, and without escalation: the API server refuses both together"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if (own.get("capabilities") or {}).get("drop") != ["ALL"] or (own.get("capabilities") or {}).get("add"):
        yield "it does not drop ALL capabilities"
    if either("runAsNonRoot") is not True or either("runAsUser") == 0:
        yield "it may run as root"
    if (either("seccompProfile") or {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "it has no seccomp profile"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written"


def _resources(_pod: PodOf, container: Object) -> Iterator[str]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for kind, amounts in (("request", requests), ("limit", limits)):
        yield from (
            f"the {kind} {name} of {amount!r} is no quantity"
            for name, amount in amounts.items()
            if quantity(amount) is None
        )
    for name in requests.keys() & limits.keys():
        asked, most = quantity(requests[name]), quantity(limits[name])
        if asked is not None and most is not None and asked > most:
            yield f"it requests more {name} than its limit"
    if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
        yield "it requests no CPU and memory, or has no limit of memory"
    if "cpu" in limits:
        yield "a limit of CPU makes its start take seconds"


def _written_out(_pod: PodOf, container: Object) -> Iterator[str]:
    for name, value in variables(container).items():
        if value and _SECRET_NAME.search(name):
            yield f"the value of {name} is written out"


def _ports_of(_pod: PodOf, container: Object) -> Iterator[str]:
    for port in container.get("ports") or []:
        if not _PORT_NAME.fullmatch(port.get("name", "a")):
            yield f"the port name {port['name']} is not 1 to 15 of a-z, 0-9 and -"


def _probes_of(pod: PodOf, container: Object) -> Iterator[str]:
    plain_init = container in pod.init and container.get("restartPolicy") != "Always"
    named = {port.get("name") for port in container.get("ports") or []}
    for kind in PROBES:
        probe = container.get(kind)
        if probe is None:
            continue
        if plain_init:
            yield f"a plain init container has no {kind}"
        if len({"httpGet", "tcpSocket", "exec", "grpc"} & probe.keys()) != 1:
            yield f"its {kind} does not do one thing"
        port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
        if isinstance(port, str) and port not in named:
            yield f"its {kind} asks a port {port} that it does not have"
    if plain_init and container.get("lifecycle"):
        yield "a plain init container has no lifecycle"


# --- the pod ---------------------------------------------------------------------------------------------------------


def _names(pod: PodOf) -> Iterator[str]:
    for what, names in (
        ("containers", [c["name"] for c in pod.containers]),
        ("volumes", [v["name"] for v in pod.volumes]),
        ("ports", [p["name"] for c in pod.containers for p in c.get("ports") or [] if "name" in p]),
    ):
        yield from (f"two {what} are called {name}" for name, count in Counter(names).items() if count > 1)


def _volumes(pod: PodOf) -> Iterator[str]:
    known = {volume["name"] for volume in pod.volumes} | set(pod.claims)
    mounted = {mount["name"] for c in pod.containers for mount in c.get("volumeMounts") or []}
    yield from (f"there is no volume {name}, which is mounted" for name in sorted(mounted - known))
    yield from (f"nobody mounts the volume {name}" for name in sorted(known - mounted))
    for volume in pod.volumes:
        if "hostPath" in volume:
            yield f"the volume {volume['name']} is the node's"
        if "emptyDir" in volume and quantity((volume["emptyDir"] or {}).get("sizeLimit")) is None:
            yield f"the volume {volume['name']} has no size limit that is a quantity"


def _token(pod: PodOf) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "it mounts a token of the API server into every container"


def _grouped(pod: PodOf) -> Iterator[str]:
    context = pod.spec.get("securityContext") or {}
    if pod.claims and "fsGroup" not in context:
        yield "nobody but root could write to the disk it claims: no fsGroup"
    if "fsGroup" in context and context.get("fsGroupChangePolicy") != "OnRootMismatch":
        yield "each start would open its files to the group: fsGroupChangePolicy is not OnRootMismatch"


def _shared(pod: PodOf) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(key):
            yield f"it has {key}"


def _sidecar(pod: PodOf) -> Iterator[str]:
    agent = pod.sidecar
    if agent is None:
        if pod.labels.get("mesh.dev/inject") == "true" and pod.object["kind"] == "Pod":
            yield "it asks for an agent and has none"
        return
    if agent in pod.init and (pod.init[0] is not agent or agent.get("restartPolicy") != "Always"):
        yield "the agent is not the first of initContainers, or no native sidecar"
    for container in pod.containers:
        mounts = {mount["name"] for mount in container.get("volumeMounts") or []}
        if container["name"] != SIDECAR and mounts & PRIVATE:
            yield f"{container['name']} mounts {', '.join(sorted(mounts & PRIVATE))}, which is the agent's"
    yield from (f"the agent has no {kind}" for kind in PROBES if kind not in agent)
    probe = agent.get("livenessProbe") or {}
    if probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3) < SLOW_S:
        yield f"the agent is restarted in less than {SLOW_S} s"
    if not ((agent.get("lifecycle") or {}).get("preStop") or {}).get("exec"):
        yield "the agent has no preStop that runs something; over HTTP it would be a switch in the network"
    yield from _budgets(pod, agent)


def _budgets(pod: PodOf, agent: Object) -> Iterator[str]:
    grace = pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
    needed = setting(agent, "stop_pull_s") + setting(agent, "drain_s") + CLOSE_S + SLACK_S
    if grace < needed:
        yield f"its grace of {grace} s is below the {needed:g} s in which the agent ends"
    state = next((v for v in pod.volumes if v["name"] == "mesh-state" and "emptyDir" in v), None)
    room = None if state is None else quantity(state["emptyDir"].get("sizeLimit"))
    if room is not None and room < 2 * setting(agent, "spool_max_bytes"):
        yield "mesh-state has less than twice the room of the spool"
