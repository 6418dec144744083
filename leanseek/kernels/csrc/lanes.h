// Sixteen fp32 numbers side by side, in the registers of each instruction set, and what is made of their operations.
#pragma once
#include "numbers.h"

#if defined(LEANSEEK_IS_avx512)
#include "lanes_avx512.h"
#elif defined(LEANSEEK_IS_avx2)
#include "lanes_avx2.h"
#elif defined(LEANSEEK_IS_neon)
#include "lanes_neon.h"
#else
#include "lanes_generic.h"
#endif

namespace {

const int64_t WIDE = 16;  // lanes

inline int64_t in_lanes(int64_t count) { return (count + WIDE - 1) / WIDE * WIDE; }

inline float total(Lanes v) {
    float lanes[WIDE];
    store(lanes, v);
    for (int half = WIDE / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

inline float largest(Lanes v) {
    float lanes[WIDE];
    store(lanes, v);
    for (int half = WIDE / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] = lanes[l] > lanes[l + half] ? lanes[l] : lanes[l + half];
    return lanes[0];
}

// e^x within 2 units in the last place; 0 below -87.3, and e^88 from 88 on. Not a number stays that.
// x = n ln 2 + r, and a polynomial for e^r (Cephes' coefficients for single precision).
inline Lanes exponential(Lanes x) {
    const Lanes magic = all(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction
    const Lanes a = larger(all(-88.0f), smaller(all(88.0f), x));
    const Lanes shifted = fma(a, all(1.44269504088896341f), magic);
    const Lanes n = sub(shifted, magic);
    Lanes r = fma(n, all(-0.693359375f), a);
    r = fma(n, all(2.12194440e-4f), r);
    Lanes p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return nought_below(mul(p, power_of_two(shifted)), x, -87.3f);
}

// 1 / (1 + e^-x), and x times that.
inline Lanes sigmoid(Lanes x) { return quotient(all(1.0f), add(all(1.0f), exponential(sub(all(0.0f), x)))); }
inline Lanes silu(Lanes x) { return quotient(x, add(all(1.0f), exponential(sub(all(0.0f), x)))); }

}  // namespace
