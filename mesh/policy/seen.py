"""Who can see a field: the question that the matrix is most often asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.errors import BadPattern
from mesh.policy.compile import Plans
from mesh.policy.fields import Fields
from mesh.policy.matrix import UNCLASSIFIED, Cell, Matrix, cell_at
from mesh.policy.paths import ANY_MEMBER, Path
from mesh.subjects import Glob

ATTRIBUTES = ATTRIBUTES_NEVER_MASKED | {"subject", "partitionkey"}


def who_can_see(plans: Plans, matrix: Matrix, field: str, *, team: str | None = None) -> list[Cell]:
    """How each team that reads it sees *field*; `Matrix.readings` has those that read nothing.

    Args:
        plans: Of the tenant.
        matrix: Worked out from them.
        field: A tag or a pattern of tags that some field carries, else a path. A path is asked of the types whose
            classification names it, or of every type where none does.
        team: Where only one is meant.

    Raises:
        BadPattern: It is no tag, and no path either.
    """
    cells: Iterable[Cell]
    tags = {tag for classified in plans.tenancy.classified for tag in classified.tags}
    if field == UNCLASSIFIED or any(_matcher(field)(tag) for tag in tags):
        matches = _matcher(field)
        cells = (cell for cell in matrix.cells if any(map(matches, cell.tags)) or cell.path == field)
    else:
        cells = _path_cells(plans, matrix, _path(field, matrix, tags))
    return [cell for cell in cells if team is None or cell.reading.team == team]


def _path(field: str, matrix: Matrix, tags: set[str]) -> Path:
    """*field* as a path that an event can have: a mistyped tag is none, and would get everybody's `otherwise`."""
    path = Path.parse(field)
    first = path.steps[0]
    inside = path.deep or first == "data" or (first is ANY_MEMBER)
    if inside or path.text in ATTRIBUTES or any(path.text in cell.paths for cell in matrix.cells):
        return path
    raise BadPattern(
        f"`{field}` is no tag that a Classification carries, and no field of an event",
        expected=f"a tag such as {', '.join(sorted(tags)[:12])}, or a path that begins with `data.` or `**.`",
        got=field,
        next="correct it, or ask for `unclassified`",
    )


def _matcher(text: str) -> Callable[[str], bool]:
    try:
        return Glob.tag(text).matches
    except BadPattern:
        return frozenset[str]().__contains__


def _path_cells(plans: Plans, matrix: Matrix, path: Path) -> Iterator[Cell]:
    """One cell where *path* leads to one place, or to places that are all alike, else one for each."""
    named = {cell.reading.atom for cell in matrix.cells if path.text in cell.paths}
    fields = Fields(plans)
    for reading in matrix.readings:
        if reading.view and (not named or reading.atom in named):
            found = fields.places(reading.view, reading.atom.witness, path)
            for judged in found:
                label = path.text if len(found) == 1 else " + ".join(judged.paths) or UNCLASSIFIED
                yield cell_at(reading, label, judged)
