// Part: some tokens of a call, and what they need in between while they go through a layer, step by step.
//
// Each step is cut into pieces, by outputs, heads, experts or tokens, for one thread or several. No sum spans two
// pieces, and none depends on the tokens beside a token: its bits are the same in any company and by any cut.
#pragma once
#include "experts.h"
#include "latent.h"
#include "norm.h"
#include "router.h"

namespace {

inline void norm_row(const float *x, const float *weight, int64_t width, float eps, float *out) {
    const Norm<float> norm = {x, nullptr, weight, nullptr, out, 1, width, 1, eps};
    norm.row(0);
}

inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Queries that attend together: some tokens of one text, by up to QUERIES of their heads.
struct Together {
    int64_t begin, end, head, slot;  // tokens; slot: of what they gather
};

struct Part {
    const leanseek_stack *s;
    const leanseek_batch *b;
    const leanseek_layer *l;
    int threads;
    int64_t layer, most, begin, rows;  // whose attention and MLP are next; rows at most; the call's first token, and how many
    int64_t kept, key, alike;          // widths of an entry and of a key in it; heads that have one key
    int64_t entry, value;              // widths of a key and of what is mixed, in lanes
    float *stream, *normed, *low, *query, *latent, *absorbed, *mixed, *attended, *added, *scores, *weights, *ones;
    Given normed_in, low_in, query_in, mixed_in, attended_in, joined_in;
    int64_t *text, *chosen, *noughts;
    int64_t *group_of;  // of a token's first heads: the number of the group that they are in
    Together *groups;
    int64_t group_count, together, by_key, most_slots, spans;  // by_key: groups of the heads that have one key
    float *tops, *sums, *partial, *padded;
    Experts routed, shared;
    Linear one, other;

    // Take memory for so many rows, and texts of so many chunks.
    void take(Room &room, int64_t count, int64_t chunks) {
        most = count;
        kept = s->shared ? 2 * s->shared * s->value : s->latent + s->rope;
        key = s->shared ? s->value : kept, alike = s->shared ? s->heads / s->shared : s->heads;
        entry = in_lanes(key), value = s->shared ? s->value : in_lanes(s->latent);
        int64_t width = 1;
        for (int64_t i = 0; i < s->count; i++) width = larger_of(width, s->layers[i].width);
        const int64_t each = s->experts ? s->per_token : 1, experts = s->experts ? s->experts : 1;
        const int64_t head = s->nope + s->rope, heads = s->heads * count;
        stream = room.take<float>(count * s->dim), normed = room.take<float>(count * s->dim);
        low = room.take<float>(count * s->query_rank), query = room.take<float>(heads * head);
        latent = room.take<float>(count * kept), attended = room.take<float>(heads * s->value);
        absorbed = s->shared ? query : room.take<float>(heads * entry);
        mixed = s->shared ? attended : room.take<float>(heads * value);
        added = room.take<float>(count * 2 * s->dim), scores = room.take<float>(count * in_lanes(experts));
        weights = room.take<float>(count * each), ones = room.take<float>(count);
        normed_in = Given::of(room, normed, count, s->dim, s->dim);
        low_in = Given::of(room, low, count, s->query_rank, s->query_rank);
        query_in = Given::of(room, query, heads, s->nope, head);
        mixed_in = Given::of(room, mixed, heads, s->latent, value);
        attended_in = Given::of(room, attended, count, s->heads * s->value, s->heads * s->value);
        joined_in = s->join.numbers ? Given::of(room, added, count, 2 * s->dim, 2 * s->dim) : normed_in;
        text = room.take<int64_t>(count), noughts = room.take<int64_t>(count);
        chosen = room.take<int64_t>(count * each), group_of = room.take<int64_t>(count);
        together = least(QUERIES, alike), by_key = (alike + together - 1) / together;
        const int64_t by_head = s->heads / alike * by_key;
        groups = room.take<Together>(count * by_head);
        most_slots = larger_of(count * by_head, threads > 1 ? 2 * threads * chunks : 0);
        tops = room.take<float>(most_slots * QUERIES), sums = room.take<float>(most_slots * QUERIES);
        partial = room.take<float>(most_slots * QUERIES * value);
        const bool odd = !s->short_store && entry != key;
        padded = room.take<float>(odd ? larger_of(count * by_head, 4 * threads) * KEYS * entry : 0);
        routed.take(room, count, each, experts, s->expert_width), shared.take(room, count, 1, 1, width);
    }

