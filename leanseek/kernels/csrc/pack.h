// Packing: weights into codes and scales; the layout is stated in leanseek/kernels/packed.py.
#pragma once
#include "quantised.h"

namespace {

// Scales that are tried for a group of int4, as parts of the one that takes its largest number to -8.
const float TRIED[] = {1.0f, 0.96f, 0.92f, 0.87f, 1.06f, 1.125f};

inline float sum_of(const float *lanes) {
    float half[8];
    for (int l = 0; l < 8; l++) half[l] = lanes[l] + lanes[l + 8];
    for (int step = 4; step; step /= 2)
        for (int l = 0; l < step; l++) half[l] += half[l + step];
    return half[0];
}

inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }
inline float within(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

// A group's scale in int4: of those tried, fitted to their codes, the one with the least squared error.
inline float group_scale(const float *w) {
    float largest = 0;
    for (int i = 0; i < GROUP; i++)
        if (fabsf(w[i]) > fabsf(largest)) largest = w[i];
    if (fabsf(largest) < 1e-30f) return 0;
    float best = -1, scale = 0;
    for (const float part : TRIED) {
        const float inverse = 1.0f / (largest * part * -0.125f);
        float q[GROUP], product[PANEL] = {0}, square[PANEL] = {0}, error[PANEL] = {0};
        for (int h = 0; h < GROUP; h += PANEL)
            for (int l = 0; l < PANEL; l++) {
                const float v = within(nearest(w[h + l] * inverse), -8.0f, 7.0f);
                q[h + l] = v;
                product[l] += v * w[h + l];
                square[l] += v * v;
            }
        const float squares = sum_of(square);
        if (squares == 0) continue;
        const float fitted = sum_of(product) / squares;
        for (int h = 0; h < GROUP; h += PANEL)
            for (int l = 0; l < PANEL; l++) {
                const float e = w[h + l] - fitted * q[h + l];
                error[l] += e * e;
            }
        const float found = sum_of(error);
        if (best < 0 || found < best) best = found, scale = fitted;
    }
    return scale;
}

template <class T> struct Packing {
    const T *weight;
    int bits;
    int64_t rows, width, groups;
    uint8_t *codes;
    void *scales;
    int32_t *wrong;

    // A group of a row, and whether all of it is finite.
    bool read(int64_t row, int64_t g, float *w) const {
        bool finite = true;
        const int64_t there = row < rows ? least(GROUP, width - g * GROUP) : 0;
        for (int64_t i = 0; i < there; i++) {
            w[i] = to_float(weight[row * width + g * GROUP + i]);
            finite &= fabsf(w[i]) <= 3.4028234663852886e38f;
        }
        for (int64_t i = there; i < GROUP; i++) w[i] = 0;
        return finite;
    }
    // Where a row's codes of a group begin.
    uint8_t *place(int64_t p, int64_t g, int r) const { return codes + (p * groups + g) * GROUP * PANEL * bits / 8 + r * 4; }
    void set_of_row(int64_t p, int r, float scale) const {
        const_cast<float *>(Packed{codes, scales, bits, groups}.of_rows(p))[r] = scale;
        if (!(scale <= 3.4028234663852886e38f)) __atomic_store_n(wrong, 1, __ATOMIC_RELAXED);
    }

    void row_of_8(int64_t p, int r) const {
        float w[GROUP], largest = 0;
        bool finite = true;
        for (int64_t g = 0; g < groups; g++) {
            finite &= read(p * PANEL + r, g, w);
            for (int i = 0; i < GROUP; i++) largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
        }
        const bool nought = largest < 1e-36f;
        const float inverse = nought ? 0.0f : 127.0f / largest;
        set_of_row(p, r, !finite ? NAN : nought ? 0.0f : largest / 127.0f);
        for (int64_t g = 0; g < groups && finite; g++) {
            read(p * PANEL + r, g, w);
            uint8_t *to = place(p, g, r);
            for (int k = 0; k < GROUP; k++)
                to[k / 4 * 64 + k % 4] = uint8_t(int(within(nearest(w[k] * inverse), -127.0f, 127.0f)) + 128);
        }
    }

    void row_of_4(int64_t p, int r) const {
        float w[GROUP], scale, largest = 0;
        bool finite = true;
        for (int64_t g = 0; g < groups; g++) {
            finite &= read(p * PANEL + r, g, w);
            scale = group_scale(w);
            largest = !(fabsf(scale) <= largest) ? fabsf(scale) : largest;
            memcpy(place(p, g, r), &scale, sizeof(scale));  // until the row's is known
        }
        const float step = largest / 127.0f, inverse = step == 0 ? 0.0f : 1.0f / step;
        set_of_row(p, r, finite ? step : NAN);
        int8_t *steps = const_cast<int8_t *>(Packed{codes, scales, bits, groups}.of_groups(p));
        for (int64_t g = 0; g < groups && finite; g++) {
            read(p * PANEL + r, g, w);
            uint8_t *to = place(p, g, r);
            memcpy(&scale, to, sizeof(scale));
            float whole = within(nearest(scale * inverse), -127.0f, 127.0f);
            if (whole == 0 && scale != 0) whole = scale < 0 ? -1.0f : 1.0f;  // small beside the others, but not nought
            steps[g * PANEL + r] = int8_t(whole);
            const float one = whole * step, by = one == 0 ? 0.0f : 1.0f / one;
            uint8_t c[GROUP];
            for (int k = 0; k < GROUP; k++) c[k] = uint8_t(int(within(nearest(w[k] * by), -8.0f, 7.0f)) + 8);
            for (int k = 0; k < 16; k++) to[k / 4 * 64 + k % 4] = uint8_t(c[k] | c[k + 16] << 4);
        }
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const Packing &self = *static_cast<const Packing *>(work);
        for (int64_t p = begin; p < end; p++)
            for (int r = 0; r < PANEL; r++)
                if (self.bits == 4) self.row_of_4(p, r);
                else self.row_of_8(p, r);
    }
};

template <class T>
int pack_of(int threads, int bits, const void *weight, int64_t rows, int64_t width, uint8_t *codes, void *scales) {
    int32_t wrong = 0;
    Packing<T> work = {static_cast<const T *>(weight), bits, rows, width, groups_of(width), codes, scales,
                       &wrong};
    leanseek_parallel_for(Packing<T>::piece, &work, panels_of(rows), threads);
    return wrong ? 3 : 0;
}

int pack(int threads, int type, int bits, const void *weight, int64_t rows, int64_t width, uint8_t *codes,
         void *scales) {
    return type == 1 ? pack_of<bf16>(threads, bits, weight, rows, width, codes, scales)
                     : pack_of<float>(threads, bits, weight, rows, width, codes, scales);
}

}  // namespace
