// The tile with AVX2: pairs of products in int16, which cannot overflow, see below; eight rows at a time.
#pragma once
#include <immintrin.h>

namespace {

const int TILE = 8, ABREAST = 1;

template <int BITS, int M, int P>
void tile(const Packed &weight, int64_t p, const Rounded &x, const int64_t *rows, float *out, int64_t stride) {
    static_assert(P == 1, "one panel at a time");
    const uint8_t *codes = weight.panel(p);
    const float *steps = weight.of_rows(p);
    const int8_t *scales = weight.of_groups(p);
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), high = _mm256_set1_epi8(char(0x80));
    for (int h = 0; h < 2; h++) {
        __m256 total[M];
        for (int m = 0; m < M; m++) total[m] = _mm256_setzero_ps();
        for (int64_t g = 0; g < x.groups; g++) {
            __m256i w[8];
            for (int j = 0; j < (BITS == 4 ? 4 : 8); j++) {
                const uint8_t *from = codes + g * GROUP * PANEL * BITS / 8 + j * 64 + h * 32;
                const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
                if (BITS == 4) {
                    w[j] = _mm256_and_si256(loaded, low);
                    w[j + 4] = _mm256_and_si256(_mm256_srli_epi16(loaded, 4), low);
                } else {
                    w[j] = _mm256_xor_si256(loaded, high);
                }
            }
            __m256 s = _mm256_setzero_ps();
            if (BITS == 4) {
                const int8_t *eight = scales + g * PANEL + h * 8;
                s = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(eight))));
            }
            for (int m = 0; m < M; m++) {
                const int64_t at = rows[m] * x.groups + g;
                __m256i sum = _mm256_setzero_si256();
                for (int j = 0; j < 8; j++) {
                    int32_t four;
                    memcpy(&four, x.numbers + at * GROUP + j * 4, 4);
                    const __m256i a = _mm256_set1_epi32(four);
                    if (BITS == 4) {
                        // Eight times 2 * 15 * 127 is 30480.
                        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[j], a));
                    } else {
                        // 2 * 128 * 127 is 32512: the sign moves to the activations.
                        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(a, w[j]));
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                    }
                }
                if (BITS == 4)
                    sum = _mm256_add_epi32(_mm256_madd_epi16(sum, ones), _mm256_set1_epi32(x.offsets[at]));
                const __m256 scale =
                    BITS == 4 ? _mm256_mul_ps(s, _mm256_set1_ps(x.scales[at])) : _mm256_set1_ps(x.scales[at]);
                total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, total[m]);
            }
        }
        for (int m = 0; m < M; m++)
            _mm256_storeu_ps(out + m * stride + h * 8, _mm256_mul_ps(total[m], _mm256_loadu_ps(steps + h * 8)));
    }
}

}  // namespace
