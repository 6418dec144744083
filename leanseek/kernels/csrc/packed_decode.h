// One decoding step of a whole model with latent attention and packed weights: one new token for each of some texts,
// whose latents lie in blocks. Its twin is the model itself (leanseek/model/transformer.py); the calls of a step's some
// hundred small operations would otherwise cost as much as a sixth of it.
#pragma once
#include "flash.h"
#include "packed_stack.h"
#include "quantised.h"

namespace {

const int CHUNK = 256;  // keys of a piece of attention: the same for any number of threads, and so are the sums

// Two pieces of work that do not wait for each other, as one.
struct Both {
    leanseek_piece first, second;
    void *first_work, *second_work;
    int64_t first_count;
    static void piece(void *work, int64_t begin, int64_t end) {
        const Both &self = *static_cast<const Both *>(work);
        for (int64_t at = begin; at < end; at++)
            if (at < self.first_count) self.first(self.first_work, at, at + 1);
            else self.second(self.second_work, at - self.first_count, at - self.first_count + 1);
    }
};

struct Step {
    const leanseek_packed_model &m;
    const leanseek_packed_layer *layer;
    int threads;
    int64_t rows;
    float *stream, *normed, *attended;
    Rounded x, wide, queries_in, latents_in;  // rounded: [D], [H V], [H, N], [H, L]
    float *queries, *entries, *absorbed, *mixed;
    const float *turns;
    const int64_t *positions, *tables;
    int64_t table_width, block_tokens, block_stride;
    uint16_t *store;
    float *logits_E, *weights;  // [rows, E], [rows, K]
    int64_t *chosen;
    int64_t *chunk_row, *chunk_begin, *first_chunk, chunks, lanes;  // lanes: groups of 16 heads
    float *tops, *sums, *partial;

    explicit Step(const leanseek_packed_model &model) : m(model) {}

    int64_t channels() const { return m.latent + m.turned; }
    static Packed packed(const leanseek_packed_weight &w, int64_t inputs) {
        return {static_cast<const uint8_t *>(w.codes), w.scales, int(w.bits), groups_of(inputs)};
    }

    void each_row(leanseek_piece piece) { leanseek_parallel_for(piece, this, rows, rows < 4 ? 1 : threads); }

    LinearWork linear(const leanseek_packed_weight &w, int64_t inputs, const Rounded &in, int64_t outputs, float *out) const {
        return {packed(w, inputs), in, rows, outputs, panels_at_once(rows), out};
    }

    // RMS norm of a row, and the same rounded.
    static void norm_row(const float *from, const float *weight, int64_t width, float eps, float *to) {
        float sums[16] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + 16 <= width; i += 16)
            for (int l = 0; l < 16; l++) sums[l] += from[i + l] * from[i + l];
        for (; i < width; i++) sum += from[i] * from[i];
        for (int l = 0; l < 16; l++) sum += sums[l];
        const float inverse = 1.0f / sqrtf(sum / float(width) + eps);
        for (i = 0; i < width; i++) to[i] = from[i] * inverse * weight[i];
    }

    const float *norm_weight;
    static void norm_piece(void *work, int64_t begin, int64_t end) {
        Step &self = *static_cast<Step *>(work);
        const int64_t dim = self.m.dim;
        for (int64_t r = begin; r < end; r++) {
            float *row = self.normed + r * dim;
            norm_row(self.stream + r * dim, self.norm_weight, dim, self.m.eps, row);
            round_row(row, dim, self.x, r);
        }
    }
    void norm(const float *weight) {
        norm_weight = weight;
        each_row(norm_piece);
    }

    void turn(float *pairs, int64_t r) const {
        const float *by = turns + r * m.turned;
        for (int64_t i = 0; i < m.turned; i += 2) {
            const float a = pairs[i], b = pairs[i + 1];
            pairs[i] = a * by[i] - b * by[i + 1], pairs[i + 1] = a * by[i + 1] + b * by[i];
        }
    }

    uint16_t *place(int64_t r, int64_t position) const {
        const int64_t at = position / block_tokens, block = tables ? tables[r * table_width + at] : r;
        return store + block * block_stride + position % block_tokens * channels();
    }

