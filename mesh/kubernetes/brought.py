"""A sidecar that a pod brings with it: of the component `native-sidecar`, of another version, or of a first pass.

What is looked at is what would run in it, for it has the agent's credentials; how large it is, where NATS is and what
the agent is called are its team's to say. The API server and other webhooks add to every container of a pod: defaults,
limits, tokens below `/var/run/secrets`, variables. That is let through; what could bring other code is not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mesh.kubernetes.names import CONFIG_VOLUME, SIDECAR, STATE_VOLUME, TLS_VOLUME

_KEYS: Final = ("name", "mountPath", "containerPort")  # what tells the items of a pod's lists apart
_NEVER: Final = ("command", "workingDir", "envFrom", "volumeDevices", "stdin", "tty")
_RUN_IDS: Final = frozenset(("runAsUser", "runAsGroup"))  # some clusters choose them
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_LOADS: Final = re.compile(r"PYTHON.*|LD_.*|PATH|GCONV_PATH|OPENSSL_.*|SSLKEYLOGFILE")  # variables that bring code
_ROOTS: Final = ("/etc/mesh", "/run/mesh", "/var/lib/mesh", "/var/run/secrets", "/run/secrets")  # where no code is


def foreign(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What in the container *there* is not as in *wanted*, the injector's, and has to be; empty where all is well."""
    return next(_foreign(there, wanted), "")


def _foreign(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    if repository(str(there.get("image", ""))) != repository(str(wanted.get("image", ""))):
        yield "its image"
    yield from (f"its {key}" for key in _NEVER if there.get(key))
    yield from (f"its {key}" for key in ("restartPolicy", "args") if there.get(key) != wanted.get(key))
    lifecycle = there.get("lifecycle") or {}
    if not covers(lifecycle, wanted.get("lifecycle") or {}) or lifecycle.get("postStart"):
        yield "its lifecycle"
    yield from (f"its {key}" for key in _PROBES if (there.get(key) or {}).get("exec"))
    yield from _rights(there.get("securityContext") or {}, wanted.get("securityContext") or {})
    for variable in there.get("env") or ():
        if _LOADS.fullmatch(str(variable.get("name"))):
            yield f"its variable {variable['name']}"
    for mount in there.get("volumeMounts") or ():
        path = posixpath.normpath(str(mount.get("mountPath")))
        if not any(path == root or path.startswith(f"{root}/") for root in _ROOTS):
            yield f"its mount {mount.get('name')}"


def _rights(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    needed = {key: value for key, value in wanted.items() if key not in _RUN_IDS}
    added = (there.get("capabilities") or {}).get("add") or there.get("procMount", "Default") != "Default"
    if not covers(there, needed) or added or there.get("runAsUser") == 0:
        yield "its securityContext"


def repository(image: str) -> str:
    """An image's name without tag and digest: what an older version and a newer one have in common."""
    head, slash, last = image.partition("@")[0].rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def fits(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the pod's volume *there* may stand where the injector has *wanted*."""
    match wanted["name"]:
        case name if name == STATE_VOLUME:  # a disk of its own
            return True
        case name if name == CONFIG_VOLUME:  # kustomize gives it a name with a hash
            return bool(there.get("configMap"))
        case name if name == TLS_VOLUME and there.get("csi"):  # an SVID
            return True
    for kind, key in (("secret", "secretName"), ("configMap", "name")):
        if kind in wanted:
            return bool((there.get(kind) or {}).get(key) == wanted[kind][key])
    return "emptyDir" in there if "emptyDir" in wanted else covers(there, wanted)


def covers(there: Any, wanted: Any) -> bool:
    """Whether *there* says all that *wanted* says: the API server adds defaults, and leaves empty values out."""
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            covers(there[key], item) if key in there else item in ("", None, [], {}) for key, item in wanted.items()
        )
    if isinstance(wanted, list):
        key = next((k for k in _KEYS if wanted and all(isinstance(item, Mapping) and k in item for item in wanted)), "")
        if not isinstance(there, list):
            return False
        if not key:
            return len(there) == len(wanted) and all(covers(a, b) for a, b in zip(there, wanted, strict=True))
        found = {item.get(key): item for item in there if isinstance(item, Mapping)}
        return all(item[key] in found and covers(found[item[key]], item) for item in wanted)
    return bool(there == wanted)


def of(spec: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The sidecars among a pod's `initContainers`, each with its place; the API server lets one of a name be."""
    found = enumerate(spec.get("initContainers") or ())
    return [(index, container) for index, container in found if container.get("name") == SIDECAR]
