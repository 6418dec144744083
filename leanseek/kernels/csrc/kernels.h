// The C ABI of the native kernels. Whoever calls has checked shapes, strides and bounds; nothing here throws.
#pragma once
#include <stdint.h>

// Changes with every change of a signature or a layout; leanseek/kernels/native.py asks for the same.
#define LEANSEEK_ABI 1

#define LEANSEEK_API extern "C" __attribute__((visibility("default")))

enum { LEANSEEK_F32 = 0, LEANSEEK_BF16 = 1 };

LEANSEEK_API int32_t leanseek_abi(void);
// The instruction sets that were compiled, the best last, with blanks between.
LEANSEEK_API const char *leanseek_variants(void);
// The number of a variant, or -1 if it was not compiled, or -2 if this processor lacks it.
LEANSEEK_API int32_t leanseek_variant(const char *name);

// How long an idle worker looks out for work before it sleeps, in microseconds.
LEANSEEK_API void leanseek_spin_us(int32_t us);

// `threads` of every call: the most that it may use, this one included.
LEANSEEK_API void leanseek_rms_norm(int32_t variant, int32_t threads, int32_t type, const void *x, const void *residual,
                                    const void *weight, void *sum, void *out, int64_t rows, int64_t width, float eps);
