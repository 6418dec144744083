// Products with packed weights, whose layout leanseek/kernels/packed.py states, and activations that are rounded to int8
// in groups of 32 for them.
#pragma once
#include "numbers.h"
#include "room.h"

namespace {

const int PANEL = 16;  // rows of a weight that stand side by side
const int GROUP = 32;  // numbers that share a scale

// Activations of some tokens: numbers [rows, groups, 32], scales and offsets [rows, groups]. Codes are 8 (128) above
// the weights, which makes a product too large by so many times the numbers' sum: the offset is minus that.
struct Rounded {
    int8_t *numbers;
    float *scales;
    int32_t *offsets;
    int64_t groups;
    int bits;
};

// A packed weight, or one expert's: panels of 16 rows.
struct Packed {
    const uint8_t *codes;
    const void *scales;
    int bits;
    int64_t groups;

    const uint8_t *panel(int64_t p) const { return codes + p * groups * GROUP * PANEL * bits / 8; }
    // A panel's scales: one fp32 number for each row, which is multiplied with what is added up of its groups ...
    const float *of_rows(int64_t p) const {
        return reinterpret_cast<const float *>(static_cast<const char *>(scales) + p * scale_bytes(bits, groups));
    }
    // ... and in int4, behind them, a whole number for each row of each group.
    const int8_t *of_groups(int64_t p) const { return reinterpret_cast<const int8_t *>(of_rows(p) + PANEL); }
    Packed from(int64_t p) const { return {panel(p), of_rows(p), bits, groups}; }

    static int64_t scale_bytes(int bits, int64_t groups) { return PANEL * (4 + (bits == 4 ? groups : 0)); }
};

inline int64_t groups_of(int64_t width) { return (width + GROUP - 1) / GROUP; }
inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

}  // namespace

#if defined(LEANSEEK_IS_avx512)
#include "tile_avx512.h"
#elif defined(LEANSEEK_IS_avx2)
#include "tile_avx2.h"
#elif defined(LEANSEEK_IS_neon)
#include "tile_neon.h"
#else
#include "tile_generic.h"
#endif

namespace {

// Round a group. What is not finite makes a scale that is not a number, so that it is seen in the result.
#if defined(LEANSEEK_IS_avx512)

inline void round_group(const float *x, const Rounded &to, int64_t at) {
    const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + PANEL);
    const __m512 one = _mm512_abs_ps(first), other = _mm512_abs_ps(second), top = _mm512_set1_ps(3.4028234663852886e38f);
    const bool wrong = (_mm512_cmp_ps_mask(one, top, _CMP_LE_OQ) & _mm512_cmp_ps_mask(other, top, _CMP_LE_OQ)) != 0xffff;
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(one, other));
    __m128i *numbers = reinterpret_cast<__m128i *>(to.numbers + at * GROUP);
    if (wrong || largest < 1e-36f) {
        memset(numbers, 0, GROUP);
        to.scales[at] = wrong ? NAN : 0.0f;
        to.offsets[at] = 0;
        return;
    }
    const __m512 inverse = _mm512_set1_ps(127.0f / largest);
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));  // to the nearest, ties to even
    const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    _mm_storeu_si128(numbers, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128(numbers + 1, _mm512_cvtepi32_epi8(high));
    to.scales[at] = largest / 127.0f;
    to.offsets[at] = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high)) * (to.bits == 4 ? -8 : -128);
}

#else

inline void round_group(const float *x, const Rounded &to, int64_t at) {
    int8_t *numbers = to.numbers + at * GROUP;
    float most[PANEL] = {0};
    int wrong = 0;
    for (int h = 0; h < GROUP; h += PANEL)
        for (int l = 0; l < PANEL; l++) {
            const float a = fabsf(x[h + l]);
            most[l] = a > most[l] ? a : most[l];
            wrong |= !(a <= 3.4028234663852886e38f);
        }
    for (int half = PANEL / 2; half; half /= 2)
        for (int l = 0; l < half; l++) most[l] = most[l] > most[l + half] ? most[l] : most[l + half];
    const float largest = most[0];
    // Below this 127 / largest is no number; such a group is nought beside any other.
    if (wrong || largest < 1e-36f) {
        memset(numbers, 0, GROUP);
        to.scales[at] = wrong ? NAN : 0.0f;
        to.offsets[at] = 0;
        return;
    }
    const float inverse = 127.0f / largest;
    int32_t total = 0;
    for (int i = 0; i < GROUP; i++) {
        // To the nearest, ties to even: adding 1.5 * 2^23 leaves no room for a fraction.
        const float shifted = x[i] * inverse + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        const int32_t value = bits - 0x4b400000;  // what 1.5 * 2^23 itself looks like
        numbers[i] = int8_t(value);
        total += value;
    }
    to.scales[at] = largest / 127.0f;
    to.offsets[at] = total * (to.bits == 4 ? -8 : -128);
}

#endif

inline void round_row(const float *x, int64_t width, const Rounded &to, int64_t row) {
    for (int64_t g = 0; g < to.groups; g++) {
        const int64_t at = row * to.groups + g, first = g * GROUP;
        if (first + GROUP <= width) {
            round_group(x + first, to, at);
        } else {
            float padded[GROUP] = {0};
            memcpy(padded, x + first, size_t(width - first) * sizeof(float));
            round_group(padded, to, at);
        }
    }
}

// Multiply panels that are in the registers together with as many rows of activations as there are.
template <int BITS, int P, int M>
inline void fitting(const Packed &w, int64_t p, const Rounded &x, const int64_t *rows, int count, float *out,
                    int64_t stride) {
    if (count == M) return tile<BITS, M, P>(w, p, x, rows, out, stride);
    if constexpr (M > 1) fitting<BITS, P, M - 1>(w, p, x, rows, count, out, stride);
}

// Multiply some panels with up to TILE rows of activations; a row of `out` gets 16 numbers of each panel.
inline void multiply(const Packed &w, int64_t p, int64_t panels, const Rounded &x, const int64_t *rows, int count,
                     float *out, int64_t stride) {
    int64_t q = 0;
    for (; q + ABREAST <= panels; q += ABREAST)
        if (w.bits == 4) fitting<4, ABREAST, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
        else fitting<8, ABREAST, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
    for (; q < panels; q++)
        if (w.bits == 4) fitting<4, 1, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
        else fitting<8, 1, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
}

inline size_t rounded_bytes(int64_t rows, int64_t groups) {
    return Room::bytes<int8_t>(rows * groups * GROUP) + Room::bytes<float>(rows * groups) +
           Room::bytes<int32_t>(rows * groups);
}

inline Rounded take_rounded(Room &room, int64_t rows, int64_t groups, int bits) {
    Rounded r;
    r.numbers = room.take<int8_t>(rows * groups * GROUP);
    r.scales = room.take<float>(rows * groups);
    r.offsets = room.take<int32_t>(rows * groups);
    r.groups = groups, r.bits = bits;
    return r;
}

}  // namespace
