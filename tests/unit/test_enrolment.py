"""Requests for a certificate: what proves a key, who can read a request, and what an answer may say."""

from __future__ import annotations

import base64
import json
import random
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.public import PrivateKey, PublicKey, SealedBox

from mesh.certificates import MAX_CSR_BYTES, make_csr, read_csr
from mesh.enrolment import (
    MAX_MESSAGE_BYTES,
    MAX_TOKEN_BYTES,
    Answer,
    Request,
    encode_answer,
    open_request,
    read_answer,
    seal_request,
)
from mesh.errors import BadEnrolment, NotAttested, WeakKey
from mesh.statements import verify_ed25519
from tests.tables import make_signatures as reference
from tests.unit.certify import ID, LEAF, named, san

CSR = make_csr(reference.SEED)
TOKEN = b"a-token-that-nobody-may-see"
PRIVATE = bytes(range(1, 33))
PUBLIC = bytes(PrivateKey(PRIVATE).public_key)
OTHER_PRIVATE = bytes(range(2, 34))

# --- certificate signing requests ------------------------------------------------------------------------------------


def test_a_request_proves_its_key() -> None:
    """What `make_csr` makes, OpenSSL reads too: the seed's public key, signed by itself, and nobody's name."""
    assert read_csr(CSR) == reference.PUBLIC_KEY
    request = x509.load_der_x509_csr(CSR)
    assert (request.is_signature_valid, request.subject, list(request.extensions)) == (True, x509.Name([]), [])


def test_names_in_a_request_are_ignored() -> None:
    """Whatever else a request asks for, only its key is taken from it."""
    builder = x509.CertificateSigningRequestBuilder(named("root")).add_extension(san(ID + "-boss"), critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    greedy = builder.add_extension(*LEAF["eku"]).sign(reference.KEY, None).public_bytes(Encoding.DER)
    assert read_csr(greedy) == reference.PUBLIC_KEY


def test_a_request_signs_nothing_that_an_event_would() -> None:
    """The bytes that a request signs begin as no pre-authentication encoding does."""
    request = x509.load_der_x509_csr(CSR)
    assert verify_ed25519(reference.PUBLIC_KEY, request.tbs_certrequest_bytes, request.signature)
    assert not request.tbs_certrequest_bytes.startswith(reference.pae("", b"")[:6])


def with_key(key: bytes, signature: bytes | None = None) -> bytes:
    """The request with another public key in it, and perhaps another signature."""
    assert CSR.count(reference.PUBLIC_KEY) == 1
    changed = CSR.replace(reference.PUBLIC_KEY, key)
    return changed if signature is None else changed[:-64] + signature


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_a_small_order_key_enrols_nobody(key: bytes) -> None:
    """A request under one of the 14 encodings is refused, with the signature that OpenSSL takes for any message too."""
    for signature in (None, b"\x01" + bytes(63)):
        with pytest.raises(WeakKey):
            read_csr(with_key(key, signature))


def test_openssl_takes_a_signature_that_proves_nothing() -> None:
    """Why the rows above matter: under the identity point, OpenSSL believes a fixed signature over this request."""
    weak = x509.load_der_x509_csr(with_key(b"\x01" + bytes(31), b"\x01" + bytes(63)))
    assert weak.is_signature_valid


def of_kind(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey) -> bytes:
    """A valid request for another kind of key."""
    algorithm = None if isinstance(key, ed448.Ed448PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, algorithm).public_bytes(Encoding.DER)


LARGE = (
    x509.CertificateSigningRequestBuilder(x509.Name([]))
    .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), bytes(MAX_CSR_BYTES)), critical=False)
    .sign(reference.KEY, None)
    .public_bytes(Encoding.DER)
)
S_PLUS_L = (int.from_bytes(CSR[-32:], "little") + reference.L).to_bytes(32, "little")
OTHER_PUBLIC = reference.OTHER_KEY.public_key().public_bytes_raw()


