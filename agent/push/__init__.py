"""Push: the agent posts the events of a subscription to the application beside it. Follow one event from top to bottom.

    settings.py     P   the `[push.<subscription>]` tables of `agent.toml`, and where a target may be
    targets.py          all targets of one agent: each waits for its subscription, runs, and drains
    pusher.py           one target: takes events, posts them, settles each by the answer
    requests.py     P   the request for an event: CloudEvents structured, binary or batch, or Standard Webhooks
    signature.py    P   the signature of Standard Webhooks
    sender.py           the one door to the target: connections, time-outs, addresses; a request in, a verdict out
    addresses.py        which addresses a name of a target may stand for, asked anew for each connection
    verdict.py      P   what an answer means: taken, later, refused, failed
    pause.py        P   a target that said "later", or cannot be reached, is left alone for as long as that takes

It holds an event from the moment it is taken until it is settled, at most `concurrency` requests at once; what else was
pulled waits in the subscription. It drops nothing: what is not settled when the process ends is handed back.
"""
