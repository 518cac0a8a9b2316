/* `neighbours` and `agreed`: two loops over events that are verified together, the twins of those of
 * `mesh.together`. Whether anybody may publish them, and whether the root is signed, is asked in Python.
 */

#include "merkle.h"

#define MAX_HEADER 1024
#define MAX_BODY 1048576

enum { VERSION, KID, SIGNED, SALT, PLACE, SIZE, PROOF, SIGNATURE, PARTS };

enum { TYPE, VIEW, SPECVERSION, TENANT, SOURCE, EVENT_ID, MEMBERS };

static PyObject *signature_name, *msg_ids_name, *body_name, *stream_ms_name;
static PyObject *names[MEMBERS], *version;

/* --- neighbours ------------------------------------------------------------------------------------------------------ */

/* A header's parts; they live as long as *header* does. */
typedef struct {
    PyObject *header;
    Text parts[PARTS];
    long place, size;
} Head;

static int
split(const Text *header, Text parts[PARTS])
{
    const char *at = header->at, *end = at + header->size;
    for (int part = 0; part < PARTS; part++) {
        const char *dot = memchr(at, '.', (size_t)(end - at));
        if ((dot == NULL) != (part == PARTS - 1)) {
            return 0;
        }
        parts[part] = (Text){at, (dot == NULL ? end : dot) - at};
        at = dot == NULL ? end : dot + 1;
    }
    return 1;
}

/* The number that `statements.NUMBERS` has for *text*; -1 where it has none. */
static long
number_of(const Text *text)
{
    long number = 0;
    if (text->size < 1 || text->size > 3 || (text->at[0] == '0' && text->size > 1)) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < text->size; i++) {
        if (text->at[i] < '0' || text->at[i] > '9') {
            return -1;
        }
        number = number * 10 + text->at[i] - '0';
    }
    return number <= MAX_BATCH ? number : -1;
}

/* Whether the header is of the one spelling, as far as its event is concerned; what all of a batch share is not looked at. */
static int
is_head(Head *head, PyObject *msg_ids, PyObject *body)
{
    Text header, id;
    if (!PyUnicode_CheckExact(head->header) || !PyUnicode_IS_ASCII(head->header) || !PyTuple_CheckExact(msg_ids)
        || PyTuple_GET_SIZE(msg_ids) != 1 || !PyBytes_CheckExact(body) || PyBytes_GET_SIZE(body) > MAX_BODY) {
        return 0;
    }
    PyObject *msg_id = PyTuple_GET_ITEM(msg_ids, 0);
    if (!PyUnicode_CheckExact(msg_id) || !PyUnicode_IS_ASCII(msg_id)) {
        return 0;
    }
    if (text_of(head->header, &header) < 0 || text_of(msg_id, &id) < 0) {
        return -1;
    }
    if (header.size > MAX_HEADER || !split(&header, head->parts)) {
        return 0;
    }
    head->place = number_of(&head->parts[PLACE]);
    head->size = number_of(&head->parts[SIZE]);
    return head->parts[VERSION].size == 1 && head->parts[VERSION].at[0] == '1' && 0 <= head->place
           && head->place < head->size && is_message_id(&id) && is_message_id(&head->parts[SALT]);
}

/* 1, and *head* holds the header; 0 where it is left to `Verifier.verify`; -1 with an exception. */
static int
read_head(PyObject *event, Head *head)
{
    PyObject *msg_ids = NULL, *body = NULL;
    head->header = PyObject_GetAttr(event, signature_name);
    if (head->header != NULL && (msg_ids = PyObject_GetAttr(event, msg_ids_name)) != NULL) {
        body = PyObject_GetAttr(event, body_name);
    }
    const int plain = body == NULL ? -1 : is_head(head, msg_ids, body);
    Py_XDECREF(msg_ids);
    Py_XDECREF(body);
    if (plain <= 0) {
        Py_CLEAR(head->header);
    }
    return plain;
}

static int
same(const Text *one, const Text *other)
{
    return one->size == other->size && memcmp(one->at, other->at, (size_t)one->size) == 0;
}

