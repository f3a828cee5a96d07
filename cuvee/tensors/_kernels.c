/* CPU kernels of cuvee/tensors/kernels.py: plain C without Python, called through ctypes.
 *
 * Each function equals its definition in PyTorch or NumPy bit for bit (tests/differential/test_kernels.py): multiply and add
 * stay separate (-ffp-contract=off), sums have a fixed order, and no compiler flag may reorder floating point.
 * Legend: K models, n elements, rows of `stride` elements apart. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API
#endif

enum { F32 = 0, BF16 = 1, F16 = 2 };
enum { CHUNK = 1024, LANES = 256, DIGITS = 65536 };
#define MIN(a, b) ((a) < (b) ? (a) : (b))

static inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

/* ---- storage types ------------------------------------------------------------------------------------------- */

static inline float from_bf16(uint16_t half) { return as_float((uint32_t)half << 16); }

static inline float from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    /* 2^112 moves the exponent's bias from 15 to 127, and is exact for subnormal numbers too. */
    uint32_t finite = as_bits(as_float(rest << 13) * 0x1p112f);
    uint32_t special = 0x7f800000u | (rest << 13);
    return as_float(sign | (rest >= 0x7c00 ? special : finite));
}

static inline uint16_t to_bf16(float value)
{
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

static inline uint16_t to_f16(float value)
{
    uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    /* Normal: rebias and round to even. Subnormal: adding 0.5 lines the last place up with float's own. */
    uint32_t normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    uint32_t subnormal = as_bits(as_float(size) + 0.5f) - 0x3f000000u;
    uint32_t half = size < (113u << 23) ? subnormal : normal;
    half = size >= 0x477ff000u ? 0x7c00 : half; /* 65520 and above round to infinity */
    half = size > 0x7f800000u ? 0x7e00 : half;
    return (uint16_t)(sign | half);
}

static inline int64_t is_special(float value) { return (as_bits(value) & 0x7f800000) == 0x7f800000; }

/* out[i] = source[i] - base[i], or source[i] where there is no base; returns how many of source are NaN or infinite. */
#define DECODE(TYPE, CONVERT)                                                                          \
    do {                                                                                               \
        const TYPE *stored = source;                                                                   \
        for (int64_t begin = 0; begin < n; begin += CHUNK) {                                           \
            int64_t end = MIN(begin + CHUNK, n);                                                       \
            uint32_t here = 0;                                                                         \
            if (base)                                                                                  \
                for (int64_t i = begin; i < end; i++) {                                                \
                    float value = CONVERT(stored[i]);                                                  \
                    here += is_special(value);                                                         \
                    out[i] = value - base[i];                                                          \
                }                                                                                      \
            else                                                                                       \
                for (int64_t i = begin; i < end; i++) {                                                \
                    float value = CONVERT(stored[i]);                                                  \
                    here += is_special(value);                                                         \
                    out[i] = value;                                                                    \
                }                                                                                      \
            special += here;                                                                           \
        }                                                                                              \
    } while (0)

FAST API int64_t cuvee_decode(const void *source, int kind, const float *base, int64_t n, float *out)
{
    int64_t special = 0;
    if (kind == BF16) DECODE(uint16_t, from_bf16);
    else if (kind == F16) DECODE(uint16_t, from_f16);
    else DECODE(float, (float));
    return special;
}

/* out[i] = rounded(base[i] + values[i] * scaling), base 0 where there is none; returns how many of out are NaN or infinite. */
#define ENCODE(TYPE, CONVERT, BACK)                                                                    \
    do {                                                                                               \
        TYPE *stored = out;                                                                            \
        for (int64_t begin = 0; begin < n; begin += CHUNK) {                                           \
            int64_t end = MIN(begin + CHUNK, n);                                                       \
            uint32_t here = 0;                                                                         \
            for (int64_t i = begin; i < end; i++) {                                                    \
                float value = values[i];                                                               \
                if (base) value = base[i] + value * scaling;                                           \
                stored[i] = CONVERT(value);                                                            \
                here += is_special(BACK(stored[i]));                                                   \
            }                                                                                          \
            special += here;                                                                           \
        }                                                                                              \
    } while (0)

FAST API int64_t cuvee_encode(const float *values, const float *base, float scaling, int kind, int64_t n, void *out)
{
    int64_t special = 0;
    if (kind == BF16) ENCODE(uint16_t, to_bf16, from_bf16);
    else if (kind == F16) ENCODE(uint16_t, to_f16, from_f16);
    else ENCODE(float, (float), (float));
    return special;
}

/* ---- combining ----------------------------------------------------------------------------------------------- */

/* out = (((x_0 w_0 + x_1 w_1) + x_2 w_2) + ...) / divisor; a divisor of 1 changes nothing. */
FAST API void cuvee_weighted_sum(
    const float *values, int64_t stride, const float *weights, int64_t K, float divisor, int64_t n, float *out)
{
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t end = MIN(begin + CHUNK, n);
        float total[CHUNK];
        for (int64_t i = begin; i < end; i++) total[i - begin] = values[i] * weights[0];
        for (int64_t k = 1; k < K; k++) {
            const float *value = values + k * stride;
            float w = weights[k];
            for (int64_t i = begin; i < end; i++) total[i - begin] += value[i] * w;
        }
        for (int64_t i = begin; i < end; i++) out[i] = total[i - begin] / divisor;
    }
}

