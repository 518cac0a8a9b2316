"""The policy bundles that one process holds: the one in force, those before it that copies still need, the one on disk.

A bundle is adopted whole or refused whole. It has to be signed by the policy key, be ours, and follow the one in force:
`mesh.policy.envelope` says how each is checked. What is refused changes nothing. The last good envelope is kept in a
file, so that a process begins with it while NATS is away, and refuses an older one after a restart too.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mesh import logs
from mesh.errors import BadBundle, BundleChain, ConfigError, RevisionNeeded
from mesh.files import replace_file
from mesh.policy.compile import Plans
from mesh.policy.envelope import MAX_ENVELOPE_BYTES, follows, open_bundle
from mesh.reports import PolicyState, Refused
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.policy.bundle import Bundle, Past

KEPT_PLANS = 16  # older revisions held compiled: a backlog passes through them in order; about 1 MB each
POLICY_KEY_BYTES = 32
ADOPTION_MS = 15_000  # a lost notice is made up for within 10 s: what an agent accepted until then was accepted in time

ADOPTED = counter("mesh.policy.bundle.adopted", "{bundle}", "flat after an apply: this process runs old policies")
REFUSED = counter(
    "mesh.policy.bundle.refused", "{bundle}", "above 0: somebody else writes bundles, or the store was set back"
)

log = logs.get("bundle")

_compiled: WeakValueDictionary[str, Plans] = WeakValueDictionary()  # by digest, for all who share this process


def compiled(bundle: Bundle) -> Plans:
    """The plans of *bundle*; one object for everybody in this process who runs it.

    Raises:
        BadBundle: Its policies do not parse.
    """
    plans = _compiled.get(bundle.digest)
    if plans is None:
        plans = _compiled[bundle.digest] = Plans(bundle)
    return plans


class Bundles:
    """The bundles of one tenant, as one process has adopted them.

    Args:
        policy_key: Public key that every bundle has to be signed by, 32 bytes.
        tenant: Whose they have to be; None for whichever comes first.

    Attributes:
        plans: In force; None until the first valid bundle has come.
        state: What to report.
    """

    def __init__(self, policy_key: bytes, *, tenant: str | None = None) -> None:
        self._key = policy_key
        self._tenant = tenant
        self._at_ms = 0
        self._past: OrderedDict[int, Plans] = OrderedDict()
        self.plans: Plans | None = None
        self.state = PolicyState()

    def offer(self, envelope: bytes, *, at_ms: int, now_ms: int) -> bool:
        """Adopt a sealed bundle if it is newer than the one in force.

        Args:
            envelope: As stored.
            at_ms: The server's clock when it was stored; 0 where that is not known.
            now_ms: Our clock.

        Returns:
            Whether it was adopted; False where it is the one in force already.

        Raises:
            BadBundle: It is refused: the subclass and `revision` say what and why. The one in force stays.
        """
        revision = 0
        try:
            bundle = open_bundle(envelope, self._key)
            revision = bundle.revision
            current = self._check(bundle)
            plans = self.plans if current is not None and current.digest == bundle.digest else compiled(bundle)
        except BadBundle as error:
            error.details.setdefault("revision", revision)
            self._say(refused=Refused(error.code, revision))
            REFUSED.add(1, code=error.code)
            raise
        if current is not None and plans is self.plans:
            self._at_ms = at_ms or self._at_ms
            self._say(refused=None)
            return False
        if current is not None and self.plans is not None:
            self._keep(current.revision, self.plans)
        self._at_ms = at_ms or bundle.created_ms
        self.plans = plans
        self.state = PolicyState(revision=bundle.revision, digest=bundle.digest, adopted_ms=now_ms)
        ADOPTED.add(1)
        return True

    def _check(self, bundle: Bundle) -> Bundle | None:
        """Whether *bundle* may come into force; returns the one that is."""
        if self._tenant is not None and bundle.tenant != self._tenant:
            raise BundleChain(
                "a bundle of another tenant", expected=self._tenant, got=bundle.tenant, next="keep the last good one"
            )
        current = None if self.plans is None else self.plans.bundle
        if current is not None:
            follows(bundle, current)
        return current

    def _say(self, *, refused: Refused | None) -> None:
        state = self.state
        self.state = PolicyState(
            revision=state.revision, digest=state.digest, adopted_ms=state.adopted_ms, refused=refused
        )

    # --- those before ------------------------------------------------------------------------------------------------

    def past(self, revision: int) -> Plans:
        """The plans of *revision*, which the bundle in force names among those before it, or which is that one.

        Raises:
            RevisionNeeded: They are not here: read the bundle and hand it to `add_past`.
        """
        plans = self.plans
        if plans is not None and plans.bundle.revision == revision:
            return plans
        plans = self._past.get(revision)
        if plans is None:
            raise RevisionNeeded(f"the policies of revision {revision} are not here yet", revision=revision)
        self._past.move_to_end(revision)
        return plans

    def add_past(self, revision: int, envelope: bytes) -> None:
        """Hold the plans of an older *revision*.

        Raises:
            BadBundle: It is not signed by the policy key, or not the one that the bundle in force names.
        """
        bundle = open_bundle(envelope, self._key)
        named = self._named(revision)
        if named is None or bundle.digest != named.digest:
            raise BundleChain(
                f"the stored revision {revision} is not the one that was in force",
                expected=f"digest {named.digest[:12] if named else 'of a revision still needed'}",
                got=f"digest {bundle.digest[:12]}",
                next="have the control plane restore it; copies made under it wait",
                revision=revision,
            )
        self._keep(revision, compiled(bundle))

    def revision_at(self, stream_ms: int) -> int | None:
        """The revision that was in force at a time of the server's clock; None where nobody remembers."""
        if self.plans is None:
            return None
        bundle = self.plans.bundle
        if stream_ms >= self._at_ms:
            return bundle.revision
        return next((past.revision for past in reversed(bundle.lineage) if past.at_ms <= stream_ms), None)

    def might_publish(self, spiffe_id: str, type_: str, source: str, stream_ms: int) -> bool:
        """V5 at stream time: whether the policies of then let this identity publish that.

        Those of `ADOPTION_MS` before count too, for what its agent answered with 202 before it had the newer bundle.
        Where a right is a subject's, NATS took it away before there was a newer bundle at all.

        Raises:
            RevisionNeeded: Those policies are not here.
        """
        revisions = dict.fromkeys(self.revision_at(ms) for ms in (stream_ms, stream_ms - ADOPTION_MS))
        return any(
            self.past(revision).may_publish(spiffe_id, type_, source) for revision in revisions if revision is not None
        )

    def _named(self, revision: int) -> Past | None:
        lineage = () if self.plans is None else self.plans.bundle.lineage
        place = revision - lineage[0].revision if lineage else -1  # no gap in it: `Bundle.decode` has seen to that
        return lineage[place] if 0 <= place < len(lineage) else None

    def _keep(self, revision: int, plans: Plans) -> None:
        self._past[revision] = plans
        if len(self._past) > KEPT_PLANS:
            self._past.popitem(last=False)


class LastGood:
    """The last good envelope in a file. Where it cannot be written the log says so once, and all goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._complained = False

    def read(self) -> bytes | None:
        """What is there; None where nothing is, or nothing that can be read."""
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_ENVELOPE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None

    def write(self, envelope: bytes) -> None:
        """Replace it whole, mode 0600: a crash leaves the old one or the new one."""
        try:
            replace_file(self.path, envelope)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            said = error.strerror or error.__class__.__name__
            log.warning("last_bundle_not_kept", file=self.path.name, error=said)


def policy_key(trust: Path) -> bytes:
    """The public key that signs policies, from a `trust/` directory.

    Raises:
        ConfigError: The file is missing or is no key.
    """
    try:
        key = bytes.fromhex((trust / "policy.pub").read_text().strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != POLICY_KEY_BYTES:
        raise ConfigError(
            f"{trust} holds no policy key",
            expected=f"policy.pub ({2 * POLICY_KEY_BYTES} hexadecimal characters)",
            next="copy it from the control plane: without it no policy bundle can be believed",
        )
    return key
