// What each instruction set's translation unit gives: a table of functions, found by name in dispatch.cpp.
#pragma once
#include <stdint.h>

#include "stack.h"
#include "trained.h"

// Does the pieces [begin, end) of some work.
typedef void (*leanseek_piece)(void *work, int64_t begin, int64_t end);
// Does all `count` pieces, by up to `threads` threads, and returns when they are done.
typedef void (*leanseek_parallel)(leanseek_piece piece, void *work, int64_t count, int threads);

struct leanseek_table {
    int (*rms_norm)(int threads, int type, const void *x, const void *residual, const void *weight, void *sum,
                     void *out, int64_t rows, int64_t width, float eps);
    int (*rms_norm_backward)(int threads, int type, const void *x, const void *weight, const void *gradient,
                             const void *more, void *x_gradient, void *weight_gradient, int64_t rows, int64_t width,
                             float eps);
    int (*pack)(int threads, int type, int bits, const void *weight, int64_t rows, int64_t width, uint8_t *codes,
                void *scales);
    int (*packed_linear)(int threads, int bits, const float *x, int64_t rows, int64_t inputs, const uint8_t *codes,
                         const void *scales, int64_t outputs, float *out);
    int (*packed_experts)(int threads, int bits, const float *x, int64_t tokens, int64_t dim, const float *weights,
                          const int64_t *chosen, int64_t per_token, int64_t experts, const uint8_t *gate_up_codes,
                          const void *gate_up_scales, int64_t width, const uint8_t *down_codes,
                          const void *down_scales, float *out);
    int (*decode)(int threads, const leanseek_stack *stack, const leanseek_batch *batch);
    int (*panels_product)(int threads, const float *panels, int64_t outputs, int64_t inputs, const float *x, int64_t rows,
                          float *out);
    int (*expanded_attention)(int threads, const float *queries, const float *keys_values, const float *rope,
                              const int64_t *spans, int64_t texts, int64_t tokens, int64_t keys, int64_t heads,
                              int64_t nope, int64_t turned, int64_t value, float scale, float *out);
    int (*stored_linear)(int threads, int kind, const float *x, int64_t rows, int64_t inputs, const uint8_t *numbers,
                         const float *scales, int64_t outputs, float *out);
    int (*stored_experts)(int threads, int kind, const float *x, int64_t tokens, int64_t dim, const float *mixing,
                          const int64_t *chosen, int64_t per_token, int64_t experts, const void *weights, int64_t width,
                          float *out);
    int (*learn_forward)(int threads, const leanseek_experts *experts);
    int (*learn_backward)(int threads, const leanseek_experts *experts);
    int (*attend_forward)(int threads, const leanseek_attention *attention);
    int (*attend_backward)(int threads, const leanseek_attention *attention);
    int (*likelihood)(int threads, const float *logits, const int64_t *targets, int64_t rows, int64_t width, float scale,
                      float *found, float *sums);
    int (*likelihood_backward)(int threads, const float *logits, const int64_t *targets, int64_t rows, int64_t width,
                               float scale, const float *sums, const float *gradient, float *logits_gradient);
    int (*stream)(int threads, const void *data, int64_t bytes, void *sum);
    int (*peak)(int threads, int64_t pieces, void *out);
};

void leanseek_parallel_for(leanseek_piece piece, void *work, int64_t count, int threads);
