// Products with packed weights: one matrix, or a layer's experts in one call; twin of leanseek/kernels/packed.py, which
// states the layout. Activations are rounded to int8 in groups of 32 when they come in.
#pragma once
#include "halves.h"
#include "numbers.h"
#include "room.h"
#include "table.h"

namespace {

const int PANEL = 16;  // rows of a weight that stand side by side
const int GROUP = 32;  // numbers that share a scale

// Activations of some tokens: numbers [rows, groups, 32], scales and offsets [rows, groups]. Codes are 8 (128) above
// the weights, which makes a product too large by so many times the numbers' sum: the offset is minus that.
struct Rounded {
    int8_t *numbers;
    float *scales;
    int32_t *offsets;
    int64_t groups;
    int bits;
};

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
    Packed from(int64_t p) const { return {panel(p), panel_scales(p), bits, groups}; }
};

inline int64_t groups_of(int64_t width) { return (width + GROUP - 1) / GROUP; }
inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

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
#if defined(LEANSEEK_IS_avx512)

inline void round_group(const float *x, const Rounded &to, int64_t at) {
    const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + PANEL);
    const __m512 one = _mm512_abs_ps(first), other = _mm512_abs_ps(second), top = _mm512_set1_ps(3.4028234663852886e38f);
    const bool wrong = (_mm512_cmp_ps_mask(one, top, _CMP_LE_OQ) & _mm512_cmp_ps_mask(other, top, _CMP_LE_OQ)) != 0xffff;
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(one, other));
    __m128i *numbers = reinterpret_cast<__m128i *>(to.numbers + at * GROUP);
    if (wrong || largest < 1e-36f) {
        memset(numbers, 0, GROUP);
        to.scales[at] = wrong ? NAN : 0.0f;
        to.offsets[at] = 0;
        return;
    }
    const __m512 inverse = _mm512_set1_ps(127.0f / largest);
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));  // to the nearest, ties to even
    const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    _mm_storeu_si128(numbers, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128(numbers + 1, _mm512_cvtepi32_epi8(high));
    to.scales[at] = largest / 127.0f;
    to.offsets[at] = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high)) * (to.bits == 4 ? -8 : -128);
}

#else

inline void round_group(const float *x, const Rounded &to, int64_t at) {
    int8_t *numbers = to.numbers + at * GROUP;
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
        to.scales[at] = wrong ? NAN : 0.0f;
        to.offsets[at] = 0;
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
    to.scales[at] = largest / 127.0f;
    to.offsets[at] = total * (to.bits == 4 ? -8 : -128);
}

#endif

inline void round_row(const float *x, int64_t width, const Rounded &to, int64_t row) {
    for (int64_t g = 0; g < to.groups; g++) {
        const int64_t at = row * to.groups + g, first = g * GROUP;
        if (first + GROUP <= width) {
            round_group(x + first, to, at);
        } else {
            float padded[GROUP] = {0};
            memcpy(padded, x + first, size_t(width - first) * sizeof(float));
            round_group(padded, to, at);
        }
    }
}

// Multiply panels that are in the registers together with as many rows of activations as there are.
template <int BITS, int P, int M>
inline void fitting(const Packed &w, int64_t p, const Rounded &x, const int64_t *rows, int count, float *out,
                    int64_t stride) {
    if (count == M) return tile<BITS, M, P>(w, p, x, rows, out, stride);
    if constexpr (M > 1) fitting<BITS, P, M - 1>(w, p, x, rows, count, out, stride);
}

// Multiply some panels with up to TILE rows of activations; a row of `out` gets 16 numbers of each panel.
inline void multiply(const Packed &w, int64_t p, int64_t panels, const Rounded &x, const int64_t *rows, int count,
                     float *out, int64_t stride) {
    int64_t q = 0;
    for (; q + ABREAST <= panels; q += ABREAST)
        if (w.bits == 4) fitting<4, ABREAST, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
        else fitting<8, ABREAST, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
    for (; q < panels; q++)
        if (w.bits == 4) fitting<4, 1, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
        else fitting<8, 1, TILE>(w, p + q, x, rows, count, out + q * PANEL, stride);
}

inline size_t rounded_bytes(int64_t rows, int64_t groups) {
    return Room::bytes<int8_t>(rows * groups * GROUP) + Room::bytes<float>(rows * groups) +
           Room::bytes<int32_t>(rows * groups);
}

