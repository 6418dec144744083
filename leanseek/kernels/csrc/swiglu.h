// silu(gate) * up, times a weight for each row if wanted, and its gradient; twin of leanseek/kernels/swiglu.py.
#pragma once
#include "norm.h"
#include "numbers.h"
#include "table.h"

namespace {

struct Swiglu {
    const float *gate, *up, *weights;
    int64_t stride;  // from a row of gate, or of up, to the next one
    float *out;
    int64_t rows, width, step;

    static void piece(void *work, int64_t begin, int64_t end) {
        const Swiglu &self = *static_cast<const Swiglu *>(work);
        const int64_t last = least(end * self.step, self.rows);
        for (int64_t r = begin * self.step; r < last; r++) {
            const float *g = self.gate + r * self.stride, *u = self.up + r * self.stride;
            const float w = self.weights ? self.weights[r] : 1.0f;
            float *__restrict to = self.out + r * self.width;
            for (int64_t i = 0; i < self.width; i++) to[i] = g[i] / (1.0f + power(-g[i])) * u[i] * w;
        }
    }
};

// With s = sigmoid(g), a = g s: the output is w a u, and d silu(g) / dg = s (1 + g (1 - s)).
struct SwigluGradient {
    const float *gate, *up, *weights, *gradient;
    int64_t stride;
    float *dgate, *dup;
    int64_t dstride;
    float *out, *dweights;  // the output once more, and the weights' gradient; or none
    int64_t rows, width, step;

    void row(int64_t r) const {
        const float *g = gate + r * stride, *u = up + r * stride, *dy = gradient + r * width;
        const float w = weights ? weights[r] : 1.0f;
        float *__restrict dg = dgate + r * dstride;
        float *__restrict du = dup + r * dstride;
        float *__restrict to = out + r * width;
        float lanes[LANES] = {0};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++)
                one(g[i + l], u[i + l], dy[i + l], w, dg[i + l], du[i + l], to[i + l], lanes[l]);
        for (int l = 0; i < width; i++, l++) one(g[i], u[i], dy[i], w, dg[i], du[i], to[i], lanes[l]);
        if (dweights) dweights[r] = sum_of(lanes);
    }

    static inline void one(float g, float u, float dy, float w, float &dg, float &du, float &to, float &lane) {
        const float s = 1.0f / (1.0f + power(-g));
        const float a = g * s, h = a * u, d = dy * w;
        lane += dy * h;
        to = h * w;
        du = d * a;
        dg = d * u * s * (1.0f + g * (1.0f - s));
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const SwigluGradient &self = *static_cast<const SwigluGradient *>(work);
        const int64_t last = least(end * self.step, self.rows);
        for (int64_t r = begin * self.step; r < last; r++) self.row(r);
    }
};

int64_t swiglu_step(int64_t width) { return width > NORM_NUMBERS ? 1 : NORM_NUMBERS / width; }

int swiglu(int threads, const float *gate, const float *up, int64_t stride, const float *weights, float *out,
           int64_t rows, int64_t width) {
    if (rows <= 0 || width <= 0) return 0;
    const int64_t step = swiglu_step(width);
    Swiglu work = {gate, up, weights, stride, out, rows, width, step};
    leanseek_parallel_for(Swiglu::piece, &work, (rows + step - 1) / step, threads);
    return 0;
}

int swiglu_gradient(int threads, const float *gate, const float *up, int64_t stride, const float *weights,
                    const float *gradient, float *dgate, float *dup, int64_t dstride, float *out, float *dweights,
                    int64_t rows, int64_t width) {
    if (rows <= 0 || width <= 0) return 0;
    const int64_t step = swiglu_step(width);
    SwigluGradient work = {gate, up, weights, gradient, stride, dgate, dup, dstride, out, dweights, rows, width, step};
    leanseek_parallel_for(SwigluGradient::piece, &work, (rows + step - 1) / step, threads);
    return 0;
}

}  // namespace
