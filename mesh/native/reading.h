/* What `text_from_structured` of `mesh.event` is made of; each is in the part that has the twin of its own. */

#ifndef MESH_NATIVE_READING_H
#define MESH_NATIVE_READING_H

#include "common.h"

/* --- verbatim.c ----------------------------------------------------------------------------------------------------- */

#define MAX_MEMBERS 256 /* of one object of a sure text */

/* What `verbatim` gives, None too: a new reference, or NULL with an exception. Where that is *body* itself and *names* is
 * not NULL, that gets the names of its own members, in their order, and *count* how many there are.
 */
PyObject *verbatim_text(PyObject *body, long depth, Text names[MAX_MEMBERS], int *count);

/* --- glimpse.c ------------------------------------------------------------------------------------------------------ */

enum { NAME_SLOTS = 256, MAX_KNOWN = 16 };

/* A name that most events have. */
typedef struct {
    PyObject *name, *value; /* the last value, of those that repeat */
    int repeats;
    Py_ssize_t size; /* of the name; 0 where there is none */
    char text[MAX_KNOWN], mask[MAX_KNOWN]; /* the name, and all bits of its bytes */
} Known;

/* A slot each, which its first letters and its length choose. */
extern Known glimpse_known[NAME_SLOTS];

static inline unsigned
name_slot(const char *at, Py_ssize_t size)
{
    return ((unsigned char)at[0] * 5u + (unsigned char)at[1] * 4u + (unsigned)size) % NAME_SLOTS;
}

/* The slot of a name that most events have, or -1; *end* is of the text that it stands in. */
static inline int
glimpse_slot(const Text *name, const char *end)
{
    const unsigned slot = name_slot(name->at, name->size);
    const Known *known = glimpse_known + slot;
    if (known->size != name->size || name->size == 0) {
        return -1;
    }
    if (end - name->at < MAX_KNOWN) {
        return memcmp(known->text, name->at, (size_t)name->size) == 0 ? (int)slot : -1;
    }
    uint64_t some[2], text[2], mask[2]; /* at once, and what is behind the name does not count */
    memcpy(some, name->at, MAX_KNOWN);
    memcpy(text, known->text, MAX_KNOWN);
    memcpy(mask, known->mask, MAX_KNOWN);
    return (((some[0] ^ text[0]) & mask[0]) | ((some[1] ^ text[1]) & mask[1])) == 0 ? (int)slot : -1;
}

/* The value of the member *name*, all of it: a new reference, or NULL with an exception. */
PyObject *glimpse_value(int slot, const Text *name, const char *end);

/* Of the value of the member *name*, which is data, what is wanted: a new reference, or NULL with an exception. */
PyObject *glimpse_data(const Text *name, const char *end, PyObject *wanted);

/* --- accepting.c ---------------------------------------------------------------------------------------------------- */

enum {
    EXTENSION, SPECVERSION, ID, SOURCE, TYPE, TIME, CONTENT, SUBJECT, CORRELATION, CAUSATION, PARTITION, SCHEMA, PARENT,
    STATE, DATA, NEVER,
};

/* Which of these a name is, an EXTENSION where it is none of the others; -1 with an exception. */
int attribute_kind(PyObject *name);

/* Whether an attribute is surely fine: 1 or 0, or -1 with an exception. */
int attribute_is_fine(int kind, PyObject *name, PyObject *value, PyObject *sources, PyObject *types);

/* Whether an event is surely fine that has these kinds of attributes, each of which is; *seen* has a bit for each. */
int attributes_are_fine(unsigned seen);

#endif
