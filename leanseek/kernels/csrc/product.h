// Products of fp32 rows with weights in panels: [panels, inputs, 16], a panel holding 16 outputs side by side.
//
// Every output is one sum, in the order of the inputs, whatever rows or outputs are computed beside it.
#pragma once
#include "lanes.h"

namespace {

const int ROWS = 8;  // rows that a panel is multiplied with while it is in the registers

// out [M, 16 P] = (MORE ? out : 0) + the rows' numbers times `count` rows of 16 P, which stand `step` apart.
template <int M, int P, bool MORE>
inline void panel_tile(const float *const *x, const float *w, int64_t apart, int64_t step, int64_t count, float *out,
                       int64_t stride) {
    Lanes sums[M][P];
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = MORE ? load(out + m * stride + p * WIDE) : all(0.0f);
    for (int64_t k = 0; k < count; k++) {
        Lanes each[P];
        for (int p = 0; p < P; p++) each[p] = load(w + p * apart + k * step);
        for (int m = 0; m < M; m++) {
            const Lanes one = all(x[m][k]);
            for (int p = 0; p < P; p++) sums[m][p] = fma(each[p], one, sums[m][p]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) store(out + m * stride + p * WIDE, sums[m][p]);
}

// Some panels with M rows: P at a time as long as there are so many, then half as many.
template <int M, int P>
void plain_strip(const float *w, int64_t inputs, int64_t panels, const float *const *x, float *out, int64_t stride) {
    const int64_t apart = inputs * WIDE;
    int64_t p = 0;
    for (; p + P <= panels; p += P)
        panel_tile<M, P, false>(x, w + p * apart, apart, WIDE, inputs, out + p * WIDE, stride);
    if constexpr (P > 1) plain_strip<M, P / 2>(w + p * apart, inputs, panels - p, x, out + p * WIDE, stride);
}

// out [count, 16 panels] = rows times some panels; up to ROWS rows.
template <int M = ROWS>
void plain_product(const float *w, int64_t inputs, int64_t panels, const float *const *x, int count, float *out,
                   int64_t stride) {
    if (count == M) return plain_strip<M, Wide<M>::panels>(w, inputs, panels, x, out, stride);
    if constexpr (M > 1) plain_product<M - 1>(w, inputs, panels, x, count, out, stride);
}

}  // namespace
