"""New credentials in the place of old ones: a NATS user, an enrolment token. What they replace works no more.

Where others carry the files to whoever uses them, the user before may work for a while beside the new one.
"""

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

    def user(self, workload: str, overlap_s: float = 0.0) -> None:
        """Give *workload* (an agent, or `team-<team>`) a new NATS user.

        The one before is remembered as revoked first, so that no crash leaves it good; it is cut off as soon as the
        account is refreshed. What a crash leaves undone `WorkloadFiles.write` does at the next start. With *overlap_s*
        it is good for so long: `end` revokes it. Without, so are those that such a rotation before left good.

        Raises:
            ConfigError, IdentityError, OSError: A file of ours cannot be read or written.
        """
        name, now_s = f"{self._files.tenant}/{workload}", now_ms() // 1000
        with self._files.renewing:
            held = self._keys.find("user", name)
            if held is not None and overlap_s:
                self._standing.end_user(workload, held.public, now_s + round(overlap_s))
            elif held is not None:
                for public in (held.public, *self._standing.ending.get(workload, ())):
                    self._standing.revoke_user(workload, public, now_s)
            self._keys.renew("user", name)
            self._files.write_credentials(workload)

    def end(self, at_s: float) -> list[str]:
        """Revoke users whose overlap is over by *at_s*, Unix seconds; whose accounts are to be refreshed for it.

        Raises:
            ConfigError, IdentityError: As for `user`.
        """
        ended = []
        with self._files.renewing:
            for workload, users in dict(self._standing.ending).items():
                held = self._keys.find("user", f"{self._files.tenant}/{workload}")
                for public in [public for public, from_s in users.items() if from_s <= at_s]:
                    if held is not None and held.public == public:  # a crash came between `end_user` and its new one
                        self._standing.keep_user(workload, public)
                        continue
                    self._standing.revoke_user(workload, public, int(at_s))
                    ended.append(workload)
        return ended

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
