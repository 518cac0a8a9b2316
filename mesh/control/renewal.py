"""New credentials in the place of old ones: a NATS user, an enrolment token. What they replace works no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.control.reconcile import now_ms

if TYPE_CHECKING:
    from mesh.control.nkeys import NkeyFiles
    from mesh.control.standing import Standing
    from mesh.control.workload_files import WorkloadFiles


class Renewal:
    """Makes the credentials of one tenant's workloads anew. Blocking: call it in a thread.

    Args:
        keys: Of the NATS accounts and users.
        files: Where workloads read what they need.
        standing: Remembers the users that were replaced.
    """

    def __init__(self, keys: NkeyFiles, files: WorkloadFiles, standing: Standing) -> None:
        self._keys = keys
        self._files = files
        self._standing = standing

    def user(self, workload: str) -> None:
        """Give *workload* (an agent, or `team-<team>`) a new NATS user.

        The one before is remembered as revoked first, so that no crash leaves it good; it is cut off as soon as the
        account is refreshed. What a crash leaves undone `WorkloadFiles.write` does at the next start.

        Raises:
            ConfigError, IdentityError, OSError: A file of ours cannot be read or written.
        """
        name = f"{self._files.tenant}/{workload}"
        with self._files.renewing:
            held = self._keys.find("user", name)
            if held is not None:
                self._standing.revoke_user(workload, held.public, now_ms() // 1000)
            self._keys.renew("user", name)
            self._files.write_credentials(workload)

    def token(self, agent: str, spiffe_id: str) -> None:
        """Give *agent* a new enrolment token.

        Raises:
            OSError: Its file cannot be written.
        """
        self._files.write_token(agent, spiffe_id)

    def lost(self, workload: str, spiffe_id: str) -> dict[str, str]:
        """Write again what *workload* lost, or what somebody replaced; what is good stays as it is.

        Args:
            workload: An agent, or `team-<team>`.
            spiffe_id: Of an agent; empty for a team, which enrols nothing.

        Returns:
            What each file that was written holds: `nats.creds` the `same user` or a `new user`, where the seed of its
            own was lost too or is revoked; `enrol.token` a `new token`.

        Raises:
            ConfigError, IdentityError, OSError: A file of ours cannot be read or written.
        """
        creds = self._files.keep_credentials(workload, self._standing.users.get(workload, {}))
        token = self._files.keep_token(workload, spiffe_id) if spiffe_id else ""
        return {name: what for name, what in (("nats.creds", creds), ("enrol.token", token)) if what}
