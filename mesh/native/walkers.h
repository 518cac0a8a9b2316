/* What the compiled walkers have in common: the callables that `masking_dict`, `dropping_dict` and `item_list` of
 * `mesh.policy.walkers` return.
 *
 * A walker is called with a container and answers with the masked one, with the same where nothing changed, DROPPED, or
 * UNMET.
 */

#ifndef MESH_NATIVE_WALKERS_H
#define MESH_NATIVE_WALKERS_H

#include "nodes.h"

/* The ends of a name: of up to 16 bytes they are all of it. */
typedef struct {
    uint64_t first, last;
} Ends;

/* A member that some path names, for who looks it up by its text. */
typedef struct {
    Text name;
    Ends ends;
    Node *node;
} Named;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *names;     /* of objects: the members that some path names, and the nodes they lead to */
    Node *other;         /* of objects: where all others lead; of arrays: where the items lead */
    PyObject *otherwise; /* of arrays: what becomes of an unclassified container in them */
    Named *known;        /* what *names* has, in its order; what lives in it is held there */
    uint32_t *slots;     /* a hash table: the place in *known*, from 1; 0 is free */
    Py_ssize_t count;    /* of *known* */
    size_t mask;         /* of slots, which are a power of two */
    char classified, shows, listed, untouched;
} Walker;

extern PyTypeObject *walker_type;

/* What the walkers of each kind do. */
PyObject *masking_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords);
PyObject *dropping_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords);
PyObject *item_list_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords);

/* A walker that does what *call* does; *names*, a dict of nodes or NULL, is copied. NULL with an exception. */
Walker *walker_new(vectorcallfunc call, PyObject *names, PyObject *other, PyObject *otherwise);

/* The one argument of a walker, where it is of *type*; borrowed, or NULL with an exception. */
PyObject *walker_argument(PyObject *const *args, size_t flags, PyObject *keywords, PyTypeObject *type);

static inline Ends
ends_of(Text name)
{
    Ends ends = {0, 0};
    if (name.size >= 8) {
        memcpy(&ends.first, name.at, 8);
        memcpy(&ends.last, name.at + name.size - 8, 8);
    } else if (name.size >= 4) {
        memcpy(&ends.first, name.at, 4);
        memcpy(&ends.last, name.at + name.size - 4, 4);
    } else if (name.size) {
        ends.first = (uint64_t)(unsigned char)name.at[0] << 16 | (uint64_t)(unsigned char)name.at[name.size / 2] << 8
                     | (unsigned char)name.at[name.size - 1];
    }
    return ends;
}

/* Policies choose what is in a table, so nobody can make it slow who only sends events. */
static inline size_t
name_hash(Ends ends, Py_ssize_t size)
{
    const uint64_t mixed = ends.first ^ ends.last * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t)size;
    return (size_t)(mixed * UINT64_C(0xD6E8FEB86659FD93) >> 32);
}

/* Whether two names are the same. */
static inline int
same_name(Text one, Ends of_one, Text other, Ends of_other)
{
    return one.size == other.size && of_one.first == of_other.first && of_one.last == of_other.last
           && (one.size <= 16 || memcmp(one.at, other.at, (size_t)one.size) == 0);
}

/* The member *name* where some path names it, else NULL. */
static inline Named *
named(const Walker *walker, Text name)
{
    const Ends ends = ends_of(name);
    size_t slot = name_hash(ends, name.size) & walker->mask;
    for (; walker->slots[slot]; slot = (slot + 1) & walker->mask) {
        Named *known = &walker->known[walker->slots[slot] - 1];
        if (same_name(known->name, known->ends, name, ends)) {
            return known;
        }
    }
    return NULL;
}

#endif