inline Rounded take_rounded(Room &room, int64_t rows, int64_t groups, int bits) {
    Rounded r;
    r.numbers = room.take<int8_t>(rows * groups * GROUP);
    r.scales = room.take<float>(rows * groups);
    r.offsets = room.take<int32_t>(rows * groups);
    r.groups = groups, r.bits = bits;
    return r;
}

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

// Panels of a piece of work: with few rows weights are what is read, with many it is rather the rows.
const int64_t MOST_AT_ONCE = 8;
inline int64_t panels_at_once(int64_t rows) { return rows > 64 ? MOST_AT_ONCE : 2; }

struct LinearWork {
    Packed w;
    Rounded x;
    int64_t rows, outputs, step;
    float *out;
    int64_t pieces() const { return (panels_of(outputs) + step - 1) / step; }
    static void piece(void *work, int64_t begin, int64_t end) {
        const LinearWork &self = *static_cast<const LinearWork *>(work);
        for (int64_t at = begin; at < end; at++) self.some(at * self.step);
    }
    void some(int64_t p) const {
        const int64_t first = p * PANEL, whole = least(step, outputs / PANEL - p), rest = outputs % PANEL;
        for (int64_t r = 0; r < rows; r += TILE) {
            const int count = int(least(TILE, rows - r));
            int64_t numbers[TILE];
            for (int i = 0; i < count; i++) numbers[i] = r + i;
            multiply(w, p, whole, x, numbers, count, out + r * outputs + first, outputs);
            if (whole < step && rest) {
                float got[TILE][PANEL];
                multiply(w, p + whole, 1, x, numbers, count, got[0], PANEL);
                for (int i = 0; i < count; i++)
                    memcpy(out + (r + i) * outputs + first + whole * PANEL, got[i], size_t(rest) * sizeof(float));
            }
        }
    }
};

int packed_linear(int threads, int bits, const float *x, int64_t rows, int64_t inputs, const uint8_t *codes,
                  const void *scales, int64_t outputs, float *out) {
    if (rows <= 0 || outputs <= 0) return 0;
    const int64_t groups = groups_of(inputs);
    Room room(rounded_bytes(rows, groups));
    if (!room.memory) return 1;
    const Rounded rounded = take_rounded(room, rows, groups, bits);
    round_rows(x, rows, inputs, rounded, threads);
    LinearWork work = {{codes, scales, bits, groups}, rounded, rows, outputs, panels_at_once(rows), out};
    leanseek_parallel_for(LinearWork::piece, &work, work.pieces(), threads);
    return 0;
}

struct ExpertsWork {
    Packed gate_up, down;
    Rounded x, hidden;
    int64_t tokens, per_token, experts, dim, pairs, step;
    int64_t *begins;        // where each expert's choices begin in `order`
    int64_t *used;          // experts that have any
    int64_t *order, *rows;  // choices (token * per_token + k) sorted by expert, and their tokens
    int64_t count;          // of the used experts
    const float *weights;
    float *out;
    bool adds;  // to what `out` has

    static size_t bytes(int64_t tokens, int64_t per_token, int64_t experts, int64_t pairs) {
        return rounded_bytes(tokens * per_token, pairs) + 2 * Room::bytes<int64_t>(tokens * per_token) +
               2 * Room::bytes<int64_t>(experts + 1);
    }

    void take(Room &room) {
        hidden = take_rounded(room, tokens * per_token, pairs, down.bits);
        begins = room.take<int64_t>(experts + 1), used = room.take<int64_t>(experts + 1);
        order = room.take<int64_t>(tokens * per_token), rows = room.take<int64_t>(tokens * per_token);
        step = panels_at_once(tokens);
    }

    void sort(const int64_t *chosen) {
        const int64_t choices = tokens * per_token;
        memset(begins, 0, size_t(experts + 1) * sizeof(int64_t));
        for (int64_t c = 0; c < choices; c++) begins[chosen[c] + 1]++;
        count = 0;
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
    }

    int64_t pair_step() const { return (step + 1) / 2; }
    int64_t pair_pieces() const { return (pairs + pair_step() - 1) / pair_step(); }
    int64_t hidden_pieces() const { return count * pair_pieces(); }
    int64_t out_pieces() const { return (panels_of(dim) + step - 1) / step; }

