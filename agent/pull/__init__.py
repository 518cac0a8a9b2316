"""Pull over HTTP: an application in any language fetches its team's events, and says what became of each.

    asking    what a request may ask for: the query of a fetch, the body of the others, and their bounds
    leases    who has which event, and until when: tokens, deadlines, at most so many
    handing   one subscription: hands its events out under leases, settles them, ends leases that ran out
    door      the routes below `/v1/subscriptions/`, on the application's door
    stream    the same events as server-sent events

At least once. An event that was fetched is leased: nobody else is handed it, and the server is told that it is in
hand, until the lease ends. Leases live in this process. After a restart, or a kill, their events come again under new
ones, and the old are gone. A lease that runs out is a failed attempt (`LeaseExpired`): an event that ends every
consumer that fetches it becomes a dead letter after the subscription's last attempt.
"""
