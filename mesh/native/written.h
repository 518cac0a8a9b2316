/* A text that is written piece by piece. */

#ifndef MESH_NATIVE_WRITTEN_H
#define MESH_NATIVE_WRITTEN_H

#include "text.h"

/* What is written so far; *bytes* is NULL where it was given up, with an exception. */
typedef struct {
    PyObject *bytes; /* owned; larger than what is written */
    Py_ssize_t size; /* written */
} Out;

static inline int
out_begin(Out *out, Py_ssize_t expected)
{
    out->size = 0;
    out->bytes = PyBytes_FromStringAndSize(NULL, expected);
    return out->bytes == NULL ? -1 : 0;
}

/* Where *more* bytes can be written (what is written has to be added to *size*), or NULL with an exception. */
static inline char *
out_room(Out *out, Py_ssize_t more)
{
    const Py_ssize_t room = out->bytes == NULL ? 0 : PyBytes_GET_SIZE(out->bytes);
    if (out->bytes == NULL) {
        return NULL;
    }
    if (room - out->size < more) {
        if (more > PY_SSIZE_T_MAX / 2 - room) {
            PyErr_NoMemory();
            return NULL;
        }
        if (_PyBytes_Resize(&out->bytes, room + room / 2 + more) < 0) {
            return NULL;
        }
    }
    return PyBytes_AS_STRING(out->bytes) + out->size;
}

static inline int
out_put(Out *out, const char *from, Py_ssize_t size)
{
    char *to = out_room(out, size);
    if (to == NULL) {
        return -1;
    }
    memcpy(to, from, (size_t)size);
    out->size += size;
    return 0;
}

#define OUT_LITERAL(out, literal) out_put((out), (literal), sizeof(literal) - 1)

/* Whether *c* is written as an escape. */
static inline int
is_escaped(char c)
{
    return (unsigned char)c < ' ' || c == '"' || c == '\\';
}

/* *text* as a JSON string, escaped as msgspec does it. */
static inline int
out_string(Out *out, Text text)
{
    const char *end = text.at + text.size, *from = text.at, *at = from;
    uint64_t eight;
    if (OUT_LITERAL(out, "\"") < 0) {
        return -1;
    }
    for (;; from = ++at) {
        while (end - at >= 8) {
            memcpy(&eight, at, 8); /* the third: whether a byte is below a space */
            if (has_byte(eight, '"') | has_byte(eight, '\\') | ((eight - EACH_BYTE * ' ') & ~eight & EACH_BYTE << 7)) {
                break;
            }
            at += 8;
        }
        while (at < end && !is_escaped(*at)) {
            at++;
        }
        if (out_put(out, from, at - from) < 0) {
            return -1;
        }
        if (at >= end) {
            return OUT_LITERAL(out, "\"");
        }
        static const char kinds[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt", hex[] = "0123456789abcdef";
        char escape[6] = {'\\', 'u', '0', '0', hex[*at >> 4 & 15], hex[*at & 15]};
        const char *kind = *at ? strchr(kinds, *at) : NULL;
        if (kind != NULL) {
            escape[1] = letters[kind - kinds];
        }
        if (out_put(out, escape, kind != NULL ? 2 : 6) < 0) {
            return -1;
        }
    }
}

/* What was written, as `bytes`: a new reference, or NULL with an exception. */
static inline PyObject *
out_end(Out *out)
{
    PyObject *made = out->bytes;
    out->bytes = NULL;
    if (made != NULL) {
        _PyBytes_Resize(&made, out->size);
    }
    return made;
}

#endif
