// The tile with AVX-512 VNNI: a lane is a row, four numbers of it at a time against four that all rows share.
#pragma once
#include <immintrin.h>

namespace {

// Two panels use each number that is loaded twice: loads, and not multiplications, are what there are too few of.
const int TILE = 6, ABREAST = 2;
// By itself the processor looks less far ahead than memory asks for, and never beyond a page.
const int AHEAD = 4096, SCALES_AHEAD = 512;  // bytes

// Four numbers of a token, in every lane.
inline __m512i shared(const int8_t *numbers) {
    int32_t four;
    memcpy(&four, numbers, 4);
    return _mm512_set1_epi32(four);
}

template <int BITS, int M, int P>
__attribute__((noinline)) void tile(const Packed &w, int64_t p, const Rounded &x, const int64_t *rows, float *out, int64_t stride) {
    const int8_t *a[M];
    const float *d[M];
    const int32_t *z[M];
    const uint8_t *codes[P];
    const int8_t *scales[P];
    __m512 total[M][P];
    for (int q = 0; q < P; q++) codes[q] = w.panel(p + q), scales[q] = w.of_groups(p + q);
    for (int m = 0; m < M; m++) {
        a[m] = x.numbers + rows[m] * x.groups * GROUP;
        d[m] = x.scales + rows[m] * x.groups;
        z[m] = x.offsets + rows[m] * x.groups;
        for (int q = 0; q < P; q++) total[m][q] = _mm512_setzero_ps();
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t g = 0; g < x.groups; g++) {
        // Behind the end of these panels come the next ones, not those that are multiplied abreast.
        const int64_t ahead = AHEAD + (g + AHEAD / (64 * BITS) < x.groups ? 0 : (P - 1) * x.groups * 64 * BITS);
        __m512i sum[M][P];
        __m512 s[P];
        for (int m = 0; m < M; m++)
            for (int q = 0; q < P; q++) sum[m][q] = _mm512_set1_epi32(z[m][g]);
#pragma GCC unroll 8
        for (int j = 0; j < BITS; j++) {
            __m512i now[P], later[P];
            for (int q = 0; q < P; q++) {
                __builtin_prefetch(codes[q] + (g * BITS + j) * 64 + ahead);
                now[q] = later[q] = _mm512_loadu_si512(codes[q] + (g * BITS + j) * 64);
                if (BITS == 4) {
                    later[q] = _mm512_and_si512(_mm512_srli_epi16(now[q], 4), low);
                    now[q] = _mm512_and_si512(now[q], low);
                }
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const __m512i four = shared(a[m] + g * GROUP + j * 4);
                for (int q = 0; q < P; q++) sum[m][q] = _mm512_dpbusd_epi32(sum[m][q], now[q], four);
            }
            if (BITS == 8) continue;
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const __m512i four = shared(a[m] + g * GROUP + j * 4 + 16);
                for (int q = 0; q < P; q++) sum[m][q] = _mm512_dpbusd_epi32(sum[m][q], later[q], four);
            }
        }
        for (int q = 0; BITS == 4 && q < P; q++) {
            const int8_t *of_rows = scales[q] + g * PANEL;
            __builtin_prefetch(of_rows + SCALES_AHEAD);
            s[q] = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(of_rows))));
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const __m512 e = _mm512_set1_ps(d[m][g]);
            for (int q = 0; q < P; q++) {
                const __m512 scale = BITS == 4 ? _mm512_mul_ps(s[q], e) : e;
                total[m][q] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][q]), scale, total[m][q]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int q = 0; q < P; q++)
            _mm512_storeu_ps(out + m * stride + q * PANEL,
                             _mm512_mul_ps(total[m][q], _mm512_loadu_ps(w.of_rows(p + q))));
}

}  // namespace
