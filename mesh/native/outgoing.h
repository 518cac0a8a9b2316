/* An event on its way into a stream, as the compiled loops see it: the twin of `mesh.jetstream.outgoing.Outgoing`. */

#ifndef MESH_NATIVE_OUTGOING_H
#define MESH_NATIVE_OUTGOING_H

#include "common.h"

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

#endif
