"""Where a mesh is and who we are in it: `mesh.json`, written by `mesh up`, read by the library and the command line.

The file names things and never holds a secret: tokens and credentials are files beside it, which only their owner can
read. A context is found in this order: the argument, `MESH_CONTEXT`, `.mesh/mesh.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import msgspec

from mesh.errors import ConfigError
from mesh.jetstream.tls import TlsFiles

DEFAULT_PATH = ".mesh/mesh.json"


class AgentAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one agent listens, and the files its application may read; `tls_` where the mesh has TLS."""

    url: str
    webhooks_url: str
    health_url: str
    token_file: str
    creds_file: str
    tls_cert_file: str = ""
    tls_key_file: str = ""


class SubscriptionAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The durable behind a subscription; `streams` names them all where its types span several domains."""

    stream: str
    durable: str
    view: str
    streams: tuple[str, ...] = ()


class TeamAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A team's credentials and what it subscribes to; `tls_` where the mesh has TLS."""

    creds_file: str
    subscriptions: dict[str, SubscriptionAddress]
    tls_cert_file: str = ""
    tls_key_file: str = ""


class TenantAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's agents and teams."""

    agents: dict[str, AgentAddress]
    teams: dict[str, TeamAddress]


class MeshFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`mesh.json`; `tls_ca_file` names the roots that NATS has to be known by, and is empty where there is no TLS.

    `operator_cert_file` and `operator_key_file` are what operators' commands show to NATS where others renew it; empty:
    what lies beside the control plane's own keys.
    """

    nats_url: str
    data: str
    site: str
    tenants: dict[str, TenantAddress]
    tls_ca_file: str = ""
    operator_cert_file: str = ""
    operator_key_file: str = ""


class TeamConnection(TypedDict):
    """Keyword arguments of `Connection.open`."""

    creds: Callable[[], bytes]
    tls: TlsFiles | None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """A mesh and our place in it."""

    mesh: MeshFile
    path: str
    tenant: str
    team: str | None = None
    agent: str | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        tenant: str | None = None,
        team: str | None = None,
        agent: str | None = None,
    ) -> Context:
        """Read a context.

        Args:
            path: A `mesh.json`, or the data directory that holds one; else `MESH_CONTEXT`, else `.mesh/mesh.json`.
            tenant: Else `MESH_TENANT`, else the only tenant there is.
            team: Who we read as; else `MESH_TEAM`, else the team of *agent* is not guessed: reading needs a team.
            agent: Whose door we publish at; else `MESH_AGENT`, else the only agent there is.

        Raises:
            ConfigError: No such file, it is malformed, or it has no such tenant, team or agent.
        """
        file = Path(path or os.environ.get("MESH_CONTEXT") or DEFAULT_PATH)
        if file.is_dir():
            file = file / "mesh.json"
        mesh = _read(file)
        tenant = tenant or os.environ.get("MESH_TENANT") or _only(mesh.tenants, "tenant", file)
        if tenant not in mesh.tenants:
            raise _unknown("tenant", tenant, mesh.tenants, file)
        team = team or os.environ.get("MESH_TEAM")
        if team is not None and team not in mesh.tenants[tenant].teams:
            raise _unknown("team", team, mesh.tenants[tenant].teams, file)
        agent = agent or os.environ.get("MESH_AGENT")
        if agent is not None and agent not in mesh.tenants[tenant].agents:
            raise _unknown("agent", agent, mesh.tenants[tenant].agents, file)
        return cls(mesh=mesh, path=str(file), tenant=tenant, team=team, agent=agent)

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.mesh.data)

    def team_address(self) -> TeamAddress:
        """The credentials and subscriptions of our team.

        Raises:
            ConfigError: No team was named. Nobody reads without a view, so there is no default.
        """
        teams = self.mesh.tenants[self.tenant].teams
        if self.team is None:
            raise ConfigError(
                "reading needs a team: nobody looks without a view",
                expected=f"one of {', '.join(sorted(teams))}",
                next="name it with --team, MESH_TEAM or connect(team=...)",
            )
        return teams[self.team]

    def team_connection(self) -> TeamConnection:
        """What `Connection.open` needs to connect as our team: `creds`, and `tls` where the mesh has it.

        Raises:
            ConfigError: As for `team_address`; or the mesh has TLS, and the team no certificate.
        """
        team = self.team_address()
        return TeamConnection(
            creds=Path(team.creds_file).read_bytes, tls=self.tls(team.tls_cert_file, team.tls_key_file)
        )

    def tls(self, cert_file: str, key_file: str) -> TlsFiles | None:
        """The files to dial with; None where the mesh has no TLS.

        Raises:
            ConfigError: The mesh has TLS and the files have no names: nobody connects without.
        """
        if not self.mesh.tls_ca_file:
            return None
        if not (cert_file and key_file):
            raise ConfigError(
                f"{self.path} names no client certificate, and its NATS asks for one",
                expected="tls_cert_file and tls_key_file",
                next="run `mesh up --tls` again, or take the mesh.json that it wrote",
            )
        return TlsFiles(Path(self.mesh.tls_ca_file), Path(cert_file), Path(key_file))

    def agent_address(self) -> AgentAddress:
        """The door we publish at.

        Raises:
            ConfigError: No agent was named and there are several.
        """
        agents = self.mesh.tenants[self.tenant].agents
        name = self.agent or _only(agents, "agent", Path(self.path))
        return agents[name]


def _read(file: Path) -> MeshFile:
    try:
        return msgspec.json.decode(file.read_bytes(), type=MeshFile)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no mesh at {file}",
            expected="the mesh.json that `mesh up` writes",
            next="start one with `mesh up`, or name its directory with --context or MESH_CONTEXT",
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}",
            expected="the mesh.json that `mesh up` writes",
            next="run `mesh up` again",
        ) from error


def _only(names: dict[str, object] | dict[str, TenantAddress] | dict[str, AgentAddress], what: str, file: Path) -> str:
    if len(names) == 1:
        return next(iter(names))
    raise ConfigError(
        f"{file} has {len(names)} {what}s",
        expected=f"one of {', '.join(sorted(names))}",
        next=f"name the {what} with --{what} or MESH_{what.upper()}",
    )


def _unknown(what: str, name: str, known: object, file: Path) -> ConfigError:
    names = ", ".join(sorted(known)) if isinstance(known, dict) else ""
    return ConfigError(f"{file} has no {what} {name}", expected=f"one of {names}", got=name, next=f"check the {what}")
