// Products with packed weights: one matrix, or a layer's experts in one call; twin of leanseek/kernels/packed.py, which
// states the layout. Activations are rounded to int8 in groups of 32 when they come in.
#pragma once
#include <stdlib.h>

#include "halves.h"
#include "numbers.h"
#include "table.h"

namespace {

const int PANEL = 16;  // rows of a weight that stand side by side
const int GROUP = 32;  // numbers that share a scale
const int TILE = 8;    // tokens that a panel is multiplied with while it is in the registers

// Activations of some tokens: numbers [rows, groups, 32], scales and sums [rows, groups].
struct Rounded {
    int8_t *numbers;
    float *scales;
    int32_t *sums;
    int64_t groups;
};

}  // namespace

#if defined(LEANSEEK_IS_avx512)
#include "tile_avx512.h"
#elif defined(LEANSEEK_IS_avx2)
#include "tile_avx2.h"
#elif defined(LEANSEEK_IS_neon)
#include "tile_neon.h"
#else
#include "tile_generic.h"
#endif

namespace {

// Round a group. What is not finite makes a scale that is not a number, so that it is seen in the result.
inline void round_group(const float *x, int8_t *numbers, float *scale, int32_t *sum) {
    float most[PANEL] = {0};
    int wrong = 0;
    for (int h = 0; h < GROUP; h += PANEL)
        for (int l = 0; l < PANEL; l++) {
            const float a = fabsf(x[h + l]);
            most[l] = a > most[l] ? a : most[l];
            wrong |= !(a <= 3.4028234663852886e38f);
        }
    for (int half = PANEL / 2; half; half /= 2)
        for (int l = 0; l < half; l++) most[l] = most[l] > most[l + half] ? most[l] : most[l + half];
    const float largest = most[0];
    // Below this 127 / largest is no number; such a group is nought beside any other.
    if (wrong || largest < 1e-36f) {
        memset(numbers, 0, GROUP);
        *scale = wrong ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    const float inverse = 127.0f / largest;
    int32_t total = 0;
    for (int i = 0; i < GROUP; i++) {
        // To the nearest, ties to even: adding 1.5 * 2^23 leaves no room for a fraction.
        const float shifted = x[i] * inverse + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        const int32_t value = bits - 0x4b400000;  // what 1.5 * 2^23 itself looks like
        numbers[i] = int8_t(value);
        total += value;
    }
    *scale = largest / 127.0f;
    *sum = total;
}

inline void round_row(const float *x, int64_t width, const Rounded &to, int64_t row) {
    for (int64_t g = 0; g < to.groups; g++) {
        const int64_t at = row * to.groups + g, first = g * GROUP;
        if (first + GROUP <= width) {
            round_group(x + first, to.numbers + at * GROUP, to.scales + at, to.sums + at);
        } else {
            float padded[GROUP] = {0};
            memcpy(padded, x + first, size_t(width - first) * sizeof(float));
            round_group(padded, to.numbers + at * GROUP, to.scales + at, to.sums + at);
        }
    }
}

// A packed weight, or one expert's: panels of 16 rows.
struct Packed {
    const uint8_t *codes;
    const void *scales;
    int bits;
    int64_t groups;

    const uint8_t *panel(int64_t p) const { return codes + p * groups * GROUP * PANEL * bits / 8; }
    const void *panel_scales(int64_t p) const {
        return bits == 4 ? static_cast<const void *>(static_cast<const uint16_t *>(scales) + p * groups * PANEL)
                         : static_cast<const void *>(static_cast<const float *>(scales) + p * PANEL);
    }
    Packed expert(int64_t e, int64_t panels) const {
        return {panel(e * panels), panel_scales(e * panels), bits, groups};
    }
};

template <int BITS> void tile_of(const Packed &w, int64_t p, const Rounded &x, const int64_t *rows, int count,
                                 float (*out)[PANEL]) {
    const uint8_t *codes = w.panel(p);
    const void *scales = w.panel_scales(p);
    switch (count) {
    case 1: tile<BITS, 1>(codes, scales, x, rows, out); break;
    case 2: tile<BITS, 2>(codes, scales, x, rows, out); break;
    case 3: tile<BITS, 3>(codes, scales, x, rows, out); break;
    case 4: tile<BITS, 4>(codes, scales, x, rows, out); break;
    case 5: tile<BITS, 5>(codes, scales, x, rows, out); break;
    case 6: tile<BITS, 6>(codes, scales, x, rows, out); break;
    case 7: tile<BITS, 7>(codes, scales, x, rows, out); break;
    default: tile<BITS, 8>(codes, scales, x, rows, out); break;
    }
}

// Multiply a panel with up to TILE rows of activations.
inline void multiply(const Packed &w, int64_t p, const Rounded &x, const int64_t *rows, int count,
                     float (*out)[PANEL]) {
    if (w.bits == 4) tile_of<4>(w, p, x, rows, count, out);
    else tile_of<8>(w, p, x, rows, count, out);
}

// Room for rounded activations, and for other numbers behind them; null where memory is short.
struct Room {
    char *memory = nullptr;
    size_t used = 0, size;
    explicit Room(size_t bytes) : size(bytes + 64) {
        void *got = nullptr;
        if (!posix_memalign(&got, 64, size)) memory = static_cast<char *>(got);
    }
    ~Room() { free(memory); }
    template <class T> T *take(int64_t count) {
        T *at = reinterpret_cast<T *>(memory + used);
        used += bytes<T>(count);
        return at;
    }
    template <class T> static size_t bytes(int64_t count) { return (size_t(count) * sizeof(T) + 63) / 64 * 64; }
    static size_t rounded(int64_t rows, int64_t groups) {
        return bytes<int8_t>(rows * groups * GROUP) + bytes<float>(rows * groups) + bytes<int32_t>(rows * groups);
    }
    Rounded take_rounded(int64_t rows, int64_t groups) {
        Rounded r;
        r.numbers = take<int8_t>(rows * groups * GROUP);
        r.scales = take<float>(rows * groups);
        r.sums = take<int32_t>(rows * groups);
        r.groups = groups;
        return r;
    }
};

struct Rounding {
    const float *x;
    int64_t width;
    Rounded to;
    static void piece(void *work, int64_t begin, int64_t end) {
        const Rounding &self = *static_cast<const Rounding *>(work);
        for (int64_t r = begin; r < end; r++) round_row(self.x + r * self.width, self.width, self.to, r);
    }
};

inline void round_rows(const float *x, int64_t rows, int64_t width, const Rounded &to, int threads) {
    Rounding work = {x, width, to};
    leanseek_parallel_for(Rounding::piece, &work, rows, rows < 8 ? 1 : threads);
}

struct LinearWork {
    Packed w;
    Rounded x;
    int64_t rows, outputs;
    float *out;
    static void piece(void *work, int64_t begin, int64_t end) {
        const LinearWork &self = *static_cast<const LinearWork *>(work);
        for (int64_t p = begin; p < end; p++) {
            const int64_t first = p * PANEL, width = least(PANEL, self.outputs - first);
            for (int64_t r = 0; r < self.rows; r += TILE) {
                const int count = int(least(TILE, self.rows - r));
                int64_t rows[TILE];
                float got[TILE][PANEL];
                for (int i = 0; i < count; i++) rows[i] = r + i;
                multiply(self.w, p, self.x, rows, count, got);
                for (int i = 0; i < count; i++)
                    memcpy(self.out + (r + i) * self.outputs + first, got[i], size_t(width) * sizeof(float));
            }
        }
    }
};

int packed_linear(int threads, int bits, const float *x, int64_t rows, int64_t inputs, const uint8_t *codes,
                  const void *scales, int64_t outputs, float *out) {
    if (rows <= 0 || outputs <= 0) return 0;
    const int64_t groups = (inputs + GROUP - 1) / GROUP;
    Room room(Room::rounded(rows, groups));
    if (!room.memory) return 1;
    const Rounded rounded = room.take_rounded(rows, groups);
    round_rows(x, rows, inputs, rounded, threads);
    LinearWork work = {{codes, scales, bits, groups}, rounded, rows, outputs, out};
    leanseek_parallel_for(LinearWork::piece, &work, (outputs + PANEL - 1) / PANEL, threads);
    return 0;
}

// e^x with about 2 units in the last place, for loops that the compiler turns into wide instructions.
inline float power(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

struct ExpertsWork {
    Packed gate_up, down;
    Rounded x, hidden;
    int64_t tokens, per_token, experts, width, dim, pairs;
    const int64_t *begins;  // where each expert's choices begin in `order`
    const int64_t *used;    // experts that have any
    const int64_t *order;   // choices (token * per_token + k), sorted by expert
    const int64_t *rows;    // tokens of these
    const float *weights;
    float *out;

    // 32 channels of one expert's hidden state: gate, up, SiLU, rounded.
    static void hidden_piece(void *work, int64_t begin, int64_t end) {
        const ExpertsWork &self = *static_cast<const ExpertsWork *>(work);
        for (int64_t at = begin; at < end; at++) {
            const int64_t expert = self.used[at / self.pairs], pair = at % self.pairs, half = 2 * self.pairs;
            const Packed w = self.gate_up.expert(expert, 2 * half);
            for (int64_t c = self.begins[expert]; c < self.begins[expert + 1]; c += TILE) {
                const int count = int(least(TILE, self.begins[expert + 1] - c));
                float gate[2][TILE][PANEL], up[2][TILE][PANEL];
                for (int h = 0; h < 2; h++) {
                    multiply(w, 2 * pair + h, self.x, self.rows + c, count, gate[h]);
                    multiply(w, half + 2 * pair + h, self.x, self.rows + c, count, up[h]);
                }
                for (int i = 0; i < count; i++) {
                    float values[GROUP];
                    for (int h = 0; h < 2; h++)
                        for (int l = 0; l < PANEL; l++) {
                            const float g = gate[h][i][l];
                            const float silu = g / (1.0f + power(-g));
                            values[h * PANEL + l] = (g != g ? g : silu) * up[h][i][l];
                        }
                    const int64_t to = (c + i) * self.hidden.groups + pair;
                    round_group(values, self.hidden.numbers + to * GROUP, self.hidden.scales + to,
                                self.hidden.sums + to);
                }
            }
        }
    }

    // 16 channels of every token's output: a token's experts are added in the order of their numbers.
    static void out_piece(void *work, int64_t begin, int64_t end) {
        const ExpertsWork &self = *static_cast<const ExpertsWork *>(work);
        const int64_t panels = (self.dim + PANEL - 1) / PANEL;
        for (int64_t p = begin; p < end; p++) {
            const int64_t first = p * PANEL, width = least(PANEL, self.dim - first);
            for (int64_t t = 0; t < self.tokens; t++)
                memset(self.out + t * self.dim + first, 0, size_t(width) * sizeof(float));
            for (int64_t expert = 0; expert < self.experts; expert++) {
                if (self.begins[expert] == self.begins[expert + 1]) continue;
                const Packed w = self.down.expert(expert, panels);
                for (int64_t c = self.begins[expert]; c < self.begins[expert + 1]; c += TILE) {
                    const int count = int(least(TILE, self.begins[expert + 1] - c));
                    int64_t rows[TILE];
                    float got[TILE][PANEL];
                    for (int i = 0; i < count; i++) rows[i] = c + i;
                    multiply(w, p, self.hidden, rows, count, got);
                    for (int i = 0; i < count; i++) {
                        float *to = self.out + self.rows[c + i] * self.dim + first;
                        const float weight = self.weights[self.order[c + i]];
                        for (int64_t l = 0; l < width; l++) to[l] += weight * got[i][l];
                    }
                }
            }
        }
    }
};

int packed_experts(int threads, int bits, const float *x, int64_t tokens, int64_t dim, const float *weights,
                   const int64_t *chosen, int64_t per_token, int64_t experts, const uint8_t *gate_up_codes,
                   const void *gate_up_scales, int64_t width, const uint8_t *down_codes, const void *down_scales,
                   float *out) {
    const int64_t choices = tokens * per_token;
    if (tokens <= 0) return 0;
    for (int64_t c = 0; c < choices; c++)
        if (chosen[c] < 0 || chosen[c] >= experts) return 2;
    const int64_t groups = (dim + GROUP - 1) / GROUP, pairs = (width + GROUP - 1) / GROUP;
    Room room(Room::rounded(tokens, groups) + Room::rounded(choices, pairs) + 3 * Room::bytes<int64_t>(choices) +
              2 * Room::bytes<int64_t>(experts + 1));
    if (!room.memory) return 1;
    ExpertsWork work;
    work.x = room.take_rounded(tokens, groups);
    work.hidden = room.take_rounded(choices, pairs);
    int64_t *begins = room.take<int64_t>(experts + 1), *used = room.take<int64_t>(experts + 1);
    int64_t *order = room.take<int64_t>(choices), *rows = room.take<int64_t>(choices);
    memset(begins, 0, size_t(experts + 1) * sizeof(int64_t));
    for (int64_t c = 0; c < choices; c++) begins[chosen[c] + 1]++;
    int64_t count = 0;
    for (int64_t e = 0; e < experts; e++) {
        if (begins[e + 1]) used[count++] = e;
        begins[e + 1] += begins[e];
    }
    for (int64_t c = 0; c < choices; c++) {
        const int64_t at = begins[chosen[c]]++;
        order[at] = c, rows[at] = c / per_token;
    }
    for (int64_t e = experts; e > 0; e--) begins[e] = begins[e - 1];
    begins[0] = 0;
    round_rows(x, tokens, dim, work.x, threads);
    work.gate_up = {gate_up_codes, gate_up_scales, bits, groups};
    work.down = {down_codes, down_scales, bits, pairs};
    work.tokens = tokens, work.per_token = per_token, work.experts = experts, work.width = width, work.dim = dim;
    work.pairs = pairs, work.begins = begins, work.used = used, work.order = order, work.rows = rows;
    work.weights = weights, work.out = out;
    leanseek_parallel_for(ExpertsWork::hidden_piece, &work, count * pairs, threads);
    leanseek_parallel_for(ExpertsWork::out_piece, &work, (dim + PANEL - 1) / PANEL, threads);
    return 0;
}

}  // namespace
