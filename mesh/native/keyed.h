/* Keyed hashes of texts, for the other parts: what `mesh.keyed.Keyed` does. */

#ifndef MESH_NATIVE_KEYED_H
#define MESH_NATIVE_KEYED_H

#include "common.h"

extern PyTypeObject *keyed_type;

/* `self.token(*lines)`, of *count* lines; NULL with an exception. *self* is of `keyed_type`, here and below. */
PyObject *keyed_token(PyObject *self, PyObject *const *lines, Py_ssize_t count);

/* `self.digest(text)[0]`, or -1 with an exception. */
int keyed_first_byte(PyObject *self, PyObject *text);

#endif
