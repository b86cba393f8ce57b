/* What a decoding step does between its large products, for a few rows on a CPU. Compiled by `native/compiler.py`, once for each type:
   with -DTYPE=1 numbers are float, with -DTYPE=2 they are bfloat16.

   1. Sums are kept in float and rounded where transformers' modules round.
   2. A row's result does not depend on the rows beside it, nor on how many threads compute it.
   3. Nothing is allocated here but on the stack; sizes are checked by who calls (`native/kernels.py`). */

#include "numbers.h"

enum { BLOCK = 64, DIM = 256, SHARED = 16, LANES = 16, LINE = 64 };
/* Tokens looked at together; the largest head; the most heads of queries that share one of keys;
   floats that are computed at once, in as many registers as the processor needs for them; bytes
   that come from memory together. */
typedef float vector __attribute__((vector_size(4 * LANES)));

/* rows [count, dim] divided by their root mean square, rounded, times weight [dim]. */
static inline void normalise(number *out, const number *row, const number *weight, int64_t dim, float epsilon) {
    float sum = 0;
    for (int64_t d = 0; d < dim; d++) sum += wide(row[d]) * wide(row[d]);
    float scale = 1.0f / sqrtf(sum / (float)dim + epsilon);
    for (int64_t d = 0; d < dim; d++) out[d] = narrow(wide(narrow(wide(row[d]) * scale)) * wide(weight[d]));
}

void norm(number *out, const number *rows, const number *weight, int64_t count, int64_t dim, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) if (count * dim > 16384)
    for (int64_t i = 0; i < count; i++) normalise(out + i * dim, rows + i * dim, weight, dim, epsilon);
}

/* Heads as the projection made them [count, heads + 2 kv_heads, dim]: those of queries and keys are normalised by weight
   [heads + kv_heads, dim], unless that is null, and rotated; then queries go to [count, heads, dim], keys and values into the arena
   [kv_heads, stride, dim] at the rows' places. cosines and sines are [count, dim]. */
void turn(number *queries, number *keys, number *values, const number *every, const number *weight, const number *cosines,
          const number *sines, const int64_t *places, int64_t count, int64_t heads, int64_t kv_heads, int64_t dim, int64_t stride,
          float epsilon, int threads) {
    int64_t all = heads + 2 * kv_heads, half = dim / 2;
#pragma omp parallel for num_threads(threads) if (count * all * dim > 16384)
    for (int64_t i = 0; i < count; i++) {
        const number *cosine = cosines + i * dim, *sine = sines + i * dim;
        for (int64_t h = 0; h < heads + kv_heads; h++) {
            const number *head = every + (i * all + h) * dim;
            number *to = h < heads ? queries + (i * heads + h) * dim : keys + ((h - heads) * stride + places[i]) * dim;
            number normalised[DIM];
            if (weight) {
                normalise(normalised, head, weight + h * dim, dim, epsilon);
                head = normalised;
            }
            for (int64_t d = 0; d < half; d++)
                to[d] = narrow(wide(narrow(wide(head[d]) * wide(cosine[d]))) + wide(head[d + half]) * wide(sine[d]));
            for (int64_t d = half; d < dim; d++)
                to[d] = narrow(wide(narrow(wide(head[d]) * wide(cosine[d]))) + wide(head[d - half]) * wide(sine[d]));
        }
        for (int64_t h = 0; h < kv_heads; h++)
            memcpy(values + (h * stride + places[i]) * dim, every + (i * all + heads + kv_heads + h) * dim, dim * sizeof(number));
    }
}

/* `count` rows of dim numbers as rows of `chunks` vectors, filled up with zeros; what is needed next is fetched meanwhile. */
static inline void widen(vector *to, const number *from, const number *next, int64_t count, int64_t dim, const int64_t chunks) {
    float *row = (float *)to;
    for (int64_t i = 0; i < count; i++, row += chunks * LANES, from += dim, next += dim) {
        for (int64_t d = 0; d < dim; d += LINE / sizeof(number)) __builtin_prefetch(next + d);
        for (int64_t d = 0; d < dim; d++) row[d] = wide(from[d]);
        for (int64_t d = dim; d < chunks * LANES; d++) row[d] = 0;
    }
}

