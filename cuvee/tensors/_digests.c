/* BLAKE3 of the leaves of a tensor, 16 chunks or nodes side by side: C for AVX-512, called through ctypes.
 *
 * Equals the package blake3 bit for bit (tests/differential/test_digests.py). It is here because the package takes one leaf a
 * call: with each a thread gives the interpreter away, and waits for it again for about as long as the hash takes.
 * Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere" (2020), section 2. */

#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12)
#if !defined(__clang__)
#pragma GCC optimize("schedule-insns") /* a tenth faster: without it the state does not stay in the registers */
#endif
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#define INLINE TARGET static inline __attribute__((always_inline))

enum { LANES = 16, BLOCK = 64, CHUNK = 1024, CHAIN = 8 };
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };
enum { MOST_CHUNKS = 1024 };

typedef uint32_t Word;
typedef Word Lanes __attribute__((vector_size(4 * LANES)));

static const Word START[CHAIN] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* The compression function's seven rounds on words, or on lanes of words: section 2.2. */
#define TURN(x, bits) ((x) >> (bits) | (x) << (32 - (bits)))
#define MIX(a, b, c, d, x, y)                                \
    v[a] = v[a] + v[b] + m[x], v[d] = TURN(v[d] ^ v[a], 16); \
    v[c] = v[c] + v[d], v[b] = TURN(v[b] ^ v[c], 12);        \
    v[a] = v[a] + v[b] + m[y], v[d] = TURN(v[d] ^ v[a], 8);  \
    v[c] = v[c] + v[d], v[b] = TURN(v[b] ^ v[c], 7)
#define ROUND(m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15)    \
    MIX(0, 4, 8, 12, m0, m1); MIX(1, 5, 9, 13, m2, m3); MIX(2, 6, 10, 14, m4, m5);     \
    MIX(3, 7, 11, 15, m6, m7); MIX(0, 5, 10, 15, m8, m9); MIX(1, 6, 11, 12, m10, m11); \
    MIX(2, 7, 8, 13, m12, m13); MIX(3, 4, 9, 14, m14, m15)
#define ROUNDS                                                    \
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); \
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8); \
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1); \
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6); \
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4); \
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7); \
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

static void compress(Word chain[CHAIN], const uint8_t block[BLOCK], Word size, uint64_t counter, Word flags)
{
    Word m[16], v[16];
    memcpy(m, block, BLOCK);
    for (int i = 0; i < CHAIN; i++) v[i] = chain[i], v[8 + i] = START[i];
    v[12] = (Word)counter, v[13] = (Word)(counter >> 32), v[14] = size, v[15] = flags;
    ROUNDS;
    for (int i = 0; i < CHAIN; i++) chain[i] = v[i] ^ v[i + 8];
}

/* The chaining value of a chunk of at most 1024 bytes. */
static void hash_chunk(const uint8_t *chunk, int64_t size, uint64_t counter, Word flags, Word chain[CHAIN])
{
    memcpy(chain, START, sizeof START);
    for (int64_t at = 0; at == 0 || at < size; at += BLOCK) {
        uint8_t block[BLOCK] = {0};
        int64_t held = size - at < BLOCK ? size - at : BLOCK;
        memcpy(block, chunk + at, held);
        Word ends = (at == 0 ? CHUNK_START : 0) | (at + BLOCK >= size ? CHUNK_END | flags : 0);
        compress(chain, block, (Word)held, counter, ends);
    }
}

