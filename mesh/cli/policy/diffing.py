"""A difference between two sets of policies as it is printed, for `mesh policy diff` and for `apply`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mesh.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.control.backlog import Backlog
    from mesh.policy.changes import Change
    from mesh.policy.diff import Diff
    from mesh.policy.replay import Replayed

_COLOURS = {"widened": "bold red", "changed": "bold yellow", "narrowed": "green"}


def diff_as_dict(diff: Diff) -> dict[str, Any]:
    """For machines."""
    return {
        "tenant": diff.tenant,
        "widens": diff.widens,
        "owners": list(diff.owners),
        "changes": [_change(change) for change in diff.changes],
        "conditions": list(diff.conditions),
        "delivery": [
            {"subscription": one.subscription, "before": one.before, "after": one.after} for one in diff.delivery
        ],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "what": change.what,
        "who": change.who,
        "types": list(change.types),
        "path": change.path or None,
        "before": change.before,
        "after": change.after,
        "owners": list(change.owners),
    }


def replayed_as_dict(replayed: Replayed, left_out: int) -> dict[str, Any]:
    """For machines; counts alone."""
    teams = {
        team: {"gained": tally.gained, "lost": tally.lost, "undecided": tally.undecided}
        for team, tally in sorted(replayed.teams.items())
    }
    return {"events": replayed.events, "left_out": left_out, "teams": teams}


def print_diff(diff: Diff) -> None:
    """Each change on a line or two, the widest first, and who must agree."""
    for change in diff.changes:
        what = change.path or {"read": "the event", "rows": "which events", "grant": "for how long"}.get(
            change.what, ""
        )
        who = f"{change.what} {change.who}" if not change.reads else change.who
        console.print(
            f"[{_COLOURS[change.kind]}]{change.kind.upper():<8}[/]  [cyan]{escape(who)}[/]  {escape(what)}"
            f"  [dim]{escape(', '.join(change.told))}[/]",
            soft_wrap=True,
        )
        agree = f"   [dim]needs: {escape(', '.join(change.owners))}[/]" if change.widens and change.owners else ""
        console.print(f"          {escape(change.before)} [bold]->[/] {escape(change.after)}{agree}", soft_wrap=True)
    for name in diff.conditions:
        console.print(f"[dim]CONDITION[/] {escape(name)}: which events it lets through shows in a replay")
    for one in diff.delivery:
        told = f"{escape(one.before)} [bold]->[/] {escape(one.after)}"
        console.print(f"[dim]DELIVERY[/]  [cyan]{escape(one.subscription)}[/]  {told}", soft_wrap=True)
    if not diff.changes:
        console.print("nothing changes: everybody sees and may do what they did")
    elif diff.widens:
        console.print(
            f"[bold]somebody gets more[/]; who must agree: {escape(', '.join(diff.owners)) or 'nobody named'}"
        )
    else:
        console.print("nobody gets more")


def print_replayed(replayed: Replayed, left_out: int) -> None:
    """The tallies of a replay."""
    more = f", {left_out} left out that do not verify or whose policies are gone" if left_out else ""
    console.print(f"replay of {replayed.events} recorded events{more}:" + ("" if replayed.teams else " no difference"))
    for team, tally in sorted(replayed.teams.items()):
        console.print(
            f"  [cyan]{escape(team)}[/]  +{tally.gained} gained, -{tally.lost} lost, {tally.undecided} undecided"
        )


def print_backlog(backlog: Sequence[Backlog]) -> None:
    """What plain NATS clients could still pull."""
    for held in backlog:
        wait = "copy waits" if held.waiting == 1 else "copies wait"
        console.print(
            f"[yellow]backlog[/]   {escape(held.team)}: {held.waiting} stored {wait}"
            f" in {escape(held.stream)} for"
            f" {escape(held.subscription)}, view {escape(held.view)}; a plain NATS client gets what is stored as it is"
            " (apply --skip-backlog)",
            soft_wrap=True,
        )
