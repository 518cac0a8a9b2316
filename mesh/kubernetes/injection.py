"""What a pod lacks so that it has its agent, as a JSON patch, or why it cannot have one.

    the sidecar is the first of initContainers, so that it is up before anything else of the pod starts
    the application's containers mount the token of the door, and no other volume of the agent
    the agent is named by the pod's service account; the tenant by its namespace, or its label in a team's

Neither can be forged: the control plane certifies the namespace and the account that the API server vouches for.

What is there already is left alone, so a second pass over the result, or over what another webhook made of it, adds
what is lacking and nothing else. A pod may bring its sidecar, also one of another version: see `brought`.

Source: JSON Patch, RFC 6902.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from mesh.errors import BadName, NotInjectable
from mesh.kubernetes import brought
from mesh.kubernetes.fragment import Fragment
from mesh.kubernetes.names import DOOR_VOLUME, INJECTED, SHARED_VOLUMES, SIDECAR, TENANT
from mesh.subjects import check_name

Operation: TypeAlias = dict[str, Any]

MIN_GRACE_S: Final = 30  # what Kubernetes gives by default, and enough for the agent to end in

GRACE: Final = "/spec/terminationGracePeriodSeconds"
_SHARED: Final = {  # how a container would reach into the agent, or the whole node to its door
    "hostNetwork": "with the host's network the agent's door on loopback is open to the whole node",
    "hostPID": "with the host's processes in sight the agent's files are open to others",
    "shareProcessNamespace": "with one process namespace the application can read the agent's files below /proc",
}


def patch(pod: Mapping[str, Any], namespace: str, fragment: Fragment) -> list[Operation]:
    """What *pod* lacks; nothing where it has its sidecar.

    Args:
        pod: As the API server sent it.
        namespace: Of the request; a pod of a controller may not say it itself.
        fragment: The sidecar.

    Raises:
        NotInjectable: It cannot have one.
    """
    spec = pod.get("spec", {})
    tenant = (pod.get("metadata", {}).get("labels") or {}).get(TENANT, "")
    agent = _agent(spec, tenant or namespace)
    _check_shared(spec)
    _check_containers(spec, fragment)
    _, sidecar = next(iter(brought.of(spec)), (0, fragment.container))
    mounted = {mount.get("name") for mount in sidecar.get("volumeMounts") or ()}  # an older sidecar may have fewer
    volumes = [volume for volume in fragment.volumes_of(agent) if volume["name"] in mounted]
    made = [*_sidecar(spec, fragment, tenant), *_volumes(spec, volumes), *_doors(spec, fragment)]
    if spec.get("terminationGracePeriodSeconds", MIN_GRACE_S) < MIN_GRACE_S:
        made.append({"op": "replace", "path": GRACE, "value": MIN_GRACE_S})
    annotations = pod.get("metadata", {}).get("annotations")
    if (annotations or {}).get(INJECTED) != fragment.digest:
        made += _member("/metadata/annotations", annotations, INJECTED, fragment.digest)
    return made


# --- what keeps a pod from having one --------------------------------------------------------------------------------


def _agent(spec: Mapping[str, Any], tenant: str) -> str:
    account: str = spec.get("serviceAccountName") or "default"
    if account == "default":
        raise NotInjectable(
            "the pod has no service account of its own, which names its agent",
            expected="spec.serviceAccountName: the agent's name in the policies",
            got=account,
            next="create a ServiceAccount with the agent's name, and name it in the pod",
        )
    for what, name in (("service account", account), ("namespace", tenant)):
        try:
            check_name(name)
        except BadName as error:
            raise NotInjectable(
                f"the {what} `{name[:64]}` cannot name {'an agent' if what != 'namespace' else 'a tenant'}",
                expected=error.expected,
                got=name[:64],
                next=f"use a {what} with such a name",
            ) from None
    return account


def _check_shared(spec: Mapping[str, Any]) -> None:
    for key, why in _SHARED.items():
        if spec.get(key):
            raise NotInjectable(why, expected=f"a pod without {key}", got=key, next=f"remove {key}, or the label")


def _check_containers(spec: Mapping[str, Any], fragment: Fragment) -> None:
    ports = {port["containerPort"]: port.get("name", "") for port in fragment.container.get("ports", ())}
    private = fragment.volume_names - SHARED_VOLUMES
    for container in _others(spec):
        name = str(container.get("name"))
        for mount in container.get("volumeMounts") or ():
            if mount.get("name") in private:
                raise NotInjectable(
                    f"container {name} mounts {mount['name']}, which is the agent's alone",
                    expected=f"no volume of the agent but {', '.join(sorted(SHARED_VOLUMES))}",
                    got=str(mount["name"]),
                    next="remove the mount",
                )
        for port in container.get("ports") or ():
            if port.get("containerPort") in ports or port.get("name") in ports.values():
                raise NotInjectable(
                    f"container {name} has port {port.get('containerPort')} ({port.get('name', '')}), and so the agent",
                    expected=f"ports other than {', '.join(map(str, sorted(ports)))}",
                    got=str(port.get("containerPort")),
                    next="give the application another port",
                )
        if name == SIDECAR:
            raise NotInjectable(
                f"a container is named {SIDECAR} and is not among the initContainers",
                expected="that name for the sidecar alone",
                got=name,
                next="rename it, or remove the label where the pod brings its own agent",
            )


def _others(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every container but the sidecar where it belongs."""
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(key) or ():
            if key != "initContainers" or container.get("name") != SIDECAR:
                yield container