/* A chunk of raw elements as floats, less base where there is one; returns how many are NaN or infinite. */
static inline __attribute__((always_inline)) int64_t decode_chunk(
    const void *source, int kind, int64_t begin, int64_t size, const float *base, float *out)
{
    uint32_t special = 0;
    if (kind == BF16)
        for (int64_t i = 0; i < size; i++) out[i] = from_bf16(((const uint16_t *)source)[begin + i]);
    else if (kind == F16)
        for (int64_t i = 0; i < size; i++) out[i] = from_f16(((const uint16_t *)source)[begin + i]);
    else
        memcpy(out, (const float *)source + begin, size * sizeof(float));
    for (int64_t i = 0; i < size; i++) special += is_special(out[i]);
    if (base)
        for (int64_t i = 0; i < size; i++) out[i] -= base[i];
    return special;
}

/* From raw inputs to raw output in one pass: decode, cuvee_weighted_sum, encode. source[0] is the base where has_base.
 * special[input] = how many of it are NaN or infinite; returns how many of out are. */
FAST API int64_t cuvee_combine(
    const void *const *source, const int *kind, int64_t K, int has_base, const float *weights, float divisor, float scaling,
    int out_kind, int64_t n, void *out, int64_t *special)
{
    int64_t made = 0;
    for (int64_t k = 0; k < K + has_base; k++) special[k] = 0;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        float base[CHUNK], value[CHUNK], total[CHUNK];
        if (has_base) special[0] += decode_chunk(source[0], kind[0], begin, size, 0, base);
        for (int64_t k = 0; k < K; k++) {
            float w = weights[k];
            int64_t at = k + has_base;
            special[at] += decode_chunk(source[at], kind[at], begin, size, has_base ? base : 0, value);
            if (k == 0)
                for (int64_t i = 0; i < size; i++) total[i] = value[i] * w;
            else
                for (int64_t i = 0; i < size; i++) total[i] += value[i] * w;
        }
        for (int64_t i = 0; i < size; i++) total[i] /= divisor;
        if (has_base)
            for (int64_t i = 0; i < size; i++) total[i] = base[i] + total[i] * scaling;
        uint32_t here = 0;
        if (out_kind == F32) {
            float *stored = (float *)out + begin;
            for (int64_t i = 0; i < size; i++) here += is_special(stored[i] = total[i]);
        } else {
            uint16_t *stored = (uint16_t *)out + begin;
            if (out_kind == BF16)
                for (int64_t i = 0; i < size; i++) here += is_special(from_bf16(stored[i] = to_bf16(total[i])));
            else
                for (int64_t i = 0; i < size; i++) here += is_special(from_f16(stored[i] = to_f16(total[i])));
        }
        made += here;
    }
    return made;
}

/* pieces.trim.keep_among: magnitudes above the threshold; of those equal to it all before `all_before`, and the first
 * `few` of those before `few_until`. In place where out is values. */
