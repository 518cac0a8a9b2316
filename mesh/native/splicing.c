/* An event as a view shows it, written out of pieces of its text: the twin of `masked` of `mesh.verbatim`.
 *
 * The walk is that of `shown`, and of the walkers of objects.c and arrays.c, member by member and in their order; what
 * they do to a copy of a dict is done here to the text. A scalar is read only where a mask asks for it, a container only
 * where its walker is none of those: Python then says what becomes of it.
 */

#include "splicing.h"
#include "walkers.h"

#define MAX_NESTING 64 /* as `verbatim` has it */

static Fate enter_text(Splice *splice, PyObject *walker, const char **at, int attribute);

/* The value at *at*, which is then behind it, where *node* is. NOT_MET of a container alone. */
static inline Fate
at_node(Splice *splice, Node *node, const char **at, int attribute)
{
    if (**at != '{' && **at != '[') {
        return act_on_scalar(splice, node->act, at, attribute);
    }
    PyObject *walker = Py_XNewRef(**at == '{' ? node->on_dict : node->on_list); /* a mask may replace it */
    if (walker == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a node without on_dict or on_list");
        return FAILED;
    }
    const Fate fate = enter_text(splice, walker, at, attribute);
    Py_DECREF(walker);
    return fate;
}

/* --- containers ----------------------------------------------------------------------------------------------------- */

/* As `masking_dict`: from the brace at *at* to behind the object. */
static Fate
mask_members(Splice *splice, Walker *walker, const char **at)
{
    int met = walker->classified, more;
    Py_ssize_t kept = 0;
    Text name;
    for (const char *lead = *at; (more = take_member(at, splice->end, &name)) > 0; lead = *at) {
        const Named *known = named(walker, name);
        Node *node = known == NULL ? walker->other : known->node;
        met |= node->classified | walker->other->classified;
        if (!kept) {
            lead_in(splice, lead);
        }
        const char *began = *at;
        const int contains = *began == '{' || *began == '[';
        Fate fate = at_node(splice, node, at, 0);
        if (fate == NOT_MET) {
            fate = walker->shows ? SHOWN : put_instead(splice, Py_None, began, *at);
        } else {
            met |= contains;
        }
        if (fate == FAILED || (fate == GONE && leave_out(splice, lead, *at) < 0)) {
            return FAILED;
        }
        kept += fate != GONE;
    }
    return more < 0 ? FAILED : met ? SHOWN : NOT_MET;
}

/* As `dropping_dict` where unnamed members may be classified. */
static Fate
drop_members(Splice *splice, Walker *walker, const char **at)
{
    int more;
    Py_ssize_t kept = 0;
    Text name;
    for (const char *lead = *at; (more = take_member(at, splice->end, &name)) > 0; lead = *at) {
        const Named *known = named(walker, name);
        Node *node = known == NULL ? walker->other : known->node;
        Fate fate = GONE;
        if (!kept) {
            lead_in(splice, lead);
        }
        if (node->classified || **at == '{' || **at == '[') {
            fate = at_node(splice, node, at, 0);
        } else {
            *at = after_value(*at, splice->end);
        }
        if (fate == FAILED || *at == NULL || (fate != SHOWN && leave_out(splice, lead, *at) < 0)) {
            return FAILED;
        }
        kept += fate == SHOWN;
    }
    return more < 0 ? FAILED : kept ? SHOWN : GONE;
}

/* The members in *places*, one for each name that *walker* knows, in the order of the names; the object began at *at*. */
static Fate
list_found(Splice *splice, Walker *walker, const char *at, const char **places)
{
    Py_ssize_t kept = 0;
    if (show_until(splice, at) < 0) {
        return FAILED;
    }
    for (Py_ssize_t i = 0; i < walker->count; i++) {
        const Named *known = &walker->known[i];
        const char *value = places[i];
        if (value == NULL) {
            continue;
        }
        const char *lead = value - known->name.size - 3; /* quotes and colon */
        const Py_ssize_t written = splice->out.size;
        if (out_put(&splice->out, kept ? "," : "{", 1) < 0 || out_put(&splice->out, lead, value - lead) < 0) {
            return FAILED;
        }
        splice->from = value;
        const Fate fate = at_node(splice, known->node, &value, 0);
        if (fate == FAILED || (fate == SHOWN && show_until(splice, value) < 0)) {
            return FAILED;
        }
        if (fate == SHOWN) {
            kept++;
        } else {
            splice->out.size = written;
        }
    }
    return !kept ? GONE : OUT_LITERAL(&splice->out, "}") < 0 ? FAILED : SHOWN;
}

