// Products of matrices as training has them: out [rows, columns] = a [rows, count] b [count, columns].
#pragma once
#include "lanes.h"
#include "room.h"

namespace {

const int64_t DEEP = 256;  // of `count` at a time: what a strip of b then takes fits the first cache
const int TALL = Wide<8>::panels > 1 ? 8 : 6;  // rows of a tile: as many sums as the registers hold

struct Matrix {
    float *at;
    int64_t apart;  // floats between rows
    float *row(int64_t r) const { return at + r * apart; }
};

// A matrix [count, columns] in strips, each as wide as a tile and in one piece of memory: else every row of it would
// be on a page of its own.
struct Strips {
    static const int64_t ACROSS = Wide<TALL>::panels * WIDE;
    float *at;
    int64_t count;
    // Sixteen numbers of a row, from a column on that is a multiple of 16.
    float *spot(int64_t k, int64_t c) const { return at + c / ACROSS * ACROSS * count + k * ACROSS + c % ACROSS; }
};

// Rows off powers of two, so that a column spreads over the whole of the first cache.
inline Matrix matrix(Room &room, int64_t rows, int64_t columns) {
    return {room.take<float>(rows * (columns + WIDE)), columns + WIDE};
}
inline Strips strips(Room &room, int64_t count, int64_t columns) {
    const int64_t wide = (columns + Strips::ACROSS - 1) / Strips::ACROSS * Strips::ACROSS;
    return {room.take<float>(count * wide), count};
}

// [rows, columns] into strips, as it is (rows `apart` floats from each other) or transposed.
inline void into_strips(Strips to, const float *from, int64_t apart, int64_t rows, int64_t columns, int64_t first) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += WIDE) store(to.spot(first + r, c), load(from + r * apart + c));
}
inline void turned_into_strips(Strips to, const float *from, int64_t rows, int64_t columns, int64_t first) {
    for (int64_t r = 0; r < rows; r += WIDE)
        for (int64_t c = 0; c < columns; c++) {
            float *spot = to.spot(c, first + r);
            for (int64_t l = 0; l < WIDE; l++) spot[l] = from[(r + l) * columns + c];
        }
}

// One tile. TURNED: a is given transposed, [count, rows].
template <int M, int P, bool TURNED>
inline void tile_by_rows(const float *a, int64_t a_apart, const float *b, int64_t count, float *out,
                         int64_t out_apart, bool more) {
    Lanes sums[M][P];
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = more ? load(out + m * out_apart + p * WIDE) : all(0.0f);
    for (int64_t k = 0; k < count; k++) {
        Lanes each[P];
        for (int p = 0; p < P; p++) each[p] = load(b + k * Strips::ACROSS + p * WIDE);
        for (int m = 0; m < M; m++) {
            const Lanes one = all(TURNED ? a[k * a_apart + m] : a[m * a_apart + k]);
            for (int p = 0; p < P; p++) sums[m][p] = fma(each[p], one, sums[m][p]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) store(out + m * out_apart + p * WIDE, sums[m][p]);
}

// The last rows, fewer than a tile has.
template <int M, int P, bool TURNED>
void last_by_rows(int64_t rows, const float *a, int64_t a_apart, const float *b, int64_t count,
                  float *out, int64_t out_apart, bool more) {
    if (rows == M) return tile_by_rows<M, P, TURNED>(a, a_apart, b, count, out, out_apart, more);
    if constexpr (M > 1) last_by_rows<M - 1, P, TURNED>(rows, a, a_apart, b, count, out, out_apart, more);
}

template <int P, bool TURNED>
void strip_by_rows(int64_t rows, const float *a, int64_t a_apart, const float *b, int64_t count,
                   float *out, int64_t out_apart, bool more) {
    int64_t r = 0;
    for (; r + TALL <= rows; r += TALL)
        tile_by_rows<TALL, P, TURNED>(a + (TURNED ? r : r * a_apart), a_apart, b, count, out + r * out_apart,
                                      out_apart, more);
    if (r < rows)
        last_by_rows<TALL - 1, P, TURNED>(rows - r, a + (TURNED ? r : r * a_apart), a_apart, b, count,
                                          out + r * out_apart, out_apart, more);
}

// The columns are a multiple of 16. `more`: added to what is there. Every number is one sum in the order of `count`.
template <bool TURNED = false>
void product_by_rows(int64_t rows, int64_t columns, int64_t count, Matrix a, Strips b, Matrix out, bool more = false) {
    const int P = Wide<TALL>::panels;
    for (int64_t k = 0; k < count; k += DEEP) {
        const float *from = a.at + (TURNED ? k * a.apart : k);
        const int64_t some = least(DEEP, count - k);
        int64_t c = 0;
        for (; c + P * WIDE <= columns; c += P * WIDE)
            strip_by_rows<P, TURNED>(rows, from, a.apart, b.spot(k, c), some, out.at + c, out.apart, more || k);
        for (; c < columns; c += WIDE)
            strip_by_rows<1, TURNED>(rows, from, a.apart, b.spot(k, c), some, out.at + c, out.apart, more || k);
    }
}

}  // namespace
