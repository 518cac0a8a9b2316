/* `Outgoing`, the twin of that of `mesh.jetstream.outgoing`, and the loops over events that are sent together: `entered`,
 * `signed`, `ordered`, `marked_sent` and `settled`. Thousands of these are in flight, and each is touched in every loop.
 *
 * As in Python, the garbage collector does not look at them.
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
static PyObject *empty_text, *empty_tuple, *unheard;

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

static void
set_defaults(Outgoing *self)
{
    self->traceparent = Py_NewRef(Py_None);
    self->base_id = Py_NewRef(empty_text);
    self->view = Py_NewRef(empty_text);
    self->type = Py_NewRef(empty_text);
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

/* --- the loops ------------------------------------------------------------------------------------------------------ */

static int
put_token(PyObject *by_token, Outgoing *item)
{
    PyObject *token = PyLong_FromLongLong(item->token);
    int done = token == NULL ? -1 : PyDict_SetItem(by_token, token, (PyObject *)item);
    Py_XDECREF(token);
    return done;
}

/* entered(items, by_token, last) -> how many */
static PyObject *
entered(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *by_token;
    long long last;
    if (!PyArg_ParseTuple(args, "O!O!L", &PyList_Type, &items, &PyDict_Type, &by_token, &last)) {
        return NULL;
    }
    Py_ssize_t at = 0;
    for (; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        PyObject *id = item->base_id;
        if (item->generation || id == NULL || !PyUnicode_Check(id) || !PyUnicode_GET_LENGTH(id)) {
            break;
        }
        item->token = ++last;
        item->sends = 0;
        Py_INCREF(item); /* what is let go of below may be Python, and change the list */
        Py_XSETREF(item->msg_id, Py_NewRef(id));
        Py_XSETREF(item->signature, Py_NewRef(empty_text));
        const int put = put_token(by_token, item);
        Py_DECREF(item);
        if (put < 0) {
            return NULL;
        }
    }
    return PyLong_FromSsize_t(at);
}

static int
add_kid(Outgoing *item, PyObject *kid, PyObject *first)
{
    if (item->kids == NULL || !PyTuple_CheckExact(item->kids)) {
        PyErr_SetString(PyExc_TypeError, "kids is a tuple");
        return -1;
    }
    if (!PyTuple_GET_SIZE(item->kids)) {
        Py_SETREF(item->kids, Py_NewRef(first));
        return 0;
    }
    PyObject *kids = Py_NewRef(item->kids); /* comparing may run Python */
    const int known = PySequence_Contains(kids, kid);
    PyObject *more = known ? NULL : PySequence_Concat(kids, first);
    Py_DECREF(kids);
    if (more == NULL) {
        return known > 0 ? 0 : -1;
    }
    Py_XSETREF(item->kids, more);
    return 0;
}

static int
set_signature(Outgoing *item, PyObject *signatures, Py_ssize_t at)
{
    if (at >= PyList_GET_SIZE(signatures)) {
        PyErr_SetString(PyExc_ValueError, "a signature for each item");
        return -1;
    }
    Py_XSETREF(item->signature, Py_NewRef(PyList_GET_ITEM(signatures, at)));
    return 0;
}

/* signed(items, signatures, kid, now_ms) */
static PyObject *
signed_(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items, *signatures, *kid;
    long long now_ms;
    if (!PyArg_ParseTuple(args, "O!O!UL", &PyList_Type, &items, &PyList_Type, &signatures, &kid, &now_ms)) {
        return NULL;
    }
    if (PyList_GET_SIZE(items) != PyList_GET_SIZE(signatures)) {
        PyErr_SetString(PyExc_ValueError, "a signature for each item");
        return NULL;
    }
    PyObject *first = PyTuple_Pack(1, kid);
    for (Py_ssize_t at = 0; first != NULL && at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        Py_XINCREF(item); /* what is compared and let go of below may be Python, and change the list */
        if (item == NULL || add_kid(item, kid, first) < 0 || set_signature(item, signatures, at) < 0) {
            Py_XDECREF(item);
            Py_CLEAR(first);
            break;
        }
        item->signed_ms = now_ms;
        if (!item->first_signed_ms) {
            item->first_signed_ms = now_ms;
        }
        Py_DECREF(item);
    }
    if (first == NULL) {
        return NULL;
    }
    Py_DECREF(first);
    Py_RETURN_NONE;
}

/* ordered(items, last, give_up_at) */
static PyObject *
ordered(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items;
    long long last;
    double give_up_at;
    if (!PyArg_ParseTuple(args, "O!Ld", &PyList_Type, &items, &last, &give_up_at)) {
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        item->order = ++last;
        item->give_up_at = give_up_at;
    }
    Py_RETURN_NONE;
}

/* marked_sent(items, now) */
static PyObject *
marked_sent(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items;
    double now;
    if (!PyArg_ParseTuple(args, "O!d", &PyList_Type, &items, &now)) {
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(items); at++) {
        Outgoing *item = outgoing_at(items, at);
        if (item == NULL) {
            return NULL;
        }
        item->sent_at = now;
        item->sends++;
    }
    Py_RETURN_NONE;
}

/* outgoing_with(unheard): what `on_done` is until somebody listens. */
static PyObject *
outgoing_with(PyObject *Py_UNUSED(module), PyObject *callback)
{
    Py_XSETREF(unheard, Py_NewRef(callback));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"outgoing_with", outgoing_with, METH_O, NULL},
    {"entered", entered, METH_VARARGS, NULL},
    {"signed", signed_, METH_VARARGS, NULL},
    {"ordered", ordered, METH_VARARGS, NULL},
    {"marked_sent", marked_sent, METH_VARARGS, NULL},
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
