/* What attributes of an event surely may be: of each grammar of `mesh.attributes` a part, and never more. Times are in UTC
 * and on a day that every month has, a URI has no `%`, and a list of trace states has no white space, no empty members and
 * no `@`.
 */

#ifndef MESH_NATIVE_GRAMMAR_H
#define MESH_NATIVE_GRAMMAR_H

#include "common.h"

#define MAX_ID 256
#define MAX_URI 256
#define MAX_NAME 20
#define MAX_STRING 1024
#define MAX_STATE 512
#define MAX_STATES 32
#define MAX_STATE_PART 256 /* of its key, and of its value */
#define TRACE 55           /* of version 00: all there is; later ones may have more */
#define MAX_TRACE_MORE 200

enum { DIGIT = 1, LOWER = 2, UPPER = 4, HEX = 8, IN_ID = 16, IN_URI = 32, IN_KEY = 64, IN_STATE = 128 };

static unsigned char traits[256]; /* of each byte, which of these it has */

static inline void
give(const char *bytes, int some)
{
    for (; *bytes; bytes++) {
        traits[(unsigned char)*bytes] |= (unsigned char)some;
    }
}

static inline void
set_traits(void)
{
    give("0123456789", DIGIT | HEX | IN_ID | IN_URI | IN_KEY);
    give("abcdefghijklmnopqrstuvwxyz", LOWER | IN_ID | IN_URI | IN_KEY);
    give("ABCDEFGHIJKLMNOPQRSTUVWXYZ", UPPER | IN_ID | IN_URI);
    give("abcdef", HEX);
    give("._:/+=~-", IN_ID);
    give("._~:/?#[]@!$&'()*+,;=-", IN_URI);
    give("_*/-", IN_KEY);
    for (int c = '!'; c <= '~'; c++) {
        traits[c] |= c == ',' || c == '=' ? 0 : IN_STATE;
    }
}

static inline int
has(char c, int some)
{
    return traits[(unsigned char)c] & some;
}

static inline int
is_digit(char c)
{
    return has(c, DIGIT);
}

/* Whether each of *size* bytes has one of *some* traits. */
static inline int
all_have(const char *at, Py_ssize_t size, int some)
{
    for (Py_ssize_t i = 0; i < size; i++) {
        if (!has(at[i], some)) {
            return 0;
        }
    }
    return 1;
}

static inline int
is_id(const Text *text)
{
    return text->size >= 1 && text->size <= MAX_ID && all_have(text->at, text->size, IN_ID);
}

/* Whether no segment of its path is `.` or `..`; *text* is a URI reference. */
static inline int
has_no_dots(const Text *text)
{
    const char *at = text->at, *end = at + text->size, *segment = at;
    for (;; at++) {
        if (at < end && *at != '/' && *at != '?' && *at != '#') {
            continue;
        }
        if (at > segment && *segment == '.' && (at == segment + 1 || (at == segment + 2 && segment[1] == '.'))) {
            return 0;
        }
        if (at == end || *at != '/') {
            return 1;
        }
        segment = at + 1;
    }
}

/* An absolute URI. */
static inline int
is_uri(const Text *text)
{
    if (text->size > MAX_URI || !all_have(text->at, text->size, IN_URI)) {
        return 0;
    }
    Py_ssize_t scheme = 0;
    while (scheme < text->size && (has(text->at[scheme], LOWER | UPPER | DIGIT) || memchr("+.-", text->at[scheme], 3))) {
        scheme++;
    }
    return scheme < text->size && text->at[scheme] == ':' && has(text->at[0], LOWER | UPPER);
}

static inline int
two(const char *at)
{
    return is_digit(at[0]) && is_digit(at[1]) ? (at[0] - '0') * 10 + at[1] - '0' : -1;
}

