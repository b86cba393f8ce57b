/* How numbers are kept (`number`: float with -DTYPE=1, bfloat16 with -DTYPE=2) and computed with: as float. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if TYPE == 2
typedef uint16_t number;

static inline float wide(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline number narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (number)(x != x ? 0x7fc0 : rounded);
}
#else
typedef float number;
static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

/* e^x in single precision, for x <= 0; NaN stays NaN. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float whole = rintf(x * 1.44269504f);
    float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float y = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.166666657f + rest * (4.16657962e-2f + rest * (8.33345205e-3f + rest * 1.39814872e-3f)))));
    int32_t bits = ((int32_t)(x == x ? whole : 0.0f) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return y * power;
}

/* x times its own sigmoid; the exponential's argument is kept negative. */
static inline float swish(float x) {
    float small = exponential(-fabsf(x));
    return x * (x < 0 ? small : 1.0f) / (1.0f + small);
}
