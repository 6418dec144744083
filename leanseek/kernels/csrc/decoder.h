// A whole call of a small model: tokens through a stack of layers, over a paged cache, in one go.
//
// Tokens are worked on in slabs, and a slab in pieces of some tokens, which threads take; between layers all meet,
// because a token looks at the latents of those before it. No sum spans two tokens, and each is added up in one order:
// a token's result has the same bits whatever else is in the call, however its text is cut, by any number of threads.
#pragma once
#include <stdlib.h>

#include "latent.h"
#include "norm.h"
#include "router.h"

namespace {

const int64_t PIECE = 64;  // tokens of a piece at most: what they need stays in a core's own cache

inline void norm_row(const float *x, const float *weight, int64_t width, float eps, float *out) {
    const Norm<float> norm = {x, nullptr, weight, nullptr, out, 1, width, 1, eps};
    norm.row(0);
}

inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows of numbers, one for each token of a slab.
struct Slots {
    float *numbers;
    int64_t width;

    float *operator[](int64_t slot) const { return numbers + slot * width; }
    RowsIn rows(int64_t slot) const { return {(*this)[slot], width, nullptr}; }
};

struct Decoding {
    const leanseek_stack &s;
    const leanseek_batch &b;
    int64_t piece, slab;   // tokens of a piece, and of all pieces that are worked on at once
    int64_t begin, count;  // the slab's first token, and how many it has
    int64_t layer;         // whose attention and MLP are next; -1: the embedding comes first
    Slots stream, normed, query_latent, query, latent, absorbed, mixed, attended, gated, hidden, scores, weights;
    float *padded;         // [pieces, KEYS, entry], where entries are no multiple of the lanes
    int64_t *text;         // of each token
    int64_t *chosen;       // [tokens, per_token]
    int32_t *listed;       // tokens of an expert

    // Share memory out; return how many bytes that takes. Null: only that.
    size_t lay_out(char *memory) {
        size_t at = 0;
        const auto take = [&](int64_t count, size_t size) {
            char *here = memory ? memory + at : nullptr;
            at += (size_t(count) * size + 63) / 64 * 64;
            return here;
        };
        const auto room = [&](Slots &of, int64_t width) {
            of.width = in_lanes(width);
            of.numbers = reinterpret_cast<float *>(take(of.width * slab, sizeof(float)));
        };
        int64_t width = s.expert_width;
        for (int64_t i = 0; i < s.count; i++) width = larger_of(width, s.layers[i].width);
        const int64_t entry = in_lanes(s.latent + s.rope);
        room(stream, s.dim), room(normed, s.dim), room(query_latent, s.query_rank);
        room(query, s.heads * (s.nope + s.rope)), room(latent, s.latent + s.rope);
        room(absorbed, larger_of(s.heads * entry, s.dim)), room(mixed, s.heads * in_lanes(s.latent));
        room(attended, s.heads * s.value), room(gated, 2 * larger_of(in_lanes(width), s.dim)), room(hidden, width);
        room(scores, s.experts), room(weights, s.per_token);
        padded = reinterpret_cast<float *>(take(slab / piece * KEYS * entry, sizeof(float)));
        text = reinterpret_cast<int64_t *>(take(slab, sizeof(int64_t)));
        chosen = reinterpret_cast<int64_t *>(take(slab * s.per_token, sizeof(int64_t)));
        listed = reinterpret_cast<int32_t *>(take(slab, sizeof(int32_t)));
        return at;
    }

    int64_t first_of(int64_t text) const { return b.starts ? b.starts[text] : text; }
    int64_t position(int64_t slot) const { return b.positions[text[slot]] + begin + slot - first_of(text[slot]); }
    Pages pages(int64_t text, int64_t layer) const {
        return {b.store + (s.first + layer) * b.layer_numbers, b.tables + text * b.pages, b.page, s.latent + s.rope};
    }
    void normalise(const Slots &from, const float *weight, int64_t width, const Slots &to, int64_t at, int64_t end) const {
        for (int64_t t = at; t < end; t++) norm_row(from[t], weight, width, s.eps, to[t]);
    }
    void turn(float *pairs, int64_t position) const {
        const float *turns = b.turns + position * s.rope;
        for (int64_t i = 0; i < s.rope; i += 2) {
            const float a = pairs[i], b = pairs[i + 1];
            pairs[i] = a * turns[i] - b * turns[i + 1];
            pairs[i + 1] = a * turns[i + 1] + b * turns[i];
        }
    }

