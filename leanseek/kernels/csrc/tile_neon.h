// The tile with ARM's dot products: four rows a register, four numbers of each at a time.
#pragma once
#include <arm_neon.h>

namespace {

template <int LANE> inline int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t a) {
    return vdotq_laneq_s32(sum, w, a, LANE);
}

const int TILE = 8, ABREAST = 1;

template <int BITS, int M, int P>
void tile(const Packed &weight, int64_t p, const Rounded &x, const int64_t *rows, float *out, int64_t stride) {
    static_assert(P == 1, "one panel at a time");
    const uint8_t *codes = weight.panel(p);
    const float *steps = weight.of_rows(p);
    const int8_t *scales = weight.of_groups(p);
    for (int v = 0; v < 4; v++) {
        float32x4_t total[M];
        for (int m = 0; m < M; m++) total[m] = vdupq_n_f32(0);
        for (int64_t g = 0; g < x.groups; g++) {
            int8x16_t w[8];
            for (int j = 0; j < (BITS == 4 ? 4 : 8); j++) {
                const uint8x16_t loaded = vld1q_u8(codes + g * GROUP * PANEL * BITS / 8 + j * 64 + v * 16);
                if (BITS == 4) {
                    w[j] = vreinterpretq_s8_u8(vandq_u8(loaded, vdupq_n_u8(15)));
                    w[j + 4] = vreinterpretq_s8_u8(vshrq_n_u8(loaded, 4));
                } else {
                    w[j] = vreinterpretq_s8_u8(veorq_u8(loaded, vdupq_n_u8(0x80)));
                }
            }
            float32x4_t s = vdupq_n_f32(1);
            if (BITS == 4) {
                int32_t four;
                memcpy(&four, scales + g * PANEL + v * 4, 4);
                const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
                s = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
            }
            for (int m = 0; m < M; m++) {
                const int64_t at = rows[m] * x.groups + g;
                const int8x16_t a = vld1q_s8(x.numbers + at * GROUP), b = vld1q_s8(x.numbers + at * GROUP + 16);
                int32x4_t sum = vdupq_n_s32(BITS == 4 ? x.offsets[at] : 0);
                sum = dot<0>(sum, w[0], a);
                sum = dot<1>(sum, w[1], a);
                sum = dot<2>(sum, w[2], a);
                sum = dot<3>(sum, w[3], a);
                sum = dot<0>(sum, w[4], b);
                sum = dot<1>(sum, w[5], b);
                sum = dot<2>(sum, w[6], b);
                sum = dot<3>(sum, w[7], b);
                total[m] = vfmaq_f32(total[m], vcvtq_f32_s32(sum), vmulq_n_f32(s, x.scales[at]));
            }
        }
        for (int m = 0; m < M; m++)
            vst1q_f32(out + m * stride + v * 4, vmulq_f32(total[m], vld1q_f32(steps + v * 4)));
    }
}

}  // namespace