FAST API void cuvee_threshold(
    const float *values, float limit, int64_t all_before, int64_t few_until, int64_t few, int64_t n, float *out)
{
    for (int64_t i = 0; i < all_before; i++) out[i] = fabsf(values[i]) >= limit ? values[i] : 0.0f;
    for (int64_t i = all_before; i < few_until; i++) {
        float value = values[i], size = fabsf(value);
        int take = size > limit;
        if (size == limit && few > 0) { take = 1; few--; }
        out[i] = take ? value : 0.0f;
    }
    for (int64_t i = few_until; i < n; i++) out[i] = fabsf(values[i]) > limit ? values[i] : 0.0f;
}

/* pieces.vote.weigh_consensus; in place where out is the first row. */
FAST API void cuvee_consensus(
    const float *deltas, int64_t stride, const float *votes, const float *weights, int64_t K, int normalize, float floor,
    int64_t n, float *out)
{
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        float signs[CHUNK], merged[CHUNK], divisor[CHUNK];
        for (int64_t i = 0; i < size; i++) signs[i] = merged[i] = divisor[i] = 0.0f;
        for (int64_t k = 0; k < K; k++) {
            const float *delta = deltas + k * stride + begin;
            float vote = votes[k];
            for (int64_t i = 0; i < size; i++) signs[i] += delta[i] * vote;
        }
        for (int64_t i = 0; i < size; i++) signs[i] = signs[i] >= 0.0f ? 1.0f : -1.0f;
        for (int64_t k = 0; k < K; k++) {
            const float *delta = deltas + k * stride + begin;
            float vote = votes[k], w = weights[k];
            for (int64_t i = 0; i < size; i++) {
                int agrees = delta[i] * vote * signs[i] > 0.0f;
                merged[i] += agrees ? delta[i] * w : 0.0f;
                divisor[i] += agrees ? w : 0.0f;
            }
        }
        float *target = out + begin;
        if (!normalize)
            memcpy(target, merged, size * sizeof(float));
        else if (floor > 0.0f)
            for (int64_t i = 0; i < size; i++) target[i] = merged[i] / (divisor[i] < floor ? floor : divisor[i]);
        else
            for (int64_t i = 0; i < size; i++) target[i] = merged[i] / (divisor[i] == 0.0f ? 1.0f : divisor[i]);
    }
}

/* papers.sce.variance: the population variance over K models. */
FAST API void cuvee_variance(const float *deltas, int64_t stride, int64_t K, int64_t n, float *out)
{
    float count = (float)K;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        float center[CHUNK], total[CHUNK];
        for (int64_t i = 0; i < size; i++) center[i] = total[i] = 0.0f;
        for (int64_t k = 0; k < K; k++) {
            const float *delta = deltas + k * stride + begin;
            for (int64_t i = 0; i < size; i++) center[i] += delta[i];
        }
        for (int64_t i = 0; i < size; i++) center[i] = center[i] / count;
        for (int64_t k = 0; k < K; k++) {
            const float *delta = deltas + k * stride + begin;
            for (int64_t i = 0; i < size; i++) {
                float away = delta[i] - center[i];
                total[i] += away * away;
            }
        }
        for (int64_t i = 0; i < size; i++) out[begin + i] = total[i] / count;
    }
}

/* ---- sums in 256 lanes (tensors/sums.py), leaf after leaf ------------------------------------------------------ */

static double in_order(const double *lanes)
{
    double result = 0.0;
    for (int lane = 0; lane < LANES; lane++) result += lanes[lane];
    return result;
}

/* out[leaf] = Σ |x| of each run of `leaf` elements. */
FAST API void cuvee_magnitude_sums(const float *values, int64_t n, int64_t leaf, double *out)
{
    for (int64_t start = 0; start < n; start += leaf) {
        int64_t stop = MIN(start + leaf, n);
        double lanes[LANES] = {0};
        for (int64_t begin = start; begin < stop; begin += LANES) {
            int64_t size = MIN(LANES, stop - begin);
            const float *source = values + begin;
            if (size == LANES)
                for (int lane = 0; lane < LANES; lane++) lanes[lane] += (double)fabsf(source[lane]);
            else
                for (int lane = 0; lane < size; lane++) lanes[lane] += (double)fabsf(source[lane]);
        }
        *out++ = in_order(lanes);
    }
}

