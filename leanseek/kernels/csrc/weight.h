// Weights of any kind, rows of activations as a kind takes them, and the products of the two.
//
// Whatever the kind, an output is one sum, added up in one order whatever rows and outputs are computed beside it.
#pragma once
#include "product.h"
#include "quantised.h"
#include "stack.h"
#include "table.h"

namespace {

// Panels of a piece of work at most. With few rows weights are what is read, with many it is rather the rows.
const int64_t MOST_AT_ONCE = 8;
const int MOST_ROWS = ROWS > TILE ? ROWS : TILE;

// Rows of activations as they are, `stride` numbers apart, and rounded where a packed weight takes them.
struct Given {
    float *plain;
    int64_t stride, width;
    Rounded rounded;

    static size_t bytes(int64_t rows, int64_t width) { return rounded_bytes(rows, groups_of(width)); }

    static Given of(Room &room, float *plain, int64_t rows, int64_t width, int64_t stride) {
        return {plain, stride, width, take_rounded(room, rows, groups_of(width), 0)};
    }
    // Say for which kind of weight they are to be ready.
    void suit(const leanseek_weight &w) { rounded.bits = int(w.kind); }
    // Round rows [begin, end) if that is what it takes.
    void ready(int64_t begin, int64_t end) const {
        for (int64_t r = begin; r < end && rounded.bits != LEANSEEK_PLAIN; r++)
            round_row(plain + r * stride, width, rounded, r);
    }
};

// A weight, or one of a stack.
struct Weight {
    const uint8_t *numbers;
    const void *scales;
    int kind;
    int64_t inputs;

    static Weight of(const leanseek_weight &w, int64_t inputs) {
        return {static_cast<const uint8_t *>(w.numbers), w.scales, int(w.kind), inputs};
    }
    Packed packed() const { return {numbers, scales, kind, groups_of(inputs)}; }
    const float *plain(int64_t panel) const {
        return reinterpret_cast<const float *>(numbers) + panel * inputs * WIDE;
    }
    Weight from(int64_t panel) const {
        if (kind == LEANSEEK_PLAIN) return {reinterpret_cast<const uint8_t *>(plain(panel)), nullptr, kind, inputs};
        const Packed there = packed().from(panel);
        return {there.codes, there.scales, kind, inputs};
    }
    // Rows that are multiplied at once, and panels of a piece of work.
    int rows_at_once() const { return kind == LEANSEEK_PLAIN ? ROWS : TILE; }
    int64_t panels_at_once(int64_t rows) const {
        if (kind == LEANSEEK_PLAIN) return rows <= ROWS ? MOST_AT_ONCE : Wide<ROWS>::panels;
        return rows > 64 ? MOST_AT_ONCE : 2;
    }
    // Multiply some panels with up to `rows_at_once` of the rows; a row of `out` gets 16 numbers of each panel.
    void multiply(int64_t p, int64_t panels, const Given &x, const int64_t *rows, int count, float *out,
                  int64_t stride) const {
        if (kind != LEANSEEK_PLAIN) return ::multiply(packed(), p, panels, x.rounded, rows, count, out, stride);
        const float *from[ROWS];
        for (int i = 0; i < count; i++) from[i] = x.plain + rows[i] * x.stride;
        plain_product(plain(p), inputs, panels, from, count, out, stride);
    }
};

// out [rows, outputs] = x times a weight, in pieces of some panels; its rows are `stride` numbers apart, and row r is
// x's row first + r * every.
struct Linear {
    Weight w;
    Given x;
    int64_t rows, outputs, step;
    float *out;
    int64_t stride, first, every;

    static Linear of(const Weight &w, const Given &x, int64_t rows, int64_t outputs, float *out, int64_t stride) {
        return {w, x, rows, outputs, w.panels_at_once(rows), out, stride, 0, 1};
    }
    int64_t pieces() const { return (panels_of(outputs) + step - 1) / step; }
    static void piece(void *work, int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at++) static_cast<const Linear *>(work)->some(at);
    }
    void all_of_it() const {
        for (int64_t at = 0; at < pieces(); at++) some(at);
    }
    void some(int64_t at) const {
        const int64_t p = at * step, from = p * PANEL;
        const int64_t whole = least(step, outputs / PANEL - p), rest = whole < step ? outputs % PANEL : 0;
        for (int64_t r = 0; r < rows; r += w.rows_at_once()) {
            const int count = int(least(w.rows_at_once(), rows - r));
            int64_t numbers[MOST_ROWS];
            for (int i = 0; i < count; i++) numbers[i] = first + (r + i) * every;
            float *to = out + r * stride + from;
            if (whole > 0) w.multiply(p, whole, x, numbers, count, to, stride);
            if (!rest) continue;
            float last[MOST_ROWS][PANEL];  // a panel of which a part is padding
            w.multiply(p + whole, 1, x, numbers, count, last[0], PANEL);
            for (int i = 0; i < count; i++)
                memcpy(to + i * stride + whole * PANEL, last[i], size_t(rest) * sizeof(float));
        }
    }
};

struct Readying {
    Given x;
    static void piece(void *work, int64_t begin, int64_t end) { static_cast<const Readying *>(work)->x.ready(begin, end); }
    static void run(const Given &x, int64_t rows, int threads) {
        Readying work = {x};
        leanseek_parallel_for(piece, &work, rows, rows < 8 ? 1 : threads);
    }
};

// One product by itself: a twin of leanseek/kernels/packed.py's or stack.py's.
int linear(int threads, const Weight &w, const float *x, int64_t rows, int64_t outputs, float *out) {
    if (rows <= 0 || outputs <= 0) return 0;
    const bool plain = w.kind == LEANSEEK_PLAIN;
    Room room(plain ? 0 : Given::bytes(rows, w.inputs));
    if (!room.memory) return 1;
    Given given = {const_cast<float *>(x), w.inputs, w.inputs, {}};
    if (!plain) {
        given = Given::of(room, given.plain, rows, w.inputs, w.inputs);
        given.rounded.bits = w.kind;
        Readying::run(given, rows, threads);
    }
    Linear work = Linear::of(w, given, rows, outputs, out, outputs);
    leanseek_parallel_for(Linear::piece, &work, work.pieces(), threads);
    return 0;
}

int packed_linear(int threads, int bits, const float *x, int64_t rows, int64_t inputs, const uint8_t *codes,
                  const void *scales, int64_t outputs, float *out) {
    return linear(threads, {codes, scales, bits, inputs}, x, rows, outputs, out);
}

int panels_product(int threads, const float *panels, int64_t outputs, int64_t inputs, const float *x, int64_t rows,
                   float *out) {
    return linear(threads, {reinterpret_cast<const uint8_t *>(panels), nullptr, LEANSEEK_PLAIN, inputs}, x, rows,
                  outputs, out);
}

}  // namespace
