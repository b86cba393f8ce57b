/* All layers of a decoder for a step of few rows, each a token of its own sequence, in one call.

   Filled in by `native/layers.py`, whose structures must be these. */

#include "kernels.c"
#include "products.c"

typedef struct {
    const number *weight, *bias;
    int64_t inputs, outputs;
} linear;

typedef struct {
    const number *before_attention, *head_norm, *before_mlp;
    linear projection, output, gate, up, down;
    float scaling;
    int64_t window;
} layer;

typedef struct {
    int64_t layers, dim, heads, kv_heads, size, inner;
    float epsilon;
} shape;

static void multiply(number *out, const number *rows, const linear *by, const number *other, int64_t count, int what, int threads) {
    product(out, rows, by->weight, by->bias, other, count, by->inputs, by->outputs, what, threads);
}

/* `rows` [count, dim] are replaced. `room` has count * (dim + (2 heads + 2 kv_heads + heads) size + 2 inner) numbers. keys and values
   are the whole arena [layers, kv_heads, stride, size]. The first `decoding` rows look at their sequences; others are of nobody. */
void layers(number *rows, number *room, const shape *model, const layer *each, number *keys, number *values, int64_t stride,
            const number *cosines, const number *sines, const int64_t *places, const int64_t *positions, int64_t count,
            int64_t decoding, int threads) {
    int64_t heads = model->heads, kv_heads = model->kv_heads, size = model->size, dim = model->dim;
    number *normed = room, *every = normed + count * dim, *queries = every + count * (heads + 2 * kv_heads) * size;
    number *seen = queries + count * heads * size, *gate = seen + count * heads * size, *up = gate + count * model->inner;
    memset(seen, 0, sizeof(number) * count * heads * size);
    for (int64_t i = 0; i < model->layers; i++, each++, keys += kv_heads * stride * size, values += kv_heads * stride * size) {
        norm(normed, rows, each->before_attention, count, dim, model->epsilon, threads);
        multiply(every, normed, &each->projection, 0, count, PLAIN, threads);
        turn(queries, keys, values, every, each->head_norm, cosines, sines, places, count, heads, kv_heads, size, stride,
             model->epsilon, threads);
        look(seen, queries, keys, values, places, positions, decoding, heads, kv_heads, size, stride, each->window, each->scaling,
             threads);
        multiply(rows, seen, &each->output, rows, count, PLUS, threads);
        norm(normed, rows, each->before_mlp, count, dim, model->epsilon, threads);
        multiply(gate, normed, &each->gate, 0, count, SWISH, threads);
        multiply(up, normed, &each->up, gate, count, TIMES, threads);
        multiply(rows, up, &each->down, rows, count, PLUS, threads);
    }
}