/* gram[i, j] = Σ x_i x_j of K rows. A product of two floats is exact in double, so that a fused multiply-add changes nothing. */
static inline __attribute__((always_inline)) void pair_lanes(
    const float *x, const float *y, int64_t size, int group, double *lanes)
{
    double total[16] = {0};
    for (int64_t begin = group * 16; begin + 16 <= size; begin += LANES)
        for (int lane = 0; lane < 16; lane++) total[lane] += (double)x[begin + lane] * (double)y[begin + lane];
    memcpy(lanes + group * 16, total, sizeof total);
}

static inline __attribute__((always_inline)) void gram_of(
    const float *values, int64_t stride, int64_t K, int64_t size, double *gram)
{
    int64_t whole = size - size % LANES;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) {
            const float *x = values + i * stride, *y = values + j * stride;
            double lanes[LANES];
            for (int group = 0; group < LANES / 16; group++) pair_lanes(x, y, whole, group, lanes);
            for (int64_t at = whole; at < size; at++) lanes[at - whole] += (double)x[at] * (double)y[at];
            gram[i * K + j] = gram[j * K + i] = in_order(lanes);
        }
}

FAST static void gram_plain(const float *values, int64_t stride, int64_t K, int64_t size, double *gram)
{
    gram_of(values, stride, K, size, gram);
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Add runs of LANES elements of up to four rows to the lanes of all their pairs: each lane is loaded once for all RUNS. */
__attribute__((target("avx512f"), always_inline)) static inline void add_pairs(
    const int K, const int RUNS, const float *values, int64_t stride, double (*lanes)[LANES])
{
    for (int lane = 0; lane < LANES; lane += 8) {
        __m512d x[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < K; i++)
#pragma GCC unroll 4
            for (int run = 0; run < RUNS; run++)
                x[i][run] = _mm512_cvtps_pd(_mm256_loadu_ps(values + i * stride + run * LANES + lane));
#pragma GCC unroll 4
        for (int i = 0; i < K; i++)
#pragma GCC unroll 4
            for (int j = 0; j <= i; j++) {
                double *place = lanes[i * (i + 1) / 2 + j] + lane;
                __m512d total = _mm512_loadu_pd(place);
#pragma GCC unroll 4
                for (int run = 0; run < RUNS; run++) total = _mm512_fmadd_pd(x[i][run], x[j][run], total);
                _mm512_storeu_pd(place, total);
            }
    }
}

__attribute__((target("avx512f"), always_inline)) static inline void add_rows(
    const int K, const float *values, int64_t stride, int64_t size, double (*lanes)[LANES])
{
    int64_t begin = 0;
    for (; begin + 4 * LANES <= size; begin += 4 * LANES) add_pairs(K, 4, values + begin, stride, lanes);
    for (; begin < size; begin += LANES) add_pairs(K, 1, values + begin, stride, lanes);
}

__attribute__((target("avx512f"))) static void lanes_avx512(
    const float *values, int64_t stride, int64_t K, int64_t size, double (*lanes)[LANES])
{
    memset(lanes, 0, 10 * sizeof *lanes);
    if (K == 2) add_rows(2, values, stride, size, lanes);
    else if (K == 3) add_rows(3, values, stride, size, lanes);
    else add_rows(4, values, stride, size, lanes);
}
#endif

static void gram_leaf(const float *values, int64_t stride, int64_t K, int64_t size, double *gram)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (K >= 2 && K <= 4 && __builtin_cpu_supports("avx512f")) {
        double lanes[10][LANES];
        int64_t whole = size - size % LANES;
        lanes_avx512(values, stride, K, whole, lanes);
        for (int64_t i = 0; i < K; i++)
            for (int64_t j = 0; j <= i; j++) {
                const float *x = values + i * stride, *y = values + j * stride;
                double *pair = lanes[i * (i + 1) / 2 + j];
                for (int64_t at = whole; at < size; at++) pair[at - whole] += (double)x[at] * (double)y[at];
                gram[i * K + j] = gram[j * K + i] = in_order(pair);
            }
        return;
    }
#endif
    gram_plain(values, stride, K, size, gram);
}

/* out[leaf, i, j] = Σ x_i x_j of each run of `leaf` elements. */
API void cuvee_product_sums(const float *values, int64_t stride, int64_t K, int64_t n, int64_t leaf, double *out)
{
    for (int64_t start = 0; start < n; start += leaf, out += K * K)
        gram_leaf(values + start, stride, K, MIN(leaf, n - start), out);
}

