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

#define X86 __attribute__((target("sha,sse4.1,ssse3")))

/* The state as the instructions want it. */
typedef struct {
    __m128i abef, cdgh;
} X86State;

X86 static inline X86State
x86_load(const uint32_t state[8])
{
    const __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[0]), 0xB1); /* CDAB */
    const __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[4]), 0x1B); /* EFGH */
    return (X86State){_mm_alignr_epi8(low, high, 8), _mm_blend_epi16(high, low, 0xF0)};
}

X86 static inline void
x86_store(X86State from, uint32_t state[8])
{
    const __m128i low = _mm_shuffle_epi32(from.abef, 0x1B);  /* FEBA */
    const __m128i high = _mm_shuffle_epi32(from.cdgh, 0xB1); /* DCHG */
    _mm_storeu_si128((__m128i *)&state[0], _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128((__m128i *)&state[4], _mm_alignr_epi8(high, low, 8));
}

X86 static inline void
x86_read(const unsigned char *block, __m128i words[4])
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    for (int i = 0; i < 4; i++) {
        words[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(block + 16 * i)), big_endian);
    }
}

/* Four rounds, the *i*th of sixteen; `_mm_sha256msg1` and `msg2` make the words that a later one takes. */
X86 static inline void
x86_rounds(X86State *state, __m128i words[4], int i)
{
    const __m128i now = words[i & 3], after = words[(i + 1) & 3], third = words[(i + 2) & 3], last = words[(i + 3) & 3];
    const __m128i sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)&K[4 * i]));
    state->cdgh = _mm_sha256rnds2_epu32(state->cdgh, state->abef, sum);
    state->abef = _mm_sha256rnds2_epu32(state->abef, state->cdgh, _mm_shuffle_epi32(sum, 0x0E));
    if (i < 12) { /* w[t-16] + s0(w[t-15]) + w[t-7] + s1(w[t-2]) */
        const __m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(now, after), _mm_alignr_epi8(last, third, 4));
        words[i & 3] = _mm_sha256msg2_epu32(next, last);
    }
}

X86 static inline void
x86_add(X86State *state, X86State before)
{
    state->abef = _mm_add_epi32(state->abef, before.abef);
    state->cdgh = _mm_add_epi32(state->cdgh, before.cdgh);
}

X86 static void
x86_blocks(uint32_t state[8], const unsigned char *block, size_t count)
{
    X86State one = x86_load(state);
    for (; count; count--, block += BLOCK) {
        const X86State before = one;
        __m128i words[4];
        x86_read(block, words);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            x86_rounds(&one, words, i);
        }
        x86_add(&one, before);
    }
    x86_store(one, state);
}

/* Two messages in step: each round waits for the one before it, and the other message fills the wait. */
X86 static void
x86_two(uint32_t state[8], const unsigned char *block, uint32_t other_state[8], const unsigned char *other_block,
        size_t count)
{
    X86State one = x86_load(state), other = x86_load(other_state);
    for (; count; count--, block += BLOCK, other_block += BLOCK) {
        const X86State one_before = one, other_before = other;
        __m128i words[4], other_words[4];
        x86_read(block, words);
        x86_read(other_block, other_words);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            x86_rounds(&one, words, i);
            x86_rounds(&other, other_words, i);
        }
        x86_add(&one, one_before);
        x86_add(&other, other_before);
    }
    x86_store(one, state);
    x86_store(other, other_state);
}

static int
is_x86_fast(void)
{
    unsigned a, b, c, d;
    const int shuffles = __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 9) && (c & 1u << 19); /* SSSE3, SSE4.1 */
    return shuffles && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);           /* SHA */
}
#endif

/* --- whichever this processor has ----------------------------------------------------------------------------------- */

static int fast;

void
sha256_choose(int portable)
{
#if defined(__x86_64__) && defined(__GNUC__)
    fast = !portable && is_x86_fast();
#else
    (void)portable;
#endif
}

int
sha256_is_fast(void)
{
    return fast;
}

static void
take_blocks(uint32_t state[8], const unsigned char *block, size_t count)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (fast) {
        x86_blocks(state, block, count);
        return;
    }
#endif
    portable_blocks(state, block, count);
}

static void
take_both(uint32_t state[8], const unsigned char *block, uint32_t other_state[8], const unsigned char *other_block,
          size_t count)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (fast) {
        x86_two(state, block, other_state, other_block, count);
        return;
    }
#endif
    portable_blocks(state, block, count);
    portable_blocks(other_state, other_block, count);
}

size_t
sha256_blocks_for(size_t size)
{
    return (size + 1 + 8 + BLOCK - 1) / BLOCK;
}

void
sha256_pad(unsigned char *message, size_t size)
{
    const size_t end = sha256_blocks_for(size) * BLOCK;
    const uint64_t bits = (uint64_t)size * 8;
    message[size] = 0x80;
    memset(message + size + 1, 0, end - size - 1 - 8);
    write_word(message + end - 8, (uint32_t)(bits >> 32));
    write_word(message + end - 4, (uint32_t)bits);
}

static const uint32_t INITIAL[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static void
finish(const Sha256Message *message, uint32_t state[8], size_t taken)
{
    take_blocks(state, message->blocks + taken * BLOCK, message->count - taken);
    for (int i = 0; i < 8; i++) {
        write_word(message->digest + 4 * i, state[i]);
    }
}

void
sha256_two(const Sha256Message *one, const Sha256Message *other)
{
    uint32_t state[8], other_state[8];
    size_t both = 0;
    memcpy(state, INITIAL, sizeof(state));
    if (other != NULL) {
        memcpy(other_state, INITIAL, sizeof(other_state));
        both = one->count < other->count ? one->count : other->count;
        take_both(state, one->blocks, other_state, other->blocks, both);
        finish(other, other_state, both);
    }
    finish(one, state, both);
}
