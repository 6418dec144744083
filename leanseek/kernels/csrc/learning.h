// A layer's experts as training has them: fp32, forward and backward; twin of leanseek/kernels/learning.py.
//
// Some rows of one expert at a time: what lies between their products stays in the second cache. Each expert is one
// thread's; each choice's part of a sum over a token's choices is written down, and added in the choices' order. So the
// same numbers give the same bits, whatever the number of threads. The dense MLP and the shared experts are the one
// expert of all.
#pragma once
#include "choices.h"
#include "product_by_rows.h"
#include "table.h"

namespace {

const int64_t PIECE = 128;  // rows at a time

inline void copy_back(float *to, Matrix from, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * columns, from.row(r), size_t(columns) * sizeof(float));
}

struct Learning : Choices {
    const leanseek_experts &of;
    int threads;
    float *parts = nullptr;  // [choices, dim]: of the sums over each token's choices
    int failed = 0;

    Learning(const leanseek_experts &given, int most) : of(given), threads(most) {
        tokens = of.tokens, per_token = of.per_token, experts = of.experts;
    }

    // What an expert's work needs of its own.
    struct Own {
        Strips gate_up, down, given, hidden;
        Matrix x, y, activated, slope, both, gate_up_sum, down_sum;

        void take(Room &room, int64_t dim, int64_t width, bool back) {
            y = matrix(room, PIECE, dim);
            if (back) {
                gate_up = strips(room, 2 * width, dim), down = strips(room, dim, width);
                given = strips(room, PIECE, dim), hidden = strips(room, PIECE, width);
                slope = matrix(room, PIECE, width), both = matrix(room, PIECE, 2 * width);
                gate_up_sum = matrix(room, 2 * width, dim), down_sum = matrix(room, dim, width);
            } else {
                gate_up = strips(room, dim, 2 * width), down = strips(room, width, dim);
                x = matrix(room, PIECE, dim), activated = matrix(room, PIECE, width);
            }
        }
    };

    template <bool BACK> static void piece(void *work, int64_t begin, int64_t end) {
        Learning &self = *static_cast<Learning *>(work);
        const int64_t dim = self.of.dim, width = self.of.width;
        Room counted;
        Own own;
        own.take(counted, dim, width, BACK);
        Room room(counted.used);
        if (!room.memory) {
            __atomic_store_n(&self.failed, 1, __ATOMIC_RELAXED);
            return;
        }
        own.take(room, dim, width, BACK);
        for (int64_t e = begin; e < end; e++) BACK ? self.backward(e, own) : self.forward(e, own);
    }

    void forward(int64_t expert, const Own &own) const {
        const int64_t dim = of.dim, width = of.width;
        if (begins[expert] == begins[expert + 1]) return;
        turned_into_strips(own.gate_up, of.gate + expert * of.apart, width, dim, 0);
        turned_into_strips(own.gate_up, of.up + expert * of.apart, width, dim, width);
        turned_into_strips(own.down, of.down + expert * dim * width, dim, width, 0);
        for (int64_t c = begins[expert]; c < begins[expert + 1]; c += PIECE) {
            const int64_t some = least(PIECE, begins[expert + 1] - c);
            gather(own.x, of.x, c, some);
            const Matrix both = {of.kept + c * 2 * width, 2 * width};
            product_by_rows(some, 2 * width, dim, own.x, own.gate_up, both);
            for (int64_t i = 0; i < some; i++)
                for (int64_t f = 0; f < width; f += WIDE)
                    store(own.activated.row(i) + f, mul(silu(load(both.row(i) + f)), load(both.row(i) + width + f)));
            product_by_rows(some, dim, width, own.activated, own.down, own.y);
            for (int64_t i = 0; i < some; i++) put(own.y.row(i), c + i, weight_of(c + i));
        }
    }