    static void hidden_piece(void *work, int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at++) static_cast<const ExpertsWork *>(work)->some_hidden(at);
    }
    static void out_piece(void *work, int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at++) static_cast<const ExpertsWork *>(work)->some_out(at);
    }

    // Some channels of one expert's hidden state, 32 at a time.
    void some_hidden(int64_t at) const {
        const int64_t each = pair_pieces(), first = at % each * pair_step();
        for (int64_t pair = first; pair < least(first + pair_step(), pairs); pair++)
            hidden_pair(used[at / each], pair);
    }

    // Gate, up, SiLU, rounded.
    void hidden_pair(int64_t expert, int64_t pair) const {
        const int64_t half = 2 * pairs;
        const Packed w = gate_up.from(expert * 2 * half);
        for (int64_t c = begins[expert]; c < begins[expert + 1]; c += TILE) {
            const int found = int(least(TILE, begins[expert + 1] - c));
            float gate[TILE][GROUP], up[TILE][GROUP];
            multiply(w, 2 * pair, 2, x, rows + c, found, gate[0], GROUP);
            multiply(w, half + 2 * pair, 2, x, rows + c, found, up[0], GROUP);
            for (int i = 0; i < found; i++) {
                float values[GROUP];
                for (int l = 0; l < GROUP; l++) {
                    const float g = gate[i][l];
                    const float silu = g / (1.0f + power(-g));
                    values[l] = (g != g ? g : silu) * up[i][l];
                }
                round_group(values, hidden, (c + i) * pairs + pair);
            }
        }
    }

    // Some channels of every token's output: a token's experts are added in the order of their numbers.
    void some_out(int64_t at) const {
        const int64_t panels = panels_of(dim), p = at * step, some = least(step, panels - p);
        const int64_t first = p * PANEL, width = least(some * PANEL, dim - first);
        for (int64_t t = 0; !adds && t < tokens; t++) memset(out + t * dim + first, 0, size_t(width) * sizeof(float));
        for (int64_t e = 0; e < count; e++) {
            const int64_t expert = used[e];
            const Packed w = down.from(expert * panels);
            for (int64_t c = begins[expert]; c < begins[expert + 1]; c += TILE) {
                const int found = int(least(TILE, begins[expert + 1] - c));
                int64_t numbers[TILE];
                float got[TILE][MOST_AT_ONCE * PANEL];
                for (int i = 0; i < found; i++) numbers[i] = c + i;
                multiply(w, p, some, hidden, numbers, found, got[0], MOST_AT_ONCE * PANEL);
                for (int i = 0; i < found; i++) {
                    float *to = out + rows[c + i] * dim + first;
                    const float weight = weights[order[c + i]];
                    for (int64_t l = 0; l < width; l++) to[l] += weight * got[i][l];
                }
            }
        }
    }
};

int packed_experts(int threads, int bits, const float *x, int64_t tokens, int64_t dim, const float *weights,
                   const int64_t *chosen, int64_t per_token, int64_t experts, const uint8_t *gate_up_codes,
                   const void *gate_up_scales, int64_t width, const uint8_t *down_codes, const void *down_scales,
                   float *out) {
    if (tokens <= 0) return 0;
    for (int64_t c = 0; c < tokens * per_token; c++)
        if (chosen[c] < 0 || chosen[c] >= experts) return 2;
    const int64_t groups = groups_of(dim), pairs = groups_of(width);
    Room room(rounded_bytes(tokens, groups) + ExpertsWork::bytes(tokens, per_token, experts, pairs));
    if (!room.memory) return 1;
    ExpertsWork work;
    work.gate_up = {gate_up_codes, gate_up_scales, bits, groups};
    work.down = {down_codes, down_scales, bits, pairs};
    work.tokens = tokens, work.per_token = per_token, work.experts = experts, work.dim = dim, work.pairs = pairs;
    work.weights = weights, work.out = out, work.adds = false;
    work.x = take_rounded(room, tokens, groups, bits);
    work.take(room);
    work.sort(chosen);
    round_rows(x, tokens, dim, work.x, threads);
    leanseek_parallel_for(ExpertsWork::hidden_piece, &work, work.hidden_pieces(), threads);
    leanseek_parallel_for(ExpertsWork::out_piece, &work, work.out_pieces(), threads);
    return 0;
}

}  // namespace
