"""Polls a CRM for changed contacts and posts each to the agent beside it, until SIGTERM. Standard library alone.

What was posted with 202 is durable. Everything else is posted again: the same id is stored once, so that nothing has to
be remembered here. An adapter that keeps its place over restarts: the kit `agent.adapter`.
"""

import json
import os
import sys
from http.client import HTTPException
from pathlib import Path
from select import select
from signal import SIGINT, SIGTERM, set_wakeup_fd, signal
from socket import socketpair
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

EVERY_S = 10.0
AGAIN_S = 2.0  # after an answer that may pass
TIMEOUT_S = 10.0
MAY_PASS = (429, 503)  # slow down, or not durable now; any other refusal stays one

told, tell = socketpair()


def stopped(within_s: float = 0) -> bool:
    """Whether SIGTERM has come, or comes within so many seconds.

    Python writes each signal to a socket, whatever it interrupts. A `threading.Event` that a handler sets is no such
    thing: interrupted at the wrong moment, its `wait` holds the lock that `set` takes, and both stand for ever.
    """
    return bool(select([told], [], [], within_s)[0])


def fetched() -> list[dict[str, Any]]:
    """What changed, as the CRM tells it."""
    with urlopen(os.environ["CRM_URL"], timeout=TIMEOUT_S) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def event_of(contact: dict[str, Any]) -> dict[str, Any]:
    """A contact as a CloudEvent; its id names the contact's version."""
    return {
        "specversion": "1.0",
        "id": f"{contact['id']}-{contact['version']}",
        "source": "/salesforce/eu",
        "type": "crm.contact.updated.v1",
        "datacontenttype": "application/json",
        "data": {"contact": contact},
    }


def said(refusal: HTTPError) -> str:
    """How a refusal begins, for the log; one of the agent's names its code there."""
    try:
        return refusal.read(200).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return repr(error)


def posted(event: dict[str, Any]) -> bool:
    """Post one event; whether it is done with: durable, or refused for good."""
    headers = {
        "Authorization": f"Bearer {Path(os.environ['AGENT_TOKEN_FILE']).read_text().strip()}",
        "Content-Type": "application/cloudevents+json",
    }
    request = Request(f"{os.environ['AGENT_URL']}/v1/events", json.dumps(event).encode(), headers)
    try:
        with urlopen(request, timeout=TIMEOUT_S):
            return True
    except HTTPError as error:
        print(f"refused {error.code} {event['id']}: {said(error)}", file=sys.stderr, flush=True)
        return error.code not in MAY_PASS
    except (OSError, HTTPException) as error:
        print(f"no answer from the agent: {error!r}", file=sys.stderr, flush=True)
        return False


def listen() -> None:
    """Have each SIGTERM and SIGINT written to the socket, and nothing else come of it."""
    tell.settimeout(0)  # as `set_wakeup_fd` wants it
    set_wakeup_fd(tell.fileno())
    for number in (SIGTERM, SIGINT):
        signal(number, lambda *_: None)  # not SIG_IGN: what is ignored is not written either


def main() -> None:
    """Poll until told to stop; what is being posted is finished."""
    listen()
    while not stopped():
        try:
            contacts = fetched()
        except (OSError, HTTPException, ValueError) as error:
            print(f"the CRM did not answer: {error!r}", file=sys.stderr, flush=True)
            contacts = []
        for contact in contacts:
            while not stopped() and not posted(event_of(contact)):
                stopped(AGAIN_S)
        stopped(EVERY_S)


if __name__ == "__main__":
    main()
