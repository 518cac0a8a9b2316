/* `Keyed`: the twin of `mesh.keyed.Keyed`, BLAKE2b under one key (RFC 7693).
 *
 * An event takes three or four of them: ids, slots, pseudonyms. hashlib's is as quick at hashing; what it takes for each
 * is three calls and three objects.
 */

#include "keyed.h"
#include <structmember.h>

PyTypeObject *keyed_type;

#define BLOCK 128
#define MAX_DIGEST 64
#define MAX_KEY 64
#define PERSON 16

static const uint64_t IV[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const unsigned char SIGMA[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

typedef struct {
    PyObject_HEAD
    uint64_t begun[8];          /* the parameters alone */
    uint64_t keyed[8];          /* and the block of the key, where there is one */
    unsigned char key[BLOCK];   /* padded */
    Py_ssize_t key_size, digest_size;
} Keyed;

static inline uint64_t
read_word(const unsigned char *at)
{
    return (uint64_t)at[0] | (uint64_t)at[1] << 8 | (uint64_t)at[2] << 16 | (uint64_t)at[3] << 24 | (uint64_t)at[4] << 32
           | (uint64_t)at[5] << 40 | (uint64_t)at[6] << 48 | (uint64_t)at[7] << 56;
}

static inline uint64_t
turned(uint64_t word, int bits)
{
    return word >> bits | word << (64 - bits);
}

#define MIX(a, b, c, d, x, y)               \
    v[a] += v[b] + (x);                     \
    v[d] = turned(v[d] ^ v[a], 32);         \
    v[c] += v[d];                           \
    v[b] = turned(v[b] ^ v[c], 24);         \
    v[a] += v[b] + (y);                     \
    v[d] = turned(v[d] ^ v[a], 16);         \
    v[c] += v[d];                           \
    v[b] = turned(v[b] ^ v[c], 63)

/* RFC 7693, 3.2: *taken* bytes so far, with those of *block*. */
static void
compress(uint64_t state[8], const unsigned char block[BLOCK], uint64_t taken, int last)
{
    uint64_t v[16], words[16];
    for (int i = 0; i < 16; i++) {
        words[i] = read_word(block + 8 * i);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = state[i];
        v[i + 8] = IV[i];
    }
    v[12] ^= taken;
    v[14] ^= last ? ~(uint64_t)0 : 0;
#pragma GCC unroll 12
    for (int round = 0; round < 12; round++) {
        const unsigned char *s = SIGMA[round];
        MIX(0, 4, 8, 12, words[s[0]], words[s[1]]);
        MIX(1, 5, 9, 13, words[s[2]], words[s[3]]);
        MIX(2, 6, 10, 14, words[s[4]], words[s[5]]);
        MIX(3, 7, 11, 15, words[s[6]], words[s[7]]);
        MIX(0, 5, 10, 15, words[s[8]], words[s[9]]);
        MIX(1, 6, 11, 12, words[s[10]], words[s[11]]);
        MIX(2, 7, 8, 13, words[s[12]], words[s[13]]);
        MIX(3, 4, 9, 14, words[s[14]], words[s[15]]);
    }
    for (int i = 0; i < 8; i++) {
        state[i] ^= v[i] ^ v[i + 8];
    }
}

/* A text on its way through the hash. */
typedef struct {
    uint64_t state[8], taken;
    unsigned char block[BLOCK];
    Py_ssize_t held; /* bytes in `block`; the last block is never compressed before the end is known */
} Run;

static void
begin(Run *run, const Keyed *self)
{
    memcpy(run->state, self->begun, sizeof(run->state));
    run->taken = 0;
    run->held = 0;
    if (self->key_size) { /* the first block, and the last one where nothing follows */
        memcpy(run->block, self->key, BLOCK);
        run->held = BLOCK;
    }
}

static void
take(Run *run, const Keyed *self, const char *data, Py_ssize_t size)
{
    while (size) {
        if (run->held == BLOCK) {
            run->taken += BLOCK;
            if (run->taken == BLOCK && self->key_size) {
                memcpy(run->state, self->keyed, sizeof(run->state)); /* the block of the key, compressed before */
            } else {
                compress(run->state, run->block, run->taken, 0);
            }
            run->held = 0;
        }
        const Py_ssize_t fits = size < BLOCK - run->held ? size : BLOCK - run->held;
        memcpy(run->block + run->held, data, (size_t)fits);
        run->held += fits;
        data += fits;
        size -= fits;
    }
}

static void
end(Run *run, const Keyed *self, unsigned char digest[MAX_DIGEST])
{
    memset(run->block + run->held, 0, (size_t)(BLOCK - run->held));
    compress(run->state, run->block, run->taken + (uint64_t)run->held, 1);
    for (Py_ssize_t i = 0; i < self->digest_size; i++) {
        digest[i] = (unsigned char)(run->state[i / 8] >> 8 * (i % 8));
    }
}

/* Keyed(key: bytes, size: int, person: bytes = b"") */
static PyObject *
keyed_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"key", "size", "person", NULL};
    const char *key, *person = "";
    Py_ssize_t key_size, person_size = 0, size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#n|y#:Keyed", keywords, &key, &key_size, &size, &person,
                                     &person_size)) {
        return NULL;
    }
    if (key_size > MAX_KEY || size < 1 || size > MAX_DIGEST || person_size > PERSON) {
        PyErr_SetString(PyExc_ValueError, "BLAKE2b has a key of at most 64 bytes, a digest of 1 to 64, a person of 16");
        return NULL;
    }
    Keyed *self = (Keyed *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    unsigned char padded[PERSON] = {0};
    memcpy(padded, person, (size_t)person_size);
    memcpy(self->key, key, (size_t)key_size);
    self->key_size = key_size;
    self->digest_size = size;
    memcpy(self->begun, IV, sizeof(IV));
    self->begun[0] ^= 0x01010000ULL ^ (uint64_t)key_size << 8 ^ (uint64_t)size; /* fanout 1, depth 1 */
    self->begun[6] ^= read_word(padded);
    self->begun[7] ^= read_word(padded + 8);
    memcpy(self->keyed, self->begun, sizeof(self->begun));
    if (key_size) {
        compress(self->keyed, self->key, BLOCK, 0);
    }
    return (PyObject *)self;
}

