// What the machine can do at most: how fast memory is read, and how fast this instruction set multiplies int8 numbers.
#pragma once
#include "numbers.h"
#include "table.h"

#if defined(LEANSEEK_IS_avx512) || defined(LEANSEEK_IS_avx2)
#include <immintrin.h>
#elif defined(LEANSEEK_IS_neon)
#include <arm_neon.h>
#endif

namespace {

const int64_t STREAM_PIECE = 1 << 18;

struct Stream {
    const uint64_t *data;
    int64_t words;
    uint64_t *sum;
    static void piece(void *work, int64_t begin, int64_t end) {
        const Stream &self = *static_cast<const Stream *>(work);
        const int64_t last = least(end * STREAM_PIECE, self.words);
        uint64_t lanes[32] = {0};
        int64_t i = begin * STREAM_PIECE;
        for (; i + 32 <= last; i += 32)
            for (int l = 0; l < 32; l++) lanes[l] ^= self.data[i + l];
        uint64_t all = 0;
        for (int l = 0; l < 32; l++) all ^= lanes[l];
        __atomic_fetch_xor(self.sum, all, __ATOMIC_RELAXED);
    }
};

int stream(int threads, const void *data, int64_t bytes, void *sum) {
    Stream work = {static_cast<const uint64_t *>(data), bytes / 8, static_cast<uint64_t *>(sum)};
    *work.sum = 0;
    leanseek_parallel_for(Stream::piece, &work, (work.words + STREAM_PIECE - 1) / STREAM_PIECE, threads);
    return 0;
}

// A round of multiplications in registers; returns something that depends on all of it.
const int64_t ROUNDS = 20000;

#if defined(LEANSEEK_IS_avx512)
const int64_t ROUND_OPERATIONS = 16 * 64 * 2;
inline int32_t rounds(int64_t seed) {
    __m512i sums[16];
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_epi32(i);
    __m512i a = _mm512_set1_epi8(char(seed)), b = _mm512_set1_epi8(3);
    for (int64_t r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < 16; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        asm volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < 16; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    return _mm512_reduce_add_epi32(sums[0]);
}
#elif defined(LEANSEEK_IS_avx2)
const int64_t ROUND_OPERATIONS = 8 * 32 * 2;
inline int32_t rounds(int64_t seed) {
    __m256i sums[8];
    for (int i = 0; i < 8; i++) sums[i] = _mm256_set1_epi16(short(i));
    __m256i a = _mm256_set1_epi8(char(seed & 15)), b = _mm256_set1_epi8(3);
    for (int64_t r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < 8; i++) sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, b));
        asm volatile("" : "+x"(a), "+x"(b));
    }
    for (int i = 1; i < 8; i++) sums[0] = _mm256_add_epi16(sums[0], sums[i]);
    return _mm256_extract_epi32(sums[0], 0);
}
#elif defined(LEANSEEK_IS_neon)
const int64_t ROUND_OPERATIONS = 16 * 16 * 2;
inline int32_t rounds(int64_t seed) {
    int32x4_t sums[16];
    for (int i = 0; i < 16; i++) sums[i] = vdupq_n_s32(i);
    int8x16_t a = vdupq_n_s8(int8_t(seed)), b = vdupq_n_s8(3);
    for (int64_t r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < 16; i++) sums[i] = vdotq_s32(sums[i], a, b);
        asm volatile("" : "+w"(a), "+w"(b));
    }
    for (int i = 1; i < 16; i++) sums[0] = vaddq_s32(sums[0], sums[i]);
    return vaddvq_s32(sums[0]);
}
#else
const int64_t ROUND_OPERATIONS = 64 * 2;
inline int32_t rounds(int64_t seed) {
    int32_t sums[64] = {0}, a[64];
    for (int i = 0; i < 64; i++) a[i] = int32_t(seed) + i;
    for (int64_t r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < 64; i++) sums[i] += a[i] * int32_t(r);
        asm volatile("" : : : "memory");
    }
    for (int i = 1; i < 64; i++) sums[0] ^= sums[i];
    return sums[0];
}
#endif

struct Peak {
    int64_t *got;
    static void piece(void *work, int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; p++)
            __atomic_fetch_xor(static_cast<Peak *>(work)->got, int64_t(rounds(p)), __ATOMIC_RELAXED);
    }
};

// out[0]: operations that were done; out[1]: what came of them.
int peak(int threads, int64_t pieces, void *out) {
    int64_t *to = static_cast<int64_t *>(out);
    to[1] = 0;
    Peak work = {to + 1};
    leanseek_parallel_for(Peak::piece, &work, pieces, threads);
    to[0] = pieces * ROUNDS * ROUND_OPERATIONS;
    return 0;
}

}  // namespace
