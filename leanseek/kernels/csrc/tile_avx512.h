// The tile with AVX-512 VNNI: a lane is a row, four numbers of it at a time against four that all rows share.
#pragma once
#include <immintrin.h>

namespace {

template <int BITS, int M>
void tile(const uint8_t *codes, const void *scales, const Rounded &x, const int64_t *rows, float (*out)[PANEL]) {
    const int8_t *a[M];
    const float *d[M];
    const int32_t *z[M];
    __m512 total[M];
    for (int m = 0; m < M; m++) {
        a[m] = x.numbers + rows[m] * x.groups * GROUP;
        d[m] = x.scales + rows[m] * x.groups;
        z[m] = x.sums + rows[m] * x.groups;
        total[m] = _mm512_setzero_ps();
    }
    const __m512i low = _mm512_set1_epi8(15);
    const uint16_t *halves = static_cast<const uint16_t *>(scales);
    for (int64_t g = 0; g < x.groups; g++) {
        __m512i w[8];
        if (BITS == 4) {
            for (int j = 0; j < 4; j++) {
                const __m512i pair = _mm512_loadu_si512(codes + g * 256 + j * 64);
                w[j] = _mm512_and_si512(pair, low);
                w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
            }
        } else {
            for (int j = 0; j < 8; j++) w[j] = _mm512_loadu_si512(codes + g * 512 + j * 64);
        }
        __m512 s = _mm512_setzero_ps();
        if (BITS == 4) s = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves + g * PANEL)));
        for (int m = 0; m < M; m++) {
            // The codes are 8 (128) above the weights: that is taken off all numbers' sum at once.
            __m512i sum = _mm512_set1_epi32(z[m][g] * (BITS == 4 ? -8 : -128));
            for (int j = 0; j < 8; j++) {
                int32_t four;
                memcpy(&four, a[m] + g * GROUP + j * 4, 4);
                sum = _mm512_dpbusd_epi32(sum, w[j], _mm512_set1_epi32(four));
            }
            const __m512 scale = BITS == 4 ? _mm512_mul_ps(s, _mm512_set1_ps(d[m][g])) : _mm512_set1_ps(d[m][g]);
            total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[m]);
        }
    }
    for (int m = 0; m < M; m++) {
        if (BITS == 8) total[m] = _mm512_mul_ps(total[m], _mm512_loadu_ps(static_cast<const float *>(scales)));
        _mm512_storeu_ps(out[m], total[m]);
    }
}

}  // namespace
