"""Containers of our manifests as processes: their own command lines and variables, over what would be mounted."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tests.k8s.objects import Object, PodOf

BARE = "/opt/mesh/bin/python"


class Mounted:
    """The volumes of one pod below a directory.

    Args:
        root: Of this pod. Short: a Unix socket's path has room for a hundred characters.
        pod: From the manifests.
        objects: ConfigMaps and Secrets of its namespace, made by whoever installs.
        token: Of its service account.
    """

    def __init__(self, root: Path, pod: PodOf, objects: list[Object], token: str) -> None:
        self.root = root
        self._objects: dict[tuple[str, Any], Object] = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        self._token = token
        self._volumes = {volume["name"]: volume for volume in pod.volumes}
        for name in {**self._volumes, **dict.fromkeys(pod.claims)}:  # a claim takes the place of a volume of its name
            directory = root / name
            directory.mkdir(parents=True)
            self._fill(self._volumes.get(name, {}), directory)

    def paths(self, container: Object, text: str) -> str:
        """*text* with every path of a mount below our root."""
        mounts = {m["mountPath"]: str(self.root / m["name"]) for m in container["volumeMounts"]}
        either = "|".join(map(re.escape, sorted(mounts, key=len, reverse=True)))  # in one go: our root may be below one
        return re.sub(rf"(?<![\w/.-])({either})(?=/|$)", lambda found: mounts[found[1]], text)

    def _fill(self, volume: Object, directory: Path) -> None:
        sources: list[Object] = volume.get("projected", {}).get("sources", [volume])
        for source in sources:
            if "serviceAccountToken" in source:
                self._write(directory / source["serviceAccountToken"]["path"], self._token.encode())
            for kind, field in (("Secret", "secret"), ("ConfigMap", "configMap")):
                if field in source:
                    self._copy(kind, source[field], directory)

    def _copy(self, kind: str, named: Object, directory: Path) -> None:
        key = (kind, named.get("secretName", named.get("name")))
        made = self._objects.get(key)
        assert made is not None or named.get("optional"), key
        contents = {} if made is None else made["data"]
        for item in named.get("items", [{"key": k, "path": k} for k in contents]):
            value = contents[item["key"]]
            self._write(directory / item["path"], base64.b64decode(value) if kind == "Secret" else value.encode())

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o444)  # as the kubelet mounts it


def environment(container: Object, pod: Mounted, references: Mapping[str, str], **more: str) -> dict[str, str]:
    """The container's variables, with *references* for what a node fills in; then *more*."""
    found = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    for entry in container["env"]:
        reference = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        value = entry["value"] if reference is None else references[reference]
        found[entry["name"]] = pod.paths(container, value)
    return found | more


def arguments(container: Object, pod: Mounted, variables: Mapping[str, str], **options: Any) -> list[str]:
    """The container's own arguments; *options* are others for `--name=`."""
    made = []
    for argument in container["args"]:
        text = re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], argument)
        name, given, value = text.partition("=")
        key = name.lstrip("-").replace("-", "_")
        made.append(
            f"{name}={options[key]}" if given and key in options else name + given + pod.paths(container, value)
        )
    return made


def start(words: list[str], variables: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """The program that the image has under the first of *words*, in this environment."""
    modules = {"mesh": "mesh", "mesh-agent": "agent"}
    program = [sys.executable, "-m", modules[words[0]]] if words[0] in modules else [sys.executable]
    return subprocess.Popen(
        [*program, *words[1:]], env=dict(variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
