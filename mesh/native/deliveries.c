/* `DeliveryRun`: the twin of that of `mesh.jetstream.deliveries`, which reads events that stand one behind the other.
 *
 * What it finds is the text between fixed marks, all of it ASCII; where the ack subject is not the plain one, the
 * durable's `AckSubject` reads it, in Python.
 */

#include "rest.h"

#define MAX_LINE (64 * 1024)         /* `wire.MAX_LINE_BYTES` */
#define MAX_FRAME (64 * 1024 * 1024) /* `wire.MAX_FRAME_BYTES` */
#define MAX_REPLY 1024               /* `acks._MAX_CHARS` */
#define SIZE_DIGITS 10               /* of a length */
#define NUMBER_DIGITS 19             /* of a number in an ack subject: all of these fit 64 bits */
#define ID_CHARS 22
#define START "NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: "
#define SIGNATURE "\r\nMesh-Signature: "
#define TRACE "traceparent: "

typedef struct {
    PyObject_HEAD
    PyObject *own;    /* AckSubject of the durable */
    PyObject *v1;     /* str: how its plain ack subjects begin, */
    Text begins;      /* and how that is written */
    PyObject *stream; /* str */
    PyObject *sid;    /* bytes: `<sid> ` */
} DeliveryRun;

typedef struct {
    Text subject, reply, msg_id, signature, body;
} Delivery;

typedef struct {
    unsigned long long deliveries, sequence, stored_ns;
} Said;

static PyObject *received; /* the class of what is read */

/* The header block of an event, which is the whole of *rest*: its message id and its signature. */
static int
takes_block(Rest rest, Delivery *delivery)
{
    Text trace;
    if (!TAKES_LITERAL(&rest, START) || rest.end - rest.at < ID_CHARS) {
        return 0;
    }
    delivery->msg_id = (Text){rest.at, ID_CHARS};
    rest.at += ID_CHARS;
    if (!all_from('!', delivery->msg_id) || !TAKES_LITERAL(&rest, SIGNATURE)
        || !takes_until(&rest, '\r', '!', &delivery->signature) || !TAKES_LITERAL(&rest, "\r\n")
        || delivery->signature.size < 2 || memcmp(delivery->signature.at, "1.", 2) != 0) {
        return 0;
    }
    if (TAKES_LITERAL(&rest, TRACE) && !(takes_until(&rest, '\r', ' ', &trace) && TAKES_LITERAL(&rest, "\r\n"))) {
        return 0;
    }
    return TAKES_LITERAL(&rest, "\r\n") && rest.at == rest.end;
}

/* Whether one whole event stands at the beginning of *rest*, which is then behind it. */
static int
takes_delivery(const DeliveryRun *self, Rest *rest, Delivery *delivery)
{
    unsigned long long headers, size;
    Rest line = *rest;
    if (line.end - line.at > MAX_LINE) {
        line.end = line.at + MAX_LINE;
    }
    if (!TAKES_LITERAL(&line, "HMSG ") || !takes_until(&line, ' ', '!', &delivery->subject) || !delivery->subject.size
        || !TAKES_LITERAL(&line, " ") || !takes(&line, PyBytes_AS_STRING(self->sid), PyBytes_GET_SIZE(self->sid))
        || !takes_until(&line, ' ', '!', &delivery->reply) || !delivery->reply.size || !TAKES_LITERAL(&line, " ")
        || !takes_digits(&line, SIZE_DIGITS, &headers) || !TAKES_LITERAL(&line, " ")
        || !takes_digits(&line, SIZE_DIGITS, &size) || !TAKES_LITERAL(&line, "\r\n")) {
        return 0;
    }
    const char *start = line.at;
    if (headers > size || size > MAX_FRAME || rest->end - start < (Py_ssize_t)size) {
        return 0;
    }
    Rest after = {start + size, rest->end};
    if (!TAKES_LITERAL(&after, "\r\n") || !takes_block((Rest){start, start + headers}, delivery)) {
        return 0;
    }
    delivery->body = (Text){start + headers, (Py_ssize_t)(size - headers)};
    *rest = after;
    return 1;
}

/* Whether *reply* is a plain ack subject of the durable, with numbers as servers write them. */
static int
takes_reply(Text begins, Text reply, Said *said)
{
    unsigned long long other;
    Rest rest = {reply.at, reply.at + reply.size};
    return reply.size <= MAX_REPLY && takes(&rest, begins.at, begins.size)
           && takes_digits(&rest, NUMBER_DIGITS, &said->deliveries) && TAKES_LITERAL(&rest, ".")
           && takes_digits(&rest, NUMBER_DIGITS, &said->sequence) && TAKES_LITERAL(&rest, ".")
           && takes_digits(&rest, NUMBER_DIGITS, &other) && TAKES_LITERAL(&rest, ".")
           && takes_digits(&rest, NUMBER_DIGITS, &said->stored_ns) && TAKES_LITERAL(&rest, ".")
           && takes_digits(&rest, NUMBER_DIGITS, &other) && rest.at == rest.end;
}

/* A str of what is ASCII. */
static PyObject *
ascii(Text text)
{
    PyObject *made = PyUnicode_New(text.size, 127);
    if (made != NULL) {
        memcpy(PyUnicode_1BYTE_DATA(made), text.at, (size_t)text.size);
    }
    return made;
}

enum { SUBJECT, BODY, IDS, SIGNED, STREAM, SEQUENCE, STREAM_MS, DELIVERIES, REPLY, ARGUMENTS };