/* The same from raw inputs, less the base where there is one, a leaf at a time in the cache; special as in cuvee_combine. */
API int cuvee_stored_products(
    const void *const *source, const int *kind, int64_t K, int has_base, int64_t n, int64_t leaf, double *out, int64_t *special)
{
    int64_t room = MIN(leaf, n);
    float *values = malloc((K + 1) * room * sizeof *values);
    if (!values) return -1;
    float *base = has_base ? values : NULL, *rows = values + room;
    for (int64_t k = 0; k < K + has_base; k++) special[k] = 0;
    for (int64_t start = 0; start < n; start += leaf, out += K * K) {
        int64_t size = MIN(leaf, n - start);
        for (int64_t input = 0; input < K + has_base; input++) {
            int64_t width = kind[input] == F32 ? 4 : 2;
            float *target = has_base ? (input ? rows + (input - 1) * room : values) : rows + input * room;
            special[input] += cuvee_decode(
                (const char *)source[input] + start * width, kind[input], input ? base : NULL, size, target);
        }
        gram_leaf(rows, room, K, size, out);
    }
    free(values);
    return 0;
}

/* ---- exact ranks: counting the digits of keys ------------------------------------------------------------------ */

/* The unsigned order of these keys is the order of |x| (magnitude) or of x, where -0 is 0. */
static inline uint32_t ordered_key(uint32_t bits, int magnitude)
{
    if (magnitude) return bits & 0x7fffffff;
    bits = bits == 0x80000000u ? 0 : bits;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* counts[high digit of each key] += 1; returns -1 without memory. Two tables: equal neighbours do not wait for each other. */
API int cuvee_count_high(const uint32_t *bits, int magnitude, int64_t n, int64_t *counts)
{
    uint32_t *tables = calloc(2 * DIGITS, sizeof *tables);
    if (!tables) return -1;
    uint32_t *even = tables, *odd = tables + DIGITS;
    if (magnitude)
        for (int64_t i = 0; i + 1 < n; i += 2) {
            even[(bits[i] >> 16) & 0x7fff]++;
            odd[(bits[i + 1] >> 16) & 0x7fff]++;
        }
    else
        for (int64_t i = 0; i + 1 < n; i += 2) {
            even[ordered_key(bits[i], 0) >> 16]++;
            odd[ordered_key(bits[i + 1], 0) >> 16]++;
        }
    if (n & 1) even[ordered_key(bits[n - 1], magnitude) >> 16]++;
    for (int digit = 0; digit < DIGITS; digit++) counts[digit] += (int64_t)even[digit] + odd[digit];
    free(tables);
    return 0;
}

/* counts[low digit] += 1 for the keys with this high digit. Without a branch: which keys match cannot be predicted. */
FAST API void cuvee_count_low(const uint32_t *bits, int magnitude, uint32_t high, int64_t n, int64_t *counts)
{
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin), found = 0;
        uint16_t low[CHUNK];
        uint32_t any = 0;
        const uint32_t *source = bits + begin;
        for (int64_t i = 0; i < size; i++) any += ordered_key(source[i], magnitude) >> 16 == high;
        if (!any) continue;
        for (int64_t i = 0; i < size; i++) {
            uint32_t key = ordered_key(source[i], magnitude);
            low[found] = (uint16_t)key;
            found += key >> 16 == high;
        }
        for (int64_t i = 0; i < found; i++) counts[low[i]]++;
    }
}

/* out[leaf] = how many keys of each run of `leaf` elements are `wanted`. */
FAST API void cuvee_count_equal(const uint32_t *bits, int magnitude, uint32_t wanted, int64_t n, int64_t leaf, int64_t *out)
{
    for (int64_t start = 0; start < n; start += leaf) {
        int64_t total = 0;
        for (int64_t begin = start; begin < MIN(start + leaf, n); begin += CHUNK) {
            int64_t end = MIN(MIN(begin + CHUNK, start + leaf), n);
            uint32_t here = 0;
            for (int64_t i = begin; i < end; i++) here += ordered_key(bits[i], magnitude) == wanted;
            total += here;
        }
        *out++ = total;
    }
}

