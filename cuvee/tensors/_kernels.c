/* CPU kernels of cuvee/tensors/kernels.py: plain C without Python, called through ctypes.
 *
 * Each function equals its definition in PyTorch or NumPy bit for bit (tests/differential/test_kernels.py): multiply and add
 * stay separate (-ffp-contract=off), sums have a fixed order, and no compiler flag may reorder floating point.
 * Legend: K models, n elements, rows of `stride` elements apart. */

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if !defined(_WIN32)
#include <unistd.h>
#endif
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

/* The checksum of the sources that this was built of. */
API uint32_t cuvee_sources(void) { return CUVEE_SOURCES; }

enum { F32 = 0, BF16 = 1, F16 = 2 };
enum { CHUNK = 1024, LANES = 256, DIGITS = 65536 };
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

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

/* How many of n stored elements are NaN or infinite: those with every bit of the exponent set. */
#define COUNT_SPECIAL(TYPE, EXPONENT)                                                                  \
    do {                                                                                               \
        const TYPE *bits = source;                                                                     \
        for (int64_t begin = 0; begin < n; begin += CHUNK) {                                           \
            int64_t end = MIN(begin + CHUNK, n);                                                       \
            TYPE here = 0;                                                                             \
            for (int64_t i = begin; i < end; i++) here += (bits[i] & EXPONENT) == EXPONENT;            \
            special += here;                                                                           \
        }                                                                                              \
    } while (0)

FAST API int64_t cuvee_count_special(const void *source, int kind, int64_t n)
{
    int64_t special = 0;
    if (kind == BF16) COUNT_SPECIAL(uint16_t, 0x7f80);
    else if (kind == F16) COUNT_SPECIAL(uint16_t, 0x7c00);
    else COUNT_SPECIAL(uint32_t, 0x7f800000u);
    return special;
}

/* ---- rows: one model's elements as they are stored, and what is done to them as they are read ------------------- */

enum { KEEP_LARGEST = 0, DROP_LARGEST = 1, KEEP_MASK = 2, MULTIPLY = 3, DIVIDE = 4, MULTIPLY_EACH = 5, SHORTEN = 6 };

/* KEEP_LARGEST, DROP_LARGEST: the magnitudes above `number`; of those equal to it all before `all_before`, and the first
 * `few` of those before `few_until`. A pass over a row goes from its start to its end, and counts `few` down.
 * MULTIPLY_EACH: element i is taken times factors[(first + i) / run mod factor_count]. SHORTEN: papers.nearswap.shorten. */
typedef struct {
    int32_t what;
    float number;
    int64_t all_before, few_until, few;
    const uint8_t *mask;
    const float *factors;
    int64_t factor_count, run, first;
} Step;

typedef struct {
    const void *source, *base; /* base: NULL, or what is subtracted */
    Step *steps;
    int32_t kind, base_kind;
    int64_t count; /* of steps */
} Row;

#define INLINE static inline __attribute__((always_inline))

/* So many elements at once, for what should stay in registers over all models. The arrays of a chunk end on a whole number of them. */
enum { WIDTH = 16 };
typedef float Floats __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
#define AT(values, i) (*(Floats *)((values) + (i)))
#define WHERE(yes, value) ((Floats)((yes) & (Ints)(value))) /* and 0 elsewhere */
#define CHOOSE(yes, value, other) ((Floats)(((yes) & (Ints)(value)) | (~(yes) & (Ints)(other))))

INLINE void decode_chunk(const void *source, int kind, int64_t begin, int64_t size, float *out)
{
    if (kind == BF16)
        for (int64_t i = 0; i < size; i++) out[i] = from_bf16(((const uint16_t *)source)[begin + i]);
    else if (kind == F16)
        for (int64_t i = 0; i < size; i++) out[i] = from_f16(((const uint16_t *)source)[begin + i]);
    else
        memcpy(out, (const float *)source + begin, size * sizeof(float));
}

/* values[begin, end) = those among the largest, the others 0; or the other way round. */
INLINE void choose_largest(Step *step, int64_t begin, int64_t size, float *values)
{
    float limit = step->number;
    int drop = step->what == DROP_LARGEST;
    if (begin + size <= step->all_before)
        for (int64_t i = 0; i < size; i++) values[i] = (fabsf(values[i]) >= limit) != drop ? values[i] : 0.0f;
    else if (begin >= step->few_until || (begin >= step->all_before && step->few == 0))
        for (int64_t i = 0; i < size; i++) values[i] = (fabsf(values[i]) > limit) != drop ? values[i] : 0.0f;
    else
        for (int64_t i = 0; i < size; i++) {
            float magnitude = fabsf(values[i]);
            int take = magnitude > limit;
            if (magnitude == limit) {
                take = begin + i < step->all_before;
                if (!take && begin + i < step->few_until && step->few > 0) { take = 1; step->few--; }
            }
            values[i] = take != drop ? values[i] : 0.0f;
        }
}

INLINE void multiply_each(const Step *step, int64_t begin, int64_t size, float *values)
{
    for (int64_t at = 0, length; at < size; at += length) {
        int64_t place = step->first + begin + at, number = place / step->run % step->factor_count;
        const float *factors = step->factors + number;
        if (step->run == 1) {
            length = MIN(size - at, step->factor_count - number);
            for (int64_t i = 0; i < length; i++) values[at + i] *= factors[i];
        } else {
            length = MIN(size - at, step->run - place % step->run);
            for (int64_t i = 0; i < length; i++) values[at + i] *= *factors;
        }
    }
}

/* True where dividing by a number is multiplying by its inverse, which is several times as fast: of powers of two. */
INLINE int divides_exactly(float divisor)
{
    return (as_bits(divisor) & 0x7fffff) == 0 && isnormal(divisor) && isnormal(1.0f / divisor);
}

INLINE void divide(float *values, int64_t size, float divisor)
{
    float inverse = 1.0f / divisor;
    if (divides_exactly(divisor))
        for (int64_t i = 0; i < size; i++) values[i] *= inverse;
    else
        for (int64_t i = 0; i < size; i++) values[i] /= divisor;
}

INLINE void take_steps(const Row *row, int64_t begin, int64_t size, float *values)
{
    for (Step *step = row->steps; step < row->steps + row->count; step++) {
        float number = step->number;
        if (step->what <= DROP_LARGEST)
            choose_largest(step, begin, size, values);
        else if (step->what == KEEP_MASK)
            for (int64_t i = 0; i < size; i++) values[i] = as_float(as_bits(values[i]) & -(uint32_t)step->mask[begin + i]);
        else if (step->what == MULTIPLY)
            for (int64_t i = 0; i < size; i++) values[i] *= number;
        else if (step->what == MULTIPLY_EACH)
            multiply_each(step, begin, size, values);
        else if (step->what == SHORTEN)
            for (int64_t i = 0; i < size; i++) {
                float share = 1.0f / (fabsf(values[i]) < 1e-6f ? 1e-6f : fabsf(values[i])) * number;
                values[i] *= share > 1.0f ? 1.0f : share;
            }
        else
            divide(values, size, number);
    }
}

/* A chunk of a row. `base` holds the base's chunk, or gets it: `held` is the base that it holds. */
INLINE void load_chunk(const Row *row, int64_t begin, int64_t size, const void **held, float *base, float *out)
{
    decode_chunk(row->source, row->kind, begin, size, out);
    if (row->base) {
        if (*held != row->base) decode_chunk(row->base, row->base_kind, begin, size, base);
        *held = row->base;
        for (int64_t i = 0; i < size; i++) out[i] -= base[i];
    }
    take_steps(row, begin, size, out);
}

