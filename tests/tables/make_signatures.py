"""Write signing_vectors.json and bad_signatures.json: `python -m tests.tables.make_signatures`.

Nothing here imports `mesh`. The tree is the recursive definition of RFC 9162, Ed25519 is OpenSSL's, and every byte
string is built a second time from the design, so that vectors and product check each other. Seeds and times are fixed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HERE = Path(__file__).parent
SEED = bytes(range(32))
DEDUPE_KEY = bytes(range(32, 64))
SPIFFE_ID = "spiffe://mesh.example/ns/acme/sa/crm-adapter"
SOURCE = "/crm/eu"
SIGNED_MS = 1_795_300_000_000
NOT_BEFORE_MS = SIGNED_MS - 3_600_000
NOT_AFTER_MS = SIGNED_MS + 82_800_000
STREAM_MS = SIGNED_MS + 250
SIZES = (1, 2, 3, 5, 8, 64)
PAYLOAD_TYPE = "application/vnd.mesh.root.v1"
SPKI = bytes.fromhex("302a300506032b6570032100")
L = 2**252 + 27742317777372353535851937790883648493  # order of the main subgroup of Ed25519
P = 2**255 - 19
STEPS = {
    "V1": "bad-envelope",
    "V2": "signature-missing",
    "V3": "unknown-key",
    "V4": "outside-certificate",
    "V5": "publisher-not-allowed",
    "V6": "bad-message-id",
    "V7": "not-fresh",
    "V8": "key-revoked",
    "V9": "bad-signature",
    "accept": "",
}
Row = dict[str, Any]


def b64u(raw: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def b64(raw: bytes) -> str:
    """Padded base64 of the standard alphabet."""
    return base64.b64encode(raw).decode()


def key_id(public_key: bytes) -> str:
    """The kid of an Ed25519 key."""
    return b64u(sha256(SPKI + public_key).digest()[:16])


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, over leaf hashes."""
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return sha256(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:])).digest()


def proof_of(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 9162, 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*proof_of(index, leaves[:k]), root_of(leaves[k:])]
    return [*proof_of(index - k, leaves[k:]), root_of(leaves[:k])]


def _split(count: int) -> int:
    """The largest power of two below *count*."""
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def statement(subject: str, msg_id: str, salt: str, body: bytes, *, domain: str = "mesh-event-v1") -> bytes:
    """The signed statement of one event."""
    return f"{domain}\n{subject}\n{msg_id}\n{salt}\n".encode() + body


def leaf(said: bytes) -> bytes:
    """Leaf hash of a statement."""
    return sha256(b"\x00" + said).digest()


def pae(payload_type: str, said: bytes) -> bytes:
    """DSSE pre-authentication encoding."""
    return f"DSSEv1 {len(payload_type)} {payload_type} {len(said)} ".encode() + said


def root_statement(root: bytes, size: int, *, spiffe_id: str = SPIFFE_ID, kid: str | None = None) -> bytes:
    """The statement that is signed once for a batch."""
    name = KID if kid is None else kid
    return f"mesh-root-v1\n{spiffe_id}\n{name}\n{SIGNED_MS}\n{size}\n{b64u(root)}\n".encode()


KEY = Ed25519PrivateKey.from_private_bytes(SEED)
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
KID = key_id(PUBLIC_KEY)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(reversed(SEED)))


def make_event(size: int, index: int) -> Row:
    """The parts of event *index* of the batch of *size*, as text; the fourth has no version in its type."""
    event_type = ("crm.contact.updated.v1", "crm.contact.created.v1", "crm.order.placed.v2", "crm.note")[index % 4]
    versioned = event_type if event_type != "crm.note" else "crm.note.v0"
    subject = f"ev.local.clear.s{index % 16:02d}.{versioned}"
    event_id = f"evt-{size}-{index}"
    fields = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": event_type,
        "time": "2026-11-21T22:26:40.000Z",
        "tenant": "acme",
        "view": "clear",
        "policyrevision": 7,
        "data": {"name": "Zoë Łukasz", "n": index},
    }
    named = f"{SOURCE}\n{event_id}\n{subject}\n0".encode()
    salt = b64u(sha256(f"salt {size} {index}".encode()).digest()[:16])
    msg_id = b64u(blake2b(named, digest_size=16, key=DEDUPE_KEY).digest())
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return {
        "source": SOURCE, "id": event_id, "subject": subject, "msg_id": msg_id, "salt": salt, "body": body,
        "statement": statement(subject, msg_id, salt, body.encode()).decode(),
    }  # fmt: skip


