// fp16 by arithmetic on its bits, where the processor has no instruction for it.
#pragma once
#include "numbers.h"

namespace {

inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    uint32_t bits;
    float out;
    if (exponent == 0) {
        out = float(mantissa) * 5.9604644775390625e-8f;
        return sign ? -out : out;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    memcpy(&out, &bits, 4);
    return out;
}

}  // namespace
