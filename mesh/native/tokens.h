/* The strings and numbers of a JSON text that our encoder would write in the same way; see verbatim.c for what is sure.
 * Each step gives NULL where it is not. It ends at a NUL at the latest, which has to stand behind the text.
 */

#ifndef MESH_NATIVE_TOKENS_H
#define MESH_NATIVE_TOKENS_H

#include "rest.h"
#ifdef __SSE2__ /* every x86-64 has it */
#include <emmintrin.h>
#endif

#define MAX_INTEGER 18  /* digits: 64 bits hold them */
#define MAX_FRACTION 15 /* digits that count */
#define MAX_ZEROS 3     /* right behind the point of what is less than 1 */

static inline uint64_t
load(const char *at)
{
    uint64_t eight;
    memcpy(&eight, at, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    return eight;
}

/* The high bit of the first byte of *eight* that is no plain one: a quote, a backslash, a control character or no ASCII.
 * Behind that one bits may be set for no reason: what is taken away carries.
 */
static inline uint64_t
not_plain(uint64_t eight)
{
    const uint64_t quote = eight ^ EACH_BYTE * '"', backslash = eight ^ EACH_BYTE * '\\';
    const uint64_t low = (quote - EACH_BYTE) | (backslash - EACH_BYTE) | (eight - EACH_BYTE * ' ');
    return (low | eight) & EACH_BYTE << 7;
}

/* The first character from *at* on that is no plain one, as above; *end* at the latest, where there is none. */
static inline const char *
after_plain(const char *at, const char *end)
{
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), space = _mm_set1_epi8(' ');
    for (; end - at >= 16; at += 16) {
        const __m128i some = _mm_loadu_si128((const __m128i *)at); /* signed: what is no ASCII is below a space too */
        const __m128i marks = _mm_or_si128(_mm_cmpeq_epi8(some, quote), _mm_cmpeq_epi8(some, backslash));
        const int found = _mm_movemask_epi8(_mm_or_si128(marks, _mm_cmplt_epi8(some, space)));
        if (found) {
            return at + __builtin_ctz((unsigned)found);
        }
    }
#endif
    for (uint64_t found; end - at >= 8; at += 8) {
        if ((found = not_plain(load(at))) != 0) {
            return at + (__builtin_ctzll(found) >> 3);
        }
    }
    while ((unsigned char)*at >= ' ' && (unsigned char)*at < 0x80 && *at != '"' && *at != '\\') {
        at++;
    }
    return at;
}

static inline int
continues(char c)
{
    return ((unsigned char)c & 0xC0) == 0x80;
}

/* Behind the characters that are no ASCII and begin at *at*; NULL where they are no UTF-8 (RFC 3629, section 4). */
static inline const char *
after_wide(const char *at)
{
    for (unsigned char first = (unsigned char)*at; first >= 0x80; first = (unsigned char)*at) {
        const unsigned char second = (unsigned char)at[1];
        if (!continues(at[1]) || first < 0xC2) {
            return NULL;
        }
        if (first < 0xE0) {
            at += 2;
        } else if (first < 0xF0) { /* not what two bytes can say; no surrogates */
            if (!continues(at[2]) || (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) {
                return NULL;
            }
            at += 3;
        } else { /* not what three bytes can say; no more than U+10FFFF */
            if (!continues(at[2]) || !continues(at[3]) || first > 0xF4 || (first == 0xF0 && second < 0x90)
                || (first == 0xF4 && second > 0x8F)) {
                return NULL;
            }
            at += 4;
        }
    }
    return at;
}

/* Behind the string whose first character is at *at*, behind its quote; *escaped* is set where there is an escape. */
static inline const char *
after_string(const char *at, const char *end, int *escaped)
{
    while (at != NULL) {
        at = after_plain(at, end);
        if (*at == '"') {
            return at + 1;
        }
        if (*at == '\\') {
            if (at[1] == '\0' || strchr("\"\\bfnrt", at[1]) == NULL) {
                return NULL;
            }
            *escaped = 1;
            at += 2;
        } else if ((unsigned char)*at < 0x80) {
            return NULL;
        } else {
            at = after_wide(at);
        }
    }
    return NULL;
}

static inline const char *
after_digits(const char *at)
{
    while (*at >= '0' && *at <= '9') {
        at++;
    }
    return at;
}

/* Behind the number that begins at *at*; what follows is for the caller, so an exponent is no end of a value. */
static inline const char *
after_number(const char *at)
{
    const int negative = *at == '-';
    const char *whole = at + negative, *point = after_digits(whole);
    const int zero = *whole == '0';
    if (point == whole || (zero && point != whole + 1)) {
        return NULL;
    }
    if (*point != '.') {
        return point - whole > MAX_INTEGER || (zero && negative) ? NULL : point;
    }
    const char *first = point + 1, *stop = after_digits(first);
    if (stop == first || (stop[-1] == '0' && stop - first > 1)) {
        return NULL;
    }
    if (!zero) {
        return (point - whole) + (stop - first) > MAX_FRACTION ? NULL : stop;
    }
    if (stop[-1] == '0') { /* 0.0 */
        return negative ? NULL : stop;
    }
    const char *counts = first;
    while (*counts == '0') {
        counts++;
    }
    return counts - first > MAX_ZEROS || stop - counts > MAX_FRACTION ? NULL : stop;
}

#endif
