"""Effects exactly once: an event is noted as handled in the same transaction that its effects are written in.

```python
inbox = mesh.SqliteInbox("contacts", "desk.db")     # or PostgresInbox("contacts", pool), then `async def handle`

@inbox.once
def handle(db: sqlite3.Connection, event: mesh.Admitted) -> None:
    db.execute("INSERT INTO calls VALUES (?)", (event.data["contact"]["id"],))

await subscription.run(handle)
```
Delivery is at least once: a process may end between its commit and its ack, and the event comes again. Then the note
is there, the handler is not called, and the event is acked. Where the handler raises, effects and note are rolled back
together. Of two replicas with one event, the second waits for the first to commit, and then has nothing to do; where
the first rolls back, the second handles it.

What is outside of the database (an e-mail, another system) is not covered: put it there through an `Outbox`.

Whoever has a transaction already calls `first(connection, event)` in it.
"""

from mesh.inbox.postgres import PostgresInbox
from mesh.inbox.sqlite import SqliteInbox

__all__ = ["PostgresInbox", "SqliteInbox"]