/* The keys of one bracket [low, high], and how many are above it. */
static inline __attribute__((always_inline)) int64_t gather_plain(
    const uint32_t *bits, int magnitude, uint32_t low, uint32_t high, int64_t n, uint32_t *found, int64_t *above)
{
    int64_t count = 0, more = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t key = ordered_key(bits[i], magnitude);
        more += key > high;
        found[count] = key;
        count += key >= low && key <= high;
    }
    *above += more;
    return count;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx512f"))) static int64_t gather_avx512(
    const uint32_t *bits, uint32_t low, uint32_t high, int64_t n, uint32_t *found, int64_t *above)
{
    const __m512i sign = _mm512_set1_epi32(0x7fffffff), least = _mm512_set1_epi32((int)low), most = _mm512_set1_epi32((int)high);
    int64_t count = 0, more = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i key = _mm512_and_si512(_mm512_loadu_si512(bits + i), sign);
        __mmask16 over = _mm512_cmpgt_epu32_mask(key, most);
        __mmask16 inside = _mm512_mask_cmpge_epu32_mask((__mmask16)~over, key, least);
        more += __builtin_popcount(over);
        _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(inside, key));
        count += __builtin_popcount(inside);
    }
    *above += more;
    return count + gather_plain(bits + i, 1, low, high, n - i, found + count, above);
}
#endif

FAST static int64_t gather(
    const uint32_t *bits, int magnitude, uint32_t low, uint32_t high, int64_t n, uint32_t *found, int64_t *above)
{
    return gather_plain(bits, magnitude, low, high, n, found, above);
}

