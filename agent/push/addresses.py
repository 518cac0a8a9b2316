"""Which addresses the name of a target may stand for: asked anew for each connection, which is then made to the answer.

`localhost` is this machine, whatever a name server says of it. Any other name was allowed because it is another
machine: should it ever stand for this one, for a link-local address or another at which a cloud has its metadata
service, or for none that a packet can be sent to, somebody has set a trap, and no connection is made.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from agent.push.settings import LOCALHOST

if TYPE_CHECKING:
    from collections.abc import Callable

METADATA = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))  # EC2, Alibaba, Azure
NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address in the last four bytes (RFC 6052)
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class AddressRefused(OSError):
    """A name stands for an address that no target may have."""


class Addresses(AbstractResolver):
    """Resolves names of targets.

    Args:
        asks: Makes what asks the system.
    """

    def __init__(self, asks: Callable[[], AbstractResolver] = ThreadedResolver) -> None:
        self._system = asks()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Every address of *host*.

        Raises:
            AddressRefused: One of them is one that no target may have.
            OSError: It has none.
        """
        if host.lower() == LOCALHOST:
            return [_result(host, port, kind, address) for kind, address in LOOPBACK if family in (kind, 0)]
        found = await self._system.resolve(host, port, family)
        for result in found:
            if refused(result["host"]):
                raise AddressRefused("a name stands for an address that no push target may have")
        return found

    async def close(self) -> None:
        """Nothing is kept."""
        await self._system.close()


def refused(address: str) -> bool:
    """Whether no name of another machine may stand for *address*."""
    ip = _unwrapped(ip_address(address.partition("%")[0]))
    if ip in METADATA:
        return True
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved


def _unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that a packet to *ip* ends at, where *ip* is another way to write one."""
    if isinstance(ip, IPv4Address):
        return ip
    return IPv4Address(ip.packed[-4:]) if ip in NAT64 else ip.ipv4_mapped or ip


def _result(host: str, port: int, family: socket.AddressFamily, address: str) -> ResolveResult:
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
