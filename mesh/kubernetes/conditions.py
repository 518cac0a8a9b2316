"""What stands in the status of a policy object, and the Event that tells it to people.

    Accepted   the mesh can read it: False names what is wrong with it, with the place and the fix
    Applied    as it stands now it is in force, since the revision in `status.revision`; an edit that was refused leaves
               the one before in force, and is Applied: False

Source: Kubernetes API conventions, "Typical status properties".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mesh.kubernetes.names import ACCEPTED, APPLIED
from mesh.policy.texts import instant_text

MAX_MESSAGE_CHARS: Final = 4096  # of a condition: some twenty errors; nobody reads more in a terminal
MAX_EVENT_CHARS: Final = 1024  # as the API server has it
COMPONENT: Final = "mesh-control"


class Condition(NamedTuple):
    """One of the two, as it is now."""

    status: bool
    reason: str
    message: str


class State(NamedTuple):
    """What is to stand in an object's status.

    Attributes:
        accepted, applied: The conditions.
        revision: That holds the object as it is; 0 leaves what was there.
    """

    accepted: Condition
    applied: Condition
    revision: int = 0


def in_force(item: Mapping[str, Any]) -> bool:
    """Whether the status of *item* says that it is in force as it stands now."""
    generation = item["metadata"].get("generation", 0)
    return any(
        one.get("type") == APPLIED and one.get("status") == "True" and one.get("observedGeneration") == generation
        for one in (item.get("status") or {}).get("conditions") or ()
    )


def observed(item: Mapping[str, Any]) -> bool:
    """Whether the mesh has said something of *item* as it stands now."""
    return bool((item.get("status") or {}).get("observedGeneration", -1) == item["metadata"].get("generation", 0))


def status(item: Mapping[str, Any], state: State, *, now_ms: int) -> dict[str, Any] | None:
    """The status of *item* in *state*; None where it says so already.

    Args:
        item: As the API server has it.
        state: Of it, now.
        now_ms: Unix milliseconds: of conditions that changed.
    """
    before = item.get("status") or {}
    generation = item["metadata"].get("generation", 0)
    known = {one.get("type"): one for one in before.get("conditions") or ()}
    made = {
        "observedGeneration": generation,
        "revision": state.revision or before.get("revision", 0),
        "conditions": [
            _condition(ACCEPTED, state.accepted, known.get(ACCEPTED), generation, now_ms),
            _condition(APPLIED, state.applied, known.get(APPLIED), generation, now_ms),
            *(one for name, one in known.items() if name not in {ACCEPTED, APPLIED}),
        ],
    }
    return None if made == before else made


def _condition(
    name: str, condition: Condition, before: Mapping[str, Any] | None, generation: int, now_ms: int
) -> dict[str, Any]:
    said = "True" if condition.status else "False"
    same = before is not None and before.get("status") == said
    since = before["lastTransitionTime"] if same and before is not None else _time(now_ms)
    return {
        "type": name,
        "status": said,
        "reason": condition.reason,
        "message": _short(condition.message, MAX_MESSAGE_CHARS),
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def event(item: Mapping[str, Any], condition: Condition, *, instance: str, now_ms: int) -> dict[str, Any]:
    """The Event that says of *item* what *condition* says.

    Args:
        item: The object.
        condition: What became of it; a warning where its status is False.
        instance: Which replica says so.
        now_ms: Unix milliseconds.
    """
    metadata = item["metadata"]
    at = _time(now_ms)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": item["apiVersion"],
            "kind": item["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": "Normal" if condition.status else "Warning",
        "reason": condition.reason,
        "message": _short(condition.message, MAX_EVENT_CHARS),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _time(now_ms: int) -> str:
    return instant_text(now_ms // 1000 * 1000).replace(".000Z", "Z")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."
