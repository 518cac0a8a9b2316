/* The loops over the members of an object: the twins of `masking_dict` and `dropping_dict` of `mesh.policy.walkers`. */

#include "walkers.h"

/* Put *masked*, which is taken, in the place of *name* in *out*: 0, or -1 with an exception. */
static int
replace(PyObject *out, PyObject *name, PyObject *masked)
{
    int done = masked == dropped ? PyDict_DelItem(out, name) : PyDict_SetItem(out, name, masked);
    Py_DECREF(masked);
    return done;
}

/* What becomes of one member under `masking_dict`: a new reference, *item* itself where it stays. *met* is set where
 * something classified was found. */
static PyObject *
masked_member(Walker *self, PyObject *name, PyObject *item, int *met)
{
    Node *node = (Node *)PyDict_GetItemWithError(self->names, name);
    if (node == NULL) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        node = self->other;
    }
    *met |= node->classified;
    const Kind kind = kind_of(item);
    if (kind == SCALAR) {
        return act_on(node->act, item);
    }
    if (kind == OTHER) {
        return Py_NewRef(Py_None); /* no JSON value */
    }
    PyObject *masked = enter(node, item, kind);
    if (masked != unmet) {
        *met = 1;
        return masked;
    }
    Py_DECREF(masked);
    return Py_NewRef(self->shows ? item : Py_None);
}

PyObject *
masking_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = walker_argument(args, flags, keywords, &PyDict_Type), *out = NULL, *name, *item;
    if (value == NULL || Py_EnterRecursiveCall(" while masking an object")) {
        return NULL;
    }
    const Py_ssize_t size = PyDict_GET_SIZE(value);
    int met = self->classified || (self->other->classified && size > 0), more;
    Py_ssize_t at = 0;
    while ((more = next_member(value, size, &at, &name, &item)) > 0) {
        PyObject *masked = masked_member(self, name, item, &met);
        if (masked == item) {
            Py_DECREF(masked);
        } else if (masked == NULL || (out == NULL && (out = PyDict_Copy(value)) == NULL)) {
            Py_XDECREF(masked);
            more = -1;
        } else if (replace(out, name, masked) < 0) {
            more = -1;
        }
        let_go(name, item);
        if (more < 0) {
            break;
        }
    }
    Py_LeaveRecursiveCall();
    if (more < 0 || !met) {
        Py_XDECREF(out);
        return more < 0 ? NULL : Py_NewRef(unmet);
    }
    return out == NULL ? Py_NewRef(value) : out;
}

/* What is kept of one member under `otherwise: drop`: 0, or -1 with an exception. */
static int
keep_member(PyObject *out, PyObject *name, PyObject *item, Node *node)
{
    const Kind kind = kind_of(item);
    PyObject *masked;
    if (kind == OBJECT || kind == ARRAY) {
        masked = enter(node, item, kind);
    } else {
        masked = kind == OTHER && node->act == Py_None ? Py_NewRef(Py_None) : act_on(node->act, item);
    }
    if (masked == NULL) {
        return -1;
    }
    int done = masked == dropped || masked == unmet ? 0 : PyDict_SetItem(out, name, masked);
    Py_DECREF(masked);
    return done;
}

PyObject *
dropping_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = walker_argument(args, flags, keywords, &PyDict_Type), *name, *item, *node;
    if (value == NULL) {
        return NULL;
    }
    if (!PyDict_GET_SIZE(value)) {
        return Py_NewRef(self->classified ? value : unmet);
    }
    PyObject *out = PyDict_New();
    if (out == NULL || Py_EnterRecursiveCall(" while masking an object")) {
        Py_XDECREF(out);
        return NULL;
    }
    Py_ssize_t at = 0;
    int more = 0; /* as `next_member` says */
    if (self->listed) { /* nothing that goes unnamed can be classified: only the named members are looked at */
        while (PyDict_Next(self->names, &at, &name, &node)) {
            item = Py_XNewRef(PyDict_GetItemWithError(value, name));
            more = item == NULL ? (PyErr_Occurred() ? -1 : 0) : keep_member(out, name, item, (Node *)node);
            Py_XDECREF(item);
            if (more < 0) {
                break;
            }
        }
    } else {
        const Py_ssize_t size = PyDict_GET_SIZE(value);
        while ((more = next_member(value, size, &at, &name, &item)) > 0) {
            node = PyDict_GetItemWithError(self->names, name);
            Node *leads = node == NULL ? self->other : (Node *)node;
            const Kind kind = kind_of(item);
            if (node == NULL && PyErr_Occurred()) {
                more = -1;
            } else if (leads->classified || kind == OBJECT || kind == ARRAY) {
                more = keep_member(out, name, item, leads);
            }
            let_go(name, item);
            if (more < 0) {
                break;
            }
        }
    }
    Py_LeaveRecursiveCall();
    if (more < 0 || !PyDict_GET_SIZE(out)) {
        Py_DECREF(out);
        return more < 0 ? NULL : Py_NewRef(dropped);
    }
    return out;
}

/* --- how they are made ---------------------------------------------------------------------------------------------- */

static PyObject *
masking_dict(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "other", "classified", "shows", NULL};
    PyObject *names, *other;
    int classified, shows;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$pp", keywords, &names, &other, &classified, &shows)) {
        return NULL;
    }
    Walker *self = walker_new(masking_dict_call, names, other, NULL);
    if (self != NULL) {
        self->classified = (char)classified;
        self->shows = (char)shows;
    }
    return (PyObject *)self;
}

static PyObject *
dropping_dict(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "other", "classified", NULL};
    PyObject *names, *other;
    int classified;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$p", keywords, &names, &other, &classified)) {
        return NULL;
    }
    Walker *self = walker_new(dropping_dict_call, names, other, NULL);
    PyObject *leads = self == NULL ? NULL : self->other->places;
    const int places = leads == NULL ? -1 : PyObject_IsTrue(leads);
    if (places < 0) {
        if (self != NULL && leads == NULL) {
            PyErr_SetString(PyExc_AttributeError, "a node without places");
        }
        Py_XDECREF(self);
        return NULL;
    }
    self->classified = (char)classified;
    self->listed = !places;
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"masking_dict", (PyCFunction)(void (*)(void))masking_dict, METH_VARARGS | METH_KEYWORDS, NULL},
    {"dropping_dict", (PyCFunction)(void (*)(void))dropping_dict, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

int
objects_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
