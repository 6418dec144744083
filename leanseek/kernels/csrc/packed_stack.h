// Packed stack: what a decoding step of a model with packed weights is given.
#pragma once
#include <stdint.h>

// A model with latent attention and packed weights, for leanseek_packed_decode; leanseek/model/packed_decoder.py
// has the same.
typedef struct {
    const void *codes, *scales;
    int64_t bits;
} leanseek_packed_weight;

typedef struct {
    const float *input_norm, *post_norm, *query_norm, *latent_norm;
    // `keys`: every head's rows of kv_b_proj, transposed, with scales of 1; their own are `key_scales`, [heads, nope].
    leanseek_packed_weight query_down, query, latent, keys, keys_values, output;
    const float *key_scales;
    const float *router, *bias;  // null in a layer without experts; null where there is none
    leanseek_packed_weight gate_up, down, shared_gate_up, shared_down;
    int64_t shared_width;
} leanseek_packed_layer;

typedef struct {
    int64_t layers, dim, heads, nope, turned, value, latent, query_rank;
    int64_t experts, per_token, width, groups, top_groups, group_best, normalise, softmax;
    float eps, scale, routed_scale;
    const leanseek_packed_layer *layer;
    const float *norm;
    int64_t bits;  // of all weights but `keys` and `keys_values`, which have 8
} leanseek_packed_model;

// One new token for each of some texts.
typedef struct {
    int64_t rows;
    float *stream;             // [rows, dim]: embeddings; overwritten
    const float *turns;        // [rows, turned / 2] complex
    const int64_t *positions;  // [rows]
    uint16_t *store;           // bf16 latents: [layers, blocks, block_tokens, latent + turned]
    int64_t layer_stride, block_stride, block_tokens;
    const int64_t *tables;  // [rows, table_width]: each text's blocks; null: block r is text r
    int64_t table_width;
    int64_t *chosen;  // [layers with experts, rows, per_token], or null
    float *hidden;    // [rows, dim]
} leanseek_packed_step;
