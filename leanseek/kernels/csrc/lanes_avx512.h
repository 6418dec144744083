// Sixteen fp32 numbers with AVX-512: one register.
#pragma once
#include <immintrin.h>

namespace {

typedef __m512 Lanes;

inline Lanes all(float value) { return _mm512_set1_ps(value); }
inline Lanes load(const float *from) { return _mm512_loadu_ps(from); }
inline void store(float *to, Lanes v) { _mm512_storeu_ps(to, v); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes sub(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes quotient(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
inline Lanes nought_below(Lanes v, Lanes x, float bound) {
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, all(bound), _CMP_LT_OQ), _mm512_setzero_ps());
}
inline Lanes power_of_two(Lanes shifted) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}

// Lane 4 j + g is the sum of sums[4 g + j]: halves are added as often as there is more than one number left.
inline void quads(const Lanes *sums, float *const *to) {
    Lanes a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = add(_mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0x44),
                   _mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0xEE));
    for (int i = 0; i < 4; i++)
        b[i] = add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                   _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
    for (int i = 0; i < 2; i++)
        c[i] = add(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44), _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xEE));
    const Lanes d = add(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD));
    _mm_storeu_ps(to[0], _mm512_castps512_ps128(d));
    _mm_storeu_ps(to[1], _mm512_extractf32x4_ps(d, 1));
    _mm_storeu_ps(to[2], _mm512_extractf32x4_ps(d, 2));
    _mm_storeu_ps(to[3], _mm512_extractf32x4_ps(d, 3));
}

// Panels that a tile of so many rows takes at once: as many sums as the registers hold.
template <int M> struct Wide { static const int panels = M <= 2 ? 8 : M <= 4 ? 4 : 2; };

}  // namespace
