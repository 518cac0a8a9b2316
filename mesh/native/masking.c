/* The loops of masking: the twins of what `mesh.policy.walkers` has in Python, where it says what each promises.
 *
 * A walker is called with a container and answers with the masked one, with the same where nothing changed, DROPPED, or
 * UNMET. Nothing here changes a container that it was given, and an object that a mask makes is owned while it is used.
 */

#include "common.h"
#include <structmember.h>

static PyObject *dropped;  /* the object that says: the member is not there */
static PyObject *unmet;    /* the one that says: nothing classified was found */
static PyObject *as_it_is; /* the walker that changes nothing */

/* What a value is to a walker: the types of JSON, exactly; a subclass is none of them. */
typedef enum { SCALAR, OBJECT, ARRAY, OTHER } Kind;

static inline Kind
kind_of(PyObject *value)
{
    if (PyUnicode_CheckExact(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyBool_Check(value)
        || value == Py_None) {
        return SCALAR;
    }
    return PyDict_CheckExact(value) ? OBJECT : PyList_CheckExact(value) ? ARRAY : OTHER;
}

/* --- a place in an event: `Node` ------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *places, *act, *on_dict, *on_list;
    char classified;
} Node;

static PyTypeObject *node_type;

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

/* --- what a place does with a value --------------------------------------------------------------------------------- */

/* The walker of *node* for *value*, which is a container; called: a new reference. */
static PyObject *
enter(Node *node, PyObject *value, Kind kind)
{
    PyObject *walker = Py_XNewRef(kind == OBJECT ? node->on_dict : node->on_list); /* the call may replace it */
    if (walker == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a node without on_dict or on_list");
        return NULL;
    }
    PyObject *masked = PyObject_CallOneArg(walker, value);
    Py_DECREF(walker);
    return masked;
}

static PyObject *
act_on(PyObject *act, PyObject *value)
{
    if (act == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a node without act");
        return NULL;
    }
    if (act == Py_None) {
        return Py_NewRef(value);
    }
    Py_INCREF(act); /* the call may replace it */
    PyObject *masked = PyObject_CallOneArg(act, value);
    Py_DECREF(act);
    return masked;
}

/* The next member of *value*, both parts held: a mask may be Python, and let go of what it came from. 1, or 0 at the end,
 * or -1 with an exception where a mask has made the object larger or smaller. */
static int
next_member(PyObject *value, Py_ssize_t size, Py_ssize_t *at, PyObject **name, PyObject **item)
{
    if (PyDict_GET_SIZE(value) != size) {
        PyErr_SetString(PyExc_RuntimeError, "dictionary changed size during iteration");
        return -1;
    }
    if (!PyDict_Next(value, at, name, item)) {
        return 0;
    }
    Py_INCREF(*name);
    Py_INCREF(*item);
    return 1;
}

static void
let_go(PyObject *name, PyObject *item)
{
    Py_DECREF(name);
    Py_DECREF(item);
}

/* Put *masked*, which is taken, in the place of *name* in *out*: 0, or -1 with an exception. */
static int
replace(PyObject *out, PyObject *name, PyObject *masked)
{
    int done = masked == dropped ? PyDict_DelItem(out, name) : PyDict_SetItem(out, name, masked);
    Py_DECREF(masked);
    return done;
}

/* --- objects and arrays: the three walkers -------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *names;     /* of objects: the members that some path names, and the nodes they lead to */
    Node *other;         /* of objects: where all others lead; of arrays: where the items lead */
    PyObject *otherwise; /* of arrays: what becomes of an unclassified container in them */
    char classified, shows, listed, untouched;
} Walker;

static PyTypeObject *walker_type;

static int
walker_traverse(Walker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->names);
    Py_VISIT(self->other);
    Py_VISIT(self->otherwise);
    return 0;
}

static int
walker_clear(Walker *self)
{
    Py_CLEAR(self->names);
    Py_CLEAR(self->other);
    Py_CLEAR(self->otherwise);
    return 0;
}

