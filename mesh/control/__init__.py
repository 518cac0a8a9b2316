"""The control plane: it compiles policies, hands them out, and brings NATS to what they say.

Its rooms:

    policies    apply, rollback, status, history of one tenant, in an order that loses nothing
    change, given, bundles    what is asked for and has to hold; what `mesh up` was given; where signed bundles lie
    enforce, accounts, drain, expiry    rights in NATS: taken away, added, settled; old views; grants that end
    rollout, door, proof    who runs which revision; requests over NATS, and that they come from an operator
    shadow, backlog, recorded, trail, reader    a candidate on live traffic; stored events and the audit trail read back
    trust, hierarchy    the root, the mesh CA and the keys that sign; enrol, attest*: who gets a certificate from them
    truststore, stored_certificates, trust_copies, stream_clock    what everybody verifies by; standing: who lost trust
    trust_service, trust_requests, trust_listing, issuing, revocation, rotation, renewal    `mesh trust`, as requests
    trust_audit, identities, live, cluster    what everybody can do on the live servers, against what was compiled
    reconcile    what they share: the operator, the clock, the notices
    up, shared, tenant, local, workload_files, agents, nats_*, datadir, nkeys, preflight    a mesh on one machine
    tls_files, store_key, store_rotation, readiness    its certificates for NATS, its encrypted store, what it lacks

Everything here runs beside the agents, never in them: `agent` imports nothing from this package.
"""
