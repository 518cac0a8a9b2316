"""The documents of the doors: whole, and complete in what a door can answer."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR  # the official schema of OpenAPI 3.1
from typer.testing import CliRunner

from agent import cli
from agent.openapi import DOORS, PATHS, document
from agent.settings import AgentSettings, load
from agent.webhooks import PROVIDERS
from mesh import errors
from mesh.errors import Denied, InputError, RateLimited, Unavailable
from tests.conftest import ROOT

HOOK = """
[webhooks.{0}]
provider = "{0}"
secret_files = ["hidden.secret"]
hosts = ["hooks.example.org"]
url = "https://hooks.example.org/v1/webhooks/{0}"
"""
SCHEME = """
scheme = {signature_header = "X-Sig", id = "header:X-Id", type = "json:kind", timestamp_header = "X-At",
  signed = "{timestamp}.{body}"}
""".replace("\n ", "")
TABLE: list[dict[str, Any]] = json.loads(ROOT.joinpath("tests/tables/bad_requests.json").read_text())
HEADERS = {"SIGNATURE", "TIMESTAMP", "ID", "DELIVERY", "EVENT", "TOPIC", "WEBHOOK", "TRIGGERED", "SETTINGS"}
HEADERS |= {"INVOCATION", "EVENT_KEY"}  # what the providers' modules call the fields that they read

# Errors that tell a caller something, and that no door answers; each with who raises it.
ELSEWHERE = {
    "api-server-refused": "the control plane, of Kubernetes",
    "bad-admission-review": "the injector's door",
    "not-injectable": "the injector's door",
    "version-expired": "the control plane, of Kubernetes",
    "bad-input": "the base of others; the pull door has it for a wrong parameter",
    "bad-name": "policies, settings and commands",
    "bad-pattern": "policies and commands",
    "bad-subject": "what is stored",
    "data-mismatch": "the library, of typed events",
    "consumer-failed": "the attempts of an event",
    "lease-expired": "the attempts of an event",
    "push-failed": "what posts to the application, of the application",
    "replay-open": "the control plane's door",
    "control-deposed": "the control plane",
    "revision-needed": "what is stored, of an older revision",
    "streams-missing": "the control plane",
}
# What runs between a request and its answer: what these modules raise, the documents have.
ON_THE_WAY = (
    "agent/listener.py", "agent/requests.py", "agent/intake.py", "agent/rates.py", "agent/room.py", "agent/outbound.py",
    "agent/refusals.py", "agent/clock.py", "mesh/event.py", "mesh/attributes.py", "mesh/content.py", "mesh/headers.py",
    "mesh/jsontext.py", "mesh/expiry.py", "mesh/journey.py", "mesh/jetstream/window.py", "mesh/jetstream/publisher.py",
    "mesh/jetstream/refused_subjects.py",
)  # fmt: skip


def settings(*providers: str, more: str = "") -> AgentSettings:
    """Settings with a source of each of *providers*."""
    tables = [HOOK.format(name) + (SCHEME if name == "generic" else "") for name in providers]
    return load(f'name = "a"\ntenant = "acme"\n{more}\n' + "".join(tables)).settings


def operations(made: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) of a document."""
    for path, item in made["paths"].items():
        for method in ("get", "post"):
            if method in item:
                yield path, method, item[method]


def codes(operation: dict[str, Any]) -> dict[int, set[str]]:
    """The problem codes of an operation by status."""
    found: dict[int, set[str]] = {}
    for status, response in operation["responses"].items():
        problem = response["content"].get("application/problem+json")
        if problem is not None:
            found[int(status)] = set(problem["schema"]["allOf"][1]["properties"]["code"]["enum"])
    return found


def all_codes() -> set[str]:
    """Every code that some operation of some door can answer."""
    made = [document(settings(*PROVIDERS), door) for door in DOORS]
    return {code for one in made for _, _, op in operations(one) for some in codes(op).values() for code in some}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("more", ["", "http_port = 0\nhealth_host = '::1'", "http_socket = 'door.sock'"])
def test_a_document_is_openapi(door: str, more: str) -> None:
    """Each document holds to the official schema of OpenAPI 3.1, with sources and without."""
    for providers in ((), tuple(PROVIDERS)):
        made = document(settings(*providers, more=more), door)
        assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(made)] == []


