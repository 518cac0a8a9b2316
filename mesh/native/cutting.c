/* The copies of one event, cut out of its text: the twin of `cut` of `mesh.cutting`. */

#include "keyed.h"
#include "outgoing.h"
#include "splicing.h"

/* Where what is in the tuples of `mesh.cutting`, and in `Masking.look`, stands. */
enum { STOP_MASKING, STOP_ROWS, STOP_ADDRESS, STOP_SIZE };
enum { ADDRESS_VIEW, ADDRESS_SUBJECTS, ADDRESS_STREAM, ADDRESS_MARKS, ADDRESS_SIZE };
enum { HASH_SLOT, HASH_PARTITION, HASH_ID, HASHES_SIZE };
enum { LOOK_KEYS, LOOK_TOP, LOOK_ELSEWHERE, LOOK_OTHERWISE, LOOK_SIZE };

static struct {
    PyObject *id, *source, *type, *partitionkey, *traceparent, *look, *splice, *generation;
} names;

/* What all copies of an event have in common. What is an argument of `cut` is borrowed, the rest is held. */
typedef struct {
    PyObject *text, *more, *fields, *ids, *keys;
    PyObject *event_id, *source, *type, *trace;
    PyObject *token, *instead; /* NULL where it has no partition key */
    int slot;
} Event;

static int
is_tuple(PyObject *object, Py_ssize_t size)
{
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) == size;
}

/* --- the text ------------------------------------------------------------------------------------------------------- */

/* What `masking.splice` says. */
static PyObject *
ask_splice(const Event *event, PyObject *masking, PyObject *marks)
{
    PyObject *behind = event->more, *made;
    Py_INCREF(behind);
    PyBytes_Concat(&behind, marks);
    if (behind == NULL) {
        return NULL;
    }
    PyObject *token = event->token == NULL ? Py_None : event->token;
    PyObject *args[] = {masking, event->text, behind, token, event->fields, event->keys};
    made = PyObject_VectorcallMethod(names.splice, args, 6, NULL);
    Py_DECREF(behind);
    if (made != NULL && made != Py_None && !PyBytes_CheckExact(made)) {
        PyErr_SetString(PyExc_TypeError, "splice gives bytes, or None");
        Py_CLEAR(made);
    }
    return made;
}

/* The event as the view of *masking* shows it, or None; a new reference, or NULL with an exception. */
static PyObject *
body_of(const Event *event, PyObject *masking, PyObject *marks)
{
    PyObject *pieces = PyObject_GetAttr(masking, names.look), *made = NULL; /* held: a mask may replace it */
    if (pieces == NULL) {
        return NULL;
    }
    if (pieces == Py_None) {
        made = ask_splice(event, masking, marks);
    } else if (!is_tuple(pieces, LOOK_SIZE) || !PyDict_CheckExact(PyTuple_GET_ITEM(pieces, LOOK_TOP))
               || !Py_IS_TYPE(PyTuple_GET_ITEM(pieces, LOOK_ELSEWHERE), node_type)) {
        PyErr_SetString(PyExc_TypeError, "a look is (keys, dict, Node, otherwise)");
    } else {
        PyObject *keys = PyTuple_GET_ITEM(pieces, LOOK_KEYS);
        const Look look = {
            .instead = event->instead,
            .top = PyTuple_GET_ITEM(pieces, LOOK_TOP),
            .elsewhere = (Node *)PyTuple_GET_ITEM(pieces, LOOK_ELSEWHERE),
            .otherwise = PyTuple_GET_ITEM(pieces, LOOK_OTHERWISE),
        };
        made = keys != Py_None && keys != event->keys
                   ? Py_NewRef(Py_None)
                   : masked_text(event->text, &look, bytes_text(event->more), bytes_text(marks));
    }
    Py_DECREF(pieces);
    return made;
}

/* --- one copy ------------------------------------------------------------------------------------------------------- */

/* Whether *rows*, which is None or callable, shows the event: 1 or 0, or -1 with an exception. */
static int
shows(const Event *event, PyObject *rows)
{
    if (rows == Py_None) {
        return 1;
    }
    PyObject *answer = PyObject_CallOneArg(rows, event->fields);
    const int yes = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return yes;
}

/* The copy of *stop*, None where it shows none, NULL with an exception; *cut* is 0 where it cannot be told. */
static PyObject *
copy_of(const Event *event, PyObject *stop, int *cut)
{
    PyObject *address = is_tuple(stop, STOP_SIZE) ? PyTuple_GET_ITEM(stop, STOP_ADDRESS) : NULL, *subjects, *marks;
    if (address == NULL || !is_tuple(address, ADDRESS_SIZE)
        || !PyTuple_CheckExact(subjects = PyTuple_GET_ITEM(address, ADDRESS_SUBJECTS))
        || PyTuple_GET_SIZE(subjects) <= event->slot
        || !PyBytes_CheckExact(marks = PyTuple_GET_ITEM(address, ADDRESS_MARKS))) {
        PyErr_SetString(PyExc_TypeError, "a stop is (masking, rows, address)");
        return NULL;
    }
    const int shown = shows(event, PyTuple_GET_ITEM(stop, STOP_ROWS));
    if (shown <= 0) {
        return shown < 0 ? NULL : Py_NewRef(Py_None);
    }
    PyObject *body = body_of(event, PyTuple_GET_ITEM(stop, STOP_MASKING), marks);
    if (body == NULL || body == Py_None) {
        *cut = 0;
        return body;
    }
    PyObject *subject = PyTuple_GET_ITEM(subjects, event->slot), *made = NULL;
    PyObject *lines[] = {event->source, event->event_id, subject, names.generation};
    PyObject *base_id = keyed_token(event->ids, lines, 4);
    if (base_id != NULL) {
        made = outgoing_of(subject, PyTuple_GET_ITEM(address, ADDRESS_STREAM), body, event->source, event->event_id,
                           event->trace, base_id, PyTuple_GET_ITEM(address, ADDRESS_VIEW), event->type);
        Py_DECREF(base_id);
    }
    Py_DECREF(body);
    return made;
}

