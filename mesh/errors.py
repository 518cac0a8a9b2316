"""Every error of the mesh as one tree. Each has a stable `code`, and says whether trying again can help.

    MeshError
    ├── InputError          what came in is wrong: 4xx, never retried as it is
    ├── PolicyError         a policy document cannot be loaded: names file and line
    ├── Denied              policy says no: 403, carries the rule that decided
    ├── VerificationError   a stored event failed one of V1 to V9
    ├── IdentityError       a key, certificate or trust statement cannot be believed
    ├── Unavailable         something the mesh needs is away: 503, a retry helps
    ├── RateLimited         a source sends faster than it may: 429, a retry helps
    └── ConfigError         a setting or a file of ours is wrong

An error says what was expected, what came and what to do next, and never quotes a value from an event's data.
`agent/README.md` lists the codes; the table there is generated from this file (`python -m mesh.errors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class MeshError(Exception):
    """Base of every error the mesh raises on purpose.

    Args:
        message: One sentence: what is wrong, with both sides of the comparison where there is one.
        expected: What would have been accepted.
        got: What came instead; a name, a length or a type, never an event's value.
        next: What the reader can do about it.
        details: More machine-readable facts (`rule`, `limit`, `file`, `line`, ...), never values of events.
    """

    code: ClassVar[str] = "mesh-error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, expected: str = "", got: str = "", next: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.got = got
        self.next = next
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The error for machines: `code`, `message`, `expected`, `got`, `next` and the details."""
        known = {
            "code": self.code,
            "message": self.message,
            "expected": self.expected,
            "got": self.got,
            "next": self.next,
        }
        return {**self.details, **known}


# --- what came in is wrong -------------------------------------------------------------------------------------------


class InputError(MeshError):
    """The sender has to change the request."""

    code = "bad-input"
    status = 400


class NotJson(InputError):
    """The body is not one JSON text in valid UTF-8 (NaN, Infinity and lone surrogates are not JSON)."""

    code = "not-json"


class TooLarge(InputError):
    """An event, a batch or a body is over its limit; `limit` and `size` are in bytes (or events)."""

    code = "too-large"
    status = 413


class TooDeep(InputError):
    """JSON containers nest deeper than the limit."""

    code = "too-deep"


class BadAttribute(InputError):
    """A CloudEvents attribute is missing or malformed."""

    code = "bad-attribute"


class ReservedAttribute(InputError):
    """An attribute that only the mesh may set came from outside."""

    code = "reserved-attribute"


class BadType(InputError):
    """An event type outside the grammar: 2 to 8 tokens of `[a-z0-9_-]{1,64}`."""

    code = "bad-type"


class BadName(InputError):
    """A team, agent, subscription, view, site or tenant is not named `[a-z0-9]+(-[a-z0-9]+)*` in 1 to 40 characters."""

    code = "bad-name"


class BadPattern(InputError):
    """A type, tag or source pattern outside its grammar."""

    code = "bad-pattern"


class BadSubject(InputError):
    """A NATS subject that is not `ev.<site>.<view>.<slot>.<type>`."""

    code = "bad-subject"


class BadHeader(InputError):
    """A header the mesh does not take: CR, LF or NUL in it, a `Nats-` name, `Status`, `Description`, a duplicate."""

    code = "bad-header"


class TooManyHeaders(InputError):
    """More header fields, or more header bytes, than the limit."""

    code = "too-many-headers"
    status = 431


class UnsupportedMediaType(InputError):
    """The content type is none of the three CloudEvents modes, or the charset is not UTF-8."""

    code = "unsupported-media-type"
    status = 415


class WrongHost(InputError):
    """The Host header is not this door's own name (DNS rebinding)."""

    code = "wrong-host"
    status = 421


class CrossOrigin(InputError):
    """A browser sent this: the doors take no `Origin`."""

    code = "cross-origin"
    status = 403


