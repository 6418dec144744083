// Attention whose operands are rounded to bf16 and whose scores are never all in memory; twin of
// leanseek/kernels/flash.py. Sixteen queries are the lanes of a register: sixteen positions of one head, or one
// position's heads where all of them share the keys (absorbed attention).
#pragma once
#include "numbers.h"
#include "room.h"
#include "table.h"

#if defined(LEANSEEK_IS_avx512)
#include <immintrin.h>
#endif

namespace {

const int FLASH_LANES = 16;  // lanes
const int FLASH_KEYS = 64;     // keys whose scores are in memory at once
const int MOST_CHANNELS = 1024;  // leanseek/kernels/flash.py and stack.py know it too

// Queries, as pairs of channels [channels / 2][16], and what they have gathered up to now.
struct Gathered {
    const uint32_t *queries;
    int64_t channels, width;
    float top[FLASH_LANES], sum[FLASH_LANES];  // largest score; sum of e^(score - top)
    float *out;                        // [16, width]: sum of e^(score - top) * value

    void begin() {
        for (int l = 0; l < FLASH_LANES; l++) top[l] = -INFINITY, sum[l] = 0;
        memset(out, 0, size_t(FLASH_LANES * width) * sizeof(float));
    }
};

inline uint32_t two(float first, float second) {
    bf16 a, b;
    from_float(first, a), from_float(second, b);
    return uint32_t(a.bits) | uint32_t(b.bits) << 16;
}

// Lay a query's channels into a lane.
inline void lay(const float *query, int64_t channels, float scale, uint32_t *queries, int lane) {
    for (int64_t c = 0; c < channels; c += 2) queries[c / 2 * FLASH_LANES + lane] = two(query[c] * scale, query[c + 1] * scale);
}

#if defined(LEANSEEK_IS_avx512)

inline __m512 pairs_product(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

inline __m512i shared_pair(const uint16_t *numbers) {
    int32_t pair;
    memcpy(&pair, numbers, 4);
    return _mm512_set1_epi32(pair);
}

// Scores of some keys with all lanes; `keys` has a multiple of 8.
inline void score(const Gathered &q, const uint16_t *const *keys, int count, float (*scores)[FLASH_LANES]) {
    for (int k = 0; k < count; k += 8) {
        __m512 sum[8];
        for (int i = 0; i < 8; i++) sum[i] = _mm512_setzero_ps();
        for (int64_t c = 0; c < q.channels / 2; c++) {
            const __m512i query = _mm512_loadu_si512(q.queries + c * FLASH_LANES);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) sum[i] = pairs_product(sum[i], query, shared_pair(keys[k + i] + 2 * c));
        }
        for (int i = 0; i < 8; i++) _mm512_storeu_ps(scores[k + i], sum[i]);
    }
}

// Add values, each with its weight: pairs of keys' weights, [keys / 2][16].
inline void mix(const Gathered &q, const uint16_t *const *values, int count, const uint32_t (*weights)[FLASH_LANES]) {
    for (int64_t c = 0; c < q.width; c += 16) {
        __m512 sum[FLASH_LANES];
        for (int l = 0; l < FLASH_LANES; l++) sum[l] = _mm512_loadu_ps(q.out + l * q.width + c);
        for (int k = 0; k < count; k += 2) {
            const __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values[k] + c)));
            const __m512i second =
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values[k + 1] + c)));
            const __m512i both = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
#pragma GCC unroll 16
            for (int l = 0; l < FLASH_LANES; l++)
                sum[l] = pairs_product(sum[l], both, _mm512_set1_epi32(int32_t(weights[k / 2][l])));
        }
        for (int l = 0; l < FLASH_LANES; l++) _mm512_storeu_ps(q.out + l * q.width + c, sum[l]);
    }
}

#else

