"""What every provider offers, and what it is given: one small interface. Pure.

The door reads the body and calls, in this order: `verify` on the raw bytes, before anything parses them; `payload`;
`answer`, where the delivery is a handshake and wants to see something back; `translate`. What these raise is a
`MeshError`, whatever a stranger sends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mesh.event import decode, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.webhooks.settings import WebhookSource

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class Incoming(NamedTuple):
    """One delivery as it came.

    Attributes:
        headers: Looked up without regard to case.
        body: Every byte of it.
        url: The source's `url` with the query of this request: what a provider that signs its URL was given. Empty
            where the settings name none.
        method: Of the request.
    """

    headers: Mapping[str, str]
    body: bytes
    url: str
    method: str


class Answer(NamedTuple):
    """What a provider is told where that is no receipt."""

    status: int
    body: bytes
    content_type: str


class Provider(ABC):
    """One source of one provider.

    Args:
        source: Its table in the settings.
    """

    CONTENT_TYPES: ClassVar[tuple[str, ...]] = (JSON,)
    NEEDS_URL: ClassVar[bool] = False  # whether the signature covers the URL, so that the settings have to name it
    ACCEPTED: ClassVar[Answer | None] = None  # what an accepted delivery gets; None for 202 and the receipt

    def __init__(self, source: WebhookSource) -> None:
        self.name = source.name
        self.source = f"/{source.provider}/{source.name}"
        self.tolerance_s = source.tolerance_s

    def check_secret(self, secret: bytes) -> None:
        """Refuse a secret that could verify nothing; any text will do unless the provider says otherwise.

        Raises:
            ConfigError: It is not of the provider's form.
        """
        del secret

    @abstractmethod
    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """Check the provider's signature over the raw body. Every secret is tried, in constant time each.

        Args:
            incoming: Nothing in it is believed yet.
            secrets: The one in use and, while it is rotated, the next.
            now_s: Unix seconds.

        Raises:
            BadWebhookSignature: It is missing, malformed, or made with none of *secrets*.
            WebhookNotFresh: It is genuine, and older or newer than the source's tolerance.
        """

    def payload(self, incoming: Incoming) -> Any:
        """The body's content. Raises InputError."""
        return decode(incoming.body)

    def answer(self, incoming: Incoming, payload: Any) -> Answer | None:
        """What a handshake wants to see; None for a delivery that is an event."""
        del incoming, payload
        return None

    @abstractmethod
    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """The events of one verified delivery: their attributes and data. They are published together or not at all.

        Raises:
            InputError: What names an event is missing or malformed.
        """

    def event(
        self, *, id: str, type: str, data: Any, time_ms: int | None = None, subject: str | None = None
    ) -> dict[str, Any]:
        """The fields of one event.

        Args:
            id: In the grammar of ids; see `events.event_id`.
            type: In the grammar of types; see `events.type_of`.
            data: JSON values.
            time_ms: Unix milliseconds, the provider's own; None leaves it to the door.
            subject: What it is about, see `events.subject`; None for none.
        """
        fields = {"specversion": "1.0", "id": id, "source": self.source, "type": type, "datacontenttype": JSON}
        if time_ms is not None:
            fields["time"] = rfc3339(time_ms)
        if subject is not None:
            fields["subject"] = subject
        return {**fields, "data": data}
