/* The loop over the fields of an event: the twin of `shown` of `mesh.policy.walkers`. */

#include "nodes.h"

/* What becomes of one field: 0, or -1 with an exception. *how* is what `shown` has as its last two arguments. */
static int
show(PyObject *out, PyObject *name, PyObject *value, PyObject *top, Node *elsewhere, PyObject *const *how)
{
    PyObject *found = PyDict_GetItemWithError(top, name), *masked;
    if (found == Py_None) {
        return 0; /* an attribute that no policy masks */
    }
    if (found == NULL ? PyErr_Occurred() != NULL : !Py_IS_TYPE(found, node_type)) {
        if (found != NULL) {
            PyErr_SetString(PyExc_TypeError, "top is a dict of nodes and None");
        }
        return -1;
    }
    Node *node = found == NULL ? elsewhere : (Node *)found;
    const Kind kind = kind_of(value);
    if (kind == SCALAR) {
        masked = act_on(node->act, value);
    } else if (kind == OTHER) {
        masked = Py_NewRef(Py_None); /* no JSON value */
    } else if ((masked = enter(node, value, kind)) == unmet) {
        Py_DECREF(masked);
        masked = act_on(how[0], value);
    }
    if (masked != NULL && masked != value) {
        PyObject *done = PyObject_CallFunctionObjArgs(how[1], name, masked, out, NULL);
        Py_DECREF(masked);
        masked = done;
    }
    Py_XDECREF(masked);
    return masked == NULL ? -1 : 0;
}

/* shown(fields, top, elsewhere, otherwise, put) -> dict */
static PyObject *
shown(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyDict_CheckExact(args[0]) || !PyDict_CheckExact(args[1]) || !Py_IS_TYPE(args[2], node_type)) {
        PyErr_SetString(PyExc_TypeError, "shown(fields: dict, top: dict, elsewhere: Node, otherwise, put)");
        return NULL;
    }
    PyObject *fields = args[0], *top = args[1], *name, *value;
    PyObject *out = PyDict_Copy(fields);
    Py_ssize_t size = PyDict_GET_SIZE(fields), at = 0;
    int more = 0; /* as `next_member` says */
    while (out != NULL && (more = next_member(fields, size, &at, &name, &value)) > 0) {
        more = show(out, name, value, top, (Node *)args[2], args + 3);
        let_go(name, value);
        if (more < 0) {
            break;
        }
    }
    if (more < 0) {
        Py_CLEAR(out);
    }
    return out;
}

static PyMethodDef methods[] = {
    {"shown", (PyCFunction)(void (*)(void))shown, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
masking_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
