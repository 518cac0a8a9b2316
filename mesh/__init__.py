"""The journey of one event, from an adapter to the teams that may see it. Each stop is a module; read them in order.

1. `event`      A CloudEvent comes in, is checked against limits and grammar, and becomes a `Draft`.  `subjects` has the
                grammar of types, patterns and NATS subjects.
2. `policy`     The publisher's plan decides: may this agent say this? Which views of it does anybody read? Each view
                keeps or drops the event (`rows`) and masks its fields.
3. `journey`    `outbound()` puts 1 and 2 together and returns one `Outgoing` per view (`cutting` cuts most of them out
                of the event's text); setting out, it gets its number (`sequences`). `completeness` finds from numbers
                and signed `marks` what was taken, moved, brought in.
4. `signing`    Copies that queued up together are sealed with one signature over a Merkle root; `identity` says whose.
5. `jetstream`  The one door to NATS: the publisher sends sealed copies and waits for the stream's word that they are
                stored; the puller brings them back out of a durable consumer as `Received`.
6. `signing`    V1 to V9: nothing is believed before; then it is `Verified`. `together` says so of many at once.
7. `inbound`    Today's policy is asked once more: the copy is `Admitted`, tightened where need be, or withheld.
8. `delivery`   The handler has answered, or failed: `Ack`, `Retry` or `DeadLetter`. `settler` does it; `deadletters` is
                what is stored of an event that was given up, and `redriven` how it comes again.

How an event gets there: `feed` pulls and hands out, `judging` does 6 and 7, `unhandled` ends what no handler gets,
`subscription` is what a team uses. An ordered one has `ordered` for its feed: `slots`, of which each replica takes its
share (`members`), a `slot` at a time, with `ordering` for its keys. `sidelines` brings what is replayed or redriven.

`inbox` and `outbox` tie effects and publishing to an application's own database transactions; `protection` is what
pauses a subscription. `client` is the library a Python team uses, with `typed` events, `handlers` by type, `sync` for
code without async and `testing` for a real mesh in a test; `control` is the control plane that compiles policies and
hands out rights, `cli` the command line. The agent beside an application is the package `agent`. `asyncapi` says
to other tools what policies know of events. Every error is in `errors`, every metric goes through `telemetry`, every
log line through `logs`; `spans` and `otlp` are for who wants traces, and idle for who does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mesh.client import Mesh, PublishFailed, Receipt, connect
    from mesh.delivery import Reject, RetryLater
    from mesh.errors import MeshError
    from mesh.handlers import Handlers
    from mesh.inbound import Admitted
    from mesh.inbox import PostgresInbox, SqliteInbox
    from mesh.outbox import PostgresOutbox, SqliteOutbox
    from mesh.subscription import Delivery, Subscription
    from mesh.sync import SyncDelivery, SyncMesh, SyncSubscription, connect_sync
    from mesh.typed import data_of, event_type

# Public names and the modules they live in. Loaded when first used: `import mesh` alone stays quick.
_PUBLIC = {
    "Admitted": "mesh.inbound",
    "Delivery": "mesh.subscription",
    "Handlers": "mesh.handlers",
    "Mesh": "mesh.client",
    "MeshError": "mesh.errors",
    "PostgresInbox": "mesh.inbox",
    "PostgresOutbox": "mesh.outbox",
    "PublishFailed": "mesh.client",
    "Receipt": "mesh.client",
    "Reject": "mesh.delivery",
    "RetryLater": "mesh.delivery",
    "SqliteInbox": "mesh.inbox",
    "SqliteOutbox": "mesh.outbox",
    "Subscription": "mesh.subscription",
    "SyncDelivery": "mesh.sync",
    "SyncMesh": "mesh.sync",
    "SyncSubscription": "mesh.sync",
    "connect": "mesh.client",
    "connect_sync": "mesh.sync",
    "data_of": "mesh.typed",
    "event_type": "mesh.typed",
}

__all__ = [
    "Admitted",
    "Delivery",
    "Handlers",
    "Mesh",
    "MeshError",
    "PostgresInbox",
    "PostgresOutbox",
    "PublishFailed",
    "Receipt",
    "Reject",
    "RetryLater",
    "SqliteInbox",
    "SqliteOutbox",
    "Subscription",
    "SyncDelivery",
    "SyncMesh",
    "SyncSubscription",
    "__version__",
    "connect",
    "connect_sync",
    "data_of",
    "event_type",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
