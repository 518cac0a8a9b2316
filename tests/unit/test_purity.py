"""Which module may touch the world, kept true by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The rooms without a clock, a socket or a die: given the same arguments they answer the same. A module of ours that one
# of these imports has to stand here too.
PURE = {
    "mesh.asyncapi", "mesh.asyncapi.document", "mesh.asyncapi.forms", "mesh.asyncapi.payloads",
    "mesh.audit", "mesh.audit_check", "mesh.audit_fold",
    "mesh.authorities", "mesh.ca", "mesh.enrolment", "mesh.trust_statement",
    "mesh.attributes", "mesh.base64url", "mesh.batches",
    "mesh.certificates", "mesh.composing", "mesh.content", "mesh.deadletters", "mesh.delivery",
    "mesh.errors",
    "mesh.event", "mesh.globs", "mesh.headers", "mesh.identity", "mesh.inbound", "mesh.journey", "mesh.jsontext",
    "mesh.keyed", "mesh.keys",
    "mesh.limits", "mesh.merkle", "mesh.native", "mesh.ordering", "mesh.redriven", "mesh.retry", "mesh.retry_after",
    "mesh.signing",
    "mesh.staleness", "mesh.statements", "mesh.subjects", "mesh.together", "mesh.typed",
    "mesh.jetstream", "mesh.jetstream.accounts", "mesh.jetstream.changes", "mesh.jetstream.topology",
    "mesh.jetstream.durables", "mesh.jetstream.succession", "mesh.control.replay_runs",
    "mesh.jetstream.acks", "mesh.jetstream.credit", "mesh.jetstream.deliveries", "mesh.jetstream.former",
    "mesh.jetstream.outgoing", "mesh.jetstream.probing", "mesh.jetstream.refusals", "mesh.jetstream.refused_subjects",
    "mesh.jetstream.sealing", "mesh.jetstream.silence",
    "mesh.jetstream.transition", "mesh.jetstream.window", "mesh.jetstream.wire",
    "mesh.jetstream.excess", "mesh.jetstream.imports", "mesh.jetstream.rights",
    "mesh.policy",  # and everything below it
    "mesh.completeness", "mesh.epochs", "mesh.expiry", "mesh.findings", "mesh.marks", "mesh.sequences", "mesh.tracks",
    "mesh.conventions", "mesh.cutting", "mesh.tracing", "mesh.verbatim",
    "agent.adapter.changes", "agent.adapter.cloak", "agent.adapter.pace", "agent.adapter.page",
    "agent.counting",
    "agent.openapi", "agent.openapi.application", "agent.openapi.events", "agent.openapi.frame", "agent.openapi.health",
    "agent.openapi.providers", "agent.openapi.pull", "agent.openapi.webhooks",
    "mesh.kubernetes", "mesh.kubernetes.admission", "mesh.kubernetes.brought", "mesh.kubernetes.conditions",
    "mesh.kubernetes.fragment",
    "mesh.kubernetes.injection", "mesh.kubernetes.names", "mesh.kubernetes.objects", "mesh.kubernetes.rules",
    "mesh.kubernetes.structural",
    "mesh.breaker", "mesh.inbox.notes", "mesh.outbox.rows", "mesh.poison", "mesh.rates",
    "mesh.demo.account",
    "agent.pull", "agent.pull.asking", "agent.pull.leases",
    "agent.push", "agent.push.pause", "agent.push.requests", "agent.push.settings", "agent.push.signature",
    "agent.push.verdict",
    "agent.lanes", "agent.problems", "agent.repeats", "agent.settings", "agent.used_keys",
    "agent.spool.egress", "agent.spool.record", "agent.spool.wal",
    "agent.mistakes", "agent.webhooks", "agent.webhooks.atlassian", "agent.webhooks.checks", "agent.webhooks.events",
    "agent.webhooks.forms", "agent.webhooks.generic", "agent.webhooks.github", "agent.webhooks.hubspot",
    "agent.webhooks.provider", "agent.webhooks.scheme", "agent.webhooks.settings", "agent.webhooks.shopify",
    "agent.webhooks.slack", "agent.webhooks.standard", "agent.webhooks.stripe", "agent.webhooks.twilio",
    "agent.webhooks.zendesk",
}  # fmt: skip

# What one of them does all the same, and why it may.
EXCUSED = {
    "mesh.native": ["imports os"],  # to read MESH_NATIVE, once: it chooses between two twins that answer the same
}

WORLD = {
    "aiohttp", "anyio", "asyncio", "http", "multiprocessing", "nats", "os", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request",
    "uvloop",
}  # fmt: skip


def _is_pure(module: str) -> bool:
    return module in PURE or module.startswith("mesh.policy.")


def _modules() -> dict[str, Path]:
    """Every module of the two packages and the file it lives in."""
    found = {}
    for path in sorted([*ROOT.glob("mesh/**/*.py"), *ROOT.glob("agent/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(source: str, known: set[str]) -> Iterator[str]:
    """The modules *source* imports when it runs; those under `if TYPE_CHECKING:` only the type checker reads."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pending.extend(node.orelse)
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                for alias in node.names:
                    below = f"{module}.{alias.name}"
                    yield below if below in known else module
        pending.extend(ast.iter_child_nodes(node))


