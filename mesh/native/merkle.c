/* See merkle.h. */

#include "merkle.h"

#define STATEMENT "mesh-event-v1\n"
#define NODE_BYTES 128 /* of 0x01 and two hashes, in whole blocks */

int
is_message_id(const Text *id)
{
    if (id->size != ID) {
        return 0;
    }
    for (int i = 0; i < ID; i++) {
        char c = id->at[i];
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_')) {
            return 0;
        }
    }
    return memchr("AQgw", id->at[ID - 1], 4) != NULL;
}

/* What the leaf of *statement* is the hash of, padded, in memory that the caller frees; NULL with an exception. */
static unsigned char *
message_of(const Statement *statement, size_t *blocks)
{
    const size_t size = 1 + sizeof(STATEMENT) - 1 + (size_t)statement->subject.size + 1 + (size_t)statement->id.size + 1
                        + (size_t)statement->salt.size + 1 + (size_t)statement->body.size;
    *blocks = sha256_blocks_for(size);
    unsigned char *message = PyMem_Malloc(*blocks * 64);
    if (message == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    char *to = (char *)message;
    *to++ = '\0';
    to = PUT_LITERAL(to, STATEMENT);
    to = put_bytes(to, statement->subject.at, statement->subject.size);
    *to++ = '\n';
    to = put_bytes(to, statement->id.at, statement->id.size);
    *to++ = '\n';
    to = put_bytes(to, statement->salt.at, statement->salt.size);
    *to++ = '\n';
    put_bytes(to, statement->body.at, statement->body.size);
    sha256_pad(message, size);
    return message;
}

int
hash_statements(const Statement *one, unsigned char *leaf, const Statement *other, unsigned char *other_leaf)
{
    size_t blocks, other_blocks = 0;
    unsigned char *message = message_of(one, &blocks), *other_message = NULL;
    if (message != NULL && other != NULL) {
        other_message = message_of(other, &other_blocks);
    }
    const int made = message != NULL && (other == NULL || other_message != NULL);
    if (made) {
        const Sha256Message first = {message, blocks, leaf}, second = {other_message, other_blocks, other_leaf};
        sha256_two(&first, other == NULL ? NULL : &second);
    }
    PyMem_Free(message);
    PyMem_Free(other_message);
    return made ? 0 : -1;
}

/* What the node over *children*, two hashes that stand side by side, is the hash of; written to *to*. */
static Sha256Message
node(unsigned char to[NODE_BYTES], const unsigned char *children, unsigned char *digest)
{
    to[0] = 1;
    memcpy(to + 1, children, 2 * SHA256_BYTES);
    sha256_pad(to, 1 + 2 * SHA256_BYTES);
    return (Sha256Message){to, sha256_blocks_for(1 + 2 * SHA256_BYTES), digest};
}

/* The level *above*, of *count* nodes *below*. */
static void
hash_level(const Hash *below, Py_ssize_t count, Hash *above)
{
    for (Py_ssize_t i = 0; i < count / 2; i += 2) {
        unsigned char one[NODE_BYTES], other[NODE_BYTES];
        const Sha256Message first = node(one, below[2 * i], above[i]);
        if (i + 1 < count / 2) {
            const Sha256Message second = node(other, below[2 * i + 2], above[i + 1]);
            sha256_two(&first, &second);
        } else {
            sha256_two(&first, NULL);
        }
    }
    if (count % 2) {
        memcpy(above[count / 2], below[count - 1], SHA256_BYTES); /* the last of an odd level moves up alone */
    }
}

/* Goes on by one hash in *proof*, which is written to *to* where that is not NULL: 1, or 0 where there is none to write. */
static int
take(Text *proof, unsigned char *to)
{
    const Py_ssize_t size = proof->size < SHA256_BYTES ? proof->size : SHA256_BYTES;
    if (to != NULL) {
        if (size < SHA256_BYTES) {
            return 0;
        }
        memcpy(to, proof->at, SHA256_BYTES);
    }
    proof->at += size;
    proof->size -= size;
    return 1;
}

int
grow(Tree *tree, Py_ssize_t count, Py_ssize_t place, Py_ssize_t size, Text first, Text last)
{
    Py_ssize_t start = 1;
    int level = 0;
    for (; size > 1; level++, place /= 2, size = (size + 1) / 2) {
        const Py_ssize_t end = place + count - 1;
        const int before = place % 2 != 0, behind = end % 2 == 0 && end + 1 < size;
        if ((before || place + 1 < size) && !take(&first, before ? tree->nodes[start - 1] : NULL)) {
            return 0;
        }
        if ((end % 2 || behind) && !take(&last, behind ? tree->nodes[start + count] : NULL)) {
            return 0;
        }
        start -= before;
        count += before + behind;
        tree->start[level] = start;
        tree->count[level] = count;
        tree->place[level] = place - before;
        hash_level(&tree->nodes[start], count, &tree->nodes[start + count + 1]);
        start += count + 1;
        count = (count + 1) / 2;
    }
    tree->start[level] = start;
    tree->count[level] = 1;
    tree->place[level] = 0;
    tree->levels = level + 1;
    return 1;
}

Py_ssize_t
put_proof(unsigned char to[MAX_PROOF], const Tree *tree, Py_ssize_t place)
{
    unsigned char *began = to;
    for (int level = 0; level < tree->levels - 1; level++, place /= 2) {
        const Py_ssize_t sibling = (place ^ 1) - tree->place[level];
        if (sibling < tree->count[level]) {
            memcpy(to, tree->nodes[tree->start[level] + sibling], SHA256_BYTES);
            to += SHA256_BYTES;
        }
    }
    return to - began;
}
