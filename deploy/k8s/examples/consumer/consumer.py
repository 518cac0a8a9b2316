"""Pulls a subscription over HTTP from the agent beside it, until SIGTERM. Standard library alone.

An event comes under a lease, and is acked once it is handled. What is not acked when we end comes again, to the other
replica or to the next start: a handler has to bear an event twice.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

WAIT_S = 5  # of one long poll; SIGTERM waits for it
AGAIN_S = 2.0  # after a refusal: the agent starts, drains, or waits for NATS

stopped = threading.Event()


def asked(path: str, body: object = None) -> dict[str, Any]:
    """One request to the agent's door."""
    headers = {"Authorization": f"Bearer {Path(os.environ['AGENT_TOKEN_FILE']).read_text().strip()}"}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    url = f"{os.environ['AGENT_URL']}/v1/subscriptions/{os.environ['SUBSCRIPTION']}/{path}"
    with urlopen(Request(url, data, headers), timeout=WAIT_S + 10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def handle(event: dict[str, Any]) -> None:
    """What the team does with an event."""
    print(f"handled {event['type']} {event['id']}", flush=True)


def round_trip() -> None:
    """Fetch what is there, handle it, and say what became of it."""
    for item in asked(f"events?max=10&wait_s={WAIT_S}")["events"]:
        if stopped.is_set():
            return
        try:
            handle(item["event"])
        except (KeyError, TypeError, ValueError) as error:  # no retry would help: a dead letter
            asked("reject", {"leases": [item["lease"]], "reason": type(error).__name__})
        else:
            asked("ack", {"leases": [item["lease"]]})


def main() -> None:
    """Consume until told to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        try:
            round_trip()
        except URLError as error:  # an HTTPError is one
            why = getattr(error, "code", None) or type(error.reason).__name__
            print(f"the agent refused: {why}", file=sys.stderr, flush=True)
            stopped.wait(AGAIN_S)


if __name__ == "__main__":
    main()
