"""The `[webhooks.<source>]` tables of `agent.toml`. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agent.mistakes import named, number, table, text, texts, wrong
from agent.webhooks import PROVIDERS
from agent.webhooks.scheme import URL, Scheme, read_scheme

MAX_SECRETS = 2  # the one in use and, while it is rotated, the next
TOLERANCE_S = 300.0  # Stripe's, Slack's, HubSpot's and Standard Webhooks' own libraries allow five minutes
MAX_TOLERANCE_S = 86_400.0
OPTIONS = ("provider", "secret_files", "hosts", "tolerance_s", "url", "scheme")
_GENERIC = "generic"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSource:
    """A provider that may post to `/v1/webhooks/<name>`.

    Attributes:
        name: Of the table; the events' source is `/<provider>/<name>`.
        provider: Which scheme signs.
        secret_files: One, or two while a secret is rotated.
        hosts: What `Host` may say; none means this listener's own loopback names.
        tolerance_s: Seconds that a signed timestamp may be off, either way.
        url: As the provider was given it, where it signs that: a proxy may show the agent another.
        scheme: How a generic source signs and where its attributes stand.
    """

    name: str
    provider: str
    secret_files: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    tolerance_s: float = TOLERANCE_S
    url: str = ""
    scheme: Scheme | None = None

    def shown(self) -> dict[str, Any]:
        """Its options for machines."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The same for people, in short."""
        return f"{self.provider}, secrets in {', '.join(self.secret_files)}"


def read_sources(tables: Any, file: str) -> tuple[WebhookSource, ...]:
    """The sources of `[webhooks.*]`.

    Raises:
        ConfigError: An unknown provider or option, a missing secret file, a value that cannot be.
    """
    if not isinstance(tables, dict):
        raise wrong("webhooks", file, "tables [webhooks.<source>]", type(tables).__name__)
    return tuple(_source(name, value, f"{file} [webhooks.{name}]") for name, value in tables.items())


def _source(name: str, value: Any, where: str) -> WebhookSource:
    named(name, where)
    options = table(value, where, OPTIONS)
    provider = options.get("provider")
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise wrong("provider", where, f"one of {', '.join(PROVIDERS)}", "another or none")
    secrets = texts(options.get("secret_files"), "secret_files", where)
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise wrong("secret_files", where, "one file, or two while a secret is rotated", str(len(secrets)))
    tolerance_s = options.get("tolerance_s", TOLERANCE_S)
    scheme = _scheme(options, provider, where)
    needs_url = PROVIDERS[provider].NEEDS_URL or (scheme is not None and URL in scheme.signed)
    return WebhookSource(
        name=name,
        provider=provider,
        secret_files=secrets,
        hosts=tuple(host.lower() for host in texts(options.get("hosts", []), "hosts", where)),
        tolerance_s=number(tolerance_s, "tolerance_s", where, low=1, high=MAX_TOLERANCE_S, unit="s"),
        url=_url(options.get("url", ""), where, needed=needs_url),
        scheme=scheme,
    )


def _url(value: Any, where: str, *, needed: bool) -> str:
    url = text(value, "url", where)
    if not url and needed:
        raise wrong("url", where, "the address that the provider was given: its signature covers it", "empty")
    if url:
        try:
            parsed = urlsplit(url)
            good = parsed.scheme in ("http", "https") and bool(parsed.hostname) and "@" not in parsed.netloc
            good = good and not parsed.fragment and url.isascii() and url.isprintable() and (parsed.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise wrong("url", where, "http:// or https://, a host and a path", "another text")
    return url


def _scheme(options: dict[str, Any], provider: str, where: str) -> Scheme | None:
    if provider == _GENERIC:
        return read_scheme(options.get("scheme"), f"{where} scheme")
    if "scheme" in options:
        raise wrong("scheme", where, f"left out: only {_GENERIC} has one", "a table")
    return None
