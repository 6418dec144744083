// Causal attention as training has it: fp32, forward and backward; twin of leanseek/kernels/causal.py.
//
// Keys and values are rebuilt from a latent (each head's own, without position) and one turned key is shared by all
// heads. Some queries of a text at a time, and all keys that they see: their scores stay in the second cache. Each head
// is one thread's, and sums over heads are taken in their order: the same numbers give the same bits, whatever the
// number of threads.
#pragma once
#include "product_by_rows.h"
#include "table.h"

namespace {

const int64_t AT_ONCE = 64;  // of a text at a time

// Channel pairs turned by their position's angle; BACK: the other way, as gradients are.
template <bool BACK> inline void turn(const float *from, const float *turns, int64_t width, float *to) {
    for (int64_t i = 0; i < width; i += 2) {
        const float a = from[i], b = from[i + 1], c = turns[i], s = BACK ? -turns[i + 1] : turns[i + 1];
        to[i] = a * c - b * s, to[i + 1] = a * s + b * c;
    }
}

struct Causal {
    const leanseek_attention &of;
    int threads;
    int64_t channels, row, pair;  // of a key; floats between tokens' queries, and their keys and values
    int64_t longest = 0;          // keys of a text, in whole lanes
    float *turned = nullptr;      // [tokens, turned]: the shared keys
    float *parts = nullptr;       // [heads, tokens, turned]: each head's part of their gradient
    int failed = 0;

    Causal(const leanseek_attention &given, int most) : of(given), threads(most) {
        channels = of.nope + of.turned, row = of.heads * channels, pair = of.heads * (of.nope + of.value);
        for (int64_t s = 0; s < of.segments; s++) {
            const int64_t keys = in_lanes(span(s)[1] + span(s)[3]);
            longest = keys > longest ? keys : longest;
        }
    }

    const int64_t *span(int64_t s) const { return of.spans + 4 * s; }

    // What a thread works in.
    struct Own {
        Matrix key_rows, value_rows, query, scores, slopes, given, found, keys_sum, values_sum;
        Strips keys, keys_turned, values, values_turned, queries, givens;

        void take(Room &room, const Causal &of, bool back) {
            const int64_t wide = of.channels, value = of.of.value, most = of.longest;
            key_rows = {room.take<float>(most * wide), wide}, value_rows = {room.take<float>(most * value), value};
            query = matrix(room, AT_ONCE, wide), scores = matrix(room, AT_ONCE, most);
            found = matrix(room, AT_ONCE, wide > value ? wide : value);
            keys_turned = strips(room, wide, most);
            if (!back) {
                values = strips(room, most, value);
                return;
            }
            slopes = matrix(room, AT_ONCE, most), given = matrix(room, AT_ONCE, value);
            keys_sum = matrix(room, most, wide), values_sum = matrix(room, most, value);
            keys = strips(room, most, wide), values_turned = strips(room, value, most);
            queries = strips(room, AT_ONCE, wide), givens = strips(room, AT_ONCE, value);
        }
    };

    template <bool BACK> static void piece(void *work, int64_t begin, int64_t end) {
        Causal &self = *static_cast<Causal *>(work);
        Room counted;
        Own own;
        own.take(counted, self, BACK);
        Room room(counted.used);
        if (!room.memory) {
            __atomic_store_n(&self.failed, 1, __ATOMIC_RELAXED);
            return;
        }
        own.take(room, self, BACK);
        for (int64_t h = begin; h < end; h++)
            for (int64_t s = 0; s < self.of.segments; s++) BACK ? self.backward(h, s, own) : self.forward(h, s, own);
    }

    // A text's token by the number of its key: those of the prefix come first.
    static int64_t token(const int64_t *at, int64_t key) { return key < at[3] ? at[2] + key : at[0] + key - at[3]; }

