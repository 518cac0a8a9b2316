"""The Merkle tree under a sealed batch: one signature over the root, one short proof per event.

Hashing and tree shape are those of RFC 9162, section 2.1: leaves and nodes have different prefixes, so that no node
passes for an event, and the last node of an odd level moves up alone, so that no two batches share a root.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HASH_BYTES = 32
_LEAF = sha256(b"\x00")  # RFC 9162 2.1.1: 0x00 before a leaf's input, 0x01 before two children
_NODE = sha256(b"\x01")  # states after one byte: copying one is a fifth cheaper than starting anew


def leaf_hash(statement: bytes) -> bytes:
    """SHA-256(0x00 || statement), 32 bytes."""
    state = _LEAF.copy()
    state.update(statement)
    return state.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    state = _NODE.copy()
    state.update(left + right)
    return state.digest()


def leaf_hashes(statements: Iterable[bytes]) -> list[bytes]:
    """`leaf_hash` of each of *statements*."""
    leaves, start = [], _LEAF.copy
    for statement in statements:
        state = start()
        state.update(statement)
        leaves.append(state.digest())
    return leaves


def tree(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Build the tree over *leaves*.

    Args:
        leaves: At least one leaf hash of 32 bytes, in order.

    Returns:
        The root, and for each leaf its inclusion proof: the sibling hashes from the leaf up, joined.

    Source: RFC 9162, 2.1.1 and 2.1.3.1.
    """
    if not leaves:
        raise ValueError("a tree needs at least one leaf")
    levels = [list(leaves)]
    start = _NODE.copy
    while len(below := levels[-1]) > 1:
        level = []
        for i in range(0, len(below) - 1, 2):  # as `node_hash`
            state = start()
            state.update(below[i] + below[i + 1])
            level.append(state.digest())
        if len(below) % 2:
            level.append(below[-1])
        levels.append(level)
    root = levels.pop()[0]
    proofs = [b""]
    for level in reversed(levels):  # from the top down, so that siblings share the work for their parent
        count = len(level)
        proofs = [level[i ^ 1] + proofs[i >> 1] if i ^ 1 < count else proofs[i >> 1] for i in range(count)]
    return root, proofs


def span(leaves: Sequence[bytes], start: int, size: int, first: bytes, last: bytes) -> tuple[bytes, list[bytes]]:
    """What a tree is, as far as neighbours among its leaves say so: `tree`, where some of the leaves are not known.

    Args:
        leaves: At least one leaf hash, in order.
        start: Index of the first of them.
        size: Of the tree.
        first: The proof of the first leaf, which has every hash that is needed to the left.
        last: The proof of the last one, which has those to the right.

    Returns:
        The root that the leaves and these proofs lead to, and the proof of each leaf that leads there. Where a hash in
        a proof is wrong, that is a root nobody signed.

    Raises:
        ValueError: A proof is too short. Whoever signs a root could have one lead there: by nobody else's reckoning.
    """
    level, at, width, proofs = list(leaves), start, size, [b""]
    levels: list[tuple[int, list[bytes]]] = []  # and how many nodes each has in front that are not above our leaves
    while width > 1:
        if at & 1 or at + 1 < width:
            sibling, first = first[:HASH_BYTES], first[HASH_BYTES:]
        end = at + len(level) - 1
        if end & 1 or end + 1 < width:
            if not end & 1:
                level.append(_whole(last[:HASH_BYTES]))
            last = last[HASH_BYTES:]
        if at & 1:
            level.insert(0, _whole(sibling))
        levels.append((at & 1, level))
        below, level = level, [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        if len(below) % 2:
            level.append(below[-1])  # the last of an odd level moves up alone
        at, width = at >> 1, (width + 1) >> 1
    for before, below in reversed(levels):
        count = len(below)
        proofs = [
            below[i ^ 1] + proofs[i >> 1] if i ^ 1 < count else proofs[i >> 1]  # siblings share what is above them
            for i in range(before, count)
        ]
    return level[0], proofs[: len(leaves)]


def _whole(node: bytes) -> bytes:
    if len(node) != HASH_BYTES:
        raise ValueError("a proof that is too short")
    return node


class Climber:
    """`root_from_proof` for leaves that come in order: it stops where the last path of the same tree is met.

    Two paths meet under one parent, where the node of each is the sibling in the proof of the other. The root is a
    function of that pair, its place and the rest of the proof alone. Where all three are those of the last path, it is
    therefore the last root, whoever made either proof. A batch in order takes one hash an event instead of one for each
    level: half of the leaves were in the proof before, and are only compared.
    """

    __slots__ = ("_index", "_path", "_proof", "_root", "_size")

    def __init__(self) -> None:
        self._index = self._size = 0
        self._path: list[tuple[bytes, int]] = []  # from the leaf up: each node, and the bytes of proof left there
        self._proof = b""
        self._root: bytes | None = None

    def root(self, leaf: bytes, index: int, size: int, proof: bytes) -> bytes | None:
        """The same as `root_from_proof`, for the same arguments."""
        if not 0 <= index < size:
            return None
        meeting = (index ^ self._index).bit_length() - 1 if size == self._size else -1
        node, place, width, left, start = leaf, index, size, len(proof), _NODE.copy
        path = [(node, left)]
        for level in range((size - 1).bit_length()):
            if place & 1 or place + 1 < width:
                at = len(proof) - left
                sibling = proof[at : at + HASH_BYTES]
                met = level == meeting and self._path[level] == (sibling, left)
                if met and self._ends(node + proof[at + HASH_BYTES :], left):
                    self._path[: level + 1] = path
                    self._index, self._proof = index, proof
                    return self._root
                state = start()
                state.update(sibling + node if place & 1 else node + sibling)
                node = state.digest()
                left -= HASH_BYTES
            place >>= 1
            width = (width + 1) >> 1
            path.append((node, left))
        root = node if left == 0 else None
        self._index, self._size, self._path, self._proof, self._root = index, size, path, proof, root
        return root

    def _ends(self, rest: bytes, left: int) -> bool:
        """Whether the last *left* bytes of the last proof are *rest*; there are none where *left* is below 0."""
        proof = self._proof
        return left >= 0 and proof[len(proof) - left :] == rest


def root_from_proof(leaf: bytes, index: int, size: int, proof: bytes) -> bytes | None:
    """The root that *proof* leads to from *leaf*, or None when a proof of that length cannot belong there.

    Args:
        leaf: Leaf hash, 32 bytes.
        index: Of the leaf, from 0.
        size: Number of leaves. It decides the shape, so whoever compares the root must know it from a signature.
        proof: Sibling hashes of 32 bytes, joined.

    Source: RFC 9162, 2.1.3.2, written level by level.
    """
    if not 0 <= index < size:
        return None
    node, at, start = leaf, 0, _NODE.copy
    while size > 1:
        if index & 1 or index + 1 < size:
            sibling = proof[at : at + HASH_BYTES]
            state = start()
            state.update(sibling + node if index & 1 else node + sibling)
            node = state.digest()
            at += HASH_BYTES
        index >>= 1
        size = (size + 1) >> 1
    return node if at == len(proof) else None  # equal only if every sibling was there, whole