/* The sequence, the time and the deliveries that *reply* says: 1, 0 where it is none of this durable, or -1. */
static int
said_by(DeliveryRun *self, const Delivery *delivery, PyObject **arguments)
{
    Said said;
    if (takes_reply(self->begins, delivery->reply, &said)) {
        arguments[SEQUENCE] = PyLong_FromUnsignedLongLong(said.sequence);
        arguments[STREAM_MS] = PyLong_FromUnsignedLongLong(said.stored_ns / 1000000);
        arguments[DELIVERIES] = PyLong_FromUnsignedLongLong(said.deliveries);
    } else {
        PyObject *delivered = PyObject_CallMethod(self->own, "parse", "O", arguments[REPLY]);
        if (delivered == NULL || delivered == Py_None) {
            Py_XDECREF(delivered);
            return delivered == NULL ? -1 : 0;
        }
        arguments[SEQUENCE] = PyObject_GetAttrString(delivered, "sequence");
        arguments[STREAM_MS] = arguments[SEQUENCE] ? PyObject_GetAttrString(delivered, "stream_ms") : NULL;
        arguments[DELIVERIES] = arguments[STREAM_MS] ? PyObject_GetAttrString(delivered, "deliveries") : NULL;
        Py_DECREF(delivered);
    }
    return arguments[SEQUENCE] == NULL || arguments[STREAM_MS] == NULL || arguments[DELIVERIES] == NULL ? -1 : 1;
}

/* Appends what was delivered: 1, 0 where its reply is no ack subject of the durable, or -1. */
static int
appends(DeliveryRun *self, const Delivery *delivery, PyObject *events)
{
    PyObject *arguments[ARGUMENTS] = {NULL}, *event = NULL;
    int done = -1;
    arguments[REPLY] = ascii(delivery->reply);
    if (arguments[REPLY] == NULL || (done = said_by(self, delivery, arguments)) < 1) {
        goto end;
    }
    done = -1;
    PyObject *msg_id = ascii(delivery->msg_id);
    arguments[IDS] = msg_id == NULL ? NULL : PyTuple_Pack(1, msg_id);
    Py_XDECREF(msg_id);
    arguments[SUBJECT] = ascii(delivery->subject);
    arguments[BODY] = PyBytes_FromStringAndSize(delivery->body.at, delivery->body.size);
    arguments[SIGNED] = ascii(delivery->signature);
    arguments[STREAM] = Py_NewRef(self->stream);
    if (arguments[IDS] == NULL || arguments[SUBJECT] == NULL || arguments[BODY] == NULL || arguments[SIGNED] == NULL) {
        goto end;
    }
    event = PyObject_Vectorcall(received, arguments, ARGUMENTS, NULL);
    if (event != NULL && PyList_Append(events, event) == 0) {
        done = 1;
    }
end:
    Py_XDECREF(event);
    for (int i = 0; i < ARGUMENTS; i++) {
        Py_XDECREF(arguments[i]);
    }
    return done;
}

/* read(data: bytes, position: int) -> (end, events) */
static PyObject *
delivery_run_read(DeliveryRun *self, PyObject *const *args, Py_ssize_t count)
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
    PyObject *events = PyList_New(0);
    if (events == NULL) {
        return NULL;
    }
    const char *data = PyBytes_AS_STRING(args[0]);
    Rest rest = {data + position, data + size}, next = rest;
    Delivery delivery;
    while (takes_delivery(self, &next, &delivery)) {
        const int done = appends(self, &delivery, events);
        if (done < 0) {
            Py_DECREF(events);
            return NULL;
        }
        if (!done) {
            break;
        }
        rest = next;
    }
    return Py_BuildValue("(nN)", (Py_ssize_t)(rest.at - data), events);
}

/* DeliveryRun(own: AckSubject, stream: str, sid: int) */
static PyObject *
delivery_run_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"own", "stream", "sid", NULL};
    PyObject *own, *stream;
    int sid;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUi:DeliveryRun", keywords, &own, &stream, &sid)) {
        return NULL;
    }
    if (received == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "nobody has said what is read: deliveries_with");
        return NULL;
    }
    DeliveryRun *self = (DeliveryRun *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->own = Py_NewRef(own);
    self->stream = Py_NewRef(stream);
    self->v1 = PyObject_GetAttrString(own, "v1");
    self->sid = PyBytes_FromFormat("%d ", sid);
    if (self->sid == NULL || text_of(self->v1, &self->begins) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
delivery_run_dealloc(DeliveryRun *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->own);
    Py_XDECREF(self->v1);
    Py_XDECREF(self->stream);
    Py_XDECREF(self->sid);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* deliveries_with(received): the class of what is read. */
static PyObject *
deliveries_with(PyObject *Py_UNUSED(module), PyObject *type)
{
    Py_XSETREF(received, Py_NewRef(type));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"deliveries_with", deliveries_with, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef delivery_run_methods[] = {
    {"read", (PyCFunction)(void (*)(void))delivery_run_read, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot delivery_run_slots[] = {
    {Py_tp_new, (void *)delivery_run_new},
    {Py_tp_dealloc, (void *)delivery_run_dealloc},
    {Py_tp_methods, delivery_run_methods},
    {0, NULL},
};

static PyType_Spec delivery_run_spec = {
    .name = "mesh.native._compiled.DeliveryRun",
    .basicsize = sizeof(DeliveryRun),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = delivery_run_slots,
};

int
deliveries_add(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &delivery_run_spec, NULL);
    int done = type == NULL ? -1 : PyModule_AddType(module, type);
    Py_XDECREF(type);
    return done < 0 ? -1 : PyModule_AddFunctions(module, methods);
}
