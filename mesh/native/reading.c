/* `text_from_structured` of `mesh.event`: an event's text, and of its fields what is read, in one look at each of them. */

#include "reading.h"
#include "text.h"

static struct {
    PyObject *sources, *types, *time_of;
} told;

static PyObject *json;         /* what data is where the sender does not say it */
static int kinds[NAME_SLOTS];  /* of the names that most events have, by slot */
static PyObject *named[NEVER]; /* the name of a kind, borrowed */

/* reading_with(sources: dict, types: dict, time_of: Callable[[int], str]): what is told once, before the first call. */
static PyObject *
reading_with(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyDict_Check(args[0]) || !PyDict_Check(args[1]) || !PyCallable_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "reading_with(sources: dict, types: dict, time_of: Callable)");
        return NULL;
    }
    Py_XSETREF(told.sources, Py_NewRef(args[0]));
    Py_XSETREF(told.types, Py_NewRef(args[1]));
    Py_XSETREF(told.time_of, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

/* The names of the members of a sure text. */
static int
names_of(PyObject *text, Text names[MAX_MEMBERS])
{
    const char *at = PyBytes_AS_STRING(text), *end = at + PyBytes_GET_SIZE(text);
    int count = 0;
    while (count < MAX_MEMBERS && at != NULL && take_member(&at, end, names + count) > 0) {
        at = after_value(at, end);
        count++;
    }
    return count;
}

typedef struct {
    PyObject *fields;
    PyObject *id, *type; /* borrowed from them */
    PyObject *known;     /* borrowed: a type, and what is read of its data */
    const Text *data;    /* its name, where it is still to be read */
    const char *end;     /* of the text */
    unsigned seen;       /* a bit for each kind */
} Read;

static inline int
lacks(const Read *read, int kind)
{
    return !(read->seen & 1u << kind);
}

static inline int
is_known(const Read *read)
{
    PyObject *last = PyTuple_GET_ITEM(read->known, 0);
    return read->type != NULL && (read->type == last || PyUnicode_Compare(read->type, last) == 0);
}

/* What is read of the data, whose name this is, or None where it is not yet known. NULL with an exception. */
static PyObject *
data_of(Read *read, const Text *name)
{
    if (is_known(read)) {
        return glimpse_data(name, read->end, PyTuple_GET_ITEM(read->known, 1));
    }
    read->data = name;
    return Py_NewRef(Py_None);
}

/* Adds the member *name* to the fields: 1, or 0 where it is not surely fine, or -1 with an exception. */
static int
add_member(Read *read, const Text *name)
{
    const int slot = glimpse_slot(name, read->end);
    PyObject *key = slot < 0 ? PyUnicode_DecodeUTF8(name->at, name->size, NULL) : Py_NewRef(glimpse_known[slot].name);
    const int kind = slot >= 0 ? kinds[slot] : key == NULL ? -1 : attribute_kind(key);
    PyObject *value = kind < 0 ? NULL : kind == DATA ? data_of(read, name) : glimpse_value(slot, name, read->end);
    int fine = value == NULL ? -1 : attribute_is_fine(kind, key, value, told.sources, told.types);
    if (fine > 0 && PyDict_SetItem(read->fields, key, value) < 0) {
        fine = -1;
    }
    if (fine > 0) {
        read->seen |= 1u << kind;
        read->id = kind == ID ? value : read->id;
        read->type = kind == TYPE ? value : read->type;
    }
    Py_XDECREF(key);
    Py_XDECREF(value); /* the fields hold it */
    return fine;
}

/* What the sender left out, as text. */
typedef struct {
    struct {
        const char *before; /* its name */
        Text value;         /* in which nothing needs an escape */
    } members[3];
    int count;
    Py_ssize_t size;
} More;

/* Puts *value* behind the fields, and into *more*; 0, or -1 with an exception. */
static int
put_field(Read *read, More *more, int kind, const char *before, PyObject *value)
{
    Text text;
    if (text_of(value, &text) < 0 || PyDict_SetItem(read->fields, named[kind], value) < 0) {
        return -1;
    }
    more->members[more->count].before = before;
    more->members[more->count++].value = text;
    more->size += (Py_ssize_t)strlen(before) + text.size + 1;
    return 0;
}

/* As `_fill_in` of `mesh.event`: a new reference to the text, or NULL with an exception. */
static PyObject *
fill_in(Read *read, PyObject *now_ms)
{
    More more = {.count = 0};
    if (lacks(read, TIME)) {
        PyObject *time = PyObject_CallOneArg(told.time_of, now_ms);
        const int done = time == NULL ? -1 : put_field(read, &more, TIME, ",\"time\":\"", time);
        Py_XDECREF(time); /* the fields hold it */
        if (done < 0) {
            return NULL;
        }
    }
    if (lacks(read, CONTENT) && put_field(read, &more, CONTENT, ",\"datacontenttype\":\"", json) < 0) {
        return NULL;
    }
    if (lacks(read, CORRELATION) && put_field(read, &more, CORRELATION, ",\"correlationid\":\"", read->id) < 0) {
        return NULL;
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, more.size);
    char *to = made == NULL ? NULL : PyBytes_AS_STRING(made);
    for (int i = 0; to != NULL && i < more.count; i++) {
        to = put_bytes(to, more.members[i].before, (Py_ssize_t)strlen(more.members[i].before));
        to = put_bytes(to, more.members[i].value.at, more.members[i].value.size);
        *to++ = '"';
    }
    return made;
}

/* Asks what is read of an event of this type, and reads its data where that is still to be done. What is known of the type
 * then, a new reference, or NULL with an exception.
 */
static PyObject *
catch_up(Read *read, PyObject *reads)
{
    PyObject *known = is_known(read) ? Py_NewRef(read->known) : NULL;
    if (known == NULL) {
        PyObject *wanted = PyObject_CallOneArg(reads, read->type);
        known = wanted == NULL ? NULL : PyTuple_Pack(2, read->type, wanted);
        Py_XDECREF(wanted);
    }
    if (known != NULL && read->data != NULL) {
        PyObject *data = glimpse_data(read->data, read->end, PyTuple_GET_ITEM(known, 1));
        if (data == NULL || PyDict_SetItem(read->fields, named[DATA], data) < 0) {
            Py_CLEAR(known);
        }
        Py_XDECREF(data);
    }
    return known;
}

/* The answer about a sure *text*, whose members have these names: a new reference, or NULL with an exception. */
static PyObject *
read_text(PyObject *text, const Text *names, int count, PyObject *const *args, Py_ssize_t max_event)
{
    Read read = {.fields = PyDict_New(), .known = args[5], .end = PyBytes_AS_STRING(text) + PyBytes_GET_SIZE(text)};
    int fine = read.fields == NULL ? -1 : 1;
    for (int i = 0; i < count && fine > 0; i++) {
        fine = add_member(&read, names + i);
    }
    PyObject *answer = NULL;
    if (fine == 0 || (fine > 0 && !attributes_are_fine(read.seen))) {
        answer = Py_NewRef(Py_None);
    } else if (fine > 0) {
        PyObject *known = catch_up(&read, args[6]), *more = known == NULL ? NULL : fill_in(&read, args[1]);
        if (more != NULL) {
            const int fits = PyBytes_GET_SIZE(text) + PyBytes_GET_SIZE(more) <= max_event;
            answer = fits ? PyTuple_Pack(4, text, more, read.fields, known) : Py_NewRef(Py_None);
        }
        Py_XDECREF(known);
        Py_XDECREF(more);
    }
    Py_XDECREF(read.fields);
    return answer;
}

/* text_from_structured(body, now_ms, max_body, max_depth, max_event, known, reads) -> tuple | None */
static PyObject *
text_from_structured(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 7 || !PyBytes_Check(args[0]) || !PyTuple_Check(args[5]) || PyTuple_GET_SIZE(args[5]) != 2
        || !PyUnicode_Check(PyTuple_GET_ITEM(args[5], 0))) {
        PyErr_SetString(PyExc_TypeError, "text_from_structured(body: bytes, now_ms: int, max_body: int, max_depth: int,"
                                         " max_event: int, known: tuple[str, dict | None], reads: Callable)");
        return NULL;
    }
    if (told.time_of == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "reading_with has to be called first");
        return NULL;
    }
    const Py_ssize_t max_body = PyLong_AsSsize_t(args[2]);
    const long max_depth = max_body == -1 && PyErr_Occurred() ? -1 : PyLong_AsLong(args[3]);
    const Py_ssize_t max_event = max_depth == -1 && PyErr_Occurred() ? -1 : PyLong_AsSsize_t(args[4]);
    if (max_event == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyBytes_GET_SIZE(args[0]) > max_body) {
        Py_RETURN_NONE;
    }
    Text names[MAX_MEMBERS];
    int members = 0;
    PyObject *text = verbatim_text(args[0], max_depth, names, &members);
    if (text == NULL || text == Py_None) {
        return text;
    }
    if (text != args[0]) {
        members = names_of(text, names);
    }
    PyObject *answer = read_text(text, names, members, args, max_event);
    Py_DECREF(text);
    return answer;
}

static PyMethodDef methods[] = {
    {"reading_with", (PyCFunction)(void (*)(void))reading_with, METH_FASTCALL, NULL},
    {"text_from_structured", (PyCFunction)(void (*)(void))text_from_structured, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
reading_add(PyObject *module)
{
    json = PyUnicode_InternFromString("application/json");
    if (json == NULL) {
        return -1;
    }
    for (int slot = 0; slot < NAME_SLOTS; slot++) {
        PyObject *name = glimpse_known[slot].name;
        const int kind = name == NULL ? 0 : attribute_kind(name);
        if (kind < 0) {
            return -1;
        }
        kinds[slot] = kind;
        named[kind] = name;
    }
    return PyModule_AddFunctions(module, methods);
}
