"""The one door to NATS. Outside this package nothing imports nats-py.

- `connection.py` one connection that rebuilds itself, with its `listeners.py` and `requests.py`
- `link.py` below it, which alone knows nats-py's internals · `keeper.py` makes one after another
- `tls.py` what it dials with, from files · `refusals.py` P why a server will not have us
- `wire.py` P frames and headers as bytes · `acks.py` P what JetStream acknowledges
- `publisher.py` sealed events out, acks in · `outgoing.py` P one of them · `in_flight.py` how each ends
- `sealing.py` P their signatures and ids · `former.py` P what is known of the same events from before
- `sending.py` what goes out, and when · `answers.py` what the streams say to that
- `window.py` P the lane of one stream: ordered recovery of what is in flight on it
- `probing.py` P what the 503s of a stopped one mean · `refused_subjects.py` P those that are not ours to use
- `silence.py` P what its acks tell: when a stream is silent, and what it stored behind later events
- `puller.py` one durable's events in, settlements out · `deliveries.py` P many events in one go
- `pinned.py` of one that one replica has at a time
- `topology.py` P streams and consumers as data · `durables.py` P their names · `succession.py` P which follow which
- `changes.py` P the plan · `manage.py` applies it
- `store.py` key-value · `accounts.py` P grants as JWTs
"""