    // Say which tokens are worked on.
    void hold(int64_t first, int64_t count) {
        begin = first, rows = count;
        routed.dim = shared.dim = s->dim, routed.out = shared.out = added, routed.weights = weights, shared.weights = ones;
        int64_t at = 0;
        for (int64_t t = 0; t < rows; t++) {
            while (at + 1 < b->texts && first_of(at + 1) <= begin + t) at++;
            text[t] = at, noughts[t] = 0, ones[t] = 1;
        }
        group_count = 0;
        for (int64_t t = 0; t < rows;) {
            int64_t end = t + 1;
            while (end < rows && end - t < QUERIES / together && text[end] == text[t]) end++;
            for (int64_t i = t; i < end; i++) group_of[i] = group_count;
            for (int64_t k = 0; k < s->heads; k += alike)
                for (int64_t h = k; h < k + alike; h += together) groups[group_count++] = {t, end, h, 0};
            t = end;
        }
        // Few groups: each one's keys are split, and every chunk has a slot; many: chunks are joined as they come.
        spans = group_count < 2 * threads && threads > 1 ? (2 * threads + group_count - 1) / larger_of(group_count, 1) : 1;
        int64_t slot = 0;
        for (int64_t g = 0; g < group_count; g++) groups[g].slot = slot, slot += spans > 1 ? chunks_of(groups[g]) : 1;
    }

    int64_t first_of(int64_t t) const { return b->starts ? b->starts[t] : t; }
    int64_t position(int64_t t) const { return b->positions[text[t]] + begin + t - first_of(text[t]); }
    int64_t chunks_of(const Together &g) const { return position(g.end - 1) / CHUNK + 1; }
    Pages pages(int64_t text, int64_t layer, int64_t shift = 0) const {
        const int64_t size = s->short_store ? 2 : 4;
        return {static_cast<char *>(b->store) + (s->first + layer) * b->layer_numbers * size,
                b->tables + text * b->pages, b->page, kept, size, key, shift, s->shared * s->value};
    }
    Mixed slot(int64_t at) const {
        return {tops + at * QUERIES, sums + at * QUERIES, partial + at * QUERIES * value};
    }

    template <void (Part::*step)(int64_t)> static void pieces(void *work, int64_t from, int64_t to) {
        for (int64_t at = from; at < to; at++) (static_cast<Part *>(work)->*step)(at);
    }
    template <void (Part::*step)(int64_t)> void each(int64_t count) {
        leanseek_parallel_for(pieces<step>, this, count, threads);
    }
    // Little to do for a row: a few are not worth another thread.
    template <void (Part::*step)(int64_t)> void each_row() {
        leanseek_parallel_for(pieces<step>, this, rows, rows < 4 ? 1 : threads);
    }

    void some_of_two(int64_t at) {
        if (at < one.pieces()) one.some(at);
        else other.some(at - one.pieces());
    }
    void some_of_one(int64_t at) { one.some(at); }
    void some_added(int64_t at) {
        one.some(at);
        add_some(at * one.step * PANEL, one.step * PANEL);
    }
    void add_some(int64_t first, int64_t count) {
        const int64_t end = least(first + count, s->dim);
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = first; i < end; i++) stream[t * s->dim + i] += added[t * s->dim + i];
    }
    void turn(float *numbers, int64_t position) const {
        const float *turns = b->turns + position * s->rope;
        for (int64_t i = 0; i < s->rope; i += 2) {
            const float a = numbers[i], b = numbers[i + 1];
            numbers[i] = a * turns[i] - b * turns[i + 1];
            numbers[i + 1] = a * turns[i + 1] + b * turns[i];
        }
    }

