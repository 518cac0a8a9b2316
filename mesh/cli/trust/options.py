"""What the commands of `mesh trust` share: key ids on the command line."""

from __future__ import annotations

from typing import Any

from mesh.cli.policy.options import PolicyCommand
from mesh.control.trust_requests import KID


class KeyCommand(PolicyCommand):
    """A command that takes key ids as arguments: one in 64 begins with `-`, and is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. Exits with 2 where it is wrong."""
        kids = [arg for arg in args if arg.startswith("-") and KID.fullmatch(arg)]
        if kids and "--" not in args:
            args = [*(arg for arg in args if arg not in kids), "--", *kids]
        return super().parse_args(ctx, args)
