/* A JSON text that `mesh.verbatim.verbatim` gave: steps from left to right, and the values in it.
 *
 * Such a text is one object, without white space between tokens and without escapes in the names of members; its numbers
 * are short, and its escapes those of two characters. The steps rely on that for what they find and never for where they
 * look: in any other text they too stay between *at* and *end*, where the byte at *end* can be read (the NUL behind a
 * `bytes`), and answer NULL or -1 where they find no sense. That sets no exception: `unproven` does.
 */

#ifndef MESH_NATIVE_TEXT_H
#define MESH_NATIVE_TEXT_H

#include "rest.h"
#ifdef __SSE2__ /* every x86-64 has it */
#include <emmintrin.h>
#endif

/* A high bit wherever a byte of *eight* is *mark*, and perhaps in bytes behind such a one. */
static inline uint64_t
has_byte(uint64_t eight, char mark)
{
    const uint64_t other = eight ^ EACH_BYTE * (unsigned char)mark;
    return (other - EACH_BYTE) & ~other & EACH_BYTE << 7;
}

static inline PyObject *
unproven(void)
{
    PyErr_SetString(PyExc_ValueError, "not a text that verbatim gave");
    return NULL;
}

/* --- steps ---------------------------------------------------------------------------------------------------------- */

/* The first quote or backslash from *at* on, or *end*. */
static inline const char *
to_quote(const char *at, const char *end)
{
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\');
    for (; end - at >= 16; at += 16) {
        const __m128i some = _mm_loadu_si128((const __m128i *)at);
        const int hits = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(some, quote), _mm_cmpeq_epi8(some, backslash)));
        if (hits) {
            return at + __builtin_ctz((unsigned)hits);
        }
    }
#else
    for (uint64_t eight; end - at >= 8; at += 8) {
        memcpy(&eight, at, 8);
        if (has_byte(eight, '"') | has_byte(eight, '\\')) {
            break;
        }
    }
#endif
    while (at < end && *at != '"' && *at != '\\') {
        at++;
    }
    return at;
}

/* Behind the string whose opening quote is at *at*; *escaped* is set where there is an escape in it. */
static inline const char *
after_string(const char *at, const char *end, int *escaped)
{
    for (at++; at < end; at++) {
        at = to_quote(at, end);
        if (at >= end || *at == '"') {
            break;
        }
        *escaped = 1;
        at++; /* what is escaped is skipped, be it a quote */
    }
    return at < end ? at + 1 : NULL;
}

#ifdef __SSE2__
/* 64 bytes, each or-ed with *more*: a bit for each that is *mark*. */
static inline uint64_t
bits_of(const char *at, char more, char mark)
{
    uint64_t bits = 0;
    for (int i = 3; i >= 0; i--) {
        const __m128i some = _mm_or_si128(_mm_loadu_si128((const __m128i *)at + i), _mm_set1_epi8(more));
        bits = bits << 16 | (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(some, _mm_set1_epi8(mark)));
    }
    return bits;
}
#endif

/* Behind the object or array that begins at *at*. */
static inline const char *
after_container(const char *at, const char *end)
{
    Py_ssize_t depth = 0;
    int escaped;
#ifdef __SSE2__
    uint64_t within = 0; /* all bits where a string goes on from one block to the next */
    for (; end - at >= 64; at += 64) {
        if (bits_of(at, 0, '\\')) {
            break; /* no quote before this block was escaped */
        }
        uint64_t strings = bits_of(at, 0, '"'); /* then a bit from each opening quote to before the closing one */
        for (int shift = 1; shift < 64; shift *= 2) {
            strings ^= strings << shift;
        }
        strings ^= within;
        within = strings >> 63 ? ~UINT64_C(0) : 0;
        const uint64_t opening = bits_of(at, ' ', '{') & ~strings; /* a space makes `{` of `[`, and `}` of `]` */
        for (uint64_t left = opening | (bits_of(at, ' ', '}') & ~strings); left; left &= left - 1) {
            depth += opening & left & -left ? 1 : -1;
            if (depth <= 0) {
                return at + __builtin_ctzll(left) + 1;
            }
        }
    }
    if (within && (at = after_string(at - 1, end, &escaped)) == NULL) {
        return NULL;
    }
#endif
    while (at < end) {
        const char found = *at;
        if (found == '"') {
            at = after_string(at, end, &escaped);
            if (at == NULL) {
                return NULL;
            }
            continue;
        }
        at++;
        if (found == '{' || found == '[') {
            depth++;
        } else if ((found == '}' || found == ']') && --depth <= 0) {
            return at;
        }
    }
    return NULL;
}

