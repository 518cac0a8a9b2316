"""`mesh policy test`, `who-can-see` and `diff`: what the policies come to, and what a change of them would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mesh.cli.output import NO, YES, command, console, print_json
from mesh.cli.policy.options import (
    DEFAULT_POLICIES,
    JsonOption,
    PoliciesOption,
    PolicyCommand,
    PolicyTenantOption,
    loaded,
    now_ms,
    offline,
    tenant_of,
)
from mesh.cli.policy.seeing import print_seen, seen_as_dict
from mesh.errors import ConfigError
from mesh.policy.compile import Plans
from mesh.policy.documents import PolicySet
from mesh.policy.matrix import Matrix
from mesh.policy.seen import who_can_see
from mesh.policy.trial import plans_of

if TYPE_CHECKING:
    from mesh.policy.suite import SuiteResult

WIDENS = 3  # the exit code of `diff` where somebody would get more
REPLAYED_EVENTS = 1000


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    examples = "Examples:  mesh policy test   |   mesh policy test --policies DIR --junit report.xml   |   ... --json"
    app.command("test", cls=PolicyCommand, epilog=examples)(run_tests)
    examples = (
        "Examples:  mesh policy who-can-see data.customer.email   |   mesh policy who-can-see 'pii.**' --team support"
        "   |   mesh policy who-can-see unclassified --type 'crm.>' --json"
    )
    app.command("who-can-see", cls=PolicyCommand, epilog=examples)(who)
    examples = (
        "Examples:  mesh policy diff   |   mesh policy diff --policies DIR --revision 4"
        "   |   mesh policy diff --against policies-of-main --json"
    )
    app.command("diff", cls=PolicyCommand, epilog=examples)(diff)


# --- test ------------------------------------------------------------------------------------------------------------


@offline
def run_tests(
    policies: PoliciesOption = DEFAULT_POLICIES,
    *,
    tenant: PolicyTenantOption = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the results as JUnit XML too.")] = None,
    json_: JsonOption = False,
) -> None:
    """Run the PolicyTest documents, and say what they have tried. Exit 1 where one fails, 2 where nothing loads."""
    from mesh.policy.junit import junit as as_junit
    from mesh.policy.load import load
    from mesh.policy.suite import run
    from mesh.policy_files import read_policies

    files = read_policies(policies)
    held = load(files.yaml)
    if tenant is not None:
        held = PolicySet(held.of(tenant_of(held, tenant)), held.warnings)
    result = run(held, files.fixtures, now_ms())
    if junit is not None:
        try:
            junit.write_text(as_junit(result), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{junit} cannot be written: {error.strerror}", expected="a file", next="name another with --junit"
            ) from None
    if json_:
        print_json(_tested(result))
    else:
        _print_tested(result)
    raise typer.Exit(YES if result.passed else NO)


def _tested(result: SuiteResult) -> dict[str, object]:
    outcomes = [
        {
            "kind": outcome.kind,
            "tenant": outcome.tenant,
            "document": outcome.document,
            "name": outcome.name,
            "file": outcome.file,
            "line": outcome.line,
            "passed": outcome.passed,
            "failures": [{"path": m.path, "expected": m.expected, "got": m.got} for m in outcome.mismatches],
        }
        for outcome in result.outcomes
    ]
    coverage = result.coverage
    return {
        "passed": result.passed,
        "tests": len(result.outcomes),
        "failed": len(result.failures),
        "outcomes": outcomes,
        "coverage": {
            "percent": round(coverage.percent, 1),
            "covered": len(coverage.items) - len(coverage.missing),
            "total": len(coverage.items),
            "missing": [{"what": item.what, "file": item.file, "line": item.line} for item in coverage.missing],
        },
    }


def _print_tested(result: SuiteResult) -> None:
    for outcome in result.failures:
        place = f"{outcome.file}:{outcome.line}"
        console.print(f"[bold red]FAILED[/]  [bold]{escape(place)}[/]  {escape(outcome.name)}", soft_wrap=True)
        for mismatch in outcome.mismatches:
            console.print(f"  {escape(mismatch.path)}", soft_wrap=True)
            console.print(f"    [dim]expected[/]  {escape(mismatch.expected)}", soft_wrap=True)
            console.print(f"    [dim]got[/]       {escape(mismatch.got)}", soft_wrap=True)
    coverage = result.coverage
    if coverage.missing:
        console.print("[bold]not tried by any case[/]")
    for item in coverage.missing:
        console.print(f"  [dim]{escape(f'{item.file}:{item.line}')}[/]  {escape(item.what)}", soft_wrap=True)
    total, failed = len(result.outcomes), len(result.failures)
    verdict = "[bold red]FAILED[/]" if failed else "[bold green]passed[/]" if total else "[yellow]nothing was asked[/]"
    tried = len(coverage.items) - len(coverage.missing)
    console.print(
        f"{verdict}: {total - failed} of {total} policy tests hold;"
        f" coverage {coverage.percent:.1f} % ({tried} of {len(coverage.items)})"
    )


# --- who-can-see -----------------------------------------------------------------------------------------------------


@offline
def who(
    field: Annotated[str, typer.Argument(help="A path, a tag or a pattern of tags, or `unclassified`.")],
    *,
    policies: PoliciesOption = DEFAULT_POLICIES,
    tenant: PolicyTenantOption = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only types that match this pattern.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="Only this team.")] = None,
    json_: JsonOption = False,
) -> None:
    """Say how each team sees a field, in which types and by which rule. Exit 1 where nobody sees anything of it.

    A row filter or a condition can show a reader fewer events than said here, never more.
    """
    held = loaded(policies)
    name = tenant_of(held, tenant)
    plans = plans_of(PolicySet(held.of(name)))[name]
    if team is not None and team not in plans.tenancy.members:
        teams = ", ".join(sorted(plans.tenancy.members))
        raise ConfigError(f"the policies have no team {team}", expected=teams, got=team, next="name one of them")
    matrix = Matrix.of(plans, now_ms(), cuts=() if type_ is None else (type_,))
    if type_ is not None:
        matrix = matrix.only(type_)
    if not matrix.atoms:
        raise ConfigError(
            f"nobody may publish a type that matches {type_}",
            expected="a pattern of types that somebody publishes",
            got=type_ or "none",
            next="`mesh policy lint` reads back who publishes what",
        )
    cells = who_can_see(plans, matrix, field, team=team)
    answer = seen_as_dict(held.of(name), matrix, field, cells, team=team)
    if json_:
        print_json(answer)
    else:
        print_seen(answer)
    raise typer.Exit(YES if any(cell.action not in ("drop", "redact") for cell in cells) else NO)


# --- diff ------------------------------------------------------------------------------------------------------------


@command
async def diff(
    *,
    policies: PoliciesOption = DEFAULT_POLICIES,
    against: Annotated[Path | None, typer.Option("--against", help="Another directory, instead of a mesh.")] = None,
    revision: Annotated[int | None, typer.Option("--revision", help="An older revision of the mesh.")] = None,
    replay: Annotated[
        int, typer.Option("--replay", min=0, help="Recorded events of each stream to ask; 0 for none.")
    ] = REPLAYED_EVENTS,
    context: Annotated[str | None, typer.Option("--context", help="mesh.json of the mesh to compare with.")] = None,
    tenant: PolicyTenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare the policies with those in force, or with another directory. Exit 3 where somebody would get more.

    Exact for who reads, sees and may publish what. A condition that changed is asked about recorded events too, counts
    only: of the clearest copy of each, which may hide what it reads. Values alone are compared: classifying something
    inside an object that did not show makes the names of the object's members show, and that is not told.
    """
    from mesh.cli.policy.comparing import Compared, against_directory, against_mesh

    new = _candidate(policies, tenant)
    compared: Compared
    if against is not None:
        if revision is not None or context is not None:
            raise ConfigError(
                "--against names a directory, --revision and --context a mesh",
                expected="one of the two",
                got="both",
                next="leave one out",
            )
        compared = against_directory(_candidate(against, tenant), new)
    else:
        compared = await against_mesh(new, context=context, revision=revision, replayed=replay)
    if json_:
        print_json(compared.as_dict())
    else:
        compared.print()
    raise typer.Exit(WIDENS if compared.diff.widens else YES)


def _candidate(directory: Path, tenant: str | None) -> Plans:
    held = loaded(directory)
    name = tenant_of(held, tenant)
    return plans_of(PolicySet(held.of(name)))[name]
