/* See sha256.h. Source: FIPS 180-4; Intel, "New Instructions Supporting the Secure Hash Algorithm". */

#include "sha256.h"

#include <string.h>

#define BLOCK 64

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t
turned(uint32_t word, int bits)
{
    return word >> bits | word << (32 - bits);
}

static inline uint32_t
read_word(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void
write_word(unsigned char *at, uint32_t word)
{
    at[0] = (unsigned char)(word >> 24);
    at[1] = (unsigned char)(word >> 16);
    at[2] = (unsigned char)(word >> 8);
    at[3] = (unsigned char)word;
}

/* FIPS 180-4, 6.2.2, as it is written there. */
static void
portable_blocks(uint32_t state[8], const unsigned char *block, size_t count)
{
    for (; count; count--, block += BLOCK) {
        uint32_t w[64];
        for (int t = 0; t < 16; t++) {
            w[t] = read_word(block + 4 * t);
        }
        for (int t = 16; t < 64; t++) {
            uint32_t s0 = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ w[t - 15] >> 3;
            uint32_t s1 = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ w[t - 2] >> 10;
            w[t] = w[t - 16] + s0 + w[t - 7] + s1;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 64; t++) {
            uint32_t t1 = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + w[t];
            uint32_t t2 = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

/* Four rounds an instruction pair; `_mm_sha256msg1` and `msg2` make the words that the next ones take. */
__attribute__((target("sha,sse4.1,ssse3"))) static void
x86_blocks(uint32_t state[8], const unsigned char *block, size_t count)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[0]), 0xB1); /* CDAB */
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[4]), 0x1B); /* EFGH */
    __m128i abef = _mm_alignr_epi8(low, high, 8);
    __m128i cdgh = _mm_blend_epi16(high, low, 0xF0);
    for (; count; count--, block += BLOCK) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i words[4];
        for (int i = 0; i < 4; i++) {
            words[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(block + 16 * i)), big_endian);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i now = words[i & 3];
            __m128i sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)&K[4 * i]));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
            if (i < 12) { /* the words of four rounds on: w[t-16] + s0(w[t-15]) + w[t-7] + s1(w[t-2]) */
                __m128i after = words[(i + 1) & 3], third = words[(i + 2) & 3], last = words[(i + 3) & 3];
                __m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(now, after), _mm_alignr_epi8(last, third, 4));
                words[i & 3] = _mm_sha256msg2_epu32(next, last);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1B); /* FEBA */
    high = _mm_shuffle_epi32(cdgh, 0xB1); /* DCHG */
    _mm_storeu_si128((__m128i *)&state[0], _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128((__m128i *)&state[4], _mm_alignr_epi8(high, low, 8));
}

static Sha256Blocks
fast_blocks(void)
{
    unsigned a, b, c, d;
    int shuffles = __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 9) && (c & 1u << 19); /* SSSE3, SSE4.1 */
    int hashes = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);           /* SHA */
    return shuffles && hashes ? x86_blocks : NULL;
}
#else
static Sha256Blocks
fast_blocks(void)
{
    return NULL;
}
#endif

Sha256Blocks sha256_blocks = portable_blocks;

void
sha256_choose(int portable)
{
    Sha256Blocks fast = portable ? NULL : fast_blocks();
    sha256_blocks = fast == NULL ? portable_blocks : fast;
}

int
sha256_is_fast(void)
{
    return sha256_blocks != portable_blocks;
}

void
sha256_prefixed(unsigned char prefix, const unsigned char *data, size_t size, unsigned char digest[SHA256_BYTES])
{
    uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    const uint64_t bits = ((uint64_t)size + 1) * 8;
    unsigned char block[2 * BLOCK];
    size_t held = 1; /* bytes in `block` */
    block[0] = prefix;
    if (size >= BLOCK - 1) {
        memcpy(block + 1, data, BLOCK - 1);
        sha256_blocks(state, block, 1);
        data += BLOCK - 1, size -= BLOCK - 1, held = 0;
        sha256_blocks(state, data, size / BLOCK);
        data += size / BLOCK * BLOCK, size %= BLOCK;
    }
    memcpy(block + held, data, size);
    held += size;
    block[held++] = 0x80;
    const size_t end = held <= BLOCK - 8 ? BLOCK : 2 * BLOCK;
    memset(block + held, 0, end - held - 8);
    write_word(block + end - 8, (uint32_t)(bits >> 32));
    write_word(block + end - 4, (uint32_t)bits);
    sha256_blocks(state, block, end / BLOCK);
    for (int i = 0; i < 8; i++) {
        write_word(digest + 4 * i, state[i]);
    }
}
