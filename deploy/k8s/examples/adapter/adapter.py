"""Polls a CRM for changed contacts and posts each to the agent beside it, until SIGTERM. Standard library alone.

What was posted with 202 is durable. Everything else is posted again: the same id is stored once, so that nothing has to
be remembered here. An adapter that keeps its place over restarts: the kit `agent.adapter`.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

EVERY_S = 10.0
TIMEOUT_S = 10.0
MAY_PASS = (429, 503)  # slow down, or not durable now; any other refusal stays one

stopped = threading.Event()


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
        code = json.load(error).get("code", "")
        print(f"refused {error.code} {code} {event['id']}", file=sys.stderr, flush=True)
        return error.code not in MAY_PASS
    except URLError as error:
        print(f"no answer from the agent: {type(error.reason).__name__}", file=sys.stderr, flush=True)
        return False


def main() -> None:
    """Poll until told to stop; what is being posted is finished."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        try:
            contacts = fetched()
        except (URLError, ValueError) as error:
            print(f"the CRM did not answer: {type(error).__name__}", file=sys.stderr, flush=True)
            contacts = []
        for contact in contacts:
            while not stopped.is_set() and not posted(event_of(contact)):
                stopped.wait(2)
        stopped.wait(EVERY_S)


if __name__ == "__main__":
    main()