class Unauthorized(InputError):
    """No bearer token, or another one."""

    code = "unauthorized"
    status = 401


class BadWebhookSignature(InputError):
    """The provider's signature is missing or does not fit the body."""

    code = "bad-webhook-signature"
    status = 401


class WebhookNotFresh(BadWebhookSignature):
    """A provider's signature is genuine, and its time further off than `tolerance_s`: a replay, or a wrong clock."""

    code = "webhook-not-fresh"


class NotFound(InputError):
    """No such door, source, subscription or event."""

    code = "not-found"
    status = 404


class MethodNotAllowed(InputError):
    """The door exists but not for this method."""

    code = "method-not-allowed"
    status = 405


class ReplayOpen(InputError):
    """A subscription has one replay at a time, and one is open."""

    code = "replay-open"
    status = 409


class LeaseGone(InputError):
    """No such lease is open: it was settled, it ran out, the agent was restarted, or it is another subscription's."""

    code = "lease-gone"
    status = 409


class SubscriptionPushed(InputError):
    """The agent pushes this subscription to its application, so nobody can pull it from the agent."""

    code = "subscription-pushed"
    status = 409


class EventExpired(InputError):
    """The event's `expirytime` is past: nobody would be handed it."""

    code = "event-expired"
    status = 422


class DataMismatch(InputError):
    """An event's data is not what the class of its type says; `path` is the place, never the value."""

    code = "data-mismatch"
    status = 422


class NotInjectable(InputError):
    """A pod asks for the sidecar and cannot get it; the API server tells whoever creates the pod."""

    code = "not-injectable"
    status = 403


class BadAdmissionReview(InputError):
    """What came to the injector is no AdmissionReview v1 of a pod."""

    code = "bad-admission-review"


class RequestTimeout(InputError):
    """Headers or body did not arrive in time."""

    code = "request-timeout"
    status = 408


# --- policy ----------------------------------------------------------------------------------------------------------


class PolicyError(MeshError):
    """A policy document does not load. `file` and `line` say where; `next` says the fix."""

    code = "policy-invalid"
    status = 422


class ExpressionError(PolicyError):
    """A condition is outside the CEL subset, too large, or does not parse; `column` counts from 1."""

    code = "bad-expression"


class PolicyErrors(PolicyError):
    """A set of policies does not load: all that is wrong with it, each a `PolicyError` with file, line and fix."""

    code = "policies-invalid"

    def __init__(self, errors: Sequence[PolicyError]) -> None:
        lines = "\n".join(f"  {error}. Fix: {error.next}" for error in errors)
        super().__init__(
            f"{len(errors)} error{'' if len(errors) == 1 else 's'} in the policies:\n{lines}",
            next="put each of them right; nothing was changed",
            errors=[error.as_dict() for error in errors],
        )
        self.errors = list(errors)


class BadBundle(PolicyError):
    """A policy bundle cannot be read: not one, of an unknown format, too large, or with policies that do not parse."""

    code = "bad-bundle"


class BundleSignature(BadBundle):
    """A policy bundle is not signed by the policy key, or is not what was signed."""

    code = "bundle-signature"


class BundleRollback(BadBundle):
    """A policy bundle of an older revision than the one in force; a rollback is a new revision of its own."""

    code = "bundle-rollback"


class BundleChain(BadBundle):
    """A policy bundle does not follow the one in force: a revision is missing, or its predecessor is another one."""

    code = "bundle-chain"


class BundleFormat(BadBundle):
    """A policy bundle of a format this version does not know; one side of the mesh has to be upgraded."""

    code = "bundle-format"


class PolicyTestsFailed(PolicyError):
    """The policies' own tests fail, and so nothing was applied; `failures` names the cases and invariants."""

    code = "policy-tests-failed"


class AmbiguousView(PolicyError):
    """Several grants let the team read this type, each in a view of its own; `grants` names their ids."""

    code = "ambiguous-view"