/* --- the event ------------------------------------------------------------------------------------------------------ */

static void
event_end(Event *event)
{
    Py_CLEAR(event->event_id);
    Py_CLEAR(event->source);
    Py_CLEAR(event->type);
    Py_CLEAR(event->trace);
    Py_CLEAR(event->token);
    Py_CLEAR(event->instead);
}

/* `fields[name]`, a new reference; where there is none, *otherwise*, or NULL with an exception. */
static PyObject *
value_of(PyObject *fields, PyObject *name, PyObject *otherwise)
{
    PyObject *value = PyDict_GetItemWithError(fields, name);
    if (value == NULL && !PyErr_Occurred()) {
        if (otherwise == NULL) {
            PyErr_SetObject(PyExc_KeyError, name);
        }
        value = otherwise;
    }
    return Py_XNewRef(value);
}

/* What is in the fields of *event*: 0, or -1 with an exception. */
static int
event_begin(Event *event, PyObject *hashes)
{
    PyObject *fields = event->fields, *partition;
    if ((event->event_id = value_of(fields, names.id, NULL)) == NULL
        || (event->source = value_of(fields, names.source, NULL)) == NULL
        || (event->type = value_of(fields, names.type, NULL)) == NULL
        || (event->trace = value_of(fields, names.traceparent, Py_None)) == NULL
        || (partition = value_of(fields, names.partitionkey, Py_None)) == NULL) {
        return -1;
    }
    const int has_partition = partition != Py_None;
    const int first = keyed_first_byte(PyTuple_GET_ITEM(hashes, HASH_SLOT), has_partition ? partition : event->event_id);
    event->slot = first >> 4; /* as `slot_of` */
    if (first >= 0 && has_partition) {
        event->token = keyed_token(PyTuple_GET_ITEM(hashes, HASH_PARTITION), &partition, 1);
        event->instead = event->token == NULL ? NULL : PyDict_New();
        if (event->instead != NULL && PyDict_SetItem(event->instead, names.partitionkey, event->token) < 0) {
            Py_CLEAR(event->instead);
        }
    }
    Py_DECREF(partition);
    return first < 0 || (has_partition && event->instead == NULL) ? -1 : 0;
}

static PyObject *
copies_of(const Event *event, PyObject *stops)
{
    const Py_ssize_t count = PyTuple_GET_SIZE(stops);
    Py_ssize_t kept = 0;
    int cut = 1;
    PyObject *copies = PyList_New(count);
    for (Py_ssize_t i = 0; copies != NULL && i < count; i++) {
        PyObject *copy = copy_of(event, PyTuple_GET_ITEM(stops, i), &cut);
        if (copy == NULL || !cut) {
            Py_DECREF(copies);
            return copy; /* NULL, or None */
        }
        if (copy == Py_None) {
            Py_DECREF(copy);
        } else {
            PyList_SET_ITEM(copies, kept++, copy);
        }
    }
    if (copies != NULL && kept < count && PyList_SetSlice(copies, kept, count, NULL) < 0) {
        Py_CLEAR(copies);
    }
    return copies;
}

static int
are_hashes(PyObject *hashes)
{
    if (!is_tuple(hashes, HASHES_SIZE)) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < HASHES_SIZE; i++) {
        if (!Py_IS_TYPE(PyTuple_GET_ITEM(hashes, i), keyed_type)) {
            return 0;
        }
    }
    return 1;
}

/* cut(text, more, fields, stops, hashes, keys) -> list[Outgoing] | None */
static PyObject *
cut(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 6 || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1]) || !PyDict_CheckExact(args[2])
        || !PyTuple_CheckExact(args[3]) || !are_hashes(args[4])) {
        PyErr_SetString(PyExc_TypeError, "cut(text: bytes, more: bytes, fields: dict, stops: tuple, hashes, keys)");
        return NULL;
    }
    Event event = {
        .text = args[0],
        .more = args[1],
        .fields = args[2],
        .ids = PyTuple_GET_ITEM(args[4], HASH_ID),
        .keys = args[5],
    };
    PyObject *copies = event_begin(&event, args[4]) < 0 ? NULL : copies_of(&event, args[3]);
    event_end(&event);
    return copies;
}

static PyMethodDef methods[] = {
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
cutting_add(PyObject *module)
{
    names.id = PyUnicode_InternFromString("id");
    names.source = PyUnicode_InternFromString("source");
    names.type = PyUnicode_InternFromString("type");
    names.partitionkey = PyUnicode_InternFromString("partitionkey");
    names.traceparent = PyUnicode_InternFromString("traceparent");
    names.look = PyUnicode_InternFromString("look");
    names.splice = PyUnicode_InternFromString("splice");
    names.generation = PyUnicode_InternFromString("0"); /* `FIRST_GENERATION` */
    if (names.id == NULL || names.source == NULL || names.type == NULL || names.partitionkey == NULL
        || names.traceparent == NULL || names.look == NULL || names.splice == NULL || names.generation == NULL) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