/* RFC 3339 in UTC, of a day that every month has; others are not looked at here. */
static inline int
is_time(const Text *text)
{
    const char *at = text->at;
    if (text->size < 20 || two(at) < 0 || two(at + 2) < 0 || at[4] != '-' || at[7] != '-' || at[10] != 'T'
        || at[13] != ':' || at[16] != ':') {
        return 0;
    }
    const int month = two(at + 5), day = two(at + 8), hour = two(at + 11), minute = two(at + 14), second = two(at + 17);
    if (month < 1 || month > 12 || day < 1 || day > 28 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0
        || second > 59) {
        return 0;
    }
    Py_ssize_t end = 19;
    if (at[end] == '.') {
        for (end++; end < text->size && is_digit(at[end]); end++) {
        }
        if (end - 20 < 1 || end - 20 > 18) {
            return 0;
        }
    }
    return end + 1 == text->size && at[end] == 'Z';
}

/* *size* hexadecimal digits, not all of them 0. */
static inline int
is_number(const char *at, Py_ssize_t size)
{
    char any = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        any |= (char)(at[i] ^ '0');
    }
    return any && all_have(at, size, HEX);
}

/* W3C Trace Context 3.2, as `mesh.tracing` has it. */
static inline int
is_trace(const Text *text)
{
    const char *at = text->at;
    if (text->size < TRACE || !all_have(at, 2, HEX) || memcmp(at, "ff", 2) == 0 || at[2] != '-' || !is_number(at + 3, 32)
        || at[35] != '-' || !is_number(at + 36, 16) || at[52] != '-' || !all_have(at + 53, 2, HEX)) {
        return 0;
    }
    if (text->size == TRACE) {
        return 1;
    }
    const Py_ssize_t more = text->size - TRACE - 1;
    if (memcmp(at, "00", 2) == 0 || at[TRACE] != '-' || more > MAX_TRACE_MORE) {
        return 0;
    }
    for (Py_ssize_t i = TRACE; i < text->size; i++) {
        if (at[i] < '!' || at[i] > '~') {
            return 0;
        }
    }
    return 1;
}

/* `key=value`, one or more, with commas between them; no more of what its section 3.3 allows. */
static inline int
is_state(const Text *text)
{
    const char *at = text->at, *end = at + text->size;
    if (text->size > MAX_STATE) {
        return 0;
    }
    for (int members = 1; members <= MAX_STATES; members++) {
        const char *key = at;
        while (at < end && has(*at, IN_KEY)) {
            at++;
        }
        if (at == key || at - key > MAX_STATE_PART || !has(*key, LOWER) || at == end || *at != '=') {
            return 0;
        }
        const char *value = ++at;
        while (at < end && has(*at, IN_STATE)) {
            at++;
        }
        if (at == value || at - value > MAX_STATE_PART) {
            return 0;
        }
        if (at == end) {
            return 1;
        }
        if (*at++ != ',') {
            return 0;
        }
    }
    return 0;
}

/* From *least* to MAX_STRING characters, without control characters and surrogates. */
static inline int
is_string(PyObject *value, Py_ssize_t least)
{
    const Py_ssize_t size = PyUnicode_GET_LENGTH(value);
    if (size < least || size > MAX_STRING) {
        return 0;
    }
    if (PyUnicode_IS_ASCII(value)) {
        const Py_UCS1 *at = PyUnicode_1BYTE_DATA(value);
        int bad = 0;
        for (Py_ssize_t i = 0; i < size; i++) {
            bad |= at[i] < ' ' || at[i] > '~';
        }
        return !bad;
    }
    const int kind = (int)PyUnicode_KIND(value);
    const void *at = PyUnicode_DATA(value);
    for (Py_ssize_t i = 0; i < size; i++) {
        const Py_UCS4 c = PyUnicode_READ(kind, at, i);
        if (c < ' ' || (c > '~' && c < 0xA0) || (c >= 0xD800 && c <= 0xDFFF)) {
            return 0;
        }
    }
    return 1;
}

#endif
