"""The connections of whoever led before are cut off: what lingers in a socket does not arrive after it was deposed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mesh import logs
from mesh.control.cluster import ask_each, present
from mesh.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.jetstream.connection import Connection

ANSWER_S = 2.0  # of one server; it takes a millisecond
CONNECTIONS = 1024  # of one account that are looked through: the control plane's own have a few
_NAME = re.compile(r"control(?:-[a-z]+)?-([0-9]{1,15})")

log = logs.get("control")


def leader_name(what: str, term: int) -> str:
    """What a connection of a leader is called."""
    return f"{what}-{term}"


async def cut_off(system: Connection, accounts: Iterable[str], term: int) -> int:
    """End every connection of a leader before *term*; returns how many there were.

    Args:
        system: A connection of the system account.
        accounts: Public keys of those in which leaders have connections.
        term: Ours.

    Raises:
        Unavailable: No server answers.
    """
    count, accounts = 0, list(accounts)
    for server in await present(system):
        for account in accounts:
            try:
                count += await _cut(system, server, account, term)
            except Unavailable as error:  # it went away, and its connections with it
                log.warning("leader_not_cut_off", server=server, code=error.code)
    if count:
        log.info("leader_cut_off", connections=count, term=term)
    return count


async def _cut(system: Connection, server: str, account: str, term: int) -> int:
    asked: dict[str, Any] = {"acc": account, "limit": CONNECTIONS}
    (answer,) = await ask_each(system, f"$SYS.REQ.SERVER.{server}.CONNZ", asked, servers=1, timeout_s=ANSWER_S)
    found = [c["cid"] for c in answer["data"].get("connections") or () if _older(c.get("name", ""), term)]
    for cid in found:
        await ask_each(system, f"$SYS.REQ.SERVER.{server}.KICK", {"cid": cid}, servers=1, timeout_s=ANSWER_S)
    return len(found)


def _older(name: str, term: int) -> bool:
    matched = _NAME.fullmatch(name)
    return matched is not None and int(matched[1]) < term
