// Log-probabilities of given tokens, forward and backward; twin of leanseek/kernels/likelihood.py.
#pragma once
#include "lanes.h"
#include "table.h"

namespace {

// Logits of a piece of work: enough that taking it costs little beside doing it.
const int64_t PIECE_LOGITS = 1 << 14;

struct Likelihood {
    const float *logits;
    const int64_t *targets;
    int64_t rows, width;
    float scale;         // one over the temperature
    float *found, *sums; // log p(target); log of the sum of e^(logit * scale)
    const float *gradient, *known;  // of `found`, and what `sums` was; null: forward
    float *logits_gradient;

    // The lanes from `w` on, those behind the row's end minus infinity.
    Lanes lanes(const float *row, int64_t w) const {
        if (w + WIDE <= width) return load(row + w);
        float some[WIDE];
        for (int64_t l = 0; l < WIDE; l++) some[l] = w + l < width ? row[w + l] : -INFINITY;
        return load(some);
    }

    void forward(int64_t r) const {
        const float *row = logits + r * width;
        Lanes most = lanes(row, 0), sum = all(0.0f);
        for (int64_t w = WIDE; w < width; w += WIDE) most = larger(most, lanes(row, w));
        const float top = largest(most);
        for (int64_t w = 0; w < width; w += WIDE)
            sum = add(sum, exponential(mul(sub(lanes(row, w), all(top)), all(scale))));
        const float log_sum = logf(total(sum));
        found[r] = (row[targets[r]] - top) * scale - log_sum;
        sums[r] = top * scale + log_sum;
    }

    void backward(int64_t r) const {
        const float *row = logits + r * width;
        float *to = logits_gradient + r * width;
        const Lanes slope = all(-gradient[r] * scale), log_sum = all(-known[r]);
        for (int64_t w = 0; w < width; w += WIDE) {
            const Lanes share = mul(slope, exponential(fma(lanes(row, w), all(scale), log_sum)));
            if (w + WIDE <= width) {
                store(to + w, share);
                continue;
            }
            float some[WIDE];
            store(some, share);
            memcpy(to + w, some, size_t(width - w) * sizeof(float));
        }
        to[targets[r]] += gradient[r] * scale;
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const Likelihood &self = *static_cast<const Likelihood *>(work);
        const int64_t step = self.step(), last = least(end * step, self.rows);
        for (int64_t r = begin * step; r < last; r++) self.gradient ? self.backward(r) : self.forward(r);
    }
    int64_t step() const { return width > PIECE_LOGITS ? 1 : PIECE_LOGITS / width; }

    int run(int threads) {
        for (int64_t r = 0; r < rows; r++)
            if (targets[r] < 0 || targets[r] >= width) return 4;
        if (rows > 0) leanseek_parallel_for(piece, this, (rows + step() - 1) / step(), threads);
        return 0;
    }
};

int likelihood(int threads, const float *logits, const int64_t *targets, int64_t rows, int64_t width, float scale,
               float *found, float *sums) {
    return Likelihood{logits, targets, rows, width, scale, found, sums, nullptr, nullptr, nullptr}.run(threads);
}

int likelihood_backward(int threads, const float *logits, const int64_t *targets, int64_t rows, int64_t width,
                        float scale, const float *sums, const float *gradient, float *logits_gradient) {
    return Likelihood{logits, targets, rows, width, scale, nullptr, nullptr, gradient, sums, logits_gradient}.run(
        threads);
}

}  // namespace
