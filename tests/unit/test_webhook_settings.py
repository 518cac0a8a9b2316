"""The `[webhooks.<source>]` tables: what a source may say, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.settings import as_dict, load, rows
from agent.webhooks import PROVIDERS
from agent.webhooks.scheme import Scheme
from agent.webhooks.settings import TOLERANCE_S, read_sources
from mesh.errors import ConfigError

SECRETS = ["a", "b"]
SCHEME = {"signature_header": "X-Sig", "id": "header:X-Id", "type": "json:event"}


def read(**table: Any) -> Any:
    """The one source of a table."""
    (source,) = read_sources({"erp": {"secret_files": SECRETS, **table}}, "agent.toml")
    return source


def test_a_source_has_defaults() -> None:
    """Provider and secrets are enough; the tolerance is the providers' own five minutes."""
    source = read(provider="stripe")
    assert (source.name, source.provider, source.secret_files) == ("erp", "stripe", ("a", "b"))
    assert (source.tolerance_s, source.url, source.scheme, source.hosts) == (TOLERANCE_S, "", None, ())


def test_a_scheme_has_defaults() -> None:
    """Header, id and type are enough: SHA-256 in hexadecimal over the body."""
    scheme = read(provider="generic", scheme=SCHEME).scheme
    assert scheme == Scheme(signature_header="X-Sig", id="header:X-Id", type="json:event")
    assert (scheme.digest, scheme.encoding, scheme.signed) == ("sha256", "hex", "{body}")


def test_a_time_may_stand_before_the_body() -> None:
    """`{timestamp}{body}` needs nothing between: a body begins with no digit."""
    scheme = {**SCHEME, "signed": "{id}.{timestamp}{body}", "timestamp_header": "X-At"}
    assert read(provider="generic", scheme=scheme).scheme.signed == "{id}.{timestamp}{body}"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"provider": "gitlab"}, "one of github, stripe, shopify, slack, standard, hubspot, twilio, zendesk"),
        ({"provider": "stripe", "tolerance": 5}, "tolerance_s?"),
        ({"provider": "stripe", "tolerance_s": "5"}, "a number, not str"),
        ({"provider": "stripe", "tolerance_s": True}, "a number, not bool"),
        ({"provider": "stripe", "tolerance_s": 0}, "1 to 86400 s"),
        ({"provider": "stripe", "tolerance_s": float("nan")}, "1 to 86400 s"),
        ({"provider": "stripe", "url": 7}, "a text"),
        ({"provider": "stripe", "scheme": {}}, "only generic has one"),
        ({"provider": "hubspot"}, "its signature covers it"),
        ({"provider": "twilio", "url": "hooks.example.org/x"}, "http:// or https://"),
        ({"provider": "twilio", "url": "https://user@hooks.example.org/x"}, "http:// or https://"),
        ({"provider": "twilio", "url": "https://hooks.example.org:99999/x"}, "http:// or https://"),
        ({"provider": "twilio", "url": "https://[hooks/x"}, "http:// or https://"),
        ({"provider": "twilio", "url": "https://hooks.example.org/x#y"}, "http:// or https://"),
        ({"provider": "twilio", "url": "https://hooks.example.org/a b\n"}, "http:// or https://"),
        ({"provider": "generic"}, "signature_header must be given"),
        ({"provider": "generic", "scheme": "hmac"}, "a table"),
        ({"provider": "generic", "scheme": {**SCHEME, "id": ""}}, "id must be given"),
        ({"provider": "generic", "scheme": {**SCHEME, "digests": "sha512"}}, "sets digests"),
        ({"provider": "generic", "scheme": {**SCHEME, "digest": "sha1"}}, "one of sha256, sha512"),
        ({"provider": "generic", "scheme": {**SCHEME, "digest": 256}}, "a text"),
        ({"provider": "generic", "scheme": {**SCHEME, "encoding": "base32"}}, "one of hex, base64"),
        ({"provider": "generic", "scheme": {**SCHEME, "signature_header": "X Sig"}}, "the name of a header field"),
        ({"provider": "generic", "scheme": {**SCHEME, "id": "X-Id"}}, "header:<name of a field> or json:"),
        ({"provider": "generic", "scheme": {**SCHEME, "id": "text:1"}}, "header:<name of a field> or json:"),
        ({"provider": "generic", "scheme": {**SCHEME, "type": "header:"}}, "or text:<name>"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{timestamp}"}}, "{body} once"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{body}{body}"}}, "{body} once"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{body}{secret}"}}, "{body} once"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{id}{timestamp}{body}"}}, "between any two"),
        (
            {"provider": "generic", "scheme": {**SCHEME, "signed": "{id}.{body}{timestamp}"}},
            "between any two",
        ),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{id}{body}"}}, "between any two"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{timestamp}.{body}"}}, "timestamp_header must be"),
        ({"provider": "generic", "scheme": {**SCHEME, "timestamp_header": "X-At"}}, "a time that is not signed"),
        ({"provider": "generic", "scheme": {**SCHEME, "id": "json:id", "signed": "{id}.{body}"}}, "id must be header:"),
        ({"provider": "generic", "scheme": {**SCHEME, "signed": "{url} {body}"}}, "its signature covers it"),
    ],
)
def test_a_mistake_is_named(table: dict[str, Any], says: str) -> None:
    """What a source cannot be is refused at the start, with what it can be."""
    with pytest.raises(ConfigError) as caught:
        read(**table)
    assert says in f"{caught.value} {caught.value.expected}"


def test_the_file_and_the_lists_show_a_source() -> None:
    """A table in `agent.toml` with a scheme below it is read, and `mesh-agent config` shows both."""
    loaded = load(
        'name = "a"\ntenant = "t"\n[webhooks.erp]\nprovider = "generic"\nsecret_files = ["s"]\n'
        '[webhooks.erp.scheme]\nsignature_header = "X-Sig"\nid = "header:X-Id"\ntype = "json:event"\n'
    )
    (source,) = loaded.settings.webhooks
    assert source.scheme is not None
    assert as_dict(loaded)["webhooks"]["value"]["erp"]["scheme"]["signature_header"] == "X-Sig"
    assert any("erp: generic, secrets in s" in row[1] for row in rows(loaded))


def test_the_pages_example_is_read(root: Path) -> None:
    """What the agent's page shows under Webhooks is an `agent.toml` that loads, scheme and all."""
    page = (root / "agent" / "README.md").read_text().partition("## Webhooks")[2]
    example = page.partition("```toml\n")[2].partition("```")[0]
    sources = {source.name: source for source in load('name = "a"\ntenant = "t"\n' + example).settings.webhooks}
    assert {name: source.provider for name, source in sources.items()} == {
        "payments": "stripe",
        "phone": "twilio",
        "erp": "generic",
    }
    assert all(f"| `{provider}` |" in page for provider in PROVIDERS)
