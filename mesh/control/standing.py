"""Who lost the mesh's trust as a workload or as a NATS user, of one tenant: a file of the control plane's own.

Keys of events are revoked in the trust statement. This is the other half: a workload that is barred gets no certificate
and no connection, and a NATS user that was replaced or stolen connects no more, whatever the server's store says.
"""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from mesh.control.datadir import write_private
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


NOBODY = '{"barred": [], "users": {}}'  # the file of a tenant in which nobody was ever barred


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    barred: tuple[str, ...] = ()
    users: dict[str, dict[str, int]] = {}
    ending: dict[str, dict[str, int]] | msgspec.UnsetType = msgspec.UNSET  # left out where empty: older ones know none


class Standing:
    """The barred workloads and the revoked NATS users of one tenant. Saved whole at each change.

    Changes come from threads, several at a time: each waits for the one before, so that none is lost.

    Args:
        file: Where; it need not be there yet: see `begin`.

    Raises:
        ConfigError: The file cannot be read. Nobody barred is not a guess to make.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changing = threading.Lock()
        state = _read(file)
        self._barred = frozenset(state.barred)
        self._users = {workload: dict(users) for workload, users in state.users.items()}
        self._ending = state.ending or {}

    def begin(self, *, is_new: bool) -> None:
        """Have the file from a tenant's first start on: one that is gone later was lost, and with it who is barred.

        Args:
            is_new: Nobody can have been barred in this tenant yet.

        Raises:
            ConfigError: The file is missing, and the tenant is not new; or it cannot be written.
        """
        if self._file.exists():
            return
        if not is_new:
            raise ConfigError(
                f"{self._file} is missing: it says who is barred",
                expected="the file, which is there from the first start on",
                next=f"restore it from a backup; or write {NOBODY} into it (among `barred` whom you know of: an agent's"
                " name, or team-<team>), start, and revoke again whom `mesh audit list --kind trust-revoked` shows",
            )
        with self._changing:
            self._save()

    @property
    def barred(self) -> frozenset[str]:
        """Workloads (an agent's name, or `team-<team>`) that get no certificate and no connection."""
        return self._barred

    @property
    def users(self) -> Mapping[str, Mapping[str, int]]:
        """By workload: public keys of NATS users, each with the Unix second up to which its credentials are refused."""
        return MappingProxyType(self._users)

    def bar(self, workload: str) -> None:
        """Refuse *workload* from here on.

        Raises:
            ConfigError: It cannot be saved; then nothing changed.
        """
        with self._changing:
            self._save(barred=self._barred | {workload})

    def admit(self, workload: str) -> None:
        """Take *workload* back; its revoked users stay revoked.

        Raises:
            ConfigError: As for `bar`.
        """
        with self._changing:
            self._save(barred=self._barred - {workload})

    @property
    def ending(self) -> Mapping[str, Mapping[str, int]]:
        """By workload: users that were replaced, each with the Unix second from which it is to be revoked."""
        return MappingProxyType(self._ending)

    def end_user(self, workload: str, public: str, from_s: int) -> None:
        """Have a NATS user of *workload*, which is being replaced, revoked at *from_s* (Unix seconds): see `Renewal`.

        Raises:
            ConfigError: As for `bar`.
        """
        with self._changing:
            ending = {name: dict(held) for name, held in self._ending.items()}
            ending.setdefault(workload, {})[public] = from_s
            self._save(ending=ending)

    def revoke_user(self, workload: str, public: str, at_s: int) -> None:
        """Refuse a NATS user of *workload* with credentials made at *at_s* (Unix seconds) or before.

        Raises:
            ConfigError: As for `bar`.
        """
        with self._changing:
            users = {name: dict(held) for name, held in self._users.items()}
            of_workload = users.setdefault(workload, {})
            of_workload[public] = max(at_s, of_workload.get(public, 0))
            self._save(users=users, ending=self._without(workload, public))

    def keep_user(self, workload: str, public: str) -> None:
        """Do not revoke it after all: it was never replaced.

        Raises:
            ConfigError: As for `bar`.
        """
        with self._changing:
            self._save(ending=self._without(workload, public))

    def _without(self, workload: str, public: str) -> dict[str, dict[str, int]]:
        left = {name: dict(held) for name, held in self._ending.items()}
        left.get(workload, {}).pop(public, None)
        return {name: held for name, held in left.items() if held}

    def _save(
        self,
        *,
        barred: frozenset[str] | None = None,
        users: dict[str, dict[str, int]] | None = None,
        ending: dict[str, dict[str, int]] | None = None,
    ) -> None:
        barred = self._barred if barred is None else barred
        users = self._users if users is None else users
        ending = self._ending if ending is None else ending
        state = _State(tuple(sorted(barred)), users, ending or msgspec.UNSET)
        try:
            write_private(self._file, msgspec.json.format(msgspec.json.encode(state, order="sorted"), indent=2) + b"\n")
        except OSError as error:
            raise ConfigError(
                f"{self._file} cannot be written: {error.strerror}",
                expected="room and the right to write it",
                next="make room, then ask again; nothing was changed",
            ) from error
        self._barred, self._users, self._ending = barred, users, ending


def _read(file: Path) -> _State:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_State)
    except FileNotFoundError:
        return _State()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} does not say who is barred",
            expected="the file as the control plane wrote it",
            got=type(error).__name__,
            next="restore it from a backup; without it every revoked workload would be back",
        ) from error
