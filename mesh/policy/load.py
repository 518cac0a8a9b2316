"""Loading: YAML text to a checked set of policies, or every error at once.

Strict on purpose: a typo that masks nothing, an empty rule that means everything, a key given twice must not run. Each
error names file, line and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from mesh.errors import PolicyErrors
from mesh.policy.bind import Binder, closest, shown
from mesh.policy.check import check
from mesh.policy.crosscheck import meaning, references
from mesh.policy.documents import Document, Findings, PolicySet, finding
from mesh.policy.model import KINDS, Tenant
from mesh.policy.nodes import compose, line_of, scalar

__all__ = ["Document", "PolicySet", "load"]

MAX_FILES = 2_000
MAX_TOTAL_CHARS = 16 * 1024 * 1024  # of all files together


def load(files: Mapping[str, str]) -> PolicySet:
    """Load policies.

    Args:
        files: YAML text by file name (any name: it is only repeated in errors). Several documents a file are fine.

    Raises:
        PolicyErrors: All that is wrong, in the order of files and lines.
    """
    findings = Findings()
    total = sum(len(text) for text in files.values())
    if len(files) > MAX_FILES or total > MAX_TOTAL_CHARS:
        message = f"{len(files)} files with {total} characters; limits {MAX_FILES} and {MAX_TOTAL_CHARS}"
        raise PolicyErrors([finding("policies", 1, message, "split the tenants into sets of their own")])
    documents: list[Document] = []
    for file in sorted(files):
        documents.extend(_read(file, files[file], findings))
    if not documents and not findings.errors:
        findings.errors.append(finding("policies", 1, "there is no policy document", "add at least a Tenant"))
    for document in documents:
        check(document, findings)
    _together(documents, findings)
    if findings.errors:
        raise PolicyErrors(sorted(findings.errors, key=lambda e: (e.details["file"], e.details["line"])))
    return PolicySet(tuple(documents), tuple(findings.warnings))


def _together(documents: list[Document], findings: Findings) -> None:
    tenants = {d.value.metadata.name for d in documents if isinstance(d.value, Tenant)}
    for document in documents:
        if document.value.tenant not in tenants and "Tenant" not in findings.missing:
            fix = closest(document.value.tenant, tenants, "add a document of kind Tenant with that name")
            message = f"unknown tenant `{shown(document.value.tenant)}`"
            findings.error(document, ("metadata", "tenant"), message, fix)
    for tenant in sorted(tenants):
        references([d for d in documents if d.value.tenant == tenant], findings)
    if not findings.errors:
        for tenant in sorted(tenants):
            meaning([d for d in documents if d.value.tenant == tenant], findings)


def _read(file: str, text: str, findings: Findings) -> list[Document]:
    nodes, faults = compose(text)
    documents = []
    for node in nodes:
        document = _document(file, node, findings)
        if document is not None:
            documents.append(document)
    for fault in faults:
        findings.errors.append(finding(file, fault.line, fault.message, fault.fix))
        findings.missing.update(KINDS)  # the rest of the file was not read
    return documents


def _document(file: str, node: yaml.Node, findings: Findings) -> Document | None:
    binder = Binder()
    line = line_of(node)
    kind = _kind(node)
    struct = KINDS.get(kind or "")
    if not isinstance(node, yaml.MappingNode):
        binder.fault(line, "a policy document is a mapping", "begin it with `apiVersion: mesh/v1` and `kind:`")
    elif struct is None:
        known = ", ".join(KINDS)
        what = "a document without `kind`" if kind is None else f"unknown kind `{shown(kind)}`"
        binder.fault(line, what, closest(kind or "", KINDS, f"use one of {known}"))
    else:
        value = binder.bind(node, struct)
        if value is not None:
            return Document(value, file, line, binder.lines)
        findings.missing.add(struct.kind)
    findings.errors.extend(finding(file, fault.line, fault.message, fault.fix) for fault in binder.faults)
    return None


def _kind(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "kind" and isinstance(value, yaml.ScalarNode):
            try:
                kind = scalar(value)
            except ValueError:
                return None
            return kind if isinstance(kind, str) else None
    return None
