/* `batch`: the twin of `mesh.batches.batch`, the hashing and writing that sealing a batch takes. */

#include "common.h"
#include "sha256.h"

#define MAX_BATCH 256
#define MAX_LEVELS 9 /* of a tree of so many leaves, and its root */
#define SALT 16
#define ID 22 /* characters: 16 bytes in base64url */
#define STATEMENT "mesh-event-v1\n"

typedef unsigned char Hash[SHA256_BYTES];

/* A Merkle tree (RFC 9162, 2.1.1): the leaves are the first level, the root is the only node of the last. */
typedef struct {
    Hash nodes[2 * MAX_BATCH + MAX_LEVELS];
    Py_ssize_t start[MAX_LEVELS], count[MAX_LEVELS];
    int levels;
} Tree;

#define NODE_BYTES 128 /* of 0x01 and two hashes, in whole blocks */

/* What the node over *children*, two hashes that stand side by side, is the hash of; written to *to*. */
static Sha256Message
node(unsigned char to[NODE_BYTES], const unsigned char *children, unsigned char *digest)
{
    to[0] = 1;
    memcpy(to + 1, children, 2 * SHA256_BYTES);
    sha256_pad(to, 1 + 2 * SHA256_BYTES);
    return (Sha256Message){to, sha256_blocks_for(1 + 2 * SHA256_BYTES), digest};
}

static void
grow(Tree *tree, Py_ssize_t leaves)
{
    Py_ssize_t start = 0, count = leaves;
    int level = 0;
    for (;; level++) {
        tree->start[level] = start;
        tree->count[level] = count;
        if (count <= 1) {
            break;
        }
        Hash *below = &tree->nodes[start], *above = below + count;
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
        start += count;
        count = (count + 1) / 2;
    }
    tree->levels = level + 1;
}

/* The siblings on the way from leaf *at* to the root, which a proof is made of: how many bytes. */
static Py_ssize_t
put_proof(unsigned char *to, const Tree *tree, Py_ssize_t at)
{
    unsigned char *began = to;
    for (int level = 0; level < tree->levels; level++, at >>= 1) {
        if ((at ^ 1) < tree->count[level]) {
            memcpy(to, tree->nodes[tree->start[level] + (at ^ 1)], SHA256_BYTES);
            to += SHA256_BYTES;
        }
    }
    return to - began;
}

/* Whether it is what `statements.MESSAGE_ID` says: 16 bytes in the one spelling that base64url has for them. */
static int
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

/* What the leaf of one event is the hash of, in memory that the caller frees: 1, 0 where a part cannot stand in a
 * statement, or -1 with an exception. */
static int
leaf(PyObject *item, const unsigned char salt[SALT], unsigned char **message, size_t *blocks)
{
    Text subject, id;
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 3 || !PyBytes_Check(PyTuple_GET_ITEM(item, 2))) {
        PyErr_SetString(PyExc_TypeError, "an item is (subject: str, msg_id: str, body: bytes)");
        return -1;
    }
    if (PyUnicode_Check(PyTuple_GET_ITEM(item, 1)) && !PyUnicode_IS_ASCII(PyTuple_GET_ITEM(item, 1))) {
        return 0;
    }
    if (text_of(PyTuple_GET_ITEM(item, 0), &subject) < 0 || text_of(PyTuple_GET_ITEM(item, 1), &id) < 0) {
        return -1;
    }
    if (!is_message_id(&id) || memchr(subject.at, '\n', (size_t)subject.size)) {
        return 0;
    }
    PyObject *body = PyTuple_GET_ITEM(item, 2);
    const size_t size = 1 + sizeof(STATEMENT) - 1 + (size_t)subject.size + 1 + ID + 1 + ID + 1
                        + (size_t)PyBytes_GET_SIZE(body);
    *blocks = sha256_blocks_for(size);
    *message = PyMem_Malloc(*blocks * 64);
    if (*message == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    char *to = (char *)*message;
    *to++ = '\0';
    to = PUT_LITERAL(to, STATEMENT);
    to = put_bytes(to, subject.at, subject.size);
    *to++ = '\n';
    to = put_bytes(to, id.at, ID);
    *to++ = '\n';
    to = put_b64u(to, salt, SALT);
    *to++ = '\n';
    put_bytes(to, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body));
    sha256_pad(*message, size);
    return 1;
}

