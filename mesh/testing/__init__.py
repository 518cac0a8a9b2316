"""A real mesh for your tests: nats-server, control plane and agents, on free ports and in a directory of its own.

```python
async def test_a_won_deal_becomes_an_invoice(local_mesh):          # pytest_plugins = ["mesh.testing.plugin"]
    await local_mesh.publish("crm.deal.won.v1", {"deal": {"id": "d-1"}}, source="/salesforce/eu")
    await local_mesh.run("billing", "deals", handlers)
    assert await local_mesh.dead_letters("billing", "deals") == []
```

Nothing is simulated: events are decided, masked, signed, stored, pulled and verified as in production. `host` runs the
mesh in a thread of this process, and an agent as a process beside it once something is published through it; `kit` is
what a test does with it; `told` says why an expected event did not come; `plugin` has the fixtures for pytest.

No call waits for time to pass: each ends when the server says that what it waits for is so, or fails at its deadline.
Needs the extra `up`.
"""

from __future__ import annotations

from mesh.testing.host import MeshHost
from mesh.testing.kit import LocalMesh, Ran, local_mesh
from mesh.testing.told import Unmet

__all__ = ["LocalMesh", "MeshHost", "Ran", "Unmet", "local_mesh"]
