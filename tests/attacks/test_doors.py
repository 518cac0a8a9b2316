"""The agent's own door, from another container of the same pod or a page in a browser: a real agent process.

Its socket is on loopback, where everybody beside it can connect. What it takes goes on to NATS under the agent's name.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from mesh.context import AgentAddress
from mesh.control.local import LocalWorkloads
from tests.attacks.insider import CONTACT
from tests.attacks.world import World
from tests.contract.agent_mesh import Http, event
from tests.forks import whole

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A mesh of this file's own: its processes have the environments that they have with a user."""
    with whole():
        async with World.running(tmp_path_factory.mktemp("mesh")) as running:
            yield running


def address(world: World) -> AgentAddress:
    """Where crm-adapter listens."""
    return world.mesh.file.tenants["acme"].agents["crm-adapter"]


def door(world: World, token: str | None = None) -> Http:
    """The door of crm-adapter, with its token or another."""
    held = address(world)
    return Http(held.url, Path(held.token_file).read_text().strip() if token is None else token)


def good(**changes: object) -> dict[str, object]:
    """An event that the door takes."""
    return event(type=CONTACT, **changes)


async def test_calling_without_the_token(world: World) -> None:
    """Publish through somebody else's agent.

    Holds: a shell in another container of the pod: it reaches the port. Tries: no token, a guess, the token of another
    agent, the token in the query or as Basic. Stopped: the bearer token is a file that only the adapter has.
    """
    assert (await door(world).post(good())).status == 202
    last = await world.last()
    for token in ("", "x" * 43, (world.data.agent("lake") / "token").read_text().strip()):
        assert (await door(world, token).post(good())).json["code"] == "unauthorized"
    real = door(world).token
    for headers in ({"Authorization": None}, {"Authorization": f"Basic {real}"}, {"Authorization": real}):
        assert (await door(world).post(good(), headers=headers)).status == 401
    answer = await door(world, "").post(good(), path=f"/v1/events?access_token={real}")
    assert answer.status in {401, 404}
    assert await world.last() == last


async def test_calling_from_a_page(world: World) -> None:
    """Have a browser on the machine call the door.

    Holds: a web page that somebody opens beside the agent, and a name that resolves to 127.0.0.1. Tries: another Host
    (rebinding), Origin, Sec-Fetch-Site, a form that needs no preflight. Stopped: Host has to be one of the door's
    names, a request that a page caused is refused before its token is looked at, and there are no CORS headers.
    """
    assert (await door(world).post(good())).status == 202
    last = await world.last()
    port = door(world).port
    for headers, code in (
        ({"Host": "evil.example"}, "wrong-host"),
        ({"Host": f"evil.example:{port}"}, "wrong-host"),
        ({"Host": f"127.0.0.1.evil.example:{port}"}, "wrong-host"),
        ({"Host": f"127.0.0.1:{port + 1}"}, "wrong-host"),
        ({"Origin": "http://evil.example"}, "cross-origin"),
        ({"Origin": f"http://127.0.0.1:{port}"}, "cross-origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "cross-origin"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported-media-type"),
        ({"Content-Type": "text/plain"}, "unsupported-media-type"),
    ):
        answer = await door(world).post(good(), headers=dict(headers))
        assert answer.json["code"] == code, headers
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert (await door(world).send("OPTIONS", "/v1/events", {"Origin": "http://evil.example"})).status in {403, 405}
    assert await world.last() == last


async def test_what_the_probes_tell(world: World) -> None:
    """Learn events or secrets from the port that needs no token.

    Holds: the health port. Tries: to read it, and to publish there. Stopped: it answers facts without data, and takes
    nothing.
    """
    secret = "not-for-probes"
    await door(world).post(good(subject=secret, data={"email": f"{secret}@example.org"}))
    health = Http(address(world).health_url, "")
    for path in ("/livez", "/readyz", "/metrics"):
        answer = await health.send("GET", path, {"Authorization": None})
        assert answer.status == 200
        assert secret.encode() not in answer.body
        assert door(world).token.encode() not in answer.body
    assert (await health.post(good())).status in {404, 405}


@pytest.mark.parametrize(
    "type_",
    [
        "crm.contact.*", "crm.contact.>", "crm..contact", "crm.contact.a b", "crm.contact.a\r\nPUB x 1",
        "crm.contact.\x00", "crm.contact.é", "crm", ".crm.contact", "crm.contact.", "$JS.API.INFO", "CRM.contact.v1",
        "crm.contact.a\tb",
    ],
)  # fmt: skip
async def test_injecting_a_subject(world: World, type_: str) -> None:
    r"""Make the agent write to another subject than it thinks.

    Holds: the adapter's token. Tries: dots, wildcards, spaces, CR LF, NUL, letters beyond ASCII in the type. Stopped: a
    type is 2 to 8 tokens of `[a-z0-9_-]`; a subject is built from those and from nothing else.
    """
    assert (await door(world).post(good())).status == 202
    last = await world.last()
    answer = await door(world).post(good() | {"type": type_})
    assert 400 <= answer.status < 500
    assert await world.last() == last


