// RMS normalisation, with or without a residual that is added first, and its gradient; twin of leanseek/kernels/norm.py.
#pragma once
#include "numbers.h"
#include "table.h"

namespace {

// Sums of squares are kept apart in this many lanes, whatever the registers: every variant rounds alike.
const int LANES = 16;
// Rows of a piece of work: enough that taking it costs little beside doing it.
const int64_t NORM_NUMBERS = 1 << 14;

inline float sum_of(float *lanes) {
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

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
        const float scale = 1.0f / sqrtf(sum_of(lanes) / float(width) + eps);
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

// y = x s w with s = 1 / sqrt(mean(x^2) + eps). From dy: dx = s (w dy - x s^2 mean(w dy x)), and dw = sum of dy x s.
struct NormGradient {
    const float *x, *weight, *gradient, *more;  // `more`: what else flows into x, or none
    float *dx, *parts;                          // `parts`: each piece's sum for dw
    int64_t rows, width, step;
    float eps;

    void row(int64_t r, float *__restrict part) const {
        const float *in = x + r * width, *dy = gradient + r * width;
        float squares[LANES] = {0}, products[LANES] = {0};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++) {
                squares[l] += in[i + l] * in[i + l];
                products[l] += in[i + l] * dy[i + l] * weight[i + l];
            }
        for (int l = 0; i < width; i++, l++) {
            squares[l] += in[i] * in[i];
            products[l] += in[i] * dy[i] * weight[i];
        }
        const float s = 1.0f / sqrtf(sum_of(squares) / float(width) + eps);
        const float back = s * s * s * (sum_of(products) / float(width));
        float *__restrict to = dx + r * width;
        if (more) {
            const float *add = more + r * width;
            for (i = 0; i < width; i++) to[i] = dy[i] * weight[i] * s - in[i] * back + add[i];
        } else {
            for (i = 0; i < width; i++) to[i] = dy[i] * weight[i] * s - in[i] * back;
        }
        for (i = 0; i < width; i++) part[i] += dy[i] * in[i] * s;
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const NormGradient &self = *static_cast<const NormGradient *>(work);
        for (int64_t p = begin; p < end; p++) {
            float *part = self.parts + p * self.width;
            memset(part, 0, size_t(self.width) * sizeof(float));
            const int64_t last = least((p + 1) * self.step, self.rows);
            for (int64_t r = p * self.step; r < last; r++) self.row(r, part);
        }
    }
};

// Rows are dealt out to a number of pieces that does not depend on the threads: sums are the same on any machine.
int rms_norm_gradient(int threads, const float *x, const float *weight, const float *gradient, const float *more,
                      float *dx, float *parts, int64_t rows, int64_t width, int64_t pieces, float eps) {
    if (rows <= 0 || width <= 0) return 0;
    NormGradient work = {x, weight, gradient, more, dx, parts, rows, width, (rows + pieces - 1) / pieces, eps};
    leanseek_parallel_for(NormGradient::piece, &work, pieces, threads);
    return 0;
}

}  // namespace
