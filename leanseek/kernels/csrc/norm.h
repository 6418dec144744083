// RMS normalisation, with or without a residual that is added first, and its gradients; twin of leanseek/kernels/norm.py.
#pragma once
#include "numbers.h"
#include "room.h"
#include "table.h"

namespace {

// Sums are kept apart in this many lanes, whatever the registers: every variant rounds alike.
const int LANES = 16;
// Numbers of a piece of work: enough that taking it costs little beside doing it.
const int64_t NORM_NUMBERS = 1 << 14;
// Rows whose part of the weight's gradient is summed by itself: of a fixed number, so that threads change no bit.
const int64_t NORM_ROWS = 64;

template <class F> inline float sum_in_lanes(int64_t width, F of) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += of(i + l);
    for (int l = 0; i < width; i++, l++) lanes[l] += of(i);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

template <class T> inline float norm_scale(const T *in, int64_t width, float eps) {
    const float squares = sum_in_lanes(width, [=](int64_t i) { return to_float(in[i]) * to_float(in[i]); });
    return 1.0f / sqrtf(squares / float(width) + eps);
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
        const float scale = norm_scale(in, width, eps);
        T *to = out + r * width;
        for (int64_t i = 0; i < width; i++) from_float(to_float(in[i]) * scale * to_float(weight[i]), to[i]);
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

// With s = 1 / sqrt(mean(x^2) + eps) and g the gradient of the output: that of x is s (g w - x s^2 mean(g w x)), that
// of the weight the sum of g x s over all rows.
template <class T> struct NormBack {
    const T *x, *weight, *gradient, *more;  // more: null, or what the gradient of x is added to
    T *x_gradient;
    float *parts;  // [pieces, width]
    int64_t rows, width;
    float eps;

    void row(int64_t r, float *__restrict part) const {
        const T *__restrict in = x + r * width, *__restrict from = gradient + r * width, *__restrict w = weight;
        T *__restrict to = x_gradient + r * width;
        const int64_t count = width;
        const float scale = norm_scale(in, count, eps);
        const float pulled = sum_in_lanes(
            count, [=](int64_t i) { return to_float(from[i]) * to_float(w[i]) * to_float(in[i]); });
        const float pull = pulled / float(count) * scale * scale * scale;
        const auto write = [=](auto other) {
            for (int64_t i = 0; i < count; i++) {
                const float value = to_float(in[i]), slope = to_float(from[i]) * scale;
                from_float(slope * to_float(w[i]) - value * pull + other(i), to[i]);
                part[i] += slope * value;
            }
        };
        const T *__restrict added = more ? more + r * width : nullptr;
        if (added) write([=](int64_t i) { return to_float(added[i]); });
        else write([](int64_t) { return 0.0f; });
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const NormBack &self = *static_cast<const NormBack *>(work);
        for (int64_t p = begin; p < end; p++) {
            float *part = self.parts + p * self.width;
            memset(part, 0, size_t(self.width) * sizeof(float));
            const int64_t last = least((p + 1) * NORM_ROWS, self.rows);
            for (int64_t r = p * NORM_ROWS; r < last; r++) self.row(r, part);
        }
    }
};

template <class T>
int rms_norm_backward_of(int threads, const void *x, const void *weight, const void *gradient, const void *more,
                         void *x_gradient, void *weight_gradient, int64_t rows, int64_t width, float eps) {
    const int64_t pieces = (rows + NORM_ROWS - 1) / NORM_ROWS;
    Room room(Room::bytes<float>(pieces * width) + Room::bytes<float>(width));
    if (!room.memory) return 1;
    float *total = room.take<float>(width);
    NormBack<T> work = {static_cast<const T *>(x),    static_cast<const T *>(weight), static_cast<const T *>(gradient),
                        static_cast<const T *>(more), static_cast<T *>(x_gradient),   room.take<float>(pieces * width),
                        rows, width, eps};
    leanseek_parallel_for(NormBack<T>::piece, &work, pieces, threads);
    memset(total, 0, size_t(width) * sizeof(float));
    for (int64_t p = 0; p < pieces; p++)
        for (int64_t i = 0; i < width; i++) total[i] += work.parts[p * width + i];
    for (int64_t i = 0; i < width; i++) from_float(total[i], static_cast<T *>(weight_gradient)[i]);
    return 0;
}

int rms_norm_backward(int threads, int type, const void *x, const void *weight, const void *gradient, const void *more,
                      void *x_gradient, void *weight_gradient, int64_t rows, int64_t width, float eps) {
    const auto of = type == 1 ? rms_norm_backward_of<bf16> : rms_norm_backward_of<float>;
    return of(threads, x, weight, gradient, more, x_gradient, weight_gradient, rows, width, eps);
}

}  // namespace