    // A head's keys and values of a text, filled up with nought to whole lanes.
    void gather(int64_t h, const int64_t *at, const Own &own) const {
        const int64_t count = at[1] + at[3], whole = in_lanes(count);
        for (int64_t k = 0; k < count; k++) {
            const int64_t t = token(at, k);
            const float *from = of.keys_values + t * pair + h * (of.nope + of.value);
            memcpy(own.key_rows.row(k), from, size_t(of.nope) * sizeof(float));
            memcpy(own.key_rows.row(k) + of.nope, turned + t * of.turned, size_t(of.turned) * sizeof(float));
            memcpy(own.value_rows.row(k), from + of.nope, size_t(of.value) * sizeof(float));
        }
        memset(own.key_rows.row(count), 0, size_t((whole - count) * channels) * sizeof(float));
        memset(own.value_rows.row(count), 0, size_t((whole - count) * of.value) * sizeof(float));
        turned_into_strips(own.keys_turned, own.key_rows.at, whole, channels, 0);
    }

    // The scores of some queries, from `first` of the text on, with all keys up to the last one's own: [some, whole].
    void score(int64_t h, const int64_t *at, int64_t first, int64_t some, int64_t whole, const Own &own) const {
        for (int64_t i = 0; i < some; i++) {
            const int64_t t = at[0] + first + i;
            const float *from = of.queries + t * row + h * channels;
            memcpy(own.query.row(i), from, size_t(of.nope) * sizeof(float));
            turn<false>(from + of.nope, of.turns + t * of.turned, of.turned, own.query.row(i) + of.nope);
        }
        product_by_rows(some, whole, channels, own.query, own.keys_turned, own.scores);
        for (int64_t i = 0; i < some; i++)
            for (int64_t k = at[3] + first + i + 1; k < whole; k++) own.scores.row(i)[k] = -INFINITY;
    }

    void forward(int64_t h, int64_t s, const Own &own) const {
        const int64_t *at = span(s);
        gather(h, at, own);
        into_strips(own.values, own.value_rows.at, of.value, at[1] + at[3], of.value, 0);
        const Lanes scale = all(of.scale);
        for (int64_t first = 0; first < at[1]; first += AT_ONCE) {
            const int64_t some = least(AT_ONCE, at[1] - first), seen = at[3] + first + some, whole = in_lanes(seen);
            score(h, at, first, some, whole, own);
            float sums[AT_ONCE];
            for (int64_t i = 0; i < some; i++) {
                float *scores = own.scores.row(i);
                Lanes most = load(scores), sum = all(0.0f);
                for (int64_t k = WIDE; k < whole; k += WIDE) most = larger(most, load(scores + k));
                const float top = largest(most);
                for (int64_t k = 0; k < whole; k += WIDE) {
                    const Lanes share = exponential(mul(sub(load(scores + k), all(top)), scale));
                    sum = add(sum, share);
                    store(scores + k, share);
                }
                sums[i] = total(sum);
                of.logs[h * of.tokens + at[0] + first + i] = top * of.scale + logf(sums[i]);
            }
            product_by_rows(some, of.value, seen, own.scores, own.values, own.found);
            for (int64_t i = 0; i < some; i++) {
                float *to = of.out + ((at[0] + first + i) * of.heads + h) * of.value;
                const Lanes share = all(1.0f / sums[i]);
                for (int64_t v = 0; v < of.value; v += WIDE) store(to + v, mul(load(own.found.row(i) + v), share));
            }
        }
    }

