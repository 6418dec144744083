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

// Codes and scale of a group: of the scales tried, fitted to their codes, the one with the least squared error.
inline uint16_t pack_group(const float *w, uint8_t *codes) {
    float largest = 0;
    for (int i = 0; i < GROUP; i++)
        if (fabsf(w[i]) > fabsf(largest)) largest = w[i];
    for (int i = 0; i < GROUP; i++) codes[i] = 8;
    if (fabsf(largest) < 1e-30f) return 0;
    float best = -1;
    uint16_t scale = 0;
    for (const float part : TRIED) {
        const float inverse = 1.0f / (largest * part * -0.125f);
        float q[GROUP], product[PANEL] = {0}, square[PANEL] = {0}, error[PANEL] = {0};
        for (int h = 0; h < GROUP; h += PANEL)
            for (int l = 0; l < PANEL; l++) {
                float v = (w[h + l] * inverse + 12582912.0f) - 12582912.0f;
                v = v < -8.0f ? -8.0f : v > 7.0f ? 7.0f : v;
                q[h + l] = v;
                product[l] += v * w[h + l];
                square[l] += v * v;
            }
        const float squares = sum_of(square);
        if (squares == 0) continue;
        const uint16_t fitted = float_to_half(sum_of(product) / squares);
        const float d = half_to_float(fitted);
        for (int h = 0; h < GROUP; h += PANEL)
            for (int l = 0; l < PANEL; l++) {
                const float e = w[h + l] - d * q[h + l];
                error[l] += e * e;
            }
        const float found = sum_of(error);
        if (best < 0 || found < best) {
            best = found, scale = fitted;
            for (int i = 0; i < GROUP; i++) codes[i] = uint8_t(int(q[i]) + 8);
        }
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

    void row(int64_t p, int r) const {
        const int64_t at = p * PANEL + r;
        const bool there = at < rows;
        const T *from = weight + at * width;
        float inverse = 0;
        if (bits == 8) {
            float largest = 0;
            for (int64_t i = 0; there && i < width; i++) {
                const float a = fabsf(to_float(from[i]));
                largest = a > largest ? a : largest;
            }
            const bool nought = largest < 1e-36f;
            inverse = nought ? 0.0f : 127.0f / largest;
            static_cast<float *>(scales)[at] = nought ? 0.0f : largest / 127.0f;
        }
        for (int64_t g = 0; g < groups; g++) {
            float w[GROUP] = {0};
            for (int64_t i = 0; there && i < least(GROUP, width - g * GROUP); i++) {
                w[i] = to_float(from[g * GROUP + i]);
                if (!(fabsf(w[i]) <= 3.4028234663852886e38f)) __atomic_store_n(wrong, 1, __ATOMIC_RELAXED);
            }
            if (bits == 4) {
                uint8_t c[GROUP];
                const uint16_t scale = pack_group(w, c);
                if ((scale & 0x7c00) == 0x7c00) __atomic_store_n(wrong, 1, __ATOMIC_RELAXED);
                static_cast<uint16_t *>(scales)[(p * groups + g) * PANEL + r] = scale;
                uint8_t *to = codes + (p * groups + g) * 256 + r * 4;
                for (int k = 0; k < 16; k++) to[k / 4 * 64 + k % 4] = uint8_t(c[k] | c[k + 16] << 4);
            } else {
                uint8_t *to = codes + (p * groups + g) * 512 + r * 4;
                for (int k = 0; k < GROUP; k++) {
                    float v = (w[k] * inverse + 12582912.0f) - 12582912.0f;
                    v = v < -127.0f ? -127.0f : v > 127.0f ? 127.0f : v == v ? v : 0.0f;
                    to[k / 4 * 64 + k % 4] = uint8_t(int(v) + 128);
                }
            }
        }
    }

    static void piece(void *work, int64_t begin, int64_t end) {
        const Packing &self = *static_cast<const Packing *>(work);
        for (int64_t p = begin; p < end; p++)
            for (int r = 0; r < PANEL; r++) self.row(p, r);
    }
};

template <class T>
int pack_of(int threads, int bits, const void *weight, int64_t rows, int64_t width, uint8_t *codes, void *scales) {
    int32_t wrong = 0;
    Packing<T> work = {static_cast<const T *>(weight), bits, rows, width, (width + GROUP - 1) / GROUP, codes, scales,
                       &wrong};
    leanseek_parallel_for(Packing<T>::piece, &work, (rows + PANEL - 1) / PANEL, threads);
    return wrong ? 3 : 0;
}

int pack(int threads, int type, int bits, const void *weight, int64_t rows, int64_t width, uint8_t *codes,
         void *scales) {
    return type == 1 ? pack_of<bf16>(threads, bits, weight, rows, width, codes, scales)
                     : pack_of<float>(threads, bits, weight, rows, width, codes, scales);
}

}  // namespace
