// Absorbed attention over latents in pages: all heads share a token's latent as key and, its first part, as value.
//
// Keys come in blocks of KEYS from the text's first token on, and a query's softmax is carried from block to block: so
// its sums do not depend on the queries beside it, nor on how the cache is cut into pages.
#pragma once
#include "product.h"

namespace {

const int64_t KEYS = 64;     // keys of a block
const int64_t QUERIES = 32;  // queries (tokens times heads) that share a block of keys while it is near

// One layer of the cache, as one text sees it: pages of `page` tokens, `width` numbers each.
struct Pages {
    float *store;
    const int64_t *table;
    int64_t page, width;

    float *at(int64_t position) const {
        return store + (table[position / page] * page + position % page) * width;
    }
};

// What a group of queries needs beside the queries themselves.
struct Attending {
    const float *query[QUERIES];   // [width in lanes], zeros behind, scaled
    int64_t seen[QUERIES];         // how many keys each may look at
    float *out[QUERIES];           // [value], a multiple of the lanes; equally far apart
    float most[QUERIES];
    float sums[QUERIES][WIDE];
    float shares[QUERIES][KEYS];
    float *padded;                 // [KEYS, width in lanes], where the width is no multiple of the lanes
    int64_t count, value;
};

// Add keys' values, [16 P] of them from `at` on, to what the queries have mixed so far.
template <int P>
void mix(const Attending &a, int64_t key, const float *values, int64_t step, int64_t keys, int64_t at) {
    int64_t r = 0;
    for (; r + 4 <= a.count; r += 4) {
        const float *shares[4];
        for (int m = 0; m < 4; m++) shares[m] = a.shares[r + m] + key;
        tile<4, P, true>(shares, values + at, WIDE, step, keys, a.out[r] + at, a.out[r + 1] - a.out[r]);
    }
    for (; r < a.count; r++) {
        const float *shares = a.shares[r] + key;
        tile<1, P, true>(&shares, values + at, WIDE, step, keys, a.out[r] + at, 0);
    }
}

// Take up the keys [begin, begin + count) of a text.
inline void attend_block(Attending &a, const Pages &pages, int64_t begin, int64_t count) {
    const int64_t wide = in_lanes(pages.width);
    const float *keys[KEYS];
    for (int64_t t = 0; t < count; t++) {
        keys[t] = pages.at(begin + t);
        if (wide == pages.width) continue;
        float *row = a.padded + t * wide;
        memcpy(row, keys[t], size_t(pages.width) * sizeof(float));
        memset(row + pages.width, 0, size_t(wide - pages.width) * sizeof(float));
        keys[t] = row;
    }
    for (int64_t r = 0; r < a.count; r += 4)
        for (int64_t t = 0; t < count; t += 4) {
            const float *q[4], *k[4];
            float *to[4], spare[4];
            for (int i = 0; i < 4; i++) {
                q[i] = a.query[least(r + i, a.count - 1)];
                to[i] = r + i < a.count ? a.shares[r + i] + t : spare;
                k[i] = keys[least(t + i, count - 1)];
            }
            Lanes sums[16];
            for (int i = 0; i < 16; i++) sums[i] = all(0.0f);
            for (int64_t c = 0; c < wide; c += WIDE) {
                Lanes query[4];
                for (int j = 0; j < 4; j++) query[j] = load(q[j] + c);
                for (int g = 0; g < 4; g++) {
                    const Lanes key = load(k[g] + c);
                    for (int j = 0; j < 4; j++) sums[4 * g + j] = fma(query[j], key, sums[4 * g + j]);
                }
            }
            quads(sums, to);
        }
    for (int64_t r = 0; r < a.count; r++) {
        float *shares = a.shares[r];
        for (int64_t t = least(count, a.seen[r] > begin ? a.seen[r] - begin : 0); t < KEYS; t++) shares[t] = -INFINITY;
        Lanes most = all(-INFINITY);
        for (int64_t t = 0; t < KEYS; t += WIDE) most = larger(most, load(shares + t));
        const float above = largest(most) > a.most[r] ? largest(most) : a.most[r];
        const Lanes off = all(above), scale = exponential(sub(all(a.most[r]), off));
        Lanes sums = mul(load(a.sums[r]), scale);
        for (int64_t t = 0; t < KEYS; t += WIDE) {
            const Lanes share = exponential(sub(load(shares + t), off));
            store(shares + t, share);
            sums = add(sums, share);
        }
        store(a.sums[r], sums);
        for (int64_t c = 0; c < a.value; c += WIDE) store(a.out[r] + c, mul(load(a.out[r] + c), scale));
        a.most[r] = above;
    }
    for (int64_t t = 0; t < count;) {  // as far as the keys lie one behind the other
        int64_t end = t + 1;
        while (end < count && keys[end] == keys[t] + (end - t) * wide) end++;
        int64_t c = 0;
        for (; c + 4 * WIDE <= a.value; c += 4 * WIDE) mix<4>(a, t, keys[t], wide, end - t, c);
        if (a.value - c == 3 * WIDE) mix<3>(a, t, keys[t], wide, end - t, c);
        if (a.value - c == 2 * WIDE) mix<2>(a, t, keys[t], wide, end - t, c);
        if (a.value - c == WIDE) mix<1>(a, t, keys[t], wide, end - t, c);
        t = end;
    }
}

// Attend with `a.count` queries of one text; `a.out` gets every query's mixed latent.
inline void attend(Attending &a, const Pages &pages) {
    int64_t longest = 0;
    for (int64_t r = 0; r < a.count; r++) {
        if (a.seen[r] > longest) longest = a.seen[r];
        a.most[r] = -INFINITY;
        memset(a.sums[r], 0, sizeof(a.sums[r]));
        memset(a.out[r], 0, size_t(a.value) * sizeof(float));
    }
    for (int64_t t = 0; t < longest; t += KEYS) attend_block(a, pages, t, least(KEYS, longest - t));
    for (int64_t r = 0; r < a.count; r++) {
        const Lanes sum = all(total(load(a.sums[r])));
        for (int64_t c = 0; c < a.value; c += WIDE) store(a.out[r] + c, quotient(load(a.out[r] + c), sum));
    }
}

}  // namespace
