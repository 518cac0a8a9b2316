"""Pulls a subscription over HTTP from the agent beside it, until SIGTERM. Standard library alone.

An event comes under a lease, and is acked once it is handled. What is not acked when we end comes again, to the other
replica or to the next start: a handler has to bear an event twice.
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
from urllib.request import Request, urlopen

WAIT_S = 5  # of one long poll; SIGTERM waits for it
AGAIN_S = 2.0  # after a refusal: the agent starts, drains, or waits for NATS

told, tell = socketpair()


def stopped(within_s: float = 0) -> bool:
    """Whether SIGTERM has come, or comes within so many seconds.

    Python writes each signal to a socket, whatever it interrupts. A `threading.Event` that a handler sets is no such
    thing: interrupted at the wrong moment, its `wait` holds the lock that `set` takes, and both stand for ever.
    """
    return bool(select([told], [], [], within_s)[0])


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
        if stopped():
            return
        try:
            handle(item["event"])
        except (KeyError, TypeError, ValueError) as error:  # no retry would help: a dead letter
            asked("reject", {"leases": [item["lease"]], "reason": type(error).__name__})
        else:
            asked("ack", {"leases": [item["lease"]]})


def listen() -> None:
    """Have each SIGTERM and SIGINT written to the socket, and nothing else come of it."""
    tell.settimeout(0)  # as `set_wakeup_fd` wants it
    set_wakeup_fd(tell.fileno())
    for number in (SIGTERM, SIGINT):
        signal(number, lambda *_: None)  # not SIG_IGN: what is ignored is not written either


def main() -> None:
    """Consume until told to stop."""
    listen()
    while not stopped():
        try:
            round_trip()
        except (OSError, HTTPException, ValueError) as error:  # a refusal is an OSError too
            print(f"the agent refused, or did not answer: {error!r}", file=sys.stderr, flush=True)
            stopped(AGAIN_S)


if __name__ == "__main__":
    main()