/* As `dropping_dict` where only the named members are looked at, in the order of the names. */
static Fate
list_members(Splice *splice, Walker *walker, const char **at)
{
    const char *began = *at, **places = PyMem_Calloc((size_t)walker->count + 1, sizeof(*places));
    int more;
    Text name;
    if (places == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    while ((more = take_member(at, splice->end, &name)) > 0) {
        const Named *known = named(walker, name);
        if (known != NULL) {
            places[known - walker->known] = *at;
        }
        *at = after_value(*at, splice->end);
        if (*at == NULL) {
            more = -1;
            break;
        }
    }
    const Fate fate = more < 0 ? FAILED : list_found(splice, walker, began, places);
    PyMem_Free(places);
    splice->from = *at;
    return fate;
}

/* Whether an array of which nothing is left is left out: 1 or 0, or -1 with an exception. */
static int
drops_empty(PyObject *otherwise)
{
    if (otherwise == Py_None || otherwise == drops || otherwise == redacts) {
        return otherwise == drops;
    }
    PyObject *answer = act_on(otherwise, Py_None);
    Py_XDECREF(answer); /* compared below, never used */
    return answer == NULL ? -1 : answer == dropped;
}

/* As `item_list`. */
static Fate
mask_items(Splice *splice, Walker *walker, const char **at)
{
    int met = walker->classified, more;
    Py_ssize_t kept = 0, size = 0;
    for (const char *lead = *at; (more = take_item(at, splice->end)) > 0; lead = *at) {
        const char *began = *at;
        size++;
        if (!kept) {
            lead_in(splice, lead);
        }
        met |= walker->other->classified;
        Fate fate = at_node(splice, walker->other, at, 0);
        if (*began == '{' || *began == '[') {
            if (fate != NOT_MET) {
                met = 1;
            } else if ((fate = act_on_container(splice, walker->otherwise, began, *at, 0)) == NOT_MET) {
                fate = FAILED; /* a mask has no such answer */
            }
        }
        if (fate == FAILED || (fate == GONE && leave_out(splice, lead, *at) < 0)) {
            return FAILED;
        }
        kept += fate != GONE;
    }
    const int drops_it = more == 0 && met && size && !kept ? drops_empty(walker->otherwise) : 0;
    return more < 0 || drops_it < 0 ? FAILED : !met ? NOT_MET : drops_it ? GONE : SHOWN;
}

/* The container at *at*, which is then behind it, as *walker* has it; where it is not SHOWN, nothing is written of it. */
static Fate
enter_text(Splice *splice, PyObject *walker, const char **at, int attribute)
{
    const char *began = *at, *from = splice->from;
    const Py_ssize_t size = splice->out.size;
    Walker *known = (Walker *)walker;
    Fate fate = FAILED;
    if (walker == as_it_is || walker == no_path || !Py_IS_TYPE(walker, walker_type)
        || (known->call == item_list_call) != (*began == '[')) {
        *at = after_container(began, splice->end);
        return *at == NULL              ? FAILED
               : walker == as_it_is     ? SHOWN
               : walker == no_path      ? NOT_MET
                                        : act_on_container(splice, walker, began, *at, attribute);
    }
    const int empty = began[1] == (*began == '{' ? '}' : ']');
    if (empty && known->call == dropping_dict_call) {
        *at = began + 2;
        return known->classified ? SHOWN : NOT_MET;
    }
    if (known->untouched) {
        *at = after_container(began, splice->end);
        return *at == NULL ? FAILED : empty && !known->classified ? NOT_MET : SHOWN;
    }
    if (++splice->depth < MAX_NESTING) { /* this one is within the event */
        fate = known->call == item_list_call      ? mask_items(splice, known, at)
               : known->call == masking_dict_call ? mask_members(splice, known, at)
               : known->listed                    ? list_members(splice, known, at)
                                                  : drop_members(splice, known, at);
    }
    splice->depth--;
    if (fate != SHOWN && fate != FAILED) {
        splice->from = from;
        splice->out.size = size;
    }
    return fate;
}

/* --- the fields ----------------------------------------------------------------------------------------------------- */

/* *name* as a str: those of attributes come again and again. A new reference, or NULL with an exception. */
static PyObject *
name_of(Text name)
{
    static struct {
        Ends ends;
        Text text; /* of *name* */
        PyObject *name;
    } recent[256];
    const Ends ends = ends_of(name);
    const size_t slot = name_hash(ends, name.size) % 256;
    if (recent[slot].name == NULL || !same_name(recent[slot].text, recent[slot].ends, name, ends)) {
        PyObject *made = PyUnicode_DecodeUTF8(name.at, name.size, NULL);
        if (made == NULL || name.size > 32 || !PyUnicode_IS_ASCII(made)) {
            return made;
        }
        recent[slot].ends = ends;
        recent[slot].text = (Text){(const char *)PyUnicode_1BYTE_DATA(made), name.size};
        Py_XSETREF(recent[slot].name, made);
    }
    return Py_NewRef(recent[slot].name);
}

/* The field *name*, whose value is at *at*, which is then behind it. */
static Fate
field(Splice *splice, Text name, const char **at, const Look *look)
{
    const char *began = *at;
    const int attribute = name.size != 4 || memcmp(name.at, "data", 4) != 0;
    PyObject *key = name_of(name), *value = NULL;
    Fate fate = FAILED;
    if (key == NULL) {
        return FAILED;
    }
    if (look->instead != NULL) {
        value = Py_XNewRef(PyDict_GetItemWithError(look->instead, key));
    }
    PyObject *found = value != NULL || PyErr_Occurred() ? NULL : Py_XNewRef(PyDict_GetItemWithError(look->top, key));
    Py_DECREF(key);
    if (PyErr_Occurred()) {
        return FAILED;
    }
    if (value != NULL || found == Py_None) {
        *at = after_value(began, splice->end);
        fate = *at == NULL ? FAILED : value == NULL ? SHOWN : put_instead(splice, value, began, *at);
    } else if (found != NULL && !Py_IS_TYPE(found, node_type)) {
        PyErr_SetString(PyExc_TypeError, "top is a dict of nodes and None");
    } else {
        fate = at_node(splice, found == NULL ? look->elsewhere : (Node *)found, at, attribute);
        if (fate == NOT_MET) {
            fate = act_on_container(splice, look->otherwise, began, *at, attribute);
        }
    }
    Py_XDECREF(value);
    Py_XDECREF(found);
    return fate == NOT_MET ? FAILED : fate;
}

static inline int
is_binary(Text name)
{
    return name.size == 11 && memcmp(name.at, "data_base64", 11) == 0;
}

/* Whether there is binary data in the event from *at* on, behind what was looked at too. */
static int
has_binary(const char *at, const char *end)
{
    Text name;
    while (at != NULL && take_member(&at, end, &name) > 0) {
        if (is_binary(name)) {
            return 1;
        }
        at = after_value(at, end);
    }
    return 0;
}

PyObject *
masked_text(PyObject *bytes, const Look *look, Text behind, Text marks)
{
    const char *text = PyBytes_AS_STRING(bytes), *at = text;
    const Py_ssize_t size = PyBytes_GET_SIZE(bytes), added = behind.size + marks.size;
    Splice splice = {.from = text, .end = text + size};
    PyObject *made = NULL;
    Py_ssize_t kept = 0;
    Text name;
    int more = out_begin(&splice.out, size + added + 64); /* a mask may make more of a value than there was */
    for (const char *lead = at; more >= 0 && (more = take_member(&at, splice.end, &name)) > 0; lead = at) {
        if (!kept) {
            lead_in(&splice, lead);
        }
        const Fate fate = is_binary(name) ? FAILED : field(&splice, name, &at, look); /* to hide that renames it */
        if (fate == FAILED || (fate == GONE && leave_out(&splice, lead, at) < 0)) {
            more = -1;
        }
        kept += fate == SHOWN;
    }
    if (more == 0 && at == splice.end) {
        if (splice.from == text && !added) {
            made = Py_NewRef(bytes); /* all of it shows */
        } else if (show_until(&splice, at - (added > 0)) == 0 && out_put(&splice.out, behind.at, behind.size) == 0
                   && out_put(&splice.out, marks.at, marks.size) == 0) {
            made = out_end(&splice.out);
        }
    }
    Py_XDECREF(splice.out.bytes);
    if (made == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception) && has_binary(text, splice.end)) {
        PyErr_Clear(); /* what a mask has raised before that was found */
    }
    return made == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : made;
}

/* masked(text, instead, top, elsewhere, otherwise, behind=b"") -> bytes | None */
static PyObject *
masked(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count < 5 || count > 6 || !PyBytes_CheckExact(args[0]) || !PyDict_CheckExact(args[1])
        || !PyDict_CheckExact(args[2]) || !Py_IS_TYPE(args[3], node_type)
        || (count == 6 && !PyBytes_CheckExact(args[5]))) {
        PyErr_SetString(PyExc_TypeError, "masked(text: bytes, instead: dict, top: dict, elsewhere: Node, otherwise, "
                                         "behind: bytes = b\"\")");
        return NULL;
    }
    const Look look = {args[1], args[2], (Node *)args[3], args[4]};
    const Text nothing = {"", 0};
    return masked_text(args[0], &look, count < 6 ? nothing : bytes_text(args[5]), nothing);
}

static PyMethodDef methods[] = {
    {"masked", (PyCFunction)(void (*)(void))masked, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
splicing_add(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
