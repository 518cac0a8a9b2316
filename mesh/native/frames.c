/* `frames`: the twin of `mesh.jetstream.wire.frames`. */

#include "outgoing.h"

#define START "NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: "
#define SIGNED "\r\nMesh-Signature: "
#define TRACED "traceparent: "
#define AROUND ((Py_ssize_t)sizeof("HPUB     \r\n" START SIGNED TRACED "\r\n\r\n\r\n\r\n"))
#define DIGITS 20 /* of a number, at most */

/* What goes into one frame. It belongs to the event, which the list holds; no Python runs while it is used. */
typedef struct {
    Text subject, id, signature, trace;
    int traced;
    const char *body;
    Py_ssize_t body_size, headers_size;
    long long token;
} Frame;

static int
breaks_line(const Text *text)
{
    return text->size && (memchr(text->at, '\n', (size_t)text->size) || memchr(text->at, '\r', (size_t)text->size));
}

/* 1, 0 where a header value has a line break in it, or -1 with an exception. */
static int
read_frame(const Outgoing *item, Frame *frame)
{
    if (text_of(item->subject, &frame->subject) < 0 || text_of(item->msg_id, &frame->id) < 0
        || text_of(item->signature, &frame->signature) < 0) {
        return -1;
    }
    frame->traced = item->traceparent != Py_None;
    if (frame->traced && text_of(item->traceparent, &frame->trace) < 0) {
        return -1;
    }
    if (item->body == NULL || !PyBytes_Check(item->body) || item->token < 0) {
        PyErr_SetString(PyExc_TypeError, "a body is bytes, and a token is not negative");
        return -1;
    }
    frame->body = PyBytes_AS_STRING(item->body);
    frame->body_size = PyBytes_GET_SIZE(item->body);
    frame->token = item->token;
    frame->headers_size = (Py_ssize_t)sizeof(START SIGNED "\r\n\r\n") - 1 + frame->id.size + frame->signature.size;
    if (frame->traced) {
        frame->headers_size += (Py_ssize_t)sizeof(TRACED "\r\n") - 1 + frame->trace.size;
    }
    return !breaks_line(&frame->id) && !breaks_line(&frame->signature) && !breaks_line(&frame->trace);
}

static char *
put_frame(char *to, const Frame *frame, const Text *inbox)
{
    to = PUT_LITERAL(to, "HPUB ");
    to = put_bytes(to, frame->subject.at, frame->subject.size);
    *to++ = ' ';
    to = put_bytes(to, inbox->at, inbox->size);
    to = put_number(to, frame->token);
    *to++ = ' ';
    to = put_number(to, frame->headers_size);
    *to++ = ' ';
    to = put_number(to, frame->headers_size + frame->body_size);
    to = PUT_LITERAL(to, "\r\n" START);
    to = put_bytes(to, frame->id.at, frame->id.size);
    to = PUT_LITERAL(to, SIGNED);
    to = put_bytes(to, frame->signature.at, frame->signature.size);
    to = PUT_LITERAL(to, "\r\n");
    if (frame->traced) {
        to = PUT_LITERAL(to, TRACED);
        to = put_bytes(to, frame->trace.at, frame->trace.size);
        to = PUT_LITERAL(to, "\r\n");
    }
    to = PUT_LITERAL(to, "\r\n");
    to = put_bytes(to, frame->body, frame->body_size);
    return PUT_LITERAL(to, "\r\n");
}

/* frames(events: list, inbox: str) -> bytes | None; None where a header value has a line break in it. */
static PyObject *
frames(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *events, *inbox_text, *made = NULL;
    Text inbox;
    if (!PyArg_ParseTuple(args, "O!U", &PyList_Type, &events, &inbox_text) || text_of(inbox_text, &inbox) < 0) {
        return NULL;
    }
    const Py_ssize_t count = PyList_GET_SIZE(events);
    Py_ssize_t bytes = 1;
    Frame *read = PyMem_Calloc(count ? (size_t)count : 1, sizeof(Frame));
    if (read == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const Outgoing *item = outgoing_at(events, i);
        const int sound = item == NULL ? -1 : read_frame(item, &read[i]);
        if (sound <= 0) {
            made = sound < 0 ? NULL : Py_NewRef(Py_None);
            goto end;
        }
        const Py_ssize_t more = AROUND + 3 * DIGITS + read[i].subject.size + inbox.size + read[i].headers_size;
        if (read[i].body_size > PY_SSIZE_T_MAX - bytes - more) {
            PyErr_NoMemory();
            goto end;
        }
        bytes += more + read[i].body_size;
    }
    char *buffer = PyMem_Malloc((size_t)bytes), *to = buffer;
    if (buffer == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        to = put_frame(to, &read[i], &inbox);
    }
    made = PyBytes_FromStringAndSize(buffer, to - buffer);
    PyMem_Free(buffer);
end:
    PyMem_Free(read);
    return made;
}

static PyMethodDef methods[] = {
    {"frames", frames, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
frames_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
