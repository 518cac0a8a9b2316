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

/* One of the two ways to take whole blocks of 64 bytes into a state. */
typedef void (*Sha256Blocks)(uint32_t state[8], const unsigned char *blocks, size_t count);

extern Sha256Blocks sha256_blocks;

/* Chooses `sha256_blocks` for this processor; *portable* for the one that every processor has. */
void sha256_choose(int portable);

/* Whether the processor's own instructions are used. */
int sha256_is_fast(void);

/* SHA-256(one byte *prefix* || *data*). */
void sha256_prefixed(unsigned char prefix, const unsigned char *data, size_t size, unsigned char digest[SHA256_BYTES]);

#endif
