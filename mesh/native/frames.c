/* `event_frames`: the twin of `mesh.jetstream.wire.event_frames`. */

#include "common.h"

enum { SUBJECT, MSG_ID, SIGNATURE, TRACE, TEXTS };

static PyObject *names[TEXTS];
static PyObject *body_name, *token_name;

#define START "NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: "
#define SIGNED "\r\nMesh-Signature: "
#define TRACED "traceparent: "
#define DIGITS 20 /* of a number, at most */

typedef struct {
    Text texts[TEXTS];
    const char *body;
    Py_ssize_t body_size;
    Py_ssize_t block_size; /* of the headers */
    Py_ssize_t token;
    PyObject *kept[TEXTS + 1]; /* what the texts and the body belong to */
} Event;

static void
let_go(Event *events, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        for (int part = 0; part <= TEXTS; part++) {
            Py_XDECREF(events[i].kept[part]);
        }
    }
    PyMem_Free(events);
}

static int
read_event(PyObject *object, Event *event)
{
    for (int part = 0; part < TEXTS; part++) {
        PyObject *value = event->kept[part] = PyObject_GetAttr(object, names[part]);
        if (value == NULL) {
            return -1;
        }
        if (part == TRACE && value == Py_None) {
            continue; /* no bytes */
        }
        if (text_of(value, &event->texts[part]) < 0) {
            return -1;
        }
    }
    PyObject *token = PyObject_GetAttr(object, token_name);
    event->token = token == NULL ? -1 : PyLong_AsSsize_t(token);
    Py_XDECREF(token);
    if (event->token < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a token is not negative");
        }
        return -1;
    }
    PyObject *body = event->kept[TEXTS] = PyObject_GetAttr(object, body_name);
    if (body == NULL) {
        return -1;
    }
    if (!PyBytes_Check(body)) {
        PyErr_Format(PyExc_TypeError, "a body is bytes, not %.80s", Py_TYPE(body)->tp_name);
        return -1;
    }
    event->body = PyBytes_AS_STRING(body);
    event->body_size = PyBytes_GET_SIZE(body);
    Py_ssize_t size = (Py_ssize_t)(sizeof(START) - 1 + sizeof(SIGNED) - 1 + 4);
    size += event->texts[MSG_ID].size + event->texts[SIGNATURE].size;
    if (event->kept[TRACE] != Py_None) {
        size += (Py_ssize_t)sizeof(TRACED) - 1 + event->texts[TRACE].size + 2;
    }
    event->block_size = size;
    return 0;
}

static int
breaks_line(const Text *text)
{
    return text->size && (memchr(text->at, '\n', (size_t)text->size) || memchr(text->at, '\r', (size_t)text->size));
}

static char *
put_event(char *to, const Event *event, const Text *inbox)
{
    const Text *texts = event->texts;
    to = PUT_LITERAL(to, "HPUB ");
    to = put_bytes(to, texts[SUBJECT].at, texts[SUBJECT].size);
    *to++ = ' ';
    to = put_bytes(to, inbox->at, inbox->size);
    to = put_number(to, event->token);
    *to++ = ' ';
    to = put_number(to, event->block_size);
    *to++ = ' ';
    to = put_number(to, event->block_size + event->body_size);
    to = PUT_LITERAL(to, "\r\n" START);
    to = put_bytes(to, texts[MSG_ID].at, texts[MSG_ID].size);
    to = PUT_LITERAL(to, SIGNED);
    to = put_bytes(to, texts[SIGNATURE].at, texts[SIGNATURE].size);
    to = PUT_LITERAL(to, "\r\n");
    if (event->kept[TRACE] != Py_None) {
        to = PUT_LITERAL(to, TRACED);
        to = put_bytes(to, texts[TRACE].at, texts[TRACE].size);
        to = PUT_LITERAL(to, "\r\n");
    }
    to = PUT_LITERAL(to, "\r\n");
    to = put_bytes(to, event->body, event->body_size);
    return PUT_LITERAL(to, "\r\n");
}

/* frames(events: list, inbox: str) -> bytes | None; None where a header value has a line break in it. */
static PyObject *
frames(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Text inbox;
    if (count != 2 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "frames(events: list, inbox: str)");
        return NULL;
    }
    if (text_of(args[1], &inbox) < 0) {
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(args[0]), bytes = 0;
    Event *events = PyMem_Calloc(size ? (size_t)size : 1, sizeof(Event));
    if (events == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *made = NULL;
    for (Py_ssize_t i = 0; i < size; i++) {
        Event *event = &events[i];
        if (i >= PyList_GET_SIZE(args[0])) {
            PyErr_SetString(PyExc_RuntimeError, "the list of events changed while it was read");
            goto end;
        }
        PyObject *object = Py_NewRef(PyList_GET_ITEM(args[0], i)); /* an attribute may be Python, and change the list */
        const int read = read_event(object, event);
        Py_DECREF(object);
        if (read < 0) {
            goto end;
        }
        const Text *texts = event->texts;
        if (breaks_line(&texts[MSG_ID]) || breaks_line(&texts[SIGNATURE]) || breaks_line(&texts[TRACE])) {
            made = Py_NewRef(Py_None);
            goto end;
        }
        bytes += (Py_ssize_t)sizeof("HPUB     \r\n\r\n") + 3 * DIGITS + texts[SUBJECT].size + inbox.size;
        bytes += event->block_size + event->body_size;
    }
    char *buffer = PyMem_Malloc(bytes ? (size_t)bytes : 1);
    if (buffer == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    char *to = buffer;
    for (Py_ssize_t i = 0; i < size; i++) {
        to = put_event(to, &events[i], &inbox);
    }
    made = PyBytes_FromStringAndSize(buffer, to - buffer);
    PyMem_Free(buffer);
end:
    let_go(events, size);
    return made;
}

static PyMethodDef methods[] = {
    {"frames", (PyCFunction)(void (*)(void))frames, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
frames_add(PyObject *module)
{
    static const char *const spelt[TEXTS] = {"subject", "msg_id", "signature", "traceparent"};
    for (int part = 0; part < TEXTS; part++) {
        if ((names[part] = PyUnicode_InternFromString(spelt[part])) == NULL) {
            return -1;
        }
    }
    body_name = PyUnicode_InternFromString("body");
    token_name = PyUnicode_InternFromString("token");
    return body_name == NULL || token_name == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
