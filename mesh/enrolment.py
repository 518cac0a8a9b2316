"""How an agent asks for its certificate: a sealed request on `ctl.enrol.<agent>`, and an answer that anybody may read.

The request holds the agent's token, so it is sealed to the control plane's key (`nacl.public.SealedBox`: X25519 and
XSalsa20-Poly1305): a broker in between sees neither token nor certificate request, and cannot put another into it. The
answer is a chain, which the agent checks against its own roots, its key and its id.
"""

from __future__ import annotations

from typing import Any

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from mesh.errors import BadEnrolment

ENROL_SUBJECT = "ctl.enrol"  # and the agent's name after it
MAX_TOKEN_BYTES = 16_384  # a service account's has 1 to 2 KB, an SVID's a little more
MAX_MESSAGE_BYTES = 65_536  # sealed request, or answer


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate signing request (DER), and what shows who asks. Nothing prints the token."""

    csr: bytes
    token: bytes

    def __repr__(self) -> str:
        return f"Request(csr=<{len(self.csr)} bytes>, token=<{len(self.token)} bytes>)"


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it: the chain (DER), or the error for machines, as `MeshError.as_dict` gives it."""

    chain: bytes | None = None
    error: dict[str, Any] | None = None


def seal_request(csr: bytes, token: bytes, public: bytes) -> bytes:
    """Seal a request to the control plane's enrolment key.

    Args:
        csr: As `make_csr` made it.
        token: At most 16 KiB.
        public: X25519, 32 bytes.

    Raises:
        BadEnrolment: No such key, or no such token.
    """
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        expected = f"1 to {MAX_TOKEN_BYTES} bytes"
        raise BadEnrolment("not a token", expected=expected, got=f"{len(token)} bytes")
    try:
        return SealedBox(PublicKey(public)).encrypt(msgspec.json.encode(Request(csr, token)))
    except CryptoError as error:  # another length, or small order: everybody could open what is sealed to it
        raise BadEnrolment("not an enrolment key", next="is `enrol.pub` the control plane's?") from error


def open_request(data: bytes, private: bytes) -> Request:
    """Open a sealed request. Who asks, and whether the key is theirs, is still to be checked.

    Args:
        data: As received.
        private: X25519, 32 bytes.

    Raises:
        BadEnrolment: Too large, not sealed to this key, or no request.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadEnrolment(
            "the request is too large", expected=f"at most {MAX_MESSAGE_BYTES} bytes", got=f"{len(data)}"
        )
    box = SealedBox(PrivateKey(private))
    try:
        opened = box.decrypt(data)
    except CryptoError as error:
        next_step = "does the agent hold the `enrol.pub` of this control plane?"
        raise BadEnrolment("the request is not sealed to this control plane", next=next_step) from error
    try:
        request = _REQUEST.decode(opened)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BadEnrolment("what was sealed is no enrolment request") from None  # the cause might quote the token
    if not 0 < len(request.token) <= MAX_TOKEN_BYTES:
        raise BadEnrolment("not a token", expected=f"1 to {MAX_TOKEN_BYTES} bytes", got=f"{len(request.token)} bytes")
    return request


def encode_answer(answer: Answer) -> bytes:
    """The answer, JSON; the chain is base64."""
    return msgspec.json.encode(answer)


def read_answer(data: bytes) -> Answer:
    """Read an answer; its chain is still to be checked.

    Raises:
        BadEnrolment: Too large, malformed, or neither chain nor error, or both.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadEnrolment("the answer is too large", expected=f"at most {MAX_MESSAGE_BYTES} bytes", got=f"{len(data)}")
    try:
        answer = _ANSWER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadEnrolment("the answer to an enrolment request cannot be read") from error
    if (answer.chain is None) == (answer.error is None):
        raise BadEnrolment("the answer to an enrolment request has to hold a chain or an error")
    return answer


_REQUEST = msgspec.json.Decoder(Request)
_ANSWER = msgspec.json.Decoder(Answer)