static void
keyed_dealloc(Keyed *self)
{
    PyTypeObject *type = Py_TYPE(self);
    wipe(self->key, sizeof(self->key));
    wipe(self->keyed, sizeof(self->keyed));
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Hash *count* texts, a newline between them: 0, or -1 with an exception. */
static int
hash_lines(const Keyed *self, PyObject *const *lines, Py_ssize_t count, unsigned char digest[MAX_DIGEST])
{
    Run run;
    Text text;
    begin(&run, self);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (text_of(lines[i], &text) < 0) {
            return -1;
        }
        if (i) {
            take(&run, self, "\n", 1);
        }
        take(&run, self, text.at, text.size);
    }
    end(&run, self, digest);
    return 0;
}

static PyObject *
keyed_digest(Keyed *self, PyObject *text)
{
    unsigned char digest[MAX_DIGEST];
    if (hash_lines(self, &text, 1, digest) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)digest, self->digest_size);
}

int
keyed_first_byte(PyObject *self, PyObject *text)
{
    unsigned char digest[MAX_DIGEST];
    return hash_lines((Keyed *)self, &text, 1, digest) < 0 ? -1 : digest[0];
}

PyObject *
keyed_token(PyObject *object, PyObject *const *lines, Py_ssize_t count)
{
    const Keyed *self = (Keyed *)object;
    unsigned char digest[MAX_DIGEST];
    if (hash_lines(self, lines, count, digest) < 0) {
        return NULL;
    }
    PyObject *made = PyUnicode_New(b64u_size(self->digest_size), 127);
    if (made != NULL) {
        put_b64u((char *)PyUnicode_1BYTE_DATA(made), digest, self->digest_size);
    }
    return made;
}

static PyMethodDef keyed_methods[] = {
    {"digest", (PyCFunction)keyed_digest, METH_O, NULL},
    {"token", (PyCFunction)(void (*)(void))keyed_token, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot keyed_slots[] = {
    {Py_tp_new, (void *)keyed_new},
    {Py_tp_dealloc, (void *)keyed_dealloc},
    {Py_tp_methods, keyed_methods},
    {0, NULL},
};

static PyType_Spec keyed_spec = {
    .name = "mesh.native._compiled.Keyed",
    .basicsize = sizeof(Keyed),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = keyed_slots,
};

int
keyed_add(PyObject *module)
{
    keyed_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &keyed_spec, NULL);
    return keyed_type == NULL ? -1 : PyModule_AddType(module, keyed_type);
}
