// The router: which experts a token takes, and how much of each; twin of leanseek/model/experts.py.
#pragma once
#include "lanes.h"
#include "stack.h"

namespace {

const int64_t MOST_EXPERTS = 512, MOST_CHOSEN = 32, MOST_GROUPS = 64;

// The index of the largest number, the first of them; `taken` ones do not count.
inline int64_t best(const float *numbers, int64_t count, const bool *taken) {
    int64_t at = -1;
    for (int64_t i = 0; i < count; i++)
        if (!taken[i] && (at < 0 || numbers[i] > numbers[at])) at = i;
    return at;
}

// Choose by scores [experts in lanes], which logits become; experts come in the order of their numbers.
void route(const leanseek_stack &s, const float *bias, float *scores, int64_t *chosen, float *weights) {
    const int64_t experts = s.experts, wide = in_lanes(experts);
    if (s.softmax) {
        for (int64_t e = experts; e < wide; e++) scores[e] = -INFINITY;
        Lanes most = all(-INFINITY), sum = all(0.0f);
        for (int64_t e = 0; e < wide; e += WIDE) most = larger(most, load(scores + e));
        const Lanes off = all(largest(most));
        for (int64_t e = 0; e < wide; e += WIDE) {
            const Lanes share = exponential(sub(load(scores + e), off));
            store(scores + e, share);
            sum = add(sum, share);
        }
        const Lanes whole = all(total(sum));
        for (int64_t e = 0; e < wide; e += WIDE) store(scores + e, quotient(load(scores + e), whole));
    } else {
        for (int64_t e = 0; e < wide; e += WIDE) store(scores + e, sigmoid(load(scores + e)));
    }
    float biased[MOST_EXPERTS];
    bool taken[MOST_EXPERTS] = {false};
    for (int64_t e = 0; e < experts; e++) biased[e] = bias ? scores[e] + bias[e] : scores[e];
    if (s.groups > 1) {
        const int64_t size = experts / s.groups;
        float group_scores[MOST_GROUPS];
        bool kept[MOST_GROUPS] = {false};
        for (int64_t g = 0; g < s.groups; g++) {
            bool seen[MOST_EXPERTS] = {false};
            group_scores[g] = 0;
            for (int64_t i = 0; i < least(s.group_best, size); i++) {
                const int64_t e = best(biased + g * size, size, seen);
                seen[e] = true;
                group_scores[g] += biased[g * size + e];
            }
        }
        for (int64_t i = 0; i < s.best_groups; i++) kept[best(group_scores, s.groups, kept)] = true;
        for (int64_t e = 0; e < experts; e++) taken[e] = !kept[e / size];
    }
    bool used[MOST_EXPERTS] = {false};
    for (int64_t k = 0; k < s.per_token; k++) {
        const int64_t e = best(biased, experts, taken);
        taken[e] = used[e] = true;
    }
    int64_t k = 0;
    float sum = 0;
    for (int64_t e = 0; e < experts; e++)
        if (used[e]) chosen[k] = e, weights[k] = scores[e], sum += scores[e], k++;
    // V2 normalises or scales, never both.
    const float scale = s.normalised && s.softmax ? 1.0f : s.routed_scale;
    for (k = 0; k < s.per_token; k++) weights[k] = (s.normalised ? weights[k] / (sum + 1e-20f) : weights[k]) * scale;
}

}  // namespace
