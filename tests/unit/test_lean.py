"""What a command of ours does not load: what it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import sys
sys.argv = ["mesh", *{arguments}]
try:
    from {module} import main
    main()
except SystemExit:
    pass
print("loaded", *sys.modules)
import aiohttp
print(aiohttp.ClientSession.__name__)
"""


def loaded(module: str, *arguments: str) -> set[str]:
    """The modules that are there after a command; aiohttp can be had afterwards."""
    code = LOADED.format(module=module, arguments=list(arguments))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-1] == "ClientSession"
    return set(said[-2].split()[1:])


@pytest.mark.parametrize(
    ("module", "arguments", "needed"),
    [
        ("mesh.cli", ("policy", "lint", "--help"), "mesh.cli.policy.live"),
        ("mesh.cli", ("up", "--help"), "mesh.control.up"),
        ("agent.__main__", ("run", "--config", "nowhere.toml"), "agent.__main__"),
    ],
)
def test_no_process_of_ours_loads_websockets(module: str, arguments: tuple[str, ...], needed: str) -> None:
    """nats-py is there without aiohttp, which whoever wants it can still import."""
    found = loaded(module, *arguments)
    assert {needed, "nats.aio.client"} <= found
    assert "aiohttp" not in found


def test_a_noun_does_not_load_the_others() -> None:
    """`mesh audit` begins without the control plane, the demo and the policies' tools."""
    found = loaded("mesh.cli", "audit", "--help")
    assert "mesh.cli.audit" in found
    assert not found & {"mesh.control.up", "mesh.demo.run", "mesh.cli.policy", "mesh.cli.trust"}


def test_the_version_loads_no_noun() -> None:
    """`mesh --version` needs neither NATS nor policies."""
    found = loaded("mesh.cli", "--version")
    assert not [name for name in found if name.startswith(("nats", "mesh.cli.", "mesh.policy"))]
