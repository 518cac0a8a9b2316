"""`mesh policy`: edit, test, compare, hand out and roll back policies.

offline.py   lint, schema, explain                files alone
objects.py   objects                              files as objects of a cluster
checks.py    test, who-can-see, diff              files, and the recorded events where a mesh is named
live.py      apply, rollback, status, history     through the control plane
shadow.py    shadow start, report, stop           a candidate beside the policies in force
"""

from __future__ import annotations

import typer

from mesh.cli.policy import checks, live, objects, offline, shadow
from mesh.cli.policy.options import PolicyGroup

app = typer.Typer(cls=PolicyGroup, no_args_is_help=True, help="Edit, test, compare, hand out and roll back policies.")
offline.register(app)
objects.register(app)
checks.register(app)
live.register(app)
app.add_typer(shadow.app, name="shadow")
