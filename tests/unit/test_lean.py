"""What a command of ours does not load: what it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import sys
sys.argv = ["mesh", *{arguments}]
try:
    from mesh.cli import main
    main()
except SystemExit:
    pass
print("loaded", *sys.modules)
import aiohttp
print(aiohttp.ClientSession.__name__)
"""


def loaded(*arguments: str) -> set[str]:
    """The modules that are there after a command; aiohttp can be had afterwards."""
    code = LOADED.format(arguments=list(arguments))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-1] == "ClientSession"
    return set(said[-2].split()[1:])


@pytest.mark.parametrize(
    ("arguments", "needed", "others"),
    [
        (("policy", "lint", "--help"), "mesh.cli.policy.live", {"mesh.control.up", "mesh.demo.run", "mesh.cli.trust"}),
        (("up", "--help"), "mesh.control.up", {"mesh.demo.run", "mesh.cli.policy", "mesh.control.run"}),
    ],
)
def test_a_command_loads_no_other_and_no_websockets(arguments: tuple[str, ...], needed: str, others: set[str]) -> None:
    """nats-py is there without aiohttp, which can still be imported; and nothing that another noun needs."""
    found = loaded(*arguments)
    assert {needed, "nats.aio.client"} <= found
    assert not found & {"aiohttp", *others}


def test_the_version_loads_no_noun() -> None:
    """`mesh --version` needs neither NATS nor policies."""
    found = loaded("--version")
    assert not [name for name in found if name.startswith(("nats", "mesh.cli.", "mesh.policy"))]


AGENT = """
import sys
from agent.lean import without_http_client
without_http_client()
import agent.lifecycle
print(*sys.modules)
import aiohttp
from aiohttp import ClientTimeout, hdrs, web
version = bool(aiohttp.__version__)
print(aiohttp.ClientSession.__name__, ClientTimeout.__name__, hdrs.HOST, web.Response.__name__, version)
print(hasattr(aiohttp, "nothing_of_that_name"))
"""


def test_a_running_agent_has_no_http_client_until_it_asks() -> None:
    """The server's modules load alone; all of aiohttp is there for who wants it, and nothing that it has not."""
    run = subprocess.run([sys.executable, "-c", AGENT], capture_output=True, text=True, check=True)
    modules, found, more = run.stdout.splitlines()
    assert "aiohttp.web_server" in modules.split()
    assert not set(modules.split()) & {"aiohttp.client", "aiohttp.connector", "aiohttp.web"}
    assert (found, more) == ("ClientSession ClientTimeout Host Response True", "False")
