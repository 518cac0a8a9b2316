/* `found`, `settled` and `forgotten`: the loops over events that a stream has acknowledged, the twins of those of
 * `mesh.jetstream.outgoing`.
 */

#include "outgoing.h"

/* found(tokens: list, by_token: dict, oldest_ms: int) -> list */
static PyObject *
found(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tokens, *by_token;
    long long oldest_ms;
    if (!PyArg_ParseTuple(args, "O!O!L", &PyList_Type, &tokens, &PyDict_Type, &by_token, &oldest_ms)) {
        return NULL;
    }
    PyObject *items = PyList_New(0);
    for (Py_ssize_t at = 0; items != NULL && at < PyList_GET_SIZE(tokens); at++) {
        PyObject *item = PyDict_GetItemWithError(by_token, PyList_GET_ITEM(tokens, at));
        if (item == NULL && !PyErr_Occurred()) {
            break;
        }
        if (item != NULL && !Py_IS_TYPE(item, outgoing_type)) {
            PyErr_SetString(PyExc_TypeError, "expected a dict of Outgoing");
            item = NULL;
        }
        if (item != NULL && ((Outgoing *)item)->first_signed_ms < oldest_ms) {
            break;
        }
        if (item == NULL || PyList_Append(items, item) < 0) {
            Py_CLEAR(items);
        }
    }
    return items;
}

/* The event at *place* of *queue*, a new reference; NULL where there is none, or with an exception. */
static Outgoing *
queued(PyObject *queue, Py_ssize_t place)
{
    const Py_ssize_t size = PySequence_Size(queue);
    PyObject *item = size > place ? PySequence_GetItem(queue, place) : NULL;
    if (item != NULL && !Py_IS_TYPE(item, outgoing_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a queue of Outgoing");
        Py_CLEAR(item);
    }
    return (Outgoing *)item;
}

static PyObject *popleft_name;

/* Let go of the first event of *queue*, and of those behind it that are done: 0, or -1 with an exception. */
static int
pop_done(PyObject *queue)
{
    for (;;) {
        PyObject *popped = PyObject_CallMethodNoArgs(queue, popleft_name);
        if (popped == NULL) {
            return -1;
        }
        Py_DECREF(popped);
        Outgoing *next = queued(queue, 0);
        const int done = next != NULL && next->done;
        Py_XDECREF(next);
        if (!done) {
            return PyErr_Occurred() ? -1 : 0;
        }
    }
}

/* Whether *item* comes as it should, which the stream has at *sequence*: 1, and *place* is set to it, or 0, or -1 with an
 * exception. */
static int
is_next(PyObject *queue, const Outgoing *item, PyObject *sequence, long long *place, double before)
{
    Outgoing *head = queued(queue, 0);
    Py_XDECREF(head); /* compared, never used */
    if (head != item) {
        return PyErr_Occurred() ? -1 : 0;
    }
    const long long found_at = PyLong_AsLongLong(sequence);
    if (found_at == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (found_at < *place || item->sends != 1 || (double)item->order >= before) {
        return 0;
    }
    if (before != Py_HUGE_VAL) {
        Outgoing *second = queued(queue, 1);
        const int refused = second != NULL && second->done; /* it may be the last one before those that are held */
        Py_XDECREF(second);
        if (refused || PyErr_Occurred()) {
            return refused ? 0 : -1;
        }
    }
    *place = found_at;
    return 1;
}

/* settled(queue, items: list, sequences: list, place: int, before: float) -> (count, place) */
static PyObject *
settled(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *items, *sequences;
    long long place;
    double before;
    if (!PyArg_ParseTuple(args, "OO!O!Ld", &queue, &PyList_Type, &items, &PyList_Type, &sequences, &place, &before)) {
        return NULL;
    }
    Py_ssize_t at = 0;
    for (; at < PyList_GET_SIZE(items) && at < PyList_GET_SIZE(sequences); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        PyObject *sequence = Py_NewRef(PyList_GET_ITEM(sequences, at)); /* a queue may be Python, and change lists */
        Py_INCREF(item);
        int next = is_next(queue, item, sequence, &place, before);
        if (next > 0) {
            item->done = 1;
            next = pop_done(queue) < 0 ? -1 : 1;
        }
        Py_DECREF(sequence);
        Py_DECREF(item);
        if (next < 0) {
            return NULL;
        }
        if (!next) {
            break;
        }
    }
    return Py_BuildValue("(nL)", at, place);
}

/* forgotten(items: list, by_token: dict) -> bytes of their bodies */
static PyObject *
forgotten(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *by_token;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &items, &PyDict_Type, &by_token)) {
        return NULL;
    }
    Py_ssize_t size = 0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        PyObject *token = item == NULL ? NULL : PyLong_FromLongLong(item->token);
        if (token == NULL) {
            return NULL;
        }
        const Py_ssize_t bytes = item->body == NULL ? -1 : PyObject_Size(item->body);
        const int gone = bytes < 0 ? -1 : PyDict_DelItem(by_token, token); /* the list still holds the item */
        Py_DECREF(token);
        if (gone < 0) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_AttributeError, "body");
            }
            return NULL;
        }
        size += bytes;
    }
    return PyLong_FromSsize_t(size);
}

static PyMethodDef methods[] = {
    {"found", found, METH_VARARGS, NULL},
    {"settled", settled, METH_VARARGS, NULL},
    {"forgotten", forgotten, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
acked_add(PyObject *module)
{
    popleft_name = PyUnicode_InternFromString("popleft");
    return popleft_name == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
