/* `Outgoing`, the twin of that of `mesh.jetstream.outgoing`. Thousands of these are in flight, and each is touched in
 * every loop. As in Python, the garbage collector does not look at them.
 */

#include "outgoing.h"
#include <structmember.h>

PyTypeObject *outgoing_type;

#define OBJECT(name) {#name, T_OBJECT_EX, offsetof(Outgoing, name), 0, NULL}
#define NUMBER(name) {#name, T_LONGLONG, offsetof(Outgoing, name), 0, NULL}
#define SECONDS(name) {#name, T_DOUBLE, offsetof(Outgoing, name), 0, NULL}

/* In the order of the arguments; `msg_id` and those behind it are not given by position. */
static PyMemberDef members[] = {
    OBJECT(subject),
    OBJECT(stream),
    OBJECT(body),
    OBJECT(source),
    OBJECT(event_id),
    OBJECT(traceparent),
    OBJECT(base_id),
    OBJECT(view),
    OBJECT(type),
    OBJECT(route),
    OBJECT(on_done),
    OBJECT(together),
    OBJECT(origin),
    NUMBER(generation),
    OBJECT(msg_id),
    NUMBER(first_signed_ms),
    OBJECT(kids),
    OBJECT(signature),
    NUMBER(signed_ms),
    NUMBER(token),
    NUMBER(order),
    NUMBER(sends),
    SECONDS(sent_at),
    SECONDS(give_up_at),
    {"done", T_BOOL, offsetof(Outgoing, done), 0, NULL},
    NUMBER(place),
    {NULL, 0, 0, 0, NULL},
};

#define REQUIRED 5 /* arguments */
#define FIELDS ((Py_ssize_t)(sizeof(members) / sizeof(*members)) - 1)

static PyObject *names[sizeof(members) / sizeof(*members)]; /* interned */
PyObject *empty_text;
static PyObject *empty_tuple, *unheard;

static PyObject **
slot(Outgoing *self, Py_ssize_t field)
{
    return (PyObject **)((char *)self + members[field].offset);
}

/* The field that *name* is, or -1. Names of arguments are interned: most are found without a look at their letters. */
static Py_ssize_t
field_named(PyObject *name)
{
    for (Py_ssize_t field = 0; field < FIELDS; field++) {
        if (names[field] == name) {
            return field;
        }
    }
    for (Py_ssize_t field = 0; field < FIELDS; field++) {
        if (PyUnicode_Compare(names[field], name) == 0) {
            return field;
        }
    }
    return -1;
}

static int
set_field(Outgoing *self, Py_ssize_t field, PyObject *value)
{
    if (members[field].type == T_OBJECT_EX) {
        Py_XSETREF(*slot(self, field), Py_NewRef(value));
        return 0;
    }
    return PyMember_SetOne((char *)self, &members[field], value);
}

/* All that does not come with each event. */
static inline void
set_defaults(Outgoing *self)
{
    self->route = Py_NewRef(empty_text);
    self->on_done = Py_NewRef(unheard == NULL ? Py_None : unheard);
    self->together = Py_NewRef(Py_None);
    self->origin = Py_NewRef(Py_None);
    self->msg_id = Py_NewRef(empty_text);
    self->kids = Py_NewRef(empty_tuple);
    self->signature = Py_NewRef(empty_text);
    self->sent_at = self->give_up_at = Py_HUGE_VAL;
}

static PyObject *
outgoing_vectorcall(PyObject *type, PyObject *const *args, size_t flags, PyObject *keywords)
{
    const Py_ssize_t given = PyVectorcall_NARGS(flags), named = keywords == NULL ? 0 : PyTuple_GET_SIZE(keywords);
    if (given > FIELDS) {
        return PyErr_Format(PyExc_TypeError, "Outgoing takes at most %zd arguments, not %zd", FIELDS, given);
    }
    Outgoing *self = (Outgoing *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->traceparent = Py_NewRef(Py_None);
    self->base_id = Py_NewRef(empty_text);
    self->view = Py_NewRef(empty_text);
    self->type = Py_NewRef(empty_text);
    set_defaults(self);
    for (Py_ssize_t field = 0; field < given; field++) {
        if (set_field(self, field, args[field]) < 0) {
            goto failed;
        }
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        const Py_ssize_t field = field_named(PyTuple_GET_ITEM(keywords, i));
        if (field < given) {
            PyErr_Format(PyExc_TypeError, "Outgoing has no argument `%U` that is not given", PyTuple_GET_ITEM(keywords, i));
            goto failed;
        }
        if (set_field(self, field, args[given + i]) < 0) {
            goto failed;
        }
    }
    for (Py_ssize_t field = 0; field < REQUIRED; field++) {
        if (*slot(self, field) == NULL) {
            PyErr_Format(PyExc_TypeError, "Outgoing lacks the argument `%U`", names[field]);
            goto failed;
        }
    }
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

PyObject *
outgoing_of(PyObject *subject, PyObject *stream, PyObject *body, PyObject *source, PyObject *event_id,
            PyObject *traceparent, PyObject *base_id, PyObject *view, PyObject *type)
{
    Outgoing *self = (Outgoing *)outgoing_type->tp_alloc(outgoing_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->subject = Py_NewRef(subject);
    self->stream = Py_NewRef(stream);
    self->body = Py_NewRef(body);
    self->source = Py_NewRef(source);
    self->event_id = Py_NewRef(event_id);
    self->traceparent = Py_NewRef(traceparent);
    self->base_id = Py_NewRef(base_id);
    self->view = Py_NewRef(view);
    self->type = Py_NewRef(type);
    set_defaults(self);
    return (PyObject *)self;
}

static void
outgoing_dealloc(Outgoing *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t field = 0; field < FIELDS; field++) {
        if (members[field].type == T_OBJECT_EX) {
            Py_CLEAR(*slot(self, field));
        }
    }
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
outgoing_repr(Outgoing *self)
{
    return PyUnicode_FromFormat("Outgoing(%R)", self->event_id); /* without the body */
}

static PyType_Slot outgoing_slots[] = {
    {Py_tp_dealloc, (void *)outgoing_dealloc},
    {Py_tp_repr, (void *)outgoing_repr},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec outgoing_spec = {
    .name = "mesh.native._compiled.Outgoing",
    .basicsize = sizeof(Outgoing),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, /* but by `outgoing_vectorcall`: all is set */
    .slots = outgoing_slots,
};

/* outgoing_with(unheard): what `on_done` is until somebody listens. */
static PyObject *
outgoing_with(PyObject *Py_UNUSED(module), PyObject *callback)
{
    Py_XSETREF(unheard, Py_NewRef(callback));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"outgoing_with", outgoing_with, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int
outgoing_add(PyObject *module)
{
    for (Py_ssize_t field = 0; field < FIELDS; field++) {
        if ((names[field] = PyUnicode_InternFromString(members[field].name)) == NULL) {
            return -1;
        }
    }
    empty_text = PyUnicode_FromString("");
    empty_tuple = PyTuple_New(0);
    outgoing_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &outgoing_spec, NULL);
    if (empty_text == NULL || empty_tuple == NULL || outgoing_type == NULL) {
        return -1;
    }
    outgoing_type->tp_vectorcall = outgoing_vectorcall;
    return PyModule_AddType(module, outgoing_type) < 0 ? -1 : PyModule_AddFunctions(module, methods);
}
