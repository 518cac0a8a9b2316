"""What shows that a request at the control plane's door comes from an operator.

The broker carries it, and is not trusted. Whoever runs or has broken it can publish on any subject of a tenant. He
cannot read `admin/operator.key`, which the control plane and its operators share, so he can neither make such a proof
nor change a request that carries one.

    Mesh-Proof: 1.<Unix ms>.<nonce>.<HMAC-SHA-256 over tenant, subject, time, nonce and body>     base64url, unpadded
"""

from __future__ import annotations

import hmac
import re

from mesh.base64url import b64u
from mesh.errors import NotAttested

HEADER = "Mesh-Proof"
KEY_FILE = "operator.key"  # in `admin/`
NONCE_BYTES = 16
WINDOW_MS = 60_000  # a proof is believed for so long, and once: clocks of operators may be off by as much
_FORM = re.compile(r"1\.([0-9]{1,15})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")


def prove(key: bytes, *, tenant: str, subject: str, body: bytes, at_ms: int, nonce: bytes) -> str:
    """The header of one request.

    Args:
        key: The operators', 32 bytes.
        tenant: At whose door.
        subject: What is asked, `ctl.<noun>.<verb>`.
        body: The request.
        at_ms: Unix milliseconds of now.
        nonce: 16 random bytes, never used before.
    """
    stamp = f"1.{at_ms}.{b64u(nonce)}"
    return f"{stamp}.{_mac(key, tenant, subject, stamp, body)}"


class Proofs:
    """Believes each proof once.

    Args:
        key: The operators', 32 bytes.
        tenant: Whose door it is.
        since_ms: Unix milliseconds from which on we remember: an older proof may have been used before we started.
    """

    def __init__(self, key: bytes, tenant: str, *, since_ms: int) -> None:
        self._key = key
        self._tenant = tenant
        self._since_ms = since_ms
        self._used: dict[str, int] = {}  # when each ends, by nonce; oldest first, give or take the clocks

    def check(self, proof: str, *, subject: str, body: bytes, now_ms: int) -> None:
        """Raise unless *proof* shows that an operator asks exactly this, and for the first time.

        Raises:
            NotAttested: There is none, it is another request's or another key's, too old, or was used before.
        """
        parts = _FORM.fullmatch(proof)
        if parts is None:
            raise _refused("none" if not proof else "another text")
        told, nonce, mac = parts.groups()
        if not hmac.compare_digest(mac, _mac(self._key, self._tenant, subject, f"1.{told}.{nonce}", body)):
            raise _refused("a proof of something else, or by another key")
        at_ms = int(told)
        if not max(self._since_ms, now_ms - WINDOW_MS) <= at_ms <= now_ms + WINDOW_MS:
            raise _refused("one of another time", "ask again; if it stays so, compare the clocks")
        if nonce in self._used:
            raise _refused("one that was used before", "ask again: each proof is good once")
        self._forget(now_ms)
        self._used[nonce] = at_ms + WINDOW_MS

    def _forget(self, now_ms: int) -> None:
        for nonce, until_ms in list(self._used.items()):
            if until_ms >= now_ms:
                break
            del self._used[nonce]


def _mac(key: bytes, tenant: str, subject: str, stamp: str, body: bytes) -> str:
    # the body is last, for it alone may hold a NUL: no two requests read alike
    said = b"\0".join((b"mesh-ctl-v1", tenant.encode(), subject.encode(), stamp.encode(), body))
    return b64u(hmac.new(key, said, "sha256").digest())


def _refused(got: str, next: str = "run the command where the mesh runs, as the user who started it") -> NotAttested:
    return NotAttested(
        "the request does not come from an operator of this mesh",
        expected=f"a {HEADER} by admin/{KEY_FILE}",
        got=got,
        next=next,
    )
