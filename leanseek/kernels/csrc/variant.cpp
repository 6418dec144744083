// One instruction set's kernels: compiled once for each, with its flags and LEANSEEK_VARIANT, its name.
//
// Nothing of the C++ library may be used in what is included here, and all of it stands in a nameless namespace: a
// template of the library that two units hold is merged into one of them by the linker, and if that is the one with
// AVX-512, an older processor stumbles over it.
#include "causal.h"
#include "decoder.h"
#include "flash.h"
#include "learning.h"
#include "likelihood.h"
#include "measure.h"
#include "norm.h"
#include "pack.h"
#include "stored.h"
#include "table.h"

#define LEANSEEK_JOIN(a, b) a##b
#define LEANSEEK_NAME(name) LEANSEEK_JOIN(leanseek_table_, name)

const leanseek_table *LEANSEEK_NAME(LEANSEEK_VARIANT)();

const leanseek_table *LEANSEEK_NAME(LEANSEEK_VARIANT)() {
    static const leanseek_table table = {rms_norm, rms_norm_backward, pack, packed_linear, packed_experts, decode,
                                         panels_product, expanded_attention, stored_linear, stored_experts,
                                         learn_forward, learn_backward, attend_forward, attend_backward, likelihood,
                                         likelihood_backward, stream, peak};
    return &table;
}