/* out = elements [begin, begin + size) of a row; of any size. */
FAST static void load(const Row *row, int64_t begin, int64_t size, float *out)
{
    float base[CHUNK];
    for (int64_t at = 0; at < size; at += CHUNK) {
        const void *held = NULL;
        load_chunk(row, begin + at, MIN(CHUNK, size - at), &held, base, out + at);
    }
}

API void cuvee_load(const Row *row, int64_t n, float *out) { load(row, 0, n, out); }

/* ---- combining ----------------------------------------------------------------------------------------------- */

/* A chunk as it is stored; returns how many elements are NaN or infinite then. */
INLINE int64_t encode_chunk(const float *values, int kind, int64_t begin, int64_t size, void *out)
{
    uint32_t special = 0;
    if (kind == F32) {
        float *stored = (float *)out + begin;
        for (int64_t i = 0; i < size; i++) special += is_special(stored[i] = values[i]);
    } else {
        uint16_t *stored = (uint16_t *)out + begin;
        if (kind == BF16)
            for (int64_t i = 0; i < size; i++) special += is_special(from_bf16(stored[i] = to_bf16(values[i])));
        else
            for (int64_t i = 0; i < size; i++) special += is_special(from_f16(stored[i] = to_f16(values[i])));
    }
    return special;
}

/* (((x_0 w_0 + x_1 w_1) + x_2 w_2) + ...) / divisor */
INLINE void add_weighted(const float *values, const float *weights, int64_t K, float divisor, int64_t size, float *out)
{
    for (int64_t i = 0; i < size; i++) out[i] = values[i] * weights[0];
    for (int64_t k = 1; k < K; k++) {
        const float *value = values + k * CHUNK;
        float w = weights[k];
        for (int64_t i = 0; i < size; i++) out[i] += value[i] * w;
    }
    if (divisor != 1.0f) divide(out, size, divisor);
}

/* pieces.vote.weigh_consensus */
INLINE void agree(
    const float *values, const float *votes, const float *weights, int64_t K, int normalize, float floor, int64_t size, float *out)
{
    const Floats none = {0}, one = none + 1.0f, least = none + floor;
    for (int64_t i = 0; i < size; i += WIDTH) {
        Floats balance = none, total = none, divisor = none;
        for (int64_t k = 0; k < K; k++) balance += AT(values + k * CHUNK, i) * votes[k];
        Floats sign = CHOOSE(balance >= none, one, -one);
        for (int64_t k = 0; k < K; k++) {
            Floats value = AT(values + k * CHUNK, i);
            Ints agrees = value * votes[k] * sign > none;
            total += WHERE(agrees, value * weights[k]);
            divisor += WHERE(agrees, none + weights[k]);
        }
        if (normalize && floor > 0.0f) total /= CHOOSE(divisor < least, least, divisor);
        else if (normalize) total /= CHOOSE(divisor == none, one, divisor);
        AT(out, i) = total;
    }
}

/* pieces.combine.largest: of equal magnitudes the later one. */
INLINE void pick(const float *values, int64_t K, int64_t size, float *out)
{
    memcpy(out, values, size * sizeof *out);
    for (int64_t k = 1; k < K; k++)
        for (int64_t i = 0; i < size; i++) {
            float value = values[k * CHUNK + i];
            out[i] = fabsf(value) >= fabsf(out[i]) ? value : out[i];
        }
}

enum { SUM = 0, CONSENSUS = 1, LARGEST = 2, UNANIMOUS = 3, UNIQUE = 4, MIDDLE = 5 };

/* What a rule makes of K rows; with `tasks` only what serves `least` of them; times each factor; then base + that * scaling, rounded. */
typedef struct {
    const Row *rows, *tasks; /* tasks: NULL, or T */
    const float *weights, *votes, *lambdas;
    const void *base; /* NULL, or stored elements */
    const int32_t (*comparators)[2];
    const float *factors;
    int64_t K, T, least, comparator_count, factor_count, first, last, nearest;
    float divisor, floor, scaling;
    int32_t normalize, rule, base_kind, kind;
} Sum;

/* pieces.vote.unanimous_sum */
INLINE void sum_unanimous(const Sum *sum, const float *values, int64_t size, float *out)
{
    int32_t up[CHUNK], down[CHUNK];
    for (int64_t i = 0; i < size; i++) up[i] = down[i] = 1;
    for (int64_t k = 0; k < sum->K; k++)
        for (int64_t i = 0; i < size; i++) {
            up[i] &= values[k * CHUNK + i] > 0.0f;
            down[i] &= values[k * CHUNK + i] < 0.0f;
        }
    add_weighted(values, sum->weights, sum->K, sum->divisor, size, out);
    for (int64_t i = 0; i < size; i++) out[i] = up[i] | down[i] ? out[i] : 0.0f;
}

/* pieces.unique.scale_unique */
INLINE void scale_unique(const Sum *sum, const float *values, int64_t size, float *out)
{
    const Floats none = {0}, one = none + 1.0f;
    for (int64_t i = 0; i < size; i += WIDTH) {
        Floats alone = none, total = none, count = none;
        for (int64_t k = 0; k < sum->K; k++) {
            Floats value = AT(values + k * CHUNK, i);
            count += WHERE(value != none, one);
            alone += value * sum->weights[k];
            total += value;
        }
        AT(out, i) = CHOOSE(count == one, alone, total / CHOOSE(count < one, one, count));
    }
}

/* pieces.sort.middle; the values are put in another order. */
INLINE void average_middle(const Sum *sum, float *values, int64_t size, float *out)
{
    int64_t first = sum->first, count = sum->nearest;
    for (int64_t c = 0; c < sum->comparator_count; c++) {
        float *low = values + sum->comparators[c][0] * CHUNK, *high = values + sum->comparators[c][1] * CHUNK;
        for (int64_t i = 0; i < size; i++) {
            float a = low[i], b = high[i]; /* NaN goes to both */
            low[i] = (a <= b) | (a != a) ? a : b;
            high[i] = (a > b) | (a != a) ? a : b;
        }
    }
    add_weighted(values + first * CHUNK, sum->weights, sum->last - first, (float)(sum->last - first), size, out);
    if (!count) return;
    for (int64_t place = 0; place < sum->K - count; place++) {
        float *lower = values + place * CHUNK;
        const float *upper = values + (place + count) * CHUNK;
        for (int64_t i = 0; i < size; i++) lower[i] = out[i] - lower[i] > upper[i] - out[i] ? upper[i] : lower[i];
    }
    add_weighted(values, sum->weights, count, (float)count, size, out);
}

/* pieces.localize.keep_consensus */
INLINE void keep_serving(const Sum *sum, int64_t begin, int64_t size, const void **held, float *base, float *merged)
{
    int32_t served[CHUNK] = {0};
    for (int64_t t = 0; t < sum->T; t++) {
        float value[CHUNK], lambda = sum->lambdas[t];
        load_chunk(sum->tasks + t, begin, size, held, base, value);
        for (int64_t i = 0; i < size; i++) served[i] += fabsf(value[i]) > fabsf(merged[i] - value[i]) * lambda;
    }
    int32_t least = (int32_t)sum->least;
    for (int64_t i = 0; i < size; i++) merged[i] = served[i] >= least ? merged[i] : 0.0f;
}

