/* `found`, `settled` and `forgotten`: the loops over events that a stream has acknowledged, the twins of those of
 * `mesh.jetstream.outgoing`.
 */

#include "outgoing.h"
#include <limits.h>

/* The event of *token*, an int; NULL where there is none, or with an exception. Borrowed from *by_token*. */
static Outgoing *
known(PyObject *by_token, PyObject *token)
{
    PyObject *item = PyDict_GetItemWithError(by_token, token);
    if (item != NULL && !Py_IS_TYPE(item, outgoing_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a dict of Outgoing");
        return NULL;
    }
    return (Outgoing *)item;
}

static int
same_text(PyObject *one, PyObject *other)
{
    return one == other
        || (one != NULL && other != NULL && PyUnicode_Check(one) && PyUnicode_Check(other)
            && PyUnicode_Compare(one, other) == 0);
}

/* The quiet event that *item*, which stands at *sequence*, is linked to; NULL where there is none, or with an exception.
 * Borrowed. */
static Outgoing *
linked_to(PyObject *by_token, const Outgoing *item, long long sequence)
{
    if (item->behind == LLONG_MAX || sequence != item->behind + 1 || item->token == LLONG_MIN) {
        return NULL;
    }
    if (item->after == NULL || !PyUnicode_Check(item->after) || !PyUnicode_GET_LENGTH(item->after)) {
        return NULL;
    }
    PyObject *token = PyLong_FromLongLong(item->token - 1);
    Outgoing *before = token == NULL ? NULL : known(by_token, token);
    Py_XDECREF(token);
    const int links = before != NULL && before->quiet && same_text(before->msg_id, item->after)
        && same_text(before->stream, item->stream);
    return links ? before : NULL;
}

static int
append(PyObject *items, PyObject *places, Outgoing *item, long long sequence)
{
    PyObject *number = PyLong_FromLongLong(sequence);
    const int failed = number == NULL || PyList_Append(places, number) < 0 || PyList_Append(items, (PyObject *)item) < 0;
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

/* Append *item*, which stands at *sequence*, and before it the quiet one that it is linked to: 1, or 0 where one of them
 * is too old, or -1 with an exception. */
static int
append_pair(PyObject *items, PyObject *places, PyObject *by_token, Outgoing *item, long long sequence, long long oldest_ms)
{
    Outgoing *before = linked_to(by_token, item, sequence);
    if (before == NULL && PyErr_Occurred()) {
        return -1;
    }
    const int young = item->first_signed_ms >= oldest_ms && (before == NULL || before->first_signed_ms >= oldest_ms);
    if (before != NULL && append(items, places, before, sequence - 1) < 0) {
        return -1;
    }
    return append(items, places, item, sequence) < 0 ? -1 : young;
}

/* Append what the ack of *token* at *sequence* speaks for: as `append_pair`, and 0 where the token is not known. */
static int
append_acked(PyObject *items, PyObject *places, PyObject *by_token, PyObject *token, PyObject *sequence, long long oldest_ms)
{
    const long long place = PyLong_AsLongLong(sequence);
    Outgoing *item = place == -1 && PyErr_Occurred() ? NULL : known(by_token, token);
    if (item == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_INCREF(item); /* what is compared with the token before may be Python, and take it out of *by_token* */
    const int young = append_pair(items, places, by_token, item, place, oldest_ms);
    Py_DECREF(item);
    return young;
}

/* found(tokens: list, sequences: list, by_token: dict, oldest_ms: int) -> (items, places, plain) */
static PyObject *
found(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tokens, *sequences, *by_token;
    long long oldest_ms;
    if (!PyArg_ParseTuple(args, "O!O!O!L", &PyList_Type, &tokens, &PyList_Type, &sequences, &PyDict_Type, &by_token,
                          &oldest_ms)) {
        return NULL;
    }
    if (PyList_GET_SIZE(tokens) != PyList_GET_SIZE(sequences)) {
        PyErr_SetString(PyExc_ValueError, "a sequence for each token");
        return NULL;
    }
    PyObject *items = PyList_New(0), *places = PyList_New(0);
    int plain = 1, failed = items == NULL || places == NULL;
    for (Py_ssize_t at = 0; !failed && at < PyList_GET_SIZE(tokens) && at < PyList_GET_SIZE(sequences); at++) {
        PyObject *token = Py_NewRef(PyList_GET_ITEM(tokens, at)); /* numbers may be Python, and change the lists */
        PyObject *sequence = Py_NewRef(PyList_GET_ITEM(sequences, at));
        const int young = append_acked(items, places, by_token, token, sequence, oldest_ms);
        Py_DECREF(token);
        Py_DECREF(sequence);
        plain &= young > 0;
        failed = young < 0;
    }
    PyObject *answer = failed ? NULL : Py_BuildValue("(OOO)", items, places, plain ? Py_True : Py_False);
    Py_XDECREF(items);
    Py_XDECREF(places);
    return answer;
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
