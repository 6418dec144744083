// The C ABI's functions: each calls the table of the variant that it is given.
#include "kernels.h"

#include <string.h>

#include "table.h"

#define LEANSEEK_DECLARE(name) const leanseek_table *leanseek_table_##name();
LEANSEEK_DECLARE(generic)
LEANSEEK_DECLARE(avx2)
LEANSEEK_DECLARE(avx512)
LEANSEEK_DECLARE(neon)

#if defined(LEANSEEK_HAS_neon) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

namespace {

bool always() { return true; }

#ifdef LEANSEEK_HAS_avx2
bool has_avx2() {
    // These ask the operating system too, whether it keeps the wide registers.
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif
#ifdef LEANSEEK_HAS_avx512
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif
#ifdef LEANSEEK_HAS_neon
bool has_neon() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Apple processor has the dot products
#endif
}
#endif

struct Variant {
    const char *name;
    const leanseek_table *(*table)();
    bool (*usable)();
};

const Variant VARIANTS[] = {
    {"generic", leanseek_table_generic, always},
#ifdef LEANSEEK_HAS_avx2
    {"avx2", leanseek_table_avx2, has_avx2},
#endif
#ifdef LEANSEEK_HAS_avx512
    {"avx512", leanseek_table_avx512, has_avx512},
#endif
#ifdef LEANSEEK_HAS_neon
    {"neon", leanseek_table_neon, has_neon},
#endif
};
const int COUNT = sizeof(VARIANTS) / sizeof(VARIANTS[0]);

const leanseek_table *table(int32_t variant) { return VARIANTS[variant].table(); }

}  // namespace

LEANSEEK_API int32_t leanseek_abi(void) { return LEANSEEK_ABI; }

LEANSEEK_API const char *leanseek_variants(void) {
    return "generic"
#ifdef LEANSEEK_HAS_avx2
           " avx2"
#endif
#ifdef LEANSEEK_HAS_avx512
           " avx512"
#endif
#ifdef LEANSEEK_HAS_neon
           " neon"
#endif
        ;
}

LEANSEEK_API int32_t leanseek_variant(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (!strcmp(VARIANTS[i].name, name)) return VARIANTS[i].usable() ? i : -2;
    return -1;
}

LEANSEEK_API int32_t leanseek_rms_norm(int32_t variant, int32_t threads, int32_t type, const void *x,
                                       const void *residual, const void *weight, void *sum, void *out, int64_t rows,
                                       int64_t width, float eps) {
    return table(variant)->rms_norm(threads, type, x, residual, weight, sum, out, rows, width, eps);
}

LEANSEEK_API int32_t leanseek_rms_norm_backward(int32_t variant, int32_t threads, int32_t type, const void *x,
                                                const void *weight, const void *gradient, const void *more,
                                                void *x_gradient, void *weight_gradient, int64_t rows, int64_t width,
                                                float eps) {
    return table(variant)->rms_norm_backward(threads, type, x, weight, gradient, more, x_gradient, weight_gradient,
                                             rows, width, eps);
}

LEANSEEK_API int32_t leanseek_pack(int32_t variant, int32_t threads, int32_t type, int32_t bits, const void *weight,
                                   int64_t rows, int64_t width, void *codes, void *scales) {
    return table(variant)->pack(threads, type, bits, weight, rows, width, static_cast<uint8_t *>(codes), scales);
}