/* Whether *head* is that of the next leaf behind that of *last*. */
static int
goes_on(const Head *last, const Head *head)
{
    return last->header != NULL && head->place == last->place + 1 && same(&last->parts[SIGNATURE], &head->parts[SIGNATURE])
           && same(&last->parts[KID], &head->parts[KID]) && same(&last->parts[SIGNED], &head->parts[SIGNED])
           && same(&last->parts[SIZE], &head->parts[SIZE]);
}

static PyObject *
ascii(const Text *text)
{
    PyObject *made = PyUnicode_New(text->size, 127);
    if (made != NULL && text->size) {
        memcpy(PyUnicode_1BYTE_DATA(made), text->at, (size_t)text->size);
    }
    return made;
}

static int
append(PyObject *list, const Text *text)
{
    PyObject *made = ascii(text);
    const int done = made == NULL ? -1 : PyList_Append(list, made);
    Py_XDECREF(made);
    return done;
}

/* Adds a run that begins with *head*, the header of event *at*, and has nothing in it yet: 0, or -1 with an exception. */
static int
begin_run(PyObject *runs, Py_ssize_t at, const Head *head)
{
    PyObject *run = Py_BuildValue("(nl(NNlN)[][])", at, head->place, ascii(&head->parts[KID]), ascii(&head->parts[SIGNED]),
                                  head->size, ascii(&head->parts[SIGNATURE]));
    const int done = run == NULL ? -1 : PyList_Append(runs, run);
    Py_XDECREF(run);
    return done;
}

/* neighbours(events: list) -> list of (at, place, (kid, signed, size, signature), salts, proofs) */
static PyObject *
neighbours(PyObject *Py_UNUSED(module), PyObject *events)
{
    if (!PyList_CheckExact(events)) {
        PyErr_SetString(PyExc_TypeError, "neighbours(events: list)");
        return NULL;
    }
    Head last = {0};
    PyObject *runs = PyList_New(0);
    for (Py_ssize_t at = 0; runs != NULL && at < PyList_GET_SIZE(events); at++) {
        Head head = {0};
        PyObject *event = Py_NewRef(PyList_GET_ITEM(events, at)); /* what is no event of ours may run Python */
        int plain = read_head(event, &head);
        Py_DECREF(event);
        if (plain > 0 && !goes_on(&last, &head) && begin_run(runs, at, &head) < 0) {
            plain = -1;
        }
        if (plain > 0) {
            PyObject *run = PyList_GET_ITEM(runs, PyList_GET_SIZE(runs) - 1);
            if (append(PyTuple_GET_ITEM(run, 3), &head.parts[SALT]) < 0
                || append(PyTuple_GET_ITEM(run, 4), &head.parts[PROOF]) < 0) {
                plain = -1;
            }
        }
        Py_XSETREF(last.header, head.header);
        last = head;
        if (plain < 0) {
            Py_CLEAR(runs);
        }
    }
    Py_XDECREF(last.header);
    return runs;
}

/* --- agreed ---------------------------------------------------------------------------------------------------------- */

/* Whether both are str, and the same. */
static int
equals(PyObject *one, PyObject *other)
{
    return one != NULL && PyUnicode_CheckExact(one) && PyUnicode_CheckExact(other) && PyUnicode_Compare(one, other) == 0;
}

static int
is_text(PyObject *object)
{
    return object != NULL && PyUnicode_CheckExact(object) && PyUnicode_GET_LENGTH(object) > 0;
}

/* Whether an event's body says what its subject and this consumer say: 1, and *said* has its type and source; 0, or -1 with
 * an exception. */