inline float number(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void score(const Gathered &q, const uint16_t *const *keys, int count, float (*scores)[FLASH_LANES]) {
    for (int k = 0; k < count; k++) {
        float sum[FLASH_LANES] = {0};
        for (int64_t c = 0; c < q.channels / 2; c++) {
            const float first = to_float(bf16{keys[k][2 * c]}), second = to_float(bf16{keys[k][2 * c + 1]});
            const uint32_t *query = q.queries + c * FLASH_LANES;
            for (int l = 0; l < FLASH_LANES; l++)
                sum[l] += number(query[l] << 16) * first + number(query[l] & 0xffff0000u) * second;
        }
        memcpy(scores[k], sum, sizeof(sum));
    }
}

inline void mix(const Gathered &q, const uint16_t *const *values, int count, const uint32_t (*weights)[FLASH_LANES]) {
    for (int l = 0; l < FLASH_LANES; l++) {
        float *out = q.out + l * q.width;
        for (int k = 0; k < count; k += 2) {
            const float first = number(weights[k / 2][l] << 16), second = number(weights[k / 2][l] & 0xffff0000u);
            for (int64_t c = 0; c < q.width; c++)
                out[c] += first * to_float(bf16{values[k][c]}) + second * to_float(bf16{values[k + 1][c]});
        }
    }
}

#endif

// Gather from up to FLASH_KEYS keys; a lane sees those before its limit. `keys` and `values` have room for FLASH_KEYS.
inline void gather(Gathered &q, const uint16_t **keys, const uint16_t **values, int count, const int64_t *limits) {
    const int whole = (count + 7) / 8 * 8;
    for (int k = count; k < whole; k++) keys[k] = keys[0], values[k] = values[0];
    float scores[FLASH_KEYS][FLASH_LANES], larger[FLASH_LANES], factor[FLASH_LANES];
    uint32_t weights[FLASH_KEYS / 2][FLASH_LANES];
    score(q, keys, whole, scores);
    for (int l = 0; l < FLASH_LANES; l++) larger[l] = q.top[l];
    for (int k = 0; k < count; k++)
        for (int l = 0; l < FLASH_LANES; l++)
            larger[l] = k < limits[l] && scores[k][l] > larger[l] ? scores[k][l] : larger[l];
    bool grown = false;
    for (int l = 0; l < FLASH_LANES; l++) {
        // A lane that has seen nothing yet, or nothing but what is not a number, has a weight of 1 at most.
        if (larger[l] == -INFINITY) larger[l] = 0;
        factor[l] = q.top[l] == -INFINITY ? 0.0f : power(q.top[l] - larger[l]);
        grown |= factor[l] != 1.0f;
        q.top[l] = larger[l], q.sum[l] *= factor[l];
    }
    if (grown)
        for (int l = 0; l < FLASH_LANES; l++)
            for (int64_t c = 0; c < q.width; c++) q.out[l * q.width + c] *= factor[l];
    for (int k = 0; k < whole; k += 2)
        for (int l = 0; l < FLASH_LANES; l++) {
            const float first = k < limits[l] && k < count ? power(scores[k][l] - larger[l]) : 0.0f;
            const float second = k + 1 < limits[l] && k + 1 < count ? power(scores[k + 1][l] - larger[l]) : 0.0f;
            q.sum[l] += first + second;
            weights[k / 2][l] = two(first, second);
        }
    mix(q, values, whole, weights);
}

// Attention of packed texts whose heads have keys and values of their own: a span is where its queries begin, how many
// they are, where its keys begin, and the position of its first query among these.
struct ExpandedWork {
    const float *queries, *keys_values, *rope;
    const int64_t *spans, *tiles;  // tiles: span and first query of each
    int64_t tokens, keys, heads, nope, turned, value, count;
    float scale;
    uint16_t *key_memory, *value_memory;  // [heads, keys, nope + turned], [heads, keys, value]
    float *out;

    static void key_piece(void *work, int64_t begin, int64_t end) {
        const ExpandedWork &self = *static_cast<const ExpandedWork *>(work);
        const int64_t channels = self.nope + self.turned, both = self.nope + self.value;
        for (int64_t k = begin * FLASH_KEYS; k < least(end * FLASH_KEYS, self.keys); k++)
            for (int64_t h = 0; h < self.heads; h++) {
                const float *from = self.keys_values + (k * self.heads + h) * both;
                bf16 *key = reinterpret_cast<bf16 *>(self.key_memory + (h * self.keys + k) * channels);
                bf16 *value = reinterpret_cast<bf16 *>(self.value_memory + (h * self.keys + k) * self.value);
                for (int64_t c = 0; c < self.nope; c++) from_float(from[c], key[c]);
                for (int64_t c = 0; c < self.turned; c++) from_float(self.rope[k * self.turned + c], key[self.nope + c]);
                for (int64_t c = 0; c < self.value; c++) from_float(from[self.nope + c], value[c]);
            }
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const ExpandedWork &self = *static_cast<const ExpandedWork *>(work);
        // Long ones first: the last to be taken are then the short ones.
        for (int64_t at = begin; at < end; at++) {
            const int64_t *tile = self.tiles + (self.count - 1 - at / self.heads) * 2;
            self.some(self.spans + tile[0] * 4, tile[1], at % self.heads);
        }
    }

    void some(const int64_t *span, int64_t first, int64_t h) const {
        const int64_t channels = nope + turned, lanes = least(FLASH_LANES, span[1] - first), seen = span[3] + first + lanes;
        alignas(64) uint32_t laid[MOST_CHANNELS / 2 * FLASH_LANES];
        alignas(64) float mixed[FLASH_LANES * MOST_CHANNELS];
        Gathered q;
        q.queries = laid, q.channels = channels, q.width = value, q.out = mixed;
        q.begin();
        memset(laid, 0, size_t(channels / 2 * FLASH_LANES) * sizeof(uint32_t));
        for (int64_t l = 0; l < lanes; l++)
            lay(queries + ((span[0] + first + l) * heads + h) * channels, channels, scale, laid, int(l));
        for (int64_t begin = 0; begin < seen; begin += FLASH_KEYS) {
            const int some = int(least(FLASH_KEYS, seen - begin));
            const uint16_t *key[FLASH_KEYS], *values[FLASH_KEYS];
            int64_t limits[FLASH_LANES];
            for (int l = 0; l < FLASH_LANES; l++) limits[l] = span[3] + first + l + 1 - begin;
            for (int k = 0; k < some; k++) {
                const int64_t row = h * keys + span[2] + begin + k;
                key[k] = key_memory + row * channels, values[k] = value_memory + row * value;
            }
            gather(q, key, values, some, limits);
        }
        for (int64_t l = 0; l < lanes; l++) {
            float *to = out + ((span[0] + first + l) * heads + h) * value;
            for (int64_t c = 0; c < value; c++) to[c] = q.out[l * value + c] / q.sum[l];
        }
    }
};

int expanded_attention(int threads, const float *queries, const float *keys_values, const float *rope,
                       const int64_t *spans, int64_t texts, int64_t tokens, int64_t keys, int64_t heads, int64_t nope,
                       int64_t turned, int64_t value, float scale, float *out) {
    int64_t count = 0;
    for (int64_t s = 0; s < texts; s++) count += (spans[s * 4 + 1] + FLASH_LANES - 1) / FLASH_LANES;
    if (!count) return 0;
    const int64_t channels = nope + turned;
    Room room(Room::bytes<uint16_t>(heads * keys * channels) + Room::bytes<uint16_t>(heads * keys * value) +
              Room::bytes<int64_t>(2 * count));
    if (!room.memory) return 1;
    ExpandedWork work = {queries, keys_values, rope, spans, nullptr, tokens, keys, heads, nope, turned, value, count,
                         scale, nullptr, nullptr, out};
    work.key_memory = room.take<uint16_t>(heads * keys * channels);
    work.value_memory = room.take<uint16_t>(heads * keys * value);
    int64_t *tiles = room.take<int64_t>(2 * count), at = 0;
    for (int64_t s = 0; s < texts; s++)
        for (int64_t first = 0; first < spans[s * 4 + 1]; first += FLASH_LANES) tiles[at++] = s, tiles[at++] = first;
    work.tiles = tiles;
    leanseek_parallel_for(ExpandedWork::key_piece, &work, (keys + FLASH_KEYS - 1) / FLASH_KEYS, threads);
    leanseek_parallel_for(ExpandedWork::piece, &work, count * heads, threads);
    return 0;
}

}  // namespace
