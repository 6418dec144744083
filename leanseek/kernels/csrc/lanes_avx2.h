// Sixteen fp32 numbers with AVX2: two registers.
#pragma once
#include <immintrin.h>

namespace {

struct Lanes {
    __m256 lo, hi;
};

inline Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float *to, Lanes v) { _mm256_storeu_ps(to, v.lo), _mm256_storeu_ps(to + 8, v.hi); }
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Lanes quotient(Lanes a, Lanes b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline __m256 nought_below(__m256 v, __m256 x, float bound) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_LT_OQ), v);
}
inline Lanes nought_below(Lanes v, Lanes x, float bound) {
    return {nought_below(v.lo, x.lo, bound), nought_below(v.hi, x.hi, bound)};
}
inline __m256 power_of_two(__m256 shifted) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
inline Lanes power_of_two(Lanes shifted) { return {power_of_two(shifted.lo), power_of_two(shifted.hi)}; }

// to[j][g] is the sum of sums[4 g + j]: halves are added as often as there is more than one number left.
inline void quads(const Lanes *sums, float *const *to) {
    for (int j = 0; j < 4; j += 2) {
        __m256 a[4];
        for (int g = 0; g < 4; g++) {
            const __m256 one = _mm256_add_ps(sums[4 * g + j].lo, sums[4 * g + j].hi);
            const __m256 two = _mm256_add_ps(sums[4 * g + j + 1].lo, sums[4 * g + j + 1].hi);
            a[g] = _mm256_add_ps(_mm256_permute2f128_ps(one, two, 0x20), _mm256_permute2f128_ps(one, two, 0x31));
        }
        const __m256 d = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        _mm_storeu_ps(to[j], _mm256_castps256_ps128(d));
        _mm_storeu_ps(to[j + 1], _mm256_extractf128_ps(d, 1));
    }
}

// Panels that a tile of so many rows takes at once: as many sums as the registers hold.
template <int M> struct Wide { static const int panels = M == 1 ? 4 : M <= 3 ? 2 : 1; };

}  // namespace
