// What a stack of decoder layers is made of; the C ABI's structures are read by leanseek/kernels/stack.py's twins.
#pragma once
#include <stdint.h>

// A layer's weights in panels, norms as they are. Null: the layer has none of it.
struct leanseek_layer {
    const float *norm;
    const float *query_down, *query_norm, *query;  // without the first two, queries come from the hidden state
    const float *latent, *latent_norm;             // hidden state -> latent and rope key
    const float *key_up, *value_up;                // of every head: query -> latent, latent -> value
    const float *out;
    const float *mlp_norm;
    const float *gate_up, *down;                   // of the dense MLP or the shared experts; panels of both in turn
    const float *router, *bias;
    const float *experts_gate_up, *experts_down;   // stacks
    int64_t width;                                 // of the dense MLP or the shared experts
};

struct leanseek_stack {
    const leanseek_layer *layers;
    int64_t count, first;  // how many layers, and which of the cache's is the first one's
    int64_t dim, heads, query_rank, nope, rope, value, latent;
    int64_t experts, per_token, groups, best_groups, group_best, expert_width, vocabulary;
    int32_t softmax, normalised;
    float eps, scale, routed_scale, unused;
    const float *embedding;
    const float *join, *join_embedding_norm, *join_hidden_norm;  // of an MTP layer: panels, and two norms
    const float *norm, *head;
};

// Tokens of some texts, one text after the other, and where each text's latents are.
struct leanseek_batch {
    int64_t tokens, texts;
    const int64_t *ids;
    const int64_t *starts;     // [texts + 1]; null: one token a text
    const int64_t *positions;  // of each text's first token
    const int64_t *tables;     // [texts, pages of one]
    int64_t pages, page;       // pages of a text, tokens of a page
    float *store;              // [layers, pages, page, latent + rope]
    int64_t layer_numbers;     // numbers of a layer of it
    const float *turns;        // [positions, rope]: cosine and sine of each pair
    const float *hidden;       // [tokens, dim], where the stack joins them
    float *out;                // [tokens, dim], after the last norm
    float *logits;             // [tokens, vocabulary]; null: not wanted
    int64_t *chosen;           // [tokens, mixtures, per_token]; null: not wanted
};
