"""Settings: one object, each value from the environment, the file or the default, and every mistake named."""

from __future__ import annotations

import dataclasses

import pytest

from agent import settings
from agent.enrolment import our_id
from agent.settings import AgentSettings, load
from mesh.errors import ConfigError
from mesh.identity import SpiffeId

NAMED = 'name = "crm-adapter"\ntenant = "acme"\n'


def test_defaults_hold_where_nothing_is_set() -> None:
    """A file that only says who the agent is gives the defaults, and says so."""
    loaded = load(NAMED)
    assert loaded.settings.http_host == "127.0.0.1"
    assert loaded.settings.max_event_bytes == 262_144
    assert loaded.origins["http_port"] == "default"
    assert loaded.origins["name"] == "agent.toml"


def test_the_environment_wins_over_the_file() -> None:
    """A variable overrides the file, takes the setting's type, and is named as the origin."""
    loaded = load(NAMED + "http_port = 1\ndrain_s = 3\n", {"MESH_AGENT_HTTP_PORT": "9", "PATH": "/bin"})
    assert loaded.settings.http_port == 9
    assert loaded.origins["http_port"] == "MESH_AGENT_HTTP_PORT"
    assert loaded.settings.drain_s == 3.0
    assert type(loaded.settings.drain_s) is float


def test_everything_can_come_from_the_environment() -> None:
    """No file is needed where variables say it all; the one that names the file is no setting."""
    environ = {"MESH_AGENT_NAME": "a", "MESH_AGENT_TENANT": "t", "MESH_AGENT_CONFIG": "/x/agent.toml"}
    assert load("", environ).settings.name == "a"


def test_an_id_has_the_pod_s_namespace() -> None:
    """In a team's namespace that is another than the tenant, and what is attested there has it."""
    name = SpiffeId.for_agent("mesh.local", "acme-billing", load(NAMED).settings.name)
    assert our_id(load(NAMED, {"MESH_AGENT_NAMESPACE": "acme-billing"}).settings) == str(name)


