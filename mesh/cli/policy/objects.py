"""`mesh policy objects`: files as objects of a Kubernetes cluster."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
import yaml

from mesh.cli.output import print_json
from mesh.cli.policy.options import (
    DEFAULT_POLICIES,
    JsonOption,
    PoliciesOption,
    PolicyCommand,
    PolicyTenantOption,
    loaded,
    offline,
    tenant_of,
)
from mesh.errors import ConfigError
from mesh.policy.model import Subscription


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        "objects",
        cls=PolicyCommand,
        epilog="Examples:  mesh policy objects --namespace acme | kubectl apply -f -"
        "   |   mesh policy objects --namespace acme --team-namespaces acme-{team}",
    )(objects)


@offline
def objects(
    *,
    policies: PoliciesOption = DEFAULT_POLICIES,
    tenant: PolicyTenantOption = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Of the objects; its label is mesh.dev/tenant.")],
    team_namespaces: Annotated[
        str, typer.Option("--team-namespaces", metavar="acme-{team}", help="Of Subscriptions; else --namespace.")
    ] = "",
    json_: JsonOption = False,
) -> None:
    """Print the policies as objects for `kubectl apply`. They have to load, as for `mesh policy apply`."""
    from mesh.kubernetes.names import API_VERSION
    from mesh.kubernetes.objects import as_object

    found = loaded(policies)
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    for document in found.of(tenant_of(found, tenant)):
        value = document.value
        where = namespace
        if isinstance(value, Subscription) and team_namespaces:
            where = team_namespaces.replace("{team}", value.metadata.team)
        name = (where, value.kind, value.metadata.name)
        if name in made:
            raise ConfigError(
                f"two Subscriptions are named {value.metadata.name}, and one namespace has room for one",
                expected="a namespace for each team",
                got=where,
                next="--team-namespaces 'acme-{team}'",
            )
        made[name] = as_object(msgspec.to_builtins(value), where, API_VERSION)
    if json_:
        print_json({"apiVersion": "v1", "kind": "List", "items": list(made.values())})
    else:
        typer.echo(yaml.safe_dump_all(made.values(), sort_keys=False, width=120, allow_unicode=True), nl=False)
