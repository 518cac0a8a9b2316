"""Wider grants than the product makes: what `make mutate-grants` puts in place, one at a time.

A mutant changes what the product makes, in the process of the tests: an import, an export, a filter, a limit or a flag
is wider than it should be, everything else is as it was. `mutate.py` runs the attacks against each.

As a pytest plugin (`-p tests.attacks.mutants --mutant NAME`) this module puts one mutant in place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mesh.jetstream import accounts, durables, imports, topology
from mesh.jetstream.imports import TENANT_EXPORTS, Export, Import

READING, WRITING, ACCOUNTS = (f"tests/attacks/test_{name}.py" for name in ("reading", "writing", "accounts"))
ENROLMENT, EVENTS = "tests/attacks/test_enrolment.py", "tests/attacks/test_events.py"
SIDELINES = "tests/attacks/test_sidelines.py"


@dataclass(frozen=True)
class Mutant:
    r"""One pattern, wider.

    Attributes:
        family: What makes it: a function or table of the product.
        old: What the pattern has to look like, a regular expression; for a flag its name.
        new: What takes its place; `\1` is what the first group of *old* found.
        first: The file of attacks that is run first.
    """

    family: str
    old: str
    new: str
    first: str

    @property
    def name(self) -> str:
        """For the table and the command line."""
        return f"{self.family}: {plain(self.old)} -> {plain(self.new)}"

    def widens(self, subject: str) -> bool:
        """Whether it is this pattern."""
        return re.fullmatch(self.old, subject) is not None

    def wide(self, subject: str) -> str:
        """The pattern as it has become."""
        return re.sub(f"^{self.old}$", self.new, subject)


def plain(expression: str) -> str:
    """An expression for people."""
    shown = re.sub(r"\\[123]|\(\[\^\.\]\+\)|\(\.\+\)|\(s\.\.\)", "X", expression)
    return re.sub(r"\\(.)", r"\1", shown)


GET = r"\$JS\.API\.DIRECT\.GET"
NEXT = r"\$JS\.API\.CONSUMER\.MSG\.NEXT"
W, P, S, F = "workload_imports", "publish_imports", "subscription_imports", "durables"
R, D = "replays", "redrive"

MUTANTS = (
    # what every workload takes
    Mutant(W, r"audit\.([^.]+)", "audit.*", WRITING),
    Mutant(W, r"report\.([^.]+)\.\*", "report.*.*", WRITING),
    Mutant(
        W,
        rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.bundle",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.*",
        READING,
    ),
    Mutant(W, rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.bundle", "$JS.API.DIRECT.GET.*.$KV.*.bundle", READING),
    Mutant(W, rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.bundle", "$JS.API.DIRECT.GET.>", READING),
    Mutant(
        W,
        rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.bundle\.\*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle.>",
        READING,
    ),
    Mutant(
        W,
        rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.shadow",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.*",
        READING,
    ),
    Mutant(W, rf"{GET}\.KV_mesh_policy\.\$KV\.mesh_policy\.shadow", "$JS.API.DIRECT.GET.*.$KV.*.shadow", READING),
    Mutant(W, rf"{GET}\.KV_mesh_trust\.\$KV\.mesh_trust\.>", "$JS.API.DIRECT.GET.*.$KV.>", READING),
    Mutant(W, rf"{GET}\.KV_mesh_trust\.\$KV\.mesh_trust\.>", "$JS.API.DIRECT.GET.*.>", READING),
    Mutant(W, rf"{GET}\.REPORTS\.report\.([^.]+)\.\*", "$JS.API.DIRECT.GET.REPORTS.report.*.*", READING),
    Mutant(W, rf"{GET}\.REPORTS\.report\.([^.]+)\.\*", "$JS.API.DIRECT.GET.REPORTS.>", READING),
    Mutant(W, rf"{GET}\.REPORTS\.report\.([^.]+)\.\*", "$JS.API.DIRECT.GET.*", READING),
    Mutant(W, r"ctl\.enrol\.([^.]+)", "ctl.enrol.*", ENROLMENT),
    Mutant(W, r"ctl\.enrol\.([^.]+)", "ctl.*.*", ACCOUNTS),
    Mutant(W, r"ctl\.notice", "ctl.notice, ctl.policy.> (export and user too)", READING),  # each alone opens nothing
    # what an agent publishes
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.*.\1.*.\2", WRITING),
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.local.*.*.\2", WRITING),
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.([^.]+)\.(.+)", r"ev.local.\1.*.\2.>", WRITING),
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.local.\1.*.>", WRITING),
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.local.\1.>", WRITING),
    Mutant(P, r"ev\.local\.([^.]+)\.\*\.(.+)", "ev.>", WRITING),
    # what a team pulls, settles and buries
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)", r"$JS.API.CONSUMER.MSG.NEXT.\1.*", READING),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)", r"$JS.API.CONSUMER.MSG.NEXT.*.\2", READING),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)", "$JS.API.CONSUMER.MSG.NEXT.>", READING),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)\.>", r"$JS.ACK.\1.>", READING),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)\.>", r"$JS.ACK.*.\2.>", READING),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)\.>", "$JS.ACK.>", READING),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)--s03", r"$JS.API.CONSUMER.MSG.NEXT.\1.*", READING),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)--s03", r"$JS.API.CONSUMER.MSG.NEXT.*.\2--s03", SIDELINES),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)--s03\.>", r"$JS.ACK.\1.>", READING),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)--s03\.>", r"$JS.ACK.*.\2--s03.>", SIDELINES),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)--replay", r"$JS.API.CONSUMER.MSG.NEXT.\1.*", SIDELINES),
    Mutant(S, rf"{NEXT}\.([^.]+)\.([^.]+)--replay", r"$JS.API.CONSUMER.MSG.NEXT.*.\2--replay", SIDELINES),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)--replay\.>", r"$JS.ACK.\1.>", SIDELINES),
    Mutant(S, r"\$JS\.ACK\.([^.]+)\.([^.]+)--replay\.>", r"$JS.ACK.*.\2--replay.>", SIDELINES),
    Mutant(S, rf"{NEXT}\.REDRIVE\.([^.]+)", "$JS.API.CONSUMER.MSG.NEXT.REDRIVE.*", SIDELINES),
    Mutant(S, rf"{NEXT}\.REDRIVE\.([^.]+)", r"$JS.API.CONSUMER.MSG.NEXT.*.\1", SIDELINES),
    Mutant(S, r"\$JS\.ACK\.REDRIVE\.([^.]+)\.>", "$JS.ACK.REDRIVE.>", SIDELINES),
    Mutant(S, r"\$JS\.ACK\.REDRIVE\.([^.]+)\.>", r"$JS.ACK.*.\1.>", SIDELINES),
    Mutant(S, r"dlq\.([^.]+)\.([^.]+)", r"dlq.\1.*", WRITING),
    Mutant(S, r"dlq\.([^.]+)\.([^.]+)", r"dlq.*.\2", WRITING),
    Mutant(S, r"dlq\.([^.]+)\.([^.]+)", "dlq.>", WRITING),
    # what a durable delivers
    Mutant(F, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.local.*.*.\2", READING),
    Mutant(F, r"ev\.local\.([^.]+)\.\*\.([^.]+)\.(.+)", r"ev.local.\1.*.\2.>", READING),
    Mutant(F, r"ev\.local\.([^.]+)\.\*\.(.+)", "ev.>", READING),
    Mutant(F, r"ev\.local\.([^.]+)\.(s..)\.(.+)", r"ev.local.*.\2.\3", SIDELINES),
    Mutant(F, r"ev\.local\.([^.]+)\.(s..)\.([^.]+)\.(.+)", r"ev.local.\1.\2.\3.>", SIDELINES),
    # what comes again
    Mutant(R, r"ev\.local\.([^.]+)\.\*\.(.+)", r"ev.local.*.*.\2", SIDELINES),
    Mutant(R, r"ev\.local\.([^.]+)\.\*\.([^.]+)\.(.+)", r"ev.local.\1.*.\2.>", SIDELINES),
    Mutant(D, r"redrive\.([^.]+)\.([^.]+)", r"redrive.\1.*", SIDELINES),
    Mutant(D, r"redrive\.([^.]+)\.([^.]+)", r"redrive.*.\2", SIDELINES),
    # what a user may hear
    Mutant("workload_subscribe", r"_INBOX_([^.]+)\.>", ">", READING),
    Mutant("workload_subscribe", r"_INBOX_([^.]+)\.>", "*.>", READING),
    Mutant("workload_subscribe", r"ctl\.notice", "ctl.>", READING),
    # what the tenant shares at all: the second wall behind the imports
    Mutant("TENANT_EXPORTS", r"(?:ev|\$JS\.ACK|dlq|audit|report)\.>", ">", ACCOUNTS),
    Mutant("TENANT_EXPORTS", r"\$JS\.API\.(.+)\.>", "$JS.API.>", ACCOUNTS),
    Mutant("TENANT_EXPORTS", r"ctl\.(.+)", "ctl.>", ACCOUNTS),
    # what an account may do
    Mutant("limits", "jetstream", "always", READING),
    Mutant("limits", "closed", "never", ACCOUNTS),
    # what a stream obeys
    Mutant("StreamSpec", "allow_rollup_hdrs", "on", WRITING),
    Mutant("StreamSpec", "allow_msg_ttl", "on", WRITING),
    Mutant("StreamSpec", "allow_msg_schedules", "on", WRITING),
    Mutant("StreamSpec", "allow_atomic", "on", WRITING),
    Mutant("StreamSpec", "deny_delete", "off", WRITING),
    Mutant("StreamSpec", "deny_purge", "off", WRITING),
    Mutant("StreamSpec", "max_msg_size", "none", WRITING),
    Mutant("StreamSpec", "duplicate_window", "100 ms", EVENTS),
)


# --- putting one in place --------------------------------------------------------------------------------------------


def mutate(mutant: Mutant) -> None:
    """Make the product grant more, from now on, wherever it has its functions from."""
    if mutant.family == W and mutant.widens("ctl.notice"):
        more = "ctl.policy.>"
        put(imports.workload_imports, W, lambda made: [*made, replace(made[-1], subject=more)])
        put(accounts.workload_subscribe, "workload_subscribe", lambda made: (*made, more))
        put_value("TENANT_EXPORTS", (*TENANT_EXPORTS, Export(more, kind="stream")))
    elif mutant.family in {W, P, S}:
        put(getattr(imports, mutant.family), mutant.family, lambda made: outermost(made, mutant))
        if mutant.new == "ctl.*.*":  # the export has to let it through as well
            put_value("TENANT_EXPORTS", (*(e for e in TENANT_EXPORTS if e.subject != "ctl.enrol.>"), Export("ctl.>")))
    elif mutant.family == F:
        put(topology.durables, F, lambda made: tuple(replace(d, filters=widened(d.filters, mutant)) for d in made))
    elif mutant.family == R:
        put(durables.replays, R, lambda made: tuple(replace(d, filters=widened(d.filters, mutant)) for d in made))
    elif mutant.family == D:
        put(durables.redrive, D, lambda made: replace(made, filters=widened(made.filters, mutant)))
    elif mutant.family == "workload_subscribe":
        put(accounts.workload_subscribe, mutant.family, lambda made: tuple(mutant.wide(subject) for subject in made))
    elif mutant.family == "TENANT_EXPORTS":
        put_value("TENANT_EXPORTS", shared(mutant))
    elif mutant.family == "limits":
        given = {"jetstream": True} if mutant.old == "jetstream" else {"closed": False}
        claims = accounts.Account.claims
        wide = lambda self: claims(replace(self, **given) if self.imports or self.closed else self)  # noqa: E731 - short
        accounts.Account.claims = wide  # type: ignore[method-assign]
    else:
        value = {"on": True, "off": False, "none": -1, "100 ms": 100_000_000}[mutant.new]
        also = {"discard": "old"} if mutant.old == "allow_msg_schedules" else {}  # else the server refuses the stream
        put(
            topology.StreamSpec.config,
            "config",
            lambda made: (
                {**made, mutant.old: value, **also}
                if made["name"].startswith("AUDIT" if value is False else "EV_")
                else made
            ),
            owner=topology.StreamSpec,
        )


def shared(mutant: Mutant) -> tuple[Export, ...]:
    """The exports with some wider, and without those that they contain: a server refuses both together."""
    wide = [
        e if e.subject == mutant.wide(e.subject) else replace(e, subject=mutant.new, many_answers=e.kind == "service")
        for e in TENANT_EXPORTS
    ]
    found = {(e.kind, e.subject): e for e in wide}.values()
    return tuple(
        e for e in found if not any(o.kind == e.kind and o != e and contains(o.subject, e.subject) for o in found)
    )


def put(function: Callable[..., Any], name: str, change: Callable[[Any], Any], *, owner: Any = None) -> None:
    """Change what *function* returns, under every name that it was imported by."""

    def wider(*args: Any, **kwargs: Any) -> Any:
        return change(function(*args, **kwargs))

    if owner is not None:
        setattr(owner, name, wider)
    for module in ours():
        if vars(module).get(name) is function:
            setattr(module, name, wider)


def put_value(name: str, value: object) -> None:
    """Change a table, under every name that it was imported by."""
    for module in ours():
        if name in vars(module):
            setattr(module, name, value)


def ours() -> list[Any]:
    """The product's modules; all that grant anything are imported by the control plane."""
    import mesh.control.up  # noqa: F401 - so that they are

    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "mesh"]