LEANSEEK_API int32_t leanseek_packed_linear(int32_t variant, int32_t threads, int32_t bits, const void *x, int64_t rows,
                                            int64_t inputs, const void *codes, const void *scales, int64_t outputs,
                                            void *out) {
    return table(variant)->packed_linear(threads, bits, static_cast<const float *>(x), rows, inputs,
                                         static_cast<const uint8_t *>(codes), scales, outputs,
                                         static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_packed_experts(int32_t variant, int32_t threads, int32_t bits, const void *x,
                                             int64_t tokens, int64_t dim, const void *weights, const void *chosen,
                                             int64_t per_token, int64_t experts, const void *gate_up_codes,
                                             const void *gate_up_scales, int64_t width, const void *down_codes,
                                             const void *down_scales, void *out) {
    return table(variant)->packed_experts(
        threads, bits, static_cast<const float *>(x), tokens, dim, static_cast<const float *>(weights),
        static_cast<const int64_t *>(chosen), per_token, experts, static_cast<const uint8_t *>(gate_up_codes),
        gate_up_scales, width, static_cast<const uint8_t *>(down_codes), down_scales, static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_decode(int32_t variant, int32_t threads, const void *stack, const void *batch) {
    return table(variant)->decode(threads, static_cast<const leanseek_stack *>(stack),
                                  static_cast<const leanseek_batch *>(batch));
}

LEANSEEK_API int32_t leanseek_panels_product(int32_t variant, int32_t threads, const void *panels, int64_t outputs,
                                             int64_t inputs, const void *x, int64_t rows, void *out) {
    return table(variant)->panels_product(threads, static_cast<const float *>(panels), outputs, inputs,
                                          static_cast<const float *>(x), rows, static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_expanded_attention(int32_t variant, int32_t threads, const void *queries,
                                                 const void *keys_values, const void *rope, const void *spans,
                                                 int64_t texts, int64_t tokens, int64_t keys, int64_t heads,
                                                 int64_t nope, int64_t turned, int64_t value, float scale, void *out) {
    return table(variant)->expanded_attention(
        threads, static_cast<const float *>(queries), static_cast<const float *>(keys_values),
        static_cast<const float *>(rope), static_cast<const int64_t *>(spans), texts, tokens, keys, heads, nope, turned,
        value, scale, static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_stored_linear(int32_t variant, int32_t threads, int32_t kind, const void *x, int64_t rows,
                                            int64_t inputs, const void *numbers, const void *scales, int64_t outputs,
                                            void *out) {
    return table(variant)->stored_linear(threads, kind, static_cast<const float *>(x), rows, inputs,
                                         static_cast<const uint8_t *>(numbers), static_cast<const float *>(scales),
                                         outputs, static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_stored_experts(int32_t variant, int32_t threads, int32_t kind, const void *x,
                                             int64_t tokens, int64_t dim, const void *mixing, const void *chosen,
                                             int64_t per_token, int64_t experts, const void *weights, int64_t width,
                                             void *out) {
    return table(variant)->stored_experts(threads, kind, static_cast<const float *>(x), tokens, dim,
                                          static_cast<const float *>(mixing), static_cast<const int64_t *>(chosen),
                                          per_token, experts, weights, width, static_cast<float *>(out));
}

LEANSEEK_API int32_t leanseek_learn_forward(int32_t variant, int32_t threads, const void *experts) {
    return table(variant)->learn_forward(threads, static_cast<const leanseek_experts *>(experts));
}

LEANSEEK_API int32_t leanseek_learn_backward(int32_t variant, int32_t threads, const void *experts) {
    return table(variant)->learn_backward(threads, static_cast<const leanseek_experts *>(experts));
}

LEANSEEK_API int32_t leanseek_attend_forward(int32_t variant, int32_t threads, const void *attention) {
    return table(variant)->attend_forward(threads, static_cast<const leanseek_attention *>(attention));
}

LEANSEEK_API int32_t leanseek_attend_backward(int32_t variant, int32_t threads, const void *attention) {
    return table(variant)->attend_backward(threads, static_cast<const leanseek_attention *>(attention));
}

LEANSEEK_API int32_t leanseek_likelihood(int32_t variant, int32_t threads, const void *logits, const void *targets,
                                         int64_t rows, int64_t width, float scale, void *found, void *sums) {
    return table(variant)->likelihood(threads, static_cast<const float *>(logits),
                                      static_cast<const int64_t *>(targets), rows, width, scale,
                                      static_cast<float *>(found), static_cast<float *>(sums));
}

LEANSEEK_API int32_t leanseek_likelihood_backward(int32_t variant, int32_t threads, const void *logits,
                                                  const void *targets, int64_t rows, int64_t width, float scale,
                                                  const void *sums, const void *gradient, void *logits_gradient) {
    return table(variant)->likelihood_backward(
        threads, static_cast<const float *>(logits), static_cast<const int64_t *>(targets), rows, width, scale,
        static_cast<const float *>(sums), static_cast<const float *>(gradient), static_cast<float *>(logits_gradient));
}

LEANSEEK_API int32_t leanseek_stream(int32_t variant, int32_t threads, const void *data, int64_t bytes, void *sum) {
    return table(variant)->stream(threads, data, bytes, sum);
}

LEANSEEK_API int32_t leanseek_peak(int32_t variant, int32_t threads, int64_t pieces, void *out) {
    return table(variant)->peak(threads, pieces, out);
}
