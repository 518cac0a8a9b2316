/* `glimpse` of `mesh.verbatim`: of a text that `verbatim` gave, only what is asked for becomes objects. */

#include "reading.h"
#include "text.h"

#define MAX_NESTING 64 /* of what is read: `verbatim` gives no deeper text */
#define DATA "data"

/* Names that most events have at the top; the first ones have the same value in one event as in the next. */
static const char *const common[] = {
    "specversion", "source",        "type",         "datacontenttype", "id",          "time",       DATA,
    "subject",     "correlationid", "partitionkey", "traceparent",     "causationid", "dataschema", "tracestate",
};

enum { REPEATED = 4, MAX_REPEATED = 64 /* bytes of a value that is kept */ };

Known glimpse_known[NAME_SLOTS];

static PyObject *whole(const char **at, const char *end, int depth);

/* Puts a value under a name, both of which it takes; 0, or -1 with an exception. */
static int
put_member(PyObject *made, PyObject *name, PyObject *value)
{
    const int done = name == NULL || value == NULL ? -1 : PyDict_SetItem(made, name, value);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return done;
}

static PyObject *
whole_object(const char **at, const char *end, int depth)
{
    PyObject *made = PyDict_New();
    Text name;
    int more = 0;
    while (made != NULL && (more = take_member(at, end, &name)) > 0) {
        PyObject *key = PyUnicode_DecodeUTF8(name.at, name.size, NULL);
        if (put_member(made, key, key == NULL ? NULL : whole(at, end, depth)) < 0) {
            Py_CLEAR(made);
        }
    }
    if (made != NULL && more < 0) {
        Py_CLEAR(made);
        unproven();
    }
    return made;
}

static PyObject *
whole_array(const char **at, const char *end, int depth)
{
    PyObject *made = PyList_New(0);
    int more = 0;
    while (made != NULL && (more = take_item(at, end)) > 0) {
        PyObject *item = whole(at, end, depth);
        if (item == NULL || PyList_Append(made, item) < 0) {
            Py_CLEAR(made);
        }
        Py_XDECREF(item);
    }
    if (made != NULL && more < 0) {
        Py_CLEAR(made);
        unproven();
    }
    return made;
}

/* The value that begins at *at*, which is then behind it; *depth* containers hold it. NULL with an exception. */
static PyObject *
whole(const char **at, const char *end, int depth)
{
    const char *began = *at;
    if (*began == '{' || *began == '[') {
        if (depth == MAX_NESTING) {
            return unproven();
        }
        return *began == '{' ? whole_object(at, end, depth + 1) : whole_array(at, end, depth + 1);
    }
    int escaped = 0;
    *at = *began == '"' ? after_string(began, end, &escaped) : after_value(began, end);
    return *at == NULL ? unproven() : scalar_of(began, *at, escaped);
}

/* What *wanted* has under a name: 1 with new references, or 0, or -1 with an exception. */
static int
find(PyObject *wanted, const Text *name, PyObject **key, PyObject **below)
{
    Py_ssize_t place = 0;
    while (PyDict_Next(wanted, &place, key, below)) { /* conditions read few members */
        Text text;
        if (text_of(*key, &text) < 0) {
            return -1;
        }
        if (text.size == name->size && memcmp(text.at, name->at, (size_t)text.size) == 0) {
            Py_INCREF(*key);
            Py_INCREF(*below);
            return 1;
        }
    }
    return 0;
}

/* Of the value that begins at *at*, which is then behind it, what is wanted. NULL with an exception. With *last* it may also
 * be in the value: nothing behind what is wanted is looked at.
 */
static PyObject *
part(const char **at, const char *end, PyObject *wanted, int depth, int last)
{
    if (wanted == Py_None || **at != '{') {
        return whole(at, end, depth);
    }
    if (!PyDict_CheckExact(wanted)) {
        PyErr_SetString(PyExc_TypeError, "wanted is a dict of such, or None");
        return NULL;
    }
    if (depth == MAX_NESTING) {
        return unproven();
    }
    PyObject *made = PyDict_New(), *key, *below;
    Py_ssize_t left = PyDict_GET_SIZE(wanted); /* no name is there twice */
    if (made != NULL && left == 0) {
        *at = last ? *at : after_container(*at, end);
        if (*at == NULL) {
            Py_CLEAR(made);
            unproven();
        }
        return made;
    }
    Text name;
    int more = 0;
    while (made != NULL && (more = take_member(at, end, &name)) > 0) {
        const int found = find(wanted, &name, &key, &below);
        if (found > 0) {
            left--;
            const int done = put_member(made, key, part(at, end, below, depth + 1, last && left == 0));
            Py_DECREF(below);
            if (done < 0) {
                Py_CLEAR(made);
            } else if (last && left == 0) {
                return made;
            }
        } else if (found < 0) {
            Py_CLEAR(made);
        } else if ((*at = after_value(*at, end)) == NULL) {
            more = -1;
            break;
        }
    }
    if (made != NULL && more < 0) {
        Py_CLEAR(made);
        unproven();
    }
    return made;
}

