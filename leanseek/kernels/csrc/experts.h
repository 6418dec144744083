// A layer's experts, in two calls of the pool: hidden states of every expert, then every token's sum over its experts.
// Tokens are sorted by expert, so that each expert's weights are read once; a token's experts are added in the order of
// their numbers, whatever the other tokens choose. The dense MLP and the shared experts are the one expert of all.
#pragma once
#include "choices.h"
#include "weight.h"

namespace {

struct Experts : Choices {
    Weight gate_up, down;
    Given x, hidden;     // hidden: [tokens * per_token, 32 pairs], sorted as the choices are
    int64_t dim, pairs;  // pairs of panels of a hidden state: 32 channels
    int64_t step, pair_step;
    const float *weights;
    float *out;  // what the experts give is added to it

    static size_t bytes(int64_t tokens, int64_t per_token, int64_t experts, int64_t width) {
        Room room;
        Experts{}.take(room, tokens, per_token, experts, width);
        return room.used;
    }

    // Room for so many tokens at most, and hidden states of such a width.
    void take(Room &room, int64_t most, int64_t each, int64_t count, int64_t width) {
        tokens = most, per_token = each, experts = count;
        Choices::take(room);
        const int64_t wide = groups_of(width) * GROUP;
        float *plain = room.take<float>(most * each * wide);
        hidden = Given::of(room, plain, most * each, wide, wide);
    }

    // Say what is computed: these weights, this width, these tokens' choices.
    void choose(const Weight &both, const Weight &back, int64_t width, int64_t count, const int64_t *chosen) {
        gate_up = both, down = back, tokens = count;
        pairs = groups_of(width), step = both.panels_at_once(count), pair_step = (step + 1) / 2;
        hidden.stride = hidden.width = pairs * GROUP;
        hidden.rounded.groups = pairs, hidden.rounded.bits = back.kind;
        sort(chosen);
    }

    int64_t pair_pieces() const { return (pairs + pair_step - 1) / pair_step; }
    int64_t hidden_pieces() const { return count * pair_pieces(); }
    int64_t out_pieces() const { return (panels_of(dim) + step - 1) / step; }

    static void hidden_piece(void *work, int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at++) static_cast<Experts *>(work)->some_hidden(at);
    }

    // Some channels of one expert's hidden states: gate, up, SiLU.
    void some_hidden(int64_t at) {
        const int64_t expert = used[at / pair_pieces()], first = at % pair_pieces() * pair_step;
        const int64_t some = least(pair_step, pairs - first), wide = some * GROUP;
        const Weight w = gate_up.from(expert * 4 * pairs);
        for (int64_t c = begins[expert]; c < begins[expert + 1]; c += w.rows_at_once()) {
            const int found = int(least(w.rows_at_once(), begins[expert + 1] - c));
            float gate[MOST_ROWS * MOST_AT_ONCE * PANEL], up[MOST_ROWS * MOST_AT_ONCE * PANEL];
            w.multiply(2 * first, 2 * some, x, rows + c, found, gate, wide);
            w.multiply(2 * (pairs + first), 2 * some, x, rows + c, found, up, wide);
            for (int i = 0; i < found; i++) {
                float *to = hidden.plain + (c + i) * hidden.stride + first * GROUP;
                for (int64_t l = 0; l < wide; l += WIDE)
                    store(to + l, mul(silu(load(gate + i * wide + l)), load(up + i * wide + l)));
                if (down.kind == LEANSEEK_PLAIN) continue;
                for (int64_t g = 0; g < some; g++)
                    round_group(to + g * GROUP, hidden.rounded, (c + i) * pairs + first + g);
            }
        }
    }

    // Some channels of every token's output.
    void some_out(int64_t at) const {
        const int64_t panels = panels_of(dim), p = at * step, some = least(step, panels - p);
        const int64_t first = p * PANEL, width = least(some * PANEL, dim - first);
        for (int64_t e = 0; e < count; e++) {
            const int64_t expert = used[e];
            const Weight w = down.from(expert * panels);
            for (int64_t c = begins[expert]; c < begins[expert + 1]; c += w.rows_at_once()) {
                const int found = int(least(w.rows_at_once(), begins[expert + 1] - c));
                int64_t numbers[MOST_ROWS];
                float got[MOST_ROWS][MOST_AT_ONCE * PANEL];
                for (int i = 0; i < found; i++) numbers[i] = c + i;
                w.multiply(p, some, hidden, numbers, found, got[0], MOST_AT_ONCE * PANEL);
                for (int i = 0; i < found; i++) {
                    float *to = out + rows[c + i] * dim + first;
                    const float weight = weights[order[c + i]];
                    for (int64_t l = 0; l < width; l++) to[l] += weight * got[i][l];
                }
            }
        }
    }

    // The same for a call that is of experts alone.
    static void out_piece(void *work, int64_t begin, int64_t end) {
        const Experts &self = *static_cast<const Experts *>(work);
        const int64_t first = begin * self.step * PANEL, last = least(end * self.step * PANEL, self.dim);
        for (int64_t t = 0; t < self.tokens; t++)
            memset(self.out + t * self.dim + first, 0, size_t(last - first) * sizeof(float));
        for (int64_t at = begin; at < end; at++) self.some_out(at);
    }
};

int packed_experts(int threads, int bits, const float *x, int64_t tokens, int64_t dim, const float *weights,
                   const int64_t *chosen, int64_t per_token, int64_t experts, const uint8_t *gate_up_codes,
                   const void *gate_up_scales, int64_t width, const uint8_t *down_codes, const void *down_scales,
                   float *out) {
    if (tokens <= 0) return 0;
    for (int64_t c = 0; c < tokens * per_token; c++)
        if (chosen[c] < 0 || chosen[c] >= experts) return 2;
    Room room(Given::bytes(tokens, dim) + Experts::bytes(tokens, per_token, experts, width));
    if (!room.memory) return 1;
    Experts work;
    work.dim = dim, work.weights = weights, work.out = out;
    work.x = Given::of(room, const_cast<float *>(x), tokens, dim, dim);
    work.take(room, tokens, per_token, experts, width);
    work.choose({gate_up_codes, gate_up_scales, bits, dim}, {down_codes, down_scales, bits, width}, width, tokens,
                chosen);
    work.x.rounded.bits = bits;
    Readying::run(work.x, tokens, threads);
    leanseek_parallel_for(Experts::hidden_piece, &work, work.hidden_pieces(), threads);
    leanseek_parallel_for(Experts::out_piece, &work, work.out_pieces(), threads);
    return 0;
}

}  // namespace
