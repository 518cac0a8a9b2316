"""Telling a cluster's objects what became of them: their status, and Events for what people have to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError, NotFound
from mesh.kubernetes.conditions import COMPONENT, Condition, State, event, status
from mesh.kubernetes.names import ACCEPTED, API_VERSION, PLURALS
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.kubernetes.api import Api
    from mesh.kubernetes.objects import Placed

AT_ONCE = 8  # calls: two thousand objects take seconds, and the API server has others to serve

UNTOLD = counter(
    "mesh.control.status_failed", unit="{call}", watch="rising: objects show an old status; see the log, and the roles"
)

log = logs.get("control")


async def tell(api: Api, states: Iterable[tuple[Placed, State]], replica: str) -> None:
    """Bring the status of every object to its state. What fails is logged and counted, and tried again by the caller.

    Args:
        api: Of the cluster.
        states: Objects, and what is to stand in their status.
        replica: Our name, in Events.
    """
    room = anyio.CapacityLimiter(AT_ONCE)
    failed: list[MeshError] = []

    async def one(placed: Placed, wanted: State, made: dict[str, Any]) -> None:
        async with room:
            try:
                new = _to_say(placed, wanted, made)
                if await _write(api, placed, made):
                    for condition in new:
                        told = event(placed.object, condition, instance=replica, now_ms=now_ms())
                        path = f"/api/v1/namespaces/{placed.namespace}/events"
                        (await api.call("POST", path, told)).require()
            except MeshError as error:
                UNTOLD.add()
                failed.append(error)

    async with anyio.create_task_group() as group:
        for placed, wanted in states:
            made = status(placed.object, wanted, now_ms=now_ms())
            if made is not None:
                group.start_soon(one, placed, wanted, made)
    if failed:
        error = failed[0]
        log.warning("status_not_written", count=len(failed), code=error.code, error=error.message, got=error.got)


async def _write(api: Api, placed: Placed, made: dict[str, Any]) -> bool:
    """Write a status; whether the object is still there. As a merge, so that a change meanwhile is no conflict."""
    path = f"/apis/{API_VERSION}/namespaces/{placed.namespace}/{PLURALS[placed.kind]}/{placed.name}/status"
    params = {"fieldManager": COMPONENT}
    answer = await api.call("PATCH", path, {"status": made}, params, content_type="application/merge-patch+json")
    try:
        answer.require()
    except NotFound:
        return False
    placed.object["status"] = made  # as the watch will say: a look before that says and writes nothing twice
    return True


def _to_say(placed: Placed, wanted: State, made: dict[str, Any]) -> list[Condition]:
    """What is new and deserves an Event: each fault with its object, and with the Tenant what became of the set."""
    before = {one.get("type"): one for one in (placed.object.get("status") or {}).get("conditions") or ()}
    said = {}
    for one in made["conditions"]:
        known = before.get(one["type"], {})
        if (known.get("status"), known.get("message")) != (one["status"], one["message"]):
            said[one["type"]] = one
    if ACCEPTED in said and not wanted.accepted.status:
        return [wanted.accepted]
    return [wanted.applied] if placed.kind == "Tenant" and said.keys() - {ACCEPTED} else []
