// fp16 by arithmetic on its bits: for packing, and where the processor has no instruction for it.
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

// To the nearest, ties to even; too large becomes infinite.
inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (bits < 0x38800000) {
        float a;
        memcpy(&a, &bits, 4);
        // 0.5 has fp16's smallest step as its last bit.
        const float shifted = a + 0.5f;
        uint32_t rounded;
        memcpy(&rounded, &shifted, 4);
        return uint16_t(sign | (rounded - 0x3f000000));
    }
    bits += 0xfff + ((bits >> 13) & 1);
    return uint16_t(sign | ((bits - 0x38000000) >> 13));
}

}  // namespace
