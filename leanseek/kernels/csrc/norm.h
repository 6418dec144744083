// RMS normalisation, with or without a residual that is added first; twin of leanseek/kernels/norm.py.
#pragma once
#include "numbers.h"
#include "table.h"

namespace {

// Sums of squares are kept apart in this many lanes, whatever the registers: every variant rounds alike.
const int LANES = 16;
// Rows of a piece of work: enough that taking it costs little beside doing it.
const int64_t NORM_NUMBERS = 1 << 14;

template <class T> struct Norm {
    const T *x, *residual, *weight;
    T *sum, *out;
    int64_t rows, width, step;
    float eps;

    void row(int64_t r) const {
        const T *in = x + r * width;
        if (residual) {
            const T *more = residual + r * width;
            T *total = sum + r * width;
            for (int64_t i = 0; i < width; i++) from_float(to_float(in[i]) + to_float(more[i]), total[i]);
            in = total;
        }
        float lanes[LANES] = {0};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++) {
                const float value = to_float(in[i + l]);
                lanes[l] += value * value;
            }
        for (int l = 0; i < width; i++, l++) {
            const float value = to_float(in[i]);
            lanes[l] += value * value;
        }
        for (int half = LANES / 2; half; half /= 2)
            for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
        const float scale = 1.0f / sqrtf(lanes[0] / float(width) + eps);
        T *to = out + r * width;
        for (i = 0; i < width; i++) from_float(to_float(in[i]) * scale * to_float(weight[i]), to[i]);
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const Norm &self = *static_cast<const Norm *>(work);
        const int64_t last = least(end * self.step, self.rows);
        for (int64_t r = begin * self.step; r < last; r++) self.row(r);
    }
};

template <class T>
void rms_norm_of(int threads, const void *x, const void *residual, const void *weight, void *sum, void *out,
                 int64_t rows, int64_t width, float eps) {
    if (rows <= 0 || width <= 0) return;
    const int64_t step = width > NORM_NUMBERS ? 1 : NORM_NUMBERS / width;
    Norm<T> work = {static_cast<const T *>(x), static_cast<const T *>(residual), static_cast<const T *>(weight),
                    static_cast<T *>(sum),     static_cast<T *>(out),            rows, width, step, eps};
    leanseek_parallel_for(Norm<T>::piece, &work, (rows + step - 1) / step, threads);
}

int rms_norm(int threads, int type, const void *x, const void *residual, const void *weight, void *sum, void *out,
              int64_t rows, int64_t width, float eps) {
    if (type == 1) rms_norm_of<bf16>(threads, x, residual, weight, sum, out, rows, width, eps);
    else rms_norm_of<float>(threads, x, residual, weight, sum, out, rows, width, eps);
    return 0;
}

}  // namespace
