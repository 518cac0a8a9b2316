"""Every setting of the agent: one frozen object, each number with its unit, default and reason.

A value comes from `MESH_AGENT_<NAME>`, else from `agent.toml`, else from the default; `Loaded.origins` says which.
Secrets are never settings: a setting names the file that holds one. Paths start from the directory of `agent.toml`.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from agent.mistakes import named, unknown, wrong
from agent.push.settings import PushTarget, check_places, read_targets
from agent.webhooks.settings import WebhookSource, read_sources
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENV_PREFIX = "MESH_AGENT_"
_SERVICE = "_SERVICE_HOST"  # ends the first of the variables that tell a pod of a Service
CONFIG_VARIABLE = "MESH_AGENT_CONFIG"  # where agent.toml lies; read by the command line, not a setting
LOG_LEVELS = ("debug", "info", "warning", "error")
KIB = 1024
MIB = 1024 * KIB


def _setting(
    default: Any = dataclasses.MISSING, *, why: str, unit: str = "", low: float = 0, high: float = math.inf
) -> Any:
    return field(default=default, metadata={"why": why, "unit": unit, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What one agent is, where its files lie, and every limit it keeps. Durations are seconds, sizes bytes."""

    name: str = _setting(why="the agent's name in the tenant's policies; its SPIFFE id ends in it")
    tenant: str = _setting(why="whose policies and streams these are")
    team: str = _setting("", why="the team the agent belongs to, and reads as; what it may do the policies decide")
    site: str = _setting("local", why="first part of every subject; one value for a single site")
    trust_domain: str = _setting("mesh.local", why="the SPIFFE trust domain of the mesh's CA")
    namespace: str = _setting("", why="of the pod, where it is another than the tenant: then the SPIFFE id has it")
    spiffe_id: str = _setting("", why="where the policies' `identities` give another than the usual one")

    nats_url: str = _setting("nats://127.0.0.1:4222", why="where NATS listens")
    connect_timeout_s: float = _setting(
        30.0,
        unit="s",
        low=0.1,
        high=600,
        why="for the first bundle of an embedded agent; a process goes on trying",
    )
    creds_file: str = _setting("nats.creds", why="the agent's own NATS account; empty for a server without any")
    nats_ca_file: str = _setting("", why="roots that the server's TLS certificate leads to; empty for a server without")
    nats_cert_file: str = _setting("", why="our own TLS certificate and its issuers, PEM; read at each connect")
    nats_key_file: str = _setting("", why="its private key; all three of these or none")
    team_creds_file: str = _setting(
        "", why="the team's own NATS account, to push or pull its subscriptions; empty: the agent reads no event"
    )
    team_dir: str = _setting(
        "team", why="bundle, trust statement and certificates that the team's reader keeps; made where it is not there"
    )
    enrol_token_file: str = _setting("enrol.token", why="shows the control plane who we are; read at each enrolment")
    event_key_file: str = _setting(
        "", why="an Ed25519 key that somebody else manages; empty: made in memory, enrolled, renewed at half its life"
    )
    event_cert_file: str = _setting("", why="its certificate and its issuer, PEM; both files are read when they change")
    dedupe_key_file: str = _setting("dedupe.key", why="keys message ids and slots; the same for all replicas")
    domains_dir: str = _setting("domains", why="one <domain>.key for each pseudonym domain this agent masks in")
    ciphers_dir: str = _setting("ciphers", why="one <name>.key for each set of readers this agent encrypts for")
    bundle_file: str = _setting(
        "bundle.last", why="the last good policy bundle, to start with while NATS is away; empty for nowhere"
    )
    trust_dir: str = _setting(
        "../../trust", why="ca.crt, trust.pub, policy.pub, enrol.pub: what everything that comes is checked against"
    )
    token_file: str = _setting("token", why="bearer token of the HTTP door, 0600, read again when the file changes")

    http_host: str = _setting("127.0.0.1", why="the door of the application; loopback only, whoever is in the pod")
    http_port: int = _setting(8480, unit="port", high=65535, why="0 takes any free port; see ports.json")
    http_socket: str = _setting("", why="a Unix socket (0660) instead of the port")
    webhooks_host: str = _setting("127.0.0.1", why="own listener, so that an ingress reaches nothing but webhooks")
    webhooks_port: int = _setting(8481, unit="port", high=65535, why="0 takes any free port")
    health_host: str = _setting("127.0.0.1", why="probes and metrics hold no data; 0.0.0.0 in a pod for the kubelet")
    health_port: int = _setting(8482, unit="port", high=65535, why="0 takes any free port")
    control_socket: str = _setting(
        "", why="Unix socket (0660) of stop_pull.py, a pod's preStop hook, where only the agent's container sees it"
    )

    max_event_bytes: int = _setting(
        256 * KIB, unit="B", low=1 * KIB, high=256 * KIB, why="streams take 320 KiB a message, with headers and masks"
    )
    max_depth: int = _setting(64, unit="levels", low=4, high=200, why="far above real events, below any stack's end")
    max_batch_events: int = _setting(1000, unit="events", low=1, high=10_000, why="one request, about 30 ms of work")
    max_batch_bytes: int = _setting(4 * MIB, unit="B", low=1 * KIB, high=64 * MIB, why="1,000 events of 4 KiB")
    max_headers: int = _setting(64, unit="fields", low=8, high=256, why="CloudEvents in binary mode use about 20")
    max_header_bytes: int = _setting(16 * KIB, unit="B", low=1 * KIB, high=64 * KIB, why="all header fields together")
    max_connections: int = _setting(256, unit="connections", low=1, high=10_000, why="a pod's adapter uses a few")

    header_timeout_s: float = _setting(5.0, unit="s", low=0.05, high=60, why="first header byte to last: slowloris")
    body_timeout_s: float = _setting(10.0, unit="s", low=0.05, high=300, why="a whole body on loopback takes ms")
    keepalive_s: float = _setting(75.0, unit="s", low=1, high=3600, why="above the 60 s most client pools keep")

    max_waiting_events: int = _setting(
        4096, unit="events", low=16, why="accepted and not yet acked; about 0.5 s of work at full speed"
    )
    max_waiting_bytes: int = _setting(
        32 * MIB, unit="B", low=1 * MIB, why="the same in bytes as they came: keeps the process below 150 MB"
    )
    max_webhook_bytes: int = _setting(
        8 * MIB,
        unit="B",
        low=256 * KIB,
        why="bodies on the webhook listener, whoever sends them; apart, so that strangers take no room from the door",
    )
    admit_wait_s: float = _setting(5.0, unit="s", low=0, high=30, why="a caller is slowed this long before it gets 503")
    source_rate_per_s: float = _setting(
        0.0, unit="events/s", low=0, why="of one source in the long run; beyond it 429; 0 lets all through"
    )
    source_burst: int = _setting(1000, unit="events", low=1, why="of one source at once, where there is such a rate")
    batch_events: int = _setting(64, unit="copies", low=1, high=256, why="one signature; more gains under 1 us each")
    batch_hold_s: float = _setting(
        0.002, unit="s", low=0, high=1, why="longest wait for the last batch's acks before the next one goes anyway"
    )
    publish_window: int = _setting(4096, unit="copies", low=256, high=65_536, why="sent and not acked: 4 MiB of 1 KiB")
    ack_deadline_s: float = _setting(1.0, unit="s", low=0.05, high=30, why="1,000 times a loopback ack; then recovery")
    give_up_s: float = _setting(
        8.0, unit="s", low=0.1, high=300, why="longest wait for acks: then the spool, or 503; GitHub waits 10 s"
    )
    spool_file: str = _setting(
        "spool.db",
        why="copies whose stream cannot be reached, sealed; on a disk that outlives the process; empty for none",
    )
    spool_key_file: str = _setting("spool.key", why="made with the spool, 0600; without it nobody can read the spool")
    spool_max_bytes: int = _setting(
        1024 * MIB, unit="B", low=1 * MIB, why="about 0.8 million copies of 1 KiB; then callers get 503 spool-full"
    )
    spool_after_s: float = _setting(
        2.0,
        unit="s",
        low=0.05,
        high=60,
        why="a stream's silence, above any leader change that goes well; then 202 spool",
    )
    retry_after_s: int = _setting(2, unit="s", low=1, high=600, why="what a 503 asks the caller to wait")

    max_pulls: int = _setting(
        64, unit="requests", low=1, high=10_000, why="for events, at once: each long poll and stream is a connection"
    )
    max_pull_wait_s: float = _setting(
        30.0, unit="s", low=0, high=300, why="the longest long poll; below what proxies and clients wait"
    )
    pull_idle_s: float = _setting(
        30.0,
        unit="s",
        low=0.1,
        high=3600,
        why="so long without fetch and lease: what was pulled ahead goes to others",
    )
    max_leases: int = _setting(
        1024, unit="leases", low=1, high=100_000, why="of one subscription at once; its max_in_flight bounds them too"
    )
    max_lease_s: float = _setting(
        3600.0, unit="s", low=1, high=86_400, why="an event that a dead consumer holds keeps its key that long"
    )

    ports_file: str = _setting("ports.json", why="where the bound addresses are written once ready; empty for nowhere")
    stop_pull_s: float = _setting(
        10.0, unit="s", low=0.1, high=600, why="for pushes under way once the pod begins to end; with drain_s its grace"
    )
    drain_s: float = _setting(10.0, unit="s", low=0.1, high=600, why="SIGTERM to end; below a pod's grace of 30 s")
    file_check_s: float = _setting(1.0, unit="s", low=0, high=600, why="how often secrets are checked for a new file")
    log_level: str = _setting("info", why=f"one of {', '.join(LOG_LEVELS)}")

    push_hosts: str = _setting(
        "", why="hosts that may be pushed to beside this machine, host or host:port, separated by commas"
    )
    push: tuple[PushTarget, ...] = _setting((), why="[push.<subscription>] tables: see Push")
    webhooks: tuple[WebhookSource, ...] = _setting((), why="[webhooks.<source>] tables: see Webhooks")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each came from: `default`, the file's name, or the variable's."""

    settings: AgentSettings
    origins: dict[str, str]


_FIELDS = {f.name: f for f in dataclasses.fields(AgentSettings)}
_TABLES: dict[str, Callable[[Any, str], Any]] = {"push": read_targets, "webhooks": read_sources}
_KINDS = {"str": str, "int": int, "float": float}


def load(toml: str = "", environ: Mapping[str, str] | None = None, *, file: str = "agent.toml") -> Loaded:
    """Read settings from the text of an `agent.toml` and from `MESH_AGENT_*`.

    Args:
        toml: The file's text; may be empty.
        environ: Variables; those without the prefix are ignored.
        file: What to call the text in errors and origins.

    Raises:
        ConfigError: An unknown name, a value of the wrong type or outside its bounds, or a required one missing.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_FIELDS, "default")
    for name, value in _parse_toml(toml, file).items():
        if name not in _FIELDS:
            raise unknown(name, file, list(_FIELDS))
        values[name] = _TABLES[name](value, file) if name in _TABLES else _typed(name, value, file)
        origins[name] = file
    given = environ or {}
    for variable, text in given.items():
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE or _of_service(variable, given):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in _FIELDS or name in _TABLES:
            raise unknown(variable, "the environment", [ENV_PREFIX + f.upper() for f in _FIELDS if f not in _TABLES])
        values[name] = _typed(name, _from_text(name, text, variable), variable)
        origins[name] = variable
    missing = [name for name, f in _FIELDS.items() if f.default is dataclasses.MISSING and name not in values]
    if missing:
        variables = ", ".join(ENV_PREFIX + name.upper() for name in missing)
        raise ConfigError(
            f"{file} does not set {', '.join(missing)}", expected="a value", next=f"add it there, or set {variables}"
        )
    settings = AgentSettings(**values)
    _check(settings)
    return Loaded(settings, origins)


