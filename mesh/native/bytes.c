/* `extended` and `brackets_exceed`, the twins of those of `mesh.jsontext`. */

#include "common.h"

/* extended(text: bytes, members: bytes) -> bytes */
static PyObject *
extended(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "extended(text: bytes, members: bytes)");
        return NULL;
    }
    const Py_ssize_t size = PyBytes_GET_SIZE(args[0]), kept = size ? size - 1 : 0;
    PyObject *made = PyBytes_FromStringAndSize(NULL, kept + PyBytes_GET_SIZE(args[1]));
    if (made != NULL) {
        char *to = put_bytes(PyBytes_AS_STRING(made), PyBytes_AS_STRING(args[0]), kept);
        put_bytes(to, PyBytes_AS_STRING(args[1]), PyBytes_GET_SIZE(args[1]));
    }
    return made;
}

/* brackets_exceed(body: bytes, limit: int) -> bool */
static PyObject *
brackets_exceed(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "brackets_exceed(body: bytes, limit: int)");
        return NULL;
    }
    const Py_ssize_t limit = PyLong_AsSsize_t(args[1]);
    if (limit == -1 && PyErr_Occurred()) {
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(args[0]), *end = at + PyBytes_GET_SIZE(args[0]);
    Py_ssize_t found = 0;
    while (at < end && found <= limit) { /* in pieces whose count fits a byte, which the compiler makes wide steps of */
        const char *stop = end - at > 255 ? at + 255 : end;
        unsigned char piece = 0;
        for (; at < stop; at++) {
            piece = (unsigned char)(piece + ((*at | 0x20) == '{')); /* `[` and `{` differ in that bit alone */
        }
        found += piece;
    }
    return PyBool_FromLong(found > limit);
}

static PyMethodDef methods[] = {
    {"extended", (PyCFunction)(void (*)(void))extended, METH_FASTCALL, NULL},
    {"brackets_exceed", (PyCFunction)(void (*)(void))brackets_exceed, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
bytes_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
