/* What a mask makes of one value: the twins of `redact`, `drop`, `last_digits` and `tokens` of `mesh.policy.actions`. */

#include "common.h"
#include <structmember.h>

static PyObject *dropped, *redacted; /* what masks answer with */

#define MARK "***"

static PyObject *
redact(PyObject *Py_UNUSED(module), PyObject *value)
{
    return Py_NewRef(PyUnicode_CheckExact(value) ? redacted : Py_None);
}

static PyObject *
drop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(value))
{
    return Py_NewRef(dropped);
}

/* --- masks that know something: an object that is called with the value -------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *prefix, *token, *text; /* of `tokens` */
    Py_ssize_t keep, least, most;    /* of `last_digits` */
    char sign;                       /* 0 for none */
} Masker;

static PyTypeObject *masker_type;

static int
masker_traverse(Masker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->prefix);
    Py_VISIT(self->token);
    Py_VISIT(self->text);
    return 0;
}

static int
masker_clear(Masker *self)
{
    Py_CLEAR(self->prefix);
    Py_CLEAR(self->token);
    Py_CLEAR(self->text);
    return 0;
}

static void
masker_dealloc(Masker *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    masker_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef masker_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Masker, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot masker_slots[] = {
    {Py_tp_call, (void *)PyVectorcall_Call},
    {Py_tp_dealloc, (void *)masker_dealloc},
    {Py_tp_traverse, (void *)masker_traverse},
    {Py_tp_clear, (void *)masker_clear},
    {Py_tp_members, masker_members},
    {0, NULL},
};

static PyType_Spec masker_spec = {
    .name = "mesh.native._compiled.Masker",
    .basicsize = sizeof(Masker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = masker_slots,
};

static PyObject *
only_value(PyObject *const *args, size_t flags, PyObject *keywords)
{
    if (PyVectorcall_NARGS(flags) != 1 || keywords != NULL) {
        PyErr_SetString(PyExc_TypeError, "a mask takes one value");
        return NULL;
    }
    return args[0];
}

static int
is_separator(char c)
{
    return c != '\0' && strchr(" -./()", c) != NULL;
}

static PyObject *
last_digits_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    const Masker *self = (Masker *)callable;
    PyObject *value = only_value(args, flags, keywords);
    if (value == NULL) {
        return NULL;
    }
    if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_ASCII(value)) {
        return redact(NULL, value);
    }
    const char *at = (const char *)PyUnicode_1BYTE_DATA(value), *end = at + PyUnicode_GET_LENGTH(value);
    char last[32] = {0}; /* a ring: the digits seen latest */
    Py_ssize_t found = 0;
    int first = 1; /* whether what comes is the first that is no separator */
    for (; at < end; at++) {
        if (is_separator(*at)) {
            continue;
        }
        if (first && self->sign && *at == self->sign) {
            first = 0;
            continue;
        }
        first = 0;
        if (*at < '0' || *at > '9') {
            return Py_NewRef(redacted);
        }
        last[found++ % (Py_ssize_t)sizeof(last)] = *at;
    }
    if (found < self->least || found > self->most) {
        return Py_NewRef(redacted);
    }
    char text[sizeof(MARK) - 1 + sizeof(last)], *to = PUT_LITERAL(text, MARK);
    for (Py_ssize_t i = found - self->keep; i < found; i++) {
        *to++ = last[i % (Py_ssize_t)sizeof(last)];
    }
    return PyUnicode_FromStringAndSize(text, to - text);
}

static PyObject *
tokens_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
    const Masker *self = (Masker *)callable;
    PyObject *value = only_value(args, flags, keywords), *token;
    if (value == NULL) {
        return NULL;
    }
    if (PyUnicode_CheckExact(value)) {
        token = PyObject_CallOneArg(self->token, value);
        if (token == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) { /* a lone surrogate */
            PyErr_Clear();
            return Py_NewRef(redacted);
        }
    } else if (PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyBool_Check(value)) {
        PyObject *text = PyObject_CallOneArg(self->text, value);
        token = text == NULL ? NULL : PyObject_CallOneArg(self->token, text);
        Py_XDECREF(text);
    } else {
        Py_RETURN_NONE;
    }
    PyObject *made = token == NULL ? NULL : PyUnicode_Concat(self->prefix, token);
    Py_XDECREF(token);
    return made;
}

static Masker *
new_masker(vectorcallfunc call)
{
    Masker *self = (Masker *)masker_type->tp_alloc(masker_type, 0);
    if (self != NULL) {
        self->call = call;
    }
    return self;
}

/* last_digits(keep, least, most, sign) */
static PyObject *
last_digits(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t keep, least, most, sign_size;
    const char *sign;
    if (!PyArg_ParseTuple(args, "nnns#", &keep, &least, &most, &sign, &sign_size)) {
        return NULL;
    }
    if (keep < 0 || keep > least || least > most || most > 32 || sign_size > 1) {
        PyErr_SetString(PyExc_ValueError, "0 <= keep <= least <= most <= 32, and a sign of one character or none");
        return NULL;
    }
    Masker *self = new_masker(last_digits_call);
    if (self != NULL) {
        self->keep = keep;
        self->least = least;
        self->most = most;
        self->sign = sign_size ? sign[0] : '\0';
    }
    return (PyObject *)self;
}

/* tokens(prefix, token, text) */
static PyObject *
tokens(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *prefix, *token, *text;
    if (!PyArg_ParseTuple(args, "UOO", &prefix, &token, &text)) {
        return NULL;
    }
    Masker *self = new_masker(tokens_call);
    if (self != NULL) {
        self->prefix = Py_NewRef(prefix);
        self->token = Py_NewRef(token);
        self->text = Py_NewRef(text);
    }
    return (PyObject *)self;
}

/* maskers_with(dropped, redacted): the objects that masks answer with. */
static PyObject *
maskers_with(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *drops, *redacts;
    if (!PyArg_ParseTuple(args, "OU", &drops, &redacts)) {
        return NULL;
    }
    Py_XSETREF(dropped, Py_NewRef(drops));
    Py_XSETREF(redacted, Py_NewRef(redacts));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"maskers_with", maskers_with, METH_VARARGS, NULL},
    {"redact", redact, METH_O, NULL},
    {"drop", drop, METH_O, NULL},
    {"last_digits", last_digits, METH_VARARGS, NULL},
    {"tokens", tokens, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
maskers_add(PyObject *module)
{
    dropped = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type); /* until `maskers_with` says what they are */
    redacted = PyUnicode_FromString("");
    if (dropped == NULL || redacted == NULL) {
        return -1;
    }
    masker_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &masker_spec, NULL);
    return masker_type == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
