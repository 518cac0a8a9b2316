"""Which replica of a control plane leads, as the servers have it; and whether a directory can be a replica's at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh.control.datadir import private_directory, write_if_changed
from mesh.control.lease import KEY as LEASE
from mesh.control.lease import LOOK_S, TTL_S, Record, read_record
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator
from mesh.control.vault import BUCKET
from mesh.control.vault_files import CONTROL_ACCOUNT, KEY_FILES, OPTIONAL_KEY_FILES, missing_keys
from mesh.control.vault_head import HEAD, Head, read_head
from mesh.errors import ConfigError
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.control.datadir import DataDirectory
    from mesh.jetstream.store import Entry
    from mesh.jetstream.tls import TlsFiles

CONNECT_S = 3.0  # somebody waits at a terminal


class Said(msgspec.Struct, frozen=True):
    """What the bucket says of all replicas.

    Attributes:
        leads: Whether somebody does: the lease was renewed while we looked.
        lease: Who leads or led last; None before the first.
        head: What was saved last; None before the first.
    """

    leads: bool
    lease: Record | None
    head: Head | None


async def status(data: DataDirectory, nats_url: str, tls: TlsFiles | None) -> Said:
    """Who leads. Takes as long as a renewal: a record alone does not say whether its holder lives.

    Args:
        data: A directory with the key files.
        nats_url: Of the servers.
        tls: What we show to NATS; None for servers without TLS.

    Raises:
        ConfigError: The directory lacks key files.
        Disconnected, Unavailable, RequestFailed: The servers do not answer, or have no bucket yet.
    """
    check_keys(data)
    creds = Operator(NkeyFiles(data.keys)).control_creds(CONTROL_ACCOUNT)
    connection = await Connection.open(
        nats_url, name="control-status", creds=creds, tls=tls, connect_timeout_s=CONNECT_S
    )
    try:
        store = KeyValue(connection, BUCKET)
        first = await store.get(LEASE)
        last = first if first is None or read_record(first).released else await _moved(store, first)
        head = await store.get(HEAD)
    finally:
        await connection.close()
    return Said(
        leads=last != first,
        lease=None if last is None else read_record(last),
        head=None if head is None else read_head(head),
    )


async def _moved(store: KeyValue, first: Entry) -> Entry | None:
    """The record after its next renewal; the same one where there is none in time."""
    with anyio.move_on_after(TTL_S):
        while True:
            entry = await store.get(LEASE)
            if entry is None or entry.revision > first.revision:
                return entry
            await anyio.sleep(LOOK_S)
    return first


def adopt_keys(data: DataDirectory, keys: Path) -> None:
    """Copy the key files that *keys* has into a data directory; of the one that may be kept elsewhere, no copy is made.

    In its place stands a link to where it would be in *keys*: who takes it away there has taken it away, also from a
    replica that runs, and who puts it back need not start one anew. A file of ours that is no link is left alone where
    *keys* has none: it may be the only one.

    Args:
        data: The data directory.
        keys: Has them under the same names; may be read-only, and open to others whom somebody let in there.

    Raises:
        ConfigError: One of them cannot be read or written.
    """
    for name in KEY_FILES:
        try:
            if name in OPTIONAL_KEY_FILES:
                _link(data.root / name, (keys / name).absolute())
                continue
            write_if_changed(data.root / name, (keys / name).read_bytes())
        except FileNotFoundError:
            continue  # it may be here, or `check_keys` says so
        except OSError as error:
            raise ConfigError(
                f"{keys / name} cannot be copied: {error.strerror}",
                expected="a file that we may read, and room for it",
                next="look at --keys and --data",
            ) from error


def _link(path: Path, there: Path) -> None:
    if path.is_symlink() or (there.exists() and not (path.exists() and path.samefile(there))) or not path.exists():
        private_directory(path.parent)
        path.unlink(missing_ok=True)
        path.symlink_to(there)


def check_keys(data: DataDirectory) -> None:
    """Raises ConfigError where a data directory lacks key files."""
    if missing := missing_keys(data.root):
        raise ConfigError(
            f"{data.root} lacks {len(missing)} key files of the mesh",
            expected="what `mesh control init` made, the same in every replica",
            got=f"no {', '.join(missing)}",
            next="name the directory that has them with --keys, or copy them here",
        )
