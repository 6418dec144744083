// Choices: which tokens chose which expert, sorted by expert so that each one's weights are read once.
#pragma once
#include "room.h"

namespace {

struct Choices {
    int64_t tokens, per_token, experts;
    int64_t *begins;        // where each expert's choices begin in `order`
    int64_t *used;          // experts that have any, in the order of their numbers
    int64_t *order, *rows;  // choices (token * per_token + k) sorted by expert, and their tokens
    int64_t count;          // of the used experts

    static size_t bytes(int64_t tokens, int64_t per_token, int64_t experts) {
        return 2 * Room::bytes<int64_t>(tokens * per_token) + 2 * Room::bytes<int64_t>(experts + 1);
    }

    void take(Room &room) {
        begins = room.take<int64_t>(experts + 1), used = room.take<int64_t>(experts + 1);
        order = room.take<int64_t>(tokens * per_token), rows = room.take<int64_t>(tokens * per_token);
    }

    void sort(const int64_t *chosen) {
        const int64_t choices = tokens * per_token;
        memset(begins, 0, size_t(experts + 1) * sizeof(int64_t));
        for (int64_t c = 0; c < choices; c++) begins[chosen[c] + 1]++;
        count = 0;
        for (int64_t e = 0; e < experts; e++) {
            if (begins[e + 1]) used[count++] = e;
            begins[e + 1] += begins[e];
        }
        for (int64_t c = 0; c < choices; c++) {
            const int64_t at = begins[chosen[c]]++;
            order[at] = c, rows[at] = c / per_token;
        }
        for (int64_t e = experts; e > 0; e--) begins[e] = begins[e - 1];
        begins[0] = 0;
    }
};

}  // namespace
