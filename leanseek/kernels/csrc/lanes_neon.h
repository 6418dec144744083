// Sixteen fp32 numbers with NEON: four registers.
#pragma once
#include <arm_neon.h>

namespace {

struct Lanes {
    float32x4_t v[4];
};

template <class F> inline Lanes each(F of) { return {{of(0), of(1), of(2), of(3)}}; }
inline Lanes all(float value) {
    return each([=](int) { return vdupq_n_f32(value); });
}
inline Lanes load(const float *from) {
    return each([=](int i) { return vld1q_f32(from + 4 * i); });
}
inline void store(float *to, Lanes v) {
    for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, v.v[i]);
}
inline Lanes add(Lanes a, Lanes b) {
    return each([=](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Lanes sub(Lanes a, Lanes b) {
    return each([=](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Lanes mul(Lanes a, Lanes b) {
    return each([=](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Lanes quotient(Lanes a, Lanes b) {
    return each([=](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return each([=](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Lanes larger(Lanes a, Lanes b) {
    return each([=](int i) { return vmaxq_f32(a.v[i], b.v[i]); });
}
inline Lanes smaller(Lanes a, Lanes b) {
    return each([=](int i) { return vminq_f32(a.v[i], b.v[i]); });
}
inline Lanes nought_below(Lanes v, Lanes x, float bound) {
    return each([=](int i) {
        const uint32x4_t below = vcltq_f32(x.v[i], vdupq_n_f32(bound));
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v.v[i]), below));
    });
}
inline Lanes power_of_two(Lanes shifted) {
    return each([=](int i) {
        const int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(shifted.v[i]), vdupq_n_s32(127));
        return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
    });
}

// to[j][g] is the sum of sums[4 g + j].
inline void quads(const Lanes *sums, float *const *to) {
    for (int j = 0; j < 4; j++) {
        float32x4_t a[4];
        for (int g = 0; g < 4; g++) {
            const float32x4_t *v = sums[4 * g + j].v;
            a[g] = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
        }
        vst1q_f32(to[j], vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])));
    }
}

// Panels that a tile of so many rows takes at once: as many sums as the registers hold.
template <int M> struct Wide { static const int panels = M <= 2 ? 2 : 1; };

}  // namespace