@pytest.mark.parametrize("door", DOORS)
def test_a_document_is_whole(door: str) -> None:
    """Every reference leads somewhere, every component is used, and an operation's id is its own."""
    made = document(settings(*PROVIDERS), door)
    text = json.dumps(made)
    components = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert {part.split('"')[0] for part in text.split('"$ref": "')[1:]} == components
    named = [operation["operationId"] for _, _, operation in operations(made)]
    assert len(named) == len(set(named))
    schemes = {name for _, _, op in operations(made) for use in op.get("security", ()) for name in use}
    assert schemes == set(made["components"].get("securitySchemes", ()))


def test_every_error_for_a_caller_is_documented() -> None:
    """An error that says something to a caller stands in a document, or above with the reason why not."""
    kinds = (InputError, Unavailable, Denied, RateLimited)
    told = {error.code for error in errors.catalogue() if issubclass(error, kinds)}
    assert told - all_codes() - set(ELSEWHERE) == set(), "document it at its door, or say above who raises it"
    assert set(ELSEWHERE) <= told


def test_what_is_raised_on_the_way_is_documented() -> None:
    """Every error class that the modules between request and answer make is among the codes of publishing."""
    known = {error.__name__: error.code for error in errors.catalogue()}
    made = document(settings())["paths"]["/v1/events"]["post"]
    documented = {code for some in codes(made).values() for code in some}
    for file in ON_THE_WAY:
        tree = ast.parse(ROOT.joinpath(file).read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        raised = {known[name] for name in called & known.keys()} - {"not-found", "bad-config", "jetstream-refused"}
        assert raised <= documented, file


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_a_bad_request_is_documented(row: dict[str, Any]) -> None:
    """Each row of bad_requests.json is answered with a status and a code that its operation names."""
    path = row.get("path", "/v1/events")
    item = document(settings())["paths"].get(path)
    if item is None:
        assert row["code"] == "not-found"
        return
    named = [codes(operation) for operation in item.values()]
    assert all(row["code"] in some[row["status"]] for some in named)


def test_a_document_tells_strangers_no_secret() -> None:
    """The webhooks' document names sources, hosts and headers, and no file of a secret."""
    made = json.dumps(document(settings(*PROVIDERS), "webhooks"))
    assert "hooks.example.org" in made
    assert "hidden.secret" not in made


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_is_described_as_it_is(provider: str) -> None:
    """A source's path has its provider's content types, and the header fields that the provider's module reads."""
    made = document(settings(provider), "webhooks")
    path = made["paths"][f"/v1/webhooks/{provider}"]["post"]
    assert set(path["requestBody"]["content"]) == set(PROVIDERS[provider].CONTENT_TYPES)
    module = sys.modules[PROVIDERS[provider].__module__]
    read = {value for name, value in vars(module).items() if name in HEADERS and "{" not in value}
    told = {field["name"] for field in path["parameters"]} | {made["components"]["securitySchemes"][provider]["name"]}
    assert read <= told


def test_limits_are_those_of_the_settings() -> None:
    """A smaller batch in the settings is a smaller batch in the document."""
    made = document(settings(more="max_batch_events = 7"))["paths"]["/v1/events"]["post"]
    assert made["requestBody"]["content"]["application/cloudevents-batch+json"]["schema"]["maxItems"] == 7


@pytest.mark.parametrize("door", DOORS)
def test_it_is_printed_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    """`mesh-agent openapi` prints a door's document, with an agent.toml and without."""
    monkeypatch.chdir(tmp_path)
    assert json.loads(CliRunner().invoke(cli.app, ["openapi", "--door", door]).stdout) == document(settings(), door)
    text = 'name = "a"\ntenant = "acme"\n' + HOOK.format("github")
    (tmp_path / "mine.toml").write_text(text)
    printed = CliRunner().invoke(cli.app, ["openapi", "--door", door, "--config", "mine.toml"]).stdout
    assert json.loads(printed) == document(settings("github"), door)


def test_every_door_can_be_asked_for() -> None:
    """The command's choices, and what the application's door serves, are the doors that have a document."""
    assert set(get_args(cli.Door)) == set(DOORS) == set(PATHS.values())