def _of_service(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes set *variable*, for a Service called `mesh-agent...` in the pod's namespace."""
    ours = ENV_PREFIX.removesuffix("_")
    for name in (n.removesuffix(_SERVICE) for n in environ if n.startswith(ours) and n.endswith(_SERVICE)):
        if variable.startswith((f"{name}_SERVICE_", f"{name}_PORT_")):
            return True
        if variable == f"{name}_PORT" and "://" in environ[variable]:
            return True
    return False


def _parse_toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", expected="name = value lines", file=file) from None


def _from_text(name: str, text: str, variable: str) -> Any:
    kind = _KINDS[str(_FIELDS[name].type)]
    try:
        return kind(text)
    except ValueError:
        raise wrong(name, variable, kind.__name__, "text that is none") from None


def _typed(name: str, value: Any, where: str) -> Any:
    kind = _KINDS[str(_FIELDS[name].type)]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise wrong(name, where, kind.__name__, type(value).__name__)
    if kind is not str:
        low, high = _FIELDS[name].metadata["low"], _FIELDS[name].metadata["high"]
        if not low <= value <= high:
            raise wrong(name, where, f"{low:g} to {high:g} {_FIELDS[name].metadata['unit']}", f"{value:g}")
    return value


def _check(settings: AgentSettings) -> None:
    """What only shows between settings, or needs more than a type."""
    for name in ("name", "tenant", "site"):
        named(getattr(settings, name), name)
    for name in ("http_host", "webhooks_host", "health_host"):
        try:
            address = ip_address(getattr(settings, name))
        except ValueError:
            raise wrong(name, "settings", "an IP address", "another text") from None
        if name == "http_host" and not address.is_loopback:
            raise wrong(name, "settings", "a loopback address: the door trusts whoever holds the token", "another")
    _together(settings, "event_key_file", "event_cert_file")
    _together(settings, "nats_ca_file", "nats_cert_file", "nats_key_file")
    if settings.push and not settings.team_creds_file:
        raise wrong("team_creds_file", "settings", "set where there are push targets: they read as the team", "empty")
    check_places(settings.push, settings.push_hosts)
    if settings.log_level not in LOG_LEVELS:
        raise wrong("log_level", "settings", f"one of {', '.join(LOG_LEVELS)}", "another text")
    if settings.max_webhook_bytes < settings.max_event_bytes:
        raise wrong("max_webhook_bytes", "settings", "max_event_bytes or more", f"{settings.max_webhook_bytes}")
    if settings.max_waiting_events < settings.max_batch_events or settings.max_waiting_bytes < settings.max_batch_bytes:
        raise ConfigError(
            "one full batch would never be admitted",
            expected="max_waiting_events >= max_batch_events and max_waiting_bytes >= max_batch_bytes",
            got=f"{settings.max_waiting_events} and {settings.max_waiting_bytes}",
            next="raise the former or lower the latter",
        )


def _together(settings: AgentSettings, *names: str) -> None:
    """Files that make sense only with each other."""
    given = [name for name in names if getattr(settings, name)]
    missing = [name for name in names if name not in given]
    if given and missing:
        raise ConfigError(
            f"settings name {' and '.join(given)} without {' and '.join(missing)}",
            expected="all of them, or none",
            got=f"only {', '.join(given)}",
            next="they belong together: name the other files too",
        )


def rows(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    """(name, value, unit, origin) of every setting, for people."""
    return [
        (name, _shown(getattr(loaded.settings, name)), f.metadata["unit"], loaded.origins[name])
        for name, f in _FIELDS.items()
    ]


def as_dict(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """The same for machines."""
    return {
        name: {
            "value": _plain(getattr(loaded.settings, name)),
            "unit": f.metadata["unit"],
            "origin": loaded.origins[name],
        }
        for name, f in _FIELDS.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {item.name: item.shown() for item in value}
    return value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "; ".join(f"{item.name}: {item.summary()}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown() -> str:
    """The table of settings for the reference page."""
    lines = ["| setting | default | unit | why |", "|---|---|---|---|"]
    for name, f in _FIELDS.items():
        default = "required" if f.default is dataclasses.MISSING else f"`{_shown(f.default)}`" if f.default else ""
        lines.append(f"| `{name}` | {default} | {f.metadata['unit']} | {f.metadata['why']} |")
    return "\n".join(lines)
