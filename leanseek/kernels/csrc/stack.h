// What a stack of decoder layers is made of; the C ABI's structures are read by leanseek/kernels/stack.py's twins.
#pragma once
#include <stdint.h>

// How a weight's numbers are kept: fp32 in panels of 16 outputs, [panels, inputs, 16], or packed as packed.py states.
enum { LEANSEEK_PLAIN = 0, LEANSEEK_INT4 = 4, LEANSEEK_INT8 = 8 };

// A weight, or a stack of them. Null numbers: there is none. Weights that take the same numbers in are of one kind.
struct leanseek_weight {
    const void *numbers, *scales;
    int64_t kind;
    int64_t apart;  // panels from one weight of a stack to the next
};

struct leanseek_layer {
    const float *norm;
    leanseek_weight query_down;  // without it, queries come from the hidden state
    const float *query_norm;
    leanseek_weight query, latent;  // latent: hidden state -> latent and rope key; or every shared head's key, then values
    const float *latent_norm;       // where heads share keys, this and query_norm are of each head; null: none
    const float *query_bias, *latent_bias;  // null: none
    leanseek_weight key_up;  // of every head: query -> latent
    const float *key_scales;  // [heads, nope]: what queries are multiplied with before it; null: nothing
    leanseek_weight value_up;  // of every head: latent -> value
    leanseek_weight out;
    const float *mlp_norm;
    // Gate and up one after the other, each filled up to 32 outputs; the first two of the dense MLP or the shared experts.
    leanseek_weight gate_up, down;
    leanseek_weight router;  // plain
    const float *bias;
    leanseek_weight experts_gate_up, experts_down;  // stacks
    int64_t width;  // of the dense MLP or the shared experts
};

struct leanseek_stack {
    const leanseek_layer *layers;
    int64_t count, first;  // how many layers, and which of the cache's is the first one's
    int64_t dim, heads, query_rank, nope, rope, value, latent;
    // How many heads' keys and values are kept whole, each shared by as many heads of queries; 0: latents are kept.
    // Otherwise rope and value are a head's width, whole lanes, and query_rank, nope and latent nought.
    int64_t shared;
    int64_t experts, per_token, groups, best_groups, group_best, expert_width, vocabulary;
    int32_t softmax, normalised;
    int32_t by_tokens;  // a layer's weights fit into a core's own cache: threads split tokens, not weights
    int32_t short_embedding, short_store;  // whether these are bf16, not fp32
    float eps, scale, routed_scale;
    const void *embedding;
    leanseek_weight join;  // of an MTP layer
    const float *join_embedding_norm, *join_hidden_norm;
    const float *norm;
    leanseek_weight head;
};

// Tokens of some texts, one text after the other, and where each text's latents are.
struct leanseek_batch {
    int64_t tokens, texts;
    const int64_t *ids;
    const int64_t *starts;     // [texts + 1]; null: one token a text
    const int64_t *positions;  // of each text's first token
    const int64_t *tables;     // [texts, pages of one]
    int64_t pages, page;       // pages of a text, tokens of a page
    void *store;               // [layers, pages, page, latent + rope], or 2 shared value in the latents' place
    int64_t layer_numbers;     // numbers of a layer of it
    const float *turns;        // [positions, rope]: cosine and sine of each pair
    const float *hidden;       // [tokens, dim], where the stack joins them
    float *out;                // [tokens, dim], after the last norm
    float *logits;             // [tokens, vocabulary]; null: not wanted
    int64_t *chosen;           // [tokens, mixtures, per_token]; null: not wanted
};