class BadFixture(PolicyError):
    """A test event is missing, is no CloudEvent, or has nothing at the path to change."""

    code = "bad-fixture"


class Denied(MeshError):
    """Policy refuses the publish; `rule` is the rule that decided, `reason` the stable reason code."""

    code = "denied"
    status = 403


# --- verification, V1 to V9 ------------------------------------------------------------------------------------------


class VerificationError(MeshError):
    """A stored event is not believed. The step is in `step` (`V1` to `V9`)."""

    code = "not-verified"
    status = 422
    step: ClassVar[str] = ""


class BadEnvelope(VerificationError):
    """V1: the signature header, the subject or the body is outside grammar or limits."""

    code = "bad-envelope"
    step = "V1"


class SignatureMissing(VerificationError):
    """V2: there is no `Mesh-Signature`. Every event of the mesh has one."""

    code = "signature-missing"
    step = "V2"


class UnknownKey(VerificationError):
    """V3: no certificate for this key id. Our trust store may be behind, so a retry can help."""

    code = "unknown-key"
    step = "V3"
    retryable = True


class OutsideCertificate(VerificationError):
    """V4: signed before or after the certificate's validity."""

    code = "outside-certificate"
    step = "V4"


class PublisherNotAllowed(VerificationError):
    """V5: this SPIFFE id may not publish this subject and source."""

    code = "publisher-not-allowed"
    step = "V5"


class BadMessageId(VerificationError):
    """V6: not exactly one `Nats-Msg-Id` of 22 canonical base64url characters."""

    code = "bad-message-id"
    step = "V6"


class NotFresh(VerificationError):
    """V7: stream time and signing time are too far apart: a replay, or a wrong clock."""

    code = "not-fresh"
    step = "V7"


class KeyRevoked(VerificationError):
    """V8: the key was revoked before the stream took the event."""

    code = "key-revoked"
    step = "V8"


class BadSignature(VerificationError):
    """V9: subject, message id, salt, body, proof and signature do not belong together."""

    code = "bad-signature"
    step = "V9"


# --- identity --------------------------------------------------------------------------------------------------------


class IdentityError(MeshError):
    """Base of what can be wrong with a key, a certificate or a trust statement."""

    code = "bad-identity"


class BadSpiffeId(IdentityError):
    """Not `spiffe://<trust domain>/<path>`."""

    code = "bad-spiffe-id"


class WeakKey(IdentityError):
    """One of the small-order Ed25519 points: a fixed signature would verify for any message."""

    code = "weak-key"


class BadCertificate(IdentityError):
    """Not issued by a root we trust, or not of the profile: Ed25519, one SPIFFE URI SAN, the private EKU alone."""

    code = "bad-certificate"


class BadTrustStatement(IdentityError):
    """The trust statement is malformed or not signed by the trust key."""

    code = "bad-trust-statement"


class TrustRollback(IdentityError):
    """The trust statement's epoch does not rise."""

    code = "trust-rollback"


class BadEnrolment(IdentityError):
    """An enrolment request cannot be read, proves no key, or brings a key that was seen before."""

    code = "bad-enrolment"


class NotAttested(IdentityError):
    """Whoever asks for a certificate is not the workload it asks for, or cannot show that it is."""

    code = "not-attested"


class WorkloadBarred(IdentityError):
    """The workload was revoked: it gets no certificate and no connection until `mesh trust admit`."""

    code = "workload-barred"


class StaleTrust(IdentityError):
    """The trust statement is too old to rely on; a newer one may arrive."""

    code = "stale-trust"
    status = 503
    retryable = True


# --- away ------------------------------------------------------------------------------------------------------------


class Unavailable(MeshError):
    """Something the mesh needs is away; the same call can succeed later. `retry_after_s` where it is known."""

    code = "unavailable"
    status = 503
    retryable = True


class Disconnected(Unavailable):
    """No connection to NATS."""

    code = "nats-unreachable"


