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

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