/* Elements [from, to) of the output; returns how many of them are NaN or infinite. `values`: (K, CHUNK). */
INLINE int64_t combine(const Sum *sum, int64_t from, int64_t to, float *values, void *out)
{
    int64_t special = 0;
    for (int64_t begin = from; begin < to; begin += CHUNK) {
        int64_t size = MIN(CHUNK, to - begin);
        const void *held = sum->base;
        float base[CHUNK], merged[CHUNK];
        if (sum->base) decode_chunk(sum->base, sum->base_kind, begin, size, base);
        for (int64_t k = 0; k < sum->K; k++) load_chunk(sum->rows + k, begin, size, &held, base, values + k * CHUNK);
        if (sum->rule == CONSENSUS)
            agree(values, sum->votes, sum->weights, sum->K, sum->normalize, sum->floor, size, merged);
        else if (sum->rule == LARGEST) pick(values, sum->K, size, merged);
        else if (sum->rule == UNANIMOUS) sum_unanimous(sum, values, size, merged);
        else if (sum->rule == UNIQUE) scale_unique(sum, values, size, merged);
        else if (sum->rule == MIDDLE) average_middle(sum, values, size, merged);
        else add_weighted(values, sum->weights, sum->K, sum->divisor, size, merged);
        if (sum->tasks) keep_serving(sum, begin, size, &held, base, merged);
        for (int64_t f = 0; f < sum->factor_count; f++)
            for (int64_t i = 0; i < size; i++) merged[i] *= sum->factors[f];
        if (sum->base) {
            if (held != sum->base) decode_chunk(sum->base, sum->base_kind, begin, size, base);
            float scaling = sum->scaling;
            for (int64_t i = 0; i < size; i++) merged[i] = base[i] + merged[i] * scaling;
        }
        special += encode_chunk(merged, sum->kind, begin, size, out);
    }
    return special;
}

/* From stored elements to stored elements in one pass. Returns how many of out are NaN or infinite; -1 without memory. */
FAST API int64_t cuvee_combine(const Sum *sum, int64_t n, void *out)
{
    float *values = malloc(sum->K * CHUNK * sizeof *values);
    if (!values) return -1;
    int64_t special = combine(sum, 0, n, values, out);
    free(values);
    return special;
}

/* ---- combining what is still in files --------------------------------------------------------------------------- */

/* Stored elements in a file. `digests`: NULL, or where those of their leaves go. Found: how many are NaN or infinite, and the
 * nanoseconds that reading took. */
typedef struct {
    int64_t offset;
    uint8_t *digests;
    int64_t special, nanoseconds;
    int32_t fd, kind;
} File;

void cuvee_digest_leaves(const uint8_t *bytes, int64_t size, int64_t leaf, uint8_t *digests);

#if defined(_WIN32)
API int64_t cuvee_stream(
    const Sum *sum, File *files, int64_t count, int64_t leaf, int64_t n, uint8_t *buffers, int64_t room, void *out)
{
    (void)sum, (void)files, (void)count, (void)leaf, (void)n, (void)buffers, (void)room, (void)out;
    return -2;
}
#else
static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Elements [begin, begin + size) into the buffer, digested and counted there; false where they cannot be read. */
static int read_leaf(File *file, int64_t begin, int64_t size, int64_t number, uint8_t *buffer)
{
    int64_t width = file->kind == F32 ? 4 : 2, done = 0, start = now();
    while (done < size * width) {
        ssize_t count = pread(file->fd, buffer + done, size * width - done, file->offset + begin * width + done);
        if (count <= 0 && !(count < 0 && errno == EINTR)) return 0;
        done += count > 0 ? count : 0;
    }
    file->nanoseconds += now() - start;
    if (file->digests) { /* on the first visit, which also looks for NaN and Inf */
        cuvee_digest_leaves(buffer, size * width, size * width, file->digests + 32 * number);
        file->special += cuvee_count_special(buffer, file->kind, size);
    }
    return 1;
}

/* Where a row's first element would lie, were all of the row and not only element `begin` in the buffer of its file. */
static const void *behind(const uint8_t *buffers, int64_t room, const void *file, int kind, int64_t begin)
{
    return (const void *)((uintptr_t)buffers + (uintptr_t)file * room - begin * (kind == F32 ? 4 : 2));
}

/* As cuvee_combine, where `source` and `base` of the rows and the base of the sum are numbers of files, counted from 1: leaf after
 * leaf is read into `buffers`, (1 + files, room) bytes, and digested, counted and combined while it is in the cache.
 * Returns -1 without memory, -2 where a file cannot be read. */
FAST API int64_t cuvee_stream(
    const Sum *sum, File *files, int64_t count, int64_t leaf, int64_t n, uint8_t *buffers, int64_t room, void *out)
{
    float *values = malloc(sum->K * CHUNK * sizeof *values);
    Row *rows = malloc((sum->K + sum->T) * sizeof *rows);
    int64_t special = values && rows ? 0 : -1;
    Sum here = *sum;
    here.rows = rows;
    here.tasks = sum->tasks ? rows + sum->K : NULL;
    for (int64_t begin = 0; begin < n && special >= 0; begin += leaf) {
        int64_t size = MIN(leaf, n - begin), f = 0;
        while (f < count && read_leaf(files + f, begin, size, begin / leaf, buffers + (f + 1) * room)) f++;
        for (int64_t k = 0; k < sum->K + sum->T; k++) {
            rows[k] = k < sum->K ? sum->rows[k] : sum->tasks[k - sum->K];
            rows[k].source = behind(buffers, room, rows[k].source, rows[k].kind, begin);
            if (rows[k].base) rows[k].base = behind(buffers, room, rows[k].base, rows[k].base_kind, begin);
        }
        if (sum->base) here.base = behind(buffers, room, sum->base, sum->base_kind, begin);
        special = f < count ? -2 : special + combine(&here, begin, begin + size, values, out);
    }
    free(values);
    free(rows);
    return special;
}
#endif

/* pieces.trim.keep_among, in place where out is values. */
FAST API void cuvee_threshold(
    const float *values, float limit, int64_t all_before, int64_t few_until, int64_t few, int64_t n, float *out)
{
    Step step = {.what = KEEP_LARGEST, .number = limit, .all_before = all_before, .few_until = few_until, .few = few};
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        memmove(out + begin, values + begin, size * sizeof *out);
        choose_largest(&step, begin, size, out + begin);
    }
}

/* papers.sce.variance: the population variance over K models, exactly 0 where they are equal: a third of 3x is not always x. */
FAST API int cuvee_variance(const Row *rows, int64_t K, int64_t n, float *out)
{
    float count = (float)K, inverse = 1.0f / count, *values = malloc(K * CHUNK * sizeof *values);
    int exact = divides_exactly(count);
    if (!values) return -1;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        const void *held = NULL;
        float base[CHUNK], found[CHUNK];
        for (int64_t k = 0; k < K; k++) load_chunk(rows + k, begin, size, &held, base, values + k * CHUNK);
        for (int64_t i = 0; i < size; i += WIDTH) {
            Floats center = {0}, total = {0};
            Ints differ = {0};
            for (int64_t k = 0; k < K; k++) center += AT(values + k * CHUNK, i);
            center = exact ? center * inverse : center / count;
            for (int64_t k = 0; k < K; k++) {
                Floats value = AT(values + k * CHUNK, i), away = value - center;
                total += away * away;
                differ |= value != AT(values, i);
            }
            AT(found, i) = WHERE(differ, exact ? total * inverse : total / count);
        }
        memcpy(out + begin, found, size * sizeof *out);
    }
    free(values);
    return 0;
}

/* ---- sums in 256 lanes (tensors/sums.py), leaf after leaf ------------------------------------------------------ */

static double in_order(const double *lanes)
{
    double result = 0.0;
    for (int lane = 0; lane < LANES; lane++) result += lanes[lane];
    return result;
}