# --- what it lacks ---------------------------------------------------------------------------------------------------


def _sidecar(spec: Mapping[str, Any], fragment: Fragment, tenant: str) -> list[Operation]:
    at, theirs = "/spec/initContainers", brought.of(spec)
    for index, container in theirs:
        other = brought.foreign(container, fragment.container) or ("that there are two" if len(theirs) > 1 else "")
        if other:
            raise NotInjectable(
                f"the pod brings a container {SIDECAR} that is another one than the injector's, by {other}",
                expected="none, or that of the component native-sidecar",
                got=f"initContainers[{index}]",
                next="remove it: the injector adds it",
            )
        return [{"op": "move", "from": f"{at}/{index}", "path": f"{at}/0"}] if index else []
    return _insert(at, spec.get("initContainers"), fragment.container_of(tenant), first=True)


def _volumes(spec: Mapping[str, Any], wanted: list[dict[str, Any]]) -> list[Operation]:
    there = {volume.get("name"): volume for volume in spec.get("volumes") or ()}
    lacking = []
    for volume in wanted:
        name = volume["name"]
        if name not in there:
            lacking.append(volume)
        elif not brought.fits(there[name], volume):
            raise NotInjectable(
                f"the pod has a volume {name} that is another one than the agent's",
                expected="none of that name, or the same",
                got=name,
                next="rename it",
            )
    if spec.get("volumes"):
        return [{"op": "add", "path": "/spec/volumes/-", "value": volume} for volume in lacking]
    return [{"op": "add", "path": "/spec/volumes", "value": lacking}] if lacking else []


def _doors(spec: Mapping[str, Any], fragment: Fragment) -> list[Operation]:
    door = fragment.door
    made: list[Operation] = []
    for index, container in enumerate(spec.get("containers") or () if door is not None else ()):
        mounts = container.get("volumeMounts")
        if any(mount.get("name") == DOOR_VOLUME for mount in mounts or ()):
            continue
        if any(door is not None and mount.get("mountPath") == door["mountPath"] for mount in mounts or ()):
            raise NotInjectable(
                f"container {container.get('name')} mounts something else where the token of the agent's door belongs",
                expected=f"nothing at {'' if door is None else door['mountPath']}",
                got="another volume",
                next="mount it elsewhere",
            )
        made += _insert(f"/spec/containers/{index}/volumeMounts", mounts, door)
    return made


def _insert(path: str, items: list[Any] | None, value: Any, *, first: bool = False) -> list[Operation]:
    if not items:
        return [{"op": "add", "path": path, "value": [value]}]
    return [{"op": "add", "path": f"{path}/{'0' if first else '-'}", "value": value}]


def _member(path: str, members: Mapping[str, str] | None, key: str, value: str) -> list[Operation]:
    if members is None:
        return [{"op": "add", "path": path, "value": {key: value}}]
    return [{"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}]
