"""Replays: stored events into one subscription again, without touching others or its live position.

A replay has a durable of its own beside the subscription's, `<team>--<subscription>--replay` in each stream, granted by
name with the subscription. Notices tell every running replica to pull it too, every `LOOK_S` while it is open. Runs
share that name, one after the other: each is announced before its durables are there and taken back before they go, and
what a replica is delivered belongs to the run that it heard of last. It ends when all up to its last sequence is
settled. Nothing is published again: signatures, stream times and positions are those of the events, so every check
holds, and what the subscription may not be shown is withheld as ever.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from mesh import audit, logs
from mesh.control.reconcile import now_ms
from mesh.control.replay_durables import look, make, read_open, remove, silence, skipped_ms
from mesh.control.replay_reach import reach
from mesh.control.replay_runs import Run, within
from mesh.errors import Disconnected, MeshError, NotFound, ReplayOpen
from mesh.jetstream.durables import REPLAY, Durable, replays, subscription_of
from mesh.jetstream.succession import settled
from mesh.telemetry import gauge
from mesh.watch import NOTICE_SUBJECT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.control.change import Audit
    from mesh.control.in_force import InForce
    from mesh.control.replay_reach import Point
    from mesh.control.replay_runs import State
    from mesh.policy.grants import SubscriptionGrant

LOOK_S = 2.0  # between two looks at what is settled, and two notices
FLUSH_S = 5.0
REMEMBERED = 100  # runs that ended last: who waits for one learns how

LEFT = gauge("mesh.control.replaying", unit="{event}", watch="never back to 0: nobody pulls that subscription")

log = logs.get("replay")


class Replays:
    """Of one tenant.

    Args:
        policies: Those in force, and the lock that changes of rights hold.
        audit: Told what begins and ends.
    """

    def __init__(self, policies: InForce, audit: Audit) -> None:
        self._policies = policies
        self._connection = policies.connection
        self._audit = audit
        self._lock = anyio.Lock()
        self._read = False
        self._open: dict[str, Run] = {}  # by durable
        self._left: dict[str, dict[str, int]] = {}  # by durable and stream, as of the last look
        self._settled: set[str] = set()  # runs that are finished, and may still have durables
        self._ended: dict[str, tuple[Run, State, dict[str, int]]] = {}  # by run, oldest first; with what was left

    async def run(self) -> None:
        """Tell subscriptions what is replayed to them, and end what is settled, until cancelled."""
        while True:
            try:
                async with self._lock:
                    await self._begin()
                    for run in list(self._open.values()):
                        await self._look_or_say(run)
                left = sum(sum(streams.values()) for streams in self._left.values())
                LEFT.set(left, tenant=self._policies.tenant)
            except Disconnected:
                pass  # the connection says so itself
            except MeshError as error:
                log.warning("replays_not_looked_at", code=error.code, error=str(error))
            await anyio.sleep(LOOK_S)

    # --- what is asked -----------------------------------------------------------------------------------------------

    async def start(
        self,
        team: str,
        subscription: str,
        begin: Point,
        end: Point,
        types: Iterable[str] = (),
        *,
        author: str = "",
        reason: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Begin a replay; what it takes, and `bound_ms` where the team's rights reach back no further than that.

        Args:
            team: Whose.
            subscription: Of that team.
            begin: From where; what the team could not read when it was stored is left out.
            end: Up to where; what is stored by now unless it says less.
            types: Only these, patterns as in policies.
            author: Who; kept in the audit trail.
            reason: Why; kept in the audit trail.
            dry_run: Only say what it would take.

        Raises:
            NotFound: No such subscription, or nothing stored that it could be shown.
            ReplayOpen: It has one already.
            BadAttribute, BadPattern: See `reach` and `Pattern.parse`.
            RequestFailed, Unavailable: NATS refused or did not answer; nothing was begun.
        """
        async with self._lock, self._policies.changing:
            await self._begin()
            grants = self._policies.grants
            grant = grants.subscriptions.get((team, subscription))
            if grant is None or not grant.active:
                raise _no_subscription(team, subscription, grant)
            if not dry_run:
                await self._require_none(f"{grant.durable}--{REPLAY}")
            types = tuple(types)
            narrowed = within(grant, types)
            durables = replays(grants.site, grants.domains, narrowed)
            bound_ms = max(await self._policies.opened_ms(narrowed), await skipped_ms(self._connection, narrowed))
            parts = await reach(self._connection, durables, begin, end, bound_ms=bound_ms)
            run = Run(
                run=secrets.token_hex(8),
                team=team,
                subscription=subscription,
                parts=parts,
                types=types,
                started_ms=now_ms(),
                author=author,
                reason=reason,
            )
            if not dry_run:
                if not parts:
                    raise _nothing(bound_ms)
                await self._make(run, grant, {durable.stream: durable for durable in durables})
        told = run.as_dict("open", {stream: part.count for stream, part in parts.items()})
        return {**told, "run": "" if dry_run else run.run, "bound_ms": bound_ms, "client": grant.client}

    async def runs(self) -> list[dict[str, Any]]:
        """Every replay that is open, and those that ended last.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        async with self._lock:
            await self._begin()
            for run in list(self._open.values()):
                await self._look(run)
            active = {grant.durable for grant in self._policies.grants.active}
            states: dict[str, State] = {
                durable: "open" if subscription_of(durable) in active else "paused" for durable in self._open
            }
            told = [run.as_dict(states[durable], self._left.get(durable, {})) for durable, run in self._open.items()]
            return [*told, *(run.as_dict(state, left) for run, state, left in reversed(self._ended.values()))]

    async def cancel(self, run_id: str, *, author: str = "", reason: str = "") -> dict[str, Any]:
        """End a replay now; what was handed out is still settled, what is left is not replayed.

        Raises:
            NotFound: No such replay is open.
            RequestFailed, Unavailable: NATS refused or did not answer; asking again is safe.
        """
        async with self._lock:
            await self._begin()
            run = next((run for run in self._open.values() if run.run == run_id), None)
            if run is None:
                known = ", ".join(sorted(run.run for run in self._open.values()))
                raise NotFound(
                    f"no replay {run_id[:40]} is open", expected=known or "an open one", next="see `mesh replay list`"
                )
            left = self._left.get(run.durable, {})
            await self._end(run, "cancelled", author=author, reason=reason)
            return run.as_dict("cancelled", left)

    async def _require_none(self, durable: str) -> None:
        """Raise unless a subscription has no open replay; one that is settled by now is not open."""
        if (other := self._open.get(durable)) is not None:
            await self._look(other)
        if (other := self._open.get(durable)) is not None:
            raise ReplayOpen(
                f"a replay of {other.team}/{other.subscription} is open already",
                expected="one at a time",
                got=f"run {other.run}",
                next=f"wait for it, or `mesh replay cancel {other.run}`",
            )

    # --- beginning and ending ----------------------------------------------------------------------------------------

    async def _make(self, run: Run, grant: SubscriptionGrant, durables: dict[str, Durable]) -> None:
        """Make its durables, all or none, once replicas know whose they will be."""
        try:
            await self._announce(run)
            await make(self._connection, run, grant, durables)
        except MeshError:
            self._read = False
            raise
        self._open[run.durable] = run
        self._left[run.durable] = {stream: part.count for stream, part in run.parts.items()}
        self._audit(audit.REPLAY_STARTED, **run.facts(), author=run.author, reason=run.reason)
        log.info("replay_started", run=run.run, team=run.team, subscription=run.subscription, copies=run.count)
        with suppress(Disconnected):  # the next look says it
            await self._notice(run, run.parts)

    async def _end(self, run: Run, state: State, *, author: str = "", reason: str = "") -> None:
        """End it, to the entry in the audit, also where the control plane stops meanwhile: later nobody can see it."""
        with anyio.CancelScope(shield=True):  # requests with deadlines of their own
            await self._announce(run)
            await remove(self._connection, run, run.parts)
        streams = self._left.pop(run.durable, {})
        left = sum(streams.values())
        self._open.pop(run.durable, None)
        self._settled.discard(run.run)
        self._ended[run.run] = (run, state, streams)
        while len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        if state == "finished":
            self._audit(audit.REPLAY_FINISHED, **run.facts(), author=run.author, reason=run.reason)
        else:
            self._audit(audit.REPLAY_CANCELLED, **run.facts(), left=left, author=author, reason=reason)
        log.info("replay_ended", run=run.run, state=state, left=left)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Read what is open, once: somebody else may have led before."""
        if self._read:
            return
        self._open, self._left, self._read = await read_open(self._connection), {}, True

    async def _look_or_say(self, run: Run) -> None:
        """Look at one of several: where that fails the others go on, and it is looked at again next time."""
        try:
            await self._look(run)
        except Disconnected:
            raise
        except MeshError as error:
            log.warning("replay_not_looked_at", run=run.run, code=error.code, error=str(error))

    async def _look(self, run: Run) -> None:
        """See what of a replay is settled: end it, or tell its subscription of what is left."""
        if run.run in self._settled:  # it was being ended as the server did not answer
            await self._end(run, "finished")
            return
        before, left = self._left.get(run.durable, {}), dict[str, int]()
        found = {stream: await look(self._connection, stream, run) for stream in run.parts}
        for stream, info in found.items():
            part = run.parts[stream]
            if info is None:
                left[stream] = before.get(stream, part.count)  # at most
            elif not settled(info, part.last):
                left[stream] = min(part.count, int(info["num_pending"]) + int(info["num_ack_pending"]))
            elif len(run.parts) > 1 and not info.get("paused"):  # what follows is live, and others may not be done
                await silence(self._connection, stream, run)
        self._left[run.durable] = left
        gone = sorted(stream for stream, info in found.items() if info is None)
        if gone:  # made or ended in part as a control plane ended, or taken away: whether it was settled nobody knows
            await self._end(run, "cancelled", reason=f"incomplete: its durable is gone from {', '.join(gone)}")
        elif not left:
            self._settled.add(run.run)
            await self._end(run, "finished")
        else:
            await self._notice(run, left)

    async def _announce(self, run: Run) -> None:
        """Say that nothing is to be pulled, and what comes from here on is of this run.

        What is asked of the server next, it does after it has told everybody; over another link it might not.
        """
        await self._notice(run, ())
        await self._connection.flush(FLUSH_S)

    async def _notice(self, run: Run, streams: Iterable[str]) -> None:
        await self._connection.publish(NOTICE_SUBJECT, run.notice(streams))


def _no_subscription(team: str, subscription: str, grant: SubscriptionGrant | None) -> NotFound:
    if grant is None:
        return NotFound(f"{team} has no subscription {subscription}", next="`mesh subscription list` shows them all")
    return NotFound(
        f"the subscription {subscription} of {team} is inactive",
        expected="one that is delivered something",
        got=grant.reason,
        next="mend that first; then ask again",
    )


def _nothing(bound_ms: int) -> NotFound:
    return NotFound(
        "nothing is stored there that the subscription could be shown",
        expected="stored events of its types" + (" since its team may read them" if bound_ms else ""),
        next="`mesh replay ... --dry-run` with other bounds counts without beginning",
    )
