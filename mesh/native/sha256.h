/* SHA-256 (FIPS 180-4), by the processor's own instructions where it has them.
 *
 * hashlib's costs a microsecond a call whatever it hashes: a sealed event takes two. `tests/unit/test_native.py` holds it
 * against hashlib's for every length up to several blocks, in both ways.
 */

#ifndef MESH_NATIVE_SHA256_H
#define MESH_NATIVE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

/* A message with its padding, in whole blocks, and where its hash goes. */
typedef struct {
    const unsigned char *blocks;
    size_t count;
    unsigned char *digest;
} Sha256Message;

/* How many blocks of 64 bytes a message of *size* bytes takes with its padding. */
size_t sha256_blocks_for(size_t size);

/* Writes the padding behind the *size* bytes of *message*, which has room for `sha256_blocks_for(size)` blocks. */
void sha256_pad(unsigned char *message, size_t size);

/* Hashes *one*, and *other* where that is not NULL: a processor that waits for one goes on with the other. */
void sha256_two(const Sha256Message *one, const Sha256Message *other);

/* Chooses how it is done: by this processor's instructions where it has them, or, *portable*, as every processor can. */
void sha256_choose(int portable);

/* Whether the processor's own instructions are used. */
int sha256_is_fast(void);

#endif
