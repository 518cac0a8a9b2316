"""The dead letters of one tenant put together: what the door answers, and what runs while the tenant is up."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh.anchors import open_keyring
from mesh.bundles import policy_key
from mesh.control.advisories import Advisories
from mesh.control.deadletters_judge import Judge
from mesh.control.deadletters_service import DeadLetters
from mesh.control.redrive import Redrives
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.control.door import Handler
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants


class Letters(NamedTuple):
    """What answers `ctl.dlq.<verb>`, and what runs until cancelled."""

    handlers: dict[str, Handler]
    tasks: tuple[Callable[[], Coroutine[Any, Any, None]], ...]


def dead_letters(
    connection: Connection, tenant: str, trust: Path, *, grants: Callable[[], Grants], told: Callable[..., None]
) -> Letters:
    """Put them together; nothing runs yet.

    Args:
        connection: The control plane's, in the tenant account.
        tenant: Its name.
        trust: The directory that everybody verifies by.
        grants: Those in force.
        told: Takes audit records.

    Raises:
        ConfigError: *trust* holds no anchors.
    """
    judge = Judge(
        BundleWatch(connection, policy_key(trust), tenant=tenant),
        TrustWatch(connection, open_keyring(trust, tenant=tenant)),
    )
    redrives = Redrives(connection, tenant, grants, judge)
    service = DeadLetters(connection, tenant, redrives, judge, told)
    return Letters(service.handlers(), (redrives.run, Advisories(connection, judge).run))