static int
agrees(PyObject *place, PyObject *fields, PyObject *tenant, PyObject *said)
{
    PyObject *found[MEMBERS] = {NULL};
    int agree = 1;
    for (int i = 0; agree > 0 && i < MEMBERS; i++) {
        found[i] = Py_XNewRef(PyDict_GetItemWithError(fields, names[i])); /* held: names that are none may run Python */
        agree = found[i] == NULL && PyErr_Occurred() ? -1 : 1;
    }
    if (agree > 0) {
        agree = equals(found[TYPE], PyTuple_GET_ITEM(place, 3)) && equals(found[VIEW], PyTuple_GET_ITEM(place, 1))
                && equals(found[SPECVERSION], version) && (tenant == Py_None || equals(found[TENANT], tenant))
                && is_text(found[SOURCE]) && is_text(found[EVENT_ID]);
    }
    if (agree > 0) {
        PyObject *pair = PyTuple_Pack(2, found[TYPE], found[SOURCE]);
        agree = pair == NULL || PySet_Add(said, pair) < 0 ? -1 : 1;
        Py_XDECREF(pair);
    }
    for (int i = 0; i < MEMBERS; i++) {
        Py_XDECREF(found[i]);
    }
    return agree;
}

/* Whether the stream took *event* in time: 1, 0, or -1 with an exception. */
static int
in_time(PyObject *event, PyObject *first_ms, PyObject *last_ms)
{
    PyObject *stream_ms = PyObject_GetAttr(event, stream_ms_name);
    if (stream_ms == NULL) {
        return -1;
    }
    int timely = PyObject_RichCompareBool(first_ms, stream_ms, Py_LE);
    if (timely > 0) {
        timely = PyObject_RichCompareBool(stream_ms, last_ms, Py_LE);
    }
    Py_DECREF(stream_ms);
    return timely;
}

/* One of the contents, whose parts are held: 1, 0 or -1 as `agrees`. */
static int
content_agrees(PyObject *content, PyObject *const stored[2], PyObject *tenant, PyObject *said)
{
    if (!PyTuple_CheckExact(content) || PyTuple_GET_SIZE(content) != 3 || !PyDict_CheckExact(PyTuple_GET_ITEM(content, 1))
        || !PyTuple_Check(PyTuple_GET_ITEM(content, 2)) || PyTuple_GET_SIZE(PyTuple_GET_ITEM(content, 2)) != 4) {
        PyErr_SetString(PyExc_TypeError, "expected event, body and place");
        return -1;
    }
    const int timely = in_time(PyTuple_GET_ITEM(content, 0), stored[0], stored[1]);
    return timely <= 0 ? timely : agrees(PyTuple_GET_ITEM(content, 2), PyTuple_GET_ITEM(content, 1), tenant, said);
}

/* agreed(contents: list, start: int, stored: tuple, tenant: str | None, said: set) -> int */
static PyObject *
agreed(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyList_CheckExact(args[0]) || !PyTuple_CheckExact(args[2]) || PyTuple_GET_SIZE(args[2]) != 2
        || !PySet_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "agreed(contents: list, start: int, stored: tuple, tenant: str | None, said: set)");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    if (at < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "there is no event before the first");
        }
        return NULL;
    }
    PyObject *const stored[2] = {PyTuple_GET_ITEM(args[2], 0), PyTuple_GET_ITEM(args[2], 1)};
    for (int agree = 1; agree > 0 && at < PyList_GET_SIZE(args[0]); at += agree) {
        PyObject *content = Py_NewRef(PyList_GET_ITEM(args[0], at)); /* what is no event of ours may run Python */
        agree = content == Py_None ? 0 : content_agrees(content, stored, args[3], args[4]);
        Py_DECREF(content);
        if (agree < 0) {
            return NULL;
        }
    }
    return PyLong_FromSsize_t(at);
}

/* --- the module ------------------------------------------------------------------------------------------------------ */

static PyMethodDef methods[] = {
    {"neighbours", neighbours, METH_O, NULL},
    {"agreed", (PyCFunction)(void (*)(void))agreed, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
verifying_add(PyObject *module)
{
    static const struct {
        PyObject **to;
        const char *text;
    } texts[] = {
        {&signature_name, "signature"},     {&msg_ids_name, "msg_ids"}, {&body_name, "body"},
        {&stream_ms_name, "stream_ms"},     {&names[TYPE], "type"},     {&names[VIEW], "view"},
        {&names[SPECVERSION], "specversion"}, {&names[TENANT], "tenant"}, {&names[SOURCE], "source"},
        {&names[EVENT_ID], "id"},           {&version, "1.0"},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        if ((*texts[i].to = PyUnicode_InternFromString(texts[i].text)) == NULL) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, methods);
}