static void
walker_dealloc(Walker *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    walker_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef walker_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Walker, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot walker_slots[] = {
    {Py_tp_call, (void *)PyVectorcall_Call},
    {Py_tp_dealloc, (void *)walker_dealloc},
    {Py_tp_traverse, (void *)walker_traverse},
    {Py_tp_clear, (void *)walker_clear},
    {Py_tp_members, walker_members},
    {0, NULL},
};

static PyType_Spec walker_spec = {
    .name = "mesh.native._compiled.Walker",
    .basicsize = sizeof(Walker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = walker_slots,
};

/* The one argument of a walker, where it is of *type*; NULL with an exception. */
static PyObject *
only_argument(PyObject *const *args, size_t flags, PyObject *keywords, PyTypeObject *type)
{
    if (PyVectorcall_NARGS(flags) != 1 || keywords != NULL || !Py_IS_TYPE(args[0], type)) {
        PyErr_Format(PyExc_TypeError, "a walker takes one %s", type->tp_name);
        return NULL;
    }
    return args[0];
}

/* What becomes of one member under `masking_dict`: a new reference, *item* itself where it stays. *met* is set where
 * something classified was found. */
static PyObject *
masked_member(Walker *self, PyObject *name, PyObject *item, int *met)
{
    Node *node = (Node *)PyDict_GetItemWithError(self->names, name);
    if (node == NULL) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        node = self->other;
    }
    *met |= node->classified;
    const Kind kind = kind_of(item);
    if (kind == SCALAR) {
        return act_on(node->act, item);
    }
    if (kind == OTHER) {
        return Py_NewRef(Py_None); /* no JSON value */
    }
    PyObject *masked = enter(node, item, kind);
    if (masked != unmet) {
        *met = 1;
        return masked;
    }
    Py_DECREF(masked);
    return Py_NewRef(self->shows ? item : Py_None);
}

static PyObject *
masking_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = only_argument(args, flags, keywords, &PyDict_Type), *out = NULL, *name, *item;
    if (value == NULL || Py_EnterRecursiveCall(" while masking an object")) {
        return NULL;
    }
    const Py_ssize_t size = PyDict_GET_SIZE(value);
    int met = self->classified || (self->other->classified && size > 0), more;
    Py_ssize_t at = 0;
    while ((more = next_member(value, size, &at, &name, &item)) > 0) {
        PyObject *masked = masked_member(self, name, item, &met);
        if (masked == item) {
            Py_DECREF(masked);
        } else if (masked == NULL || (out == NULL && (out = PyDict_Copy(value)) == NULL)) {
            Py_XDECREF(masked);
            more = -1;
        } else if (replace(out, name, masked) < 0) {
            more = -1;
        }
        let_go(name, item);
        if (more < 0) {
            break;
        }
    }
    Py_LeaveRecursiveCall();
    if (more < 0 || !met) {
        Py_XDECREF(out);
        return more < 0 ? NULL : Py_NewRef(unmet);
    }
    return out == NULL ? Py_NewRef(value) : out;
}

/* What is kept of one member under `otherwise: drop`: 0, or -1 with an exception. */
static int
keep_member(PyObject *out, PyObject *name, PyObject *item, Node *node)
{
    const Kind kind = kind_of(item);
    PyObject *masked;
    if (kind == OBJECT || kind == ARRAY) {
        masked = enter(node, item, kind);
    } else {
        masked = kind == OTHER && node->act == Py_None ? Py_NewRef(Py_None) : act_on(node->act, item);
    }
    if (masked == NULL) {
        return -1;
    }
    int done = masked == dropped || masked == unmet ? 0 : PyDict_SetItem(out, name, masked);
    Py_DECREF(masked);
    return done;
}

static PyObject *
dropping_dict_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = only_argument(args, flags, keywords, &PyDict_Type), *name, *item, *node;
    if (value == NULL) {
        return NULL;
    }
    if (!PyDict_GET_SIZE(value)) {
        return Py_NewRef(self->classified ? value : unmet);
    }
    PyObject *out = PyDict_New();
    if (out == NULL || Py_EnterRecursiveCall(" while masking an object")) {
        Py_XDECREF(out);
        return NULL;
    }
    Py_ssize_t at = 0;
    int more = 0; /* as `next_member` says */
    if (self->listed) { /* nothing that goes unnamed can be classified: only the named members are looked at */
        while (PyDict_Next(self->names, &at, &name, &node)) {
            item = Py_XNewRef(PyDict_GetItemWithError(value, name));
            more = item == NULL ? (PyErr_Occurred() ? -1 : 0) : keep_member(out, name, item, (Node *)node);
            Py_XDECREF(item);
            if (more < 0) {
                break;
            }
        }
    } else {
        const Py_ssize_t size = PyDict_GET_SIZE(value);
        while ((more = next_member(value, size, &at, &name, &item)) > 0) {
            node = PyDict_GetItemWithError(self->names, name);
            Node *leads = node == NULL ? self->other : (Node *)node;
            const Kind kind = kind_of(item);
            if (node == NULL && PyErr_Occurred()) {
                more = -1;
            } else if (leads->classified || kind == OBJECT || kind == ARRAY) {
                more = keep_member(out, name, item, leads);
            }
            let_go(name, item);
            if (more < 0) {
                break;
            }
        }
    }
    Py_LeaveRecursiveCall();
    if (more < 0 || !PyDict_GET_SIZE(out)) {
        Py_DECREF(out);
        return more < 0 ? NULL : Py_NewRef(dropped);
    }
    return out;
}