static inline float added_up(vector x) {
    float lanes[LANES], sum = 0;
    memcpy(lanes, &x, sizeof x);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

/* The queries that share a head of keys, one row's [shared, dim], look at `length` tokens. `chunks` is a constant to the compiler. */
static inline __attribute__((always_inline)) void look_at(number *out, const number *queries, const number *keys,
                                                          const number *values, int64_t length, int64_t shared, int64_t dim,
                                                          float scaling, const int64_t chunks) {
    vector query[SHARED * chunks], sum[SHARED * chunks], seen[BLOCK * chunks];
    float score[SHARED][BLOCK], highest[SHARED], total[SHARED];
    widen(query, queries, keys, shared, dim, chunks);
    for (int64_t s = 0; s < shared; s++) {
        highest[s] = -INFINITY;
        total[s] = 0;
        for (int64_t c = 0; c < chunks; c++) {
            query[s * chunks + c] *= scaling;
            sum[s * chunks + c] = (vector){0};
        }
    }
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
        int64_t count = length - begin < BLOCK ? length - begin : BLOCK;
        widen(seen, keys + begin * dim, values + begin * dim, count, dim, chunks);
        for (int64_t s = 0; s < shared; s++) {
            for (int64_t t = 0; t < count; t++) {
                vector product = query[s * chunks] * seen[t * chunks];
                for (int64_t c = 1; c < chunks; c++) product += query[s * chunks + c] * seen[t * chunks + c];
                score[s][t] = added_up(product);
            }
            for (int64_t t = count; t < BLOCK; t++) score[s][t] = -INFINITY;
            float top = highest[s], mass = 0;
            for (int64_t t = 0; t < BLOCK; t++) top = score[s][t] > top ? score[s][t] : top;
            for (int64_t t = 0; t < BLOCK; t++) mass += score[s][t] = exponential(score[s][t] - top);
            float fade = exponential(highest[s] - top);
            highest[s] = top;
            total[s] = total[s] * fade + mass;
            for (int64_t c = 0; c < chunks; c++) sum[s * chunks + c] *= fade;
        }
        widen(seen, values + begin * dim, keys + (begin + BLOCK) * dim, count, dim, chunks);
        for (int64_t s = 0; s < shared; s++) {
            vector part[chunks];
            for (int64_t c = 0; c < chunks; c++) part[c] = sum[s * chunks + c];
            for (int64_t t = 0; t < count; t++)
                for (int64_t c = 0; c < chunks; c++) part[c] += score[s][t] * seen[t * chunks + c];
            for (int64_t c = 0; c < chunks; c++) sum[s * chunks + c] = part[c];
        }
    }
    for (int64_t s = 0; s < shared; s++)
        for (int64_t d = 0; d < dim; d++) out[s * dim + d] = narrow(((float *)(sum + s * chunks))[d] / total[s]);
}

/* Each row of queries [count, heads, dim] looks at its sequence's keys and values up to itself, no further back than `window` when
   that is not 0; out is [count, heads, dim]. The row's own token lies at its place, those before it in front. */
void look(number *out, const number *queries, const number *keys, const number *values, const int64_t *places,
          const int64_t *positions, int64_t count, int64_t heads, int64_t kv_heads, int64_t dim, int64_t stride, int64_t window,
          float scaling, int threads) {
    int64_t shared = heads / kv_heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < count * kv_heads; task++) {
        int64_t i = task / kv_heads, h = task % kv_heads, length = positions[i] + 1;
        if (window && length > window) length = window;
        int64_t first = (h * stride + places[i] + 1 - length) * dim, own = (i * heads + h * shared) * dim;
        number *to = out + own;
        const number *query = queries + own, *key = keys + first, *value = values + first;
        switch ((dim + LANES - 1) / LANES) {
        case 4: look_at(to, query, key, value, length, shared, dim, scaling, 4); break;
        case 8: look_at(to, query, key, value, length, shared, dim, scaling, 8); break;
        default: look_at(to, query, key, value, length, shared, dim, scaling, (dim + LANES - 1) / LANES);
        }
    }
}
