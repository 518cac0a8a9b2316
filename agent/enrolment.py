"""Where an event key comes from: made in memory and enrolled with the control plane, or files that others manage.

An enrolled key is never on disk, and ends with the process. Each attempt takes a new one: the control plane takes a key
once, so an answer that got lost costs a key and nothing else. Nothing on the way is trusted: the request is sealed to
the control plane, and what comes back is checked against our own roots, our key and our id.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.keys import hex_key, read, stamp
from mesh import logs
from mesh.anchors import ROOTS_FILE
from mesh.authorities import load_cas
from mesh.certificates import check_chain, make_csr
from mesh.enrolment import ENROL_SUBJECT, read_answer, seal_request
from mesh.errors import (
    BadCertificate,
    BadEnrolment,
    ConfigError,
    MeshError,
    NotAttested,
    NotFound,
    Overloaded,
    Unavailable,
    WeakKey,
    WorkloadBarred,
)
from mesh.identity import Signer, SpiffeId, seed_from_pem

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import AgentSettings
    from mesh.jetstream.connection import Connection

SEED_BYTES = 32
ANSWER_S = 5.0  # the control plane answers in milliseconds, with an attestor of its own in tens
MAX_RETRY_S = 3600.0  # that a refusal may ask for
MAX_SAID = 300  # characters of a refusal that are repeated
ENROL_KEY_FILE = "enrol.pub"

_REFUSALS = {e.code: e for e in (WeakKey, NotAttested, WorkloadBarred, NotFound, Overloaded, Unavailable)}

log = logs.get("agent")


def our_id(settings: AgentSettings) -> str:
    """The SPIFFE id that this agent has."""
    namespace = settings.namespace or settings.tenant
    return settings.spiffe_id or str(SpiffeId.for_agent(settings.trust_domain, namespace, settings.name))


class Enroller:
    """Asks the control plane for certificates.

    Args:
        settings: Who we are, and which files say so.
        base: The directory of `agent.toml`; relative paths start there.

    Raises:
        ConfigError: A file is missing or is not what it should be.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        self._token_file = base / settings.enrol_token_file
        self._trust = base / settings.trust_dir
        self._subject = f"{ENROL_SUBJECT}.{settings.name}"
        self._our_id = our_id(settings)
        self._anchors()
        self._token()

    async def enrol(self, connection: Connection) -> Signer:
        """Make a key, have it certified, and join the two.

        Raises:
            ConfigError: A file of ours cannot be read.
            IdentityError, NotFound, Overloaded: The control plane refuses, or what it answers does not hold up.
            Unavailable: No control plane, or no answer in time.
        """
        roots, public = self._anchors()
        seed = secrets.token_bytes(SEED_BYTES)
        request = seal_request(make_csr(seed), self._token(), public)
        try:
            reply = await connection.request(self._subject, request, timeout_s=ANSWER_S)
        except Unavailable as error:
            if error.details.get("reason") != "no-responders":
                raise
            raise Unavailable(
                "no control plane answers enrolments",
                expected="a control plane that serves this tenant",
                next="start it; the agent goes on asking",
            ) from None
        answer = read_answer(reply.data)
        if answer.chain is None:
            raise _refusal(answer.error or {})
        certificate = check_chain(answer.chain, [roots])
        if certificate.spiffe_id != self._our_id:
            raise BadCertificate(
                "the certificate is for somebody else",
                expected=self._our_id,
                got=str(certificate.spiffe_id),
                next="compare name, tenant, trust_domain and spiffe_id with the policies",
            )
        return Signer.from_seed(seed, answer.chain)

    def _anchors(self) -> tuple[bytes, bytes]:
        """The roots, and the key that requests are sealed to; read each time, for a root may be added."""
        roots = read(self._trust / ROOTS_FILE, "root certificates")
        try:
            load_cas(roots)
        except BadCertificate as error:
            raise ConfigError(
                f"{self._trust / ROOTS_FILE} holds no roots: {error.message}",
                expected="root certificates, PEM",
                next="copy it from the control plane",
            ) from error
        return roots, hex_key(self._trust / ENROL_KEY_FILE)

    def _token(self) -> bytes:
        token = read(self._token_file, "an enrolment token").strip()
        if not token:
            raise ConfigError(
                f"{self._token_file} is empty",
                expected="an enrolment token",
                next="have the control plane write it again: `mesh trust admit`",
            )
        return token


def _refusal(problem: dict[str, Any]) -> MeshError:
    """The error that the control plane answered, of a kind that enrolling can end with, and bounded."""
    said = {name: str(problem.get(name, ""))[:MAX_SAID] for name in ("code", "message", "expected", "got", "next")}
    code, message = said.pop("code"), said.pop("message")
    retry = problem.get("retry_after_s")
    details: dict[str, Any] = {}
    if isinstance(retry, int | float):  # compared before it is a float: a whole number may have 400 digits
        details["retry_after_s"] = float(min(max(retry, 0), MAX_RETRY_S))
    return _REFUSALS.get(code, BadEnrolment)(message or "the control plane refuses", **said, **details)


class KeyFiles:
    """An event key and its certificate that somebody else keeps in files.

    Args:
        settings: Which files.
        base: The directory of `agent.toml`; relative paths start there.

    Raises:
        ConfigError: A file is missing, malformed, or belongs to somebody else.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        self._key = base / settings.event_key_file
        self._certificate = base / settings.event_cert_file
        self._roots = base / settings.trust_dir / ROOTS_FILE
        self._our_id = our_id(settings)
        self._stamp = stamp([self._key, self._certificate])
        self.signer = self._read()

    def refresh(self) -> bool:
        """Read the files again where they changed; whether there is another signer. The last good one stays."""
        now = stamp([self._key, self._certificate])
        if now == self._stamp:
            return False
        try:
            self.signer = self._read()
        except ConfigError as error:  # perhaps the key is replaced and the certificate not yet: look again next time
            log.error("event_key_not_reloaded", code=error.code, error=error.message)
            return False
        self._stamp = now
        return True

    def _read(self) -> Signer:
        key, certificate = self._key.name, self._certificate.name
        try:
            certificates = x509.load_pem_x509_certificates(read(self._certificate, "a certificate"))
            chain = b"".join(each.public_bytes(Encoding.DER) for each in certificates)
            signer = Signer.from_seed(seed_from_pem(read(self._key, "an event key")), chain)
            check_chain(chain, [read(self._roots, "root certificates")])
        except ConfigError:
            raise
        except (ValueError, MeshError) as error:
            raise ConfigError(
                f"{key} and {certificate} do not make an identity: {error}",
                expected="an Ed25519 key and its certificate, issued by the CA in trust_dir",
                next="have a certificate issued again, or name no event_key_file and enrol",
            ) from error
        if str(signer.spiffe_id) != self._our_id:
            raise ConfigError(
                f"{certificate} is somebody else's",
                expected=self._our_id,
                got=str(signer.spiffe_id),
                next="compare name, tenant and trust_domain with the certificate",
            )
        return signer
