// Products with weights as checkpoints store them, row by row, in bf16 or in fp8 with a scale for each 128 x 128 block:
// one matrix, or a layer's experts in one call; twin of leanseek/kernels/stored.py.
//
// Weights become fp32 in registers, activations stay that: an output is the fp32 product's but for the order of its
// sum, and that order is one, whatever rows and outputs are computed beside it.
#pragma once
#include "choices.h"
#include "table.h"
#include "widen.h"

namespace {

const int64_t SCALED = 128;      // side of the square of numbers that share a scale
const int ABREAST_ROWS = 4;      // rows of a weight that are multiplied together
const int64_t SOME_OUTPUTS = 32; // outputs of a piece of work; a scale's square holds whole ones
const int MANY = 64;             // rows of activations that share a widened weight
const int64_t CHUNK_BLOCKS = 16; // of a row of a weight that is widened for them

// Rows of activations whose sums the registers hold beside those of ABREAST_ROWS rows of a weight.
#if defined(LEANSEEK_IS_avx512)
const int FEW = 4;
#else
const int FEW = 1;
#endif

// A weight [outputs, inputs], or one expert's.
struct Stored {
    const uint8_t *numbers;
    const float *scales;
    int64_t inputs;

    const float *scales_of(int64_t row) const { return scales + row / SCALED * ((inputs + SCALED - 1) / SCALED); }
};

// Lay a row of activations out as widened weights are, filled up with noughts; in groups of 64.
template <int KIND> inline void lay_out(const float *x, int64_t width, float *to) {
    for (int64_t first = 0; first < width; first += BLOCK) {
        const int64_t count = least(BLOCK, width - first);
        if (count < BLOCK) memset(to + first, 0, BLOCK * sizeof(float));
        for (int64_t i = 0; i < count; i++) to[first + widened_place<KIND>(i)] = x[first + i];
    }
}

// sums[4 r + m] += blocks of row r of a weight times row m of activations.
template <int KIND, int M>
inline void add_up(const uint8_t *const *w, const float *scales, int64_t first, int64_t blocks, const float *const *x,
                   Lanes *sums) {
    for (int64_t b = 0; b < blocks; b++) {
        Lanes scale = all(1.0f);
        if (KIND == FP8_NUMBERS) scale = all(scales[(first + b) * BLOCK / SCALED]);
        for (int r = 0; r < ABREAST_ROWS; r++) {
            Lanes wide[4];
            widen<KIND>(w[r] + b * BLOCK * number_bytes(KIND), wide);
            for (int q = 0; q < 4; q++) {
                if (KIND == FP8_NUMBERS) wide[q] = mul(wide[q], scale);
                for (int m = 0; m < M; m++)
                    sums[4 * r + m] = fma(wide[q], load(x[m] + (first + b) * BLOCK + q * WIDE), sums[4 * r + m]);
            }
        }
    }
}

// Of ABREAST_ROWS rows of a weight: where they begin, and what is left behind their last whole block.
struct Strip {
    const uint8_t *rows[ABREAST_ROWS];
    const float *scales;
    int64_t whole, blocks;  // blocks without and with the last one that is not whole
    alignas(64) uint8_t last[ABREAST_ROWS][BLOCK * 2];

