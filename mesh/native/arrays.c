/* The loop over the items of an array: the twin of `item_list` of `mesh.policy.walkers`. */

#include "walkers.h"

/* What becomes of one item of an array: a new reference. */
static PyObject *
masked_item(Walker *self, PyObject *item, int *met)
{
    const Kind kind = kind_of(item);
    if (kind == SCALAR) {
        return act_on(self->other->act, item);
    }
    if (kind == OTHER) {
        return Py_NewRef(Py_None); /* no JSON value */
    }
    PyObject *masked = enter(self->other, item, kind);
    if (masked != unmet) {
        *met = 1;
        return masked;
    }
    Py_DECREF(masked);
    return act_on(self->otherwise, item);
}

/* Whether an array of which nothing is left is left out: 1 or 0, or -1 with an exception. */
static int
drops_empty(Walker *self)
{
    if (self->otherwise == Py_None) {
        return 0;
    }
    PyObject *answer = PyObject_CallOneArg(self->otherwise, Py_None);
    Py_XDECREF(answer); /* compared below, never used */
    return answer == NULL ? -1 : answer == dropped;
}

PyObject *
item_list_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = walker_argument(args, flags, keywords, &PyList_Type);
    if (value == NULL) {
        return NULL;
    }
    const Py_ssize_t size = PyList_GET_SIZE(value);
    if (self->untouched) {
        return Py_NewRef(size || self->classified ? value : unmet);
    }
    PyObject *out = PyList_New(0);
    if (out == NULL || Py_EnterRecursiveCall(" while masking an array")) {
        Py_XDECREF(out);
        return NULL;
    }
    int met = self->classified || (self->other->classified && size > 0);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(value, i)), *masked = masked_item(self, item, &met);
        Py_DECREF(item);
        if (masked == NULL || (masked != dropped && PyList_Append(out, masked) < 0)) {
            Py_XDECREF(masked);
            Py_LeaveRecursiveCall();
            Py_DECREF(out);
            return NULL;
        }
        Py_DECREF(masked);
    }
    Py_LeaveRecursiveCall();
    int drops = met && size && !PyList_GET_SIZE(out) ? drops_empty(self) : 0;
    if (met && drops == 0) {
        return out;
    }
    Py_DECREF(out);
    return drops < 0 ? NULL : Py_NewRef(met ? dropped : unmet);
}

static PyObject *
item_list(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"node", "otherwise", "classified", NULL};
    PyObject *node, *otherwise;
    int classified;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$p", keywords, &node, &otherwise, &classified)) {
        return NULL;
    }
    Walker *self = walker_new(item_list_call, NULL, node, otherwise);
    if (self != NULL) {
        const Node *leads = self->other;
        self->classified = (char)classified;
        self->untouched = leads->classified && leads->act == Py_None && leads->on_dict == as_it_is
                          && leads->on_list == as_it_is;
    }
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"item_list", (PyCFunction)(void (*)(void))item_list, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

int
arrays_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
