"""Why a server will not have us: from its words, or the system's, to a stable reason and what to do about it.

A server says as little as it can to somebody it does not know. What it does not say, we know from our own files.
"""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """A reason that stays the same, and the next step."""

    reason: str
    next: str


_CREDENTIALS = "the credentials file is read again at each attempt: have the control plane write a new one"
_CERTIFICATE = "the TLS files are read again at each attempt: have the control plane write new ones"

EXPIRED = Refusal("credentials-expired", _CREDENTIALS)
REFUSED = Refusal(
    "credentials-refused", f"they were revoked, or the server does not know their account; {_CREDENTIALS}"
)

CLOSED = Refusal(
    "account-closed",
    "the policies do not know this workload, it is barred (see `mesh trust list`), or it has 256 connections open",
)
NOT_TRUSTED = Refusal(
    "server-not-trusted", "check the roots that we read, the server's name in the URL, its certificate"
)
NO_TLS = Refusal("server-without-tls", "whatever answers there speaks no TLS: check the URL")
NEEDS_TLS = Refusal("server-with-tls", "it waits for TLS: name our TLS files, or take the mesh.json of this mesh")

_WORDS = (
    ("authentication revoked", Refusal("credentials-revoked", _CREDENTIALS)),
    ("authentication expired", EXPIRED),
    ("maximum account active connections", CLOSED),  # an account that the control plane closed allows none at all
    ("authorization violation", REFUSED),
    ("alert certificate expired", Refusal("certificate-expired", _CERTIFICATE)),
    ("alert unknown ca", Refusal("certificate-refused", f"its issuer is not the server's; {_CERTIFICATE}")),
    ("alert bad certificate", Refusal("certificate-refused", f"it is no TLS client's; {_CERTIFICATE}")),
    ("alert decode error", Refusal("certificate-refused", f"the server cannot read ours; {_CERTIFICATE}")),
    ("alert certificate required", Refusal("certificate-refused", f"the server saw none; {_CERTIFICATE}")),
    ("certificate verify failed", NOT_TRUSTED),
    ("wrong version number", NO_TLS),
    ("record layer failure", NO_TLS),
    ("expecting info", NEEDS_TLS),
)


def explain(said: str, *, expires_s: float | None, now_s: float) -> Refusal | None:
    """What *said* means.

    Args:
        said: The last error of the server or the system.
        expires_s: When our user JWT ends, Unix seconds; None where it does not.
        now_s: Unix seconds.

    Returns:
        None for what is no refusal: nobody there, a timeout.
    """
    lowered = said.lower()
    refusal = next((refusal for words, refusal in _WORDS if words in lowered), None)
    return EXPIRED if refusal is REFUSED and expires_s is not None and expires_s <= now_s else refusal
