// What each instruction set's translation unit gives: a table of functions, found by name in dispatch.cpp.
#pragma once
#include <stdint.h>

// Does the pieces [begin, end) of some work.
typedef void (*leanseek_piece)(void *work, int64_t begin, int64_t end);
// Does all `count` pieces, by up to `threads` threads, and returns when they are done.
typedef void (*leanseek_parallel)(leanseek_piece piece, void *work, int64_t count, int threads);

struct leanseek_table {
    void (*rms_norm)(int threads, int type, const void *x, const void *residual, const void *weight, void *sum,
                     void *out, int64_t rows, int64_t width, float eps);
};

void leanseek_parallel_for(leanseek_piece piece, void *work, int64_t count, int threads);
