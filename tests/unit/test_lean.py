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
