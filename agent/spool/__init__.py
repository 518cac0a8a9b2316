"""The spool: copies on disk while their stream cannot be reached, so that 202 means durable with NATS away as well.

Out of the way while all is well: a batch costs one look at an empty dictionary. What it promises:

- a copy it took (`durable: "spool"`) is synced before anybody hears of it, and leaves once its stream has acknowledged
  it, or once it may not be sent any more: audited, counted, and kept for `spool inspect`, unless it expired
- copies of one stream leave in the order they came, and what comes later stays behind them
- killed at any instruction, full disk, a commit cut short: what was told stays true; and a full disk is drained
- rows changed, another key, a log that lost synced commits or its file: it refuses to start, and says what to do. What
  nobody can tell is damage within the log's very last commit, or its loss: it looks like a commit cut short (`wal.py`)

Rooms:

- `record.py` P rows as sealed bytes · `wal.py` P was anything lost · `opening.py` lock, key, SQLite · `database.py` SQL
- `reserve.py` room on the disk for a way out · `aside.py` what is said of copies that may not be sent
- `opened.py` the start, every row checked · `resent.py` P a copy on its way out
- `store.py` a thread, group commit · `egress.py` P may a copy still be sent, and how much of it
- `spool.py` all streams, before the publisher · `backlog.py` one of them · `sending.py` its way out · `tools.py` types
- `offline.py`, `cli.py` `mesh-agent spool inspect | export`
"""