    void embed_row(int64_t t) {
        const int64_t at = b->ids[begin + t] * s->dim;
        float *to = stream + t * s->dim;
        for (int64_t i = 0; i < s->dim; i++)
            to[i] = s->short_embedding ? to_float(static_cast<const bf16 *>(s->embedding)[at + i])
                                       : static_cast<const float *>(s->embedding)[at + i];
        if (!s->join.numbers) return;
        float *both = added + t * 2 * s->dim;
        norm_row(to, s->join_embedding_norm, s->dim, s->eps, both);
        norm_row(b->hidden + (begin + t) * s->dim, s->join_hidden_norm, s->dim, s->eps, both + s->dim);
        joined_in.ready(t, t + 1);
    }
    void embed() {
        joined_in.suit(s->join);
        each_row<&Part::embed_row>();
        if (!s->join.numbers) return;
        one = Linear::of(Weight::of(s->join, 2 * s->dim), joined_in, rows, s->dim, stream, s->dim);
        each<&Part::some_of_one>(one.pieces());
    }

    void norm_to_look(int64_t t) {
        norm_row(stream + t * s->dim, l->norm, s->dim, s->eps, normed + t * s->dim);
        normed_in.ready(t, t + 1);
    }
    void norm_query(int64_t t) {
        float *row = low + t * s->query_rank;
        norm_row(row, l->query_norm, s->query_rank, s->eps, row);
        low_in.ready(t, t + 1);
    }

    // Of a token: its entry in the cache.
    void keep(int64_t t, const float *row) {
        char *to = pages(text[t], layer + 1).at(position(t));
        if (!s->short_store) memcpy(to, row, size_t(kept) * sizeof(float));
        else
            for (int64_t i = 0; i < kept; i++) from_float(row[i], reinterpret_cast<bf16 *>(to)[i]);
    }
    void enter(int64_t t) {
        float *row = latent + t * kept;
        norm_row(row, l->latent_norm, s->latent, s->eps, row);
        turn(row + s->latent, position(t));
        keep(t, row);
    }

    // A query or a key of its own head: the two halves of it are turned against each other.
    void turn_head(float *row, const float *norm, int64_t position, float scale) const {
        if (norm) norm_row(row, norm, s->value, s->eps, row);
        const float *turns = b->turns + position * s->rope;
        const int64_t half = s->rope / 2;
        for (int64_t i = 0; i < half; i++) {
            const float a = row[i], b = row[half + i];
            row[i] = (a * turns[2 * i] - b * turns[2 * i + 1]) * scale;
            row[half + i] = (a * turns[2 * i + 1] + b * turns[2 * i]) * scale;
        }
    }
    // Of a token, where keys are shared: queries as they look, and its entry.
    void turn_heads(int64_t t) {
        const int64_t where = position(t), width = s->heads * s->value;
        float *asks = query + t * width, *row = latent + t * kept;
        for (int64_t i = 0; l->query_bias && i < width; i++) asks[i] += l->query_bias[i];
        for (int64_t i = 0; l->latent_bias && i < kept; i++) row[i] += l->latent_bias[i];
        for (int64_t h = 0; h < s->heads; h++) turn_head(asks + h * s->value, l->query_norm, where, s->scale);
        for (int64_t h = 0; h < s->shared; h++) turn_head(row + h * s->value, l->latent_norm, where, 1);
        keep(t, row);
    }

    // Of a head: queries as they look at latents.
    void absorb(int64_t h) {
        const int64_t wide = s->nope + s->rope;
        for (int64_t t = 0; t < rows; t++) {
            float *row = query + (t * s->heads + h) * wide;
            turn(row + s->nope, position(t));
            for (int64_t i = 0; l->key_scales && i < s->nope; i++) row[i] *= l->key_scales[h * s->nope + i];
            query_in.ready(t * s->heads + h, t * s->heads + h + 1);
        }
        Linear up = Linear::of(Weight::of(l->key_up, s->nope).from(h * l->key_up.apart), query_in, rows, s->latent,
                               absorbed + h * entry, s->heads * entry);
        up.first = h, up.every = s->heads;
        up.all_of_it();
        for (int64_t t = 0; t < rows; t++) {
            float *to = absorbed + (t * s->heads + h) * entry;
            memcpy(to + s->latent, query + (t * s->heads + h) * wide + s->nope, size_t(s->rope) * sizeof(float));
            for (int64_t i = 0; i < s->latent + s->rope; i++) to[i] *= s->scale;
            for (int64_t i = s->latent + s->rope; i < entry; i++) to[i] = 0;
        }
    }
    void absorb_or_enter(int64_t at) {
        if (at < s->heads) absorb(at);
        else enter(at - s->heads);
    }

