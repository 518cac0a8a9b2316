/* The type of what `masking_dict`, `dropping_dict` and `item_list` of `mesh.policy.walkers` return: in Python functions
 * with what they closed over, here objects that are called.
 */

#include "walkers.h"
#include <structmember.h>

PyTypeObject *walker_type;

static int
walker_traverse(Walker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->names);
    Py_VISIT(self->other);
    Py_VISIT(self->otherwise);
    return 0;
}

static int
walker_clear(Walker *self)
{
    Py_CLEAR(self->names);
    Py_CLEAR(self->other);
    Py_CLEAR(self->otherwise);
    return 0;
}

static void
walker_dealloc(Walker *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    walker_clear(self);
    PyMem_Free(self->known);
    PyMem_Free(self->slots);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef walker_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Walker, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot walker_slots[] = {
    {Py_tp_call, (void *)PyVectorcall_Call},
    {Py_tp_dealloc, (void *)walker_dealloc},
    {Py_tp_traverse, (void *)walker_traverse},
    {Py_tp_clear, (void *)walker_clear},
    {Py_tp_members, walker_members},
    {0, NULL},
};

static PyType_Spec walker_spec = {
    .name = "mesh.native._compiled.Walker",
    .basicsize = sizeof(Walker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = walker_slots,
};

/* Makes the table of *names*: 0, or -1 with an exception. A name with a lone surrogate, which no text has, is left out. */
static int
know(Walker *self)
{
    const Py_ssize_t size = self->names == NULL ? 0 : PyDict_GET_SIZE(self->names);
    PyObject *name, *node;
    Py_ssize_t at = 0;
    size_t slots = 4;
    while (slots < (size_t)size * 4) {
        slots *= 2;
    }
    self->mask = slots - 1;
    self->known = PyMem_Calloc((size_t)size + 1, sizeof(*self->known));
    self->slots = PyMem_Calloc(slots, sizeof(*self->slots));
    if (self->known == NULL || self->slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    while (size && PyDict_Next(self->names, &at, &name, &node)) {
        Text text;
        if (text_of(name, &text) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError) && !PyErr_ExceptionMatches(PyExc_TypeError)) {
                return -1;
            }
            PyErr_Clear();
            continue;
        }
        const Ends ends = ends_of(text);
        size_t slot = name_hash(ends, text.size) & self->mask;
        while (self->slots[slot]) {
            slot = (slot + 1) & self->mask;
        }
        self->known[self->count] = (Named){text, ends, (Node *)node};
        self->slots[slot] = (uint32_t)++self->count;
    }
    return 0;
}

Walker *
walker_new(vectorcallfunc call, PyObject *names, PyObject *other, PyObject *otherwise)
{
    PyObject *name, *node;
    Py_ssize_t at = 0;
    if (!Py_IS_TYPE(other, node_type) || (names != NULL && !PyDict_CheckExact(names))) {
        PyErr_SetString(PyExc_TypeError, "names is a dict of nodes, and so is where others lead");
        return NULL;
    }
    while (names != NULL && PyDict_Next(names, &at, &name, &node)) {
        if (!Py_IS_TYPE(node, node_type)) {
            PyErr_SetString(PyExc_TypeError, "names is a dict of nodes");
            return NULL;
        }
    }
    PyObject *own = names == NULL ? NULL : PyDict_Copy(names);
    if (names != NULL && own == NULL) {
        return NULL;
    }
    Walker *self = (Walker *)walker_type->tp_alloc(walker_type, 0);
    if (self == NULL) {
        Py_XDECREF(own);
        return NULL;
    }
    self->call = call;
    self->names = own;
    self->other = (Node *)Py_NewRef(other);
    self->otherwise = Py_XNewRef(otherwise);
    if (know(self) < 0) {
        Py_CLEAR(self);
    }
    return self;
}

PyObject *
walker_argument(PyObject *const *args, size_t flags, PyObject *keywords, PyTypeObject *type)
{
    if (PyVectorcall_NARGS(flags) != 1 || keywords != NULL || !Py_IS_TYPE(args[0], type)) {
        PyErr_Format(PyExc_TypeError, "a walker takes one %s", type->tp_name);
        return NULL;
    }
    return args[0];
}

int
walkers_add(PyObject *module)
{
    walker_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &walker_spec, NULL);
    return walker_type == NULL ? -1 : 0;
}
