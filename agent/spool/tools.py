"""What the parts of a spool ask of each other, as types."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent.spool.backlog import Backlog
    from agent.spool.database import Row
    from agent.spool.egress import Egress
    from agent.spool.record import RefusedRow, Sent
    from agent.spool.resent import ReadAhead
    from agent.spool.store import Store
    from mesh.jetstream.acks import PubAck
    from mesh.jetstream.outgoing import Outgoing
    from mesh.jetstream.publisher import Publisher
    from mesh.policy.compile import Plans


class SealingKeys(NamedTuple):
    """What the spool asks about keys.

    Attributes:
        kid: Of the key that seals now; raises a `MeshError` where there is none.
        revoked: Whether what these keys, perhaps of a process before us, signed at a time may be refused.
    """

    kid: Callable[[], str]
    revoked: Callable[[Collection[str], int], bool]


class Policies(Protocol):
    """The policies in force."""

    async def today(self) -> Plans:
        """Those of now, looked for since the connection was made. Raises MeshError where they cannot be had."""

    async def fetch(self, revision: int) -> None:
        """Get the plans of another revision. Raises MeshError where they cannot be had."""


class Tools(Protocol):
    """What a backlog works with; the spool is it."""

    store: Store
    publisher: Publisher
    egress: Egress
    policies: Policies
    read_ahead: ReadAhead

    def new_ids(self, count: int) -> int:
        """The first of *count* row numbers that nobody had."""

    def next_sent(self, sent: Sent) -> Sent:
        """How a copy that was sent like that is sent now. Raises MeshError where there is no key to seal with."""

    def kept(self, copies: int, size: int) -> None:
        """So many more copies and bytes, or fewer, are on the disk."""

    def failed(self) -> None:
        """The disk took nothing."""

    def drained(self, item: Outgoing, ack: PubAck) -> None:
        """The stream has a copy of ours."""

    def refused(self, rows: Sequence[Row], reason: str, forgotten: Sequence[RefusedRow]) -> None:
        """Copies may not be sent any more: kept aside, unless they expired; *forgotten* had to make room there."""

    def ended(self, backlog: Backlog) -> None:
        """Nothing of this stream is left; its new copies go straight to it."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
