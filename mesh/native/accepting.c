/* `plain`: the shortcut of `mesh.event`. Yes says that every attribute of an event is one that the grammar of
 * `mesh.attributes` takes as it stands; no says nothing, and the grammar is asked.
 */

#include "common.h"

#define MAX_ID 256
#define MAX_STRING 1024

enum { SPECVERSION = 1, ID, SOURCE, TYPE, TIME, CONTENT, SUBJECT, CORRELATION, PARTITION, DATA, KINDS };

static PyObject *kinds; /* which of these a name is, as an int; other names are not in it */

static int
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int
is_word(char c)
{
    return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static int
is_id(const Text *text)
{
    if (text->size < 1 || text->size > MAX_ID) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < text->size; i++) {
        char c = text->at[i];
        if (!is_word(c) && (c == '\0' || strchr("._:/+=~-", c) == NULL)) {
            return 0;
        }
    }
    return 1;
}

static int
two(const char *at)
{
    return is_digit(at[0]) && is_digit(at[1]) ? (at[0] - '0') * 10 + at[1] - '0' : -1;
}

/* RFC 3339 in UTC, of a day that every month has; others are not looked at here. */
static int
is_time(const Text *text)
{
    const char *at = text->at;
    if (text->size < 20 || two(at) < 0 || two(at + 2) < 0 || at[4] != '-' || at[7] != '-' || at[10] != 'T'
        || at[13] != ':' || at[16] != ':') {
        return 0;
    }
    const int month = two(at + 5), day = two(at + 8), hour = two(at + 11), minute = two(at + 14), second = two(at + 17);
    if (month < 1 || month > 12 || day < 1 || day > 28 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0
        || second > 59) {
        return 0;
    }
    Py_ssize_t end = 19;
    if (at[end] == '.') {
        for (end++; end < text->size && is_digit(at[end]); end++) {
        }
        if (end - 20 < 1 || end - 20 > 18) {
            return 0;
        }
    }
    return end + 1 == text->size && at[end] == 'Z';
}

/* Printable ASCII. */
static int
is_string(const Text *text)
{
    if (text->size < 1 || text->size > MAX_STRING) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < text->size; i++) {
        if (text->at[i] < ' ' || text->at[i] > '~') {
            return 0;
        }
    }
    return 1;
}

static int
equals(const Text *text, const char *other)
{
    return (size_t)text->size == strlen(other) && memcmp(text->at, other, (size_t)text->size) == 0;
}

/* Whether *value* is surely fine as an attribute of *kind*: 1 or 0, or -1 with an exception. */
static int
is_fine(long kind, PyObject *value, PyObject *sources, PyObject *types)
{
    Text text;
    if (kind == DATA) {
        return 1;
    }
    if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_ASCII(value)) {
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
        return is_id(&text);
    case SOURCE:
        return memchr(text.at, '.', (size_t)text.size) ? 0 : PyDict_Contains(sources, value);
    case TYPE:
        return PyDict_Contains(types, value);
    case TIME:
        return is_time(&text);
    case CONTENT:
        return equals(&text, "application/json");
    case SUBJECT:
    case PARTITION:
        return is_string(&text);
    default:
        return 0;
    }
}

/* plain(fields: dict, sources: dict, types: dict) -> bool */
static PyObject *
plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyDict_CheckExact(args[0]) || !PyDict_Check(args[1]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "plain(fields: dict, sources: dict, types: dict)");
        return NULL;
    }
    const unsigned required = 1u << SPECVERSION | 1u << ID | 1u << SOURCE | 1u << TYPE;
    unsigned seen = 0;
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(args[0], &at, &name, &value)) {
        if (!PyUnicode_CheckExact(name)) { /* comparing another runs Python */
            Py_RETURN_FALSE;
        }
        PyObject *known = PyDict_GetItemWithError(kinds, name);
        if (known == NULL) {
            if (PyErr_Occurred()) {
                return NULL;
            }
            Py_RETURN_FALSE;
        }
        const long kind = PyLong_AsLong(known);
        const int fine = is_fine(kind, value, args[1], args[2]);
        if (fine < 0) {
            return NULL;
        }
        if (!fine) {
            Py_RETURN_FALSE;
        }
        seen |= 1u << kind;
    }
    return PyBool_FromLong((seen & required) == required);
}

static PyMethodDef methods[] = {
    {"plain", (PyCFunction)(void (*)(void))plain, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
accepting_add(PyObject *module)
{
    static const char *const names[KINDS] = {
        [SPECVERSION] = "specversion", [ID] = "id", [SOURCE] = "source", [TYPE] = "type", [TIME] = "time",
        [CONTENT] = "datacontenttype", [SUBJECT] = "subject", [CORRELATION] = "correlationid",
        [PARTITION] = "partitionkey", [DATA] = "data",
    };
    kinds = PyDict_New();
    for (long kind = SPECVERSION; kinds != NULL && kind < KINDS; kind++) {
        PyObject *number = PyLong_FromLong(kind);
        if (number == NULL || PyDict_SetItemString(kinds, names[kind], number) < 0) {
            Py_CLEAR(kinds);
        }
        Py_XDECREF(number);
    }
    return kinds == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
