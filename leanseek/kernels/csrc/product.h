// Products of fp32 rows with weights in panels: [panels, inputs, 16], a panel holding 16 outputs side by side.
//
// Every output is one sum, in the order of the inputs, whatever rows or outputs are computed beside it.
#pragma once
#include "lanes.h"

namespace {

const int ROWS = 8;  // rows that a panel is multiplied with while it is in the registers

// A weight; `inputs` numbers of a row go in and `outputs` come out.
struct Matrix {
    const float *panels;
    int64_t outputs, inputs;

    Matrix part(int64_t index) const {  // of a stack
        return {panels + index * in_lanes(outputs) * inputs, outputs, inputs};
    }
};

// Rows, `stride` numbers apart, or those of them that are listed.
struct RowsIn {
    const float *first;
    int64_t stride;
    const int32_t *listed;

    const float *operator[](int64_t r) const { return first + (listed ? listed[r] : r) * stride; }
};

// out [M, 16 P] = (MORE ? out : 0) + the rows' numbers times `count` rows of 16 P, which stand `step` apart.
template <int M, int P, bool MORE>
inline void tile(const float *const *x, const float *w, int64_t apart, int64_t step, int64_t count, float *out,
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

// Whole panels from `p` to `end`, P at a time as long as there are so many, then half as many; returns where it ended.
template <int M, int P>
inline int64_t panels_of(const Matrix &w, const float *const *x, int64_t p, int64_t end, float *out, int64_t stride) {
    const int64_t apart = w.inputs * WIDE;
    for (; p + P <= end; p += P)
        tile<M, P, false>(x, w.panels + p * apart, apart, WIDE, w.inputs, out + p * WIDE, stride);
    if constexpr (P > 1) p = panels_of<M, P / 2>(w, x, p, end, out, stride);
    return p;
}

// The panels [begin, end) of a weight with M rows.
template <int M>
void strip(const Matrix &w, const float *const *x, int64_t begin, int64_t end, float *out, int64_t stride) {
    const int64_t apart = w.inputs * WIDE;
    const int64_t p = panels_of<M, Wide<M>::panels>(w, x, begin, least(end, w.outputs / WIDE), out, stride);
    if (p == end) return;
    float last[M * WIDE];  // the last panel, of which a part is padding
    tile<M, 1, false>(x, w.panels + p * apart, apart, WIDE, w.inputs, last, WIDE);
    for (int m = 0; m < M; m++)
        memcpy(out + m * stride + p * WIDE, last + m * WIDE, size_t(w.outputs - p * WIDE) * sizeof(float));
}

void strip_of(int count, const Matrix &w, const float *const *x, int64_t begin, int64_t end, float *out,
              int64_t stride) {
    switch (count) {
    case 1: strip<1>(w, x, begin, end, out, stride); break;
    case 2: strip<2>(w, x, begin, end, out, stride); break;
    case 3: strip<3>(w, x, begin, end, out, stride); break;
    case 4: strip<4>(w, x, begin, end, out, stride); break;
    case 5: strip<5>(w, x, begin, end, out, stride); break;
    case 6: strip<6>(w, x, begin, end, out, stride); break;
    case 7: strip<7>(w, x, begin, end, out, stride); break;
    default: strip<8>(w, x, begin, end, out, stride); break;
    }
}

// out [rows, outputs] = x [rows, inputs] times the weight, transposed; the rows of `out` are `stride` apart.
void product(const Matrix &w, const RowsIn &x, int64_t rows, float *out, int64_t stride) {
    const int64_t panels = (w.outputs + WIDE - 1) / WIDE;
    // Few rows take all panels in turn; many share a panel while it is near.
    const int64_t step = rows <= ROWS ? panels : Wide<ROWS>::panels;
    for (int64_t p = 0; p < panels; p += step)
        for (int64_t r = 0; r < rows; r += ROWS) {
            const int count = int(least(ROWS, rows - r));
            const float *from[ROWS];
            for (int i = 0; i < count; i++) from[i] = x[r + i];
            strip_of(count, w, from, p, least(p + step, panels), out + r * stride, stride);
        }
}

}  // namespace
