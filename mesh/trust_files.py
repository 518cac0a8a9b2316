"""Trust on disk: the newest statement a process has adopted, and the certificates that it has verified events with.

Nothing here is believed because it lies here: what is read is checked as if it had just arrived. The statement's epoch
keeps an older one out after a restart too; the certificates let a backlog be verified while their bucket is away.

    statement         the sealed trust statement, as it came
    <kid>.cert        a certificate chain, as it came

A directory that cannot be written is said once in the log, and all goes on without it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import logs
from mesh.certificates import read_certificate, split_chain
from mesh.errors import IdentityError
from mesh.files import replace_file
from mesh.identity import MAX_TRUST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

STATEMENT = "statement"
KEPT_DAYS = 31  # after a certificate has ended: dead letters, which are verified too, live 30
MAX_CHAIN_BYTES = 65_536  # a chain of two has about 1,200

_KID = re.compile(r"[A-Za-z0-9_-]{22}")
_DAY_MS = 86_400_000

log = logs.get("trust")


class TrustFiles:
    """The files of one process, or of several that run as the same workload. Blocks: call it from a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._complained = False

    def statement(self) -> bytes | None:
        """The kept statement; None where there is none."""
        return self._read(STATEMENT, MAX_TRUST_BYTES)

    def chain(self, kid: str) -> bytes | None:
        """The kept chain of *kid*; None where there is none."""
        return self._read(chain_file(kid), MAX_CHAIN_BYTES) if _KID.fullmatch(kid) else None

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Replace each of these files whole, mode 0600: a crash leaves the old one or the new one."""
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            for name, content in contents.items():
                replace_file(self.directory / name, content)
        except OSError as error:
            self._complain(error)

    def prune(self, now_ms: int) -> int:
        """Remove the certificates that no stored event needs any more, and what is none; returns how many."""
        removed = 0
        for file in self.directory.glob("*.cert"):
            try:
                if _ended_ms(file.read_bytes()[:MAX_CHAIN_BYTES]) + KEPT_DAYS * _DAY_MS < now_ms:
                    file.unlink(missing_ok=True)
                    removed += 1
            except OSError as error:
                self._complain(error)
        return removed

    def _read(self, name: str, limit: int) -> bytes | None:
        try:
            with (self.directory / name).open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            said = error.strerror or error.__class__.__name__
            log.warning("trust_not_kept", directory=self.directory.name, error=said)


def chain_file(kid: str) -> str:
    """The name of a key's file."""
    return f"{kid}.cert"


def _ended_ms(chain: bytes) -> int:
    """When a certificate ends; 0 where it is none."""
    try:
        return read_certificate(split_chain(chain)[0]).not_after_ms
    except IdentityError:
        return 0
