/* The leaves of a sealed batch and the tree over them: as `mesh.merkle`. */

#ifndef MESH_NATIVE_MERKLE_H
#define MESH_NATIVE_MERKLE_H

#include "common.h"
#include "sha256.h"

#define MAX_BATCH 256
#define MAX_LEVELS 9 /* of a tree of so many leaves, and its root */
#define MAX_PROOF ((MAX_LEVELS - 1) * SHA256_BYTES)
#define ID 22 /* characters: 16 bytes in base64url */

typedef unsigned char Hash[SHA256_BYTES];

/* What a leaf is the hash of: see `mesh.statements.statement`. */
typedef struct {
    Text subject, id, salt, body;
} Statement;

/* A Merkle tree (RFC 9162, 2.1.1), or what is known of it from some of its leaves: neighbours, and the nodes beside the
 * ways from them to the root. The root is the only node of the last level. */
typedef struct {
    Hash nodes[2 * MAX_BATCH + 3 * MAX_LEVELS];                             /* level by level, with room before each */
    Py_ssize_t start[MAX_LEVELS], count[MAX_LEVELS], place[MAX_LEVELS]; /* the first of them here, and in its level */
    int levels;
} Tree;

/* Whether it is what `statements.MESSAGE_ID` says: 16 bytes in the one spelling that base64url has for them. */
int is_message_id(const Text *id);

/* The leaf of *one*, and of *other* where that is not NULL: 0, or -1 with an exception. */
int hash_statements(const Statement *one, unsigned char *leaf, const Statement *other, unsigned char *other_leaf);

/* Where the leaves of *tree* are written before it is grown. */
static inline Hash *
leaves_of(Tree *tree)
{
    return &tree->nodes[1];
}

/* Builds what *count* leaves lead to, the first of which stands at *place* in a tree of *size*: at least one, and
 * 0 <= place, place + count <= size <= MAX_BATCH. *first* is the proof of the first leaf, *last* of the last one; where
 * all leaves are there, both may be empty. 1, or 0 where a proof is too short. As `mesh.merkle.span`. */
int grow(Tree *tree, Py_ssize_t count, Py_ssize_t place, Py_ssize_t size, Text first, Text last);

/* The siblings on the way from the leaf at *place* to the root, which a proof is made of: how many bytes. */
Py_ssize_t put_proof(unsigned char to[MAX_PROOF], const Tree *tree, Py_ssize_t place);

static inline const unsigned char *
root_of(const Tree *tree)
{
    return tree->nodes[tree->start[tree->levels - 1]];
}

#endif