@pytest.mark.parametrize(
    "der",
    [
        b"", b"\x30\x00", CSR[:-1], CSR + b"\0", base64.b64encode(CSR), LARGE,
        x509.load_der_x509_csr(CSR).public_bytes(Encoding.PEM), CSR.replace(b"\x02\x01\x00", b"\x02\x01\x05", 1),
        with_key(OTHER_PUBLIC), CSR[:-64] + bytes(64), CSR[:-64] + reference.flip(CSR[-64:]), CSR[:-32] + S_PLUS_L,
        CSR[:-64] + reference.KEY.sign(CSR), of_kind(ec.generate_private_key(ec.SECP256R1())),
        of_kind(rsa.generate_private_key(65537, 2048)), of_kind(ed448.Ed448PrivateKey.generate()),
        make_csr(reference.SEED) + make_csr(reference.SEED),
    ],
    ids=[
        "empty", "an empty sequence", "cut off", "one byte more", "base64", "too large", "PEM", "another version",
        "another's key, our signature", "no signature", "a bit of the signature", "the signature plus L",
        "a signature over something else", "P-256", "RSA", "Ed448", "two of them",
    ],
)  # fmt: skip
def test_a_request_that_proves_no_key_is_refused(der: bytes) -> None:
    """A key counts as its sender's when the request is signed with it, in one encoding, and is of Ed25519."""
    with pytest.raises(BadEnrolment):
        read_csr(der)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_changed_request_is_refused_or_says_the_same() -> None:
    """Bytes flipped, put in or taken out never give another key, and no surprise."""
    chance = random.Random(5)
    for place in range(len(CSR) * 8):
        changed = bytearray(CSR)
        changed[place // 8] ^= 1 << place % 8
        if place % 3 == 0:
            changed.insert(chance.randrange(len(CSR)), chance.randrange(256))
        elif place % 3 == 1:
            del changed[chance.randrange(len(CSR))]
        with suppress(BadEnrolment, WeakKey):
            assert read_csr(bytes(changed)) == reference.PUBLIC_KEY


# --- sealed requests -------------------------------------------------------------------------------------------------


def test_a_sealed_request_opens_for_its_reader_alone() -> None:
    """The control plane gets request and token back; another key opens nothing, and the broker reads neither."""
    sealed = seal_request(CSR, TOKEN, PUBLIC)
    assert open_request(sealed, PRIVATE) == Request(CSR, TOKEN)
    with pytest.raises(BadEnrolment):
        open_request(sealed, OTHER_PRIVATE)
    for secret in (TOKEN, base64.b64encode(TOKEN), CSR[20:60], base64.b64encode(CSR)[20:60]):
        assert secret not in sealed


def test_no_two_sealed_requests_are_alike() -> None:
    """The same request sealed twice gives different bytes: whoever sees both learns nothing."""
    assert len({seal_request(CSR, TOKEN, PUBLIC) for _ in range(3)}) == 3


def test_a_request_does_not_show_its_token() -> None:
    """Neither its text nor an error quotes it."""
    assert TOKEN.decode() not in repr(Request(CSR, TOKEN))
    assert TOKEN.decode() not in str(Request(CSR, TOKEN))
    with pytest.raises(BadEnrolment) as refused:
        open_request(box({"csr": 7, "token": TOKEN.decode()}), PRIVATE)
    assert TOKEN.decode() not in str(refused.value.as_dict())
    assert refused.value.__suppress_context__


def box(content: object) -> bytes:
    """Anything, sealed to the control plane."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return SealedBox(PublicKey(PUBLIC)).encrypt(data)


def b64(raw: bytes) -> str:
    """As JSON holds bytes."""
    return base64.b64encode(raw).decode()


GOOD = {"csr": b64(CSR), "token": b64(TOKEN)}
SEALED = seal_request(CSR, TOKEN, PUBLIC)


def test_the_request_that_the_rows_change_is_good() -> None:
    """A request written by hand opens: any language can enrol."""
    assert open_request(box(GOOD), PRIVATE) == Request(CSR, TOKEN)


@pytest.mark.parametrize(
    "data",
    [
        b"", bytes(10), bytes(48), bytes(200), SEALED[:-1], SEALED + b"\0", reference.flip(SEALED, 100), SEALED * 2,
        json.dumps(GOOD).encode(), box(b""), box(b"null"), box([GOOD]), box(b"\xff"), box(b"[" * 10_000),
        box({"csr": GOOD["csr"]}), box({"token": GOOD["token"]}), box({**GOOD, "spiffe": ID}),
        box({**GOOD, "csr": "!"}),
        box({**GOOD, "token": ""}), box({**GOOD, "token": b64(bytes(MAX_TOKEN_BYTES + 1))}),
        box({**GOOD, "csr": b64(bytes(MAX_MESSAGE_BYTES))}), box({**GOOD, "csr": None}),
        box(b'{"\xff":1}'),
    ],
    ids=[
        "empty", "short", "no box", "longer", "cut off", "a byte more", "a bit changed", "twice", "not sealed",
        "nothing sealed", "null sealed", "array sealed", "no UTF-8 sealed", "deep", "no token", "no request",
        "a field too many", "no base64", "empty token", "large token", "too large", "null request",
        "a field's name no UTF-8",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(data: bytes) -> None:
    """Whatever a stranger may send is refused as an enrolment error."""
    with pytest.raises(BadEnrolment):
        open_request(data, PRIVATE)


@pytest.mark.parametrize("token", [b"", bytes(MAX_TOKEN_BYTES + 1)], ids=["empty", "too large"])
def test_what_is_no_token_is_not_sent(token: bytes) -> None:
    """An empty token and one that no platform makes are refused before anything leaves the agent."""
    with pytest.raises(BadEnrolment):
        seal_request(CSR, token, PUBLIC)
    assert open_request(seal_request(CSR, bytes(MAX_TOKEN_BYTES), PUBLIC), PRIVATE).token == bytes(MAX_TOKEN_BYTES)


@pytest.mark.parametrize("key", [b"", PUBLIC[:-1], PUBLIC + b"\0", bytes(32), b"\x01" + bytes(31)], ids=len)
def test_nothing_is_sealed_to_a_key_that_is_none(key: bytes) -> None:
    """Another length, and a key of small order, to which everybody could open what is sealed."""
    with pytest.raises(BadEnrolment):
        seal_request(CSR, TOKEN, key)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [Answer(chain=b"\x30\x00"), Answer(chain=b""), Answer(error=NotAttested("who are you?", next="x").as_dict())],
    ids=["chain", "empty chain", "error"],
)
def test_an_answer_is_read_as_it_was_written(answer: Answer) -> None:
    """A chain or an error, and not both, in JSON of one field."""
    data = encode_answer(answer)
    assert read_answer(data) == answer
    assert len(json.loads(data)) == 1


def test_an_answer_is_plain_json() -> None:
    """The chain is base64, and the error is the one that machines read everywhere."""
    assert encode_answer(Answer(chain=CSR)) == b'{"chain":"%b"}' % base64.b64encode(CSR)
    said = json.loads(encode_answer(Answer(error=NotAttested("who are you?").as_dict())))
    assert (said["error"]["code"], said["error"]["message"]) == ("not-attested", "who are you?")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"null", b"[]", b"\xff", b'{"chain":null}', b'{"chain":"","error":{}}', b'{"chain":7}',
        b"[" * 10_000, b'{"error":"no"}', b'{"chain":"!"}', b'{"chain":"%b"}' % (b"A" * MAX_MESSAGE_BYTES),
        b'{"error":{"code":"\xff"}}', b'{"error":{"code":%b}}' % (b"[" * 10_000),
    ],
    ids=["empty", "neither", "null", "array", "no UTF-8", "null chain", "both", "number", "deep", "text as error",
         "no base64", "too large", "error no UTF-8", "error deep"],
)  # fmt: skip
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    """An answer that holds neither chain nor error, or both, or is none, is refused."""
    with pytest.raises(BadEnrolment):
        read_answer(data)


def test_the_enrolment_key_is_x25519() -> None:
    """`enrol.pub` is the raw public key, as every library writes it."""
    public = X25519PrivateKey.from_private_bytes(PRIVATE).public_key()
    assert public.public_bytes(Encoding.Raw, PublicFormat.Raw) == PUBLIC