async def test_headers_that_only_the_mesh_writes(world: World) -> None:
    """Have the agent sign over, or pass on, a header of the attacker's.

    Holds: the adapter's token. Tries: `Nats-Msg-Id`, `Nats-Rollup`, `Mesh-Signature`, `Status` on a request, and a line
    break in another. Stopped: reserved names are refused, and no request header goes on to NATS.
    """
    assert (await door(world).post(good())).status == 202
    last = await world.last()
    for name in ("Nats-Msg-Id", "Nats-Rollup", "nats-expected-stream", "Mesh-Signature", "Status", "Description"):
        assert (await door(world).post(good(), headers={name: "x"})).json["code"] == "bad-header"
    assert (await door(world).send("POST", "/v1/events", {}, b"{}", lines=("X: a\x00b",))).status == 400
    assert await world.last() == last


async def test_bodies_beyond_every_limit(world: World) -> None:
    """Use up the agent's memory or time.

    Holds: the adapter's token. Tries: a body over the limit, one that never ends, deep nesting, a number of a hundred
    thousand digits, a bomb in gzip. Stopped: each is a 4xx, the process stays up and takes the next.
    """
    assert (await door(world).post(good())).status == 202
    pid, last = agent_pid(world), await world.last()
    deep = b'{"specversion":"1.0","id":"a","source":"/crm","type":"crm.contact.updated.v1","data":'
    for body in (deep + b"[" * 5_000 + b"]" * 5_000 + b"}", deep + b"9" * 100_000 + b"}", b"[" * 50_000):
        assert 400 <= (await door(world).post(body)).status < 500
    huge = {"Content-Length": str(10**9), "Content-Type": "application/cloudevents+json"}
    assert (await door(world).send("POST", "/v1/events", huge)).status == 413
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/cloudevents+json"}
    assert (await door(world).send("POST", "/v1/events", packed, b"\x1f\x8b")).status == 415
    assert (await door(world).send("POST", "/v1/events", {"X": "y" * 100_000})).status == 431
    assert await world.last() == last
    assert (await door(world).post(good())).status == 202
    assert agent_pid(world) == pid


def agent_pid(world: World) -> int:
    """Of crm-adapter's process."""
    local = [t.workloads for t in world.mesh._tenants if isinstance(t.workloads, LocalWorkloads)]
    (pid,) = [
        process.pid for workloads in local for name, process in workloads.processes.items() if name == "crm-adapter"
    ]
    return pid


async def test_a_request_that_never_ends(world: World) -> None:
    """Hold the door's connections with headers that come one byte at a time.

    Holds: a shell in the pod, and no token. Tries: many connections that never finish a header. Stopped: the door goes
    on answering others, and each of these ends at its own deadline.
    """
    slow = [await asyncio.open_connection("127.0.0.1", door(world).port) for _ in range(20)]
    try:
        for _, writer in slow:
            writer.write(b"POST /v1/events HTTP/1.1\r\nX: ")
        assert (await door(world).post(good())).status == 202
        async with asyncio.timeout(60):
            ended = await slow[0][0].read()
        assert ended.startswith(b"HTTP/1.1 408 ")
    finally:
        for _, writer in slow:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_secrets_in_files(world: World) -> None:
    """Read a key as another user of the machine, or from a process list.

    Holds: a shell as another user. Tries: every file of the mesh, the command lines and environments of its processes.
    Stopped: directories are 0700, files 0600, whatever the umask; no secret is in an argument or a variable.
    """
    for path in [world.data.root, *world.data.root.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_dir():
            within = world.data.nats not in path.parents  # the server's own store lies below a directory of 0700
            assert not within or mode & 0o077 == 0, path
        elif world.data.nats not in path.parents:
            assert mode & 0o077 == 0, path
    assert stat.S_IMODE(world.data.nats.stat().st_mode) == 0o700
    secrets = [door(world).token, *world.creds("crm-adapter").read_text().splitlines()[-2:-1]]
    pid = agent_pid(world)
    seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    seen += Path(f"/proc/{world.mesh.server.pid}/cmdline").read_bytes()
    assert os.getuid() == world.data.root.stat().st_uid
    for secret in secrets:
        assert len(secret) > 20
        assert secret.encode() not in seen
