"""What several `mesh policy` commands share: options, reading what `--policies` names, errors and exit codes.

Offline commands end with 0 yes, 1 no, 2 misuse or policies that do not load. With `--json` every error, also of the
arguments, is `{"error": {...}}` on standard output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from mesh.cli.output import MISUSE, fail
from mesh.errors import ConfigError, MeshError
from mesh.policy.documents import PolicySet
from mesh.policy.load import load
from mesh.policy_files import read_directory

P = ParamSpec("P")
R = TypeVar("R")

PoliciesOption = Annotated[Path, typer.Option("--policies", help="Directory of policies.")]
PolicyTenantOption = Annotated[
    str | None, typer.Option("--tenant", help="Whose policies, where there are several tenants.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
DEFAULT_POLICIES = Path("policies")

_UsageError: Any = typer.BadParameter.__mro__[1]  # of the click inside typer; it has no public name


class PolicyCommand(TyperCommand):
    """A command whose wrong arguments are an error for machines too, where they ask for `--json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. Exits with 2 where it is wrong."""
        wants_json = "--json" in args
        try:
            self._refuse_missing_values(ctx, args)
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if not wants_json:
                raise
            _told(ctx, error)

    def _refuse_missing_values(self, ctx: Any, args: list[str]) -> None:
        """An option is no other option's value: `--subscribe --json` lacks a type."""
        options = {name: bool(getattr(param, "is_flag", False)) for param in self.params for name in param.opts}
        for option, value in pairwise(args):
            if value in options and options.get(option) is False:
                raise _UsageError(f"Option '{option}' requires an argument.", ctx)


class PolicyGroup(TyperGroup):
    """The group of such commands: one that it does not have is an error for machines too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Which command is meant. Exits with 2 where there is none of that name."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            if "--json" not in args:
                raise
            _told(ctx, error)


def _told(ctx: Any, error: Any) -> NoReturn:
    usage = f"see `{ctx.command_path} --help`"
    fail(ConfigError(error.format_message(), expected=ctx.get_usage().strip(), next=usage), as_json=True)


def offline(function: Callable[P, R]) -> Callable[P, R]:
    """Run a command that needs no mesh; a `MeshError` becomes a message and exit code 2. It has a `json_` parameter."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except MeshError as error:
            misused(error, as_json=bool(kwargs.get("json_")))

    return run


def misused(error: MeshError, *, as_json: bool) -> NoReturn:
    """Print *error* and leave with 2: nothing was answered, whatever the error."""
    try:
        fail(error, as_json=as_json)
    except typer.Exit:
        raise typer.Exit(MISUSE) from None


def now_ms() -> int:
    """Unix milliseconds: which grants have ended is asked of this clock."""
    return time.time_ns() // 1_000_000


def loaded(directory: Path) -> PolicySet:
    """The policies of *directory*.

    Raises:
        PolicyErrors: They do not load.
        ConfigError: There is no such directory.
    """
    return load(read_directory(directory))


def tenant_of(policies: PolicySet, named: str | None) -> str:
    """The tenant that is meant: *named*, or the only one.

    Raises:
        ConfigError: There is none of that name, or several to choose from.
    """
    tenants = policies.tenants
    if named is None and len(tenants) == 1:
        return tenants[0]
    if named in tenants:
        return named
    message = "the policies have several tenants" if named is None else f"the policies have no tenant {named}"
    raise ConfigError(message, expected=f"--tenant {' or '.join(tenants)}", got=named or "none", next="name one")
