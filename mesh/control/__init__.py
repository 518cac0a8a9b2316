"""The control plane: it compiles policies, hands them out, and brings NATS to what they say.

Its rooms:

    policies    apply and rollback of one tenant, in an order that loses nothing; in_force: what is so now, and was
    change, given, bundles    what is asked for and has to hold; what `mesh up` was given; where signed bundles lie
    enforce, durables, accounts, drain, expiry    rights in NATS: taken away, added, settled; old views; grants that end
    rollout, door, proof    who runs which revision; requests over NATS, and that they come from an operator
    deadletters*, redrive, advisories    dead letters: looked at, sent back, written for plain NATS clients
    shadow, backlog, recorded, trail, reader    a candidate on live traffic; stored events and the audit trail read back
    replay, replay_*    stored events into one subscription again
    completeness    whether all that a source published is stored, read back for `mesh events verify`
    trust, hierarchy    the root, the mesh CA and the keys that sign; enrol, attest*: who gets a certificate from them
    truststore, stored_certificates, trust_copies, stream_clock    what everybody verifies by; standing: who lost trust
    trust_service, trust_requests, trust_listing, issuing, revocation, rotation, renewal    `mesh trust`, as requests
    trust_audit, identities, live, cluster    what everybody can do on the live servers, against what was compiled
    reconcile    what they share: the operator, the clock, the notices
    shared, tenant*, workloads, workload_files, datadir, nkeys, preflight    a tenant that is up, and everybody's files
    up, local, agents, nats_*    a mesh on one machine: server and agents are its child processes
    init, run*, lease*, vault*    a control plane by itself, in replicas: who leads, and the state the next leader takes
    health, measures    its probes and metrics; what it measures of every subscription, agent and stream
    secrets    what pods mount, as Secrets
    tls_files, store_key, store_rotation, readiness    its certificates for NATS, its encrypted store, what it lacks

Everything here runs beside the agents, never in them: `agent` imports nothing from this package.
"""
