"""The files of one tenant's agents and teams below the data directory: credentials, keys, tokens, `agent.toml`.

`agent.toml` is written once, and what its owner changes in it stays. No event key is among the files: an agent makes
its own in memory and enrols it with `enrol.token`.
"""

from __future__ import annotations

import secrets
import threading
import tomllib
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import logs
from mesh.certificates import read_certificate
from mesh.control.datadir import DataDirectory, private_directory, write_if_changed, write_private
from mesh.control.reconcile import TEAM_PREFIX, Operator, team_workload
from mesh.control.standing import Standing
from mesh.errors import IdentityError
from mesh.keys import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from mesh.control.attest import FileAttestor
    from mesh.control.tls_files import MeshTls
    from mesh.policy.grants import AgentGrants, Grants

WEBHOOK_DOMAINS = ("github",)  # an agent that may publish such types gets a webhook source of that name
SETTINGS = "agent.toml"
EVENT_KEY, EVENT_CERTIFICATE = "event.key", "event.crt"  # of a version that kept them in files

log = logs.get("agents")


class WorkloadFiles:
    """Writes what agents and teams of one tenant read.

    Args:
        tenant: Whose.
        data: The data directory.
        operator: Makes credentials.
        attestor: Hands out the tokens that agents enrol with; None where their platform gives them.
        nats_url, site, trust_domain: What agents are told.
        ports: Where agents listen, one number after the other; None: free ports.
        tls: Keeps TLS certificates; None for a mesh without TLS.

    Attributes:
        renewing: Held while a NATS user and its creds file are replaced, one at a time.
    """

    def __init__(
        self,
        tenant: str,
        data: DataDirectory,
        operator: Operator,
        attestor: FileAttestor | None,
        *,
        nats_url: str,
        site: str,
        trust_domain: str,
        ports: Iterator[int] | None,
        tls: MeshTls | None,
    ) -> None:
        self.tenant = tenant
        self.renewing = threading.Lock()
        self._data = data
        self._operator = operator
        self._attestor = attestor
        self._nats_url = nats_url
        self._site = site
        self._trust_domain = trust_domain
        self._ports = ports
        self._tls = tls
        self._written: dict[str, tuple[object, ...]] = {}  # what decided an agent's files when they were written

    def write(self, grants: Grants) -> None:
        """Write what is missing or has changed, of everybody.

        Raises:
            ConfigError, IdentityError: A file of ours is not what it should be.
        """
        revoked = Standing(self._data.standing(self.tenant)).users
        for team in grants.teams:
            self._write_team(team, grants, revoked)
        for name, agent in sorted(grants.agents.items()):
            decided = _decided(agent, grants)
            if self._written.get(name) != decided:
                self._write_agent(agent, grants, revoked)
                self._written[name] = decided
        if self._tls is not None:
            self._tls.follow(self.tenant, self._clients(grants))

    def _clients(self, grants: Grants) -> dict[Path, str]:
        """Who connects to NATS: the SPIFFE id of each by its directory."""
        agents = {self._data.agent(name): agent.spiffe_id for name, agent in grants.agents.items()}
        teams = {
            self._data.team(team): SpiffeId.for_agent(self._trust_domain, self.tenant, team_workload(team))
            for team in grants.teams
        }
        return {**agents, **teams}

    def credentials(self, workload: str) -> Path:
        """The creds file of an agent, or of a team's own account (`team-<team>`)."""
        team = workload.removeprefix(TEAM_PREFIX)
        directory = self._data.agent(workload) if team == workload else self._data.team(team)
        return directory / "nats.creds"

    def write_credentials(self, workload: str) -> None:
        """Replace the creds file by one of the user that *workload* has today; clients read it at each dial."""
        write_private(self.credentials(workload), self._operator.workload_creds(self.tenant, workload))

    def keep_credentials(self, workload: str, revoked: Container[str]) -> str:
        """Write credentials where there are none of the user that *workload* has; one that is revoked gets a successor.

        `Renewal.user` leaves either behind where it is cut short, and nobody would connect with what lies there.

        Args:
            workload: An agent, or `team-<team>`.
            revoked: Public keys of users that connect no more.

        Returns:
            `same user` or `new user` where it wrote them, else nothing.
        """
        keys, name, path = self._operator.keys, f"{self.tenant}/{workload}", self.credentials(workload)
        with self.renewing:
            user = keys.find("user", name)
            if user is None or user.public in revoked:
                if user is not None:
                    log.warning("revoked_user_replaced", tenant=self.tenant, workload=workload)
                keys.renew("user", name)
                self.write_credentials(workload)
                return "new user"
            if path.exists() and user.seed.encode() in path.read_bytes():
                return ""
            self.write_credentials(workload)
            return "same user"

    def keep_token(self, agent: str, spiffe_id: str) -> str:
        """Write an enrolment token where there is none that stands for *agent*; returns `new token` where it did."""
        if self._attestor is None:
            return ""
        wrote = self._attestor.hand_out(agent, spiffe_id, self._data.agent(agent) / "enrol.token")
        return "new token" if wrote else ""

    def write_token(self, agent: str, spiffe_id: str) -> None:
        """Replace an agent's enrolment token; the one before stands for nobody. One of its platform is not ours."""
        if self._attestor is not None:
            self._attestor.hand_out(agent, spiffe_id, self._data.agent(agent) / "enrol.token", anew=True)

    def event_keys(self, agents: Iterable[str]) -> dict[str, str]:
        """The agents that have an event key of an earlier version in a file, each with its key id.

        One that `agent.toml` names is somebody else's to keep, and not among them.
        """
        found = {}
        for agent in agents:
            directory = self._data.agent(agent)
            if (directory / EVENT_KEY).exists() and "event_key_file" not in tomllib.loads(
                (directory / SETTINGS).read_text()
            ):
                found[agent] = _kid(directory / EVENT_CERTIFICATE)
        return found

    def delete_event_keys(self, agents: Iterable[str]) -> None:
        """Delete the files that `event_keys` found."""
        for agent in agents:
            for name in (EVENT_CERTIFICATE, EVENT_KEY):  # in this order: a crash between them leaves what is found
                (self._data.agent(agent) / name).unlink(missing_ok=True)
            log.info("event_key_deleted", agent=agent)

    def _write_team(self, team: str, grants: Grants, revoked: Mapping[str, Container[str]]) -> None:
        workload = team_workload(team)
        self.keep_credentials(workload, revoked.get(workload, ()))
        for cipher in grants.team_ciphers.get(team, ()):
            self._write_cipher(self._data.team(team), cipher)

    def _write_agent(self, agent: AgentGrants, grants: Grants, revoked: Mapping[str, Container[str]]) -> None:
        """Everything an agent reads."""
        name, directory = agent.agent, self._data.agent(agent.agent)
        self.keep_credentials(name, revoked.get(name, ()))
        self.keep_token(name, agent.spiffe_id)
        self._data.token(name)
        self._data.dedupe_key(name)
        private_directory(directory / "domains")
        private_directory(directory / "ciphers")
        for domain in agent.domains:
            key = self._data.domain_key(self.tenant, domain)
            write_if_changed(directory / "domains" / f"{domain}.key", key.hex().encode() + b"\n")
        for cipher in _ciphers(agent, grants):
            self._write_cipher(directory, cipher)
        webhooks = _webhooks(agent)
        for source in webhooks:
            secret = directory / "webhooks" / f"{source}.secret"
            if not secret.exists():
                write_private(secret, secrets.token_hex(32).encode() + b"\n")
        path = directory / SETTINGS
        if not path.exists():
            numbers = [next(self._ports) for _ in range(3)] if self._ports is not None else [0, 0, 0]
            write_private(path, self._agent_toml(agent, numbers, webhooks, reads=agent.team in grants.teams).encode())

    def _write_cipher(self, directory: Path, cipher: str) -> None:
        key = self._data.cipher_key(self.tenant, cipher)
        write_if_changed(directory / "ciphers" / f"{cipher}.key", key.hex().encode() + b"\n")

    def _agent_toml(self, agent: AgentGrants, ports: list[int], webhooks: list[str], *, reads: bool) -> str:
        creds = f"../../teams/{agent.team}/nats.creds" if reads else ""
        lines = [
            f"# The agent {agent.agent}. Written once by `mesh up`; change what you like. Every setting:",
            "# `mesh-agent config`.",
            f'name = "{agent.agent}"',
            f'tenant = "{self.tenant}"',
            f'team = "{agent.team}"  # `mesh up` sets MESH_AGENT_TEAM, which wins',
            f'site = "{self._site}"',
            f'team_creds_file = "{creds}"  # `mesh up` sets MESH_AGENT_TEAM_CREDS_FILE, which wins',
            f'trust_domain = "{self._trust_domain}"',
            f'spiffe_id = "{agent.spiffe_id}"  # `mesh up` sets MESH_AGENT_SPIFFE_ID, which wins',
            f'nats_url = "{self._nats_url}"  # `mesh up` sets MESH_AGENT_NATS_URL, which wins',
            f"http_port = {ports[0]}",
            f"webhooks_port = {ports[1]}",
            f"health_port = {ports[2]}",
        ]
        for name in webhooks:
            lines += ["", f"[webhooks.{name}]", f'provider = "{name}"', f'secret_files = ["webhooks/{name}.secret"]']
        return "\n".join([*lines, ""])


def _kid(path: Path) -> str:
    """The key id of a certificate, PEM; empty where it cannot be read, and then nobody can use it."""
    try:
        leaf = x509.load_pem_x509_certificate(path.read_bytes())
        return read_certificate(leaf.public_bytes(Encoding.DER)).kid
    except (OSError, ValueError, IdentityError):
        return ""


def _ciphers(agent: AgentGrants, grants: Grants) -> list[str]:
    """The cipher keys of an agent: those it encrypts with, and those its team may open values with."""
    return sorted({*agent.ciphers, *grants.team_ciphers.get(agent.team, ())})


def _webhooks(agent: AgentGrants) -> list[str]:
    published = {pattern.domain for pattern in agent.types}
    return [domain for domain in WEBHOOK_DOMAINS if domain in published]


def _decided(agent: AgentGrants, grants: Grants) -> tuple[object, ...]:
    """What decides an agent's files; most changes of policies leave it as it is."""
    return agent.spiffe_id, agent.team, agent.domains, _ciphers(agent, grants), _webhooks(agent)