/* The leaves of *items*, in pairs: 1, 0 or -1 as `leaf`. */
static int
hash_leaves(PyObject *items, const unsigned char *salts, Hash *leaves)
{
    const Py_ssize_t size = PyList_GET_SIZE(items);
    int sound = 1;
    for (Py_ssize_t i = 0; sound > 0 && i < size; i += 2) {
        unsigned char *one = NULL, *other = NULL;
        size_t blocks, other_blocks;
        sound = leaf(PyList_GET_ITEM(items, i), salts + i * SALT, &one, &blocks);
        if (sound > 0 && i + 1 < size) {
            sound = leaf(PyList_GET_ITEM(items, i + 1), salts + (i + 1) * SALT, &other, &other_blocks);
        }
        if (sound > 0) {
            const Sha256Message first = {one, blocks, leaves[i]};
            const Sha256Message second = {other, other == NULL ? 0 : other_blocks, other == NULL ? NULL : leaves[i + 1]};
            sha256_two(&first, other == NULL ? NULL : &second);
        }
        PyMem_Free(one);
        PyMem_Free(other);
    }
    return sound;
}

/* What a header says between the time and the signature: `<salt>.<index>.<size>.<proof>.` */
static PyObject *
middle(const Tree *tree, Py_ssize_t index, const unsigned char salt[SALT])
{
    unsigned char proof[MAX_LEVELS * SHA256_BYTES];
    const Py_ssize_t size = put_proof(proof, tree, index);
    char text[ID + 1 + 3 + 1 + 3 + 1 + MAX_LEVELS * SHA256_BYTES * 4 / 3 + 4 + 1], *to = text;
    to = put_b64u(to, salt, SALT);
    *to++ = '.';
    to = put_number(to, index);
    *to++ = '.';
    to = put_number(to, tree->count[0]);
    *to++ = '.';
    to = put_b64u(to, proof, size);
    *to++ = '.';
    PyObject *made = PyUnicode_New(to - text, 127);
    if (made != NULL) {
        memcpy(PyUnicode_1BYTE_DATA(made), text, (size_t)(to - text));
    }
    return made;
}

/* batch(items: list, salts: bytes) -> (root, middles) | None; None where a part cannot stand in a statement. */
static PyObject *
batch(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "batch(items: list, salts: bytes)");
        return NULL;
    }
    const Py_ssize_t size = PyList_GET_SIZE(args[0]);
    const unsigned char *salts = (const unsigned char *)PyBytes_AS_STRING(args[1]);
    if (size < 1 || size > MAX_BATCH || PyBytes_GET_SIZE(args[1]) != size * SALT) {
        PyErr_Format(PyExc_ValueError, "a batch has 1 to %d events and a salt for each", MAX_BATCH);
        return NULL;
    }
    Tree tree;
    const int sound = hash_leaves(args[0], salts, tree.nodes);
    if (sound <= 0) {
        return sound < 0 ? NULL : Py_NewRef(Py_None);
    }
    grow(&tree, size);
    PyObject *middles = PyList_New(size);
    for (Py_ssize_t i = 0; middles != NULL && i < size; i++) {
        PyObject *text = middle(&tree, i, salts + i * SALT);
        if (text == NULL) {
            Py_CLEAR(middles);
        } else {
            PyList_SET_ITEM(middles, i, text);
        }
    }
    if (middles == NULL) {
        return NULL;
    }
    const Hash *root = &tree.nodes[tree.start[tree.levels - 1]];
    return Py_BuildValue("(y#N)", (const char *)*root, (Py_ssize_t)SHA256_BYTES, middles);
}

/* hash_portably(yes: bool) -> bool, for tests: as on a processor without instructions for it. Whether they are used. */
static PyObject *
hash_portably(PyObject *Py_UNUSED(module), PyObject *yes)
{
    const int portable = PyObject_IsTrue(yes);
    if (portable < 0) {
        return NULL;
    }
    sha256_choose(portable);
    return PyBool_FromLong(sha256_is_fast());
}

static PyMethodDef methods[] = {
    {"hash_portably", hash_portably, METH_O, NULL},
    {"batch", (PyCFunction)(void (*)(void))batch, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
sealing_add(PyObject *module)
{
    sha256_choose(0);
    return PyModule_AddFunctions(module, methods);
}