def _touches_world(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in WORLD)


def _impurities(source: str, known: set[str]) -> list[str]:
    """What keeps a pure module from being one."""
    ours = {"mesh", "agent"}
    found = []
    for module in _imports(source, known):
        if _touches_world(module):
            found.append(f"imports {module}")
        elif module.split(".")[0] in ours and module not in ours and not _is_pure(module):
            found.append(f"imports {module}, which is not pure")
    if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(ast.parse(source))):
        found.append("has async code")
    return found


_ALL = _modules()


@pytest.mark.parametrize("module", [m for m in _ALL if _is_pure(m)])
def test_pure_module_touches_nothing(module: str) -> None:
    """A pure module imports no clock, socket, process or chance, and of ours only pure modules."""
    assert _impurities(_ALL[module].read_text(), set(_ALL)) == EXCUSED.get(module, [])


def test_every_pure_module_exists() -> None:
    """The list of pure modules has no dead names: a renamed module would escape the rule."""
    assert set(_ALL) >= PURE


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import socket", "imports socket"),
        ("import os.path", "imports os.path"),
        ("from asyncio import sleep", "imports asyncio"),
        ("def f():\n    from nats.aio.client import Client", "imports nats.aio.client"),
        ("from mesh import telemetry", "imports mesh.telemetry, which is not pure"),
        ("import mesh.client", "imports mesh.client, which is not pure"),
        ("async def f() -> None: ...", "has async code"),
    ],
)
def test_planted_impurity_is_found(source: str, complaint: str) -> None:
    """The check finds each way of breaking the rule."""
    assert _impurities(source, {"mesh.telemetry", "mesh.client"}) == [complaint]


def test_type_only_import_is_no_impurity() -> None:
    """What only the type checker reads does not run."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket\nelse:\n    import math"
    assert _impurities(source, set()) == []


@pytest.mark.parametrize("module", [m for m in _ALL if m.split(".")[0] == "agent"])
def test_agent_stays_apart_from_the_control_plane(module: str) -> None:
    """An agent never imports `mesh.control`: it has to work without one."""
    imported = set(_imports(_ALL[module].read_text(), set(_ALL)))
    assert not {m for m in imported if m == "mesh.control" or m.startswith("mesh.control.")}


@pytest.mark.parametrize("module", [m for m in _ALL if m.split(".")[0] == "mesh"])
def test_mesh_does_not_know_the_agent(module: str) -> None:
    """The library never imports the agent: `mesh up` starts it as a process."""
    assert not {m for m in _imports(_ALL[module].read_text(), set(_ALL)) if m.split(".")[0] == "agent"}


def test_a_running_agent_loads_only_what_it_needs() -> None:
    """Every pod pays for what an agent imports: no YAML, no command line library, no control plane."""
    script = "import sys, agent.process, agent.core, mesh.policy.compile; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"yaml", "typer", "rich", "opentelemetry", "mesh.control", "mesh.policy.load"} & set(loaded)
