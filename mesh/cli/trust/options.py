"""What the commands of `mesh trust` share: key ids on the command line, and how a barred workload comes back."""

from __future__ import annotations

from typing import Any

from mesh.cli.policy.options import PolicyCommand
from mesh.control.reconcile import TEAM_PREFIX
from mesh.control.trust_requests import KID


class KeyCommand(PolicyCommand):
    """A command that takes key ids as arguments: one in 64 begins with `-`, and is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. Exits with 2 where it is wrong."""
        kids = [arg for arg in args if arg.startswith("-") and KID.fullmatch(arg)]
        if kids and "--" not in args:
            args = [*(arg for arg in args if arg not in kids), "--", *kids]
        return super().parse_args(ctx, args)


def team_of(workload: str) -> str:
    """The team whose workload it is; empty where it is an agent's."""
    return workload.removeprefix(TEAM_PREFIX) if workload.startswith(TEAM_PREFIX) else ""


def admit_line(workload: str) -> str:
    """The command that lets a barred *workload* back."""
    team = team_of(workload)
    return f"mesh trust admit --team {team}" if team else f"mesh trust admit {workload}"


def lets_back(workload: str) -> str:
    """The same as half a sentence."""
    return f"`{admit_line(workload)}` lets it back"
