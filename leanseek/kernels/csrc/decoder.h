// A whole call of a model: tokens through a stack of layers, over a paged cache, in one go.
//
// Tokens are worked on in slabs. Where a layer's weights fit into a core's own cache, threads take parts of a slab and
// meet between layers alone, because a token looks at the latents of those before it. Where weights come from memory,
// a slab is one part, and threads split each step's weights: each is read once. Bits do not depend on either.
#pragma once
#include "part.h"

namespace {

const int64_t NEAR = 64;             // tokens of a thread's part at most: what they need stays in a core's own cache
const int64_t FAR = 512;             // of one part of all threads
const int64_t FAR_BYTES = 96 << 20;  // and what they need in between at most, but for 16 of them

struct Decoding {
    Part *parts;
    int64_t count, layer;

    static void run(void *work, int64_t from, int64_t to) {
        const Decoding &d = *static_cast<const Decoding *>(work);
        for (int64_t p = from; p < to; p++) d.parts[p].go_on(d.layer);
    }
};

// Bytes that a part of so many rows takes.
inline size_t part_bytes(Part part, int64_t rows, int64_t chunks) {
    Room room;
    part.take(room, rows, chunks);
    return room.used;
}

int decode(int threads, const leanseek_stack *stack, const leanseek_batch *batch) {
    const leanseek_stack &s = *stack;
    const leanseek_batch &b = *batch;
    for (int64_t t = 0; t < b.tokens; t++)
        if (b.ids[t] < 0 || b.ids[t] >= s.vocabulary) return 4;
    int64_t longest = 1;
    for (int64_t t = 0; t < b.texts; t++) {
        const int64_t end = b.positions[t] + (b.starts ? b.starts[t + 1] - b.starts[t] : 1);
        if (b.positions[t] < 0 || end > b.pages * b.page) return 4;
        longest = larger_of(longest, end);
    }
    if (b.tokens <= 0) return 0;
    if (threads < 1) threads = 1;
    const int64_t parts = s.by_tokens ? least(threads, b.tokens) : 1, chunks = (longest + CHUNK - 1) / CHUNK;
    int64_t rows = least(s.by_tokens ? NEAR : FAR, (b.tokens + parts - 1) / parts);
    Part plain = {};
    plain.s = stack, plain.b = batch, plain.threads = s.by_tokens ? 1 : threads;
    while (!s.by_tokens && rows > 16 && part_bytes(plain, rows, chunks) > size_t(FAR_BYTES)) rows = (rows + 1) / 2;
    Room room(size_t(parts) * part_bytes(plain, rows, chunks) + Room::bytes<Part>(parts));
    if (!room.memory) return 1;
    Decoding d = {room.take<Part>(parts), parts, 0};
    for (int64_t p = 0; p < parts; p++) d.parts[p] = plain, d.parts[p].take(room, rows, chunks);
    for (int64_t begin = 0; begin < b.tokens; begin += parts * rows) {
        for (int64_t p = 0; p < parts; p++) {
            const int64_t first = begin + p * rows;
            d.parts[p].hold(first, first < b.tokens ? least(rows, b.tokens - first) : 0);
        }
        for (d.layer = -1; d.layer < s.count; d.layer++)
            if (s.by_tokens) leanseek_parallel_for(Decoding::run, &d, parts, threads);
            else d.parts[0].go_on(d.layer);
    }
    return 0;
}

}  // namespace
