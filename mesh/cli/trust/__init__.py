"""`mesh trust`: whose keys and credentials the mesh believes, and how to take that back.

keys.py      list, show                    event keys, certificates, what everybody verifies by
changes.py   revoke, rotate, admit         through the control plane
issue.py     issue                         a key in files, for an agent that is not to make its own
audit.py     audit                         what every identity can do on the live server
"""

from __future__ import annotations

import typer

from mesh.cli.policy.options import PolicyGroup
from mesh.cli.trust import audit, changes, issue, keys

app = typer.Typer(
    cls=PolicyGroup, no_args_is_help=True, help="Whose keys and credentials the mesh believes; revoke and replace them."
)
keys.register(app)
changes.register(app)
issue.register(app)
audit.register(app)
