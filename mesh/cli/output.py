"""What the commands print: tables and colour for a person, JSON for a machine, errors that say what to do next.

Exit codes: 0 yes, 1 no, 2 misuse (a wrong argument, setting or file).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import anyio
import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.errors import BadBundle, ConfigError, InputError, MeshError, NotFound, PolicyError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

P = ParamSpec("P")
R = TypeVar("R")

YES, NO, MISUSE = 0, 1, 2
COLUMN_GAP = 2
MIN_LAST = 16  # characters of the last column, which folds first
INTERRUPTED = 130  # the shell's 128 + SIGINT

PIPE_WIDTH = 160  # a pipe has no width: nothing is cut or folded that a person would read in a file


def _width() -> int | None:
    """The width to print in: the terminal's (None), `COLUMNS` where somebody says it, else a pipe's."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


console = Console(highlight=False, width=_width())
errors = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def print_line(value: object) -> None:
    """One JSON document on one line: the reader of a stream knows where it ends."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, keep: Collection[str] = ()
) -> None:
    """A table with a title; says so where it is empty. Too wide for the terminal, cells fold; none is cut.

    Args:
        title: Stands above it, as it is: without markup.
        columns: Their names.
        rows: A cell for each column.
        keep: Columns that never fold: what a person copies from them has to be one word.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    fits = sum(widths[:-1]) + COLUMN_GAP * len(widths) + MIN_LAST <= console.width
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        whole = column in keep
        table.add_column(
            column,
            style="" if index else "cyan",
            min_width=widths[index] if whole else None,
            no_wrap=whole or (fits and index < len(columns) - 1),
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(escape, row))
    if table.row_count:
        console.print(table)
    else:
        console.print(f"[bold]{escape(title)}[/]: none")


def fail(error: MeshError, *, as_json: bool, beside: Mapping[str, object] | None = None) -> NoReturn:
    """Print *error* and leave: 2 where the caller has to change something, else 1. What is not there is a "no".

    Args:
        error: What went wrong.
        as_json: For a machine, on standard output.
        beside: What was done before, which a machine is told too.
    """
    if as_json:
        print_json({"error": error.as_dict(), **(beside or {})})
    else:
        errors.print(f"[bold red]error[/] [dim]{error.code}[/] {escape(error.message)}", soft_wrap=True)
        for name in ("expected", "got", "next"):
            if value := getattr(error, name):
                errors.print(f"  [dim]{name:<9}[/]{escape(str(value))}", soft_wrap=True)
    misuse = isinstance(error, ConfigError | InputError | PolicyError) and not isinstance(error, NotFound | BadBundle)
    raise typer.Exit(MISUSE if misuse else NO)


def command(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Run an async command; a `MeshError` becomes a message and an exit code. The command has a `json_` parameter."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        async def call() -> R:
            return await function(*args, **kwargs)

        as_json = bool(kwargs.get("json_"))
        try:
            return anyio.run(call, backend_options={"use_uvloop": True})
        except MeshError as error:
            fail(error, as_json=as_json)
        except BaseExceptionGroup as group:  # from a task group: the first of ours speaks for all
            ours, others = group.split(MeshError)
            if ours is None or others is not None:
                raise
            fail(_first(ours), as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
