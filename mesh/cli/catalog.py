"""`mesh catalog`: what events there are, who sends and who reads them, for people and for AsyncAPI tools. No mesh."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from mesh.asyncapi import document, listed
from mesh.cli.output import print_json, print_table
from mesh.cli.policy.options import (
    DEFAULT_POLICIES,
    JsonOption,
    PoliciesOption,
    PolicyCommand,
    PolicyGroup,
    PolicyTenantOption,
    loaded,
    now_ms,
    offline,
    tenant_of,
)
from mesh.errors import ConfigError
from mesh.policy.compile import Plans
from mesh.policy.documents import PolicySet
from mesh.policy.trial import plans_of

app = typer.Typer(cls=PolicyGroup, no_args_is_help=True, help="What events there are, and who sends and reads them.")

TeamOption = Annotated[str | None, typer.Option("--team", help="Only what this team may send and read.")]
SITE = "local"  # that of `mesh up`
YAML_WIDTH = 120


def plans(directory: Any, tenant: str | None, team: str | None, *, site: str = SITE) -> Plans:
    """The plans of the tenant that is meant.

    Raises:
        PolicyErrors: The policies do not load.
        ConfigError: There is no such directory, tenant or team.
    """
    held = loaded(directory)
    name = tenant_of(held, tenant)
    made = plans_of(PolicySet(held.of(name)), site=site)[name]
    if team is not None and team not in made.tenancy.members:
        teams = ", ".join(sorted(made.tenancy.members))
        raise ConfigError(f"the policies have no team {team}", expected=teams, got=team, next="name one of these teams")
    return made


@app.command(
    "asyncapi",
    cls=PolicyCommand,
    epilog="Examples:  mesh catalog asyncapi > asyncapi.json   |   mesh catalog asyncapi --team analytics --yaml",
)
@offline
def asyncapi(
    *,
    policies: PoliciesOption = DEFAULT_POLICIES,
    tenant: PolicyTenantOption = None,
    team: TeamOption = None,
    site: Annotated[str, typer.Option("--site", help="Of the NATS subjects.")] = SITE,
    yaml_: Annotated[bool, typer.Option("--yaml", help="As YAML.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="As JSON, which is what it is without either.")] = False,
) -> None:
    """Print an AsyncAPI 3.0 document: who sends what, and what each reader's view leaves of every classified field.

    Read off the policies alone. They know no JSON types of fields and no fields that nobody classified. Exit 2 where
    they do not load.
    """
    if yaml_ and json_:
        raise ConfigError("--json and --yaml are two forms", expected="one of them", got="both", next="leave one out")
    made = document(plans(policies, tenant, team, site=site), now_ms(), team=team)
    if yaml_:
        typer.echo(yaml.dump(made, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=YAML_WIDTH), nl=False)
    else:
        print_json(made)


@app.command(
    "list", cls=PolicyCommand, epilog="Examples:  mesh catalog list   |   mesh catalog list --team support --json"
)
@offline
def list_(
    policies: PoliciesOption = DEFAULT_POLICIES,
    tenant: PolicyTenantOption = None,
    team: TeamOption = None,
    json_: JsonOption = False,
) -> None:
    """List the types: who classifies them, who sends them, and who reads them in which view. Exit 2 on no policies."""
    made = plans(policies, tenant, team)
    found = listed(made, now_ms(), team=team)
    if json_:
        print_json(
            {
                "tenant": made.bundle.tenant,
                "types": [
                    {
                        "types": one.types,
                        "owners": one.owners,
                        "senders": one.senders,
                        "readers": [{"team": reader, "view": view} for reader, view in one.readers],
                    }
                    for one in found
                ],
            }
        )
        return
    rows = (
        (
            one.types,
            ", ".join(one.owners) or "-",
            ", ".join(one.senders) or "-",
            ", ".join(f"{reader} ({view})" for reader, view in one.readers) or "-",
        )
        for one in found
    )
    print_table(
        f"Events of {made.bundle.tenant}", ("types", "classified by", "sent by", "read by"), rows, keep={"types"}
    )


class _Plain(yaml.SafeDumper):
    """YAML that says everything where it stands: no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the same of everything
        """Never write one."""
        return True
