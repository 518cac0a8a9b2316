"""Whether an agent takes events now, and why not; and facts about it. What doors and probes ask; nothing changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent.keys import clock_ms
from agent.outbound import no_bundle
from agent.refusals import is_ours, reason, refused
from agent.room import Room
from agent.tasks import Tasks
from mesh.errors import Disconnected, Draining, MeshError, Overloaded, SpoolFull

if TYPE_CHECKING:
    from agent.identity import Identity
    from agent.keys import Keys
    from agent.outbound import Outbound
    from agent.policies import PolicySide
    from agent.settings import AgentSettings
    from agent.spool.spool import Spool
    from mesh.jetstream.connection import Connection


class Observed:
    """An agent, for who only asks how it is.

    Args:
        settings: Every limit and file name.
        keys: What it masks and seals with.

    Attributes:
        outbound: Publishes; None before the start.
        spool: Holds what no stream takes; None where the settings name none.
    """

    def __init__(self, settings: AgentSettings, keys: Keys) -> None:
        self.settings = settings
        self.keys = keys
        self.outbound: Outbound | None = None
        self.spool: Spool | None = None
        self._bytes = Room(settings.max_waiting_bytes, wait_s=settings.admit_wait_s, unit="bytes")
        self._connection: Connection | None = None
        self._policies: PolicySide | None = None
        self._identity: Identity | None = None
        self._tasks = Tasks()
        self._bundle_arrived = asyncio.Event()
        self._opened = asyncio.Event()
        self._draining = False

    @property
    def failed(self) -> asyncio.Event:
        """Set once a part of the agent has died; only a restart helps."""
        return self._tasks.failed

    def check_open(self) -> None:
        """Refuse early what would be refused later.

        Raises:
            Draining: The agent is shutting down.
            Disconnected: NATS will not have us, `reason` says why, and there is no spool, or we are barred; or NATS is
                away, and no bundle has arrived yet.
            NoBundle: No valid bundle yet.
            ClockWrong: Our clock is far from the server's, and nobody would believe what we seal.
            NotEnrolled, SignerExpired: Nobody would believe what we seal, and there is no spool where it could wait for
                a key; or the control plane refuses us one.
        """
        if self._draining:
            raise Draining(
                "the agent is shutting down and takes nothing new",
                expected="a running agent",
                next="send the same again to the agent that takes over",
            )
        refusal = self._refusal
        if refusal is not None and (self.spool is None or is_ours(refusal)):
            raise refused(refusal)
        if not self._bundle_arrived.is_set():
            if not self._connected:
                raise Disconnected(
                    "NATS is not reached, and no policy bundle has arrived yet",
                    expected="a connection to NATS",
                    next="check nats_url and creds_file; the agent goes on trying",
                )
            raise no_bundle()
        if self._policies is not None and self._policies.clock.wrong:
            raise self._policies.clock.error()
        if self._identity is not None and not (
            self.spool is not None and self._identity.hopeful and self._opened.is_set()
        ):
            self._identity.check(clock_ms())

    @property
    def _refusal(self) -> MeshError | None:
        return None if self._connection is None else self._connection.refusal

    @property
    def _connected(self) -> bool:
        return self._connection is not None and self._connection.connected

    def not_alive(self) -> list[str]:
        """Why the process should be restarted; empty while it should not."""
        return [f"task {name} died" for name in self._tasks.dead]

    def not_ready(self) -> list[str]:
        """Why the door takes nothing now: codes, and the stable reason of a refusal; empty while it does."""
        reasons = self.not_alive()
        try:
            self.check_open()
        except MeshError as error:
            reasons.append(error.code)
            if "reason" in error.details:
                reasons.append(str(error.details["reason"]))
        outbound = self.outbound
        if outbound is None or outbound.room.free <= 0 or self._bytes.free <= 0:
            reasons.append(Overloaded.code)
        if self.spool is not None and self.spool.full:
            reasons.append(SpoolFull.code)
        return reasons

    def state(self) -> dict[str, Any]:
        """Facts for people who look at a probe: no data, no names but those of domains and ciphers without a key."""
        outbound = self.outbound
        refused = None if self._policies is None else self._policies.state.refused
        return {
            "nats_connected": self._connected,
            "nats_refused": None if self._refusal is None else reason(self._refusal),
            "bundle_revision": 0 if outbound is None else outbound.revision,
            "bundle_digest": "" if self._policies is None else self._policies.state.digest,
            "bundle_refused": None if refused is None else {"code": refused.code, "revision": refused.revision},
            "identity": {} if self._identity is None else self._identity.state(),
            "spool": None if self.spool is None else self.spool.state(),
            "waiting_events": 0 if outbound is None else outbound.room.used,
            "domains_lacking": [] if outbound is None else self.keys.masks.lacking(outbound.domains),
            "ciphers_lacking": [] if outbound is None else self.keys.masks.lacking_ciphers(outbound.ciphers),
            "draining": self._draining,
        }