class Deposed(Disconnected):
    """This replica of the control plane does not lead any more: another one may, so it sends nothing."""

    code = "control-deposed"


class StreamUnavailable(Unavailable):
    """The stream did not acknowledge in time, has no leader, or is full."""

    code = "stream-unavailable"


class SubjectRefused(Unavailable):
    """The stream is healthy but NATS does not let us use this subject: our grant is behind, or too narrow."""

    code = "subject-refused"


class RequestFailed(MeshError):
    """The JetStream API answered with an error; `err_code` is the server's."""

    code = "jetstream-refused"


class PushFailed(Unavailable):
    """An application did not take a pushed event: 5xx, no answer in time, or a redirect. It is tried again."""

    code = "push-failed"


class ConsumerFailed(Unavailable):
    """A consumer over HTTP asked for another attempt of an event: it is tried again."""

    code = "consumer-failed"


class LeaseExpired(Unavailable):
    """A consumer over HTTP said nothing of an event before its lease ran out: it is tried again."""

    code = "lease-expired"


class ApiServerRefused(Unavailable):
    """The Kubernetes API server lets us not do something, or knows no such resource: rights, or definitions, lack."""

    code = "api-server-refused"


class VersionExpired(Unavailable):
    """The Kubernetes API server has forgotten the version that we watched from; the whole list is read again."""

    code = "version-expired"


class Overloaded(Unavailable):
    """The agent's window is full: slow down."""

    code = "overloaded"
    status = 503


class RateLimited(MeshError):
    """A source sends more events than the agent's `source_rate_per_s` and `source_burst` let through."""

    code = "rate-limited"
    status = 429
    retryable = True


class SpoolFull(Unavailable):
    """The agent's spool takes no more: its bound is reached, or its disk is full."""

    code = "spool-full"


class Draining(Unavailable):
    """The agent is shutting down and takes nothing new."""

    code = "draining"


class NoBundle(Unavailable):
    """No valid policy bundle yet, and so nothing is allowed."""

    code = "no-valid-bundle"


class RevisionNeeded(Unavailable):
    """An older policy bundle is needed to judge this, and is not here yet; `revision` is its number."""

    code = "revision-needed"


class SignerExpired(Unavailable):
    """Our own signing certificate has ended; what we seal nobody would believe. A renewed one helps."""

    code = "signer-expired"


class NotEnrolled(Unavailable):
    """The agent has no certificate yet, so nobody would believe what it seals."""

    code = "not-enrolled"


class StreamsMissing(Unavailable):
    """The server lacks streams that the mesh has: another store, or the wrong encryption key. Nothing is made anew."""

    code = "streams-missing"


class NoDomainKey(Unavailable):
    """The agent lacks the key of a pseudonym domain that this event is masked in; `domain` names it."""

    code = "no-domain-key"


class ClockWrong(Unavailable):
    """Our clock is far from the server's: what we sign nobody would believe. Setting it right helps."""

    code = "clock-wrong"


class Closed(MeshError):
    """The object was closed; make a new one."""

    code = "closed"


# --- our own settings ------------------------------------------------------------------------------------------------


class ConfigError(MeshError):
    """A setting, a context or one of our own files is wrong."""

    code = "bad-config"


class SpoolDamaged(ConfigError):
    """The agent's spool cannot be read as it was written: changed or damaged rows, or another key."""

    code = "spool-damaged"


def catalogue() -> list[type[MeshError]]:
    """Every error class, in the order of this file."""
    return [c for c in globals().values() if isinstance(c, type) and issubclass(c, MeshError)]


def markdown() -> str:
    """The table of codes for the reference page."""
    rows = ["| code | status | retry | what it says |", "|---|---|---|---|"]
    for c in catalogue():
        says = " ".join((c.__doc__ or "").split())
        rows.append(f"| `{c.code}` | {c.status} | {'yes' if c.retryable else 'no'} | {says} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
