"""The control plane: it compiles policies, hands them out, and brings NATS to what they say.

Its rooms:

    policies    apply, rollback, status, history of one tenant, in an order that loses nothing
    change, given, bundles    what is asked for and has to hold; what `mesh up` was given; where signed bundles lie
    enforce, accounts, drain, expiry    rights in NATS: taken away, added, settled; old views; grants that end
    rollout, door    who runs which revision; requests over NATS
    shadow, backlog, recorded, trail, reader    a candidate on live traffic; stored events and the audit trail read back
    reconcile, trust    whom a mesh believes
    up, tenant, local, agents, nats_server, datadir, nkeys, preflight    a whole mesh on one machine

Everything here runs beside the agents, never in them: `agent` imports nothing from this package.
"""
