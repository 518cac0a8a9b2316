"""Who is it that asks for a certificate: attestors, each of which takes one kind of token and names the workload.

An attestor says who the holder of a token is; whether that workload may have a certificate is decided in `enrol.py`.
In development the token is a file that `mesh up` wrote. In Kubernetes it is a projected service-account token, and the
API server says whose: `attest_kubernetes.py`.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import msgspec

from mesh.control.datadir import write_if_changed, write_private
from mesh.errors import ConfigError, NotAttested

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKEN_BYTES = 32  # 43 characters of base64url


@dataclass(frozen=True, slots=True)
class Attested:
    """A workload, as an attestor found it.

    Attributes:
        spiffe_id: Whose token it was.
        by: The attestor's name.
        facts: What is recorded beside it, such as the pod; names alone.
    """

    spiffe_id: str
    by: str
    facts: Mapping[str, str] = field(default_factory=dict)


class Attestor(Protocol):
    """Finds out whose a token is."""

    async def attest(self, token: bytes) -> Attested:
        """The workload that holds *token*.

        Raises:
            NotAttested: It is nobody's.
            Unavailable: Whoever would know does not answer; the same token may do later.
        """
        ...


class _Record(msgspec.Struct, frozen=True):
    """What is kept of a token: whose it is, and its SHA-256 in hex."""

    spiffe_id: str
    sha256: str


class FileAttestor:
    """Tokens in files: each agent's lies beside its settings, and here only a digest of it is kept.

    Args:
        directory: Of the digests, one file an agent; nobody but the control plane reads them.

    Raises:
        ConfigError: A file in it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handing_out = threading.Lock()
        self._records = {path.stem: _read(path) for path in sorted(directory.glob("*.json"))}

    async def attest(self, token: bytes) -> Attested:
        """See `Attestor`; the time it takes says nothing about the tokens that are known."""
        digest = sha256(token).hexdigest()
        found = [r.spiffe_id for r in tuple(self._records.values()) if hmac.compare_digest(r.sha256, digest)]
        if not found:
            raise NotAttested(
                "the enrolment token is nobody's",
                expected="what `mesh up` or `mesh trust admit` wrote into the agent's enrol.token",
                next="have the agent read that file; `mesh trust admit <agent>` replaces it where it is lost",
            )
        return Attested(found[0], "file")

    def hand_out(self, agent: str, spiffe_id: str, file: Path, *, anew: bool = False) -> bool:
        """Let the token in *file* stand for *spiffe_id*; returns whether it is another one than before.

        Args:
            agent: Whose token it is.
            spiffe_id: Who that is today.
            file: Where the agent reads it; written where there is none that we know.
            anew: Make another one; the one before stands for nobody.
        """
        with self._handing_out:
            known = self._records.get(agent)
            kept = b"" if anew or not file.exists() else file.read_bytes().strip()
            good = known is not None and hmac.compare_digest(known.sha256, sha256(kept).hexdigest())
            token = kept if good else secrets.token_urlsafe(TOKEN_BYTES).encode()
            if not good:
                write_private(file, token + b"\n")
            record = _Record(spiffe_id, sha256(token).hexdigest())
            write_if_changed(self._directory / f"{agent}.json", msgspec.json.encode(record) + b"\n")
            self._records[agent] = record
        return not good


def _read(path: Path) -> _Record:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged",
            expected="what `mesh up` wrote",
            next="delete it; the agent gets a new token at the next start",
        ) from error
