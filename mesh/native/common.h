/* What the parts of the compiled module share. Each .c file says what it is the compiled twin of. */

#ifndef MESH_NATIVE_COMMON_H
#define MESH_NATIVE_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes of which somebody else is the owner: the UTF-8 of a str lives as long as the str does. */
typedef struct {
    const char *at;
    Py_ssize_t size;
} Text;

/* 0, or -1 with an exception where *object* is no str, or has a lone surrogate. */
static inline int
text_of(PyObject *object, Text *text)
{
    if (object == NULL || !PyUnicode_Check(object)) {
        const char *found = object == NULL ? "nothing" : Py_TYPE(object)->tp_name;
        PyErr_Format(PyExc_TypeError, "expected str, not %.80s", found);
        return -1;
    }
    text->at = PyUnicode_AsUTF8AndSize(object, &text->size);
    return text->at == NULL ? -1 : 0;
}

/* What is in *bytes*, which lives as long. */
static inline Text
bytes_text(PyObject *bytes)
{
    return (Text){PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes)};
}

static inline char *
put_bytes(char *to, const void *from, Py_ssize_t size)
{
    memcpy(to, from, (size_t)size);
    return to + size;
}

#define PUT_LITERAL(to, literal) put_bytes((to), (literal), sizeof(literal) - 1)

/* Decimal digits of *number*, which is not negative. */
static inline char *
put_number(char *to, long long number)
{
    char digits[24];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (count) {
        *to++ = digits[--count];
    }
    return to;
}

/* Overwrites what nobody may find later; a compiler may leave out a `memset` that nothing reads. */
static inline void
wipe(void *what, size_t size)
{
    volatile unsigned char *at = what;
    while (size--) {
        *at++ = 0;
    }
}

/* Unpadded base64url (RFC 4648, section 5): as `statements.b64u`. */
static inline char *
put_b64u(char *to, const unsigned char *from, Py_ssize_t size)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for (; size >= 3; from += 3, size -= 3) {
        uint32_t three = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 8 | from[2];
        *to++ = alphabet[three >> 18];
        *to++ = alphabet[three >> 12 & 63];
        *to++ = alphabet[three >> 6 & 63];
        *to++ = alphabet[three & 63];
    }
    if (size) {
        uint32_t rest = (uint32_t)from[0] << 16 | (size == 2 ? (uint32_t)from[1] << 8 : 0);
        *to++ = alphabet[rest >> 18];
        *to++ = alphabet[rest >> 12 & 63];
        if (size == 2) {
            *to++ = alphabet[rest >> 6 & 63];
        }
    }
    return to;
}

static inline Py_ssize_t
b64u_size(Py_ssize_t size)
{
    return (size * 4 + 2) / 3;
}

/* Each part adds its functions and types to the module: 0, or -1 with an exception. */
int accepting_add(PyObject *module);
int acked_add(PyObject *module);
int acks_add(PyObject *module);
int arrays_add(PyObject *module);
int boarding_add(PyObject *module);
int bytes_add(PyObject *module);
int cutting_add(PyObject *module);
int deliveries_add(PyObject *module);
int frames_add(PyObject *module);
int glimpse_add(PyObject *module);
int keyed_add(PyObject *module);
int maskers_add(PyObject *module);
int masking_add(PyObject *module);
int nodes_add(PyObject *module);
int objects_add(PyObject *module);
int outgoing_add(PyObject *module);
int pieces_add(PyObject *module);
int reading_add(PyObject *module);
int roots_add(PyObject *module);
int sealing_add(PyObject *module);
int sending_add(PyObject *module);
int splicing_add(PyObject *module);
int verbatim_add(PyObject *module);
int verifying_add(PyObject *module);
int walkers_add(PyObject *module);

#endif
