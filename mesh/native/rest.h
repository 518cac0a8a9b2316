/* What is left of a text that is read from left to right. A step that does not find what it looks for answers 0. */

#ifndef MESH_NATIVE_REST_H
#define MESH_NATIVE_REST_H

#include "common.h"

typedef struct {
    const char *at, *end;
} Rest;

static inline int
takes(Rest *rest, const char *text, Py_ssize_t size)
{
    if (rest->end - rest->at < size || memcmp(rest->at, text, (size_t)size) != 0) {
        return 0;
    }
    rest->at += size;
    return 1;
}

#define TAKES_LITERAL(rest, literal) takes((rest), (literal), sizeof(literal) - 1)

#define EACH_BYTE UINT64_C(0x0101010101010101)

/* Whether all of *text* is from *lowest*, which is ASCII, to `~`; eight bytes at a time, for there are many of them.
 * The highest bit of a byte is set in the first of three where it is no ASCII, in the second where it is above `~`, and
 * in the third where it is below *lowest*. Only what is no ASCII carries into the next byte, and then all is refused.
 */
static inline int
all_from(char lowest, Text text)
{
    const uint64_t to_lowest = EACH_BYTE * (uint64_t)(0x80 - lowest);
    uint64_t eight, outside = 0;
    for (; text.size >= 8; text.at += 8, text.size -= 8) {
        memcpy(&eight, text.at, 8);
        outside |= eight | (eight + EACH_BYTE) | ~(eight + to_lowest);
    }
    eight = EACH_BYTE * (uint64_t)lowest;
    memcpy(&eight, text.at, (size_t)text.size);
    outside |= eight | (eight + EACH_BYTE) | ~(eight + to_lowest);
    return !(outside & EACH_BYTE << 7);
}

/* What stands before *mark*, none of it below *lowest*; *rest* is then at the mark. */
static inline int
takes_until(Rest *rest, char mark, char lowest, Text *text)
{
    const char *found = memchr(rest->at, mark, (size_t)(rest->end - rest->at));
    if (found == NULL) {
        return 0;
    }
    *text = (Text){rest->at, found - rest->at};
    rest->at = found;
    return all_from(lowest, *text);
}

/* Digits, *most* at most: how many. */
static inline Py_ssize_t
takes_digits(Rest *rest, Py_ssize_t most, unsigned long long *number)
{
    const char *began = rest->at;
    *number = 0;
    while (rest->at < rest->end && rest->at - began < most && *rest->at >= '0' && *rest->at <= '9') {
        *number = *number * 10 + (unsigned long long)(*rest->at++ - '0');
    }
    return rest->at - began;
}

#endif
