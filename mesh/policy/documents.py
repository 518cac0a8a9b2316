"""What loading gives: documents that know where they stand, as one set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.errors import PolicyError
from mesh.policy.bind import Path
from mesh.policy.model import AnyDocument


@dataclass(frozen=True, slots=True)
class Document:
    """One document and its place: `lines` maps a path in it, such as `("spec", "allow", 0)`, to its line."""

    value: AnyDocument
    file: str
    line: int
    lines: Mapping[Path, int] = field(repr=False, default_factory=dict)

    def line_of(self, *path: str | int) -> int:
        """The line of *path*, or of the nearest part of the document around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Every document of every tenant, checked. `warnings` do not stop anything; each has file, line and fix."""

    documents: tuple[Document, ...]
    warnings: tuple[PolicyError, ...] = ()

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants, by name."""
        return tuple(sorted({d.value.tenant for d in self.documents}))

    def of(self, tenant: str) -> tuple[Document, ...]:
        """The documents of one tenant."""
        return tuple(d for d in self.documents if d.value.tenant == tenant)


@dataclass(slots=True)
class Findings:
    """Errors and warnings as they are found.

    `missing` has the kinds of which a document did not read: what such a document may declare is not called unknown.
    """

    errors: list[PolicyError] = field(default_factory=list)
    warnings: list[PolicyError] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)

    def error(self, document: Document, path: Path, message: str, fix: str) -> None:
        """Note what is wrong at *path* of *document*."""
        self.errors.append(finding(document.file, document.line_of(*path), message, fix))

    def warning(self, document: Document, path: Path, message: str, fix: str) -> None:
        """Note what deserves a look at *path* of *document*."""
        self.warnings.append(finding(document.file, document.line_of(*path), message, fix))


def finding(file: str, line: int, message: str, fix: str) -> PolicyError:
    """An error or a warning about one line."""
    return PolicyError(f"{file}:{line}: {message}", next=fix, file=file, line=line)
