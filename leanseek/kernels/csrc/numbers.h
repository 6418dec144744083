// Numbers of several types as fp32, and back. Nothing from the C++ library: see variant.cpp.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

inline void from_float(float value, float &out) { out = value; }

// To the nearest, ties to even, as torch does; not a number stays that.
inline void from_float(float value, bf16 &out) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = uint16_t(value != value ? 0x7fc0 : rounded);
}

// e^x with about 2 units in the last place, for loops that the compiler turns into wide instructions.
inline float power(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
