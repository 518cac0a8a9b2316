/* What the compiled walkers have in common: the callables that `masking_dict`, `dropping_dict` and `item_list` of
 * `mesh.policy.walkers` return.
 *
 * A walker is called with a container and answers with the masked one, with the same where nothing changed, DROPPED, or
 * UNMET.
 */

#ifndef MESH_NATIVE_WALKERS_H
#define MESH_NATIVE_WALKERS_H

#include "nodes.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *names;     /* of objects: the members that some path names, and the nodes they lead to */
    Node *other;         /* of objects: where all others lead; of arrays: where the items lead */
    PyObject *otherwise; /* of arrays: what becomes of an unclassified container in them */
    char classified, shows, listed, untouched;
} Walker;

/* A walker that does what *call* does; *names*, a dict of nodes or NULL, is copied. NULL with an exception. */
Walker *walker_new(vectorcallfunc call, PyObject *names, PyObject *other, PyObject *otherwise);

/* The one argument of a walker, where it is of *type*; borrowed, or NULL with an exception. */
PyObject *walker_argument(PyObject *const *args, size_t flags, PyObject *keywords, PyTypeObject *type);

#endif