def make_batch(size: int) -> Row:
    """One sealed batch with everything on the way to its headers."""
    events = [make_event(size, i) for i in range(size)]
    leaves = [leaf(event["statement"].encode()) for event in events]
    root = root_of(leaves)
    said = root_statement(root, size)
    signature = KEY.sign(pae(PAYLOAD_TYPE, said))
    for i, event in enumerate(events):
        proof = b"".join(proof_of(i, leaves))
        event["leaf"] = leaves[i].hex()
        parts = ("1", KID, SIGNED_MS, event["salt"], i, size, b64u(proof), b64u(signature))
        event["header"] = ".".join(map(str, parts))
    return {"size": size, "root": root.hex(), "root_statement": said.decode(), "events": events}


def vectors() -> Row:
    """The content of signing_vectors.json."""
    key = {"seed": SEED.hex(), "public_key": PUBLIC_KEY.hex(), "kid": KID, "spiffe_id": SPIFFE_ID}
    return {
        "about": "Sealed batches of design section 3. Hex unless base64url by nature; made by make_signatures.py.",
        "key": {**key, "not_before_ms": NOT_BEFORE_MS, "not_after_ms": NOT_AFTER_MS},
        "dedupe_key": DEDUPE_KEY.hex(),
        "signed_ms": SIGNED_MS,
        "batches": [make_batch(size) for size in SIZES],
    }


# --- what must be refused --------------------------------------------------------------------------------------------

BATCH = make_batch(3)
EVENT = BATCH["events"][1]
BODY: bytes = EVENT["body"].encode()
TYPE = "crm.contact.created.v1"
BASE: Row = {
    "subject": EVENT["subject"],
    "msgIds": [EVENT["msg_id"]],
    "signature": EVENT["header"],
    "bodyB64": b64(BODY),
    "publicKeyB64": b64(PUBLIC_KEY),
    "spiffeId": SPIFFE_ID,
    "notBeforeMs": NOT_BEFORE_MS,
    "notAfterMs": NOT_AFTER_MS,
    "revokedFromMs": None,
    "streamMs": STREAM_MS,
    "tenant": "acme",
    "may": [[SPIFFE_ID, TYPE, SOURCE]],
}
VERSION, _, SIGNED, SALT, INDEX, SIZE, PROOF, SIGNATURE = range(8)
PARTS: list[str] = EVENT["header"].split(".")
RAW_SIGNATURE = base64.urlsafe_b64decode(PARTS[SIGNATURE] + "==")
RAW_PROOF = base64.urlsafe_b64decode(PARTS[PROOF] + "==")


def header(at: int, text: object) -> Row:
    """The base header with one part replaced."""
    parts = list(PARTS)
    parts[at] = str(text)
    return {"signature": ".".join(parts)}


def body(change: Callable[[Row], object]) -> Row:
    """The base body with its fields changed."""
    fields = json.loads(BODY)
    change(fields)
    return {"bodyB64": b64(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())}


def resealed(message: bytes, signer: Ed25519PrivateKey = KEY) -> Row:
    """The base header with a signature over something else, or by somebody else."""
    return header(SIGNATURE, b64u(signer.sign(message)))


def flip(raw: bytes, at: int = 0) -> bytes:
    """*raw* with one bit changed."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def next_char(text: str) -> str:
    """*text* with its last character's unused bits set: the same bytes, another spelling."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


def small_order_keys() -> list[bytes]:
    """All 14 encodings of the points of order 1, 2, 4 and 8, the non-canonical ones too."""
    eighth = next(_order_eight())
    ys = [0, 1, P - 1, eighth, P - eighth, P, P + 1]
    return [(y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1)]