/* What becomes of one item of an array: a new reference. */
static PyObject *
masked_item(Walker *self, PyObject *item, int *met)
{
    const Kind kind = kind_of(item);
    if (kind == SCALAR) {
        return act_on(self->other->act, item);
    }
    if (kind == OTHER) {
        return Py_NewRef(Py_None); /* no JSON value */
    }
    PyObject *masked = enter(self->other, item, kind);
    if (masked != unmet) {
        *met = 1;
        return masked;
    }
    Py_DECREF(masked);
    return act_on(self->otherwise, item);
}

/* Whether an array of which nothing is left is left out: 1 or 0, or -1 with an exception. */
static int
drops_empty(Walker *self)
{
    if (self->otherwise == Py_None) {
        return 0;
    }
    PyObject *answer = PyObject_CallOneArg(self->otherwise, Py_None);
    Py_XDECREF(answer); /* compared below, never used */
    return answer == NULL ? -1 : answer == dropped;
}

static PyObject *
item_list_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    Walker *self = (Walker *)callable;
    PyObject *value = only_argument(args, flags, keywords, &PyList_Type);
    if (value == NULL) {
        return NULL;
    }
    const Py_ssize_t size = PyList_GET_SIZE(value);
    if (self->untouched) {
        return Py_NewRef(size || self->classified ? value : unmet);
    }
    PyObject *out = PyList_New(0);
    if (out == NULL || Py_EnterRecursiveCall(" while masking an array")) {
        Py_XDECREF(out);
        return NULL;
    }
    int met = self->classified || (self->other->classified && size > 0);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(value, i)), *masked = masked_item(self, item, &met);
        Py_DECREF(item);
        if (masked == NULL || (masked != dropped && PyList_Append(out, masked) < 0)) {
            Py_XDECREF(masked);
            Py_LeaveRecursiveCall();
            Py_DECREF(out);
            return NULL;
        }
        Py_DECREF(masked);
    }
    Py_LeaveRecursiveCall();
    int drops = met && size && !PyList_GET_SIZE(out) ? drops_empty(self) : 0;
    if (met && drops == 0) {
        return out;
    }
    Py_DECREF(out);
    return drops < 0 ? NULL : Py_NewRef(met ? dropped : unmet);
}

/* --- how they are made ---------------------------------------------------------------------------------------------- */

static Walker *
new_walker(vectorcallfunc call, PyObject *names, PyObject *other, PyObject *otherwise)
{
    PyObject *name, *node;
    Py_ssize_t at = 0;
    if (!Py_IS_TYPE(other, node_type) || (names != NULL && !PyDict_CheckExact(names))) {
        PyErr_SetString(PyExc_TypeError, "names is a dict of nodes, and so is where others lead");
        return NULL;
    }
    while (names != NULL && PyDict_Next(names, &at, &name, &node)) {
        if (!Py_IS_TYPE(node, node_type)) {
            PyErr_SetString(PyExc_TypeError, "names is a dict of nodes");
            return NULL;
        }
    }
    PyObject *own = names == NULL ? NULL : PyDict_Copy(names);
    if (names != NULL && own == NULL) {
        return NULL;
    }
    Walker *self = (Walker *)walker_type->tp_alloc(walker_type, 0);
    if (self == NULL) {
        Py_XDECREF(own);
        return NULL;
    }
    self->call = call;
    self->names = own;
    self->other = (Node *)Py_NewRef(other);
    self->otherwise = Py_XNewRef(otherwise);
    return self;
}

static PyObject *
masking_dict(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "other", "classified", "shows", NULL};
    PyObject *names, *other;
    int classified, shows;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$pp", keywords, &names, &other, &classified, &shows)) {
        return NULL;
    }
    Walker *self = new_walker(masking_dict_call, names, other, NULL);
    if (self != NULL) {
        self->classified = (char)classified;
        self->shows = (char)shows;
    }
    return (PyObject *)self;
}

