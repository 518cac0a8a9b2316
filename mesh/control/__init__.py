"""The control plane: keys and files under the data directory, the server of `mesh up`, accounts, streams, trust.

Everything here runs beside the agents, never in them: `agent` imports nothing from this package.
"""