/* lanes += |x| or x x of `runs` runs of LANES elements, one after the other. */
INLINE void add_runs(const float *values, int runs, int square, double *lanes)
{
    for (int lane = 0; lane < LANES; lane++) {
        double total = lanes[lane];
#pragma GCC unroll 4
        for (int run = 0; run < runs; run++) {
            double value = (double)values[run * LANES + lane];
            total += square ? value * value : fabs(value);
        }
        lanes[lane] = total;
    }
}

/* Σ |x|, or Σ x x, of elements [start, stop) of a row. */
INLINE double lane_sum(const Row *row, int square, int64_t start, int64_t stop)
{
    float base[CHUNK], values[CHUNK];
    double lanes[LANES] = {0};
    for (int64_t begin = start; begin < stop; begin += CHUNK) {
        int64_t size = MIN(CHUNK, stop - begin), at = 0;
        const void *held = NULL;
        load_chunk(row, begin, size, &held, base, values);
        if (size == CHUNK) { add_runs(values, CHUNK / LANES, square, lanes); continue; }
        for (; at + LANES <= size; at += LANES) add_runs(values + at, 1, square, lanes);
        for (int64_t lane = 0; at < size; at++, lane++) {
            double value = (double)values[at];
            lanes[lane] += square ? value * value : fabs(value);
        }
    }
    return in_order(lanes);
}

/* out[leaf, row] = Σ |x|, or Σ x x, of each run of `leaf` elements of each row: what rows share is in the cache. */
FAST API void cuvee_lane_sums(const Row *rows, int64_t count, int square, int64_t n, int64_t leaf, double *out)
{
    for (int64_t start = 0; start < n; start += leaf)
        for (const Row *row = rows; row < rows + count; row++) {
            int64_t stop = MIN(start + leaf, n);
            *out++ = square ? lane_sum(row, 1, start, stop) : lane_sum(row, 0, start, stop);
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
/* Add runs of LANES elements of up to five rows to the lanes of all their pairs: each lane is loaded once for all RUNS. */
__attribute__((target("avx512f"), always_inline)) static inline void add_pairs(
    const int K, const int RUNS, const float *values, int64_t stride, double (*lanes)[LANES])
{
    for (int lane = 0; lane < LANES; lane += 8) {
        __m512d x[5][4];
#pragma GCC unroll 5
        for (int i = 0; i < K; i++)
#pragma GCC unroll 4
            for (int run = 0; run < RUNS; run++)
                x[i][run] = _mm512_cvtps_pd(_mm256_loadu_ps(values + i * stride + run * LANES + lane));
#pragma GCC unroll 5
        for (int i = 0; i < K; i++)
#pragma GCC unroll 5
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
    const int K, const float *values, int64_t size, double (*lanes)[LANES])
{
    if (size == CHUNK) {
        add_pairs(K, CHUNK / LANES, values, CHUNK, lanes);
        return;
    }
    int64_t begin = 0;
    for (; begin + LANES <= size; begin += LANES) add_pairs(K, 1, values + begin, CHUNK, lanes);
    for (int i = 0; i < K; i++)
        for (int j = 0; j <= i; j++)
            for (int64_t at = begin; at < size; at++)
                lanes[i * (i + 1) / 2 + j][at - begin] += (double)values[i * CHUNK + at] * (double)values[j * CHUNK + at];
}

/* Add a chunk of two to five rows to the lanes of their pairs. */
__attribute__((target("avx512f"))) static void add_chunk(int64_t K, const float *values, int64_t size, double (*lanes)[LANES])
{
    if (K == 2) add_rows(2, values, size, lanes);
    else if (K == 3) add_rows(3, values, size, lanes);
    else if (K == 4) add_rows(4, values, size, lanes);
    else add_rows(5, values, size, lanes);
}
#endif

FAST static void load_chunks(const Row *rows, int64_t K, int64_t begin, int64_t size, float *values)
{
    float base[CHUNK];
    const void *held = NULL;
    for (int64_t k = 0; k < K; k++) load_chunk(rows + k, begin, size, &held, base, values + k * CHUNK);
}

/* The Gram matrix of elements [start, start + size), chunk by chunk; false where the processor or K is not for it. */
static int gram_of_chunks(const Row *rows, int64_t K, int64_t start, int64_t size, double *gram)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (K < 2 || K > 5 || !__builtin_cpu_supports("avx512f")) return 0;
    double lanes[15][LANES] = {0};
    float values[5 * CHUNK];
    for (int64_t begin = 0; begin < size; begin += CHUNK) {
        load_chunks(rows, K, start + begin, MIN(CHUNK, size - begin), values);
        add_chunk(K, values, MIN(CHUNK, size - begin), lanes);
    }
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) gram[i * K + j] = gram[j * K + i] = in_order(lanes[i * (i + 1) / 2 + j]);
    return 1;
#else
    (void)rows, (void)K, (void)start, (void)size, (void)gram;
    return 0;
#endif
}

/* out[leaf, i, j] = Σ x_i x_j of each run of `leaf` elements, in the cache. */
API int cuvee_product_sums(const Row *rows, int64_t K, int64_t n, int64_t leaf, double *out)
{
    int64_t room = MIN(leaf, n);
    float *values = malloc(K * room * sizeof *values);
    if (!values) return -1;
    for (int64_t start = 0; start < n; start += leaf, out += K * K) {
        int64_t size = MIN(leaf, n - start);
        if (gram_of_chunks(rows, K, start, size, out)) continue;
        for (int64_t k = 0; k < K; k++) load(rows + k, start, size, values + k * room);
        gram_plain(values, room, K, size, out);
    }
    free(values);
    return 0;
}

/* out[leaf, i, j, column] = Σ x_i x_j of the elements of each run of `leaf` that lie in a column, one after the other; the first
 * element lies in column `first`. */
FAST API int cuvee_column_products(
    const Row *rows, int64_t K, int64_t n, int64_t leaf, int64_t columns, int64_t first, double *out)
{
    float *values = malloc(K * CHUNK * sizeof *values);
    if (!values) return -1;
    for (int64_t start = 0; start < n; start += leaf, out += K * K * columns) {
        memset(out, 0, K * K * columns * sizeof *out);
        for (int64_t begin = start, size; begin < MIN(start + leaf, n); begin += size) {
            int64_t column = (first + begin) % columns;
            size = MIN(MIN(CHUNK, columns - column), MIN(start + leaf, n) - begin);
            load_chunks(rows, K, begin, size, values);
            for (int64_t i = 0; i < K; i++)
                for (int64_t j = 0; j <= i; j++) {
                    const float *x = values + i * CHUNK, *y = values + j * CHUNK;
                    double *total = out + (i * K + j) * columns + column;
                    for (int64_t at = 0; at < size; at++) total[at] += (double)x[at] * (double)y[at];
                }
        }
        for (int64_t i = 0; i < K; i++)
            for (int64_t j = 0; j < i; j++)
                memcpy(out + (j * K + i) * columns, out + (i * K + j) * columns, columns * sizeof *out);
    }
    free(values);
    return 0;
}

/* counts[0, k], counts[1, k] = how many elements of row k are not zero, where other rows are not zero too, and where none is. */
FAST API int cuvee_count_shared(const Row *rows, int64_t K, int64_t n, int64_t *counts)
{
    float *values = malloc(K * CHUNK * sizeof *values);
    if (!values) return -1;
    memset(counts, 0, 2 * K * sizeof *counts);
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        int32_t count[CHUNK] = {0};
        load_chunks(rows, K, begin, size, values);
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < size; i++) count[i] += values[k * CHUNK + i] != 0.0f;
        for (int64_t k = 0; k < K; k++) {
            int32_t shared = 0, unique = 0;
            for (int64_t i = 0; i < size; i++) {
                int32_t changed = values[k * CHUNK + i] != 0.0f;
                shared += changed & (count[i] > 1);
                unique += changed & (count[i] == 1);
            }
            counts[k] += shared;
            counts[K + k] += unique;
        }
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

/* The keys of elements [begin, begin + size) of a row, size <= CHUNK. */
FAST static void load_keys(const Row *row, int magnitude, int64_t begin, int64_t size, uint32_t *keys)
{
    float base[CHUNK], values[CHUNK];
    const void *held = NULL;
    load_chunk(row, begin, size, &held, base, values);
    for (int64_t i = 0; i < size; i++) keys[i] = ordered_key(as_bits(values[i]), magnitude);
}

/* out[leaf] = how many keys of each run of `leaf` elements are `wanted`. */
FAST API void cuvee_count_equal(const Row *row, int magnitude, uint32_t wanted, int64_t n, int64_t leaf, int64_t *out)
{
    for (int64_t start = 0; start < n; start += leaf) {
        int64_t stop = MIN(start + leaf, n), total = 0;
        for (int64_t begin = start; begin < stop; begin += CHUNK) {
            int64_t size = MIN(CHUNK, stop - begin);
            uint32_t keys[CHUNK], here = 0;
            load_keys(row, magnitude, begin, size, keys);
            for (int64_t i = 0; i < size; i++) here += keys[i] == wanted;
            total += here;
        }
        *out++ = total;
    }
}

/* Append the keys in [low, high] to `found`, and add how many are above to `above`; returns how many were appended. */
FAST static int64_t gather_plain(const uint32_t *keys, uint32_t low, uint32_t high, int64_t n, uint32_t *found, int64_t *above)
{
    int64_t count = 0, more = 0;
    for (int64_t i = 0; i < n; i++) {
        more += keys[i] > high;
        found[count] = keys[i];
        count += keys[i] >= low && keys[i] <= high;
    }
    *above += more;
    return count;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx512f"))) static int64_t gather_avx512(
    const uint32_t *keys, uint32_t low, uint32_t high, int64_t n, uint32_t *found, int64_t *above)
{
    const __m512i least = _mm512_set1_epi32((int)low), most = _mm512_set1_epi32((int)high);
    int64_t count = 0, more = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i key = _mm512_loadu_si512(keys + i);
        __mmask16 over = _mm512_cmpgt_epu32_mask(key, most);
        __mmask16 inside = _mm512_mask_cmpge_epu32_mask((__mmask16)~over, key, least);
        more += __builtin_popcount(over);
        _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(inside, key));
        count += __builtin_popcount(inside);
    }
    *above += more;
    return count + gather_plain(keys + i, low, high, n - i, found + count, above);
}
#endif

