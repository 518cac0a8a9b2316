/* `verbatim` of `mesh.verbatim`: whether a text is, but for white space between its tokens, what our encoder writes of
 * what our decoder reads. It answers only where that is sure:
 *
 * - A string is UTF-8 without surrogates, and its escapes are those of two characters that the encoder uses itself. There
 *   are none in names, so that two names are equal where their bytes are.
 * - An integer has 18 digits at most and so 64 bits.
 * - A fraction has no exponent, 15 digits at most that count, and no zero at its end but the one right behind the point.
 *   Two decimals of 15 digits are never the same double, so no other spelling is as short, and the shortest is what is
 *   written; without an exponent from 0.0001 on.
 *
 * A publisher chooses every byte: names are compared no more often than MAX_COMPARED says.
 */

#include "reading.h"
#include "tokens.h"

#define MAX_NESTING 64  /* as in Python */
#define MAX_OPEN 768    /* of all objects that are open at one point */
#define MAX_COMPARED 8  /* times the bytes of the text: names with each other */
#define LONG_NAME 16   /* bytes that two words tell apart: a longer name may have to be compared byte by byte */
#define SEEN 512        /* bits, of which a name sets one */
#define MIX UINT64_C(0x9E3779B97F4A7C15)

typedef struct {
    uint64_t key; /* equal where the names are, and seldom elsewhere */
    Text text;
} Name;

typedef struct {
    const char *end;
    const char *from; /* of what is to be copied next */
    char *to;         /* where it goes; NULL where nothing is copied, and white space is the end */
    int spaced;       /* there was white space, and nowhere to copy to */
    int most;         /* containers within each other */
    int open;         /* names, of the objects that are not yet closed */
    int count;        /* names, of the object that was closed last; they are still there */
    Py_ssize_t left;  /* comparisons of names */
    Name names[MAX_OPEN];
} Scan;

/* Behind the white space at *at*; what stands before it is copied. */
static const char *
after_space(Scan *scan, const char *at)
{
    const char *space = at;
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') {
        at++;
    }
    if (at == space) {
        return at;
    }
    if (scan->to == NULL) {
        scan->spaced = 1;
        return scan->end; /* a NUL: where white space can be, it is refused */
    }
    scan->to = put_bytes(scan->to, scan->from, space - scan->from);
    scan->from = at;
    return at;
}

static inline const char *
token(Scan *scan, const char *at)
{
    return (unsigned char)*at > ' ' ? at : after_space(scan, at);
}

static inline uint64_t
key_of(const char *at, Py_ssize_t size, const char *end)
{
    uint64_t key = 0;
    if (size > 8) {
        key = load(at) * MIX ^ load(at + size - 8);
    } else if (end - at >= 8) {
        key = size ? load(at) << (64 - 8 * size) : 0;
    } else {
        for (Py_ssize_t i = 0; i < size; i++) {
            key |= (uint64_t)(unsigned char)at[i] << (64 - 8 * (size - i));
        }
    }
    return key ^ (uint64_t)size;
}

/* Whether no member from *first* on has this name, which is added. *seen* has a bit for each of those. */
static inline int
is_new(Scan *scan, int first, uint64_t seen[SEEN / 64], Text text)
{
    if (scan->open == MAX_OPEN || scan->open - first == MAX_MEMBERS) {
        return 0;
    }
    const uint64_t key = key_of(text.at, text.size, scan->end);
    const uint64_t mixed = key * MIX, bit = (mixed ^ mixed >> 32) * MIX >> 32 & (SEEN - 1);
    if (seen[bit / 64] >> bit % 64 & 1) {
        const Name *name = scan->names + first, *stop = scan->names + scan->open;
        if ((scan->left -= (stop - name) * (1 + text.size / LONG_NAME)) < 0) {
            return 0;
        }
        for (; name < stop; name++) {
            if (name->key == key && name->text.size == text.size
                && memcmp(name->text.at, text.at, (size_t)text.size) == 0) {
                return 0;
            }
        }
    }
    seen[bit / 64] |= UINT64_C(1) << bit % 64;
    scan->names[scan->open++] = (Name){key, text};
    return 1;
}

static const char *after_value(Scan *scan, const char *at, int depth);

