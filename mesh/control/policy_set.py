"""One tenant's policies out of its objects: applied as `mesh policy apply` does, and what that says of each object.

A set that does not hold changes nothing. One exception, so that no team can block another, or security: where all that
is wrong is in Subscriptions, each of those stays as it is in force, or out where it never was or would not hold as it
was, and the rest is applied. Where the set is too large, new Subscriptions of the team that has most are what is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from mesh.errors import BadBundle, MeshError, NoBundle, PolicyError, Unavailable
from mesh.kubernetes.conditions import Condition, State, in_force, observed
from mesh.kubernetes.objects import Faults, Placed, faults
from mesh.policy.bundle import MAX_BUNDLE_BYTES
from mesh.policy.load import MAX_FILES, MAX_TOTAL_CHARS
from mesh.policy.model import Subscription

if TYPE_CHECKING:
    from mesh.control.change import Applied
    from mesh.policy.compile import Plans

MAX_NAMED = 5  # objects in an author or a message; the rest is counted
_NO_FAULTS: Final = Faults({}, [], "")


class Policies(Protocol):
    """The live policies of a tenant: see `mesh/control/policies.py`."""

    @property
    def plans(self) -> Plans:
        """In force; raises NoBundle."""

    async def apply(
        self, files: Mapping[str, str], fixtures: Mapping[str, bytes], *, author: str, reason: str
    ) -> Applied:
        """Make them the policies in force."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a set.

    Attributes:
        revision: In force with it; 0 where nothing was changed.
        error: Why nothing was; None where it is in force.
        faults: What was wrong, by object.
    """

    revision: int = 0
    error: MeshError | None = None
    faults: Faults = field(default=_NO_FAULTS)

    @property
    def again(self) -> bool:
        """Whether the same set may go through later: nobody has to change it."""
        return self.error is not None and not isinstance(self.error, PolicyError)

    def state(self, one: Placed, current: int) -> State:
        """Of one of the objects, while revision *current* is in force."""
        told = list(self.faults.by_file.get(one.file, ()))
        if one.kind == "Tenant":
            told += self.faults.of_all
        if told and not self.again:
            accepted = Condition(status=False, reason=self.faults.reason, message="\n".join(told))
            kept = "what was in force before stays in force" if not self.revision else f"left out of {self._name()}"
            return State(accepted, Condition(status=False, reason="Refused", message=kept))
        accepted = Condition(status=True, reason="Valid", message="the mesh reads it")
        if self.error is None and self.revision != current:
            message = f"revision {current} is in force instead, by hand: it stays until an object changes"
            return State(accepted, Condition(status=False, reason="Overridden", message=message))
        if self.error is None:
            return State(accepted, Condition(status=True, reason="InForce", message=self._name()), self.revision)
        if in_force(one.object):
            message = "it is in force; a change of others was refused, see their conditions"
            return State(accepted, Condition(status=True, reason="InForce", message=message))
        if self.again:
            message = f"{self.error.message} ({self.error.code}); it is tried again"
            return State(accepted, Condition(status=False, reason="NotReached", message=message))
        names = _named(sorted(self.faults.by_file)) or "the tenant as a whole"
        message = f"nothing was changed: {names} would not hold"
        return State(accepted, Condition(status=False, reason="SetRefused", message=message))

    def _name(self) -> str:
        return f"revision {self.revision}"


async def take(policies: Policies, placed: Sequence[Placed], fixtures: Mapping[str, bytes], *, author: str) -> Outcome:
    """Make the documents of *placed* the policies of their tenant.

    Args:
        policies: Of the tenant.
        placed: Its objects; those without a text are left aside.
        fixtures: The events of their tests.
        author: See `author`.
    """
    mine = [one for one in placed if one.text]
    files = {one.file: one.text for one in mine}
    subscriptions = {one.file: one for one in mine if one.kind == "Subscription"}
    told: dict[str, list[str]] = {}
    kept: set[str] = set()  # stand in `files` as they are in force
    reason = "Invalid"
    while True:
        try:
            applied = await policies.apply(files, fixtures, author=author, reason="objects of the cluster")
        except MeshError as error:
            found = _too_large(error, files, subscriptions.values()) or faults(error, mine)
            blamed = {file: errors for file, errors in found.by_file.items() if file in files}
            if not blamed or found.of_all or not blamed.keys() <= subscriptions.keys():
                return Outcome(0, error, Faults({**told, **found.by_file}, found.of_all, found.reason))
            for file, errors in blamed.items():
                told.setdefault(file, errors)
                before = None if file in kept else _in_force(policies, subscriptions[file])
                kept.add(file)
                files.pop(file) if before is None else files.update({file: before})
        except OSError as error:  # a full disk
            return Outcome(error=unwritten(error))
        else:
            return Outcome(applied.revision, None, Faults(told, [], reason))


def _too_large(error: MeshError, files: Mapping[str, str], subscriptions: Iterable[Placed]) -> Faults | None:
    """Whom to blame where a set has no room: the team whose new Subscriptions take most; None where it is another."""
    if (
        not isinstance(error, BadBundle)
        and len(files) <= MAX_FILES
        and sum(map(len, files.values())) <= MAX_TOTAL_CHARS
    ):
        return None
    new = [one for one in subscriptions if files.get(one.file) == one.text and not in_force(one.object)]
    sizes: Counter[str] = Counter()
    for one in new:
        sizes[one.team] += len(one.text)
    if not sizes:
        return None
    ((team, size),) = sizes.most_common(1)
    message = (
        f"the tenant has no room for the new Subscriptions of team {team}, {size} characters: all its policies may have"
        f" {MAX_FILES} documents and {MAX_BUNDLE_BYTES} bytes. Fix: fewer, with fewer types each"
    )
    return Faults({one.file: [message] for one in new if one.team == team}, [], "Invalid")


HELD: Final = Outcome()
"""Of a set that is not taken, because somebody rolled back by hand."""


def is_held(policies: Policies, placed: Sequence[Placed]) -> bool:
    """Whether a rollback by hand stands, and no object has changed since: a new leader must not undo it."""
    try:
        rolled_back = policies.plans.bundle.rollback_of > 0
    except NoBundle:
        return False
    return rolled_back and all(observed(one.object) for one in placed)


def revision(policies: Policies) -> int:
    """In force; 0 for none."""
    try:
        return policies.plans.bundle.revision
    except NoBundle:
        return 0


def unwritten(error: OSError) -> Unavailable:
    """What a disk that takes nothing is to whoever waits for policies."""
    reason = error.strerror or type(error).__name__
    return Unavailable("the control plane cannot write its files", got=reason, next="make room; it is tried again")


def _in_force(policies: Policies, one: Placed) -> str | None:
    """The document of a Subscription as it is in force; None where it is not."""
    document = msgspec.json.decode(one.text, type=_Head)
    wanted = (document.metadata.team, document.metadata.name)
    try:
        known = policies.plans.bundle.policies
    except NoBundle:
        return None
    for value in known:
        if isinstance(value, Subscription) and (value.metadata.team, value.metadata.name) == wanted:
            return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return None


class _Metadata(msgspec.Struct, frozen=True):
    team: str
    name: str


class _Head(msgspec.Struct, frozen=True):
    metadata: _Metadata


def author(placed: Sequence[Placed], before: Mapping[str, str]) -> str:
    """Who is said to have made a set: the objects that changed, or went, since it was *before* (author by file)."""
    changed = [one.author for one in placed if one.text and not in_force(one.object)]
    gone = [before[file] for file in before.keys() - {one.file for one in placed}]
    return _named(sorted({*changed, *gone})) or "kubernetes"


def _named(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
