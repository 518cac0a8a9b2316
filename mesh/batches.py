"""What is hashed and written when a batch is sealed, but for its signature: leaves, tree and proofs."""

from __future__ import annotations

from mesh import native
from mesh.base64url import b64u_all
from mesh.merkle import leaf_hashes, tree
from mesh.statements import MESSAGE_IDS, SALT_BYTES, STATEMENT


@native.twin
def batch(items: list[tuple[str, str, bytes]], salts: bytes) -> tuple[bytes, list[str]] | None:
    """The tree over a batch.

    Args:
        items: (subject, msg_id, body) of each event, 1 to MAX_BATCH.
        salts: SALT_BYTES for each, joined.

    Returns:
        The root, and for each item what its header says of its place: `<salt>.<index>.<size>.<proof>.` None where a
        part could not stand in a statement.
    """
    size, subjects = len(items), {item[0] for item in items}
    ids = "\n".join([item[1] for item in items]) + "\n"
    sound = ids.count("\n") == size and MESSAGE_IDS.fullmatch(ids) is not None
    if not sound or any("\n" in subject for subject in subjects):
        return None
    texts = b64u_all([salts[i : i + SALT_BYTES] for i in range(0, len(salts), SALT_BYTES)])
    root, proofs = tree(
        leaf_hashes(
            [  # as `statement`, without a call for each
                f"{STATEMENT}{subject}\n{msg_id}\n{text}\n".encode() + body
                for (subject, msg_id, body), text in zip(items, texts, strict=True)
            ]
        )
    )
    parts = enumerate(zip(texts, b64u_all(proofs), strict=True))
    return root, [f"{text}.{i}.{size}.{proof}." for i, (text, proof) in parts]
