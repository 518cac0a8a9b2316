"""What nats-server is told: listeners and limits, JetStream, TLS, and whom it trusts to sign accounts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mesh.control.store_key import CIPHER, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.jetstream.tls import TlsFiles

_COMMON = """
host: 127.0.0.1
max_payload: 1MB
max_control_line: 4KB
ping_interval: "20s"
ping_max: 2
"""


def plain_config(store_dir: Path, *, tls: TlsFiles | None = None, encrypted: bool = False) -> str:
    """A server without accounts and passwords, JetStream on; for tests only."""
    return f"{_COMMON}{_jetstream(store_dir, encrypted=encrypted)}{_tls(tls)}"


def operator_config(
    *,
    operator_jwt: str,
    system_account: str,
    system_jwt: str,
    resolver_dir: Path,
    store_dir: Path,
    tls: TlsFiles | None = None,
    encrypted: bool = False,
) -> str:
    """A server in operator mode that learns every account but the system's by push.

    Args:
        operator_jwt: Its signature is what the server trusts; names the system account.
        system_account: Public key of the system account, `A...`.
        system_jwt: JWT of that account: the only one the configuration carries, so that somebody can push the others.
        resolver_dir: Where pushed account JWTs are kept over restarts.
        store_dir: JetStream's files.
        tls: The server's own certificate and key, and the roots that clients' certificates have to lead to.
        encrypted: Whether the store is, with the key in the environment: see `store_key`.
    """
    return (
        f"{_COMMON}{_jetstream(store_dir, encrypted=encrypted)}{_tls(tls)}"
        f"{operator_part(operator_jwt, system_account, {system_account: system_jwt}, resolver_dir=str(resolver_dir))}"
    )


def operator_part(operator_jwt: str, system_account: str, accounts: Mapping[str, str], *, resolver_dir: str) -> str:
    """What makes a server one in operator mode, for a configuration that has the rest.

    Args:
        operator_jwt: See `operator_config`.
        system_account: See `operator_config`.
        accounts: The JWTs that a server knows from the start, by public key; the others are pushed.
        resolver_dir: Where pushed account JWTs are kept over restarts.
    """
    # interval: a server that was down during a push serves the old JWT for one interval (2 min unless set), measured
    known = ", ".join(f"{public}: {token}" for public, token in accounts.items())
    return (
        f"operator: {operator_jwt}\n"
        f"system_account: {system_account}\n"
        f'resolver {{ type: full, dir: {json.dumps(resolver_dir)}, allow_delete: false, interval: "5s" }}\n'
        f"resolver_preload {{ {known} }}\n"
    )


def _jetstream(store_dir: Path, *, encrypted: bool = False) -> str:
    # Streams reserve their max_bytes against max_file_store; on one machine the disk itself is the limit, and a stream
    # that is full refuses. Unset, a small disk would refuse the streams themselves.
    lines = [f"store_dir: {json.dumps(str(store_dir))}", "max_memory_store: 64MB", "max_file_store: 1TB"]
    if encrypted:
        lines += [f"cipher: {CIPHER}", f"key: ${VARIABLE}"]
    return f"jetstream {{ {', '.join(lines)} }}\n"


def _tls(files: TlsFiles | None) -> str:
    if files is None:
        return ""
    # verify_and_map stays off: who somebody is, the JWT says. timeout: a handshake takes 2 ms; who speaks no TLS hears
    # nothing until then.
    lines = [f"{name}_file: {json.dumps(str(file))}" for name, file in files._asdict().items()]
    lines += ["verify: true", 'min_version: "1.3"', "handshake_first: true", "timeout: 2"]
    return f"tls {{ {', '.join(lines)} }}\n"