def _order_eight() -> Iterator[int]:
    """Each y of the points of order 8: d y^4 + 2 y^2 - 1 = 0, since doubling gives y = 0, where x^2 = -y^2."""
    d = -121665 * pow(121666, -1, P) % P
    root = _sqrt(1 + d)
    for sign in (1, -1):
        square = (-1 + sign * root) * pow(d, -1, P) % P
        if pow(square, (P - 1) // 2, P) == 1:
            yield _sqrt(square)


def _sqrt(a: int) -> int:
    """A square root modulo P, which is 5 modulo 8."""
    x = pow(a, (P + 3) // 8, P)
    if x * x % P != a % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return x


def grammar_rows() -> Iterator[tuple[str, str, Row]]:
    """V1 and V2: the header."""
    yield "header: none", "V2", {"signature": None}
    yield "header: empty", "V1", {"signature": ""}
    yield "header: version 0", "V1", header(VERSION, "0")
    yield "header: version 2", "V1", header(VERSION, "2")
    yield "header: version 01", "V1", header(VERSION, "01")
    yield "header: another algorithm's name", "V1", header(VERSION, "none")
    yield "header: a part missing", "V1", {"signature": ".".join(PARTS[:-1])}
    yield "header: a part too many", "V1", {"signature": ".".join([*PARTS, "x"])}
    yield "header: signature stripped", "V1", header(SIGNATURE, "")
    yield "header: two of them joined", "V1", {"signature": ",".join([EVENT["header"]] * 2)}
    for name, text in (("space", " "), ("LF", "\n"), ("CR LF", "\r\n"), ("NUL", "\0")):
        yield f"header: {name} before", "V1", {"signature": text + EVENT["header"]}
        yield f"header: {name} after", "V1", {"signature": EVENT["header"] + text}
        yield f"header: {name} in the kid", "V1", header(1, PARTS[1][:11] + text + PARTS[1][11:])
        yield f"header: {name} after the time", "V1", header(SIGNED, PARTS[SIGNED] + text)
    for part, name in ((SIGNED, "time"), (INDEX, "index"), (SIZE, "size")):
        for digits, what in (("0" + PARTS[part], "leading zero"), ("+" + PARTS[part], "plus sign"), ("", "empty")):
            yield f"header: {name}, {what}", "V1", header(part, digits)
        for zero, what in (("\u0660", "Arabic digits"), ("\uff10", "fullwidth digits")):
            other = "".join(chr(ord(zero) + int(c)) for c in PARTS[part])
            yield f"header: {name}, {what}", "V1", header(part, other)
    late = PARTS[SIGNED][:-1] + chr(0x660 + int(PARTS[SIGNED][-1]))
    yield "header: time, last digit Arabic", "V1", header(SIGNED, late)
    yield "header: time of 16 digits", "V1", header(SIGNED, "1" * 16)
    yield "header: time negative", "V1", header(SIGNED, "-" + PARTS[SIGNED])
    yield "header: time with exponent", "V1", header(SIGNED, "1e12")
    yield "header: index is size", "V1", header(INDEX, 3)
    yield "header: size 0", "V1", header(SIZE, 0)
    yield "header: size 257", "V1", header(SIZE, 257)
    for part, name in ((1, "kid"), (SALT, "salt"), (SIGNATURE, "signature")):
        yield f"header: {name}, unused bits set", "V1", header(part, next_char(PARTS[part]))
        yield f"header: {name}, padded", "V1", header(part, PARTS[part] + "==")
        yield f"header: {name}, one character less", "V1", header(part, PARTS[part][:-1])
        yield f"header: {name}, standard alphabet", "V1", header(part, "+/" + PARTS[part][2:])
    long = b64u(RAW_PROOF[:32])
    yield "header: proof, unused bits set", "V1", header(PROOF, next_char(long))
    yield "header: proof, padded", "V1", header(PROOF, long + "=")
    yield "header: proof, standard alphabet", "V1", header(PROOF, "+/" + PARTS[PROOF][2:])
    yield "header: proof, four characters of no alphabet", "V1", header(PROOF, "!~*," + PARTS[PROOF])
    yield "header: proof, four newlines", "V1", header(PROOF, PARTS[PROOF] + "\n\n\n\n")
    yield "header: proof of 31 bytes", "V1", header(PROOF, b64u(RAW_PROOF[:31]))
    yield "header: proof of 65 bytes", "V1", header(PROOF, b64u(RAW_PROOF + b"x"))
    yield "header: proof of an impossible length", "V1", header(PROOF, "AAAAA")
    yield "header: proof of 9 hashes", "V1", header(PROOF, b64u(bytes(288)))
    yield "header: over 1024 bytes", "V1", header(PROOF, "A" * 1024)


def event_rows() -> Iterator[tuple[str, str, Row]]:
    """V1 and V9: subject and body."""
    stem = f"ev.local.clear.s01.{TYPE}"
    yield "subject: another slot", "V9", {"subject": stem.replace("s01", "s02")}
    yield "subject: another site", "V9", {"subject": stem.replace("local", "berlin")}
    yield "subject: another view", "V1", {"subject": stem.replace("clear", "masked")}
    yield "subject: another type", "V1", {"subject": stem.replace("created", "updated")}
    yield "subject: another version", "V1", {"subject": stem[:-1] + "2"}
    yield "subject: no version", "V1", {"subject": stem.removesuffix(".v1")}
    yield "subject: two versions", "V1", {"subject": stem + ".v0"}
    yield "subject: slot 16", "V1", {"subject": stem.replace("s01", "s16")}
    yield "subject: slot without zero", "V1", {"subject": stem.replace("s01", "s1")}
    yield "subject: slot in Arabic digits", "V1", {"subject": stem.replace("s01", "s\u0660\u0661")}
    yield "subject: upper case", "V1", {"subject": stem.replace("crm", "CRM")}
    yield "subject: another prefix", "V1", {"subject": "dlq" + stem[2:]}
    yield "subject: a wildcard", "V1", {"subject": stem.replace("contact", "*")}
    yield "subject: an empty token", "V1", {"subject": stem.replace("contact", "")}
    yield "subject: LF after", "V1", {"subject": stem + "\n"}
    yield "subject: CR LF within", "V1", {"subject": stem.replace("contact", "con\r\ntact")}
    yield "subject: statement injected", "V1", {"subject": f"{stem}\n{EVENT['msg_id']}"}
    yield "subject: empty", "V1", {"subject": ""}
    yield "body: one value changed", "V9", body(lambda f: f["data"].update(n=2))
    yield "body: an extension added", "V9", body(lambda f: f.update(sequence="9"))
    yield "body: policy revision raised", "V9", body(lambda f: f.update(policyrevision=8))
    yield "body: a space after it", "V9", {"bodyB64": b64(BODY + b" ")}
    yield "body: a newline before it", "V9", {"bodyB64": b64(b"\n" + BODY)}
    yield "body: another spelling of a letter", "V9", {"bodyB64": b64(BODY.replace(b"data", b"d\\u0061ta"))}
    yield "body: another event of the batch", "V1", {"bodyB64": b64(BATCH["events"][0]["body"].encode())}
    yield "body: another type than the subject", "V1", body(lambda f: f.update(type="crm.contact.deleted.v1"))
    yield "body: another view than the subject", "V1", body(lambda f: f.update(view="masked"))
    yield "body: another tenant", "V1", body(lambda f: f.update(tenant="umbrella"))
    for name in ("specversion", "id", "source", "type", "view", "tenant"):
        yield f"body: no {name}", "V1", body(lambda f, name=name: f.pop(name))  # type: ignore[misc]
        yield f"body: {name} is a number", "V1", body(lambda f, name=name: f.update({name: 1}))  # type: ignore[misc]
    yield "body: id empty", "V1", body(lambda f: f.update(id=""))
    yield "body: CloudEvents 0.3", "V1", body(lambda f: f.update(specversion="0.3"))
    malformed = (
        ("empty", b""), ("no JSON", b"\xff\xfe"), ("a JSON array", b"[" + BODY + b"]"), ("null", b"null"),
        ("cut off", BODY[:-1]), ("two texts", BODY + BODY), ("NaN", BODY.replace(b'"n":1', b'"n":NaN')),
        ("a byte order mark", b"\xef\xbb\xbf" + BODY), ("not UTF-8", BODY.replace("ë".encode(), b"\xeb")),
    )  # fmt: skip
    for what, raw in malformed:
        yield f"body: {what}", "V1", {"bodyB64": b64(raw)}


def trust_rows() -> Iterator[tuple[str, str, Row]]:
    """V3 to V8: key, certificate, grant, message id, times; what is just inside is accepted."""
    other = OTHER_KEY.public_key().public_bytes_raw()
    yield "key: not in the trust store", "V3", {"publicKeyB64": b64(other)}
    yield "key: the kid of another key", "V3", header(1, key_id(other))
    said = root_statement(bytes.fromhex(BATCH["root"]), 3, kid=key_id(other))
    forged = [*PARTS[:-1], b64u(OTHER_KEY.sign(pae(PAYLOAD_TYPE, said)))]
    forged[1] = key_id(other)
    yield "key: a stranger's own kid and signature", "V3", {"signature": ".".join(forged)}
    yield "certificate: begins after signing", "V4", {"notBeforeMs": SIGNED_MS + 1000}
    yield "certificate: ended before signing", "V4", {"notAfterMs": SIGNED_MS - 1000}
    yield "certificate: begins with signing", "accept", {"notBeforeMs": SIGNED_MS}
    yield "certificate: ends with signing", "accept", {"notAfterMs": SIGNED_MS}
    yield "certificate: signed long ago", "V4", header(SIGNED, 1)
    yield (
        "certificate: another workload that may publish this",
        "V9",
        {
            "spiffeId": SPIFFE_ID + "2",
            "may": [[SPIFFE_ID + "2", TYPE, SOURCE]],
        },
    )
    yield "grant: none", "V5", {"may": []}
    yield "grant: another workload's", "V5", {"may": [[SPIFFE_ID + "2", TYPE, SOURCE]]}
    yield "grant: another type", "V5", {"may": [[SPIFFE_ID, "crm.contact.updated.v1", SOURCE]]}
    yield "grant: another source", "V5", {"may": [[SPIFFE_ID, TYPE, "/crm"]]}
    yield "grant: the body claims another source", "V5", body(lambda f: f.update(source="/billing"))
    msg_id: str = EVENT["msg_id"]
    yield "message id: none", "V6", {"msgIds": []}
    yield "message id: twice", "V6", {"msgIds": [msg_id, msg_id]}
    yield "message id: unused bits set", "V6", {"msgIds": [next_char(msg_id)]}
    yield "message id: empty", "V6", {"msgIds": [""]}
    yield "message id: one character less", "V6", {"msgIds": [msg_id[:-1]]}
    yield "message id: padded", "V6", {"msgIds": [msg_id + "=="]}
    yield "message id: LF after", "V6", {"msgIds": [msg_id + "\n"]}
    yield "message id: standard alphabet", "V6", {"msgIds": ["+/" + msg_id[2:]]}
    yield "message id: another event's", "V9", {"msgIds": [BATCH["events"][0]["msg_id"]]}
    yield "time: stored 120 s after signing", "accept", {"streamMs": SIGNED_MS + 120_000}
    yield "time: stored 120.001 s after signing", "V7", {"streamMs": SIGNED_MS + 120_001}
    yield "time: stored 30 s before signing", "accept", {"streamMs": SIGNED_MS - 30_000}
    yield "time: stored 30.001 s before signing", "V7", {"streamMs": SIGNED_MS - 30_001}
    yield "revoked: from the moment of storing", "V8", {"revokedFromMs": STREAM_MS}
    yield "revoked: from the beginning", "V8", {"revokedFromMs": 0}
    yield "revoked: from the next moment", "accept", {"revokedFromMs": STREAM_MS + 1}


def signature_rows() -> Iterator[tuple[str, str, Row]]:
    """V9: proof and signature; and V3 for keys that must never be trusted."""
    root = bytes.fromhex(BATCH["root"])
    left, right = RAW_PROOF[:32], RAW_PROOF[32:]
    yield "proof: one hash less", "V9", header(PROOF, b64u(left))
    yield "proof: empty", "V9", header(PROOF, "")
    yield "proof: one hash more", "V9", header(PROOF, b64u(RAW_PROOF + left))
    yield "proof: hashes swapped", "V9", header(PROOF, b64u(right + left))
    yield "proof: one bit", "V9", header(PROOF, b64u(flip(RAW_PROOF, 40)))
    for index, size in ((0, 3), (2, 3), (1, 2), (1, 4), (2, 4), (3, 4), (1, 256), (0, 1)):
        parts = list(PARTS)
        parts[INDEX], parts[SIZE] = str(index), str(size)
        yield f"proof: as leaf {index} of {size}", "V9", {"signature": ".".join(parts)}
    yield "salt: another", "V9", header(SALT, BATCH["events"][0]["salt"])
    yield "time: one millisecond later", "V9", header(SIGNED, SIGNED_MS + 1)
    yield "time: one millisecond earlier", "V9", header(SIGNED, SIGNED_MS - 1)
    yield "signature: of another batch", "V9", header(SIGNATURE, make_event_signature(2))
    yield "signature: all zero", "V9", header(SIGNATURE, b64u(bytes(64)))
    yield "signature: one bit of R", "V9", header(SIGNATURE, b64u(flip(RAW_SIGNATURE)))
    yield "signature: one bit of S", "V9", header(SIGNATURE, b64u(flip(RAW_SIGNATURE, 32)))
    yield "signature: halves swapped", "V9", header(SIGNATURE, b64u(RAW_SIGNATURE[32:] + RAW_SIGNATURE[:32]))
    s = int.from_bytes(RAW_SIGNATURE[32:], "little")
    for k in (1, 2, 7, 14):
        again = RAW_SIGNATURE[:32] + (s + k * L).to_bytes(32, "little")
        yield f"signature: S + {k} L", "V9", header(SIGNATURE, b64u(again))
    yield "signature: L - S", "V9", header(SIGNATURE, b64u(RAW_SIGNATURE[:32] + (L - s).to_bytes(32, "little")))
    said = root_statement(root, 3)
    yield "signature: by another key", "V9", resealed(pae(PAYLOAD_TYPE, said), OTHER_KEY)
    yield "signature: without the encoding of DSSE", "V9", resealed(said)
    yield "signature: under another payload type", "V9", resealed(pae("application/vnd.mesh.trust.v1", said))
    yield "signature: over another root domain", "V9", resealed(pae(PAYLOAD_TYPE, said.replace(b"-v1", b"-v2")))
    yield "signature: without the size", "V9", resealed(pae(PAYLOAD_TYPE, said.replace(b"\n3\n", b"\n")))
    yield (
        "signature: for another workload",
        "V9",
        resealed(pae(PAYLOAD_TYPE, root_statement(root, 3, spiffe_id=SPIFFE_ID + "2"))),
    )
    yield "signature: over the bare root", "V9", resealed(root)
    alone = list(PARTS)
    alone[INDEX], alone[SIZE], alone[PROOF] = "0", "1", ""
    event = (EVENT["subject"], EVENT["msg_id"], EVENT["salt"], BODY)
    single = {
        "leaf without its prefix": sha256(statement(*event)).digest(),
        "leaf with a node's prefix": sha256(b"\x01" + statement(*event)).digest(),
        "statement of another version": leaf(statement(*event, domain="mesh-event-v2")),
        "statement without the salt": leaf(statement(event[0], event[1], "", BODY)),
        "body alone": leaf(BODY),
    }
    for what, hashed in single.items():
        alone[SIGNATURE] = b64u(KEY.sign(pae(PAYLOAD_TYPE, root_statement(hashed, 1))))
        yield f"signature: {what}", "V9", {"signature": ".".join(alone)}
    for key in small_order_keys():  # R = identity, S = 0: what OpenSSL accepts for any message under such a key
        weak = [*PARTS[:1], key_id(key), *PARTS[2:-1], b64u(b"\x01" + bytes(63))]
        yield f"weak key: {key.hex()}", "V3", {"publicKeyB64": b64(key), "signature": ".".join(weak)}


def make_event_signature(size: int) -> str:
    """The signature part of the batch of *size*."""
    return str(make_batch(size)["events"][0]["header"].rsplit(".", 1)[1])


def order_rows() -> Iterator[tuple[str, str, Row]]:
    """Where two steps fail, the lower one is named."""
    stale, denied, no_id = {"streamMs": SIGNED_MS + 200_000}, {"may": list[str]()}, {"msgIds": list[str]()}
    wrong = header(SIGNATURE, b64u(bytes(64)))
    yield "order: V1 before V2", "V1", {"signature": None, "bodyB64": b64(b"{}")}
    yield "order: V2 before V3", "V2", {"signature": None, "publicKeyB64": b64(bytes(32)), **denied}
    yield "order: V3 before V4", "V3", {**header(1, "A" * 22), "notAfterMs": SIGNED_MS - 1000}
    yield "order: V4 before V5", "V4", {"notAfterMs": SIGNED_MS - 1000, **denied}
    yield "order: V5 before V6", "V5", {**denied, **no_id}
    yield "order: V6 before V7", "V6", {**no_id, **stale}
    yield "order: V7 before V8", "V7", {**stale, "revokedFromMs": 0}
    yield "order: V8 before V9", "V8", {"revokedFromMs": 0, **wrong}


def bad_rows() -> Row:
    """The content of bad_signatures.json."""
    groups = (grammar_rows, event_rows, trust_rows, signature_rows, order_rows)
    made = [("nothing changed", "accept", Row()), *(row for group in groups for row in group())]
    rows = [{"name": name, "step": step, "code": STEPS[step], "set": changed} for name, step, changed in made]
    about = "Each row is `base` with the fields of `set` replaced, and the step and code it must be refused with."
    return {"about": f"{about} Made by make_signatures.py.", "base": BASE, "rows": rows}


def dump(content: Row) -> str:
    """JSON as committed: one row a line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            inner = ",\n".join("  " + json.dumps(item) for item in value)
            lines.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    (HERE / "signing_vectors.json").write_text(dump(vectors()))
    (HERE / "bad_signatures.json").write_text(dump(bad_rows()))
