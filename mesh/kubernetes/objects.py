"""Policies as Kubernetes objects: where each belongs, the documents they are, and what an error in a set says of each.

Whose an object is, its namespace says, by labels that only a platform operator sets; the object itself says nothing
that its author could make up:

    mesh.dev/tenant: acme                            policies of acme, of every kind
    mesh.dev/tenant: acme, mesh.dev/team: billing    billing's own: its Subscriptions, and nothing else

So a team that may write Subscriptions in its namespace, and nothing elsewhere, cannot speak for another one. In the
tenant's own namespaces a Subscription has the label mesh.dev/team; the owner is the annotation mesh.dev/owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mesh.errors import MeshError, PolicyErrors, PolicyTestsFailed
from mesh.kubernetes.names import OWNER, TEAM, TENANT
from mesh.policy.model import API_VERSION

_FILE: Final = "kubernetes:"
_LINE: Final = "  "  # of indentation; objects are written so that each member has a line of its own


_MEMBER: Final = re.compile(r'"((?:[^"\\]|\\.)*)": ')


@dataclass(frozen=True, slots=True)
class Placed:
    """One object and where it belongs.

    Attributes:
        object: As the API server has it; the watch's own.
        tenant: Whose; empty where its namespace names none.
        text: Its document, as the loader reads it; empty where it is none.
        refusal: Why it is none: the reason in one word, and a sentence.
        team: Whose Subscription it is.
    """

    object: dict[str, Any] = field(repr=False)
    tenant: str
    text: str = field(default="", repr=False)
    refusal: tuple[str, str] | None = None
    team: str = ""

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.object["kind"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.object["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.object["metadata"]["name"])

    @property
    def file(self) -> str:
        """What errors call it."""
        return f"{_FILE}{self.namespace}/{self.kind}/{self.name}"

    @property
    def author(self) -> str:
        """Who is said to have changed it: the object, as nothing in it says who really did."""
        return f"{_FILE}{self.namespace}/{self.name}"


def place(item: dict[str, Any], namespaces: Mapping[str, Mapping[str, str]]) -> Placed:
    """Where *item* belongs.

    Args:
        item: A policy object.
        namespaces: The labels of every namespace, by name.
    """
    metadata = item["metadata"]
    where = namespaces.get(metadata["namespace"], {})
    tenant, team = where.get(TENANT, ""), where.get(TEAM, "")
    if not tenant:
        told = f"namespace {metadata['namespace']} has no label {TENANT}: ask the platform's operator for it"
        return Placed(item, "", refusal=("NoTenant", told))
    kind = item["kind"]
    if team and kind != "Subscription":
        told = f"namespace {metadata['namespace']} is team {team}'s: only Subscriptions count there"
        return Placed(item, tenant, refusal=("TeamNamespace", told))
    document: dict[str, Any] = {"name": metadata["name"]}
    if kind == "Subscription":
        team = team or (metadata.get("labels") or {}).get(TEAM, "")
        if not team:
            told = f"whose Subscription it is nothing says: add the label {TEAM}"
            return Placed(item, tenant, refusal=("NoTeam", told))
        document |= {"tenant": tenant, "team": team}
    else:
        owner = (metadata.get("annotations") or {}).get(OWNER, "")
        document |= {"owner": owner} if owner else {}
        if kind != "Tenant":
            document["tenant"] = tenant
        elif metadata["name"] != tenant:
            told = f"namespace {metadata['namespace']} is for tenant {tenant}: name the Tenant so"
            return Placed(item, tenant, refusal=("OtherTenant", told))
    made = {"apiVersion": API_VERSION, "kind": kind, "metadata": document, "spec": item.get("spec", {})}
    text = msgspec.json.format(msgspec.json.encode(made), indent=len(_LINE)).decode()
    return Placed(item, tenant, text, team=document.get("team", ""))


def as_object(document: Mapping[str, Any], namespace: str, api_version: str) -> dict[str, Any]:
    """A policy *document* as an object in *namespace*: the way back."""
    metadata = document["metadata"]
    made: dict[str, Any] = {"name": metadata["name"], "namespace": namespace}
    if metadata.get("owner"):
        made["annotations"] = {OWNER: metadata["owner"]}
    if metadata.get("team"):
        made["labels"] = {TEAM: metadata["team"]}
    return {"apiVersion": api_version, "kind": document["kind"], "metadata": made, "spec": document["spec"]}


# --- what an error says of each object -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Faults:
    """An error of a set, by object.

    Attributes:
        by_file: What is wrong with an object, by `Placed.file`.
        of_all: What is wrong with no single object.
        reason: In one word.
    """

    by_file: Mapping[str, list[str]]
    of_all: list[str]
    reason: str


def faults(error: MeshError, placed: Iterable[Placed]) -> Faults:
    """What *error* of loading, testing or applying the documents of *placed* says of each of them."""
    known = list(placed)
    texts = {one.file: one.text for one in known}
    by_file: dict[str, list[str]] = {}
    of_all: list[str] = []
    reason = "Invalid"
    if isinstance(error, PolicyErrors):
        for single in error.errors:
            file, line = single.details.get("file", ""), single.details.get("line", 1)
            told = str(single.message).removeprefix(f"{file}:{line}: ")
            if file in texts:
                at = where(texts[file], line)
                by_file.setdefault(file, []).append(f"{at}: {_plain(told)}. Fix: {single.next}")
            else:
                of_all.append(f"{_plain(told)}. Fix: {single.next}")
    elif isinstance(error, PolicyTestsFailed):
        reason = "TestsFailed"
        for failure in error.message.splitlines()[1:]:
            told = failure.strip()
            file = next((name for name in texts if told.startswith(f"{name}:")), "")
            told = told.removeprefix(f"{file}:").partition(": ")[2] if file else told
            (by_file.setdefault(file, []) if file else of_all).append(f"the test fails: {told}")
    else:
        told = f"{error.message} ({error.code}). Next: {error.next}" if error.next else error.message
        by_file = {one.file: [told] for one in known if one.team and one.team == error.details.get("team")}
        if not by_file:
            reason = "Refused"
            of_all.append(told)
    return Faults(by_file, of_all, reason)


def where(text: str, line: int) -> str:
    """The path of *line* in an object's document, as people write it: `spec.allow[2].when`."""
    stack: list[tuple[int, str]] = []
    counts: dict[int, int] = {}
    for row in text.splitlines()[:line]:
        depth = (len(row) - len(row.lstrip())) // len(_LINE)
        part = row.strip()
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if part[0] in "]}":
            continue
        for deeper in [known for known in counts if known > depth]:
            del counts[deeper]
        member = _MEMBER.match(part)
        if member is not None:
            stack.append((depth, member[1]))
        elif depth:
            counts[depth] = counts.get(depth, -1) + 1
            stack.append((depth, f"[{counts[depth]}]"))
    path = ""
    for _, part in stack:
        path += part if part.startswith("[") or not path else f".{part}"
    return path or "the object"


def _plain(told: str) -> str:
    """A sentence about files as one about objects."""
    return told.replace(_FILE, "")
