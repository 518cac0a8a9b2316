"""TLS to the server, from three files: whom we believe, who we are, and the key that shows it.

TLS 1.3 or nothing, and both sides show a certificate. The files are read at each dial, so a certificate that was
rotated is in use from the next link on, and nobody has to be told.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from mesh.errors import ConfigError
from mesh.telemetry import gauge

LEFT = gauge("mesh.nats.certificate.left", "s", "of the TLS certificate for NATS; a fifth of it: it is not renewed")
LIFE = gauge("mesh.nats.certificate.life", "s", "how long that certificate was made for")

READS = 3  # a rotation may fall between the reads of certificate and key: the next read finds the new pair


class TlsFiles(NamedTuple):
    """PEM files of one workload.

    Attributes:
        ca: The roots that the server's certificate has to lead to.
        cert: Our certificate, followed by its issuers up to below the root.
        key: Its private key, without a passphrase.
    """

    ca: Path
    cert: Path
    key: Path


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """What a client dials with: TLS 1.3, the server's certificate and name checked, our own certificate shown.

    Raises:
        ConfigError: A file is missing, is not what it should be, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and the name in it
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=files.ca)
    except OSError as error:  # ssl.SSLError is one
        raise _unusable(files.ca, error, "root certificates in PEM") from None
    for left in reversed(range(READS)):
        try:
            context.load_cert_chain(files.cert, files.key, password=_no_passphrase)
            break
        except OSError as error:
            if not left:
                raise _unusable(files.cert, error, f"a chain in PEM, and its key in {files.key.name}") from None
    return context


def _no_passphrase() -> str:
    """Asked for an encrypted key; without it OpenSSL would ask at the terminal."""
    raise ConfigError(
        "the TLS key has a passphrase", expected="a key without one, in a file that only we may read", next="decrypt it"
    )


def _unusable(file: Path, error: OSError, expected: str) -> ConfigError:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigError(
        f"{file} cannot be used for TLS",
        expected=expected,
        got=str(reason or type(error).__name__).lower().replace("_", " "),
        next="`mesh up --tls` writes these files; otherwise whoever issues certificates has to",
    )


def watch_dates(certificate: Path) -> list[Callable[[], None]]:
    """Show how long *certificate* holds; calling what is returned ends that."""
    dates = Dates(certificate)
    return [LEFT.read(dates.left_s), LIFE.read(dates.life_s)]


class Dates:
    """How long a certificate holds, read again when its file changes.

    Args:
        certificate: PEM; of several the first.
    """

    def __init__(self, certificate: Path) -> None:
        self._file = certificate
        self._written = 0
        self._from_s = self._until_s = 0.0

    def left_s(self) -> float:
        """Seconds until it ends; 0 where it cannot be read."""
        return max(0.0, self._until_s - time.time()) if self._read() else 0.0

    def life_s(self) -> float:
        """Seconds that it was made for; 0 where it cannot be read."""
        return self._until_s - self._from_s if self._read() else 0.0

    def _read(self) -> bool:
        try:
            written = self._file.stat().st_mtime_ns
            if written != self._written:
                found = x509.load_pem_x509_certificate(self._file.read_bytes())
                self._from_s = found.not_valid_before_utc.timestamp()
                self._until_s = found.not_valid_after_utc.timestamp()
                self._written = written
        except (OSError, ValueError):
            return False
        return True
