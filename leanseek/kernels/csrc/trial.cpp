// The kernels' own test, for sanitizers and for other processors under an emulator: shapes by chance, every variant
// against the first, inputs that lie anywhere, empty ones, and several threads at once. Exit status 0: all agree.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace {

uint64_t state = 88172645463325252ull;
uint64_t number() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
int64_t below(int64_t n) { return int64_t(number() % uint64_t(n)); }
float real() { return float(below(2000001) - 1000000) / 1e6f; }

// Memory of exactly so many bytes, at an odd place where nothing asks for better: what is read beyond it is seen.
struct Memory {
    std::vector<char> bytes;
    char *at;
    Memory(int64_t size, bool odd) : bytes(size_t(size + odd)), at(bytes.data() + odd) {}
};

int failures = 0;
void expect(bool good, const char *what, const std::string &variant, int64_t a, int64_t b, int64_t c) {
    if (good) return;
    printf("%s, %s: %lld %lld %lld\n", variant.c_str(), what, (long long)a, (long long)b, (long long)c);
    failures++;
}

bool near(const std::vector<float> &a, const std::vector<float> &b, float tolerance) {
    float most = 1e-6f, off = 0;
    for (size_t i = 0; i < a.size(); i++) {
        most = fmaxf(most, fabsf(b[i]));
        off = fmaxf(off, fabsf(a[i] - b[i]));
        if (a[i] != a[i]) return false;
    }
    return off <= tolerance * most;
}

struct Weight {
    int64_t panels, groups;
    Memory codes, scales;
    Weight(int bits, int64_t rows, int64_t width)
        : panels((rows + 15) / 16), groups((width + 31) / 32), codes(panels * groups * 64 * bits, true),
          scales(panels * (64 + (bits == 4 ? groups * 16 : 0)), false) {}
};

void fill(std::vector<float> &values) {
    for (float &value : values) value = real();
}

void linear(const std::vector<std::string> &variants, int bits, int64_t rows, int64_t inputs, int64_t outputs) {
    std::vector<float> weight(size_t(outputs * inputs)), x(size_t(rows * inputs)), first, out(size_t(rows * outputs));
    fill(weight), fill(x);
    std::vector<char> codes, scales;
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        Weight w(bits, outputs, inputs);
        expect(!leanseek_pack(v, 3, LEANSEEK_F32, bits, weight.data(), outputs, inputs, w.codes.at, w.scales.at),
               "pack", name, rows, inputs, outputs);
        if (codes.empty()) codes = w.codes.bytes, scales = w.scales.bytes;
        expect(codes == w.codes.bytes && scales == w.scales.bytes, "codes", name, rows, inputs, outputs);
        expect(!leanseek_packed_linear(v, 3, bits, x.data(), rows, inputs, w.codes.at, w.scales.at, outputs, out.data()),
               "linear", name, rows, inputs, outputs);
        if (first.empty()) first = out;
        expect(near(out, first, 1e-5f), "linear differs", name, rows, inputs, outputs);
    }
}

void mixture(const std::vector<std::string> &variants, int bits, int64_t tokens, int64_t dim, int64_t width,
             int64_t experts, int64_t per_token) {
    const int64_t half = (width + 31) / 32 * 2, panels = (dim + 15) / 16;
    const int64_t groups = (dim + 31) / 32, inner = (width + 31) / 32;
    const int64_t up_size = 64 + (bits == 4 ? groups * 16 : 0), down_size = 64 + (bits == 4 ? inner * 16 : 0);
    Memory up(experts * 2 * half * groups * 64 * bits, true), down(experts * panels * inner * 64 * bits, true);
    Memory up_scales(experts * 2 * half * up_size, false);
    Memory down_scales(experts * panels * down_size, false);
    const int v0 = leanseek_variant("generic");
    memset(up.at, bits == 4 ? 0x88 : 0x80, size_t(experts * 2 * half * groups * 64 * bits));
    memset(up_scales.at, 0, up_scales.bytes.size());
    for (int64_t e = 0; e < experts; e++) {
        std::vector<float> w(size_t(width * dim));
        for (int64_t part = 0; part < 2; part++) {
            fill(w);
            const int64_t p = e * 2 * half + part * half;
            leanseek_pack(v0, 1, LEANSEEK_F32, bits, w.data(), width, dim, up.at + p * groups * 64 * bits,
                          up_scales.at + p * up_size);
        }
        fill(w);
        const int64_t p = e * panels;
        leanseek_pack(v0, 1, LEANSEEK_F32, bits, w.data(), dim, width, down.at + p * inner * 64 * bits,
                      down_scales.at + p * down_size);
    }
    std::vector<float> x(size_t(tokens * dim)), weights(size_t(tokens * per_token)), out(size_t(tokens * dim)), first;
    fill(x), fill(weights);
    std::vector<int64_t> chosen(size_t(tokens * per_token));
    for (int64_t &one : chosen) one = below(experts);
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        auto call = [&](std::vector<float> &to) {
            return leanseek_packed_experts(v, 3, bits, x.data(), tokens, dim, weights.data(), chosen.data(), per_token,
                                           experts, up.at, up_scales.at, width, down.at, down_scales.at, to.data());
        };
        expect(!call(out), "experts", name, tokens, dim, width);
        if (first.empty()) first = out;
        // A hidden number on the boundary of a step of int8 may fall to either side.
        expect(near(out, first, 3e-2f), "experts differ", name, tokens, dim, width);
        std::vector<std::vector<float>> got(3, std::vector<float>(out.size()));
        std::vector<std::thread> threads;
        for (std::vector<float> &one : got) threads.emplace_back([&] { call(one); });
        for (std::thread &thread : threads) thread.join();
        for (const std::vector<float> &one : got) expect(one == out, "threads differ", name, tokens, dim, width);
        if (!chosen.empty()) {
            const int64_t kept = chosen[0];
            chosen[0] = experts;
            expect(call(out) == LEANSEEK_BAD_EXPERT, "a wrong expert passed", name, tokens, dim, width);
            chosen[0] = kept;
        }
    }
}

