/* A place in an event, as the compiled walkers see it: the twin of `mesh.policy.walkers.Node`, and what becomes of a
 * value at such a place.
 *
 * Nothing here changes a container that it was given, and an object that a mask makes is owned while it is used.
 */

#ifndef MESH_NATIVE_NODES_H
#define MESH_NATIVE_NODES_H

#include "common.h"

extern PyObject *dropped;  /* the object that says: the member is not there */
extern PyObject *unmet;    /* the one that says: nothing classified was found */
extern PyObject *as_it_is; /* the walker that changes nothing */

/* What a value is to a walker: the types of JSON, exactly; a subclass is none of them. */
typedef enum { SCALAR, OBJECT, ARRAY, OTHER } Kind;

static inline Kind
kind_of(PyObject *value)
{
    if (PyUnicode_CheckExact(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyBool_Check(value)
        || value == Py_None) {
        return SCALAR;
    }
    return PyDict_CheckExact(value) ? OBJECT : PyList_CheckExact(value) ? ARRAY : OTHER;
}

typedef struct {
    PyObject_HEAD
    PyObject *places, *act, *on_dict, *on_list;
    char classified;
} Node;

extern PyTypeObject *node_type;

/* The walker of *node* for *value*, which is a container; called: a new reference. */
static inline PyObject *
enter(Node *node, PyObject *value, Kind kind)
{
    PyObject *walker = Py_XNewRef(kind == OBJECT ? node->on_dict : node->on_list); /* the call may replace it */
    if (walker == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a node without on_dict or on_list");
        return NULL;
    }
    PyObject *masked = PyObject_CallOneArg(walker, value);
    Py_DECREF(walker);
    return masked;
}

static inline PyObject *
act_on(PyObject *act, PyObject *value)
{
    if (act == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a node without act");
        return NULL;
    }
    if (act == Py_None) {
        return Py_NewRef(value);
    }
    Py_INCREF(act); /* the call may replace it */
    PyObject *masked = PyObject_CallOneArg(act, value);
    Py_DECREF(act);
    return masked;
}

/* The next member of *value*, both parts held: a mask may be Python, and let go of what it came from. 1, or 0 at the end,
 * or -1 with an exception where a mask has made the object larger or smaller. */
static inline int
next_member(PyObject *value, Py_ssize_t size, Py_ssize_t *at, PyObject **name, PyObject **item)
{
    if (PyDict_GET_SIZE(value) != size) {
        PyErr_SetString(PyExc_RuntimeError, "dictionary changed size during iteration");
        return -1;
    }
    if (!PyDict_Next(value, at, name, item)) {
        return 0;
    }
    Py_INCREF(*name);
    Py_INCREF(*item);
    return 1;
}

static inline void
let_go(PyObject *name, PyObject *item)
{
    Py_DECREF(name);
    Py_DECREF(item);
}

#endif