/* Behind the value that begins at *at*, whatever it is. */
static inline const char *
after_value(const char *at, const char *end)
{
    int escaped;
    if (*at == '"') {
        return after_string(at, end, &escaped);
    }
    if (*at == '{' || *at == '[') {
        return after_container(at, end);
    }
    const char *began = at;
    while (at < end && *at != ',' && *at != '}' && *at != ']') {
        at++;
    }
    return at > began ? at : NULL;
}

/* From the `{` of an object, or behind one of its values, to the next value: 1 and the name, or 0 behind the `}`, or -1. */
static inline int
take_member(const char **at, const char *end, Text *name)
{
    const char *here = *at;
    if (here >= end) {
        return -1;
    }
    if (*here == '}' || (here[0] == '{' && here[1] == '}')) {
        *at = here + (*here == '{' ? 2 : 1);
        return 0;
    }
    if ((*here != '{' && *here != ',') || here[1] != '"') {
        return -1;
    }
    name->at = here + 2;
    const char *quote = to_quote(name->at, end);
    if (quote >= end || quote[0] != '"' || quote[1] != ':') {
        return -1;
    }
    name->size = quote - name->at;
    *at = quote + 2;
    return 1;
}

/* From the `[` of an array, or behind one of its items, to the next: 1, or 0 behind the `]`, or -1. */
static inline int
take_item(const char **at, const char *end)
{
    const char *here = *at;
    if (here >= end) {
        return -1;
    }
    if (*here == ']' || (here[0] == '[' && here[1] == ']')) {
        *at = here + (*here == '[' ? 2 : 1);
        return 0;
    }
    *at = here + 1;
    return *here == '[' || *here == ',' ? 1 : -1;
}

/* --- values --------------------------------------------------------------------------------------------------------- */

/* The string that stands from *at*, its opening quote, to *end*, behind the closing one. NULL with an exception. */
static inline PyObject *
string_of(const char *at, const char *end, int escaped)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    const Py_ssize_t size = end - at - 2;
    if (size < 0) {
        return unproven();
    }
    if (!escaped) {
        return PyUnicode_DecodeUTF8(at + 1, size, NULL);
    }
    char *plain = PyMem_Malloc((size_t)size), *put = plain;
    if (plain == NULL) {
        return PyErr_NoMemory();
    }
    for (at++, end--; at < end; at++) {
        const char *found = *at != '\\' ? NULL : strchr(from, *++at); /* an escape never ends a string */
        *put++ = found != NULL && *found != '\0' ? to[found - from] : *at;
    }
    PyObject *made = PyUnicode_DecodeUTF8(plain, put - plain, NULL);
    PyMem_Free(plain);
    return made;
}

/* The number that stands from *at* to *end*. NULL with an exception.
 *
 * A fraction has at most 15 digits that count, so they are an exact double, and so is the power of ten they are divided
 * by: the one rounding of the division is that of the number (Clinger, 1990).
 */
static inline PyObject *
number_of(const char *at, const char *end)
{
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const int negative = at < end && *at == '-';
    long long digits = 0;
    Py_ssize_t behind = -1; /* digits behind the point */
    const char *began = at += negative;
    for (; at < end; at++) {
        if (*at == '.' && behind < 0) {
            behind = 0;
            continue;
        }
        if (*at < '0' || *at > '9' || digits > INT64_C(99999999999999999)) { /* 18 digits: one more may be too many */
            return unproven();
        }
        digits = digits * 10 + (*at - '0');
        behind += behind >= 0;
    }
    if (at == began) {
        return unproven();
    }
    if (behind < 0) {
        return PyLong_FromLongLong(negative ? -digits : digits);
    }
    if (digits > INT64_C(1) << 53 || behind > 22) {
        return unproven();
    }
    const double size = (double)digits / tens[behind];
    return PyFloat_FromDouble(negative ? -size : size);
}

/* The scalar that stands from *at* to *end*: a new reference, or NULL with an exception. */
static inline PyObject *
scalar_of(const char *at, const char *end, int escaped)
{
    switch (*at) {
    case '"':
        return string_of(at, end, escaped);
    case 't':
        Py_RETURN_TRUE;
    case 'f':
        Py_RETURN_FALSE;
    case 'n':
        Py_RETURN_NONE;
    default:
        return number_of(at, end);
    }
}

#endif