void norm(const std::vector<std::string> &variants, int64_t rows, int64_t width) {
    const size_t count = size_t(rows * width), wide = static_cast<size_t>(width);
    std::vector<float> x(count), more(count), weight(wide), slope(count), sum(count), out(count), first;
    fill(x), fill(more), fill(weight), fill(slope);
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        leanseek_rms_norm(v, 3, LEANSEEK_F32, x.data(), more.data(), weight.data(), sum.data(), out.data(), rows, width,
                          1e-6f);
        std::vector<float> got(count + wide);
        for (const float *added : {more.data(), static_cast<float *>(nullptr)})
            expect(!leanseek_rms_norm_backward(v, 3, LEANSEEK_F32, sum.data(), weight.data(), slope.data(), added,
                                               got.data(), got.data() + count, rows, width, 1e-6f),
                   "norm, backward", name, rows, width, 0);
        got.insert(got.end(), out.begin(), out.end());
        if (first.empty()) first = got;
        expect(near(got, first, 1e-5f), "norm differs", name, rows, width, 0);
    }
}

void likelihoods(const std::vector<std::string> &variants, int64_t rows, int64_t width) {
    const size_t count = size_t(rows * width), high = static_cast<size_t>(rows);
    std::vector<float> logits(count), slope(high), first;
    fill(logits), fill(slope);
    std::vector<int64_t> targets(high);
    for (int64_t &one : targets) one = below(width);
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        std::vector<float> got(count + 2 * high);
        float *found = got.data() + count, *sums = found + high;
        const auto forward = [&] {
            return leanseek_likelihood(v, 3, logits.data(), targets.data(), rows, width, 0.7f, found, sums);
        };
        expect(!forward() && !leanseek_likelihood_backward(v, 3, logits.data(), targets.data(), rows, width, 0.7f, sums,
                                                           slope.data(), got.data()),
               "likelihood", name, rows, width, 0);
        if (first.empty()) first = got;
        expect(near(got, first, 1e-5f), "likelihood differs", name, rows, width, 0);
        if (targets.empty()) continue;
        const int64_t before = targets[0];
        targets[0] = width;
        expect(forward() == LEANSEEK_BAD_TOKEN, "a wrong token passed", name, rows, width, 0);
        targets[0] = before;
    }
}

// Texts with and without something cached before them.
void attention(const std::vector<std::string> &variants, int64_t heads, int64_t nope, int64_t turned, int64_t value) {
    const int64_t lengths[3] = {1 + below(90), 1 + below(20), 1}, before[3] = {0, below(80), below(200)};
    std::vector<int64_t> spans;
    int64_t tokens = 0, keys = 0;
    for (int s = 0; s < 3; s++) {
        for (int64_t one : {tokens, lengths[s], keys, before[s]}) spans.push_back(one);
        tokens += lengths[s], keys += lengths[s] + before[s];
    }
    std::vector<float> q(size_t(tokens * heads * (nope + turned))), kv(size_t(keys * heads * (nope + value)));
    std::vector<float> rope(size_t(keys * turned)), out(size_t(tokens * heads * value)), first;
    fill(q), fill(kv), fill(rope);
    for (const std::string &name : variants) {
        leanseek_expanded_attention(leanseek_variant(name.c_str()), 3, q.data(), kv.data(), rope.data(), spans.data(), 3,
                                    tokens, keys, heads, nope, turned, value, 0.3f, out.data());
        if (first.empty()) first = out;
        // A share may fall to either side of a boundary of bf16's.
        expect(near(out, first, 8e-3f), "attention differs", name, tokens, keys, heads);
    }
}

