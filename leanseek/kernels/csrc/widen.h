// Numbers as checkpoints store them, bf16 and fp8 (e4m3), made fp32 in registers, 64 of a row at a time.
//
// Each instruction set gives the 64 in the order that costs it least: `widened_place` says where each comes to stand,
// and what they are multiplied with is laid out alike beforehand.
#pragma once
#include "halves.h"
#include "lanes.h"

namespace {

enum Kind { F32_NUMBERS = 0, BF16_NUMBERS = 1, FP8_NUMBERS = 2 };
const int64_t BLOCK = 64;  // numbers that are widened together

inline int64_t in_blocks(int64_t count) { return (count + BLOCK - 1) / BLOCK; }
inline int64_t number_bytes(int kind) { return kind == F32_NUMBERS ? 4 : kind == BF16_NUMBERS ? 2 : 1; }

#if defined(LEANSEEK_IS_avx512)

// e4m3's 7 lower bits -> upper and lower byte of the same number in bf16, which has room for it.
struct Bytes {
    alignas(64) uint8_t upper[128], lower[128];
    constexpr Bytes() : upper(), lower() {
        for (int i = 0; i < 128; i++) {
            int bits = (i << 4) + (120 << 7);
            if (i < 8) {  // below e4m3's smallest normal number, i / 512
                int exponent = 118, mantissa = i;
                while (mantissa && mantissa < 8) mantissa *= 2, exponent--;
                bits = i ? ((exponent + 3) << 7) + ((mantissa & 7) << 4) : 0;
            }
            if (i == 127) bits = 0x7fc0;
            upper[i] = uint8_t(bits >> 8), lower[i] = uint8_t(bits & 255);
        }
    }
};
constexpr Bytes E4M3;

// Two bf16 numbers in 32 bits: the even ones, and the odd ones.
inline void pairs(__m512i both, Lanes *out) {
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000))));
}

template <int KIND> inline void widen(const uint8_t *from, Lanes *out) {
    if (KIND == BF16_NUMBERS) {
        pairs(_mm512_loadu_si512(from), out);
        pairs(_mm512_loadu_si512(from + 64), out + 2);
        return;
    }
    const __m512i v = _mm512_loadu_si512(from);
    const __m512i upper = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3.upper), v, _mm512_load_si512(E4M3.upper + 64));
    const __m512i lower = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3.lower), v, _mm512_load_si512(E4M3.lower + 64));
    // upper | (v & 0x80): the sign
    const __m512i with_sign = _mm512_ternarylogic_epi32(upper, v, _mm512_set1_epi8(char(0x80)), 0xf8);
    pairs(_mm512_unpacklo_epi8(lower, with_sign), out);
    pairs(_mm512_unpackhi_epi8(lower, with_sign), out + 2);
}

template <int KIND> inline int64_t widened_place(int64_t i) {
    if (KIND == BF16_NUMBERS) return i / 32 * 32 + i % 2 * 16 + i % 32 / 2;
    return i % 16 / 8 * 32 + i % 2 * 16 + i / 16 * 4 + i % 8 / 2;
}

#else

// e4m3's bits as those of fp16 stand for 1 / 256 of the number; 127 is none.
inline int16_t as_half(int8_t number) { return int16_t(uint16_t(uint16_t(int16_t(number)) << 7) & 0xbfff); }

#if defined(LEANSEEK_IS_avx2)

inline __m256 scaled_up(__m128i halves) {
    const __m256 v = _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0f));
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
    return _mm256_or_ps(v, _mm256_cmp_ps(size, _mm256_set1_ps(448.0f), _CMP_GT_OQ));  // all bits: not a number
}

template <int KIND> inline void widen(const uint8_t *from, Lanes *out) {
    for (int q = 0; q < 4; q++) {
        if (KIND == BF16_NUMBERS) {
            const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from) + q);
            out[q].lo = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
            out[q].hi = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(int(0xffff0000))));
        } else {
            const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from) + q));
            const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xbfff)));
            out[q] = {scaled_up(_mm256_castsi256_si128(halves)), scaled_up(_mm256_extracti128_si256(halves, 1))};
        }
    }
}

template <int KIND> inline int64_t widened_place(int64_t i) {
    return KIND == BF16_NUMBERS ? i / 16 * 16 + i % 2 * 8 + i % 16 / 2 : i;
}

#elif defined(LEANSEEK_IS_neon)

inline float32x4_t scaled_up(uint16x4_t halves) {
    const float32x4_t v = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(halves)), 256.0f);
    const uint32x4_t none = vcgtq_f32(vabsq_f32(v), vdupq_n_f32(448.0f));
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(v), none));
}

template <int KIND> inline void widen(const uint8_t *from, Lanes *out) {
    for (int q = 0; q < 4; q++)
        for (int h = 0; h < 2; h++) {
            if (KIND == BF16_NUMBERS) {
                const uint16x8_t some = vreinterpretq_u16_u8(vld1q_u8(from + (2 * q + h) * 16));
                out[q].v[2 * h] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(some), 16));
                out[q].v[2 * h + 1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(some), 16));
            } else {
                const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(from + (2 * q + h) * 8)));
                const uint16x8_t halves =
                    vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(wide, 7)), vdupq_n_u16(0xbfff));
                out[q].v[2 * h] = scaled_up(vget_low_u16(halves));
                out[q].v[2 * h + 1] = scaled_up(vget_high_u16(halves));
            }
        }
}

template <int KIND> inline int64_t widened_place(int64_t i) { return i; }

#else

template <int KIND> inline void widen(const uint8_t *from, Lanes *out) {
    for (int i = 0; i < BLOCK; i++) {
        float &to = out[i / WIDE].v[i % WIDE];
        if (KIND == BF16_NUMBERS) {
            bf16 number;
            memcpy(&number, from + 2 * i, 2);
            to = to_float(number);
        } else {
            to = (from[i] & 127) == 127 ? NAN : half_to_float(uint16_t(as_half(int8_t(from[i])))) * 256.0f;
        }
    }
}

template <int KIND> inline int64_t widened_place(int64_t i) { return i; }

#endif
#endif

template <> inline void widen<F32_NUMBERS>(const uint8_t *from, Lanes *out) {
    for (int q = 0; q < 4; q++) out[q] = load(reinterpret_cast<const float *>(from) + q * WIDE);
}

}  // namespace