    void backward(int64_t h, int64_t s, const Own &own) const {
        const int64_t *at = span(s), count = at[1] + at[3];
        gather(h, at, own);
        into_strips(own.keys, own.key_rows.at, channels, count, channels, 0);
        turned_into_strips(own.values_turned, own.value_rows.at, in_lanes(count), of.value, 0);
        memset(own.keys_sum.at, 0, size_t(count * own.keys_sum.apart) * sizeof(float));
        memset(own.values_sum.at, 0, size_t(count * own.values_sum.apart) * sizeof(float));
        for (int64_t first = 0; first < at[1]; first += AT_ONCE) {
            const int64_t some = least(AT_ONCE, at[1] - first), seen = at[3] + first + some, whole = in_lanes(seen);
            score(h, at, first, some, whole, own);
            for (int64_t i = 0; i < some; i++) {
                const int64_t spot = ((at[0] + first + i) * of.heads + h) * of.value;
                memcpy(own.given.row(i), of.out_gradient + spot, size_t(of.value) * sizeof(float));
            }
            product_by_rows(some, whole, of.value, own.given, own.values_turned, own.slopes);
            for (int64_t i = 0; i < some; i++) through_softmax(h, at[0] + first + i, i, whole, own);
            into_strips(own.queries, own.query.at, own.query.apart, some, channels, 0);
            into_strips(own.givens, own.given.at, own.given.apart, some, of.value, 0);
            product_by_rows<true>(seen, of.value, some, own.scores, own.givens, own.values_sum, true);
            product_by_rows<true>(seen, channels, some, own.slopes, own.queries, own.keys_sum, true);
            product_by_rows(some, channels, seen, own.slopes, own.keys, own.found);
            for (int64_t i = 0; i < some; i++) {
                const int64_t t = at[0] + first + i;
                float *to = of.queries_gradient + t * row + h * channels;
                memcpy(to, own.found.row(i), size_t(of.nope) * sizeof(float));
                turn<true>(own.found.row(i) + of.nope, of.turns + t * of.turned, of.turned, to + of.nope);
            }
        }
        // A text comes before those that go on from it: what is a prefix's is there by now, and is added to.
        for (int64_t k = 0; k < count; k++) {
            const int64_t t = token(at, k);
            float *pairs = of.keys_values_gradient + t * pair + h * (of.nope + of.value);
            const float *keys = own.keys_sum.row(k), *values = own.values_sum.row(k);
            put(pairs, keys, of.nope, k < at[3]);
            put(pairs + of.nope, values, of.value, k < at[3]);
            put(parts + (h * of.tokens + t) * of.turned, keys + of.nope, of.turned, k < at[3]);
        }
    }

    static void put(float *to, const float *from, int64_t count, bool more) {
        for (int64_t i = 0; i < count; i++) to[i] = more ? to[i] + from[i] : from[i];
    }

    // A row of scores becomes shares, and the gradient of the shares that of the products of queries and keys.
    void through_softmax(int64_t h, int64_t t, int64_t i, int64_t whole, const Own &own) const {
        const float *mixed = of.out + (t * of.heads + h) * of.value;
        Lanes sum = all(0.0f);
        for (int64_t v = 0; v < of.value; v += WIDE) sum = fma(load(own.given.row(i) + v), load(mixed + v), sum);
        const Lanes mean = all(total(sum)), scale = all(of.scale), least_log = all(-of.logs[h * of.tokens + t]);
        float *scores = own.scores.row(i), *slopes = own.slopes.row(i);
        for (int64_t k = 0; k < whole; k += WIDE) {
            const Lanes share = exponential(fma(load(scores + k), scale, least_log));
            store(scores + k, share);
            store(slopes + k, mul(mul(share, scale), sub(load(slopes + k), mean)));
        }
    }

    template <bool BACK> int run() {
        if (of.tokens <= 0) return 0;
        const int64_t shared = of.tokens * of.turned;
        Room room(Room::bytes<float>(shared) + (BACK ? Room::bytes<float>(of.heads * shared) : 0));
        if (!room.memory) return 1;
        turned = room.take<float>(shared);
        for (int64_t t = 0; t < of.tokens; t++)
            turn<false>(of.rope + t * of.turned, of.turns + t * of.turned, of.turned, turned + t * of.turned);
        if (BACK) parts = room.take<float>(of.heads * shared);
        leanseek_parallel_for(piece<BACK>, this, of.heads, threads);
        if (failed) return 1;
        if (BACK) {
            for (int64_t h = 1; h < of.heads; h++) put(parts, parts + h * shared, shared, true);
            for (int64_t t = 0; t < of.tokens; t++)
                turn<true>(parts + t * of.turned, of.turns + t * of.turned, of.turned, of.rope_gradient + t * of.turned);
        }
        return 0;
    }
};

int attend_forward(int threads, const leanseek_attention *given) { return Causal(*given, threads).run<false>(); }
int attend_backward(int threads, const leanseek_attention *given) { return Causal(*given, threads).run<true>(); }

}  // namespace
