// A layer's experts and its attention, and what their training gives, as the C ABI has them; kernels/learning.py and
// kernels/causal.py have the twins.
#pragma once
#include <stdint.h>

// Widths are multiples of 16. Gate and up of one expert stand `apart` floats behind the one's before.
struct leanseek_experts {
    int64_t tokens, per_token, experts, dim, width, apart;
    const int64_t *chosen;         // [tokens, per_token]
    const float *x, *weights;      // [tokens, dim]; of the choices, null: all are 1
    const float *gate, *up, *down;
    float *kept;                   // [choices, gate and up], sorted by expert: written forward, read backward
    float *out;                    // [tokens, dim]; the rest is looked at backward alone
    const float *out_gradient;
    float *x_gradient, *weights_gradient, *gate_gradient, *up_gradient, *down_gradient;  // null weights: null
};

// Keys have `nope` channels of each head's own and `turned` ones that all share; keys and values of one head stand side by
// side. Channels of a key, and `value`, are multiples of 16.
struct leanseek_attention {
    int64_t tokens, heads, nope, turned, value, segments;
    const int64_t *spans;      // [segments, 4]: first token, tokens, and the same of what it goes on from, an earlier one
    const float *queries;      // [tokens, heads, nope and turned], not turned yet
    const float *keys_values;  // [tokens, heads, nope and value]
    const float *rope, *turns; // [tokens, turned]: the shared keys, not turned yet; cosine and sine of each pair's angle
    float *out, *logs;         // [tokens, heads, value]; [heads, tokens]: written forward, read backward
    const float *out_gradient;
    float *queries_gradient, *keys_values_gradient, *rope_gradient;
    float scale;
};
