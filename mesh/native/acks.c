/* `AckRun`: the twin of that of `mesh.jetstream.acks`, which reads plain publish acks that stand one behind the other. */

#include "rest.h"
#include <structmember.h>

#define MAX_DIGITS 18 /* of a token and of a sequence: both fit 64 bits */
#define MAX_STREAM 255
#define NAMED "\r\n{\"stream\":\""
#define NUMBERED "\",\"seq\":"
#define END "}\r\n"
#define AROUND ((Py_ssize_t)sizeof("{\"stream\":\"\",\"seq\":}") - 1) /* bytes of an ack beside its name and digits */

typedef struct {
    PyObject_HEAD
    PyObject *start; /* bytes: `MSG <inbox>` */
    PyObject *sid;   /* bytes: ` <sid> ` */
} AckRun;

typedef struct {
    const char *stream;
    Py_ssize_t stream_size, digits;
    unsigned long long token, sequence;
} Ack;

static int
is_name(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* Whether one whole plain ack stands at the beginning of *rest*, which is then behind it. */
static int
takes_ack(const AckRun *self, Rest *rest, Ack *ack)
{
    unsigned long long size;
    Rest next = *rest;
    if (!takes(&next, PyBytes_AS_STRING(self->start), PyBytes_GET_SIZE(self->start))) {
        return 0;
    }
    if (next.at < next.end && *next.at == '0') {
        return 0; /* no token that we gave begins so */
    }
    if (!takes_digits(&next, MAX_DIGITS, &ack->token)
        || !takes(&next, PyBytes_AS_STRING(self->sid), PyBytes_GET_SIZE(self->sid))) {
        return 0;
    }
    if ((next.at < next.end && *next.at == '0') || !takes_digits(&next, MAX_DIGITS, &size) || !TAKES_LITERAL(&next, NAMED)) {
        return 0;
    }
    ack->stream = next.at;
    while (next.at < next.end && next.at - ack->stream <= MAX_STREAM && is_name(*next.at)) {
        next.at++;
    }
    ack->stream_size = next.at - ack->stream;
    if (ack->stream_size < 1 || ack->stream_size > MAX_STREAM || !TAKES_LITERAL(&next, NUMBERED)) {
        return 0;
    }
    ack->digits = takes_digits(&next, MAX_DIGITS, &ack->sequence);
    if (!ack->digits || !TAKES_LITERAL(&next, END)
        || size != (unsigned long long)(AROUND + ack->stream_size + ack->digits)) {
        return 0;
    }
    *rest = next;
    return 1;
}

static int
append_number(PyObject *list, unsigned long long number)
{
    PyObject *object = PyLong_FromUnsignedLongLong(number);
    int done = object == NULL ? -1 : PyList_Append(list, object);
    Py_XDECREF(object);
    return done;
}

/* read(data: bytes, position: int) -> (end, (stream, tokens, sequences) | None) */
static PyObject *
ack_run_read(AckRun *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "read(data: bytes, position: int)");
        return NULL;
    }
    const Py_ssize_t position = PyLong_AsSsize_t(args[1]), size = PyBytes_GET_SIZE(args[0]);
    if (position == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (position < 0 || position > size) {
        PyErr_SetString(PyExc_ValueError, "a position outside the data");
        return NULL;
    }
    const char *data = PyBytes_AS_STRING(args[0]);
    Rest rest = {data + position, data + size};
    Ack first, ack;
    if (!takes_ack(self, &rest, &first)) {
        return Py_BuildValue("(nO)", position, Py_None);
    }
    PyObject *tokens = PyList_New(0), *sequences = PyList_New(0), *made = NULL;
    Rest before;
    ack = first;
    do {
        if (tokens == NULL || sequences == NULL || append_number(tokens, ack.token) < 0
            || append_number(sequences, ack.sequence) < 0) {
            goto end;
        }
        before = rest;
    } while (takes_ack(self, &rest, &ack) && ack.digits == first.digits && ack.stream_size == first.stream_size
             && memcmp(ack.stream, first.stream, (size_t)first.stream_size) == 0);
    made = Py_BuildValue("(n(s#OO))", before.at - data, first.stream, first.stream_size, tokens, sequences);
end:
    Py_XDECREF(tokens);
    Py_XDECREF(sequences);
    return made;
}

/* AckRun(inbox: str, sid: int) */
static PyObject *
ack_run_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"inbox", "sid", NULL};
    const char *inbox;
    int sid;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "si:AckRun", keywords, &inbox, &sid)) {
        return NULL;
    }
    AckRun *self = (AckRun *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->start = PyBytes_FromFormat("MSG %s", inbox);
    self->sid = PyBytes_FromFormat(" %d ", sid);
    if (self->start == NULL || self->sid == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
ack_run_dealloc(AckRun *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->start);
    Py_XDECREF(self->sid);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef ack_run_methods[] = {
    {"read", (PyCFunction)(void (*)(void))ack_run_read, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ack_run_slots[] = {
    {Py_tp_new, (void *)ack_run_new},
    {Py_tp_dealloc, (void *)ack_run_dealloc},
    {Py_tp_methods, ack_run_methods},
    {0, NULL},
};

static PyType_Spec ack_run_spec = {
    .name = "mesh.native._compiled.AckRun",
    .basicsize = sizeof(AckRun),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = ack_run_slots,
};

int
acks_add(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ack_run_spec, NULL);
    int done = type == NULL ? -1 : PyModule_AddType(module, type);
    Py_XDECREF(type);
    return done;
}