    void embed(int64_t at, int64_t end) const {
        for (int64_t t = at; t < end; t++) {
            const float *row = s.embedding + b.ids[begin + t] * s.dim;
            if (!s.join) {
                memcpy(stream[t], row, size_t(s.dim) * sizeof(float));
                continue;
            }
            norm_row(row, s.join_embedding_norm, s.dim, s.eps, gated[t]);
            norm_row(b.hidden + (begin + t) * s.dim, s.join_hidden_norm, s.dim, s.eps, gated[t] + s.dim);
        }
        if (s.join) product({s.join, s.dim, 2 * s.dim}, gated.rows(at), end - at, stream[at], stream.width);
    }

    // Queries, and the new latents into the cache.
    void look(int64_t at, int64_t end) const {
        const leanseek_layer &l = s.layers[layer + 1];
        const int64_t rows = end - at, wide = s.nope + s.rope;
        normalise(stream, l.norm, s.dim, normed, at, end);
        if (l.query_down) {
            product({l.query_down, s.query_rank, s.dim}, normed.rows(at), rows, query_latent[at], query_latent.width);
            normalise(query_latent, l.query_norm, s.query_rank, query_latent, at, end);
        }
        const Matrix up = {l.query, s.heads * wide, l.query_down ? s.query_rank : s.dim};
        product(up, (l.query_down ? query_latent : normed).rows(at), rows, query[at], query.width);
        product({l.latent, s.latent + s.rope, s.dim}, normed.rows(at), rows, latent[at], latent.width);
        for (int64_t t = at; t < end; t++) {
            const int64_t where = position(t);
            for (int64_t h = 0; h < s.heads; h++) turn(query[t] + h * wide + s.nope, where);
            turn(latent[t] + s.latent, where);
            float *entry = pages(text[t], layer + 1).at(where);
            norm_row(latent[t], l.latent_norm, s.latent, s.eps, entry);
            memcpy(entry + s.latent, latent[t] + s.latent, size_t(s.rope) * sizeof(float));
        }
    }

    void attention(int64_t at, int64_t end) const {
        const leanseek_layer &l = s.layers[layer];
        const int64_t rows = end - at, wide = s.nope + s.rope;
        const int64_t entry = in_lanes(s.latent + s.rope), value = in_lanes(s.latent);
        const Matrix key_up = {l.key_up, s.latent, s.nope}, value_up = {l.value_up, s.value, s.latent};
        for (int64_t h = 0; h < s.heads; h++)
            product(key_up.part(h), {query[at] + h * wide, query.width, nullptr}, rows, absorbed[at] + h * entry,
                    absorbed.width);
        for (int64_t t = at; t < end; t++)
            for (int64_t h = 0; h < s.heads; h++) {
                float *to = absorbed[t] + h * entry;
                memcpy(to + s.latent, query[t] + h * wide + s.nope, size_t(s.rope) * sizeof(float));
                for (int64_t c = 0; c < s.latent + s.rope; c++) to[c] *= s.scale;
                for (int64_t c = s.latent + s.rope; c < entry; c++) to[c] = 0;
            }
        Attending a;
        a.padded = padded + at / piece * KEYS * entry, a.value = value;
        const int64_t together = least(QUERIES, s.heads), tokens = QUERIES / together;
        for (int64_t t = at; t < end;) {
            int64_t last = t + 1;
            while (last < end && last - t < tokens && text[last] == text[t]) last++;
            for (int64_t h = 0; h < s.heads; h += together) {
                a.count = 0;
                for (int64_t i = t; i < last; i++)
                    for (int64_t j = h; j < least(h + together, s.heads); j++, a.count++) {
                        a.query[a.count] = absorbed[i] + j * entry;
                        a.out[a.count] = mixed[i] + j * value;
                        a.seen[a.count] = position(i) + 1;
                    }
                attend(a, pages(text[t], layer));
            }
            t = last;
        }
        for (int64_t h = 0; h < s.heads; h++)
            product(value_up.part(h), {mixed[at] + h * value, mixed.width, nullptr}, rows, attended[at] + h * s.value,
                    attended.width);
        product({l.out, s.dim, s.heads * s.value}, attended.rows(at), rows, normed[at], normed.width);
        for (int64_t t = at; t < end; t++)
            for (int64_t i = 0; i < s.dim; i++) stream[t][i] += normed[t][i];
    }