    // Queries, and the new latents into the cache.
    void look() {
        l = s->layers + layer + 1;
        const bool down = l->query_down.numbers;
        const int64_t outputs = s->heads * (s->nope + s->rope);
        normed_in.suit(l->latent), low_in.suit(l->query), query_in.suit(l->key_up);
        each_row<&Part::norm_to_look>();
        one = down ? Linear::of(Weight::of(l->query_down, s->dim), normed_in, rows, s->query_rank, low, s->query_rank)
                   : Linear::of(Weight::of(l->query, s->dim), normed_in, rows, outputs, query, outputs);
        other = Linear::of(Weight::of(l->latent, s->dim), normed_in, rows, kept, latent, kept);
        each<&Part::some_of_two>(one.pieces() + other.pieces());
        if (down) {
            each_row<&Part::norm_query>();
            one = Linear::of(Weight::of(l->query, s->query_rank), low_in, rows, outputs, query, outputs);
            each<&Part::some_of_one>(one.pieces());
        }
        if (s->shared) each_row<&Part::turn_heads>();
        else each<&Part::absorb_or_enter>(s->heads + rows);
    }

    // Some queries over a span of their keys.
    void attend(int64_t at) {
        const Together &g = groups[at / spans];
        const int64_t chunks = chunks_of(g), end = (at % spans + 1) * chunks / spans;
        int64_t c = at % spans * chunks / spans;
        if (c == end) return;
        alignas(64) uint32_t laid[MOST_CHANNELS / 2 * QUERIES];
        alignas(64) float out[QUERIES * MOST_CHANNELS];
        float top[QUERIES], sum[QUERIES];
        Asking a;
        a.count = a.longest = 0, a.value = value, a.padded = padded + at * KEYS * entry, a.laid = laid;
        for (int64_t t = g.begin; t < g.end; t++)
            for (int64_t h = g.head; h < least(g.head + together, (g.head / alike + 1) * alike); h++, a.count++) {
                a.query[a.count] = absorbed + (t * s->heads + h) * entry;
                a.seen[a.count] = position(t) + 1;
                a.longest = a.seen[a.count];  // tokens come in order
            }
        if (s->short_store) lay_queries(a, key, laid);
        const Pages there = pages(text[g.begin], layer, s->shared ? g.head / alike * key : 0);
        for (; c < end; c++) {
            const Mixed to = slot(g.slot + (spans > 1 ? c : 0));
            if (spans > 1 || !c) {
                attend_chunk(a, there, c, to);
                continue;
            }
            attend_chunk(a, there, c, {top, sum, out});
            for (int64_t r = 0; r < a.count; r++)
                if (a.seen[r] > c * CHUNK)
                    join_query(to.top[r], to.sum[r], to.out + r * value, top[r], sum[r], out + r * value, value);
        }
    }

    // Of a head: what its queries gathered, through the values' up-projection if there is one.
    void values_of(int64_t h) {
        for (int64_t t = 0; t < rows; t++) {
            const Together &g = groups[group_of[t] + h / alike * by_key + h % alike / together];
            const int64_t r = (t - g.begin) * together + h % alike % together;
            const Mixed from = slot(g.slot);
            float *to = mixed + (t * s->heads + h) * value, top = from.top[r], sum = from.sum[r];
            memcpy(to, from.out + r * value, size_t(value) * sizeof(float));
            for (int64_t c = 1; spans > 1 && c <= position(t) / CHUNK; c++) {
                const Mixed more = slot(g.slot + c);
                join_query(top, sum, to, more.top[r], more.sum[r], more.out + r * value, value);
            }
            for (int64_t i = 0; i < value; i += WIDE) store(to + i, quotient(load(to + i), all(sum)));
            if (!s->shared) mixed_in.ready(t * s->heads + h, t * s->heads + h + 1);
        }
        if (s->shared) return;
        Linear up = Linear::of(Weight::of(l->value_up, s->latent).from(h * l->value_up.apart), mixed_in, rows, s->value,
                               attended + h * s->value, s->heads * s->value);
        up.first = h, up.every = s->heads;
        up.all_of_it();
    }

    void attended_row(int64_t t) { attended_in.ready(t, t + 1); }

