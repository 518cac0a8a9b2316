/* `Node`, the twin of that of `mesh.policy.walkers`, and the objects that walkers answer with. */

#include "nodes.h"
#include <structmember.h>

PyObject *dropped, *unmet, *as_it_is;
PyTypeObject *node_type;

static PyObject *
node_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"places", "walker", NULL};
    PyObject *places, *walker;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Node", keywords, &places, &walker)) {
        return NULL;
    }
    Node *self = (Node *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->places = Py_NewRef(places);
        self->act = Py_NewRef(Py_None);
        self->on_dict = Py_NewRef(walker);
        self->on_list = Py_NewRef(walker);
    }
    return (PyObject *)self;
}

static int
node_traverse(Node *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->places);
    Py_VISIT(self->act);
    Py_VISIT(self->on_dict);
    Py_VISIT(self->on_list);
    return 0;
}

static int
node_clear(Node *self)
{
    Py_CLEAR(self->places);
    Py_CLEAR(self->act);
    Py_CLEAR(self->on_dict);
    Py_CLEAR(self->on_list);
    return 0;
}

static void
node_dealloc(Node *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    node_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef node_members[] = {
    {"places", T_OBJECT_EX, offsetof(Node, places), 0, NULL},
    {"act", T_OBJECT_EX, offsetof(Node, act), 0, NULL},
    {"on_dict", T_OBJECT_EX, offsetof(Node, on_dict), 0, NULL},
    {"on_list", T_OBJECT_EX, offsetof(Node, on_list), 0, NULL},
    {"classified", T_BOOL, offsetof(Node, classified), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot node_slots[] = {
    {Py_tp_new, (void *)node_new},
    {Py_tp_dealloc, (void *)node_dealloc},
    {Py_tp_traverse, (void *)node_traverse},
    {Py_tp_clear, (void *)node_clear},
    {Py_tp_members, node_members},
    {0, NULL},
};

static PyType_Spec node_spec = {
    .name = "mesh.native._compiled.Node",
    .basicsize = sizeof(Node),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = node_slots,
};

/* masking_with(dropped, unmet, as_it_is): the objects that walkers answer with, and the walker that changes nothing. */
static PyObject *
masking_with(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "masking_with(dropped, unmet, as_it_is)");
        return NULL;
    }
    Py_XSETREF(dropped, Py_NewRef(args[0]));
    Py_XSETREF(unmet, Py_NewRef(args[1]));
    Py_XSETREF(as_it_is, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"masking_with", (PyCFunction)(void (*)(void))masking_with, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
nodes_add(PyObject *module)
{
    dropped = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type); /* until `masking_with` says what they are */
    unmet = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    as_it_is = Py_NewRef(Py_None);
    node_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &node_spec, NULL);
    if (dropped == NULL || unmet == NULL || node_type == NULL || PyModule_AddType(module, node_type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