static PyObject *
dropping_dict(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "other", "classified", NULL};
    PyObject *names, *other;
    int classified;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$p", keywords, &names, &other, &classified)) {
        return NULL;
    }
    Walker *self = new_walker(dropping_dict_call, names, other, NULL);
    PyObject *leads = self == NULL ? NULL : self->other->places;
    const int places = leads == NULL ? -1 : PyObject_IsTrue(leads);
    if (places < 0) {
        if (self != NULL && leads == NULL) {
            PyErr_SetString(PyExc_AttributeError, "a node without places");
        }
        Py_XDECREF(self);
        return NULL;
    }
    self->classified = (char)classified;
    self->listed = !places;
    return (PyObject *)self;
}

static PyObject *
item_list(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"node", "otherwise", "classified", NULL};
    PyObject *node, *otherwise;
    int classified;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$p", keywords, &node, &otherwise, &classified)) {
        return NULL;
    }
    Walker *self = new_walker(item_list_call, NULL, node, otherwise);
    if (self != NULL) {
        const Node *leads = self->other;
        self->classified = (char)classified;
        self->untouched = leads->classified && leads->act == Py_None && leads->on_dict == as_it_is
                          && leads->on_list == as_it_is;
    }
    return (PyObject *)self;
}

/* --- an event ------------------------------------------------------------------------------------------------------- */

/* What becomes of one field: 0, or -1 with an exception. *how* is what `shown` has as its last two arguments. */
static int
show(PyObject *out, PyObject *name, PyObject *value, PyObject *top, Node *elsewhere, PyObject *const *how)
{
    PyObject *found = PyDict_GetItemWithError(top, name), *masked;
    if (found == Py_None) {
        return 0; /* an attribute that no policy masks */
    }
    if (found == NULL ? PyErr_Occurred() != NULL : !Py_IS_TYPE(found, node_type)) {
        if (found != NULL) {
            PyErr_SetString(PyExc_TypeError, "top is a dict of nodes and None");
        }
        return -1;
    }
    Node *node = found == NULL ? elsewhere : (Node *)found;
    const Kind kind = kind_of(value);
    if (kind == SCALAR) {
        masked = act_on(node->act, value);
    } else if (kind == OTHER) {
        masked = Py_NewRef(Py_None); /* no JSON value */
    } else if ((masked = enter(node, value, kind)) == unmet) {
        Py_DECREF(masked);
        masked = act_on(how[0], value);
    }
    if (masked != NULL && masked != value) {
        PyObject *done = PyObject_CallFunctionObjArgs(how[1], name, masked, out, NULL);
        Py_DECREF(masked);
        masked = done;
    }
    Py_XDECREF(masked);
    return masked == NULL ? -1 : 0;
}

/* shown(fields, top, elsewhere, otherwise, put) -> dict */
static PyObject *
shown(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyDict_CheckExact(args[0]) || !PyDict_CheckExact(args[1]) || !Py_IS_TYPE(args[2], node_type)) {
        PyErr_SetString(PyExc_TypeError, "shown(fields: dict, top: dict, elsewhere: Node, otherwise, put)");
        return NULL;
    }
    PyObject *fields = args[0], *top = args[1], *name, *value;
    PyObject *out = PyDict_Copy(fields);
    Py_ssize_t size = PyDict_GET_SIZE(fields), at = 0;
    int more = 0; /* as `next_member` says */
    while (out != NULL && (more = next_member(fields, size, &at, &name, &value)) > 0) {
        more = show(out, name, value, top, (Node *)args[2], args + 3);
        let_go(name, value);
        if (more < 0) {
            break;
        }
    }
    if (more < 0) {
        Py_CLEAR(out);
    }
    return out;
}

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
    {"masking_dict", (PyCFunction)(void (*)(void))masking_dict, METH_VARARGS | METH_KEYWORDS, NULL},
    {"dropping_dict", (PyCFunction)(void (*)(void))dropping_dict, METH_VARARGS | METH_KEYWORDS, NULL},
    {"item_list", (PyCFunction)(void (*)(void))item_list, METH_VARARGS | METH_KEYWORDS, NULL},
    {"shown", (PyCFunction)(void (*)(void))shown, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int
masking_add(PyObject *module)
{
    dropped = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type); /* until `masking_with` says what they are */
    unmet = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    as_it_is = Py_NewRef(Py_None);
    if (dropped == NULL || unmet == NULL) {
        return -1;
    }
    node_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &node_spec, NULL);
    walker_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &walker_spec, NULL);
    if (node_type == NULL || walker_type == NULL || PyModule_AddType(module, node_type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
