// Of the kernels' own test: random stacks of layers of every kind of weight, every variant against the first; one batch,
// then a few tokens at a time over other pages. Included by trial.cpp, whose helpers it uses.
#pragma once
#include "lanes.h"

namespace {

// e^x of the plain lanes against double precision, over all that is not nought.
void exponentials() {
    float most = 0;
    for (float x = -87.3f; x < 88.0f; x += 0.00317f) {
        float got[WIDE];
        store(got, exponential(all(x)));
        const double wanted = exp(double(x));
        const float unit = nextafterf(float(wanted), INFINITY) - float(wanted);
        most = fmaxf(most, float(fabs(double(got[0]) - wanted) / unit));
    }
    expect(most <= 2, "e^x is off", "generic", int64_t(1000 * most), 0, 0);
    float got[WIDE];
    store(got, exponential(all(-INFINITY)));
    expect(got[0] == 0, "e^-infinity", "generic", 0, 0, 0);
    store(got, exponential(all(NAN)));
    expect(got[0] != got[0], "e^NaN", "generic", 0, 0, 0);
}

struct Weights {
    std::vector<std::vector<float>> kept;
    std::vector<Memory> packed;
    const float *random(int64_t count, float size) {
        kept.emplace_back(size_t(count));
        fill(kept.back());
        for (float &value : kept.back()) value *= size;
        return kept.back().data();
    }
    // A stack of weights; `halves`: of gate and up.
    leanseek_weight of(int kind, int64_t outputs, int64_t inputs, int64_t stack = 1, bool halves = false) {
        const int64_t panels = halves ? 4 * ((outputs + 31) / 32) : (outputs + 15) / 16, groups = (inputs + 31) / 32;
        const float size = 2 / sqrtf(float(inputs));
        if (kind == LEANSEEK_PLAIN) return {random(stack * panels * 16 * inputs, size), nullptr, kind, panels};
        packed.emplace_back(stack * panels * groups * 64 * kind, true);
        char *codes = packed.back().at;
        for (int64_t i = 0; i < stack * panels * groups * 64 * kind; i++) codes[i] = char(below(256));
        const int64_t row = 64 + (kind == LEANSEEK_INT4 ? groups * 16 : 0);
        packed.emplace_back(stack * panels * row, false);
        for (int64_t p = 0; p < stack * panels; p++) {
            char *to = packed.back().at + p * row;
            const float scale = size / (kind == LEANSEEK_INT4 ? 4.6f * 64 : 74.0f);
            for (int64_t r = 0; r < 16; r++) memcpy(to + r * 4, &scale, 4);
            for (int64_t i = 64; i < row; i++) to[i] = char(below(4) ? 64 : -64);
        }
        return {codes, packed.back().at, kind, panels};
    }
};

// `kind` of most weights, and `other` of those of the experts' way back: kinds may be mixed so.
void decoding(const std::vector<std::string> &variants, int kind, int other) {
    Weights w;
    leanseek_stack s = {};
    const bool plain = kind == LEANSEEK_PLAIN;
    const int64_t step = plain ? 1 : 16;
    s.dim = 1 + below(60), s.heads = 1 + below(40), s.nope = step * (1 + below(20 / step + 1));
    s.rope = 2 * (1 + below(9)), s.value = step * (1 + below(20 / step + 1)), s.latent = step * (1 + below(70 / step));
    s.experts = 2 * (1 + below(9)), s.per_token = 1 + below(2);
    s.groups = 1 + below(2), s.best_groups = 1, s.group_best = 2, s.expert_width = 1 + below(40), s.vocabulary = 5 + below(40);
    if (s.experts / s.groups < s.per_token) s.groups = 1;
    s.query_rank = below(2) * (1 + below(20));
    if (plain && below(2)) {  // heads that share keys
        s.shared = 1 + below(3), s.heads = s.shared * (1 + below(20)), s.rope = s.value = 16 * (1 + below(3));
        s.nope = s.latent = s.query_rank = 0;
    }
    s.softmax = int32_t(below(2)), s.normalised = int32_t(below(2));
    s.eps = 1e-5f, s.scale = 0.3f, s.routed_scale = 1.5f, s.count = 2, s.first = 1, s.short_store = !plain;
    const int64_t width = s.shared ? 2 * s.shared * s.value : s.latent + s.rope;
    std::vector<leanseek_layer> layers(2);
    const int eight = plain ? kind : LEANSEEK_INT8;
    for (leanseek_layer &l : layers) {
        l = {};
        l.norm = w.random(s.dim, 1), l.mlp_norm = w.random(s.dim, 1), l.latent_norm = w.random(s.latent, 1);
        if (s.shared) l.query_norm = w.random(s.value, 1), l.latent_norm = below(2) ? w.random(s.value, 1) : nullptr;
        if (s.shared && below(2)) l.query_bias = w.random(s.heads * s.value, 1), l.latent_bias = w.random(width, 1);
        if (s.query_rank) l.query_down = w.of(kind, s.query_rank, s.dim), l.query_norm = w.random(s.query_rank, 1);
        l.query = w.of(kind, s.heads * (s.nope + s.rope), s.query_rank ? s.query_rank : s.dim);
        l.latent = w.of(kind, width, s.dim), l.out = w.of(kind, s.dim, s.heads * s.value);
        if (!s.shared)
            l.key_up = w.of(eight, s.latent, s.nope, s.heads), l.value_up = w.of(eight, s.value, s.latent, s.heads);
        if (!plain) l.key_scales = w.random(s.heads * s.nope, 1);
        l.width = 1 + below(50);
        l.gate_up = w.of(kind, l.width, s.dim, 1, true), l.down = w.of(other, s.dim, l.width);
    }
    layers[1].router = w.of(LEANSEEK_PLAIN, s.experts, s.dim), layers[1].bias = w.random(s.experts, 1);
    layers[1].experts_gate_up = w.of(kind, s.expert_width, s.dim, s.experts, true);
    layers[1].experts_down = w.of(other, s.dim, s.expert_width, s.experts);
    if (below(4) == 0) layers[1].gate_up = layers[1].down = {};  // no shared experts
    s.layers = layers.data(), s.embedding = w.random(s.vocabulary * s.dim, 1), s.norm = w.random(s.dim, 1);
    s.head = w.of(kind, s.vocabulary, s.dim);

    const int64_t texts = 1 + below(4);
    std::vector<int64_t> starts(1), positions(static_cast<size_t>(texts)), ids, chosen;
    for (int64_t t = 0; t < texts; t++) starts.push_back(starts.back() + 1 + below(t ? 90 : 290));
    const int64_t tokens = starts.back();
    for (int64_t t = 0; t < tokens; t++) ids.push_back(t ? below(s.vocabulary) : 0);
    std::vector<float> turns(size_t(300 * s.rope)), first, out(size_t(tokens * s.dim)), logits(size_t(tokens * s.vocabulary));
    fill(turns);
    chosen.resize(size_t(tokens * s.per_token));
    for (const std::string &name : variants) {
        const int v = leanseek_variant(name.c_str());
        std::vector<float> whole;
        for (int64_t page : {300, 7}) {
            const int64_t pages = (300 + page - 1) / page;
            std::vector<int64_t> tables(size_t(texts * pages));
            for (size_t i = 0; i < tables.size(); i++) tables[i] = int64_t(tables.size() - 1 - i);  // back to front
            // What nobody wrote must not count: NaN in either type.
            std::vector<uint32_t> store(size_t(3 * texts * pages * page * width), 0x7fc07fc0);
            s.by_tokens = int32_t(below(2));
            leanseek_batch b = {tokens, texts, ids.data(), starts.data(), positions.data(), tables.data(), pages, page,
                                store.data(), texts * pages * page * width, turns.data(), nullptr, out.data(),
                                logits.data(), chosen.data()};
            expect(!leanseek_decode(v, int(1 + below(3)), &s, &b), "decode", name, tokens, texts, s.dim);
            if (whole.empty()) whole = out;
            expect(whole == out, "pages differ", name, tokens, texts, s.dim);
            // Each text alone, a few tokens at a time, over the cache as it was left.
            std::vector<float> piece(out.size());
            for (int64_t t = 0; t < texts; t++)
                for (int64_t at = starts[t]; at < starts[t + 1];) {
                    const int64_t count = 1 + below(least(20, starts[t + 1] - at)), position = at - starts[t];
                    const int64_t range[2] = {0, count};
                    leanseek_batch part = b;
                    part.tokens = count, part.texts = 1, part.ids = ids.data() + at, part.starts = range;
                    part.positions = &position, part.tables = tables.data() + t * pages;
                    part.out = piece.data() + at * s.dim, part.logits = nullptr, part.chosen = nullptr;
                    s.by_tokens = int32_t(below(2));
                    expect(!leanseek_decode(v, int(1 + below(3)), &s, &part), "decode", name, tokens, texts, s.dim);
                    at += count;
                }
            expect(piece == whole, "pieces differ", name, tokens, texts, s.dim);
            ids[0] = s.vocabulary;
            expect(leanseek_decode(v, 1, &s, &b) == LEANSEEK_BAD_TOKEN, "a wrong token passed", name, 0, 0, 0);
            ids[0] = 0;
        }
        if (first.empty()) first = whole;
        // A token between two experts may take another one of them, and a number between two steps of its rounding
        // either: as good as all tokens agree.
        int64_t wrong = 0;
        for (int64_t t = 0; t < tokens; t++) {
            float most = 1e-6f, off = 0;
            for (int64_t i = t * s.dim; i < (t + 1) * s.dim; i++)
                most = fmaxf(most, fabsf(first[size_t(i)])), off = fmaxf(off, fabsf(first[size_t(i)] - whole[size_t(i)]));
            wrong += !(off <= (plain && other == kind ? 1e-3f : 0.2f) * most);
        }
        expect(wrong * (plain && other == kind ? 20 : 4) <= tokens, "decode differs", name, wrong, tokens, s.dim);
    }
}

}  // namespace