typedef int64_t (*Gather)(const uint32_t *, uint32_t, uint32_t, int64_t, uint32_t *, int64_t *);

/* The faster of the two above on this processor. */
static Gather fastest_gather(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return gather_avx512;
#endif
    return gather_plain;
}

/* Counters of high digits: all[digit][1] of the short keys, whose low digit is 0, all[digit][0] of the others. In differences of
 * bf16 numbers most are short, so that this is mostly enough. Two tables, so that equal neighbours do not wait for each other. */
typedef struct { uint32_t (*even)[2], (*odd)[2]; } HighCounters;

static HighCounters new_counters(int64_t digits)
{
    uint32_t (*even)[2] = calloc(2 * digits, sizeof *even);
    return (HighCounters){even, even + digits};
}

static inline int64_t short_keys(HighCounters table, int64_t digit) { return (int64_t)table.even[digit][1] + table.odd[digit][1]; }
static inline int64_t all_keys(HighCounters table, int64_t digit)
{
    return short_keys(table, digit) + table.even[digit][0] + table.odd[digit][0];
}

/* all[digit] = how many keys have it; of_short[digit], unless NULL, = how many of them are short. */
static void read_counters(HighCounters table, int64_t digits, int64_t *all, int64_t *of_short)
{
    for (int64_t digit = 0; digit < digits; digit++) {
        all[digit] = all_keys(table, digit);
        if (of_short) of_short[digit] = short_keys(table, digit);
    }
}

/* Where the counter of a key lies, in its place. */
FAST static void find_counters(uint32_t *keys, int64_t size)
{
    for (int64_t i = 0; i < size; i++) keys[i] = keys[i] >> 16 << 1 | ((keys[i] & 0xffff) == 0);
}

/* Count the high digits of the keys, which are put to use. */
INLINE void count_high_digits(uint32_t *keys, int64_t size, HighCounters table)
{
    uint32_t *even = table.even[0], *odd = table.odd[0];
    find_counters(keys, size);
    for (int64_t i = 0; i + 1 < size; i += 2) {
        even[keys[i]]++;
        odd[keys[i + 1]]++;
    }
    if (size & 1) even[keys[size - 1]]++;
}

/* counts[low digit] += 1 for the keys, CHUNK at most, with this high digit. */
static void count_low_digits(Gather gather, const uint32_t *keys, int64_t size, uint32_t high, int64_t *counts)
{
    uint32_t found[CHUNK + 16];
    int64_t above = 0, count = gather(keys, high << 16, high << 16 | 0xffff, size, found, &above);
    for (int64_t i = 0; i < count; i++) counts[found[i] & 0xffff]++;
}

enum { WINDOW = 64 };

/* The first of WINDOW digits around the one that a share of the n keys counted so far reaches from above. */
static int32_t window_around(HighCounters table, int64_t digits, int64_t n, double share)
{
    int64_t left = (int64_t)(share * (double)n), digit = digits;
    while (digit > 0 && left >= 0) left -= all_keys(table, --digit);
    return (int32_t)MIN(MAX(digit - WINDOW / 2, 0), digits - WINDOW);
}

/* Add to a leaf's windows, (targets, 1 + WINDOW) with the first digit of each before its counts, `sign` times the short keys. */
static void add_windows(HighCounters table, int64_t targets, int32_t sign, int32_t *windows)
{
    for (int64_t t = 0; t < targets; t++, windows += 1 + WINDOW)
        for (int64_t w = 0; w < WINDOW; w++) windows[1 + w] += sign * (int32_t)short_keys(table, windows[0] + w);
}

/* counts[0, high digit] = how many keys have it, counts[1, high digit] = how many of them are short: (2, DIGITS), of magnitudes
 * (2, DIGITS / 2). windows[leaf, target] = the first of WINDOW digits around that of the key which shares[target] of the first leaf
 * reaches, and how many short keys of the leaf have each; all 0 before. Returns -1 without memory. */
API int cuvee_count_high(
    const Row *row, int magnitude, int64_t n, int64_t leaf, const double *shares, int64_t targets, int64_t *counts, int32_t *windows)
{
    int64_t digits = magnitude ? DIGITS / 2 : DIGITS, width = targets * (1 + WINDOW);
    HighCounters table = new_counters(digits);
    if (!table.even) return -1;
    for (int64_t start = 0; start < n; start += leaf, windows += width) {
        for (int64_t t = 0; t < width && start; t += 1 + WINDOW) windows[t] = windows[t - width];
        if (start) add_windows(table, targets, -1, windows);
        int64_t stop = MIN(start + leaf, n);
        for (int64_t begin = start; begin < stop; begin += CHUNK) {
            uint32_t keys[CHUNK];
            load_keys(row, magnitude, begin, MIN(CHUNK, stop - begin), keys);
            count_high_digits(keys, MIN(CHUNK, stop - begin), table);
        }
        for (int64_t t = 0; t < targets && !start; t++)
            windows[t * (1 + WINDOW)] = window_around(table, digits, stop, shares[t]);
        add_windows(table, targets, 1, windows);
    }
    read_counters(table, digits, counts, counts + digits);
    free(table.even);
    return 0;
}

