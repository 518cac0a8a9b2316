/* `plain`: the shortcut of `mesh.event`. Yes says that every attribute of an event is one that the grammar of
 * `mesh.attributes` takes as it stands; no says nothing, and the grammar is asked.
 */

#include "grammar.h"
#include "reading.h"

static PyObject *kinds; /* which of these a name is, as an int; other names are extensions of the sender's, or none */

static int
equals(const Text *text, const char *other)
{
    return (size_t)text->size == strlen(other) && memcmp(text->at, other, (size_t)text->size) == 0;
}

/* Whether *value* is surely fine as an attribute of *kind*: 1 or 0, or -1 with an exception. */
static int
is_fine(int kind, PyObject *value, PyObject *sources, PyObject *types)
{
    Text text;
    if (kind == DATA) {
        return 1;
    }
    if (!PyUnicode_CheckExact(value)) {
        return 0;
    }
    if (kind == SUBJECT || kind == PARTITION) {
        return is_string(value, 1);
    }
    if (!PyUnicode_IS_ASCII(value)) {
        return 0;
    }
    if (text_of(value, &text) < 0) {
        return -1;
    }
    switch (kind) {
    case SPECVERSION:
        return equals(&text, "1.0");
    case ID:
    case CORRELATION:
    case CAUSATION:
        return is_id(&text);
    case SOURCE:
        return has_no_dots(&text) ? PyDict_Contains(sources, value) : 0;
    case TYPE:
        return PyDict_Contains(types, value);
    case TIME:
        return is_time(&text);
    case CONTENT:
        return equals(&text, "application/json");
    case SCHEMA:
        return is_uri(&text);
    case PARENT:
        return is_trace(&text);
    case STATE:
        return is_state(&text);
    default:
        return 0;
    }
}

/* Whether an attribute that `kinds` does not know is surely fine, as an extension of the sender's. */
static int
is_extension(PyObject *name, PyObject *value)
{
    const Py_ssize_t size = PyUnicode_GET_LENGTH(name);
    if (!PyUnicode_IS_ASCII(name) || size < 1 || size > MAX_NAME
        || !all_have((const char *)PyUnicode_1BYTE_DATA(name), size, LOWER | DIGIT)) {
        return 0;
    }
    if (PyUnicode_CheckExact(value)) {
        return is_string(value, 0);
    }
    if (PyLong_CheckExact(value)) {
        int beyond;
        const long long number = PyLong_AsLongLongAndOverflow(value, &beyond);
        return !beyond && number >= INT32_MIN && number <= INT32_MAX;
    }
    return PyBool_Check(value);
}

int
attribute_kind(PyObject *name)
{
    PyObject *known = PyDict_GetItemWithError(kinds, name);
    return known != NULL ? (int)PyLong_AsLong(known) : PyErr_Occurred() ? -1 : EXTENSION;
}

int
attribute_is_fine(int kind, PyObject *name, PyObject *value, PyObject *sources, PyObject *types)
{
    return kind == EXTENSION ? is_extension(name, value) : is_fine(kind, value, sources, types);
}

int
attributes_are_fine(unsigned seen)
{
    const unsigned required = 1u << SPECVERSION | 1u << ID | 1u << SOURCE | 1u << TYPE;
    const int taken_out = seen & 1u << STATE && !(seen & 1u << PARENT);
    return (seen & required) == required && !taken_out;
}

/* plain(fields: dict, sources: dict, types: dict) -> bool */
static PyObject *
plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyDict_CheckExact(args[0]) || !PyDict_Check(args[1]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "plain(fields: dict, sources: dict, types: dict)");
        return NULL;
    }
    unsigned seen = 0;
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(args[0], &at, &name, &value)) {
        if (!PyUnicode_CheckExact(name)) { /* comparing another runs Python */
            Py_RETURN_FALSE;
        }
        const int kind = attribute_kind(name);
        const int fine = kind < 0 ? -1 : attribute_is_fine(kind, name, value, args[1], args[2]);
        if (fine < 0) {
            return NULL;
        }
        if (!fine) {
            Py_RETURN_FALSE;
        }
        seen |= 1u << kind;
    }
    return PyBool_FromLong(attributes_are_fine(seen));
}

static PyMethodDef methods[] = {
    {"plain", (PyCFunction)(void (*)(void))plain, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
accepting_add(PyObject *module)
{
    static const struct {
        const char *name;
        int kind;
    } names[] = {
        {"specversion", SPECVERSION}, {"id", ID}, {"source", SOURCE}, {"type", TYPE}, {"time", TIME},
        {"datacontenttype", CONTENT}, {"subject", SUBJECT}, {"correlationid", CORRELATION}, {"causationid", CAUSATION},
        {"partitionkey", PARTITION}, {"dataschema", SCHEMA}, {"traceparent", PARENT}, {"tracestate", STATE},
        {"data", DATA},
        /* what the mesh alone says, and what is looked at once more */
        {"tenant", NEVER}, {"view", NEVER}, {"policyrevision", NEVER}, {"sequence", NEVER}, {"expirytime", NEVER},
    };
    set_traits();
    kinds = PyDict_New();
    for (size_t i = 0; kinds != NULL && i < sizeof(names) / sizeof(*names); i++) {
        PyObject *number = PyLong_FromLong(names[i].kind);
        if (number == NULL || PyDict_SetItemString(kinds, names[i].name, number) < 0) {
            Py_CLEAR(kinds);
        }
        Py_XDECREF(number);
    }
    return kinds == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