    void backward(int64_t expert, const Own &own) const {
        const int64_t dim = of.dim, width = of.width, first = begins[expert], last = begins[expert + 1];
        into_strips(own.gate_up, of.gate + expert * of.apart, dim, width, dim, 0);
        into_strips(own.gate_up, of.up + expert * of.apart, dim, width, dim, width);
        into_strips(own.down, of.down + expert * dim * width, width, dim, width, 0);
        for (int64_t c = first; c < last; c += PIECE) {
            const int64_t some = least(PIECE, last - c);
            for (int64_t i = 0; i < some; i++) into_strips(own.given, of.x + rows[c + i] * dim, dim, 1, dim, i);
            gather(own.y, of.out_gradient, c, some);
            product_by_rows(some, width, dim, own.y, own.down, own.slope);
            for (int64_t i = 0; i < some; i++) through_activation(own, i, c + i);
            product_by_rows<true>(dim, width, some, own.y, own.hidden, own.down_sum, c > first);
            product_by_rows<true>(2 * width, dim, some, own.both, own.given, own.gate_up_sum, c > first);
            product_by_rows(some, dim, 2 * width, own.both, own.gate_up, own.y);
            for (int64_t i = 0; i < some; i++) put(own.y.row(i), c + i, 1.0f);
        }
        float *gate = of.gate_gradient + expert * of.apart, *up = of.up_gradient + expert * of.apart;
        float *down = of.down_gradient + expert * dim * width;
        if (first == last) {  // nobody chose it
            memset(gate, 0, size_t(width * dim) * sizeof(float)), memset(up, 0, size_t(width * dim) * sizeof(float));
            memset(down, 0, size_t(width * dim) * sizeof(float));
            return;
        }
        copy_back(gate, own.gate_up_sum, width, dim);
        copy_back(up, {own.gate_up_sum.row(width), own.gate_up_sum.apart}, width, dim);
        copy_back(down, own.down_sum, dim, width);
    }

    // A row's gradients of gate and up from that of their product; `hidden` becomes that product times its weight.
    void through_activation(const Own &own, int64_t i, int64_t choice) const {
        const int64_t width = of.width;
        const float *gates = of.kept + choice * 2 * width, *ups = gates + width;
        float *gate_slopes = own.both.row(i), *up_slopes = gate_slopes + width;
        const Lanes weight = all(weight_of(choice)), one = all(1.0f);
        Lanes sum = all(0.0f);
        for (int64_t f = 0; f < width; f += WIDE) {
            const Lanes gate = load(gates + f), up = load(ups + f), share = sigmoid(gate), active = mul(gate, share);
            const Lanes slope = load(own.slope.row(i) + f), product = mul(active, up), weighted = mul(weight, slope);
            sum = fma(slope, product, sum);
            store(own.hidden.spot(i, f), mul(weight, product));
            store(up_slopes + f, mul(weighted, active));
            // d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g)
            store(gate_slopes + f, mul(mul(weighted, up), mul(share, fma(gate, sub(one, share), one))));
        }
        if (of.weights_gradient) of.weights_gradient[order[choice]] = total(sum);
    }

    float weight_of(int64_t choice) const { return of.weights ? of.weights[order[choice]] : 1.0f; }

    void gather(Matrix to, const float *from, int64_t choice, int64_t some) const {
        for (int64_t i = 0; i < some; i++)
            memcpy(to.row(i), from + rows[choice + i] * of.dim, size_t(of.dim) * sizeof(float));
    }

    void put(const float *from, int64_t choice, float weight) const {
        float *to = parts + order[choice] * of.dim;
        for (int64_t d = 0; d < of.dim; d += WIDE) store(to + d, mul(all(weight), load(from + d)));
    }

    // Each token's sum over its choices.
    static void sum_piece(void *work, int64_t begin, int64_t end) {
        const Learning &self = *static_cast<Learning *>(work);
        const int64_t dim = self.of.dim, last = least(end * PIECE, self.tokens);
        for (int64_t t = begin * PIECE; t < last; t++)
            for (int64_t d = 0; d < dim; d += WIDE) {
                const float *from = self.parts + t * self.per_token * dim + d;
                Lanes sum = load(from);
                for (int64_t k = 1; k < self.per_token; k++) sum = add(sum, load(from + k * dim));
                store(self.to + t * dim + d, sum);
            }
    }

    float *to = nullptr;

    template <bool BACK> int run(float *into) {
        if (tokens <= 0) return 0;
        for (int64_t c = 0; c < tokens * per_token; c++)
            if (of.chosen[c] < 0 || of.chosen[c] >= experts) return 2;
        const int64_t apart = per_token > 1 ? tokens * per_token * of.dim : 0;
        Room room(Choices::bytes(tokens, per_token, experts) + Room::bytes<float>(apart));
        if (!room.memory) return 1;
        take(room);
        to = into, parts = per_token > 1 ? room.take<float>(apart) : into;
        sort(of.chosen);
        leanseek_parallel_for(piece<BACK>, this, experts, threads);
        if (failed) return 1;
        if (per_token > 1) leanseek_parallel_for(sum_piece, this, (tokens + PIECE - 1) / PIECE, threads);
        return 0;
    }
};

int learn_forward(int threads, const leanseek_experts *given) { return Learning(*given, threads).run<false>(given->out); }
int learn_backward(int threads, const leanseek_experts *given) {
    return Learning(*given, threads).run<true>(given->x_gradient);
}

}  // namespace
