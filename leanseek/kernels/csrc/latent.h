// Attention over a cache in pages. Absorbed: all heads share a token's latent as key and, its first part, as value.
// Grouped: some heads share a key, and a value that stands elsewhere in the token's entry.
//
// Keys come in chunks from the text's first token on, each with a softmax of its own, and a query's chunks are joined one
// after the other: so its sums depend neither on the queries beside it nor on which thread has which chunk, nor on how
// the cache is cut into pages. Latents in bf16 are multiplied as such (flash.h); those in fp32 by fp32 here.
#pragma once
#include "flash.h"
#include "product.h"

namespace {

const int64_t QUERIES = FLASH_LANES;  // queries (tokens times heads) that share keys while these are near
const int64_t KEYS = FLASH_KEYS;      // keys whose scores are in memory at once
const int64_t CHUNK = 2 * KEYS;

// One layer of the cache, as one text sees it: pages of `page` tokens, `width` numbers each. Of these `key` are looked
// at, from `shift` on, and what is mixed stands `to_value` behind their beginning.
struct Pages {
    char *store;
    const int64_t *table;
    int64_t page, width, size;  // size: bytes of a number
    int64_t key, shift, to_value;

    char *at(int64_t position) const {
        return store + ((table[position / page] * page + position % page) * width + shift) * size;
    }
};

// Queries of one text.
struct Asking {
    const float *query[QUERIES];  // [width in lanes], zeros behind, scaled
    int64_t seen[QUERIES];        // how many keys each may look at
    int64_t count, longest, value;  // value: the mixed latents' width, a multiple of the lanes
    float *padded;                // [KEYS, width in lanes], where fp32 entries are no multiple of the lanes
    uint32_t *laid;               // the queries as flash.h takes them, for latents in bf16
};

// What some queries have gathered from some keys.
struct Mixed {
    float *top, *sum, *out;  // [QUERIES], [QUERIES], [QUERIES, value]
};

// Add keys' values, [16 P] of them from `at` on, to what the queries have mixed so far.
template <int P>
void add_values(const Asking &a, float (*shares)[KEYS], float *out, int64_t key, const float *values, int64_t step,
                int64_t keys, int64_t at) {
    int64_t r = 0;
    for (; r + 4 <= a.count; r += 4) {
        const float *each[4];
        for (int m = 0; m < 4; m++) each[m] = shares[r + m] + key;
        panel_tile<4, P, true>(each, values + at, WIDE, step, keys, out + r * a.value + at, a.value);
    }
    for (; r < a.count; r++) {
        const float *each = shares[r] + key;
        panel_tile<1, P, true>(&each, values + at, WIDE, step, keys, out + r * a.value + at, 0);
    }
}

// Gather from fp32 keys [begin, begin + count) of a text.
inline void gather_plain(const Asking &a, const Pages &pages, int64_t begin, int64_t count, float (*sums)[WIDE],
                         const Mixed &to) {
    const int64_t wide = in_lanes(pages.key), step = wide == pages.key ? pages.width : wide;
    const float *keys[KEYS];
    float shares[QUERIES][KEYS];
    for (int64_t t = 0; t < count; t++) {
        keys[t] = reinterpret_cast<const float *>(pages.at(begin + t));
        if (wide == pages.key) continue;
        float *row = a.padded + t * wide;
        memcpy(row, keys[t], size_t(pages.key) * sizeof(float));
        memset(row + pages.key, 0, size_t(wide - pages.key) * sizeof(float));
        keys[t] = row;
    }
    for (int64_t r = 0; r < a.count; r += 4)
        for (int64_t t = 0; t < count; t += 4) {
            const float *q[4], *k[4];
            float *scores[4], spare[4];
            for (int i = 0; i < 4; i++) {
                q[i] = a.query[least(r + i, a.count - 1)];
                scores[i] = r + i < a.count ? shares[r + i] + t : spare;
                k[i] = keys[least(t + i, count - 1)];
            }
            Lanes products[16];
            for (int i = 0; i < 16; i++) products[i] = all(0.0f);
            for (int64_t c = 0; c < wide; c += WIDE) {
                Lanes query[4];
                for (int j = 0; j < 4; j++) query[j] = load(q[j] + c);
                for (int g = 0; g < 4; g++) {
                    const Lanes key = load(k[g] + c);
                    for (int j = 0; j < 4; j++) products[4 * g + j] = fma(query[j], key, products[4 * g + j]);
                }
            }
            quads(products, scores);
        }
    for (int64_t r = 0; r < a.count; r++) {
        float *of = shares[r], *out = to.out + r * a.value;
        const int64_t visible = least(count, a.seen[r] > begin ? a.seen[r] - begin : 0);
        for (int64_t t = visible; t < KEYS; t++) of[t] = -INFINITY;
        if (!visible) {  // and never was anything of this chunk, or this adds nothing
            for (int64_t t = 0; t < KEYS; t++) of[t] = 0;
            continue;
        }
        Lanes most = all(-INFINITY);
        for (int64_t t = 0; t < KEYS; t += WIDE) most = larger(most, load(of + t));
        const float above = largest(most) > to.top[r] ? largest(most) : to.top[r];
        const Lanes off = all(above), scale = exponential(sub(all(to.top[r]), off));
        Lanes sum = mul(load(sums[r]), scale);
        for (int64_t t = 0; t < KEYS; t += WIDE) {
            const Lanes share = exponential(sub(load(of + t), off));
            store(of + t, share);
            sum = add(sum, share);
        }
        store(sums[r], sum);
        for (int64_t c = 0; c < a.value; c += WIDE) store(out + c, mul(load(out + c), scale));
        to.top[r] = above;
    }
    for (int64_t t = 0; t < count;) {  // as far as the keys lie one behind the other
        int64_t end = t + 1, c = 0;
        while (end < count && keys[end] == keys[t] + (end - t) * step) end++;
        const float *of = keys[t] + pages.to_value;
        for (; c + 4 * WIDE <= a.value; c += 4 * WIDE) add_values<4>(a, shares, to.out, t, of, step, end - t, c);
        if (a.value - c == 3 * WIDE) add_values<3>(a, shares, to.out, t, of, step, end - t, c);
        if (a.value - c == 2 * WIDE) add_values<2>(a, shares, to.out, t, of, step, end - t, c);
        if (a.value - c == WIDE) add_values<1>(a, shares, to.out, t, of, step, end - t, c);
        t = end;
    }
}

inline void plain_chunk(const Asking &a, const Pages &pages, int64_t begin, int64_t end, const Mixed &to) {
    float sums[QUERIES][WIDE] = {{0}};
    for (int64_t r = 0; r < a.count; r++) to.top[r] = -INFINITY;
    memset(to.out, 0, size_t(a.count * a.value) * sizeof(float));
    for (int64_t t = begin; t < end; t += KEYS) gather_plain(a, pages, t, least(KEYS, end - t), sums, to);
    for (int64_t r = 0; r < a.count; r++) to.sum[r] = total(load(sums[r]));
}

inline void short_chunk(const Asking &a, const Pages &pages, int64_t begin, int64_t end, const Mixed &to) {
    Gathered q;
    q.queries = a.laid, q.channels = pages.key, q.width = a.value, q.out = to.out;
    q.begin();
    for (int64_t t = begin; t < end; t += KEYS) {
        const int some = int(least(KEYS, end - t));
        const uint16_t *keys[KEYS], *values[KEYS];
        int64_t limits[FLASH_LANES];
        for (int l = 0; l < FLASH_LANES; l++) limits[l] = l < a.count ? a.seen[l] - t : 0;
        for (int i = 0; i < some; i++) {
            keys[i] = reinterpret_cast<const uint16_t *>(pages.at(t + i));
            values[i] = keys[i] + pages.to_value;
        }
        gather(q, keys, values, some, limits);
    }
    memcpy(to.top, q.top, sizeof(q.top)), memcpy(to.sum, q.sum, sizeof(q.sum));
}

// One chunk's keys, by themselves; a query that sees none of them gets what does not count.
inline void attend_chunk(const Asking &a, const Pages &pages, int64_t chunk, const Mixed &to) {
    const int64_t begin = chunk * CHUNK, end = least(begin + CHUNK, a.longest);
    if (pages.size == 2) short_chunk(a, pages, begin, end, to);
    else plain_chunk(a, pages, begin, end, to);
}

// Add to what a query has gathered what it gathered from a later chunk.
inline void join_query(float &top, float &sum, float *out, float other_top, float other_sum, const float *other,
                       int64_t width) {
    const float above = other_top > top ? other_top : top, mine = power(top - above), theirs = power(other_top - above);
    const Lanes a = all(mine), b = all(theirs);
    for (int64_t c = 0; c < width; c += WIDE)
        store(out + c, fma(load(other + c), b, mul(load(out + c), a)));
    top = above, sum = sum * mine + other_sum * theirs;
}

// Put the queries side by side, channel by channel, as pairs of bf16.
inline void lay_queries(const Asking &a, int64_t width, uint32_t *laid) {
    uint32_t pairs[FLASH_LANES][FLASH_LANES] = {{0}};
    for (int64_t c = 0; c < width; c += 2 * FLASH_LANES) {
        const int64_t some = least(FLASH_LANES, (width - c) / 2);
        for (int64_t l = 0; l < a.count; l++)
            for (int64_t i = 0; i < some; i++) pairs[l][i] = two(a.query[l][c + 2 * i], a.query[l][c + 2 * i + 1]);
        for (int64_t i = 0; i < some; i++)
            for (int64_t l = 0; l < FLASH_LANES; l++) laid[(c / 2 + i) * FLASH_LANES + l] = pairs[l][i];
    }
}

}  // namespace