def outermost(made: Iterable[Import], mutant: Mutant) -> list[Import]:
    """*made* with one pattern wider, and without those that it contains: a server refuses both together."""
    wide = [replace(one, subject=mutant.wide(one.subject)) for one in made]
    return [
        one
        for one in dict.fromkeys(wide)
        if not any(contains(other.subject, one.subject) for other in wide if other != one)
    ]


def widened(filters: Iterable[str], mutant: Mutant) -> tuple[str, ...]:
    """Filters of one durable, likewise."""
    wide = list(dict.fromkeys(mutant.wide(one) for one in filters))
    return tuple(one for one in wide if not any(contains(other, one) for other in wide if other != one))


def contains(outer: str, inner: str) -> bool:
    """Whether every subject of *inner* is one of *outer*."""
    theirs = inner.split(".")
    for index, token in enumerate(mine := outer.split(".")):
        if token == ">":
            return len(theirs) > index
        if index >= len(theirs) or (token != "*" and token != theirs[index]) or theirs[index] == ">":
            return False
    return len(mine) == len(theirs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that names a mutant."""
    parser.addoption("--mutant", default="", help="put one mutant of the grants in place")


def pytest_configure(config: pytest.Config) -> None:
    """Put it in place before anything runs."""
    if name := config.getoption("--mutant"):
        mutate(next(mutant for mutant in MUTANTS if mutant.name == name))
