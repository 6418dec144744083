// A layer's experts and what their training gives, as the C ABI has them; kernels/learning.py has the twin.
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
