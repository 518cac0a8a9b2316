"""The agents and teams of one tenant, as files: what they read is written here, and others run them.

Every file is written before the bundle that needs it is handed out: an agent that adopts a revision has the keys it
masks with. Where several replicas may lead, the next leader can find them by then as well.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mesh.context import AgentAddress, SubscriptionAddress, TeamAddress, TenantAddress
from mesh.control.preflight import check_tenant
from mesh.jetstream.topology import durables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from mesh.control.datadir import DataDirectory
    from mesh.control.workload_files import WorkloadFiles
    from mesh.policy.compile import Plans
    from mesh.policy.grants import Grants


class WrittenWorkloads:
    """The agents and teams of one tenant.

    Args:
        tenant: Whose.
        data: The data directory.
        files: Writes what they read.
        site, trust_domain: Of the mesh.
        taken: The agents of all tenants, by name, and whose they are: each has one directory.
        changed: Called when the agents, teams or subscriptions are other ones than before.
        save: Puts what was written where the next leader finds it; None where there is only one control plane.
    """

    def __init__(
        self,
        tenant: str,
        data: DataDirectory,
        files: WorkloadFiles,
        *,
        site: str,
        trust_domain: str,
        taken: dict[str, str],
        changed: Callable[[], Awaitable[None]],
        save: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.tenant = tenant
        self.files = files
        self._data = data
        self._site = site
        self._trust_domain = trust_domain
        self._taken = taken
        self._changed = changed
        self._save = save

    # --- asked by `Policies` -----------------------------------------------------------------------------------------

    def check(self, plans: Plans) -> None:
        """Whether every agent can run here.

        Raises:
            ConfigError: See `check_tenant`.
        """
        check_tenant(self.tenant, plans, self._trust_domain, self._taken)

    async def prepare(self, grants: Grants) -> None:
        """Write the files of everybody.

        Raises:
            ConfigError, IdentityError: A file of ours is not what it should be.
            RequestFailed, Unavailable: The next leader could not find them.
        """
        self._taken.update(dict.fromkeys(grants.agents, self.tenant))
        await anyio.to_thread.run_sync(self.files.write, grants)  # each file is synced: a thousand agents take seconds
        if self._save is not None:
            await self._save()

    async def follow(self, grants: Grants) -> None:
        """Say who is there; agents that are gone may be called like those of another tenant."""
        for name in [name for name, tenant in self._taken.items() if tenant == self.tenant]:
            if name not in grants.agents:
                del self._taken[name]
        await self._changed()

    # --- processes ---------------------------------------------------------------------------------------------------

    async def start(self, grants: Grants) -> None:
        """Others start them."""

    async def supervise(self) -> None:
        """Nothing to do, until cancelled."""
        await anyio.sleep_forever()

    async def stop(self) -> None:
        """Others stop them."""

    # --- `mesh.json` -------------------------------------------------------------------------------------------------

    def address(self, grants: Grants) -> TenantAddress:
        """Where the agents listen, as far as we know, and what the teams subscribe to."""
        teams = {team: self._data.team(team) for team in sorted(grants.teams)}
        return TenantAddress(
            agents=self._agent_addresses(),
            teams={
                team: team_address(directory, self._site, team, grants, self._tls_address(directory))
                for team, directory in teams.items()
            },
        )

    def _agent_addresses(self) -> dict[str, AgentAddress]:
        """Whoever runs them knows."""
        return {}

    def _tls_address(self, _directory: Path) -> dict[str, str]:
        """Whoever keeps their TLS files knows."""
        return {}


def team_address(
    directory: Path, site: str, team: str, grants: Grants, tls: Mapping[str, str] = MappingProxyType({})
) -> TeamAddress:
    """Where a team's credentials are, and what it subscribes to.

    Args:
        directory: The team's.
        site: Of the streams.
        team: Whose subscriptions.
        grants: Of the policies in force.
        tls: The names of its TLS files, as `TeamAddress` has them; empty where others keep them.
    """
    subscriptions = {}
    for grant in grants.active:
        if grant.team == team:
            streams = tuple(dict.fromkeys(d.stream for d in durables(site, grants.domains, grant)))
            subscriptions[grant.name] = SubscriptionAddress(
                stream=streams[0],
                durable=grant.durable,
                view=grant.view,
                streams=streams if len(streams) > 1 else (),
            )
    return TeamAddress(creds_file=str(directory / "nats.creds"), subscriptions=subscriptions, **tls)