    // Of a row: the new entry into the cache, turned queries, and what the keys' up-projection is to be applied to.
    static void entry_piece(void *work, int64_t begin, int64_t end) {
        Step &self = *static_cast<Step *>(work);
        const leanseek_packed_model &m = self.m;
        const int64_t head = m.nope + m.turned, channels = self.channels();
        for (int64_t r = begin; r < end; r++) {
            float *entry = self.entries + r * channels;
            norm_row(entry, self.layer->latent_norm, m.latent, m.eps, entry);
            self.turn(entry + m.latent, r);
            bf16 *kept = reinterpret_cast<bf16 *>(self.place(r, self.positions[r]));
            for (int64_t c = 0; c < channels; c++) from_float(entry[c], kept[c]);
            for (int64_t h = 0; h < m.heads; h++) {
                float *query = self.queries + (r * m.heads + h) * head;
                self.turn(query + m.nope, r);
                memcpy(self.absorbed + (r * m.heads + h) * channels + m.latent, query + m.nope,
                       size_t(m.turned) * sizeof(float));
                for (int64_t c = 0; c < m.nope; c++) query[c] *= self.layer->key_scales[h * m.nope + c];
                round_row(query, m.nope, self.queries_in, r * m.heads + h);
            }
        }
    }

    // A product of each head's own: rows of all texts with the panels of one head.
    void by_head(const Packed &w, int64_t panels, const Rounded &in, int64_t h, float *out, int64_t stride) const {
        for (int64_t r = 0; r < rows; r += TILE) {
            const int count = int(least(TILE, rows - r));
            int64_t numbers[TILE];
            for (int i = 0; i < count; i++) numbers[i] = (r + i) * m.heads + h;
            multiply(w, 0, panels, in, numbers, count, out + r * stride, stride);
        }
    }
    static void absorb_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const int64_t panels = self.m.latent / PANEL, channels = self.channels();
        for (int64_t h = begin; h < end; h++)
            self.by_head(packed(self.layer->keys, self.m.nope).from(h * panels), panels, self.queries_in, h,
                         self.absorbed + h * channels, self.m.heads * channels);
    }
    static void value_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const int64_t value = self.m.value, head = self.m.nope + value;
        for (int64_t h = begin; h < end; h++)
            self.by_head(packed(self.layer->keys_values, self.m.latent).from((h * head + self.m.nope) / PANEL),
                         value / PANEL, self.latents_in, h, self.mixed + h * value, self.m.heads * value);
    }

    // Sixteen heads over a chunk of one text's keys.
    static void attend_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const leanseek_packed_model &m = self.m;
        const int64_t channels = self.channels();
        for (int64_t at = begin; at < end; at++) {
            const int64_t chunk = at / self.lanes, first = at % self.lanes * FLASH_LANES, r = self.chunk_row[chunk];
            alignas(64) uint32_t laid[MOST_CHANNELS / 2 * FLASH_LANES];
            memset(laid, 0, size_t(channels / 2 * FLASH_LANES) * sizeof(uint32_t));
            for (int64_t l = 0; l < least(FLASH_LANES, m.heads - first); l++)
                lay(self.absorbed + (r * m.heads + first + l) * channels, channels, m.scale, laid, int(l));
            Gathered q;
            q.queries = laid, q.channels = channels, q.width = m.latent, q.out = self.partial + at * FLASH_LANES * m.latent;
            q.begin();
            const int64_t from = self.chunk_begin[chunk], to = least(from + CHUNK, self.positions[r] + 1);
            for (int64_t k = from; k < to; k += FLASH_KEYS) {
                const int some = int(least(FLASH_KEYS, to - k));
                const uint16_t *keys[FLASH_KEYS], *values[FLASH_KEYS];
                int64_t limits[FLASH_LANES];
                for (int l = 0; l < FLASH_LANES; l++) limits[l] = FLASH_KEYS;
                for (int i = 0; i < some; i++) keys[i] = values[i] = self.place(r, k + i);
                gather(q, keys, values, some, limits);
            }
            memcpy(self.tops + at * FLASH_LANES, q.top, sizeof(q.top)), memcpy(self.sums + at * FLASH_LANES, q.sum, sizeof(q.sum));
        }
    }
    // What a text's chunks gave, together: every head's mixed latent, rounded.
    static void join_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const leanseek_packed_model &m = self.m;
        for (int64_t at = begin; at < end; at++) {
            const int64_t r = at / m.heads, h = at % m.heads, lane = h % FLASH_LANES;
            float top = -INFINITY, sum = 0, latent[MOST_CHANNELS] = {0};
            for (int64_t c = self.first_chunk[r]; c < self.first_chunk[r + 1]; c++) {
                const float one = self.tops[(c * self.lanes + h / FLASH_LANES) * FLASH_LANES + lane];
                top = one > top ? one : top;
            }
            for (int64_t c = self.first_chunk[r]; c < self.first_chunk[r + 1]; c++) {
                const int64_t piece = c * self.lanes + h / FLASH_LANES;
                const float factor = power(self.tops[piece * FLASH_LANES + lane] - top);
                const float *part = self.partial + (piece * FLASH_LANES + lane) * m.latent;
                sum += factor * self.sums[piece * FLASH_LANES + lane];
                for (int64_t i = 0; i < m.latent; i++) latent[i] += factor * part[i];
            }
            for (int64_t i = 0; i < m.latent; i++) latent[i] /= sum;
            round_row(latent, m.latent, self.latents_in, at);
        }
    }

    static void mixed_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const int64_t width = self.m.heads * self.m.value;
        for (int64_t r = begin; r < end; r++) round_row(self.mixed + r * width, width, self.wide, r);
    }

    // Router scores of four experts.
    static void router_piece(void *work, int64_t begin, int64_t end) {
        const Step &self = *static_cast<const Step *>(work);
        const int64_t dim = self.m.dim, experts = self.m.experts;
        for (int64_t e = begin * 4; e < least(end * 4, experts); e++)
            for (int64_t r = 0; r < self.rows; r++) {
                const float *x = self.normed + r * dim, *w = self.layer->router + e * dim;
                float sums[64] = {0}, sum = 0;
                int64_t i = 0;
                for (; i + 64 <= dim; i += 64)
                    for (int l = 0; l < 64; l++) sums[l] += x[i + l] * w[i + l];
                for (; i < dim; i++) sum += x[i] * w[i];
                for (int l = 0; l < 64; l++) sum += sums[l];
                self.logits_E[r * experts + e] = sum;
            }
    }

    // Choose the K experts of a row, and weigh them: as model.experts does.
    void route(int64_t r) {
        const int64_t experts = m.experts, each = experts / m.groups;
        float *scores = logits_E + r * experts;
        if (m.softmax) {
            float top = scores[0], sum = 0;
            for (int64_t e = 1; e < experts; e++) top = scores[e] > top ? scores[e] : top;
            for (int64_t e = 0; e < experts; e++) sum += scores[e] = expf(scores[e] - top);
            for (int64_t e = 0; e < experts; e++) scores[e] /= sum;
        } else {
            for (int64_t e = 0; e < experts; e++) scores[e] = 1.0f / (1.0f + expf(-scores[e]));
        }
        auto biased = [&](int64_t e) { return scores[e] + (layer->bias ? layer->bias[e] : 0.0f); };
        uint8_t *out = taken + r * (experts + m.groups), *shut = out + experts;
        memset(out, 0, size_t(experts)), memset(shut, m.groups > 1, size_t(m.groups));
        for (int64_t kept = 0; m.groups > 1 && kept < m.top_groups; kept++) {
            int64_t best = -1;
            float most = 0;
            for (int64_t g = 0; g < m.groups; g++) {
                if (!shut[g]) continue;
                float first = -INFINITY, second = -INFINITY;
                for (int64_t e = g * each; e < (g + 1) * each; e++) {
                    const float b = biased(e);
                    if (b > first) second = first, first = b;
                    else if (b > second) second = b;
                }
                const float found = m.group_best > 1 && each > 1 ? first + second : first;
                if (best < 0 || found > most) best = g, most = found;
            }
            shut[best] = 0;
        }
        float sum = 0;
        for (int64_t k = 0; k < m.per_token; k++) {
            int64_t best = -1;
            for (int64_t e = 0; e < experts; e++)
                if (!out[e] && !shut[e / each] && (best < 0 || biased(e) > biased(best))) best = e;
            out[best] = 1, chosen[r * m.per_token + k] = best;
            sum += weights[r * m.per_token + k] = scores[best];
        }
        for (int64_t k = 0; k < m.per_token; k++) {
            float &weight = weights[r * m.per_token + k];
            if (m.normalise) weight /= sum + 1e-20f;
            if (!m.normalise || !m.softmax) weight *= m.routed_scale;
        }
    }
    uint8_t *taken;

    struct Out {
        ExpertsWork *routed, *shared;
        static void piece(void *work, int64_t begin, int64_t end) {
            const Out &self = *static_cast<const Out *>(work);
            for (int64_t at = begin; at < end; at++) {
                if (self.routed) self.routed->some_out(at);
                self.shared->some_out(at);
            }
        }
    };

    void add(const float *more) {
        for (int64_t i = 0; i < rows * m.dim; i++) stream[i] += more[i];
    }

    void attention() {
        norm(layer->input_norm);
        LinearWork query, latent = linear(layer->latent, m.dim, x, channels(), entries);
        const int64_t width = m.heads * (m.nope + m.turned);
        query = m.query_rank ? linear(layer->query_down, m.dim, x, m.query_rank, normed)
                             : linear(layer->query, m.dim, x, width, queries);
        Both both = {LinearWork::piece, LinearWork::piece, &query, &latent, query.pieces()};
        leanseek_parallel_for(Both::piece, &both, query.pieces() + latent.pieces(), threads);
        if (m.query_rank) {
            for (int64_t r = 0; r < rows; r++) {
                float *row = normed + r * m.query_rank;
                norm_row(row, layer->query_norm, m.query_rank, m.eps, row);
                round_row(row, m.query_rank, low, r);
            }
            query = linear(layer->query, m.query_rank, low, width, queries);
            leanseek_parallel_for(LinearWork::piece, &query, query.pieces(), threads);
        }
        each_row(entry_piece);
        leanseek_parallel_for(absorb_piece, this, m.heads, threads);
        leanseek_parallel_for(attend_piece, this, chunks * lanes, threads);
        leanseek_parallel_for(join_piece, this, rows * m.heads, threads);
        leanseek_parallel_for(value_piece, this, m.heads, threads);
        each_row(mixed_piece);
        LinearWork output = linear(layer->output, m.heads * m.value, wide, m.dim, attended);
        leanseek_parallel_for(LinearWork::piece, &output, output.pieces(), threads);
        add(attended);
    }
    Rounded low;

    void feed(ExpertsWork &routed, ExpertsWork &shared, const int64_t *noughts) {
        norm(layer->post_norm);
        shared.pairs = groups_of(layer->shared_width);
        shared.hidden.groups = shared.pairs;
        shared.gate_up = packed(layer->shared_gate_up, m.dim), shared.down = packed(layer->shared_down, layer->shared_width);
        shared.adds = layer->router;
        shared.sort(noughts);
        Out out = {nullptr, &shared};
        if (layer->router) {
            Both both = {router_piece, ExpertsWork::hidden_piece, this, &shared, (m.experts + 3) / 4};
            leanseek_parallel_for(Both::piece, &both, both.first_count + shared.hidden_pieces(), threads);
            for (int64_t r = 0; r < rows; r++) route(r);
            routed.gate_up = packed(layer->gate_up, m.dim), routed.down = packed(layer->down, m.width);
            routed.sort(chosen);
            leanseek_parallel_for(ExpertsWork::hidden_piece, &routed, routed.hidden_pieces(), threads);
            out.routed = &routed;
        } else {
            leanseek_parallel_for(ExpertsWork::hidden_piece, &shared, shared.hidden_pieces(), threads);
        }
        leanseek_parallel_for(Out::piece, &out, shared.out_pieces(), threads);
        add(attended);
    }
};

