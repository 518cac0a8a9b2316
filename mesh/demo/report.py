"""The demo's report: what a person reads after the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mesh.demo.account import Receipt, hidden

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mesh.demo.run import Outcome, Progress

BAR_CHARS = 28
FIELD_CHARS, SENT_CHARS, VIEW_CHARS = 14, 15, 10  # four views fit a terminal of 80 columns


def progress_line(progress: Progress) -> Text:
    """One live line."""
    share = progress.sent / progress.total if progress.total else 0.0
    bar = "━" * round(share * BAR_CHARS)
    text = Text.assemble((bar, "green"), ("━" * (BAR_CHARS - len(bar)), "grey37"), f" {progress.sent:>4} sent")
    if progress.delivered:
        text.append(f"  {progress.delivered} handled")
    if progress.due:
        text.append(f"  {progress.done}/{progress.due} due")
    text.append(f"  {progress.step}", style="dim")
    return text


def render(outcome: Outcome) -> RenderableType:
    """The whole report."""
    return Group(
        _stages(outcome), Text(), _side_by_side(outcome), Text(), _troubles(outcome), Text(), _verdict(outcome)
    )


def _stages(outcome: Outcome) -> RenderableType:
    account = outcome.account
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", min_width=14)
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    latency = account.latency_ms
    table.add_row("accepted", str(account.accepted), "events answered 202: CloudEvents and webhooks")
    table.add_row("stored", str(account.stored), "copies: one a view, masked and signed")
    for team in outcome.teams:
        view = next((receipt.view for receipt in outcome.receipts if receipt.team == team), "")
        table.add_row("delivered", str(account.delivered.get(team, 0)), f"to {team}, view {view}")
    table.add_row("verified", str(account.verified), "of these pass V1 to V9, checked here once more")
    table.add_row("masked", str(account.masked_fields), "fields hidden or changed in what was delivered")
    table.add_row("latency", f"{latency['p50']:.0f} ms", f"p50, request to handler; p99 {latency['p99']:.0f} ms")
    return Panel(table, title="The journey", title_align="left", border_style="grey37", expand=False)


def _side_by_side(outcome: Outcome) -> RenderableType:
    """The same event as its source sent it and as each team saw it."""
    source, event_id = outcome.showcase
    sent = outcome.inputs.get(outcome.showcase)
    seen: dict[str, Receipt] = {}
    for receipt in outcome.receipts:
        if receipt.kind == "delivered" and receipt.key == outcome.showcase:
            seen.setdefault(receipt.team, receipt)
    if sent is None or not seen:
        return Text(f"{event_id} of {source} reached nobody", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("field", style="cyan", no_wrap=True)
    table.add_column("as sent", no_wrap=True)
    for team, receipt in sorted(seen.items()):
        table.add_column(f"{team}\n[dim]{_short(receipt.view, VIEW_CHARS)}[/]", no_wrap=True)
    columns = [_flat(receipt.fields) for _, receipt in sorted(seen.items())]
    changed = [set(hidden(sent.fields, receipt.fields)) for _, receipt in sorted(seen.items())]
    for path, value in _flat(sent.fields).items():
        if path.startswith("data.") or path == "subject":
            cells = [
                _cell(column.get(path, "—"), masked=path in paths)
                for column, paths in zip(columns, changed, strict=True)
            ]
            table.add_row(_short(path.removeprefix("data."), FIELD_CHARS), _short(value, SENT_CHARS), *cells)
    title = f"One event, {len(seen)} teams: {sent.fields['type']} {event_id}"
    return Panel(table, title=title, title_align="left", border_style="grey37", expand=False)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _cell(value: str, *, masked: bool) -> Text:
    return Text(_short(value, VIEW_CHARS), style="yellow" if masked else "")


def _troubles(outcome: Outcome) -> RenderableType:
    account = outcome.account
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", min_width=14)
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    table.add_row("killed", "1", f"{outcome.killed}'s consumer, SIGKILL half way, then restarted")
    table.add_row("redelivered", str(account.redelivered), "a handler failed twice; what the killed one had in hand")
    for letter in outcome.letters:
        why = f"{letter.team}/{letter.subscription}: {letter.reason} ({letter.error_class})"
        table.add_row("dead letter", "1", why)
    table.add_row("duplicates", str(account.duplicates), "events sent twice, stored once")
    return Panel(table, title="What went wrong on purpose", title_align="left", border_style="grey37", expand=False)


def _verdict(outcome: Outcome) -> Text:
    account = outcome.account
    if account.lost:
        text = Text.assemble(("lost ", "bold red"), (str(account.lost), "bold red"))
        for team, (source, event_id) in account.missing[:5]:
            text.append(f"\n  {team} never handled {event_id} of {source}")
        return text
    return Text.assemble(("lost 0", "bold green"), f"   {account.seconds:.0f} s, real processes all")


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {
            k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}" if path else name).items()
        }
    if isinstance(value, list):
        return {k: v for index, inner in enumerate(value) for k, v in _flat(inner, f"{path}[{index}]").items()}
    return {path: "null" if value is None else str(value)}
