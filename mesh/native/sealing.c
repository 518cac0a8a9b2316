/* `batch`: the twin of `mesh.batches.batch`, the hashing and writing that sealing a batch takes. */

#include "merkle.h"

#define SALT 16

/* What the leaf of *item* is the hash of; its salt is written to *text*: 1, 0 where a part cannot stand in a statement,
 * or -1 with an exception. */
static int
read_item(PyObject *item, const unsigned char salt[SALT], char text[ID], Statement *statement)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 3 || !PyBytes_Check(PyTuple_GET_ITEM(item, 2))) {
        PyErr_SetString(PyExc_TypeError, "an item is (subject: str, msg_id: str, body: bytes)");
        return -1;
    }
    PyObject *subject = PyTuple_GET_ITEM(item, 0), *id = PyTuple_GET_ITEM(item, 1), *body = PyTuple_GET_ITEM(item, 2);
    if (PyUnicode_Check(id) && !PyUnicode_IS_ASCII(id)) {
        return 0;
    }
    if (text_of(subject, &statement->subject) < 0 || text_of(id, &statement->id) < 0) {
        return -1;
    }
    put_b64u(text, salt, SALT);
    statement->salt = (Text){text, ID};
    statement->body = (Text){PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)};
    return is_message_id(&statement->id)
           && !memchr(statement->subject.at, '\n', (size_t)statement->subject.size);
}

/* The leaves of *items*, in pairs: 1, 0 or -1 as `read_item`. */
static int
hash_leaves(PyObject *items, const unsigned char *salts, Hash *leaves)
{
    const Py_ssize_t size = PyList_GET_SIZE(items);
    for (Py_ssize_t i = 0; i < size; i += 2) {
        Statement one, other;
        char text[ID], other_text[ID];
        const int two = i + 1 < size;
        int sound = read_item(PyList_GET_ITEM(items, i), salts + i * SALT, text, &one);
        if (sound > 0 && two) {
            sound = read_item(PyList_GET_ITEM(items, i + 1), salts + (i + 1) * SALT, other_text, &other);
        }
        if (sound > 0 && hash_statements(&one, leaves[i], two ? &other : NULL, two ? leaves[i + 1] : NULL) < 0) {
            sound = -1;
        }
        if (sound <= 0) {
            return sound;
        }
    }
    return 1;
}

/* What a header says between the time and the signature: `<salt>.<index>.<size>.<proof>.` */
static PyObject *
middle(const Tree *tree, Py_ssize_t index, Py_ssize_t count, const unsigned char salt[SALT])
{
    unsigned char proof[MAX_PROOF];
    const Py_ssize_t size = put_proof(proof, tree, index);
    char text[ID + 1 + 3 + 1 + 3 + 1 + MAX_PROOF * 4 / 3 + 4 + 1], *to = text;
    to = put_b64u(to, salt, SALT);
    *to++ = '.';
    to = put_number(to, index);
    *to++ = '.';
    to = put_number(to, count);
    *to++ = '.';
    to = put_b64u(to, proof, size);
    *to++ = '.';
    PyObject *made = PyUnicode_New(to - text, 127);
    if (made != NULL) {
        memcpy(PyUnicode_1BYTE_DATA(made), text, (size_t)(to - text));
    }
    return made;
}

/* batch(items: list, salts: bytes) -> (root, middles) | None; None where a part cannot stand in a statement. */
static PyObject *
batch(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "batch(items: list, salts: bytes)");
        return NULL;
    }
    const Py_ssize_t size = PyList_GET_SIZE(args[0]);
    const unsigned char *salts = (const unsigned char *)PyBytes_AS_STRING(args[1]);
    if (size < 1 || size > MAX_BATCH || PyBytes_GET_SIZE(args[1]) != size * SALT) {
        PyErr_Format(PyExc_ValueError, "a batch has 1 to %d events and a salt for each", MAX_BATCH);
        return NULL;
    }
    Tree tree;
    const int sound = hash_leaves(args[0], salts, leaves_of(&tree));
    if (sound <= 0) {
        return sound < 0 ? NULL : Py_NewRef(Py_None);
    }
    grow(&tree, size, 0, size, (Text){"", 0}, (Text){"", 0});
    PyObject *middles = PyList_New(size);
    for (Py_ssize_t i = 0; middles != NULL && i < size; i++) {
        PyObject *text = middle(&tree, i, size, salts + i * SALT);
        if (text == NULL) {
            Py_CLEAR(middles);
        } else {
            PyList_SET_ITEM(middles, i, text);
        }
    }
    if (middles == NULL) {
        return NULL;
    }
    return Py_BuildValue("(y#N)", (const char *)root_of(&tree), (Py_ssize_t)SHA256_BYTES, middles);
}

/* hash_portably(yes: bool) -> bool, for tests: as on a processor without instructions for it. Whether they are used. */
static PyObject *
hash_portably(PyObject *Py_UNUSED(module), PyObject *yes)
{
    const int portable = PyObject_IsTrue(yes);
    if (portable < 0) {
        return NULL;
    }
    sha256_choose(portable);
    return PyBool_FromLong(sha256_is_fast());
}

static PyMethodDef methods[] = {
    {"hash_portably", hash_portably, METH_O, NULL},
    {"batch", (PyCFunction)(void (*)(void))batch, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
sealing_add(PyObject *module)
{
    sha256_choose(0);
    return PyModule_AddFunctions(module, methods);
}
