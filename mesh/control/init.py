"""A mesh before its first start: the keys that every replica of its control plane has, and what servers are told."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mesh.control.datadir import DataDirectory, hex_key, write_if_changed
from mesh.control.nats_config import operator_part
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.trust import Authority
from mesh.control.vault_files import CONTROL_ACCOUNT, KEY_FILES
from mesh.jetstream.accounts import Account

SERVER_PART = "nats/operator.conf"


class Initialised(NamedTuple):
    """What was made.

    Attributes:
        data: The data directory.
        server_part: To be included by the configuration of every nats-server.
        key_files: What each replica needs, by path below *data*.
    """

    data: Path
    server_part: Path
    key_files: tuple[str, ...]


def initialise(root: Path, *, trust_domain: str, resolver_dir: str) -> Initialised:
    """Make what is missing; what is there stays.

    Args:
        root: The data directory.
        trust_domain: Of the mesh's certificates.
        resolver_dir: Where each nats-server keeps account JWTs; below its working directory unless absolute.

    Raises:
        ConfigError: The directory is not ours to use or in use, or a file in it is damaged.
    """
    data = DataDirectory.open(root)
    with data.only_one():
        operator = Operator(NkeyFiles(data.keys))
        Authority(data.trust, data.admin, trust_domain=trust_domain, now_ms=now_ms())
        hex_key(data.admin / "state.key")
        for account in (SYSTEM, CONTROL_ACCOUNT):
            operator.control_creds(account)
        part = data.root / SERVER_PART
        if not part.exists():
            write_if_changed(part, server_part(operator, resolver_dir=resolver_dir).encode())
    return Initialised(data.root, part, KEY_FILES)


def server_part(operator: Operator, *, resolver_dir: str) -> str:
    """What a nats-server has to be told, beside where it listens and stores: whom it trusts, and two accounts.

    Args:
        operator: Signs.
        resolver_dir: As for `initialise`.
    """
    operator_jwt, system_account, system_jwt = operator.server_identity()
    control = Account(operator.public(CONTROL_ACCOUNT), CONTROL_ACCOUNT, jetstream=True)
    signer = operator.keys.get("operator", "operator")
    accounts = {system_account: system_jwt, control.public: control.token(signer, iat=now_ms() // 1000)}
    return operator_part(operator_jwt, system_account, accounts, resolver_dir=resolver_dir)
