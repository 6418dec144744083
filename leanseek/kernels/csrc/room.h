// Room: the memory that one call of a kernel works in. Nothing from the C++ library: see variant.cpp.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

// Memory for what a call has in between, taken piece by piece; null where memory is short. One without a size only
// counts what is taken.
struct Room {
    char *memory = nullptr;
    size_t used = 0, size = 0;
    Room() {}
    explicit Room(size_t bytes) : size(bytes + 64) {
        void *got = nullptr;
        if (!posix_memalign(&got, 64, size)) memory = static_cast<char *>(got);
    }
    ~Room() { free(memory); }
    template <class T> T *take(int64_t count) {
        T *at = memory ? reinterpret_cast<T *>(memory + used) : nullptr;
        used += bytes<T>(count);
        return at;
    }
    template <class T> static size_t bytes(int64_t count) { return (size_t(count) * sizeof(T) + 63) / 64 * 64; }
};

}  // namespace
