"""The `[push.<subscription>]` tables of `agent.toml`, and where a target may be. Pure.

A target is on this machine (a loopback address, `localhost`, a Unix socket), or its host is in `push_hosts`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from agent.mistakes import named, number, table, text, texts, wrong

STRUCTURED, BINARY, BATCH, STANDARD = "structured", "binary", "batch", "standard-webhooks"
MODES = (STRUCTURED, BINARY, BATCH, STANDARD)
MAX_SECRETS = 2  # the one in use and, while it is rotated, the next
PORTS = {"http": 80, "https": 443}
LOCALHOST = "localhost"


def _option(default: Any, *, why: str, unit: str = "", low: float = 0, high: float = 0) -> Any:
    return field(default=default, metadata={"why": why, "unit": unit, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTarget:
    """Where the events of one subscription are posted to, and how."""

    name: str
    url: str = _option("", why="http or https, a host, a path; of this machine, or of a host in push_hosts")
    mode: str = _option(STRUCTURED, why=f"one of {', '.join(MODES)}")
    secret_files: tuple[str, ...] = _option(
        (), why="standard-webhooks: a `whsec_` secret a file, two while it is rotated; both sign"
    )
    token_file: str = _option("", why="sent as `Authorization: Bearer`; read again when it changes")
    socket: str = _option("", why="a Unix socket to connect to; the url then names the path, at localhost")
    ca_file: str = _option("", why="roots that the target's certificate leads to; empty for the system's")
    allow_http: bool = _option(False, why="http to another machine: events travel in clear")  # noqa: FBT003
    timeout_s: float = _option(10.0, unit="s", low=0.1, high=600, why="a whole request; longer work is for a queue")
    concurrency: int = _option(16, unit="requests", low=1, high=256, why="at once, and so connections at most")
    batch_events: int = _option(100, unit="events", low=1, high=1000, why="of one request, in the mode batch")
    max_pause_s: float = _option(
        300.0, unit="s", low=1, high=86_400, why="the longest Retry-After that is honoured as it is"
    )

    @property
    def parts(self) -> SplitResult:
        """Of the URL."""
        return urlsplit(self.url)

    @property
    def place(self) -> str:
        """Host and port, for people: the path may hold a secret."""
        parts = self.parts
        return f"unix:{self.socket}" if self.socket else f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"

    def shown(self) -> dict[str, Any]:
        """Its options for machines, with its place instead of the URL."""
        return {"place": self.place, **{name: getattr(self, name) for name in _FIELDS if name != "url"}}

    def summary(self) -> str:
        """The same for people, in short."""
        secrets = f", secrets in {', '.join(self.secret_files)}" if self.secret_files else ""
        return f"{self.mode} to {self.place}{secrets}" + (f", token in {self.token_file}" if self.token_file else "")


_FIELDS = {f.name: f for f in dataclasses.fields(PushTarget) if f.metadata}


def read_targets(tables: Any, file: str) -> tuple[PushTarget, ...]:
    """The targets of `[push.*]`; `check_places` looks at where they are.

    Raises:
        ConfigError: An unknown option, a value that cannot be, or one that does not fit the mode.
    """
    if not isinstance(tables, dict):
        raise wrong("push", file, "tables [push.<subscription>]", type(tables).__name__)
    return tuple(_target(name, value, f"{file} [push.{name}]") for name, value in tables.items())


def _target(name: str, value: Any, where: str) -> PushTarget:
    named(name, where)
    options = table(value, where, tuple(_FIELDS))
    target = PushTarget(name=name, **{option: _typed(option, given, where) for option, given in options.items()})
    if target.mode not in MODES:
        raise wrong("mode", where, f"one of {', '.join(MODES)}", "another")
    if target.mode == STANDARD and not 1 <= len(target.secret_files) <= MAX_SECRETS:
        raise wrong("secret_files", where, "one file, or two while a secret is rotated", str(len(target.secret_files)))
    if target.mode != STANDARD and target.secret_files:
        raise wrong("secret_files", where, f"left out: only {STANDARD} signs", "given")
    if target.mode != BATCH and "batch_events" in options:
        raise wrong("batch_events", where, f"left out: only {BATCH} has several", "given")
    _check_url(target, where)
    return target


def _typed(name: str, value: Any, where: str) -> Any:
    default: object = _FIELDS[name].default
    bounds = _FIELDS[name].metadata
    if isinstance(default, tuple):
        return texts(value, name, where)
    if isinstance(default, str):
        return text(value, name, where)
    if isinstance(default, int) and type(value) is not type(default):  # a float may be written without a point
        raise wrong(name, where, type(default).__name__, type(value).__name__)
    if isinstance(default, bool):
        return value
    given = number(value, name, where, low=bounds["low"], high=bounds["high"], unit=bounds["unit"])
    return int(given) if isinstance(default, int) else given


def _check_url(target: PushTarget, where: str) -> None:
    url = target.url
    try:
        parts = urlsplit(url)
        good = parts.scheme in PORTS and bool(parts.hostname) and "@" not in parts.netloc and not parts.fragment
        good = (
            good and url.isascii() and url.isprintable() and " " not in url and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise wrong("url", where, "http:// or https://, a host, a path, and no name or password in it", "another text")
    if target.socket and not (is_local(parts.hostname or "") and parts.scheme == "http"):
        raise wrong("url", where, "http://localhost and a path, where there is a socket", "another")
    if target.ca_file and parts.scheme != "https":
        raise wrong("ca_file", where, "left out, for an http target has no certificate", "given")


def is_local(host: str) -> bool:
    """Whether *host* is this machine: `localhost`, or a loopback address as the standards write it."""
    if host == LOCALHOST:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_hosts(hosts: str) -> frozenset[str]:
    """The entries of `push_hosts`: `host`, which stands for the usual port of http and https, or `host:port`."""
    return frozenset(entry.strip().lower() for entry in hosts.split(",") if entry.strip())


def check_places(targets: tuple[PushTarget, ...], hosts: str) -> None:
    """Check that every target is on this machine or allowed.

    Args:
        targets: Of one agent.
        hosts: Its `push_hosts`.

    Raises:
        ConfigError: One is elsewhere, or elsewhere without TLS.
    """
    allowed = read_hosts(hosts)
    for target in targets:
        parts, where = target.parts, f"[push.{target.name}]"
        host = parts.hostname or ""
        if is_local(host):
            continue
        shown = f"[{host}]" if ":" in host else host
        names = {f"{shown}:{parts.port or PORTS[parts.scheme]}"}
        if parts.port in (None, PORTS[parts.scheme]):
            names.add(shown)
        if not names & allowed:
            raise wrong("url", where, "on this machine, or a host in push_hosts", f"{shown}, which is not among them")
        if parts.scheme != "https" and not target.allow_http:
            raise wrong("url", where, "https, or allow_http = true: over http events travel in clear", "http")