/* `whole`, which begins by a look at what the value was in the last event. */
static PyObject *
repeated(PyObject **last, const char **at, const char *end)
{
    const char *began = *at;
    if (*last != NULL) { /* ASCII without escapes, so it stands in the text as it is */
        const Py_ssize_t size = PyUnicode_GET_LENGTH(*last);
        if (end - began > size + 2 && began[0] == '"' && began[size + 1] == '"'
            && memcmp(began + 1, PyUnicode_1BYTE_DATA(*last), (size_t)size) == 0) {
            *at = began + size + 2;
            return Py_NewRef(*last);
        }
    }
    PyObject *value = whole(at, end, 1);
    if (value != NULL && PyUnicode_CheckExact(value) && PyUnicode_IS_ASCII(value)
        && PyUnicode_GET_LENGTH(value) <= MAX_REPEATED && PyUnicode_GET_LENGTH(value) == *at - began - 2) {
        Py_XSETREF(*last, Py_NewRef(value));
    }
    return value;
}

PyObject *
glimpse_value(int slot, const Text *name, const char *end)
{
    const char *at = name->at + name->size + 2;
    return slot >= 0 && glimpse_known[slot].repeats ? repeated(&glimpse_known[slot].value, &at, end) : whole(&at, end, 1);
}

PyObject *
glimpse_data(const Text *name, const char *end, PyObject *wanted)
{
    const char *at = name->at + name->size + 2;
    return part(&at, end, wanted, 1, 1);
}

/* glimpse(text: bytes, wanted: dict | None) -> dict */
static PyObject *
glimpse(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "glimpse(text: bytes, wanted: dict | None)");
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(args[0]), *end = at + PyBytes_GET_SIZE(args[0]);
    PyObject *made = PyDict_New();
    Text name;
    int more = *at == '{' ? 0 : -1;
    while (made != NULL && more >= 0 && (more = take_member(&at, end, &name)) > 0) {
        const int is_data = name.size == sizeof(DATA) - 1 && memcmp(name.at, DATA, sizeof(DATA) - 1) == 0;
        const int slot = glimpse_slot(&name, end);
        PyObject *key = slot < 0 ? PyUnicode_DecodeUTF8(name.at, name.size, NULL) : Py_NewRef(glimpse_known[slot].name);
        PyObject *value = key == NULL                        ? NULL
                          : is_data                          ? part(&at, end, args[1], 1, 0)
                          : slot >= 0 && glimpse_known[slot].repeats ? repeated(&glimpse_known[slot].value, &at, end)
                                                             : whole(&at, end, 1);
        if (put_member(made, key, value) < 0) {
            Py_CLEAR(made);
        }
    }
    if (made != NULL && (more < 0 || at != end)) {
        Py_CLEAR(made);
        unproven();
    }
    return made;
}

static PyMethodDef methods[] = {
    {"glimpse", (PyCFunction)(void (*)(void))glimpse, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
glimpse_add(PyObject *module)
{
    for (size_t i = 0; i < sizeof(common) / sizeof(*common); i++) {
        const Py_ssize_t size = (Py_ssize_t)strlen(common[i]);
        Known *known = glimpse_known + name_slot(common[i], size);
        if (known->name != NULL) {
            PyErr_Format(PyExc_SystemError, "%s has the slot of another name", common[i]);
            return -1;
        }
        if ((known->name = PyUnicode_InternFromString(common[i])) == NULL) {
            return -1;
        }
        known->repeats = i < REPEATED;
        known->size = size;
        memcpy(known->text, common[i], (size_t)size);
        memset(known->mask, 0xFF, (size_t)size);
    }
    return PyModule_AddFunctions(module, methods);
}