/* Behind the object whose `{` is before *at*, or NULL; *depth* containers hold it, itself counted. */
static const char *
after_object(Scan *scan, const char *at, int depth)
{
    const int first = scan->open;
    uint64_t seen[SEEN / 64] = {0};
    at = token(scan, at);
    if (*at == '}') {
        return at + 1;
    }
    for (;; at = token(scan, at + 1)) {
        int escaped = 0;
        const char *name = at + 1;
        if (*at != '"' || (at = after_string(name, scan->end, &escaped)) == NULL || escaped
            || !is_new(scan, first, seen, (Text){name, at - 1 - name})) {
            return NULL;
        }
        at = token(scan, at);
        if (*at != ':' || (at = after_value(scan, token(scan, at + 1), depth)) == NULL) {
            return NULL;
        }
        at = token(scan, at);
        if (*at == '}') {
            scan->count = scan->open - first;
            scan->open = first;
            return at + 1;
        }
        if (*at != ',') {
            return NULL;
        }
    }
}

static const char *
after_array(Scan *scan, const char *at, int depth)
{
    at = token(scan, at);
    if (*at == ']') {
        return at + 1;
    }
    for (;; at = token(scan, at + 1)) {
        if ((at = after_value(scan, at, depth)) == NULL) {
            return NULL;
        }
        at = token(scan, at);
        if (*at == ']') {
            return at + 1;
        }
        if (*at != ',') {
            return NULL;
        }
    }
}

static inline const char *
after_literal(const char *at, const char *end, const char *literal, Py_ssize_t size)
{
    return end - at >= size && memcmp(at, literal, (size_t)size) == 0 ? at + size : NULL;
}

static const char *
after_value(Scan *scan, const char *at, int depth)
{
    int escaped;
    switch (*at) {
    case '"':
        return after_string(at + 1, scan->end, &escaped);
    case '{':
        return depth < scan->most ? after_object(scan, at + 1, depth + 1) : NULL;
    case '[':
        return depth < scan->most ? after_array(scan, at + 1, depth + 1) : NULL;
    case 't':
        return after_literal(at, scan->end, "true", 4);
    case 'f':
        return after_literal(at, scan->end, "false", 5);
    case 'n':
        return after_literal(at, scan->end, "null", 4);
    default:
        return after_number(at);
    }
}

/* Whether all of *text* is sure; *to*, where it is not NULL, has room for all of it and gets it without white space. */
static int
is_sure(Scan *scan, Text text, char *to)
{
    scan->end = text.at + text.size;
    scan->from = text.at;
    scan->to = to;
    scan->left = text.size > PY_SSIZE_T_MAX / MAX_COMPARED ? PY_SSIZE_T_MAX : text.size * MAX_COMPARED;
    scan->spaced = scan->open = scan->count = 0;
    const char *at = token(scan, text.at);
    if (*at != '{' || (at = after_value(scan, at, 0)) == NULL || token(scan, at) != scan->end || scan->spaced) {
        return 0;
    }
    if (to != NULL) {
        scan->to = put_bytes(scan->to, scan->from, at > scan->from ? at - scan->from : 0);
    }
    return 1;
}

PyObject *
verbatim_text(PyObject *body, long depth, Text names[MAX_MEMBERS], int *count)
{
    const Text text = {PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)};
    Scan scan; /* its names are written before they are read */
    scan.most = depth > MAX_NESTING ? MAX_NESTING : (int)(depth < 0 ? 0 : depth);
    if (is_sure(&scan, text, NULL)) {
        if (names != NULL) {
            for (*count = 0; *count < scan.count; ++*count) {
                names[*count] = scan.names[*count].text;
            }
        }
        return Py_NewRef(body);
    }
    if (!scan.spaced) {
        Py_RETURN_NONE;
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, text.size);
    if (made == NULL) {
        return NULL;
    }
    if (!is_sure(&scan, text, PyBytes_AS_STRING(made))) {
        Py_DECREF(made);
        Py_RETURN_NONE;
    }
    _PyBytes_Resize(&made, scan.to - PyBytes_AS_STRING(made));
    return made;
}

/* verbatim(body: bytes, depth: int) -> bytes | None */
static PyObject *
verbatim(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "verbatim(body: bytes, depth: int)");
        return NULL;
    }
    const long depth = PyLong_AsLong(args[1]);
    return depth == -1 && PyErr_Occurred() ? NULL : verbatim_text(args[0], depth, NULL, NULL);
}

static PyMethodDef methods[] = {
    {"verbatim", (PyCFunction)(void (*)(void))verbatim, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
verbatim_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