    void attention() {
        mixed_in.suit(l->value_up), attended_in.suit(l->out);
        each<&Part::attend>(group_count * spans);
        each<&Part::values_of>(s->heads);
        if (l->out.kind != LEANSEEK_PLAIN) each_row<&Part::attended_row>();
        one = Linear::of(Weight::of(l->out, s->heads * s->value), attended_in, rows, s->dim, added, s->dim);
        each<&Part::some_added>(one.pieces());
    }

    void norm_to_feed(int64_t t) {
        norm_row(stream + t * s->dim, l->mlp_norm, s->dim, s->eps, normed + t * s->dim);
        normed_in.ready(t, t + 1);
    }
    void route_row(int64_t t) {
        route(*s, l->bias, scores + t * in_lanes(s->experts), chosen + t * s->per_token, weights + t * s->per_token);
    }
    void some_first(int64_t at) {
        const int64_t before = l->router.numbers ? one.pieces() : 0;
        if (at < before) one.some(at);
        else shared.some_hidden(at - before);
    }
    void some_hidden(int64_t at) { routed.some_hidden(at); }
    void some_out(int64_t at) {
        const int64_t step = l->gate_up.numbers ? shared.step : routed.step, first = at * step * PANEL;
        const int64_t width = least(step * PANEL, s->dim - first);
        for (int64_t t = 0; t < rows; t++) memset(added + t * s->dim + first, 0, size_t(width) * sizeof(float));
        if (l->router.numbers) routed.some_out(at);
        if (l->gate_up.numbers) shared.some_out(at);
        add_some(first, width);
    }

    void mlp() {
        const bool mixture = l->router.numbers, dense = l->gate_up.numbers;
        normed_in.suit(dense ? l->gate_up : l->experts_gate_up);
        each_row<&Part::norm_to_feed>();
        shared.x = routed.x = normed_in;
        if (dense)
            shared.choose(Weight::of(l->gate_up, s->dim), Weight::of(l->down, l->width), l->width, rows, noughts);
        if (mixture)
            one = Linear::of(Weight::of(l->router, s->dim), normed_in, rows, s->experts, scores, in_lanes(s->experts));
        each<&Part::some_first>((mixture ? one.pieces() : 0) + (dense ? shared.hidden_pieces() : 0));
        if (mixture) {
            each_row<&Part::route_row>();
            routed.choose(Weight::of(l->experts_gate_up, s->dim), Weight::of(l->experts_down, s->expert_width),
                          s->expert_width, rows, chosen);
            tell();
            each<&Part::some_hidden>(routed.hidden_pieces());
        }
        each<&Part::some_out>(dense ? shared.out_pieces() : routed.out_pieces());
    }

    void tell() const {
        if (!b->chosen) return;
        int64_t mixtures = 0, index = 0;
        for (int64_t i = 0; i < s->count; i++) {
            if (i == layer) index = mixtures;
            mixtures += s->layers[i].router.numbers != nullptr;
        }
        for (int64_t t = 0; t < rows; t++)
            memcpy(b->chosen + ((begin + t) * mixtures + index) * s->per_token, chosen + t * s->per_token,
                   size_t(s->per_token) * sizeof(int64_t));
    }

    void norm_last(int64_t t) {
        float *out = b->out + (begin + t) * s->dim;
        norm_row(stream + t * s->dim, s->norm, s->dim, s->eps, out);
        if (!b->logits) return;
        memcpy(normed + t * s->dim, out, size_t(s->dim) * sizeof(float));
        normed_in.ready(t, t + 1);
    }
    void finish() {
        normed_in.suit(s->head);
        each_row<&Part::norm_last>();
        if (!b->logits) return;
        one = Linear::of(Weight::of(s->head, s->dim), normed_in, rows, s->vocabulary, b->logits + begin * s->vocabulary,
                         s->vocabulary);
        each<&Part::some_of_one>(one.pieces());
    }

    // What comes between two layers' new entries in the cache: the rest of a layer, and the beginning of the next.
    void go_on(int64_t after) {
        if (!rows) return;
        layer = after;
        if (layer < 0) {
            embed();
        } else {
            l = s->layers + layer;
            attention();
            mlp();
        }
        if (layer + 1 < s->count) look();
        else finish();
    }
};

}  // namespace
