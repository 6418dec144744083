// Sixteen fp32 numbers in plain C, for the compiler to make of what it can.
#pragma once

namespace {

struct Lanes {
    float v[16];
};

template <class F> inline Lanes each(F of) {
    Lanes out;
    for (int i = 0; i < 16; i++) out.v[i] = of(i);
    return out;
}
inline Lanes all(float value) {
    return each([=](int) { return value; });
}
inline Lanes load(const float *from) {
    return each([=](int i) { return from[i]; });
}
inline void store(float *to, const Lanes &v) { memcpy(to, v.v, sizeof(v.v)); }
inline Lanes add(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes sub(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes mul(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes quotient(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes fma(const Lanes &a, const Lanes &b, const Lanes &c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Lanes larger(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes smaller(const Lanes &a, const Lanes &b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes nought_below(const Lanes &v, const Lanes &x, float bound) {
    return each([&](int i) { return x.v[i] < bound ? 0.0f : v.v[i]; });
}
inline Lanes power_of_two(const Lanes &shifted) {
    return each([&](int i) {
        uint32_t bits;
        float out;
        memcpy(&bits, &shifted.v[i], 4);
        bits = (bits + 127) << 23;
        memcpy(&out, &bits, 4);
        return out;
    });
}

// to[j][g] is the sum of sums[4 g + j].
inline void quads(const Lanes *sums, float *const *to) {
    for (int i = 0; i < 16; i++) {
        Lanes v = sums[i];
        for (int half = 8; half; half /= 2)
            for (int l = 0; l < half; l++) v.v[l] += v.v[l + half];
        to[i % 4][i / 4] = v.v[0];
    }
}

// Panels that a tile of so many rows takes at once.
template <int M> struct Wide { static const int panels = 1; };

}  // namespace
