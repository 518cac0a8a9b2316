"""The sidecar as its file says it: a patch of a Deployment, of which the pod's `spec` counts.

One container among `initContainers`, and its volumes. `AGENT` in the name of a volume's source stands for the pod's
service account, which names the agent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mesh.errors import ConfigError
from mesh.kubernetes.names import DOOR_VOLUME, PLACEHOLDER, SIDECAR, TENANT_VARIABLE

_DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Fragment:
    """What is added to a pod.

    Attributes:
        container: The sidecar.
        volumes: Its volumes; names of their sources have the placeholder.
        digest: Tells one version from another.
    """

    container: Mapping[str, Any]
    volumes: tuple[Mapping[str, Any], ...]
    digest: str = field(compare=False)

    @property
    def volume_names(self) -> frozenset[str]:
        """The names of its volumes."""
        return frozenset(volume["name"] for volume in self.volumes)

    @property
    def door(self) -> dict[str, Any] | None:
        """How an application mounts the token of the door; None for a sidecar without such a volume."""
        for mount in self.container.get("volumeMounts", ()):
            if mount["name"] == DOOR_VOLUME:
                return {"name": DOOR_VOLUME, "mountPath": mount["mountPath"], "readOnly": True}
        return None

    def container_of(self, tenant: str) -> dict[str, Any]:
        """The sidecar of a pod that is *tenant*'s; empty: the namespace names it, as the file says."""
        env = self.container.get("env", ())
        if not tenant:
            return dict(self.container)
        others = [variable for variable in env if variable["name"] != TENANT_VARIABLE]
        return {**self.container, "env": [{"name": TENANT_VARIABLE, "value": tenant}, *others]}

    def volumes_of(self, agent: str) -> list[dict[str, Any]]:
        """The volumes of the pod of *agent*."""
        return [_named(volume, agent) for volume in self.volumes]


def read_fragment(text: str, image: str = "") -> Fragment:
    """Read the file.

    Args:
        text: The file's.
        image: Of the sidecar, where it is another than the file's: it is a text that no overlay reaches into.

    Raises:
        ConfigError: It is no YAML, or not what the module says.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _unfit("it is no YAML", type(error).__name__) from None
    try:
        spec = document["spec"]["template"]["spec"]
        containers, volumes = spec["initContainers"], spec["volumes"]
        names = [volume["name"] for volume in volumes]
        mounts = [mount["name"] for container in containers for mount in container.get("volumeMounts", ())]
        (container,) = containers
        fits = container["name"] == SIDECAR and container["restartPolicy"] == "Always"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit("it does not have its shape", type(error).__name__) from None
    if not fits:
        raise _unfit("its container is another one", str(container["name"])[:64])
    if len(set(names)) != len(names) or set(mounts) != set(names):
        raise _unfit("its volumes are not those that it mounts", ", ".join(sorted(set(mounts) ^ set(names)))[:200])
    container = container | {"image": image} if image else container
    text = json.dumps([container, volumes], sort_keys=True)
    return Fragment(container, tuple(volumes), hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS])


def _named(value: Any, agent: str) -> Any:
    """*value* with the agent's name for the placeholder, in whatever is a text."""
    if isinstance(value, Mapping):
        return {key: _named(item, agent) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, agent) for item in value]
    return value.replace(PLACEHOLDER, agent) if isinstance(value, str) else value


def _unfit(message: str, got: str) -> ConfigError:
    return ConfigError(
        f"the sidecar's file cannot be used: {message}",
        expected=f"spec.template.spec with one of initContainers, `{SIDECAR}` that restarts Always, and its volumes",
        got=got,
        next="take components/native-sidecar/fragment/sidecar.yaml, and change that",
    )
