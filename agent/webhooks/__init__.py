"""Webhook providers, one per file: each verifies its own signature and says which event a delivery is.

A provider is pure. `verify` sees the raw body and nothing has been parsed by then; `translate` sees the parsed payload
of a delivery that verified, and returns the attributes of the event, or None where the delivery only wants an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from agent.webhooks import github

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Provider(Protocol):
    """What a provider's module offers."""

    CONTENT_TYPES: tuple[str, ...]

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        """Check the provider's signature over the raw *body*.

        Raises:
            BadWebhookSignature: It is missing, malformed, or made with none of *secrets*.
        """

    def translate(self, headers: Mapping[str, str], payload: Any, source: str) -> dict[str, Any]:
        """The event's attributes and data.

        Args:
            headers: The request's, looked up without regard to case.
            payload: The parsed body.
            source: The configured name of the door.

        Raises:
            InputError: A header that names the event is missing or malformed.
        """


PROVIDERS: dict[str, Provider] = {"github": github}
