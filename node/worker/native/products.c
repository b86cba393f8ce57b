/* out = rows W^T for a few rows of bfloat16 and a weight W that oneDNN packed, on processors with AVX-512 BF16.

   1. The weight lies in panels of 64 outputs: for each pair of inputs, 64 pairs of numbers. `native/products.py` looks whether it
      does.
   2. A panel is read from memory once, whatever the number of rows: INPUTS of it stay in the nearest cache for all of them, and the
      next as many are fetched meanwhile.
   3. A row's result does not depend on the rows beside it, nor on how many threads compute it. */

#include <immintrin.h>

#include "numbers.h"

#ifndef __AVX512BF16__
#error "this processor has no AVX-512 BF16"
#endif
#ifdef __AMX_BF16__
#error "oneDNN uses AMX here"
#endif

enum { PANEL = 64, INPUTS = 128, AHEAD = INPUTS * PANEL, ROWS = 64 };
enum { PLAIN, SWISH, TIMES, PLUS };

/* `count` rows, a constant to the compiler, by one panel, over `inputs` inputs; added to sums [count, PANEL]. */
static inline __attribute__((always_inline)) void several(const int count, float *sums, const number *rows, int64_t stride,
                                                          const number *panel, int64_t inputs) {
    __m512 sum[6][4];
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) sum[r][c] = _mm512_loadu_ps(sums + r * PANEL + c * 16);
    for (int64_t k = 0; k < inputs; k += 2) {
        __m512bh weight[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) weight[c] = (__m512bh)_mm512_loadu_si512(panel + k * PANEL + c * 32);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) _mm_prefetch(panel + AHEAD + k * PANEL + c * 32, _MM_HINT_T0);
#pragma GCC unroll 6
        for (int r = 0; r < count; r++) {
            int32_t pair;
            memcpy(&pair, rows + r * stride + k, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], both, weight[c]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) _mm512_storeu_ps(sums + r * PANEL + c * 16, sum[r][c]);
}

static void some(int64_t count, float *sums, const number *rows, int64_t stride, const number *panel, int64_t inputs) {
    switch (count) {
    case 1: several(1, sums, rows, stride, panel, inputs); break;
    case 2: several(2, sums, rows, stride, panel, inputs); break;
    case 3: several(3, sums, rows, stride, panel, inputs); break;
    case 4: several(4, sums, rows, stride, panel, inputs); break;
    case 5: several(5, sums, rows, stride, panel, inputs); break;
    default: several(6, sums, rows, stride, panel, inputs);
    }
}

/* What follows the sums of one row and panel. */
static inline void finish(number *out, float *sums, const number *bias, const number *other, int64_t count, int what) {
    if (bias)
        for (int64_t c = 0; c < count; c++) sums[c] += wide(bias[c]);
    if (what == SWISH)
        for (int64_t c = 0; c < count; c++) sums[c] = swish(sums[c]);
    if (what == TIMES)
        for (int64_t c = 0; c < count; c++) sums[c] *= wide(other[c]);
    if (what == PLUS)
        for (int64_t c = 0; c < count; c++) sums[c] += wide(other[c]);
    for (int64_t c = 0; c < count; c++) out[c] = narrow(sums[c]);
}

/* rows [count, inputs], bias [outputs] or null, other [count, outputs] or null, out [count, outputs]. */
void product(number *out, const number *rows, const number *weight, const number *bias, const number *other, int64_t count,
             int64_t inputs, int64_t outputs, int what, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < outputs / PANEL; p++) {
        float sums[ROWS * PANEL] __attribute__((aligned(64)));
        memset(sums, 0, sizeof(float) * count * PANEL);
        const number *panel = weight + p * PANEL * inputs;
        for (int64_t k = 0; k < inputs; k += INPUTS) {
            int64_t some_inputs = inputs - k < INPUTS ? inputs - k : INPUTS;
            for (int64_t r = 0; r < count; r += 6)
                some(count - r < 6 ? count - r : 6, sums + r * PANEL, rows + r * inputs + k, inputs, panel + k * PANEL, some_inputs);
        }
        int64_t first = p * PANEL;
        for (int64_t r = 0; r < count; r++) {
            int64_t at = r * outputs + first;
            finish(out + at, sums + r * PANEL, bias ? bias + first : 0, other ? other + at : 0, PANEL, what);
        }
    }
}