/* counts[p, low digit] += 1 for the keys whose high digit is highs[p]. */
API void cuvee_count_low(const Row *row, int magnitude, const uint32_t *highs, int64_t count, int64_t n, int64_t *counts)
{
    Gather gather = fastest_gather();
    uint32_t keys[CHUNK];
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        load_keys(row, magnitude, begin, size, keys);
        for (int64_t p = 0; p < count; p++) count_low_digits(gather, keys, size, highs[p], counts + p * DIGITS);
    }
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

/* The k-th largest, 1 <= k <= n, of keys between low and high, by counting them in ever smaller ranges. */
static uint32_t select_between(const uint32_t *keys, int64_t n, int64_t k, uint32_t low, uint32_t high)
{
    enum { BINS = 1024 };
    for (;;) {
        uint32_t counts[4][BINS + 1] = {{0}}; /* four tables: equal neighbours do not wait for each other; what is outside lies last */
        int shift = 0;
        while ((high - low) >> shift >= BINS) shift++;
        for (int64_t i = 0; i < n; i++) counts[i & 3][MIN((keys[i] - low) >> shift, BINS)]++;
        uint32_t bin = (high - low) >> shift;
        for (int64_t here; (here = (int64_t)counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin]) < k; bin--) k -= here;
        low += bin << shift;
        if (!shift) return low;
        high = MIN(high - low, (1u << shift) - 1) + low;
    }
}

/* The k-th largest key in one pass: a sample says between which keys it lies, the pass keeps those and counts what is above.
 * Returns 1, with the key, how many keys are above it, and equal[leaf] = how many of each run of `leaf` elements are equal to
 * it; 0 where the sample misled, -1 without memory. The row's steps must not count. */
API int cuvee_select(
    const Row *row, int magnitude, int64_t n, int64_t k, int64_t leaf, uint32_t *kth, int64_t *above, int64_t *equal)
{
    enum { SAMPLE = 4096, MARGIN = 130 }; /* four standard deviations of a sampled rank */
    uint32_t low = 0, high = 0xffffffffu, keys[CHUNK];
    if (n >= 4 * SAMPLE) {
        uint32_t sample[SAMPLE];
        for (int64_t i = 0; i < SAMPLE; i++) {
            /* Not in step with the length of the rows: each stride has a place of its own inside it. */
            int64_t begin = i * n / SAMPLE, room = (i + 1) * n / SAMPLE - begin;
            load_keys(row, magnitude, begin + (int64_t)((uint64_t)i * 2654435761u % (uint64_t)room), 1, sample + i);
        }
        int64_t middle = 1 + (int64_t)((double)k / (double)n * SAMPLE), from = middle + MARGIN, to = middle - MARGIN;
        if (from <= SAMPLE) low = select_key(sample, SAMPLE, from);
        if (to >= 1) high = select_key(sample, SAMPLE, to);
    }
    Gather gather = fastest_gather();
    /* Pages that are not touched cost nothing. */
    uint32_t *found = malloc((n + 16) * sizeof *found);
    int64_t leaves = (n + leaf - 1) / leaf, *ends = malloc(leaves * sizeof *ends), count = 0, more = 0;
    if (found && ends)
        for (int64_t start = 0, number = 0; start < n; start += leaf, number++) {
            int64_t stop = MIN(start + leaf, n);
            for (int64_t begin = start; begin < stop; begin += CHUNK) {
                int64_t size = MIN(CHUNK, stop - begin);
                load_keys(row, magnitude, begin, size, keys);
                count += gather(keys, low, high, size, found + count, &more);
            }
            ends[number] = count;
        }
    int inside = more < k && k <= more + count;
    if (found && ends && inside) {
        uint32_t key = select_between(found, count, k - more, low, high);
        int64_t at = 0;
        for (int64_t number = 0; number < leaves; number++) {
            int64_t here = 0;
            for (; at < ends[number]; at++) {
                here += found[at] == key;
                more += found[at] > key;
            }
            equal[number] = here;
        }
        *kth = key;
        *above = more;
    }
    int failed = !found || !ends;
    free(found);
    free(ends);
    return failed ? -1 : inside;
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
    for (int half = 0; half < 2; half++) {
        /* (4, 8) words to (8, 4): pairs of counters in each 128 bits, then the four words of a counter side by side. */
        __m512i ab0 = _mm512_unpacklo_epi64(a[half], b[half]), ab1 = _mm512_unpackhi_epi64(a[half], b[half]);
        __m512i cd0 = _mm512_unpacklo_epi64(c[half], d[half]), cd1 = _mm512_unpackhi_epi64(c[half], d[half]);
        const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), last = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
        __m512i even0 = _mm512_permutex2var_epi64(ab0, first, cd0), even1 = _mm512_permutex2var_epi64(ab0, last, cd0);
        __m512i odd0 = _mm512_permutex2var_epi64(ab1, first, cd1), odd1 = _mm512_permutex2var_epi64(ab1, last, cd1);
        _mm512_storeu_si512(words + 32 * half, _mm512_shuffle_i64x2(even0, odd0, 0x44));
        _mm512_storeu_si512(words + 32 * half + 8, _mm512_shuffle_i64x2(even0, odd0, 0xee));
        _mm512_storeu_si512(words + 32 * half + 16, _mm512_shuffle_i64x2(even1, odd1, 0x44));
        _mm512_storeu_si512(words + 32 * half + 24, _mm512_shuffle_i64x2(even1, odd1, 0xee));
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

/* ---- drop by rank ------------------------------------------------------------------------------------------------ */

enum { BUCKETS = 256, FRACTION = 19, TIES = 256, FEW = 64 };

/* What is known of one magnitude in a row: how many keys before `upto` are equal to it or below, and behind that below. */
typedef struct { uint32_t key; int32_t rank; int64_t upto; } Tie;

/* What one row needs: (n) each, (3, n) ranks, (n + 16) asked. */
typedef struct {
    uint32_t *keys, *draws;
    int32_t *ranks, *asked;
    uint16_t *buckets;
} RankRoom;

/* The rank of keys[j], the lower index first among equals; j does not fall from one question to the next. Equal keys that were
 * counted for an earlier one are not counted again; `passes` counts what is not known. */
FAST static int32_t rank_of(const uint32_t *keys, int64_t n, int64_t j, Tie *ties, int64_t *passes)
{
    uint32_t key = keys[j];
    Tie *tie = ties + key * 2654435761u / (UINT32_MAX / TIES + 1);
    int32_t more = 0;
    if (tie->upto >= 0 && tie->key == key)
        for (int64_t i = tie->upto; i < j; i++) more += keys[i] == key;
    else {
        for (int64_t i = 0; i < j; i++) more += keys[i] <= key;
        for (int64_t i = j; i < n; i++) more += keys[i] < key;
        *tie = (Tie){key, 0, j};
        ++*passes;
    }
    tie->upto = j;
    return tie->rank += more;
}

/* ranks[0, n) = those of all keys, digit by digit; the rest of (3, n) is used. */
static void rank_all(const uint32_t *keys, int64_t n, int32_t *ranks)
{
    int32_t *from = ranks + n, *to = ranks + 2 * n;
    for (int64_t i = 0; i < n; i++) from[i] = (int32_t)i;
    for (int shift = 0; shift < 32; shift += 8) {
        int32_t places[257] = {0};
        for (int64_t i = 0; i < n; i++) places[(keys[i] >> shift & 255) + 1]++;
        for (int digit = 0; digit < 256; digit++) places[digit + 1] += places[digit];
        for (int64_t i = 0; i < n; i++) to[places[keys[from[i]] >> shift & 255]++] = from[i];
        int32_t *swapped = from;
        from = to;
        to = swapped;
    }
    for (int64_t i = 0; i < n; i++) ranks[from[i]] = (int32_t)i;
}

/* found = the indices of the values below a limit; returns how many. `found` has room for 16 more. */
FAST static int64_t indices_plain(const uint32_t *values, uint32_t limit, int64_t from, int64_t n, int32_t *found)
{
    int64_t count = 0;
    for (int64_t j = from; j < n; j++) {
        found[count] = (int32_t)j;
        count += values[j] < limit;
    }
    return count;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx512f"))) static int64_t indices_avx512(
    const uint32_t *values, uint32_t limit, int64_t from, int64_t n, int32_t *found)
{
    const __m512i limits = _mm512_set1_epi32((int)limit), sixteen = _mm512_set1_epi32(16);
    __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t count = 0, j = from;
    for (; j + 16 <= n; j += 16, index = _mm512_add_epi32(index, sixteen)) {
        __mmask16 below = _mm512_cmplt_epu32_mask(_mm512_loadu_si512(values + j), limits);
        _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(below, index));
        count += __builtin_popcount(below);
    }
    return count + indices_plain(values, limit, j, n, found + count);
}
#endif

