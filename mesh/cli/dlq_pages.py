"""What the commands of `mesh dlq` ask with: the filter, and one request after the other until all was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.cli.policy.request import ask
from mesh.cli.times import moment_ms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.cli.operator import OperatorConnection

NOUN = "dlq"
BATCH = 100  # letters a request


def chosen_letters(  # noqa: PLR0917 - one for each filter option, in their order
    team: str,
    subscription: str,
    because: str,
    type_: str,
    since: str,
    until: str,
    id_: str,
    seq: list[int] | None,
    run: str,
) -> dict[str, Any]:
    """The filter as the door takes it; empty where no option was given.

    Raises:
        ConfigError: A time is none.
    """
    said = {
        "team": team,
        "subscription": subscription,
        "because": because,
        "type": type_,
        "since_ms": moment_ms(since) if since else 0,
        "until_ms": moment_ms(until) if until else 0,
        "id": id_,
        "run": run,
        "letters": seq or [],
    }
    return {name: value for name, value in said.items() if value}


async def pages(connection: OperatorConnection, verb: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The answers to *verb*, until all letters that were there at the first were looked at.

    Raises:
        MeshError: See `ask`.
    """
    after, last = int(body.get("after", 0)), 0
    while True:
        page = await ask(connection, verb, {**body, "after": after, "last": last}, noun=NOUN)
        yield page
        after, last = page["next"], page["last"]
        if not after:
            return
