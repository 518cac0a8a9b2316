"""The servers of a mesh: one with JetStream's defaults, or a cluster of three that sync every write to the disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio

from mesh.control.cluster import present
from mesh.control.init import server_part
from mesh.control.nats_server import NatsServer, plain_config
from mesh.control.reconcile import SYSTEM, Operator
from mesh.errors import MeshError
from mesh.jetstream.connection import Connection
from tests.faults.schedule import Shape
from tests.ports import free_ports

COMPLETE_S = 60.0


class Servers:
    """One or three real servers in operator mode.

    Attributes:
        lock: Held by whatever takes servers away.
    """

    def __init__(self, servers: list[NatsServer], operator: Operator) -> None:
        self._all = servers
        self._operator = operator
        self.lock = anyio.Lock()

    @classmethod
    async def start(cls, shape: Shape, directory: Path, operator: Operator) -> Servers:
        """Start them; of a cluster, wait until all have found each other."""
        count = 1 if shape == "single" else 3
        ports = free_ports(2 * count)
        servers = []
        for number in range(count):
            place = directory / f"n{number}"
            config = plain_config(place / "store") + server_part(operator, resolver_dir=str(place / "accounts"))
            if count > 1:
                config = config.replace("jetstream { ", "jetstream { sync_interval: always, ")
                routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[count:])
                listen = f'listen: "127.0.0.1:{ports[count + number]}"'
                # no_advertise: clients stay with the addresses they were given, which are proxies
                config += f"cluster {{ name: mesh, {listen}, routes: [{routes}], no_advertise: true }}\n"
            servers.append(await NatsServer.start(config, place, port=ports[number], name=f"n{number}"))
        self = cls(servers, operator)
        await self.complete()
        return self

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, number: int) -> NatsServer:
        return self._all[number % len(self._all)]

    @property
    def ports(self) -> list[int]:
        """Where clients connect."""
        return [server.port for server in self._all]

    @property
    def urls(self) -> str:
        """For a client that connects to the servers themselves."""
        return ",".join(server.url for server in self._all)

    def named(self, name: str) -> int | None:
        """The number of the server that calls itself so; None where there is none such."""
        found = [number for number, server in enumerate(self._all) if server._server_name == name]
        return found[0] if found else None

    async def complete(self) -> None:
        """Wait until every server answers.

        Raises:
            TimeoutError: They do not within a minute.
        """
        creds = self._operator.control_creds(SYSTEM)
        with anyio.fail_after(COMPLETE_S):
            while True:
                with suppress(MeshError):
                    connection = await Connection.open(self.urls, name="harness", creds=creds, connect_timeout_s=5)
                    try:
                        if len(await present(connection)) == len(self._all):
                            return
                    finally:
                        await connection.close()
                await anyio.sleep(0.1)

    async def stop(self) -> None:
        """Stop them all."""
        for server in self._all:
            await server.stop()