/* A block of each of 16 inputs, word by word: a transposition in four perfect shuffles. */
INLINE void gather(const uint8_t *input, int64_t stride, Lanes m[16])
{
    for (int lane = 0; lane < LANES; lane++) memcpy(m + lane, input + lane * stride, BLOCK);
    for (int step = 0; step < 4; step++) {
        Lanes from[16];
        memcpy(from, m, sizeof from);
        for (int i = 0; i < 8; i++) {
            Lanes a = from[i], b = from[i + 8];
            m[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            m[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
    }
}

/* The chaining values of 16 inputs, `stride` bytes apart: of whole chunks from number `counter` on, or of nodes. */
INLINE void hash_16(const uint8_t *input, int64_t stride, int is_node, Word counter, Word *chains)
{
    Lanes chain[CHAIN], zero = {0}, number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int blocks = is_node ? 1 : CHUNK / BLOCK;
    number = is_node ? zero : number + counter;
    for (int i = 0; i < CHAIN; i++) chain[i] = zero + START[i];
    for (int block = 0; block < blocks; block++) {
        Word flags = is_node ? PARENT : (block == 0 ? CHUNK_START : 0) | (block == blocks - 1 ? CHUNK_END : 0);
        Lanes m[16], v[16];
        gather(input + block * BLOCK, stride, m);
        for (int i = 0; i < CHAIN; i++) v[i] = chain[i], v[8 + i] = zero + START[i];
        v[12] = number, v[13] = zero, v[14] = zero + BLOCK, v[15] = zero + flags;
        ROUNDS;
        for (int i = 0; i < CHAIN; i++) chain[i] = v[i] ^ v[i + 8];
    }
    for (int i = 0; i < CHAIN; i++)
        for (int lane = 0; lane < LANES; lane++) chains[lane * CHAIN + i] = chain[i][lane];
}

/* Level by level; a node without a neighbour goes up as it is. */
TARGET static void digest_leaf(const uint8_t *leaf, int64_t size, uint8_t *digest)
{
    Word chains[(MOST_CHUNKS + LANES) * CHAIN], root[CHAIN];
    int64_t full = size / CHUNK, nodes = full + (size % CHUNK > 0), at = 0;
    if (nodes <= 1) {
        hash_chunk(leaf, size, 0, ROOT, root);
        memcpy(digest, root, sizeof root);
        return;
    }
    for (; at < full && full >= LANES; at += LANES) { /* the last 16 begin earlier, where fewer are left */
        at = at + LANES <= full ? at : full - LANES;
        hash_16(leaf + at * CHUNK, CHUNK, 0, (Word)at, chains + at * CHAIN);
    }
    for (; at < nodes; at++) hash_chunk(leaf + at * CHUNK, at < full ? CHUNK : size % CHUNK, at, 0, chains + at * CHAIN);
    while (nodes > 2) {
        int64_t pairs = nodes / 2;
        for (at = 0; at < pairs; at += LANES) {
            Word parents[LANES * CHAIN];
            hash_16((const uint8_t *)(chains + 2 * at * CHAIN), BLOCK, 1, 0, parents);
            memcpy(chains + at * CHAIN, parents, sizeof(Word) * CHAIN * (pairs - at < LANES ? pairs - at : LANES));
        }
        if (nodes % 2) memcpy(chains + pairs * CHAIN, chains + (nodes - 1) * CHAIN, sizeof(Word) * CHAIN);
        nodes = pairs + nodes % 2;
    }
    memcpy(root, START, sizeof START);
    compress(root, (const uint8_t *)chains, BLOCK, 0, PARENT | ROOT);
    memcpy(digest, root, sizeof root);
}

/* True when this processor digests here about as fast as the package does. */
API int cuvee_digests_pay(void) { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"); }

/* The digests, 32 bytes each, of runs of `leaf` bytes, at most 1 MiB; the last run may be shorter. */
API void cuvee_digest_leaves(const uint8_t *bytes, int64_t size, int64_t leaf, uint8_t *digests)
{
    for (int64_t at = 0; at < size; at += leaf, digests += 32)
        digest_leaf(bytes + at, size - at < leaf ? size - at : leaf, digests);
}
#else
API int cuvee_digests_pay(void) { return 0; }
API void cuvee_digest_leaves(const uint8_t *bytes, int64_t size, int64_t leaf, uint8_t *digests)
{
    (void)bytes, (void)size, (void)leaf, (void)digests;
}
#endif