    // hidden = silu(gate x) * (up x), with panels of gate and up in turn.
    void gate(const float *panels, int64_t width, const RowsIn &x, int64_t rows, int64_t at) const {
        const int64_t wide = in_lanes(width);
        product({panels, 2 * wide, s.dim}, x, rows, gated[at], gated.width);
        for (int64_t r = at; r < at + rows; r++)
            for (int64_t i = 0; i < wide; i += WIDE)
                store(hidden[r] + i, mul(silu(load(gated[r] + 2 * i)), load(gated[r] + 2 * i + WIDE)));
    }

    // The MLP's input stands in `normed`; what it gives is added to the stream.
    void mlp(int64_t at, int64_t end) const {
        const leanseek_layer &l = s.layers[layer];
        normalise(stream, l.mlp_norm, s.dim, normed, at, end);
        const Slots &out = absorbed;  // free by now
        if (l.gate_up) {
            gate(l.gate_up, l.width, normed.rows(at), end - at, at);
            product({l.down, s.dim, l.width}, hidden.rows(at), end - at, out[at], out.width);
            for (int64_t t = at; t < end; t++)
                for (int64_t i = 0; i < s.dim; i++) stream[t][i] += out[t][i];
        }
        if (l.router) mixture(l, at, end);
    }

    void mixture(const leanseek_layer &l, int64_t at, int64_t end) const {
        product({l.router, s.experts, s.dim}, normed.rows(at), end - at, scores[at], scores.width);
        for (int64_t t = at; t < end; t++) route(s, l.bias, scores[t], chosen + t * s.per_token, weights[t]);
        const Matrix gate_up = {l.experts_gate_up, 2 * in_lanes(s.expert_width), s.dim};
        const Matrix down = {l.experts_down, s.dim, s.expert_width};
        int64_t taken[PIECE] = {0};  // choices of each token that are done: each has them in the order of their numbers
        for (;;) {
            int64_t expert = s.experts;
            for (int64_t t = at; t < end; t++)
                if (taken[t - at] < s.per_token) expert = least(expert, chosen[t * s.per_token + taken[t - at]]);
            if (expert == s.experts) break;
            int32_t *rows = listed + at;
            int64_t count = 0;
            for (int64_t t = at; t < end; t++)
                if (taken[t - at] < s.per_token && chosen[t * s.per_token + taken[t - at]] == expert)
                    rows[count++] = int32_t(t - at);
            gate(gate_up.part(expert).panels, s.expert_width, {normed[at], normed.width, rows}, count, at);
            product(down.part(expert), hidden.rows(at), count, absorbed[at], absorbed.width);
            for (int64_t i = 0; i < count; i++) {
                const int64_t t = at + rows[i];
                const float weight = weights[t][taken[rows[i]]++], *from = absorbed[at + i];
                float *to = stream[t];
                for (int64_t c = 0; c < s.dim; c++) to[c] += weight * from[c];
            }
        }
    }

    void tell(int64_t at, int64_t end, int64_t mixtures, int64_t index) const {
        for (int64_t t = at; t < end; t++)
            memcpy(b.chosen + ((begin + t) * mixtures + index) * s.per_token, chosen + t * s.per_token,
                   size_t(s.per_token) * sizeof(int64_t));
    }

