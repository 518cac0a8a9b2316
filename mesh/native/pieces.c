/* What a mask makes of a value in a text, written in its place. */

#include "splicing.h"

PyObject *no_path, *redacts, *drops;
static PyObject *redacted, *encoder, *decoder; /* what `splicing_with` was given, as *no_path* */
static Py_ssize_t max_attribute_chars;

Fate
put_instead(Splice *splice, PyObject *value, const char *at, const char *behind)
{
    Out *out = &splice->out;
    int done = show_until(splice, at);
    Text text;
    if (done < 0) {
        return FAILED;
    }
    if (PyUnicode_CheckExact(value)) {
        done = text_of(value, &text) < 0 ? -1 : out_string(out, text);
    } else if (value == Py_None) {
        done = OUT_LITERAL(out, "null");
    } else if (value == Py_True) {
        done = OUT_LITERAL(out, "true");
    } else if (value == Py_False) {
        done = OUT_LITERAL(out, "false");
    } else {
        PyObject *made = PyObject_CallOneArg(encoder, value);
        if (made != NULL && !PyBytes_CheckExact(made)) {
            PyErr_SetString(PyExc_TypeError, "the encoder writes bytes");
            Py_CLEAR(made);
        }
        done = made == NULL ? -1 : out_put(out, PyBytes_AS_STRING(made), PyBytes_GET_SIZE(made));
        Py_XDECREF(made);
    }
    splice->from = behind;
    return done < 0 ? FAILED : SHOWN;
}

/* Whether an attribute that became *value* is left out, as `put` has it: 1 or 0, or -1 with an exception. */
static int
is_no_attribute(PyObject *value)
{
    if (value == Py_None || (PyUnicode_CheckExact(value) && PyUnicode_GET_LENGTH(value) > max_attribute_chars)) {
        return 1;
    }
    return PyObject_RichCompareBool(value, redacted, Py_EQ);
}

/* What *masked*, which is taken, makes of *value*, which stands from *at* to *behind*. */
static Fate
settle(Splice *splice, PyObject *masked, PyObject *value, const char *at, const char *behind, int attribute)
{
    Fate fate = masked == NULL ? FAILED : masked == dropped ? GONE : masked == unmet ? NOT_MET : SHOWN;
    if (fate == SHOWN && masked != value) {
        const int no = attribute ? is_no_attribute(masked) : 0;
        fate = no < 0 ? FAILED : no ? GONE : put_instead(splice, masked, at, behind);
    }
    Py_XDECREF(masked);
    return fate;
}

/* --- values --------------------------------------------------------------------------------------------------------- */

/* What *act* makes of a value that need not be read: NOT_MET where it has to be. */
static Fate
act_blindly(Splice *splice, PyObject *act, const char *at, const char *behind, int attribute)
{
    if (act == Py_None) {
        return SHOWN;
    }
    if (act == drops) {
        return GONE;
    }
    if (act != redacts) {
        return NOT_MET;
    }
    if (*at == 'n') {
        return SHOWN; /* null becomes null */
    }
    return attribute ? GONE : put_instead(splice, *at == '"' ? redacted : Py_None, at, behind);
}

Fate
act_on_scalar(Splice *splice, PyObject *act, const char **at, int attribute)
{
    const char *began = *at, *behind;
    int escaped = 0;
    behind = *began == '"' ? after_string(began, splice->end, &escaped) : after_value(began, splice->end);
    if (behind == NULL) {
        return FAILED;
    }
    *at = behind;
    Fate fate = act_blindly(splice, act, began, behind, attribute);
    if (fate != NOT_MET) {
        return fate;
    }
    PyObject *value = scalar_of(began, behind, escaped);
    if (value == NULL) {
        return FAILED;
    }
    fate = settle(splice, act_on(act, value), value, began, behind, attribute);
    Py_DECREF(value);
    return fate == NOT_MET ? FAILED : fate; /* a mask has no such answer for a scalar */
}

Fate
act_on_container(Splice *splice, PyObject *act, const char *at, const char *behind, int attribute)
{
    Fate fate = act_blindly(splice, act, at, behind, attribute);
    if (fate != NOT_MET) {
        return fate;
    }
    PyObject *text = PyBytes_FromStringAndSize(at, behind - at);
    PyObject *value = text == NULL ? NULL : PyObject_CallOneArg(decoder, text);
    Py_XDECREF(text);
    if (value == NULL) {
        return FAILED;
    }
    fate = settle(splice, act_on(act, value), value, at, behind, attribute);
    Py_DECREF(value);
    return fate;
}

/* --- what is given -------------------------------------------------------------------------------------------------- */

/* splicing_with(unmet, redacted, max_attribute_chars, encode, decode): the walker that finds nothing, what redacted
 * strings are, and of JSON what is too rare to be written here. */
static PyObject *
splicing_with(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *finds_nothing, *hidden, *encode, *decode;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "OUnOO", &finds_nothing, &hidden, &most, &encode, &decode)) {
        return NULL;
    }
    Py_XSETREF(no_path, Py_NewRef(finds_nothing));
    Py_XSETREF(redacted, Py_NewRef(hidden));
    Py_XSETREF(encoder, Py_NewRef(encode));
    Py_XSETREF(decoder, Py_NewRef(decode));
    max_attribute_chars = most;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"splicing_with", splicing_with, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int
pieces_add(PyObject *module)
{
    no_path = Py_NewRef(Py_None); /* until `splicing_with` says what they are */
    encoder = Py_NewRef(Py_None);
    decoder = Py_NewRef(Py_None);
    redacted = PyUnicode_FromString("");
    redacts = PyObject_GetAttrString(module, "redact");
    drops = PyObject_GetAttrString(module, "drop");
    return redacted == NULL || redacts == NULL || drops == NULL ? -1 : PyModule_AddFunctions(module, methods);
}
