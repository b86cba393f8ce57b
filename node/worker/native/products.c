/* out = rows W^T for a few rows and a weight W that oneDNN packed, on processors with AVX-512 (for bfloat16 with its BF16 part).

   1. The weight lies in panels of 64 outputs: for each input (in bfloat16, for each pair of inputs) the 64 numbers (pairs of them)
      that belong to it. `native/products.py` looks whether it does.
   2. A panel is read from memory once, whatever the number of rows: INPUTS of it stay in the nearest cache for all of them, and the
      next as many are fetched meanwhile.
   3. A row's result does not depend on the rows beside it, nor on how many threads compute it. */

#include <immintrin.h>

#include "numbers.h"

#if TYPE == 2
#ifndef __AVX512BF16__
#error "this processor has no AVX-512 BF16"
#endif
#ifdef __AMX_BF16__
#error "oneDNN uses AMX here"
#endif
enum { TOGETHER = 2 };
typedef __m512bh operand;

static inline operand loaded(const number *from) { return (operand)_mm512_loadu_si512(from); }

static inline operand repeated(const number *from) {
    int32_t pair;
    memcpy(&pair, from, 4);
    return (operand)_mm512_set1_epi32(pair);
}

static inline __m512 more(__m512 sum, operand a, operand b) { return _mm512_dpbf16_ps(sum, a, b); }
#else
#ifndef __AVX512F__
#error "this processor has no AVX-512"
#endif
enum { TOGETHER = 1 };
typedef __m512 operand;

static inline operand loaded(const number *from) { return _mm512_loadu_ps(from); }

static inline operand repeated(const number *from) { return _mm512_set1_ps(*from); }

static inline __m512 more(__m512 sum, operand a, operand b) { return _mm512_fmadd_ps(a, b, sum); }
#endif

enum { PANEL = 64, WIDTH = 16, INPUTS = 64 * TOGETHER, AHEAD = INPUTS * PANEL, ROWS = 64, ONCE = 6 };
enum { PLAIN, SWISH, TIMES, PLUS };

/* `count` rows, a constant to the compiler, by one panel, over `inputs` inputs; added to sums [count, PANEL]. */
static inline __attribute__((always_inline)) void several(const int count, float *sums, const number *rows, int64_t stride,
                                                          const number *panel, int64_t inputs) {
    __m512 sum[ONCE][4];
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) sum[r][c] = _mm512_loadu_ps(sums + r * PANEL + c * WIDTH);
    for (int64_t k = 0; k < inputs; k += TOGETHER) {
        operand weight[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const number *at = panel + k * PANEL + c * WIDTH * TOGETHER;
            weight[c] = loaded(at);
            _mm_prefetch(at + AHEAD, _MM_HINT_T0);
        }
#pragma GCC unroll 6
        for (int r = 0; r < count; r++) {
            operand input = repeated(rows + r * stride + k);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) sum[r][c] = more(sum[r][c], input, weight[c]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) _mm512_storeu_ps(sums + r * PANEL + c * WIDTH, sum[r][c]);
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
            for (int64_t r = 0; r < count; r += ONCE)
                some(count - r < ONCE ? count - r : ONCE, sums + r * PANEL, rows + r * inputs + k, inputs, panel + k * PANEL, some_inputs);
        }
        int64_t first = p * PANEL;
        for (int64_t r = 0; r < count; r++) {
            int64_t at = r * outputs + first;
            finish(out + at, sums + r * PANEL, bias ? bias + first : 0, other ? other + at : 0, PANEL, what);
        }
    }
}