@pytest.mark.parametrize(
    ("toml", "environ", "says"),
    [
        ("", {}, "does not set name, tenant"),
        (NAMED + "http_prt = 1", {}, "http_prt"),
        (NAMED + "http_port = '1'", {}, "must be int, not str"),
        (NAMED + "http_port = true", {}, "must be int, not bool"),
        (NAMED + "http_port = 70000", {}, "0 to 65535"),
        (NAMED + "drain_s = nan", {}, "must be 0.1 to 600"),
        (NAMED + "http_host = '0.0.0.0'", {}, "loopback"),
        (NAMED + "http_host = 'localhost'", {}, "IP address"),
        (NAMED + "log_level = 'loud'", {}, "one of debug"),
        (NAMED + "event_key_file = 'event.key'", {}, "event_key_file without event_cert_file"),
        (NAMED, {"MESH_AGENT_EVENT_CERT_FILE": "event.crt"}, "event_cert_file without event_key_file"),
        (
            NAMED + "nats_ca_file = 'ca'\nnats_key_file = 'key'",
            {},
            "nats_ca_file and nats_key_file without nats_cert_file",
        ),
        (NAMED + "max_batch_events = 9000", {}, "never be admitted"),
        (NAMED + "[webhooks.github]\nprovider = 'gitlob'\nsecret_files = ['s']", {}, "one of github"),
        (NAMED + "[webhooks.github]\nprovider = 'github'\nsecret_files = []", {}, "one file, or two"),
        (NAMED + "[webhooks.github]\nprovider = 'github'\nsecret_files = ['1', '2', '3']", {}, "one file, or two"),
        (NAMED + "[webhooks.github]\nprovider = 'github'\nsecret = 'hunter2hunter2'", {}, "sets secret"),
        (NAMED + "[webhooks.Git_Hub]\nprovider = 'github'\nsecret_files = ['1']", {}, "webhooks.Git_Hub"),
        ("name = 'Not A Name'\ntenant = 'acme'", {}, "name"),
        ("name = ", {}, "is not TOML"),
        (NAMED, {"MESH_AGENT_HTTP_PORT": "many"}, "must be int"),
        (NAMED, {"MESH_AGENT_TOKEN": "s3cret-value"}, "MESH_AGENT_TOKEN"),
    ],
)
def test_a_mistake_is_named(toml: str, environ: dict[str, str], says: str) -> None:
    """Unknown names, wrong types and values out of bounds are refused, and the message says what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load(toml, environ)
    assert says in str(caught.value)
    assert "hunter2" not in repr(caught.value.as_dict())
    assert "s3cret" not in repr(caught.value.as_dict())


def test_a_near_miss_gets_the_right_name() -> None:
    """A misspelt setting is answered with the one that was meant."""
    with pytest.raises(ConfigError) as caught:
        load(NAMED + "htp_port = 1")
    assert caught.value.expected == "http_port?"


def test_a_webhook_source_has_secrets_and_hosts() -> None:
    """A webhook table gives provider, one or two secret files, and the hosts in lower case."""
    toml = NAMED + "[webhooks.github]\nprovider = 'github'\nsecret_files = ['a', 'b']\nhosts = ['Hooks.Example.org']\n"
    (source,) = load(toml).settings.webhooks
    assert (source.name, source.provider, source.secret_files) == ("github", "github", ("a", "b"))
    assert source.hosts == ("hooks.example.org",)


def test_every_setting_says_why_and_numbers_say_their_unit() -> None:
    """Each setting has a reason, and each number a unit and bounds that hold for its default."""
    for field in dataclasses.fields(AgentSettings):
        assert field.metadata["why"], field.name
        if field.type in {"int", "float"}:
            assert field.metadata["unit"], field.name
            assert field.metadata["low"] <= field.default <= field.metadata["high"], field.name


def test_the_tables_show_every_setting() -> None:
    """The printed table and the reference page name each setting once, with file names and no secrets."""
    loaded = load(NAMED + "[webhooks.github]\nprovider = 'github'\nsecret_files = ['hook.secret']\n")
    names = [field.name for field in dataclasses.fields(AgentSettings)]
    assert [row[0] for row in settings.rows(loaded)] == names
    assert list(settings.as_dict(loaded)) == names
    assert all(f"| `{name}` |" in settings.markdown() for name in names)
    assert any("hook.secret" in row[1] for row in settings.rows(loaded))


def test_the_tables_show_where_a_push_target_is_and_not_its_path() -> None:
    """A path or a query may hold a secret: host and port are shown, the mode, and the names of files."""
    loaded = load(
        NAMED
        + """team_creds_file = "team.creds"
push_hosts = "hooks.example.org"
[push.contacts]
url = "https://hooks.example.org/T000/s3cret?token=s3cret"
mode = "standard-webhooks"
secret_files = ["push.secret"]
token_file = "push.token"
"""
    )
    (shown,) = [row[1] for row in settings.rows(loaded) if row[0] == "push"]
    assert shown == "contacts: standard-webhooks to hooks.example.org:443, secrets in push.secret, token in push.token"
    target = settings.as_dict(loaded)["push"]["value"]["contacts"]
    assert (target["place"], target["secret_files"]) == ("hooks.example.org:443", ("push.secret",))
    assert "s3cret" not in repr(target)


def test_services_of_the_namespace_are_no_settings() -> None:
    """Kubernetes tells each pod of each Service by variables, and one may be called `mesh-agent-http`."""
    links = {
        "MESH_AGENT_SERVICE_HOST": "10.0.0.1", "MESH_AGENT_SERVICE_PORT": "80", "MESH_AGENT_PORT": "tcp://10.0.0.1:80",
        "MESH_AGENT_PORT_80_TCP_ADDR": "10.0.0.1", "MESH_AGENT_SERVICE_PORT_WEB": "80",
        "MESH_AGENT_HTTP_SERVICE_HOST": "10.0.0.2", "MESH_AGENT_HTTP_PORT": "tcp://10.0.0.2:80",
    }  # fmt: skip
    own = {"MESH_AGENT_NAME": "a", "MESH_AGENT_TENANT": "acme"}
    loaded = load("", own | links)
    assert {name for name, origin in loaded.origins.items() if origin != "default"} == {"name", "tenant"}
    given = load("", own | links | {"MESH_AGENT_HTTP_PORT": "9000"}).settings
    assert given.http_port == 9000
    with pytest.raises(ConfigError, match="MESH_AGENT_PORTS"):
        load("", own | links | {"MESH_AGENT_PORTS": "1"})