// Weights as checkpoints store them, one matrix and experts; a row is the same in any company.
void stored(const std::vector<std::string> &variants, int kind, int64_t rows, int64_t dim, int64_t width, int64_t experts) {
    const int64_t size = kind == 1 ? 2 : 1, grid = ((dim + 127) / 128) * ((width + 127) / 128);
    std::vector<Memory> numbers;
    std::vector<std::vector<float>> scales;
    std::vector<const void *> weights;
    for (int64_t i = 0; i < 3 * experts; i++) {
        numbers.emplace_back(dim * width * size, true);
        scales.emplace_back(size_t(grid), 0.01f);
        fill(scales.back());
        // bf16 numbers below 1, and e4m3 ones of all sizes; none that is not finite
        for (int64_t b = 0; b < dim * width * size; b++)
            numbers.back().at[b] = char(kind == 2 ? below(2) * 128 + below(120) : b % 2 ? below(2) * 128 + 0x3e : below(256));
    }
    for (size_t i = 0; i < numbers.size(); i++) {
        weights.push_back(numbers[i].at);
        weights.push_back(kind == 2 ? scales[i].data() : nullptr);
    }
    std::vector<float> x(size_t(rows * dim)), out(size_t(rows * width)), first, mixing(size_t(rows * 2)), mixed(x.size()), first_mixed;
    fill(x), fill(mixing);
    std::vector<int64_t> chosen(size_t(rows * 2));
    for (int64_t &one : chosen) one = below(experts);
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        expect(!leanseek_stored_linear(v, 3, kind, x.data(), rows, dim, weights[0], weights[1], width, out.data()),
               "stored", name, rows, dim, width);
        if (first.empty()) first = out;
        expect(near(out, first, 1e-5f), "stored differs", name, rows, dim, width);
        for (int64_t r = 0; r < rows; r++) {
            std::vector<float> alone(static_cast<size_t>(width));
            leanseek_stored_linear(v, 1, kind, x.data() + r * dim, 1, dim, weights[0], weights[1], width, alone.data());
            expect(!memcmp(alone.data(), out.data() + r * width, alone.size() * 4), "a row alone", name, rows, dim, width);
        }
        auto call = [&] {
            return leanseek_stored_experts(v, 3, kind, x.data(), rows, dim, mixing.data(), chosen.data(), 2, experts,
                                           weights.data(), width, mixed.data());
        };
        expect(!call(), "stored experts", name, rows, dim, width);
        if (first_mixed.empty()) first_mixed = mixed;
        expect(near(mixed, first_mixed, 1e-4f), "stored experts differ", name, rows, dim, width);
        if (chosen.empty()) continue;
        const int64_t kept = chosen[0];
        chosen[0] = -1;
        expect(call() == LEANSEEK_BAD_EXPERT, "a wrong expert passed", name, rows, dim, width);
        chosen[0] = kept;
    }
}

// Experts that learn: every variant's outputs and gradients against the first's.
void learning(const std::vector<std::string> &variants, int64_t tokens, int64_t dim, int64_t width, int64_t experts,
              int64_t per_token) {
    const size_t matrix = size_t(experts * width * dim), rows = size_t(tokens * dim), choices = size_t(tokens * per_token);
    std::vector<float> x(rows), weights(choices), both(2 * matrix), down(matrix), slope(rows);
    fill(x), fill(weights), fill(both), fill(down), fill(slope);
    std::vector<int64_t> chosen(choices);
    for (int64_t &one : chosen) one = below(experts);
    std::vector<float> kept(choices * size_t(2 * width)), first;
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        const int64_t half = width * dim;
        std::vector<float> got(2 * rows + choices + 3 * matrix);
        float *out = got.data(), *x_slope = out + rows, *weights_slope = x_slope + rows, *both_slope = weights_slope + choices;
        leanseek_experts given = {tokens, per_token, experts, dim, width, 2 * half, chosen.data(), x.data(), weights.data(),
                                  both.data(), both.data() + half, down.data(), kept.data(), out, slope.data(), x_slope,
                                  weights_slope, both_slope, both_slope + half, both_slope + 2 * matrix};
        expect(!leanseek_learn_forward(v, 3, &given) && !leanseek_learn_backward(v, 3, &given), "learning", name, tokens,
               dim, width);
        if (first.empty()) first = got;
        expect(near(got, first, 1e-5f), "learning differs", name, tokens, dim, width);
        if (chosen.empty()) continue;
        const int64_t before = chosen[0];
        chosen[0] = experts;
        expect(leanseek_learn_forward(v, 3, &given) == LEANSEEK_BAD_EXPERT, "a wrong expert passed", name, tokens, dim,
               width);
        chosen[0] = before;
    }
}