static int by_key(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The k-th largest key, 1 <= k <= n, of a few keys, which are put in another order (quickselect, middle of three). */
static uint32_t select_key(uint32_t *keys, int64_t n, int64_t k)
{
    int64_t first = 0, last = n - 1, place = n - k;
    while (first < last) {
        uint32_t a = keys[first], b = keys[first + (last - first) / 2], c = keys[last];
        uint32_t pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
        int64_t i = first, j = last;
        while (i <= j) {
            while (keys[i] < pivot) i++;
            while (keys[j] > pivot) j--;
            if (i <= j) { uint32_t t = keys[i]; keys[i++] = keys[j]; keys[j--] = t; }
        }
        if (place <= j) last = j;
        else if (place >= i) first = i;
        else return keys[place];
    }
    return keys[place];
}

/* The k-th largest key in one pass: a sample says between which keys it lies, the pass keeps those and counts what is above.
 * Returns 1, with the key and how many keys are above it; 0 where the sample misled, -1 without memory. */
API int cuvee_select(const uint32_t *bits, int magnitude, int64_t n, int64_t k, uint32_t *kth, int64_t *above)
{
    enum { SAMPLE = 4096, MARGIN = 130 }; /* four standard deviations of a sampled rank */
    if (n < 4 * SAMPLE) {
        uint32_t *keys = malloc(n * sizeof *keys);
        if (!keys) return -1;
        for (int64_t i = 0; i < n; i++) keys[i] = ordered_key(bits[i], magnitude);
        *kth = select_key(keys, n, k);
        *above = 0;
        for (int64_t i = 0; i < n; i++) *above += ordered_key(bits[i], magnitude) > *kth;
        free(keys);
        return 1;
    }
    uint32_t sample[SAMPLE];
    for (int64_t i = 0; i < SAMPLE; i++) {
        /* Not in step with the length of the rows: each stride has a place of its own inside it. */
        int64_t begin = i * n / SAMPLE, room = (i + 1) * n / SAMPLE - begin;
        sample[i] = ordered_key(bits[begin + (int64_t)((uint64_t)i * 2654435761u % (uint64_t)room)], magnitude);
    }
    qsort(sample, SAMPLE, sizeof *sample, by_key);
    int64_t middle = SAMPLE - 1 - (int64_t)((double)k / (double)n * SAMPLE);
    int64_t from = middle - MARGIN, to = middle + MARGIN;
    uint32_t low = from < 0 ? 0 : sample[from], high = to >= SAMPLE ? 0xffffffffu : sample[to];
    int64_t room = n + 16, found, more = 0;
    uint32_t *keys = malloc(room * sizeof *keys); /* pages that are not touched cost nothing */
    if (!keys) return -1;
#if defined(__x86_64__) && defined(__GNUC__)
    if (magnitude && __builtin_cpu_supports("avx512f")) found = gather_avx512(bits, low, high, n, keys, &more);
    else
#endif
        found = gather(bits, magnitude, low, high, n, keys, &more);
    int inside = more < k && k <= more + found;
    if (inside) {
        *kth = select_key(keys, found, k - more);
        *above = more;
        for (int64_t i = 0; i < found; i++) *above += keys[i] > *kth;
    }
    free(keys);
    return inside;
}

/* ---- random draws: NumPy's Philox4x64-10, two draws of 32 bits a word, low half first --------------------------- */

enum { DRAWS = 8, WIDE = 16 };

/* words[4 i ...] = the four words of counter + i, for WIDE counters. */
static void philox(uint64_t key0, uint64_t key1, uint64_t counter, uint64_t *words)
{
    for (int lane = 0; lane < WIDE; lane++, words += 4) {
        uint64_t a = counter + lane, b = 0, c = 0, d = 0, k0 = key0, k1 = key1;
        for (int round = 0; round < 10; round++) {
            unsigned __int128 p = (unsigned __int128)a * 0xD2E7470EE14C6C93u, q = (unsigned __int128)c * 0xCA5A826395121157u;
            a = (uint64_t)(q >> 64) ^ b ^ k0;
            b = (uint64_t)q;
            c = (uint64_t)(p >> 64) ^ d ^ k1;
            d = (uint64_t)p;
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        words[0] = a; words[1] = b; words[2] = c; words[3] = d;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX512 __attribute__((target("avx512f,avx512dq")))

AVX512 static inline void multiply(__m512i a, uint64_t factor, __m512i *high, __m512i *low)
{
    const __m512i half = _mm512_set1_epi64(0xffffffff);
    __m512i b0 = _mm512_set1_epi64((int64_t)(factor & 0xffffffff)), b1 = _mm512_set1_epi64((int64_t)(factor >> 32));
    __m512i a1 = _mm512_srli_epi64(a, 32);
    __m512i p00 = _mm512_mul_epu32(a, b0), p01 = _mm512_mul_epu32(a, b1);
    __m512i p10 = _mm512_mul_epu32(a1, b0), p11 = _mm512_mul_epu32(a1, b1);
    __m512i middle = _mm512_add_epi64(_mm512_add_epi64(_mm512_srli_epi64(p00, 32), _mm512_and_si512(p01, half)), p10);
    *high = _mm512_add_epi64(_mm512_add_epi64(p11, _mm512_srli_epi64(p01, 32)), _mm512_srli_epi64(middle, 32));
    *low = _mm512_or_si512(_mm512_slli_epi64(middle, 32), _mm512_and_si512(p00, half));
}

AVX512 static void philox_avx512(uint64_t key0, uint64_t key1, uint64_t counter, uint64_t *words)
{
    const __m512i steps = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), zero = _mm512_setzero_si512();
    __m512i a[2], b[2] = {zero, zero}, c[2] = {zero, zero}, d[2] = {zero, zero};
    for (int half = 0; half < 2; half++) a[half] = _mm512_add_epi64(_mm512_set1_epi64((int64_t)counter + 8 * half), steps);
    for (int round = 0; round < 10; round++) {
        __m512i k0 = _mm512_set1_epi64((int64_t)key0), k1 = _mm512_set1_epi64((int64_t)key1);
        for (int half = 0; half < 2; half++) {
            __m512i high0, low0, high1, low1;
            multiply(a[half], 0xD2E7470EE14C6C93u, &high0, &low0);
            multiply(c[half], 0xCA5A826395121157u, &high1, &low1);
            a[half] = _mm512_xor_si512(_mm512_xor_si512(high1, b[half]), k0);
            b[half] = low1;
            c[half] = _mm512_xor_si512(_mm512_xor_si512(high0, d[half]), k1);
            d[half] = low0;
        }
        key0 += 0x9E3779B97F4A7C15u;
        key1 += 0xBB67AE8584CAA73Bu;
    }
    const __m512i every4 = _mm512_set_epi64(28, 24, 20, 16, 12, 8, 4, 0);
    for (int half = 0; half < 2; half++) {
        _mm512_i64scatter_epi64(words + 32 * half, every4, a[half], 8);
        _mm512_i64scatter_epi64(words + 32 * half + 1, every4, b[half], 8);
        _mm512_i64scatter_epi64(words + 32 * half + 2, every4, c[half], 8);
        _mm512_i64scatter_epi64(words + 32 * half + 3, every4, d[half], 8);
    }
}
#endif

/* out[i] = the draw of element start + i; NumPy advances the counter before each block of four words. */
FAST API void cuvee_draws(uint64_t key0, uint64_t key1, int64_t start, int64_t n, uint32_t *out)
{
    int64_t skip = start % DRAWS, at = 0;
    uint64_t counter = (uint64_t)(start / DRAWS) + 1;
    void (*make)(uint64_t, uint64_t, uint64_t, uint64_t *) = philox;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512dq")) make = philox_avx512;
#endif
    while (at < n) {
        uint64_t words[4 * WIDE];
        make(key0, key1, counter, words);
        int64_t take = MIN(WIDE * DRAWS - skip, n - at);
        if (skip == 0 && take == WIDE * DRAWS)
            for (int i = 0; i < 4 * WIDE; i++) {
                out[at + 2 * i] = (uint32_t)words[i];
                out[at + 2 * i + 1] = (uint32_t)(words[i] >> 32);
            }
        else
            for (int64_t i = 0; i < take; i++) out[at + i] = (uint32_t)(words[(skip + i) / 2] >> (32 * ((skip + i) & 1)));
        at += take;
        counter += WIDE;
        skip = 0;
    }
}

/* keep[i] = draw < limit, a byte each. */
FAST API void cuvee_bernoulli(uint64_t key0, uint64_t key1, int64_t start, int64_t n, uint32_t limit, uint8_t *keep)
{
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        uint32_t drawn[CHUNK];
        cuvee_draws(key0, key1, start + begin, size, drawn);
        for (int64_t i = 0; i < size; i++) keep[begin + i] = drawn[i] < limit;
    }
}

/* out = keep ? values : 0 */
FAST API void cuvee_keep(const uint8_t *keep, const float *values, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = as_float(as_bits(values[i]) & -(uint32_t)keep[i]);
}

/* pieces.drop: keep[r, j] = drawn[r, j] < limits[rank of keys[r, j] in its row], for keys above zero; the limits do not
 * fall. A draw between the lowest and the highest limit is held against one entry of the sorted row, the one whose rank it
 * needs; only where that is an equal one is the rank among equals counted. */
FAST API int cuvee_rank_drop(
    const uint32_t *keys, const uint32_t *ordered, const uint32_t *drawn, const uint32_t *limits, int64_t rows,
    int64_t length, uint8_t *keep)
{
    uint32_t lowest = limits[0], highest = limits[length - 1], range = highest - lowest;
    double steps = (double)(length - 1) / (range > 1 ? (double)range : 1.0);
    int32_t *between = malloc((length + 1) * sizeof *between);
    if (!between) return -1;
    for (int64_t r = 0; r < rows; r++) {
        const uint32_t *row = keys + r * length, *sorted = ordered + r * length, *draws = drawn + r * length;
        uint8_t *kept = keep + r * length;
        int64_t count = 0;
        for (int64_t j = 0; j < length; j++) kept[j] = (draws[j] < lowest) & (row[j] != 0);
        for (int64_t j = 0; j < length; j++) {
            between[count] = (int32_t)j;
            count += (draws[j] - lowest < range) & (row[j] != 0);
        }
        for (int64_t t = 0; t < count; t++) {
            int64_t j = between[t];
            uint32_t u = draws[j], key = row[j];
            /* The first rank whose limit is above the draw: near the straight line that the limits round. */
            int64_t need = (int64_t)((double)(u - lowest) * steps);
            need += limits[need] <= u;
            while (need > 0 && limits[need - 1] > u) need--;
            while (limits[need] <= u) need++;
            uint32_t pivot = sorted[need];
            kept[j] = key > pivot;
            if (key != pivot) continue;
            int64_t low = 0, high = need;
            while (low < high) {
                int64_t middle = (low + high) / 2;
                if (sorted[middle] < key) low = middle + 1; else high = middle;
            }
            uint32_t equal = 0;
            for (int64_t i = 0; i < j; i++) equal += row[i] == key;
            kept[j] = low + equal >= need;
        }
    }
    free(between);
    return 0;
}