/* keep[j] = draw < limits[rank of keys[j]] for keys above zero, in one row: most draws lie below all limits or above, or the ranks of
 * the key's bucket (16 an octave) are enough to tell. */
FAST static void drop_row(const RankRoom *room, const uint32_t *limits, int64_t n, uint8_t *keep)
{
    const uint32_t *keys = room->keys, lowest = limits[0];
    uint32_t *draws = room->draws, low[BUCKETS], high[BUCKETS], most = 0;
    uint16_t *buckets = room->buckets;
    int32_t counts[4][BUCKETS] = {{0}}, *asked = room->asked; /* four tables: equal neighbours do not wait for each other */
    for (int64_t j = 0; j < n; j++) most = keys[j] > most ? keys[j] : most;
    uint32_t before = most >> FRACTION > BUCKETS - 1 ? (most >> FRACTION) - (BUCKETS - 1) : 0;
    for (int64_t j = 0; j < n; j++) {
        uint32_t bucket = keys[j] >> FRACTION;
        buckets[j] = (uint16_t)(bucket > before ? bucket - before : 0);
        keep[j] = (draws[j] < lowest) & (keys[j] != 0);
        draws[j] = keys[j] != 0 ? draws[j] - lowest : UINT32_MAX; /* from here on limits and draws count from the lowest limit */
    }
    int64_t quads = n & ~(int64_t)3, rank = 0, unsure = 0, passes = 0;
    for (int64_t j = 0; j < quads; j += 4)
        for (int table = 0; table < 4; table++) counts[table][buckets[j + table]]++;
    for (int64_t j = quads; j < n; j++) counts[0][buckets[j]]++;
    for (int b = 0; b < BUCKETS; b++) counts[0][b] += counts[1][b] + counts[2][b] + counts[3][b];
    for (int b = 0; b < BUCKETS; b++) {
        if (!counts[0][b]) continue;
        low[b] = limits[rank] - lowest;
        rank += counts[0][b];
        high[b] = limits[rank - 1] - lowest;
    }
    int64_t (*indices)(const uint32_t *, uint32_t, int64_t, int64_t, int32_t *) = indices_plain;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) indices = indices_avx512;
#endif
    int64_t between = indices(draws, limits[n - 1] - lowest, 0, n, asked);
    for (int64_t t = 0; t < between; t++) {
        int32_t j = asked[t];
        uint32_t draw = draws[j], sure = low[buckets[j]];
        keep[j] = draw < sure;
        asked[unsure] = j;
        unsure += (draw >= sure) & (draw < high[buckets[j]]);
    }
    Tie ties[TIES];
    for (int t = 0; t < TIES && unsure; t++) ties[t].upto = -1;
    int64_t t = 0;
    for (; t < unsure && passes < FEW; t++)
        keep[asked[t]] = draws[asked[t]] < limits[rank_of(keys, n, asked[t], ties, &passes)] - lowest;
    if (t < unsure) rank_all(keys, n, room->ranks);
    for (; t < unsure; t++) keep[asked[t]] = draws[asked[t]] < limits[room->ranks[asked[t]]] - lowest;
}

/* As pieces.drop.drop_by_rank: for each of `rows` rows of n elements, keep[j] = draw < limits[rank in the row] where the
 * element is not zero. The limits do not fall. */
API int cuvee_rank_drop(
    const Row *row, uint64_t key0, uint64_t key1, int64_t start, const uint32_t *limits, int64_t rows, int64_t n, uint8_t *keep)
{
    uint32_t *words = malloc((n * 6 + 16) * sizeof *words + n * sizeof(uint16_t));
    if (!words) return -1;
    int32_t *ranks = (int32_t *)(words + 2 * n);
    RankRoom room = {words, words + n, ranks, ranks + 3 * n, (uint16_t *)(words + 6 * n + 16)};
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t at = 0; at < n; at += CHUNK) load_keys(row, 1, r * n + at, MIN(CHUNK, n - at), room.keys + at);
        cuvee_draws(key0, key1, start + r * n, n, room.draws);
        drop_row(&room, limits, n, keep + r * n);
    }
    free(words);
    return 0;
}

/* ---- the largest of every stretch ---------------------------------------------------------------------------------- */

enum { STRETCHES = 16 };
typedef uint32_t Lanes __attribute__((vector_size(STRETCHES * 4), aligned(16))); /* as malloc aligns */

/* chosen = the `count` largest of each lane's m keys (m, STRETCHES), the lower place first among equals. `bits`: those that any
 * key has; the last ones of a difference of two bf16 numbers are 0. */
INLINE void choose_in_lanes(const Lanes *keys, int64_t m, uint32_t count, uint32_t bits, Lanes *chosen)
{
    Lanes least = {0}, left = {0};
    for (int bit = 31; bit >= 0; bit--) { /* the count-th largest key of each lane, a bit at a time */
        if (!(bits >> bit & 1)) continue;
        Lanes wanted = least | 1u << bit, reached = {0};
        for (int64_t place = 0; place < m; place++) reached -= (Lanes)(keys[place] >= wanted);
        least |= (Lanes)(reached >= count) & 1u << bit;
    }
    left += count;
    for (int64_t place = 0; place < m; place++) left += (Lanes)(keys[place] > least);
    for (int64_t place = 0; place < m; place++) {
        Lanes equal = (Lanes)(keys[place] == least) & (Lanes)(left > 0);
        left += equal;
        chosen[place] = (Lanes)(keys[place] > least) | equal;
    }
}

/* mask = the `count` largest magnitudes of each of up to STRETCHES stretches of m elements, of those that may be chosen.
 * room: (3, m) */
FAST static void choose_stretches(
    const Row *row, const uint8_t *may, int64_t begin, int64_t stretches, int64_t m, int64_t count, Lanes *room, uint8_t *mask)
{
    Lanes *keys = room, *chosen = room + m;
    uint32_t *in_order = (uint32_t *)(room + 2 * m), *by_place = (uint32_t *)keys, *found = (uint32_t *)chosen;
    int64_t size = stretches * m;
    uint32_t bits = 0;
    for (int64_t at = 0; at < size; at += CHUNK) load_keys(row, 1, begin + at, MIN(CHUNK, size - at), in_order + at);
    for (int64_t i = 0; i < size; i++) bits |= in_order[i] = may[begin + i] ? in_order[i] << 1 | 1 : 0;
    for (int64_t lane = 0; lane < STRETCHES; lane++)
        for (int64_t place = 0; place < m; place++)
            by_place[place * STRETCHES + lane] = lane < stretches ? in_order[lane * m + place] : 0;
    choose_in_lanes(keys, m, (uint32_t)count, bits, chosen);
    for (int64_t lane = 0; lane < stretches; lane++)
        for (int64_t place = 0; place < m; place++)
            mask[begin + lane * m + place] = found[place * STRETCHES + lane] & (in_order[lane * m + place] > 0);
}