int packed_decode(int threads, const leanseek_packed_model *model, const leanseek_packed_step *step) {
    const leanseek_packed_model &m = *model;
    const int64_t rows = step->rows, channels = m.latent + m.turned, per_token = m.experts ? m.per_token : 1;
    if (rows <= 0) return 0;
    int64_t chunks = 0, shared_pairs = 0;
    for (int64_t r = 0; r < rows; r++) chunks += step->positions[r] / CHUNK + 1;
    for (int64_t l = 0; l < m.layers; l++) {
        const int64_t found = groups_of(m.layer[l].shared_width);
        shared_pairs = found > shared_pairs ? found : shared_pairs;
    }
    const int64_t lanes = (m.heads + FLASH_LANES - 1) / FLASH_LANES, dims = groups_of(m.dim), outs = groups_of(m.heads * m.value);
    const int64_t normed = m.dim > m.query_rank ? m.dim : m.query_rank;
    const int64_t experts = m.experts ? m.experts : 1;
    Room room(rounded_bytes(rows, dims) + rounded_bytes(rows, outs) + rounded_bytes(rows * m.heads, groups_of(m.nope)) +
              rounded_bytes(rows * m.heads, groups_of(m.latent)) + rounded_bytes(rows, groups_of(m.query_rank)) +
              Room::bytes<float>(rows * normed) + Room::bytes<float>(rows * m.dim) +
              Room::bytes<float>(rows * m.heads * (m.nope + m.turned)) + Room::bytes<float>(rows * channels) +
              Room::bytes<float>(rows * m.heads * channels) + Room::bytes<float>(rows * m.heads * m.value) +
              Room::bytes<float>(rows * experts) + Room::bytes<float>(rows * per_token) + Room::bytes<float>(rows) +
              Room::bytes<int64_t>(rows * per_token) + Room::bytes<uint8_t>(rows * (experts + m.groups)) +
              2 * Room::bytes<int64_t>(chunks) + Room::bytes<int64_t>(rows + 1) + Room::bytes<int64_t>(rows) +
              2 * Room::bytes<float>(chunks * lanes * FLASH_LANES) + Room::bytes<float>(chunks * lanes * FLASH_LANES * m.latent) +
              ExpertsWork::bytes(rows, per_token, experts, groups_of(m.width)) +
              ExpertsWork::bytes(rows, 1, 1, shared_pairs));
    if (!room.memory) return 1;
    Step s(m);
    s.threads = threads, s.rows = rows, s.stream = step->stream, s.turns = step->turns, s.positions = step->positions;
    s.tables = step->tables, s.table_width = step->table_width, s.block_tokens = step->block_tokens;
    s.block_stride = step->block_stride, s.lanes = lanes, s.chunks = chunks;
    const int bits = int(m.bits);
    s.x = take_rounded(room, rows, dims, bits), s.wide = take_rounded(room, rows, outs, bits);
    s.queries_in = take_rounded(room, rows * m.heads, groups_of(m.nope), 8);
    s.latents_in = take_rounded(room, rows * m.heads, groups_of(m.latent), 8);
    s.low = take_rounded(room, rows, groups_of(m.query_rank), bits);
    s.normed = room.take<float>(rows * normed), s.attended = room.take<float>(rows * m.dim);
    s.queries = room.take<float>(rows * m.heads * (m.nope + m.turned)), s.entries = room.take<float>(rows * channels);
    s.absorbed = room.take<float>(rows * m.heads * channels), s.mixed = room.take<float>(rows * m.heads * m.value);
    s.logits_E = room.take<float>(rows * experts), s.weights = room.take<float>(rows * per_token);
    float *ones = room.take<float>(rows);
    int64_t *chosen = room.take<int64_t>(rows * per_token);
    s.taken = room.take<uint8_t>(rows * (experts + m.groups));
    s.chunk_row = room.take<int64_t>(chunks), s.chunk_begin = room.take<int64_t>(chunks);
    s.first_chunk = room.take<int64_t>(rows + 1);
    int64_t *noughts = room.take<int64_t>(rows), at = 0;
    s.tops = room.take<float>(chunks * lanes * FLASH_LANES), s.sums = room.take<float>(chunks * lanes * FLASH_LANES);
    s.partial = room.take<float>(chunks * lanes * FLASH_LANES * m.latent);
    for (int64_t r = 0; r < rows; r++) {
        noughts[r] = 0, ones[r] = 1, s.first_chunk[r] = at;
        for (int64_t begin = 0; begin <= s.positions[r]; begin += CHUNK) s.chunk_row[at] = r, s.chunk_begin[at++] = begin;
    }
    s.first_chunk[rows] = at;
    ExpertsWork routed, shared;
    routed.tokens = shared.tokens = rows, routed.dim = shared.dim = m.dim, routed.x = shared.x = s.x;
    routed.out = shared.out = s.attended, routed.adds = false;
    routed.per_token = per_token, routed.experts = experts, routed.pairs = groups_of(m.width), routed.weights = s.weights;
    shared.per_token = shared.experts = 1, shared.pairs = shared_pairs, shared.weights = ones;
    routed.down.bits = shared.down.bits = bits;
    routed.take(room), shared.take(room);
    int64_t mixture = 0;
    for (int64_t l = 0; l < m.layers; l++) {
        s.layer = m.layer + l;
        s.store = step->store + l * step->layer_stride;
        s.chosen = chosen;
        if (s.layer->router && step->chosen) s.chosen = step->chosen + mixture++ * rows * per_token;
        s.attention();
        s.feed(routed, shared, noughts);
    }
    s.norm(m.norm);
    memcpy(step->hidden, s.normed, size_t(rows * m.dim) * sizeof(float));
    return 0;
}

}  // namespace
