"""What `mesh policy diff` compares with: another directory, or the policies of a mesh and its recorded events."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mesh.cli.output import console
from mesh.cli.policy.diffing import diff_as_dict, print_backlog, print_diff, print_replayed, replayed_as_dict
from mesh.cli.policy.options import now_ms
from mesh.cli.session import Session, operator_session
from mesh.control.backlog import Backlog, narrowed_backlog
from mesh.control.recorded import recorded, refused
from mesh.errors import BadBundle, NotFound, RevisionNeeded
from mesh.policy.compile import Plans
from mesh.policy.diff import Diff, compare
from mesh.policy.model import AnyDocument, TeamMetadata
from mesh.policy.replay import Replayed, replay

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Compared:
    """A difference, and what a mesh adds to it.

    Attributes:
        against: The revision; 0 for a directory.
        replayed: None where no condition changed, or nothing was asked.
        left_out: Copies that could not be asked.
        backlog: What plain NATS clients could still pull.
        documents: Those that differ, such as `Subscription support/contacts`: not each changes what somebody sees.
    """

    diff: Diff
    against: int = 0
    replayed: Replayed | None = None
    left_out: int = 0
    backlog: Sequence[Backlog] = ()
    documents: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        told = None if self.replayed is None else replayed_as_dict(self.replayed, self.left_out)
        waiting = [
            {"team": b.team, "subscription": b.subscription, "view": b.view, "stream": b.stream, "waiting": b.waiting}
            for b in self.backlog
        ]
        beside = {"against": self.against or None, "replay": told, "backlog": waiting, "documents": self.documents}
        return {**diff_as_dict(self.diff), **beside}

    def print(self) -> None:
        """For a person."""
        if self.against:
            console.print(f"[dim]against revision {self.against}[/]")
        print_diff(self.diff)
        if self.documents and not self.diff.changes:
            console.print(f"but not alike: {escape(', '.join(self.documents))}; apply makes a revision of it")
        if self.replayed is not None:
            print_replayed(self.replayed, self.left_out)
        print_backlog(self.backlog)


def against_directory(old: Plans, new: Plans) -> Compared:
    """Compare two sets of policies that are files."""
    return Compared(compare(old, new, now_ms()), documents=_differing(old, new))


async def against_mesh(new: Plans, *, context: str | None, revision: int | None, replayed: int) -> Compared:
    """Compare *new* with the policies of a mesh.

    Args:
        new: To come.
        context: See `Context.load`.
        revision: An older one; else the one in force.
        replayed: Events of each stream that changed conditions are asked about.

    Raises:
        ConfigError: No such mesh.
        NotFound: The mesh keeps no such revision.
        Disconnected: It does not run.
        RequestFailed, Unavailable: It does not answer.
    """
    async with operator_session(context, tenant=new.bundle.tenant) as session:
        old = session.plans if revision is None else await _revision(session, revision)
        at_ms = now_ms()
        diff = compare(old, new, at_ms)
        told, left_out = None, 0
        if replayed and diff.conditions:
            events, left_out = await recorded(
                session.connection,
                old,
                session.verify,
                last=replayed,
                now_ms=at_ms,
                past=lambda number: _past(session, number),
            )
            here = {(copy.fields["source"], copy.fields["id"]) for copy in events}
            without = await refused(session.connection, old, last=replayed)
            events += [event for event in without if (event.fields["source"], event.fields["id"]) not in here]
            told = replay(old, new, events, now_ms=at_ms)
        backlog = await narrowed_backlog(session.connection, session.plans, diff, now_ms=at_ms)
        return Compared(diff, old.bundle.revision, told, left_out, backlog, _differing(old, new))


def _differing(old: Plans, new: Plans) -> list[str]:
    """The documents that are in one of two sets alone, or not alike in both."""
    before, after = ({_name(document): document for document in plans.bundle.policies} for plans in (old, new))
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _name(document: AnyDocument) -> str:
    metadata = document.metadata
    team = f"{metadata.team}/" if isinstance(metadata, TeamMetadata) else ""
    return f"{document.kind} {team}{metadata.name}"


async def _revision(session: Session, revision: int) -> Plans:
    plans = await _past(session, revision)
    if plans is None:
        in_force = session.plans.bundle
        oldest = in_force.lineage[0].revision if in_force.lineage else in_force.revision
        raise NotFound(
            f"the mesh keeps no revision {revision}",
            expected=f"{oldest} to {in_force.revision}",
            got=str(revision),
            next="`mesh policy history` lists them",
        )
    return plans


async def _past(session: Session, revision: int) -> Plans | None:
    """The plans of *revision*; None where the mesh has them no more. A mesh that does not answer is an error."""
    with suppress(RevisionNeeded):
        return session.bundle.past(revision)
    try:
        await session.bundle.fetch_past(revision)
    except BadBundle:
        return None
    return session.bundle.past(revision)
