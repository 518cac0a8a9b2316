/* `numbered`, the twin of that of `mesh.sequences`, and `boarded`, of that of `mesh.jetstream.outgoing`: the loops over
 * the copies of a request before they set out.
 */

#include "outgoing.h"

#define DIGITS 12 /* of a number, at least */

/* *body* with its last member: *member*, and *n*. A new reference, or NULL with an exception. */
static PyObject *
with_number(PyObject *body, PyObject *member, long long n)
{
    if (body == NULL || !PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "body is bytes");
        return NULL;
    }
    char digits[24], *end = put_number(digits, n);
    const Py_ssize_t size = PyBytes_GET_SIZE(body), kept = size ? size - 1 : 0;
    const Py_ssize_t written = end - digits, zeros = written < DIGITS ? DIGITS - written : 0;
    PyObject *made = PyBytes_FromStringAndSize(NULL, kept + PyBytes_GET_SIZE(member) + zeros + written + 2);
    if (made != NULL) {
        char *to = put_bytes(PyBytes_AS_STRING(made), PyBytes_AS_STRING(body), kept);
        to = put_bytes(to, PyBytes_AS_STRING(member), PyBytes_GET_SIZE(member));
        memset(to, '0', (size_t)zeros);
        to = put_bytes(to + zeros, digits, written);
        PUT_LITERAL(to, "\"}");
    }
    return made;
}

/* 1 or 0, or -1 with an exception. What a field holds may be gone while it is compared. */
static int
same_value(PyObject *one, PyObject *other)
{
    if (one == other) {
        return 1;
    }
    if (one == NULL || other == NULL) {
        return 0;
    }
    Py_INCREF(one);
    Py_INCREF(other);
    const int same = PyObject_RichCompareBool(one, other, Py_EQ);
    Py_DECREF(one);
    Py_DECREF(other);
    return same;
}

/* numbered(copies: list, at: int, member: bytes, n: int) -> int */
static PyObject *
numbered(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *copies, *member;
    Py_ssize_t at;
    long long n;
    if (!PyArg_ParseTuple(args, "O!nSL", &PyList_Type, &copies, &at, &member, &n)) {
        return NULL;
    }
    if (at < 0 || n < 0) {
        PyErr_SetString(PyExc_ValueError, "places and numbers are not negative");
        return NULL;
    }
    PyObject *source = NULL, *view = NULL, *body = NULL;
    for (; at < PyList_GET_SIZE(copies); at++) {
        Outgoing *copy = outgoing_at(copies, at);
        if (copy == NULL) {
            goto failed;
        }
        if (body == NULL) { /* the first */
            source = Py_XNewRef(copy->source);
            view = Py_XNewRef(copy->view);
        } else if (count_up(&n) < 0) {
            goto failed;
        }
        Py_INCREF(copy); /* what is compared or let go of may be Python, and change the list */
        int same = same_value(copy->source, source);
        same = same > 0 ? same_value(copy->view, view) : same;
        body = same > 0 ? with_number(copy->body, member, n) : NULL;
        if (body != NULL) {
            Py_XSETREF(copy->body, body);
        }
        Py_DECREF(copy);
        if (same < 0 || (same && body == NULL)) {
            goto failed;
        }
        if (!same) {
            break;
        }
    }
    Py_XDECREF(source);
    Py_XDECREF(view);
    return PyLong_FromSsize_t(at);
failed:
    Py_XDECREF(source);
    Py_XDECREF(view);
    return NULL;
}

/* boarded(items: list, on_done, together: dict) */
static PyObject *
boarded(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *on_done, *together;
    if (!PyArg_ParseTuple(args, "O!OO!", &PyList_Type, &items, &on_done, &PyDict_Type, &together)) {
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        Py_INCREF(item); /* what is let go of below may be Python, and change the list */
        Py_XSETREF(item->on_done, Py_NewRef(on_done));
        PyObject *view = Py_XNewRef(item->view);
        PyObject *heard = view == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(together, view));
        if (heard != NULL) {
            Py_XSETREF(item->together, heard);
            item->place = at;
        } else if (!PyErr_Occurred()) {
            PyErr_SetObject(PyExc_KeyError, view == NULL ? Py_None : view);
        }
        Py_XDECREF(view);
        Py_DECREF(item);
        if (heard == NULL) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"numbered", numbered, METH_VARARGS, NULL},
    {"boarded", boarded, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
boarding_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
