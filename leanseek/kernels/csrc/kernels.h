// The C ABI of the native kernels. Whoever calls has checked shapes, strides and bounds; nothing here throws.
#pragma once
#include <stdint.h>

#include "stack.h"
#include "trained.h"

// Changes with every change of a signature or a layout; leanseek/kernels/native.py asks for the same.
#define LEANSEEK_ABI 13

#define LEANSEEK_API extern "C" __attribute__((visibility("default")))

enum { LEANSEEK_F32 = 0, LEANSEEK_BF16 = 1 };

LEANSEEK_API int32_t leanseek_abi(void);
// The instruction sets that were compiled, the best last, with blanks between.
LEANSEEK_API const char *leanseek_variants(void);
// The number of a variant, or -1 if it was not compiled, or -2 if this processor lacks it.
LEANSEEK_API int32_t leanseek_variant(const char *name);

// How long an idle worker looks out for work before it sleeps, in microseconds.
LEANSEEK_API void leanseek_spin_us(int32_t us);

// What calls return: 0, or why nothing was done.
enum { LEANSEEK_NO_MEMORY = 1, LEANSEEK_BAD_EXPERT = 2, LEANSEEK_NOT_FINITE = 3, LEANSEEK_BAD_TOKEN = 4 };

// `threads` of every call: the most that it may use, this one included.
LEANSEEK_API int32_t leanseek_rms_norm(int32_t variant, int32_t threads, int32_t type, const void *x,
                                       const void *residual, const void *weight, void *sum, void *out, int64_t rows,
                                       int64_t width, float eps);
// The gradients of x (with `more`, if it is not null, added) and of the weight, from that of the output.
LEANSEEK_API int32_t leanseek_rms_norm_backward(int32_t variant, int32_t threads, int32_t type, const void *x,
                                                const void *weight, const void *gradient, const void *more,
                                                void *x_gradient, void *weight_gradient, int64_t rows, int64_t width,
                                                float eps);
// One matrix [rows, width] into codes and scales of 4 or 8 bits; the layout is stated in leanseek/kernels/packed.py.
LEANSEEK_API int32_t leanseek_pack(int32_t variant, int32_t threads, int32_t type, int32_t bits, const void *weight,
                                   int64_t rows, int64_t width, void *codes, void *scales);
// out [rows, outputs] = x [rows, inputs] times a packed weight, transposed.
LEANSEEK_API int32_t leanseek_packed_linear(int32_t variant, int32_t threads, int32_t bits, const void *x, int64_t rows,
                                            int64_t inputs, const void *codes, const void *scales, int64_t outputs,
                                            void *out);
// A layer's experts: out [tokens, dim] = sum over a token's chosen experts of weight * down(silu(gate x) * (up x)).
LEANSEEK_API int32_t leanseek_packed_experts(int32_t variant, int32_t threads, int32_t bits, const void *x,
                                             int64_t tokens, int64_t dim, const void *weights, const void *chosen,
                                             int64_t per_token, int64_t experts, const void *gate_up_codes,
                                             const void *gate_up_scales, int64_t width, const void *down_codes,
                                             const void *down_scales, void *out);
// Tokens through a stack of layers: hidden states, and logits if wanted; the texts' new latents go into the cache.
LEANSEEK_API int32_t leanseek_decode(int32_t variant, int32_t threads, const void *stack, const void *batch);
// out [rows, outputs] = x [rows, inputs] times an fp32 weight in panels [outputs / 16, inputs, 16], transposed.
LEANSEEK_API int32_t leanseek_panels_product(int32_t variant, int32_t threads, const void *panels, int64_t outputs,
                                             int64_t inputs, const void *x, int64_t rows, void *out);
// Causal attention of packed texts by their expanded keys and values: what a span holds is said in flash.h.
LEANSEEK_API int32_t leanseek_expanded_attention(int32_t variant, int32_t threads, const void *queries,
                                                 const void *keys_values, const void *rope, const void *spans,
                                                 int64_t texts, int64_t tokens, int64_t keys, int64_t heads,
                                                 int64_t nope, int64_t turned, int64_t value, float scale, void *out);
// out [rows, outputs] = x [rows, inputs] times a weight as checkpoints store it, transposed: bf16 numbers (kind 1), or
// e4m3 ones (kind 2) with a scale for each square of 128 x 128.
LEANSEEK_API int32_t leanseek_stored_linear(int32_t variant, int32_t threads, int32_t kind, const void *x, int64_t rows,
                                            int64_t inputs, const void *numbers, const void *scales, int64_t outputs,
                                            void *out);
// A layer's experts, as leanseek_packed_experts: `weights` has an expert's six addresses, those of gate, up and down,
// each with that of its scales behind it (kind 1: nought).
LEANSEEK_API int32_t leanseek_stored_experts(int32_t variant, int32_t threads, int32_t kind, const void *x,
                                             int64_t tokens, int64_t dim, const void *mixing, const void *chosen,
                                             int64_t per_token, int64_t experts, const void *weights, int64_t width,
                                             void *out);
// A layer's experts in fp32, forward and then backward: sums over tokens' choices, and the gradients of all that is given.
LEANSEEK_API int32_t leanseek_learn_forward(int32_t variant, int32_t threads, const void *experts);
LEANSEEK_API int32_t leanseek_learn_backward(int32_t variant, int32_t threads, const void *experts);
// Causal attention in fp32 over keys and values that are rebuilt from latents, forward and then backward.
LEANSEEK_API int32_t leanseek_attend_forward(int32_t variant, int32_t threads, const void *attention);
LEANSEEK_API int32_t leanseek_attend_backward(int32_t variant, int32_t threads, const void *attention);
// The log-probabilities of targets under rows of logits times `scale`, and of each row the logarithm of its sum of powers,
// which the way back wants again.
LEANSEEK_API int32_t leanseek_likelihood(int32_t variant, int32_t threads, const void *logits, const void *targets,
                                         int64_t rows, int64_t width, float scale, void *found, void *sums);
LEANSEEK_API int32_t leanseek_likelihood_backward(int32_t variant, int32_t threads, const void *logits,
                                                  const void *targets, int64_t rows, int64_t width, float scale,
                                                  const void *sums, const void *gradient, void *logits_gradient);
// Reads memory (aligned to 8 bytes) as fast as it can; `sum` (8 bytes) gets what depends on all of it.
LEANSEEK_API int32_t leanseek_stream(int32_t variant, int32_t threads, const void *data, int64_t bytes, void *sum);
// Multiplies int8 numbers in registers; `out` (2 x 8 bytes) gets how many operations that were.
LEANSEEK_API int32_t leanseek_peak(int32_t variant, int32_t threads, int64_t pieces, void *out);
