/* `common_root`: the twin of that of `mesh.together`, which hashes the leaves of neighbours and climbs their tree once. */

#include "merkle.h"

static PyObject *subject_name, *msg_ids_name, *body_name;

/* An event's leaf in the making: what its statement is made of is held here. */
typedef struct {
    Statement statement;
    PyObject *subject, *msg_ids, *body, *salt;
} Making;

/* 0, or -1 with an exception; either way `let_go` is called. */
static int
read_event(PyObject *event, PyObject *salt, Making *making)
{
    making->salt = Py_NewRef(salt);
    if ((making->subject = PyObject_GetAttr(event, subject_name)) == NULL
        || (making->msg_ids = PyObject_GetAttr(event, msg_ids_name)) == NULL
        || (making->body = PyObject_GetAttr(event, body_name)) == NULL) {
        return -1;
    }
    if (!PyTuple_Check(making->msg_ids) || PyTuple_GET_SIZE(making->msg_ids) < 1 || !PyBytes_Check(making->body)) {
        PyErr_SetString(PyExc_TypeError, "expected an event with a message id, and bytes for its body");
        return -1;
    }
    Statement *statement = &making->statement;
    statement->body = (Text){PyBytes_AS_STRING(making->body), PyBytes_GET_SIZE(making->body)};
    return text_of(making->subject, &statement->subject) < 0
                   || text_of(PyTuple_GET_ITEM(making->msg_ids, 0), &statement->id) < 0
                   || text_of(salt, &statement->salt) < 0
               ? -1
               : 0;
}

static void
let_go(Making *making)
{
    Py_XDECREF(making->subject);
    Py_XDECREF(making->msg_ids);
    Py_XDECREF(making->body);
    Py_XDECREF(making->salt);
}

/* Event *at* of *events*, which may have changed, and its salt. As `read_event`. */
static int
read_at(PyObject *events, PyObject *salts, Py_ssize_t at, Making *making)
{
    if (at >= PyList_GET_SIZE(events) || at >= PyList_GET_SIZE(salts)) {
        PyErr_SetString(PyExc_ValueError, "a salt for each event");
        return -1;
    }
    PyObject *event = Py_NewRef(PyList_GET_ITEM(events, at)); /* what is no event of ours may run Python */
    const int read = read_event(event, PyList_GET_ITEM(salts, at), making);
    Py_DECREF(event);
    return read;
}

/* The leaves of *count* events, in pairs: 0, or -1 with an exception. */
static int
hash_events(PyObject *events, PyObject *salts, Py_ssize_t count, Hash *leaves)
{
    int done = 0;
    for (Py_ssize_t i = 0; done == 0 && i < count; i += 2) {
        Making one = {0}, other = {0};
        const int two = i + 1 < count;
        done = read_at(events, salts, i, &one);
        if (done == 0 && two) {
            done = read_at(events, salts, i + 1, &other);
        }
        if (done == 0) {
            done = hash_statements(&one.statement, leaves[i], two ? &other.statement : NULL, two ? leaves[i + 1] : NULL);
        }
        let_go(&one);
        let_go(&other);
    }
    return done;
}

static int
value_of(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* A proof as bytes: how many, or -1 where the text is none. Not every spelling of the last character is the one that
 * `put_b64u` writes: the whole text is held against that later. */
static Py_ssize_t
read_proof(PyObject *proof, unsigned char to[MAX_PROOF])
{
    Text text;
    uint32_t bits = 0;
    Py_ssize_t size = 0;
    if (!PyUnicode_IS_ASCII(proof)) {
        return -1;
    }
    text.at = (const char *)PyUnicode_1BYTE_DATA(proof);
    text.size = PyUnicode_GET_LENGTH(proof);
    if (text.size > b64u_size(MAX_PROOF)) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < text.size; i++) {
        const int value = value_of(text.at[i]);
        if (value < 0) {
            return -1;
        }
        bits = bits << 6 | (uint32_t)value;
        if (i % 4) { /* 6, 12, 18, 24 bits: a byte is whole with all but the first */
            to[size++] = (unsigned char)(bits >> (6 - 2 * (i % 4)));
        }
    }
    return size;
}

/* Whether each of *proofs* is the one that *tree* has for its leaf, the first of which stands at *place*. */
static int
are_proofs(const Tree *tree, Py_ssize_t place, PyObject *proofs)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(proofs); i++) {
        unsigned char proof[MAX_PROOF];
        char text[MAX_PROOF * 4 / 3 + 4];
        PyObject *brought = PyList_GET_ITEM(proofs, i);
        const Py_ssize_t size = put_b64u(text, proof, put_proof(proof, tree, place + i)) - text;
        if (!PyUnicode_CheckExact(brought) || !PyUnicode_IS_ASCII(brought) || PyUnicode_GET_LENGTH(brought) != size
            || memcmp(PyUnicode_1BYTE_DATA(brought), text, (size_t)size) != 0) {
            return 0;
        }
    }
    return 1;
}

/* common_root(events: list, salts: list, proofs: list, place: int, size: int) -> bytes | None */
static PyObject *
common_root(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *events, *salts, *proofs;
    Py_ssize_t place, size;
    if (!PyArg_ParseTuple(args, "O!O!O!nn", &PyList_Type, &events, &PyList_Type, &salts, &PyList_Type, &proofs, &place,
                          &size)) {
        return NULL;
    }
    const Py_ssize_t count = PyList_GET_SIZE(events);
    if (PyList_GET_SIZE(salts) != count || PyList_GET_SIZE(proofs) != count || size < 1 || size > MAX_BATCH || count < 1
        || place < 0 || place > size - count) {
        PyErr_SetString(PyExc_ValueError, "a salt and a proof for each of the neighbours, which are in the tree");
        return NULL;
    }
    Tree tree;
    if (hash_events(events, salts, count, leaves_of(&tree)) < 0) {
        return NULL;
    }
    if (PyList_GET_SIZE(proofs) != count || !PyUnicode_Check(PyList_GET_ITEM(proofs, 0))
        || !PyUnicode_Check(PyList_GET_ITEM(proofs, count - 1))) {
        PyErr_SetString(PyExc_TypeError, "a proof is a str");
        return NULL;
    }
    unsigned char first[MAX_PROOF], last[MAX_PROOF];
    const Py_ssize_t first_size = read_proof(PyList_GET_ITEM(proofs, 0), first);
    const Py_ssize_t last_size = read_proof(PyList_GET_ITEM(proofs, count - 1), last);
    if (first_size < 0 || last_size < 0
        || !grow(&tree, count, place, size, (Text){(const char *)first, first_size}, (Text){(const char *)last, last_size})
        || !are_proofs(&tree, place, proofs)) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize((const char *)root_of(&tree), SHA256_BYTES);
}

static PyMethodDef methods[] = {
    {"common_root", common_root, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
roots_add(PyObject *module)
{
    subject_name = PyUnicode_InternFromString("subject");
    msg_ids_name = PyUnicode_InternFromString("msg_ids");
    body_name = PyUnicode_InternFromString("body");
    if (subject_name == NULL || msg_ids_name == NULL || body_name == NULL) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
