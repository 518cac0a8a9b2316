/* An event on its way into a stream, as the compiled loops see it: the twin of `mesh.jetstream.outgoing.Outgoing`. */

#ifndef MESH_NATIVE_OUTGOING_H
#define MESH_NATIVE_OUTGOING_H

#include "common.h"
#include <limits.h>

typedef struct {
    PyObject_HEAD
    PyObject *subject, *stream, *body, *source, *event_id, *traceparent, *base_id, *view, *type, *route;
    PyObject *on_done, *together, *origin, *msg_id, *kids, *signature;
    long long generation, first_signed_ms, signed_ms, token, order, sends, place;
    double sent_at, give_up_at;
    char done;
} Outgoing;

extern PyTypeObject *outgoing_type;
extern PyObject *empty_text; /* what there is not yet */

/* A new one, of which all else is what it is by default; NULL with an exception. What is given is held by it. */
PyObject *outgoing_of(PyObject *subject, PyObject *stream, PyObject *body, PyObject *source, PyObject *event_id,
                      PyObject *traceparent, PyObject *base_id, PyObject *view, PyObject *type);

/* Item *at* of *items*, a list of them, which may have changed; NULL with an exception where there is none. Borrowed. */
static inline Outgoing *
outgoing_at(PyObject *items, Py_ssize_t at)
{
    PyObject *item = at < PyList_GET_SIZE(items) ? PyList_GET_ITEM(items, at) : NULL;
    if (item == NULL || !Py_IS_TYPE(item, outgoing_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a list of Outgoing");
        return NULL;
    }
    return (Outgoing *)item;
}

/* Adds one to *number*: 0, or -1 with an exception where it is the last of 64 bits. Python alone would go on. */
static inline int
count_up(long long *number)
{
    if (*number == LLONG_MAX) {
        PyErr_SetString(PyExc_OverflowError, "no number behind this one in 64 bits");
        return -1;
    }
    ++*number;
    return 0;
}

#endif
