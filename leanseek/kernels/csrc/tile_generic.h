// The tile in plain C: any processor.
#pragma once

namespace {

const int TILE = 8, ABREAST = 1;

template <int BITS, int M, int P>
void tile(const Packed &weight, int64_t p, const Rounded &x, const int64_t *rows, float *out, int64_t stride) {
    static_assert(P == 1, "one panel at a time");
    const uint8_t *codes = weight.panel(p);
    const float *steps = weight.of_rows(p);
    const int8_t *scales = weight.of_groups(p);
    float total[M][PANEL] = {{0}};
    for (int64_t g = 0; g < x.groups; g++) {
        const uint8_t *c = codes + g * GROUP * PANEL * BITS / 8;
        for (int m = 0; m < M; m++) {
            const int64_t at = rows[m] * x.groups + g;
            const int8_t *a = x.numbers + at * GROUP;
            const float d = x.scales[at];
            for (int r = 0; r < PANEL; r++) {
                int32_t sum = 0;
                for (int k = 0; k < GROUP; k++) {
                    int w;
                    if (BITS == 4) {
                        const uint8_t pair = c[(k % 16) / 4 * 64 + r * 4 + k % 4];
                        w = (k < 16 ? pair & 15 : pair >> 4) - 8;
                    } else {
                        w = c[k / 4 * 64 + r * 4 + k % 4] - 128;
                    }
                    sum += w * a[k];
                }
                const float s = BITS == 4 ? float(scales[g * PANEL + r]) : 1.0f;
                total[m][r] += float(sum) * (s * d);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < PANEL; r++) out[m * stride + r] = total[m][r] * steps[r];
}

}  // namespace