    template <int KIND> void begin(const Stored &w, int64_t row, int count) {
        whole = w.inputs / BLOCK, blocks = in_blocks(w.inputs);
        scales = KIND == FP8_NUMBERS ? w.scales_of(row) : nullptr;
        for (int r = 0; r < ABREAST_ROWS; r++) {
            // What is no row is the last one again, and not looked at.
            rows[r] = w.numbers + (row + least(r, count - 1)) * w.inputs * number_bytes(KIND);
            if (whole == blocks) continue;
            memset(last[r], 0, sizeof(last[r]));
            memcpy(last[r], rows[r] + whole * BLOCK * number_bytes(KIND),
                   size_t((w.inputs - whole * BLOCK) * number_bytes(KIND)));
        }
    }
    template <int KIND> void at(int64_t block, const uint8_t **to) const {
        for (int r = 0; r < ABREAST_ROWS; r++)
            to[r] = block < whole ? rows[r] + block * BLOCK * number_bytes(KIND) : last[r];
    }
};

// out [M, count] from the sums of its rows.
template <int M> inline void finish(const Lanes *sums, int count, float *out, int64_t stride) {
    Lanes all_sums[16];
    for (int i = 0; i < 16; i++) all_sums[i] = i % 4 < M ? sums[i] : all(0.0f);
    float got[4][4];
    float *const to[4] = {got[0], got[1], got[2], got[3]};
    quads(all_sums, to);
    for (int m = 0; m < M; m++)
        for (int r = 0; r < count; r++) out[m * stride + r] = got[m][r];
}

template <int KIND, int M>
void few(const Strip &strip, const float *const *x, int count, float *out, int64_t stride) {
    const uint8_t *w[ABREAST_ROWS];
    Lanes sums[16];
    for (int i = 0; i < 16; i++) sums[i] = all(0.0f);
    add_up<KIND, M>(strip.rows, strip.scales, 0, strip.whole, x, sums);
    if (strip.whole < strip.blocks) {
        strip.at<KIND>(strip.whole, w);
        add_up<KIND, M>(w, strip.scales, strip.whole, 1, x, sums);
    }
    finish<M>(sums, count, out, stride);
}

template <int M> inline void more(const uint8_t *const *w, int64_t first, int64_t blocks, const float *const *x, float *kept) {
    Lanes sums[16];
    for (int r = 0; r < ABREAST_ROWS; r++)
        for (int m = 0; m < M; m++) sums[4 * r + m] = load(kept + (r * FEW + m) * WIDE);
    add_up<F32_NUMBERS, M>(w, nullptr, first, blocks, x, sums);
    for (int r = 0; r < ABREAST_ROWS; r++)
        for (int m = 0; m < M; m++) store(kept + (r * FEW + m) * WIDE, sums[4 * r + m]);
}

template <int M> inline void finish_kept(const float *kept, int count, float *out, int64_t stride) {
    Lanes sums[16];
    for (int r = 0; r < ABREAST_ROWS; r++)
        for (int m = 0; m < M; m++) sums[4 * r + m] = load(kept + (r * FEW + m) * WIDE);
    finish<M>(sums, count, out, stride);
}

// Many rows: a piece of the weight is widened once for all of them.
template <int KIND> void many(const Strip &strip, const float *const *x, int rows, int count, float *out, int64_t stride) {
    alignas(64) float kept[MANY * ABREAST_ROWS * WIDE], wide[ABREAST_ROWS][CHUNK_BLOCKS * BLOCK];
    memset(kept, 0, sizeof(kept));
    const uint8_t *from[ABREAST_ROWS], *w[ABREAST_ROWS];
    for (int r = 0; r < ABREAST_ROWS; r++) w[r] = reinterpret_cast<const uint8_t *>(wide[r]);
    for (int64_t first = 0; first < strip.blocks; first += CHUNK_BLOCKS) {
        const int64_t blocks = least(CHUNK_BLOCKS, strip.blocks - first);
        for (int64_t b = 0; b < blocks; b++) {
            strip.at<KIND>(first + b, from);
            const Lanes scale = all(KIND == FP8_NUMBERS ? strip.scales[(first + b) * BLOCK / SCALED] : 1.0f);
            for (int r = 0; r < ABREAST_ROWS; r++) {
                Lanes four[4];
                widen<KIND>(from[r], four);
                for (int q = 0; q < 4; q++)
                    store(wide[r] + b * BLOCK + q * WIDE, KIND == FP8_NUMBERS ? mul(four[q], scale) : four[q]);
            }
        }
        for (int m = 0; m < rows; m += FEW) {
            float *sums = kept + m * ABREAST_ROWS * WIDE;
            if (m + FEW <= rows) more<FEW>(w, first, blocks, x + m, sums);
            else for (int one = m; one < rows; one++) more<1>(w, first, blocks, x + one, sums + (one - m) * WIDE);
        }
    }
    for (int m = 0; m < rows; m += FEW) {
        const float *sums = kept + m * ABREAST_ROWS * WIDE;
        if (m + FEW <= rows) finish_kept<FEW>(sums, count, out + m * stride, stride);
        else for (int one = m; one < rows; one++) finish_kept<1>(sums + (one - m) * WIDE, count, out + one * stride, stride);
    }
}

// out [rows, count] = up to MANY rows of activations times `count` rows of a weight from `first` on, which is a multiple
// of SOME_OUTPUTS.
template <int KIND>
void stored_product(const Stored &w, int64_t first, int64_t count, const float *const *x, int rows, float *out,
                    int64_t stride) {
    Strip strip;
    for (int64_t o = 0; o < count; o += ABREAST_ROWS) {
        const int some = int(least(ABREAST_ROWS, count - o));
        strip.begin<KIND>(w, first + o, some);
        if (rows > FEW) many<KIND>(strip, x, rows, some, out + o, stride);
        else if (rows == 1) few<KIND, 1>(strip, x, some, out + o, stride);
#if defined(LEANSEEK_IS_avx512)
        else if (rows == 2) few<KIND, 2>(strip, x, some, out + o, stride);
        else if (rows == 3) few<KIND, 3>(strip, x, some, out + o, stride);
        else few<KIND, 4>(strip, x, some, out + o, stride);
#endif
    }
}

template <int KIND> struct LayingOut {
    const float *x;
    int64_t width;
    float *to;
    static void piece(void *work, int64_t begin, int64_t end) {
        const LayingOut &self = *static_cast<const LayingOut *>(work);
        for (int64_t r = begin; r < end; r++)
            lay_out<KIND>(self.x + r * self.width, self.width, self.to + r * in_blocks(self.width) * BLOCK);
    }
    void run(int64_t rows, int threads) { leanseek_parallel_for(piece, this, rows, rows < 8 ? 1 : threads); }
};

template <int KIND> struct StoredLinear {
    Stored w;
    const float *x;
    int64_t rows, outputs;
    float *out;
    static void piece(void *work, int64_t begin, int64_t end) {
        const StoredLinear &self = *static_cast<const StoredLinear *>(work);
        const int64_t wide = in_blocks(self.w.inputs) * BLOCK;
        for (int64_t at = begin; at < end; at++)
            for (int64_t r = 0; r < self.rows; r += MANY) {
                const int some = int(least(MANY, self.rows - r));
                const float *x[MANY];
                for (int i = 0; i < some; i++) x[i] = self.x + (r + i) * wide;
                const int64_t first = at * SOME_OUTPUTS;
                stored_product<KIND>(self.w, first, least(SOME_OUTPUTS, self.outputs - first), x, some,
                                     self.out + r * self.outputs + first, self.outputs);
            }
    }
};

template <int KIND>
int stored_linear_of(int threads, const float *x, int64_t rows, int64_t inputs, const Stored &w, int64_t outputs,
                     float *out) {
    const int64_t wide = in_blocks(inputs) * BLOCK;
    Room room(Room::bytes<float>(rows * wide));
    if (!room.memory) return 1;
    LayingOut<KIND> laying = {x, inputs, room.take<float>(rows * wide)};
    laying.run(rows, threads);
    StoredLinear<KIND> work = {w, laying.to, rows, outputs, out};
    leanseek_parallel_for(StoredLinear<KIND>::piece, &work, (outputs + SOME_OUTPUTS - 1) / SOME_OUTPUTS, threads);
    return 0;
}

int stored_linear(int threads, int kind, const float *x, int64_t rows, int64_t inputs, const uint8_t *numbers,
                  const float *scales, int64_t outputs, float *out) {
    if (rows <= 0 || outputs <= 0) return 0;
    const Stored w = {numbers, scales, inputs};
    return (kind == BF16_NUMBERS ? stored_linear_of<BF16_NUMBERS> : stored_linear_of<FP8_NUMBERS>)(
        threads, x, rows, inputs, w, outputs, out);
}

// An expert's weights where they lie.
struct StoredExpert {
    const uint8_t *gate;
    const float *gate_scales;
    const uint8_t *up;
    const float *up_scales;
    const uint8_t *down;
    const float *down_scales;
};

template <int KIND> struct StoredExperts : Choices {
    const StoredExpert *weights;
    const float *x, *mixing;
    float *hidden, *out;
    int64_t dim, width;

    int64_t hidden_steps() const { return (width + SOME_OUTPUTS - 1) / SOME_OUTPUTS; }
    int64_t out_steps() const { return (dim + SOME_OUTPUTS - 1) / SOME_OUTPUTS; }

    // Gate, up and SiLU: some channels of one expert's hidden state.
    static void hidden_piece(void *work, int64_t begin, int64_t end) {
        const StoredExperts &self = *static_cast<const StoredExperts *>(work);
        const int64_t steps = self.hidden_steps(), wide = in_blocks(self.width) * BLOCK;
        for (int64_t at = begin; at < end; at++) {
            const int64_t expert = self.used[at / steps], first = at % steps * SOME_OUTPUTS;
            const int64_t count = least(SOME_OUTPUTS, self.width - first);
            const StoredExpert &w = self.weights[expert];
            for (int64_t c = self.begins[expert]; c < self.begins[expert + 1]; c += MANY) {
                const int some = int(least(MANY, self.begins[expert + 1] - c));
                const float *x[MANY];
                for (int i = 0; i < some; i++) x[i] = self.x + self.rows[c + i] * in_blocks(self.dim) * BLOCK;
                float gate[MANY * SOME_OUTPUTS], up[MANY * SOME_OUTPUTS];
                stored_product<KIND>({w.gate, w.gate_scales, self.dim}, first, count, x, some, gate, SOME_OUTPUTS);
                stored_product<KIND>({w.up, w.up_scales, self.dim}, first, count, x, some, up, SOME_OUTPUTS);
                for (int i = 0; i < some; i++) {
                    float *to = self.hidden + (c + i) * wide + first / BLOCK * BLOCK;
                    for (int64_t l = 0; l < count; l++) {
                        const float g = gate[i * SOME_OUTPUTS + l], silu = g / (1.0f + power(-g));
                        to[widened_place<KIND>(first % BLOCK + l)] = (g != g ? g : silu) * up[i * SOME_OUTPUTS + l];
                    }
                    // What fills the last block up.
                    for (int64_t l = first + count; first + count == self.width && l < wide; l++)
                        to[widened_place<KIND>(first % BLOCK + l - first)] = 0.0f;
                }
            }
        }
    }

    // Some channels of every token's output: a token's experts are added in the order of their numbers.
    static void out_piece(void *work, int64_t begin, int64_t end) {
        const StoredExperts &self = *static_cast<const StoredExperts *>(work);
        const int64_t wide = in_blocks(self.width) * BLOCK;
        for (int64_t at = begin; at < end; at++) {
            const int64_t first = at * SOME_OUTPUTS, count = least(SOME_OUTPUTS, self.dim - first);
            for (int64_t t = 0; t < self.tokens; t++)
                memset(self.out + t * self.dim + first, 0, size_t(count) * sizeof(float));
            for (int64_t e = 0; e < self.count; e++) {
                const int64_t expert = self.used[e];
                const StoredExpert &w = self.weights[expert];
                for (int64_t c = self.begins[expert]; c < self.begins[expert + 1]; c += MANY) {
                    const int some = int(least(MANY, self.begins[expert + 1] - c));
                    const float *x[MANY];
                    for (int i = 0; i < some; i++) x[i] = self.hidden + (c + i) * wide;
                    float got[MANY * SOME_OUTPUTS];
                    stored_product<KIND>({w.down, w.down_scales, self.width}, first, count, x, some, got, SOME_OUTPUTS);
                    for (int i = 0; i < some; i++) {
                        float *to = self.out + self.rows[c + i] * self.dim + first;
                        const float share = self.mixing[self.order[c + i]];
                        for (int64_t l = 0; l < count; l++) to[l] += share * got[i * SOME_OUTPUTS + l];
                    }
                }
            }
        }
    }
};

template <int KIND>
int stored_experts_of(int threads, const float *x, int64_t tokens, int64_t dim, const float *mixing,
                      const int64_t *chosen, int64_t per_token, int64_t experts, const void *weights, int64_t width,
                      float *out) {
    const int64_t wide = in_blocks(dim) * BLOCK, inner = in_blocks(width) * BLOCK, choices = tokens * per_token;
    Room room(Room::bytes<float>(tokens * wide) + Room::bytes<float>(choices * inner) +
              Choices::bytes(tokens, per_token, experts));
    if (!room.memory) return 1;
    LayingOut<KIND> laying = {x, dim, room.take<float>(tokens * wide)};
    StoredExperts<KIND> work;
    work.tokens = tokens, work.per_token = per_token, work.experts = experts, work.dim = dim, work.width = width;
    work.weights = static_cast<const StoredExpert *>(weights), work.x = laying.to, work.mixing = mixing, work.out = out;
    work.hidden = room.take<float>(choices * inner);
    work.take(room);
    work.sort(chosen);
    laying.run(tokens, threads);
    leanseek_parallel_for(StoredExperts<KIND>::hidden_piece, &work, work.count * work.hidden_steps(), threads);
    leanseek_parallel_for(StoredExperts<KIND>::out_piece, &work, work.out_steps(), threads);
    return 0;
}

int stored_experts(int threads, int kind, const float *x, int64_t tokens, int64_t dim, const float *mixing,
                   const int64_t *chosen, int64_t per_token, int64_t experts, const void *weights, int64_t width,
                   float *out) {
    if (tokens <= 0) return 0;
    for (int64_t c = 0; c < tokens * per_token; c++)
        if (chosen[c] < 0 || chosen[c] >= experts) return 2;
    return (kind == BF16_NUMBERS ? stored_experts_of<BF16_NUMBERS> : stored_experts_of<FP8_NUMBERS>)(
        threads, x, tokens, dim, mixing, chosen, per_token, experts, weights, width, out);
}

}  // namespace
