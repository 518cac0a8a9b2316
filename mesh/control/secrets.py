"""The files of a data directory as Secrets and ConfigMaps of Kubernetes, for whoever runs agents and servers there.

    mesh-control-keys, mesh-control-root    the key files of every replica; the root's key, which may be taken away
    mesh-nats-operator                      what nats-servers include
    mesh-AGENT                              the agent's NATS account, the key of its message ids; its team's account
    mesh-AGENT-domains, -ciphers, -webhooks the keys that it masks, encrypts and checks with, where it has any
    mesh-AGENT-door                         the token of its door, which the application reads too
    mesh-trust                              a ConfigMap: what everybody verifies by

Agents read such files again at each connect, so new credentials need no restart.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from mesh.bundles import policy_key
from mesh.control.init import SERVER_PART
from mesh.control.reconcile import now_ms
from mesh.control.vault_files import KEY_FILES, OPTIONAL_KEY_FILES
from mesh.errors import ConfigError
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle
from mesh.subjects import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.control.datadir import DataDirectory

LABELS = {"app.kubernetes.io/part-of": "nats-event-mesh", "app.kubernetes.io/managed-by": "mesh"}
TRUST = ("ca.crt", "trust.pub", "policy.pub", "enrol.pub")
KEYS_BELOW = ("domains", "ciphers", "webhooks")  # directories of an agent, a Secret each
ENDS = ("door", "tls", *KEYS_BELOW)  # of the Secrets of an agent beside `mesh-AGENT`: agent x has `mesh-x-door`


def control_objects(data: DataDirectory, namespace: str) -> dict[str, Any]:
    """What the control plane and the servers mount.

    Args:
        data: As `mesh control init` made it.
        namespace: Theirs.

    Raises:
        ConfigError: A file is missing.
    """
    kept = [name for name in KEY_FILES if name not in OPTIONAL_KEY_FILES]
    root = {name.replace("/", "."): data.root / name for name in OPTIONAL_KEY_FILES if (data.root / name).exists()}
    objects = [_secret("mesh-control-keys", namespace, {n.replace("/", "."): data.root / n for n in kept})]
    objects += [_secret("mesh-control-root", namespace, root)] if root else []
    objects += [_secret("mesh-nats-operator", namespace, {"operator.conf": data.root / SERVER_PART})]
    return _list(objects)


def agent_objects(data: DataDirectory, agent: str, namespace: str) -> dict[str, Any]:
    """What the pod of *agent* mounts.

    Args:
        data: Of a replica, leading or not.
        agent: Its name in the policies.
        namespace: Its pods'.

    Raises:
        BadName, ConfigError: There is no such agent, its Secrets would be another's, or a file of it is missing.
        PolicyError: The copy of the bundle in force is damaged.
    """
    if agent == "trust" or (agent.rpartition("-")[2] in ENDS and "-" in agent):
        raise ConfigError(
            f"the objects of agent {agent} would have names of another's, whose application may read them",
            expected=f"a name other than trust, that does not end in -{', -'.join(ENDS)}",
            next="give the agent another name in the Tenant, where it runs on Kubernetes",
        )
    directory, team = data.agent(check_name(agent)), _team_of(data, agent)
    if team is None:
        raise ConfigError(
            f"no agent {agent} is in {data.root}",
            expected="an agent of the policies in force",
            next="see `mesh policy status`; a replica that waits has it some seconds later",
        )
    files = {"nats.creds": directory / "nats.creds", "dedupe.key": directory / "dedupe.key"}
    if team:
        files["team.creds"] = data.team(team) / "nats.creds"
    objects = [_trust(data, namespace), _secret(f"mesh-{agent}", namespace, files)]
    objects.append(_secret(f"mesh-{agent}-door", namespace, {"token": directory / "token"}))
    for name in KEYS_BELOW:
        keys = {path.name: path for path in sorted((directory / name).glob("*")) if path.is_file()}
        if keys:
            objects.append(_secret(f"mesh-{agent}-{name}", namespace, keys))
    return _list(objects)


def _team_of(data: DataDirectory, agent: str) -> str | None:
    """The team that *agent* reads as by the policies in force; empty where it reads nothing, None without the agent."""
    for tenant in data.bundled:
        bundle = open_bundle(data.bundle(tenant).read_bytes(), policy_key(data.trust))
        grants = Plans(bundle).grants(now_ms=now_ms())
        if agent in grants.agents:
            team = grants.agents[agent].team
            return team if team in grants.teams else ""
    return None


def _trust(data: DataDirectory, namespace: str) -> dict[str, Any]:
    contents = {name: _read(data.trust / name).decode() for name in TRUST}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata("mesh-trust", namespace), "data": contents}


def _secret(name: str, namespace: str, files: dict[str, Path]) -> dict[str, Any]:
    contents = {key: b64encode(_read(path)).decode() for key, path in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(name, namespace), "data": contents}


def _metadata(name: str, namespace: str) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "labels": LABELS}


def _list(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": objects}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            expected="a file of the mesh",
            next="name the data directory with --data; files of agents are written where a replica has led",
        ) from error
