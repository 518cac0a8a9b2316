"""What nats-server is given on Kubernetes, read by the real one; and the values for the upstream chart."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from mesh.cli import app
from mesh.control.nats_binary import find_binary
from mesh.control.nats_config import operator_config
from mesh.jetstream.topology import Sizes, desired
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.k8s.objects import of_kind, pods_of
from tests.k8s.pod_checks import pod_faults, quantity, variables
from tests.k8s.rendering import DEPLOY, rendered

VALUES = yaml.safe_load((DEPLOY / "nats/values.yaml").read_text())
RESOLVER = "/data/accounts"  # as README.md has it said to `mesh control init`


@pytest.fixture(scope="module")
def etc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what the pods mount: operator.conf of a new mesh, a certificate, a directory for data."""
    root = tmp_path_factory.mktemp("root")
    for name in ("etc/nats-config", "etc/nats-operator", "etc/nats-certs", "data/accounts", "run/nats"):
        (root / name).mkdir(parents=True)
    made = CliRunner().invoke(
        app, ["control", "init", "--data", str(root / "mesh"), "--resolver-dir", f"{root}{RESOLVER}"]
    )
    assert made.exit_code == 0
    (root / "etc/nats-operator/operator.conf").write_bytes((root / "mesh/nats/operator.conf").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nats")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for directory in ("nats", "cluster"):
        certs = root / "etc/nats-certs" / directory
        certs.mkdir()
        (certs / "ca.crt").write_bytes(certificate)
        (certs / "tls.crt").write_bytes(certificate)
        (certs / "tls.key").write_bytes(private)
    return root


def _accepted(etc: Path, config: str) -> str:
    """What the server says of *config*, with its absolute paths below *etc*."""
    for place in ("/etc/nats-certs", "/run/nats", "/var/run/nats", "/data"):
        config = config.replace(f'"{place}', f'"{etc}{place}')
    file = etc / "etc/nats-config/nats.conf"
    file.write_text(config)
    environment = {"SERVER_NAME": "nats-0", "NATS_STORE_KEY": '"0123456789"', "PATH": "/usr/bin:/bin"}
    command = [str(find_binary()), "--config", str(file), "-t"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout + done.stderr


def test_server_takes_the_configuration_of_dev(etc: Path) -> None:
    """With the operator's part included from where it is mounted."""
    config = next(c for c in of_kind(rendered("overlays/dev"), "ConfigMap") if c["metadata"]["name"].startswith("nats"))
    assert "is valid" in _accepted(etc, config["data"]["nats.conf"])
    (pod,) = [p for p in pods_of(rendered("overlays/dev")) if p.owner == "StatefulSet/nats"]
    mounts = {m["name"]: m["mountPath"] for m in pod.containers[0]["volumeMounts"]}
    assert (mounts["config"], mounts["operator"]) == ("/etc/nats-config", "/etc/nats-operator")


def _raw(value: Any) -> str:
    """As the chart writes it: JSON, but `<< x >>` as x, and `$include` as a directive."""
    if isinstance(value, dict):
        members = [
            f"include {item};" if key.endswith("$include") else f"{json.dumps(key)}: {_raw(item)}"
            for key, item in value.items()
        ]
        return "{" + "\n".join(members) + "}"
    if isinstance(value, str) and value.startswith("<< "):
        return value[3:-3]
    return json.dumps(value)


def _chart() -> str:
    """`nats.conf` as the chart makes it of our values: the parts of its template that they reach."""
    config = VALUES["config"]

    def tls(name: str, part: dict[str, Any]) -> dict[str, Any]:
        certs = f"/etc/nats-certs/{name}"
        made = {"cert_file": f"{certs}/tls.crt", "key_file": f"{certs}/tls.key", "ca_file": f"{certs}/ca.crt"}
        merged: dict[str, Any] = made | part["merge"]
        return merged

    jetstream, cluster = config["jetstream"], config["cluster"]
    store = {
        "store_dir": jetstream["fileStore"]["dir"],
        "max_file_store": f"<< {jetstream['fileStore']['pvc']['size']} >>",
        "max_memory_store": f"<< {jetstream['memoryStore']['maxSize']} >>",
    }
    made = {
        "server_name": "<< $SERVER_NAME >>",
        "lame_duck_grace_period": "10s",
        "lame_duck_duration": "30s",
        "pid_file": "/var/run/nats/nats.pid",
        "port": config["nats"]["port"],
        "tls": tls("nats", config["nats"]["tls"]),
        "cluster": {"name": cluster["name"], "port": 6222, "tls": tls("cluster", cluster["tls"])},
        "http_port": config["monitor"]["port"],
        "jetstream": store | jetstream["merge"],
        **config["merge"],
    }
    return _raw(made)[1:-1]


def test_server_takes_what_the_chart_makes_of_our_values(etc: Path) -> None:
    """Every key that we add is one that the server knows, and the store key is a text whatever it looks like."""
    assert "is valid" in _accepted(etc, _chart())
    assert "is valid" not in _accepted(etc, _chart().replace('"handshake_first"', '"handshake_frist"'))


def test_values_are_three_servers_that_are_locked_down() -> None:
    """R3, in parallel, TLS both ways everywhere, the store encrypted, operator mode from the Secret, watched."""
    config = VALUES["config"]
    assert config["cluster"]["replicas"] == 3
    for part in (config["cluster"], config["nats"]):
        assert part["tls"]["merge"].items() >= {"verify": True, "min_version": "1.3"}.items()
    assert config["jetstream"]["merge"] == {"cipher": "aes", "key": "<< $NATS_STORE_KEY >>"}
    assert config["merge"]["00$include"] == "../nats-operator/operator.conf"
    assert config["resolver"]["enabled"] is False
    assert VALUES["statefulSet"]["merge"]["spec"]["podManagementPolicy"] == "Parallel"
    assert VALUES["promExporter"]["enabled"]
    assert "js-server-only=true" in VALUES["container"]["merge"]["startupProbe"]["httpGet"]["path"]
    assert VALUES["podDisruptionBudget"]["merge"]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_servers_have_room_for_what_streams_reserve() -> None:
    """A stream reserves all it may hold: a server without that room refuses to make it."""
    bundle = compile_bundles(
        load(read_directory(ROOT / "policies")), site="local", trust_domain="mesh.local", created_ms=0
    )["acme"]
    grants = Plans(bundle).grants(now_ms=1)
    for overlay, room in (("prod", VALUES["config"]["jetstream"]["fileStore"]["pvc"]["size"]), ("dev", "1Ti")):
        (pod,) = [p for p in pods_of(rendered(f"overlays/{overlay}")) if p.owner == "StatefulSet/mesh-control"]
        gib = next(int(a.split("=")[1]) for a in pod.containers[0]["args"] if a.startswith("--event-stream-gib"))
        made = desired("local", sorted(grants.domains), grants.active, Sizes(event_bytes=gib << 30))
        reserved = sum(stream.max_bytes for stream in made.streams)
        assert (quantity(room) or 0) > 1.2 * reserved, overlay


def test_collector_hurries_before_the_memory_ends() -> None:
    """Go's soft limit leaves room below the pod's, and the collector is as lazy as under `mesh up` until then."""
    (dev,) = [pod for pod in pods_of(rendered("overlays/dev")) if pod.owner == "StatefulSet/nats"]
    (container,) = [c for c in dev.spec["containers"] if c["name"] == "nats"]
    upstream = VALUES["container"]
    for told, limit in (
        (variables(container), container["resources"]["limits"]["memory"]),
        (upstream["env"], upstream["merge"]["resources"]["limits"]["memory"]),
    ):
        assert told["GOGC"] == "400"
        soft, hard = quantity(told["GOMEMLIMIT"].removesuffix("B")), quantity(limit)
        assert soft is not None
        assert hard is not None
        assert 0.5 <= soft / hard <= 0.8


def test_values_fit_pod_security_restricted() -> None:
    """Each container of the chart gets the rights that our own have."""
    spec = VALUES["podTemplate"]["merge"]["spec"]
    for part in ("container", "reloader", "promExporter"):
        container = {
            "name": part, "image": "x:1", "resources": {"requests": {"cpu": 1, "memory": 1}, "limits": {"memory": 1}},
            "securityContext": VALUES[part]["merge"]["securityContext"],
        }  # fmt: skip
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "nats"},
            "spec": {**spec, "containers": [container]},
        }
        assert list(pod_faults(pods_of([pod])[0])) == []


def test_dev_says_what_mesh_up_says() -> None:
    """The limits that the mesh relies on are those of the server that `mesh up` starts."""
    text = (DEPLOY / "overlays/dev/nats.conf").read_text()
    told = operator_config(
        operator_jwt="o", system_account="a", system_jwt="j", resolver_dir=Path("/r"), store_dir=Path("/s")
    )
    for name in ("max_payload", "max_control_line", "ping_interval", "ping_max"):
        (line,) = [line for line in told.splitlines() if line.startswith(f"{name}:")]
        assert line in text.splitlines()
        assert name in VALUES["config"]["merge"]
