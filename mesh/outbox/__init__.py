"""Publish what a transaction decided: the event is written beside the data, and a relay posts it to the agent.

```python
outbox = mesh.SqliteOutbox("shop.db")               # or PostgresOutbox(pool), and `await outbox.add(...)`

with sqlite3.connect("shop.db") as db:              # commits both, or neither
    db.execute("INSERT INTO orders VALUES (?, ?)", ("o-1", 99))
    outbox.add(db, "shop.order.placed.v1", {"order": "o-1"}, source="/shop")

async with outbox.relay(m):                         # in the same process or in another; `m` is a `mesh.connect(...)`
    ...
```
The relay posts the events of one source in the order they were added, one after another, each until the agent answers
202, and deletes it then. A crash in between posts it again under the same id, which the mesh keeps once. Of several
relays on one database one works and the others stand by.

Order: of two transactions of which one committed before the other added its event, the first comes first. Two that
overlap have no order; in SQLite there are none.

An event that the agent refuses for good (400, 403, 413, 422) is set aside with the problem, the later ones of its
source go on, and it is said loudly: a log line, `mesh.outbox.refused`, and `refused(connection)`. `again` puts it back
at the end of the line, `drop` deletes it. Anything else (the agent away, its stream or its spool full, a wrong token)
is tried again, its source waiting; other sources go on.
"""

from mesh.outbox.postgres import PostgresOutbox
from mesh.outbox.rows import Refused
from mesh.outbox.sqlite import SqliteOutbox

__all__ = ["PostgresOutbox", "Refused", "SqliteOutbox"]
