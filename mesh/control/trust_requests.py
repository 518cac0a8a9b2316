"""What `ctl.trust.<verb>` is asked, as the command line sends it, and where a cut may lie."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from mesh.errors import BadAttribute

if TYPE_CHECKING:
    from mesh.control.door import Handler
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants

LEAD_MS = 1_000  # from a command to its cut: a statement is out in milliseconds, an agent has another key in under 1 s
MAX_BACK_MS = 366 * 86_400_000  # how far back a cut may lie; no certificate that still counts is older
KID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")  # 16 bytes as unpadded base64url
MAX_HOURS = 720  # of a certificate that an operator asks for: a month, since nobody renews it by itself
MAX_TEXT = 200  # characters of an author or a reason


class Policies(Protocol):
    """What is needed of the live policies of the tenant."""

    tenant: str
    connection: Connection

    @property
    def audit(self) -> Callable[..., None]:
        """Told each change."""

    @property
    def grants(self) -> Grants:
        """In force. Raises NoBundle before the first."""


class Asked(msgspec.Struct, frozen=True):
    """A request, as the command line sends it.

    Attributes:
        kid, agent, team: What is to be revoked or admitted: one of them; *agent* also, who gets a certificate.
        agents, teams, everybody: Whose keys and users are rotated; *everybody* is every agent.
        from_ms: Where the cut lies, Unix milliseconds; None for `LEAD_MS` ahead.
        now: It lies where the request is read.
        unknown: Revoke *kid* even where no certificate of ours is of it, or comes from it.
        credentials, ca, revoke_old, store: What is rotated beside event keys.
        overlap_s: How long a NATS user that is replaced is good beside the new one; None for as long as is usual here.
        ended: List certificates that have ended, and revoked keys without one, too.
        skip: So many keys of the list were told before: an answer has no more than fits a message.
        csr, hours: For which key a certificate is issued, and for how long.
        progress: An inbox that is told each step.
    """

    kid: str = ""
    agent: str = ""
    team: str = ""
    agents: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    everybody: bool = False
    from_ms: int | None = None
    now: bool = False
    unknown: bool = False
    credentials: bool = False
    ca: bool = False
    revoke_old: bool = False
    store: bool = False
    overlap_s: float | None = None
    ended: bool = False
    skip: int = 0
    csr: bytes = b""
    hours: int = 0
    author: str = ""
    reason: str = ""
    progress: str = ""

    @property
    def said(self) -> dict[str, str | None]:
        """Who asks and why, for the audit trail."""
        return {"author": self.author[:MAX_TEXT] or None, "reason": self.reason[:MAX_TEXT] or None}


def reading(handle: Callable[[Asked], Awaitable[dict[str, Any]]]) -> Handler:
    """*handle* as the door calls it. A request that is none is refused with BadAttribute."""

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            asked = msgspec.convert(request, Asked)
        except msgspec.ValidationError as error:
            raise BadAttribute(f"the request is malformed: {error}", expected="what `mesh trust` sends") from error
        if asked.kid and KID.fullmatch(asked.kid) is None:
            raise BadAttribute(
                "this is no key id", expected="22 characters, as `mesh trust list` shows them", got=asked.kid[:64]
            )
        return await handle(asked)

    return answer


def cut_of(asked: Asked, at_ms: int, *, offset_ms: int = 0) -> int:
    """Where the cut lies (Unix ms of the server's clock, which stamps events).

    Args:
        asked: A time that it names is taken as it is.
        at_ms: When it is read, by our clock.
        offset_ms: What to add to get the server's: see `TrustStore.offset_ms`.

    Raises:
        BadAttribute: In the future, or too long ago.
    """
    if asked.from_ms is None:
        return at_ms + offset_ms + (0 if asked.now else LEAD_MS)
    if not at_ms - MAX_BACK_MS <= asked.from_ms <= at_ms + LEAD_MS:
        raise BadAttribute(
            "the cut lies where it cannot",
            expected="within the last 366 days, and not in the future",
            got=f"{(at_ms - asked.from_ms) // 1000} s ago",
        )
    return asked.from_ms