// Attention that learns: texts, the last of which goes on from the first.
void causal(const std::vector<std::string> &variants, int64_t heads, int64_t turned, int64_t value) {
    const int64_t channels = (turned + 16) / 16 * 16, nope = channels - turned;
    const int64_t lengths[3] = {1 + below(150), 1 + below(20), 1 + below(80)}, tokens = lengths[0] + lengths[1] + lengths[2];
    const std::vector<int64_t> spans = {0, lengths[0], 0, 0, lengths[0], lengths[1], 0, 0,
                                        lengths[0] + lengths[1], lengths[2], 0, lengths[0]};
    const size_t asked = size_t(tokens * heads * channels), pairs = size_t(tokens * heads * (nope + value));
    const size_t shared = size_t(tokens * turned), mixed = size_t(tokens * heads * value);
    std::vector<float> q(asked), kv(pairs), rope(shared), turns(shared), slope(mixed), logs(size_t(heads * tokens)), first;
    fill(q), fill(kv), fill(rope), fill(turns), fill(slope);
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        std::vector<float> got(mixed + asked + pairs + shared);
        float *out = got.data(), *q_slope = out + mixed, *kv_slope = q_slope + asked;
        leanseek_attention given = {tokens, heads, nope, turned, value, 3, spans.data(), q.data(), kv.data(), rope.data(),
                                    turns.data(), out, logs.data(), slope.data(), q_slope, kv_slope, kv_slope + pairs, 0.3f};
        expect(!leanseek_attend_forward(v, 3, &given) && !leanseek_attend_backward(v, 3, &given), "causal", name, tokens,
               heads, value);
        if (first.empty()) first = got;
        expect(near(got, first, 1e-5f), "causal differs", name, tokens, heads, value);
    }
}

}  // namespace

#include "trial_decoder.h"

int main(int count, char **arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 20;
    std::vector<std::string> variants;
    std::string all = leanseek_variants(), name;
    for (char c : all + " ") {
        if (c != ' ') name += c;
        else if (leanseek_variant(name.c_str()) >= 0) variants.push_back(name), name.clear();
        else name.clear();
    }
    const int kinds[3] = {LEANSEEK_PLAIN, LEANSEEK_INT8, LEANSEEK_INT4};
    for (int round = 0; round < rounds; round++) {
        const int bits = round % 2 ? 4 : 8;
        linear(variants, bits, below(40), 1 + below(150), 1 + below(100));
        mixture(variants, bits, below(30), 1 + below(100), 1 + below(80), 1 + below(9), 1 + below(4));
        stored(variants, 1 + round % 2, below(round % 5 ? 12 : 100), 1 + below(300), 1 + below(200), 1 + below(6));
        norm(variants, below(200), 1 + below(200));
        learning(variants, below(round % 5 ? 30 : 400), 16 * (1 + below(6)), 16 * (1 + below(6)), 1 + below(5), 1 + below(3));
        likelihoods(variants, below(90), 1 + below(round % 5 ? 60 : 30000));
        causal(variants, 1 + below(4), 2 + 2 * below(20), 16 * (1 + below(4)));
        decoding(variants, kinds[round % 3], kinds[round / 3 % 3]);
        attention(variants, 1 + below(4), 2 * below(20), 2 + 2 * below(20), 16 * (1 + below(4)));
    }
    exponentials();
    linear(variants, 4, 2, 20000, 16);   // long sums
    linear(variants, 8, 1, 32, 20000);   // many rows
    const int v = leanseek_variant(variants.back().c_str());
    const float wrong[2] = {NAN, 1};
    char codes[512], scales[64];
    expect(leanseek_pack(v, 1, LEANSEEK_F32, 8, wrong, 1, 2, codes, scales) == LEANSEEK_NOT_FINITE, "NaN was packed",
           variants.back(), 0, 0, 0);
    printf("%d rounds of", rounds);
    for (const std::string &one : variants) printf(" %s", one.c_str());
    printf(": %d failures\n", failures);
    return failures != 0;
}