/* As papers.cabs.largest_of_stretches: `count` of every m elements, which begin anew at each leaf; a last stretch keeps its share. */
API int cuvee_largest_of_stretches(
    const Row *row, const uint8_t *may, int64_t n, int64_t leaf, int64_t count, int64_t m, uint8_t *mask)
{
    Lanes *room = malloc((3 * MIN(m, MIN(leaf, n)) + 1) * sizeof *room);
    if (!room) return -1;
    for (int64_t start = 0; start < n; start += leaf) {
        int64_t size = MIN(leaf, n - start), rest = size % m, at = 0;
        for (; at + m <= size; at += MIN(STRETCHES * m, size - rest - at))
            choose_stretches(row, may, start + at, MIN(STRETCHES, (size - at) / m), m, count, room, mask);
        if (rest) choose_stretches(row, may, start + at, 1, rest, (count * rest + m - 1) / m, room, mask);
    }
    free(room);
    return 0;
}

/* ---- the competition of parameters ----------------------------------------------------------------------------------- */

/* tensors.elementary: power = 2^z and rest = e^r - 1, with x = z ln 2 + r. */
INLINE void exp_parts(float x, float *power, float *rest)
{
    const float inverse = (float)1.4426950408889634, high = 355.0f / 512, low = (float)(0.6931471805599453 - 355.0 / 512);
    const float rounds = 3 << 22; /* added and taken off, it rounds to a whole number */
    float z = x * inverse + rounds - rounds, r = x - z * high - z * low;
    float tail = r * (float)(1.0 / 5040) + (float)(1.0 / 720);
    tail = tail * r + (float)(1.0 / 120);
    tail = tail * r + (float)(1.0 / 24);
    tail = tail * r + (float)(1.0 / 6);
    tail = tail * r + 0.5f;
    *power = as_float((uint32_t)((int32_t)z + 127) << 23);
    *rest = r * r * tail + r;
}

INLINE float exp_of(float x)
{
    float power, rest;
    x = x < -87.0f ? -87.0f : x;
    exp_parts(x > 88.0f ? 88.0f : x, &power, &rest);
    return power * (rest + 1.0f);
}

INLINE float tanh_of(float x)
{
    float power, rest, twice = fabsf(x) * 2.0f;
    exp_parts(twice > 40.0f ? 40.0f : twice, &power, &rest);
    float grown = power * rest + (power - 1.0f);
    return copysignf(grown / (grown + 2.0f), x);
}

/* A magnitude clamped to [low, low + span], NaN where an end is NaN, and then mapped to [0, 1]; all to 0 where the span is 0. */
INLINE float clamped(float x, float low, float high)
{
    x = fabsf(x);
    x = x < low || isnan(low) ? low : x;
    return x > high || isnan(high) ? high : x;
}
INLINE float mapped(float x, float low, float span) { return span > 0.0f ? (x - low) / span : 0.0f; }
INLINE float sign_of(float x) { return (float)((x > 0.0f) - (x < 0.0f)); }

/* What K models compete by: their rows, whose magnitudes are clamped to [low, high]; `raw`: each is compared with the sum of the
 * rows, else of their signs times their mapped magnitudes. */
typedef struct {
    const Row *rows;
    const float *low, *high, *span;
    int64_t K;
    int32_t raw;
} Rivals;

/* papers.pcb_merging.scores_of: values and scores (K, CHUNK) of elements [begin, begin + size). */
INLINE void score_chunk(const Rivals *rivals, int64_t begin, int64_t size, float *values, float *scores)
{
    const float *low = rivals->low, *high = rivals->high, *span = rivals->span;
    float others[CHUNK] = {0}, models = (float)rivals->K;
    load_chunks(rivals->rows, rivals->K, begin, size, values);
    for (int64_t k = 0; k < rivals->K; k++)
        for (int64_t i = 0; i < size; i++) {
            float x = values[k * CHUNK + i];
            others[i] += rivals->raw ? x : sign_of(x) * mapped(clamped(x, low[k], high[k]), low[k], span[k]);
        }
    for (int64_t k = 0; k < rivals->K; k++)
        for (int64_t i = 0; i < size; i++) {
            float x = values[k * CHUNK + i], share = mapped(clamped(x, low[k], high[k]), low[k], span[k]);
            scores[k * CHUNK + i] = exp_of(share * share * models) * tanh_of(x * others[i]);
        }
}

FAST static void score_keys(const Rivals *rivals, int64_t begin, int64_t size, float *values, uint32_t *keys)
{
    float *scores = values + rivals->K * CHUNK;
    score_chunk(rivals, begin, size, values, scores);
    for (int64_t i = 0; i < rivals->K * CHUNK; i++) keys[i] = ordered_key(as_bits(scores[i]), 0);
}

/* counts[k, high digit] = how many scores of model k have it, (K, DIGITS); with `highs` as cuvee_count_low for each[k] of them of
 * model k, one after the other, counts (sum of each, DIGITS). */
API int cuvee_pcb_count(const Rivals *rivals, int64_t n, const uint32_t *highs, const int64_t *each, int64_t *counts)
{
    int64_t K = rivals->K, digits = highs ? 1 : K * DIGITS;
    float *values = calloc(3 * K * CHUNK, sizeof *values);
    uint32_t *keys = (uint32_t *)values + 2 * K * CHUNK;
    HighCounters table = new_counters(digits);
    Gather gather = fastest_gather();
    for (int64_t begin = 0; values && table.even && begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin), number = 0;
        score_keys(rivals, begin, size, values, keys);
        for (int64_t k = 0; k < K; k++)
            if (!highs) count_high_digits(keys + k * CHUNK, size, (HighCounters){table.even + k * DIGITS, table.odd + k * DIGITS});
            else for (int64_t last = number + each[k]; number < last; number++)
                count_low_digits(gather, keys + k * CHUNK, size, highs[number], counts + number * DIGITS);
    }
    if (table.even && !highs) read_counters(table, digits, counts, NULL);
    int failed = !values || !table.even;
    free(values);
    free(table.even);
    return failed ? -1 : 0;
}

/* papers.pcb_merging.balanced: Σ w_k sign(x_k) size(x_k) share_k / Σ share_k. */
FAST API int cuvee_pcb_balance(
    const Rivals *rivals, int64_t n, const float *floors, const float *spans, const float *weights, float *out)
{
    int64_t K = rivals->K;
    float *values = malloc(2 * K * CHUNK * sizeof *values), *scores = values + K * CHUNK;
    if (!values) return -1;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        int64_t size = MIN(CHUNK, n - begin);
        float total[CHUNK] = {0}, merged[CHUNK] = {0};
        score_chunk(rivals, begin, size, values, scores);
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < size; i++) {
                float x = values[k * CHUNK + i], score = scores[k * CHUNK + i];
                float share = mapped(score < floors[k] ? floors[k] : score, floors[k], spans[k]);
                merged[i] += sign_of(x) * clamped(x, rivals->low[k], rivals->high[k]) * share * weights[k];
                total[i] += share;
            }
        for (int64_t i = 0; i < size; i++) out[begin + i] = merged[i] / (total[i] < 1e-12f ? 1e-12f : total[i]);
    }
    free(values);
    return 0;
}