    void finish(int64_t at, int64_t end) const {
        for (int64_t t = at; t < end; t++) norm_row(stream[t], s.norm, s.dim, s.eps, b.out + (begin + t) * s.dim);
        if (!b.logits) return;
        const RowsIn rows = {b.out + (begin + at) * s.dim, s.dim, nullptr};
        product({s.head, s.vocabulary, s.dim}, rows, end - at, b.logits + (begin + at) * s.vocabulary, s.vocabulary);
    }

    static void run_piece(void *work, int64_t from, int64_t to) {
        const Decoding &d = *static_cast<const Decoding *>(work);
        for (int64_t p = from; p < to; p++) {
            const int64_t at = p * d.piece, end = least(at + d.piece, d.count);
            if (d.layer < 0) {
                d.embed(at, end);
            } else {
                d.attention(at, end);
                d.mlp(at, end);
                if (d.b.chosen && d.s.layers[d.layer].router) {
                    int64_t mixtures = 0, index = 0;
                    for (int64_t i = 0; i < d.s.count; i++) {
                        if (i == d.layer) index = mixtures;
                        mixtures += d.s.layers[i].router != nullptr;
                    }
                    d.tell(at, end, mixtures, index);
                }
            }
            if (d.layer + 1 < d.s.count) d.look(at, end);
            else d.finish(at, end);
        }
    }
};

int decode(int threads, const leanseek_stack *stack, const leanseek_batch *batch) {
    const leanseek_stack &s = *stack;
    const leanseek_batch &b = *batch;
    for (int64_t t = 0; t < b.tokens; t++)
        if (b.ids[t] < 0 || b.ids[t] >= s.vocabulary) return 4;
    for (int64_t t = 0; t < b.texts; t++) {
        const int64_t end = b.starts ? b.starts[t + 1] - b.starts[t] : 1;
        if (b.positions[t] < 0 || b.positions[t] + end > b.pages * b.page) return 4;
    }
    if (b.tokens <= 0) return 0;
    const int64_t pieces = least(threads < 1 ? 1 : threads, b.tokens);
    const int64_t piece = least(PIECE, (b.tokens + pieces - 1) / pieces);
    Decoding d = {s, b, piece, piece * pieces, 0, 0, 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, nullptr,
                  nullptr, nullptr, nullptr};
    char *memory = static_cast<char *>(malloc(d.lay_out(nullptr)));
    if (!memory) return 1;
    d.lay_out(memory);
    int64_t text = 0;
    for (; d.begin < b.tokens; d.begin += d.slab) {
        d.count = least(d.slab, b.tokens - d.begin);
        for (int64_t t = 0; t < d.count; t++) {
            while (text + 1 < b.texts && d.first_of(text + 1) <= d.begin + t) text++;
            d.text[t] = text;
        }
        for (d.layer = -1; d.layer < s.count; d.layer++)
            leanseek_parallel_for(Decoding::run_piece, &d, (d.count + piece - 1) / piece, threads);
    }
    free(memory);
    return 0;
}

// Rows times one weight in panels: the head alone, of hidden states that are there.
struct PanelsWork {
    Matrix weight;
    const float *x;
    int64_t rows;
    float *out;

    static void run(void *work, int64_t from, int64_t to) {
        const PanelsWork &w = *static_cast<const PanelsWork *>(work);
        const int64_t at = from * PIECE, end = least(to * PIECE, w.rows);
        product(w.weight, {w.x + at * w.weight.inputs, w.weight.inputs, nullptr}, end - at,
                w.out + at * w.weight.outputs, w.weight.outputs);
    }
};

int panels_product(int threads, const float *panels, int64_t outputs, int64_t inputs, const float *x, int64_t rows,
                   float *out) {
    PanelsWork work = {{panels, outputs, inputs}, x, rows, out};
    leanseek_parallel_for(PanelsWork::run, &work, (rows + PIECE - 1) / PIECE, threads);
    return 0;
}

}  // namespace
