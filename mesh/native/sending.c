/* `entered`, `signed`, `ordered` and `marked_sent`: the loops over events that are sent together, the twins of those of
 * `mesh.jetstream.outgoing`.
 */

#include "outgoing.h"

static int
put_token(PyObject *by_token, Outgoing *item)
{
    PyObject *token = PyLong_FromLongLong(item->token);
    int done = token == NULL ? -1 : PyDict_SetItem(by_token, token, (PyObject *)item);
    Py_XDECREF(token);
    return done;
}

/* entered(items, by_token, last) -> how many */
static PyObject *
entered(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *by_token;
    long long last;
    if (!PyArg_ParseTuple(args, "O!O!L", &PyList_Type, &items, &PyDict_Type, &by_token, &last)) {
        return NULL;
    }
    Py_ssize_t at = 0;
    for (; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        PyObject *id = item->base_id;
        if (item->generation || id == NULL || !PyUnicode_Check(id) || !PyUnicode_GET_LENGTH(id)) {
            break;
        }
        if (count_up(&last) < 0) {
            return NULL;
        }
        item->token = last;
        item->sends = 0;
        Py_INCREF(item); /* what is let go of below may be Python, and change the list */
        Py_XSETREF(item->msg_id, Py_NewRef(id));
        Py_XSETREF(item->signature, Py_NewRef(empty_text));
        const int put = put_token(by_token, item);
        Py_DECREF(item);
        if (put < 0) {
            return NULL;
        }
    }
    return PyLong_FromSsize_t(at);
}

static int
add_kid(Outgoing *item, PyObject *kid, PyObject *first)
{
    if (item->kids == NULL || !PyTuple_CheckExact(item->kids)) {
        PyErr_SetString(PyExc_TypeError, "kids is a tuple");
        return -1;
    }
    if (!PyTuple_GET_SIZE(item->kids)) {
        Py_SETREF(item->kids, Py_NewRef(first));
        return 0;
    }
    PyObject *kids = Py_NewRef(item->kids); /* comparing may run Python */
    const int known = PySequence_Contains(kids, kid);
    PyObject *more = known ? NULL : PySequence_Concat(kids, first);
    Py_DECREF(kids);
    if (more == NULL) {
        return known > 0 ? 0 : -1;
    }
    Py_XSETREF(item->kids, more);
    return 0;
}

static int
set_signature(Outgoing *item, PyObject *signatures, Py_ssize_t at)
{
    if (at >= PyList_GET_SIZE(signatures)) {
        PyErr_SetString(PyExc_ValueError, "a signature for each item");
        return -1;
    }
    Py_XSETREF(item->signature, Py_NewRef(PyList_GET_ITEM(signatures, at)));
    return 0;
}

/* signed(items, signatures, kid, now_ms) */
static PyObject *
signed_(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *signatures, *kid;
    long long now_ms;
    if (!PyArg_ParseTuple(args, "O!O!UL", &PyList_Type, &items, &PyList_Type, &signatures, &kid, &now_ms)) {
        return NULL;
    }
    if (PyList_GET_SIZE(items) != PyList_GET_SIZE(signatures)) {
        PyErr_SetString(PyExc_ValueError, "a signature for each item");
        return NULL;
    }
    PyObject *first = PyTuple_Pack(1, kid);
    for (Py_ssize_t at = 0; first != NULL && at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        Py_XINCREF(item); /* what is compared and let go of below may be Python, and change the list */
        if (item == NULL || add_kid(item, kid, first) < 0 || set_signature(item, signatures, at) < 0) {
            Py_XDECREF(item);
            Py_CLEAR(first);
            break;
        }
        item->signed_ms = now_ms;
        if (!item->first_signed_ms) {
            item->first_signed_ms = now_ms;
        }
        Py_DECREF(item);
    }
    if (first == NULL) {
        return NULL;
    }
    Py_DECREF(first);
    Py_RETURN_NONE;
}

/* ordered(items, last, give_up_at) */
static PyObject *
ordered(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items;
    long long last;
    double give_up_at;
    if (!PyArg_ParseTuple(args, "O!Ld", &PyList_Type, &items, &last, &give_up_at)) {
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL || count_up(&last) < 0) {
            return NULL;
        }
        item->order = last;
        item->give_up_at = give_up_at;
    }
    Py_RETURN_NONE;
}

/* marked_sent(items, now) */
static PyObject *
marked_sent(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items;
    double now;
    if (!PyArg_ParseTuple(args, "O!d", &PyList_Type, &items, &now)) {
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL || count_up(&item->sends) < 0) {
            return NULL;
        }
        item->sent_at = now;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"entered", entered, METH_VARARGS, NULL},
    {"signed", signed_, METH_VARARGS, NULL},
    {"ordered", ordered, METH_VARARGS, NULL},
    {"marked_sent", marked_sent, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
sending_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
