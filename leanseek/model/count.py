"""Count: parameters, FLOPs and cache bytes of a model from its config alone, by formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from leanseek.model.config import ModelConfig

# A multiply-add is two operations.
MULTIPLY_ADD = 2
# A backward pass multiplies twice for each product of the forward pass: once for the inputs' gradient,
# once for the weights'.
TRAINING_PASSES = 3
# Numbers that share a scale in DeepSeek's FP8 forms.
FP8_BLOCK = 128


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model by part. The router's balancing bias, which no gradient reaches, is not counted.

    Args:
        embedding: rows of the vocabulary that go in; 0 where they are the head's.
        attention: the main layers' projections and their inner norms, with the indexer of V3.2.
        dense_mlp: the first layers' MLPs.
        routed_experts, active_experts: of the MoE layers: all, and those that one token uses.
        shared_experts, router: of the MoE layers.
        norms: of the residual stream.
        head: rows of the vocabulary that come out.
        mtp: all that only the MTP layer has (it shares embedding and head).
        mtp_active: what one token uses of that.
    """

    embedding: int
    attention: int
    dense_mlp: int
    routed_experts: int
    active_experts: int
    shared_experts: int
    router: int
    norms: int
    head: int
    mtp: int
    mtp_active: int

    @property
    def total(self) -> int:
        """The main model, without the MTP layer."""
        return self.active + self.routed_experts - self.active_experts

    @property
    def active(self) -> int:
        """What one token uses of the main model, embedding and head counted whole."""
        return (
            self.embedding
            + self.attention
            + self.dense_mlp
            + self.active_experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.head
        )

    @property
    def active_without_embedding(self) -> int:
        """What one token uses in products: looking up a row of the embedding multiplies nothing."""
        return self.active - self.embedding

    def as_dict(self) -> dict[str, int]:
        """Return the parts and the sums by name."""
        sums = {name: int(getattr(self, name)) for name in ("total", "active", "active_without_embedding")}
        return {**asdict(self), **sums}


def parameters(config: ModelConfig) -> Parameters:
    """Count a model's parameters.

    Source: shapes in DeepSeek-V3 README_WEIGHTS.md; V3 gives 671.026 B, 37.552 B active, 11.61 B for MTP;
    V2-Lite 15.706 B, V2 235.741 B, and V3.2's indexers add 0.85 B.
    """
    dim, vocabulary = config.hidden_size, config.vocab_size * config.hidden_size
    layers, mixtures = config.num_hidden_layers, moe_layers(config)
    expert = 3 * dim * config.moe_intermediate_size
    shared = config.n_shared_experts * expert
    router = config.n_routed_experts * dim
    attention = _attention_products(config) + _attention_vectors(config)
    mtp = mtp_active = 0
    if config.num_nextn_predict_layers:
        # The block and its two norms, enorm, hnorm, the norm before the head, and eh_proj.
        moe = config.is_moe(layers)
        besides = attention + 2 * dim + 3 * dim + 2 * dim * dim
        dense = 3 * dim * config.intermediate_size
        mtp = besides + (config.n_routed_experts * expert + shared + router if moe else dense)
        mtp_active = besides + (config.num_experts_per_tok * expert + shared + router if moe else dense)
    return Parameters(
        embedding=0 if config.tie_word_embeddings else vocabulary,
        attention=layers * attention,
        dense_mlp=(layers - mixtures) * 3 * dim * config.intermediate_size,
        routed_experts=mixtures * config.n_routed_experts * expert,
        active_experts=mixtures * config.num_experts_per_tok * expert,
        shared_experts=mixtures * shared,
        router=mixtures * router,
        norms=(2 * layers + 1) * dim,
        head=vocabulary,
        mtp=mtp,
        mtp_active=mtp_active,
    )


def layer_products(config: ModelConfig, layer: int) -> int:
    """Return the weights that a token is multiplied by in one layer; the MTP layer is number `num_hidden_layers`."""
    joining = 2 * config.hidden_size**2 if layer == config.num_hidden_layers else 0
    return _attention_products(config) + _mlp_products(config, layer) + joining


def causal_pairs(lengths: Iterable[int], before: Iterable[int] | None = None) -> int:
    """Return how many (query, key) pairs causal attention multiplies.

    Args:
        lengths: new tokens of each segment.
        before: tokens that each segment sees ahead of its own (a prefix, or a cache); None: none.
            For a packed batch: `causal_pairs(segments.lengths, segments.first_positions)`.
    """
    lengths = tuple(lengths)
    earlier = (0,) * len(lengths) if before is None else tuple(before)
    return sum(n * b + n * (n + 1) // 2 for n, b in zip(lengths, earlier, strict=True))


def forward_flops(config: ModelConfig, *, tokens: int, pairs: int, head_tokens: int | None = None) -> int:
    """Count a forward pass of the main model with expanded attention: matrix products only.

    Attention that an indexer narrows down is counted whole, as it is computed here: left out pairs are masked.

    Args:
        config: the model's.
        tokens: tokens that the layers read.
        pairs: (query, key) pairs that attention multiplies, from `causal_pairs`; for a kernel that
            multiplies the masked half too, the sum of the squared lengths.
        head_tokens: tokens whose logits are made; None: all.
    """
    return sum(forward_parts(config, tokens=tokens, pairs=pairs, head_tokens=head_tokens).values())


def forward_parts(config: ModelConfig, *, tokens: int, pairs: int, head_tokens: int | None = None) -> dict[str, int]:
    """Count a forward pass by part of the model: "attention", "indexer", "dense", "experts", "head"; sum: the whole.

    The router and the shared experts count as experts; parts that a model lacks are left out.

    Args:
        config: the model's.
        tokens: as in `forward_flops`.
        pairs: as in `forward_flops`.
        head_tokens: as in `forward_flops`.
    """
    layers, head = config.num_hidden_layers, tokens if head_tokens is None else head_tokens
    products, scores, index_scores = _token_products(config), _score_products(config), _index_scores(config)
    products["attention"] = tokens * products["attention"] + layers * pairs * (scores - index_scores)
    products["indexer"] = tokens * products["indexer"] + layers * pairs * index_scores
    for part in ("dense", "experts"):
        products[part] *= tokens
    products["head"] *= head
    return {part: MULTIPLY_ADD * number for part, number in products.items() if number}


def mtp_flops(config: ModelConfig, *, tokens: int, pairs: int, head_tokens: int | None = None) -> int:
    """Count a forward pass of the MTP layer: joining, its block, and the shared head a second time; 0 without one.

    Args:
        config: the model's.
        tokens: as in `forward_flops`.
        pairs: as in `forward_flops`.
        head_tokens: as in `forward_flops`.
    """
    if not config.num_nextn_predict_layers:
        return 0
    dim, head = config.hidden_size, tokens if head_tokens is None else head_tokens
    block = _attention_products(config) + _mlp_products(config, config.num_hidden_layers)
    scores = pairs * _score_products(config)
    return MULTIPLY_ADD * (tokens * (2 * dim * dim + block) + head * config.vocab_size * dim + scores)


def training_flops(
    config: ModelConfig, *, tokens: int, pairs: int, head_tokens: int | None = None, mtp: bool = False
) -> int:
    """Count one forward and backward pass of a batch: three times the forward pass, nothing recomputed.

    No gradient goes through an indexer, which is counted once.

    Args:
        config: the model's.
        tokens: of the batch; as in `forward_flops`.
        pairs: of the batch; as in `forward_flops`.
        head_tokens: of the batch; as in `forward_flops`.
        mtp: whether the MTP layer is trained too.
    """
    parts = training_parts(config, tokens=tokens, pairs=pairs, head_tokens=head_tokens, mtp=mtp)
    return sum(forward + backward for forward, backward in parts.values())


def training_parts(
    config: ModelConfig, *, tokens: int, pairs: int, head_tokens: int | None = None, mtp: bool = False
) -> dict[str, tuple[int, int]]:
    """Count one forward and one backward pass of a batch by part; as `forward_parts`, and "mtp" with all it has.

    Args:
        config: the model's.
        tokens: as in `training_flops`.
        pairs: as in `training_flops`.
        head_tokens: as in `training_flops`.
        mtp: as in `training_flops`.
    """
    forward = forward_parts(config, tokens=tokens, pairs=pairs, head_tokens=head_tokens)
    again = TRAINING_PASSES - 1
    parts = {part: (flops, 0 if part == "indexer" else again * flops) for part, flops in forward.items()}
    if mtp and config.num_nextn_predict_layers:
        flops = mtp_flops(config, tokens=tokens, pairs=pairs, head_tokens=head_tokens)
        index = MULTIPLY_ADD * (tokens * _index_products(config) + pairs * _index_scores(config))
        parts["mtp"] = (flops, again * (flops - index))
    return parts


def training_flops_per_token(config: ModelConfig, context_tokens: int, *, mtp: bool = False) -> float:
    """Return the training FLOPs of one token in causal texts of `context_tokens`, on the average.

    V3 at 4,096 without MTP: 250.5 GFLOP, as in table 2 of arXiv 2505.09343.
    """
    flops = training_flops(config, tokens=context_tokens, pairs=causal_pairs([context_tokens]), mtp=mtp)
    return flops / context_tokens


def forward_flops_per_token(config: ModelConfig, context_tokens: int) -> float:
    """Return the forward FLOPs of one token in causal texts of `context_tokens`, on the average."""
    return forward_flops(config, tokens=context_tokens, pairs=causal_pairs([context_tokens])) / context_tokens


def decode_flops_per_token(config: ModelConfig, context_tokens: int) -> int:
    """Count one decoding step of one text over `context_tokens` cached ones.

    In absorbed attention the key and value up-projections, moved to the query and the output, multiply as much as
    `kv_b_proj`; only the scores are wider (L + R) and so are the values (L). An indexer scores all cached tokens
    and leaves `index_topk` of them.
    """
    return sum(decode_parts(config, context_tokens).values())


def decode_parts(config: ModelConfig, context_tokens: int) -> dict[str, int]:
    """Count one decoding step of one text by part, as `forward_parts` names them."""
    products, layers = _token_products(config), config.num_hidden_layers
    if config.family.attention == "grouped":
        products["attention"] += layers * context_tokens * _score_products(config)
    else:
        attended = min(context_tokens, config.index_topk) if config.index_topk else context_tokens
        wide = config.num_attention_heads * (config.cache_width + config.kv_lora_rank)
        products["attention"] += layers * attended * wide
        if context_tokens > attended:
            products["indexer"] += layers * context_tokens * _index_scores(config)
    return {part: MULTIPLY_ADD * number for part, number in products.items() if number}


def sampling_flops(config: ModelConfig, prompts: Iterable[int], replies: Iterable[Sequence[int]]) -> int:
    """Count a sampling run: each prompt is prefilled once, then each of its replies is decoded.

    Args:
        config: the model's.
        prompts: tokens of each prompt.
        replies: per prompt, the tokens of each reply, the ending token included. The first comes from
            the prefill and the last is never read, so n tokens take n - 1 decoding steps.
    """
    return sum(sampling_parts(config, prompts, replies).values())


def sampling_parts(config: ModelConfig, prompts: Iterable[int], replies: Iterable[Sequence[int]]) -> dict[str, int]:
    """Count a sampling run by part, as `forward_parts` names them.

    Args:
        config: the model's.
        prompts: as in `sampling_flops`.
        replies: as in `sampling_flops`.
    """
    # Linear in the keys (up to index_topk of them, of which an indexer makes a cheaper line: an upper bound),
    # so a reply's steps sum in closed form.
    fixed, at_one = decode_parts(config, 0), decode_parts(config, 1)
    prefill: dict[str, int] = {}
    steps = keys = 0
    for prompt, lengths in zip(prompts, replies, strict=True):
        for part, flops in forward_parts(config, tokens=prompt, pairs=causal_pairs([prompt]), head_tokens=1).items():
            prefill[part] = prefill.get(part, 0) + flops
        for length in lengths:
            steps += max(length - 1, 0)
            keys += causal_pairs([max(length - 1, 0)], [prompt])
    return {
        part: prefill.get(part, 0) + steps * fixed.get(part, 0) + keys * (at_one.get(part, 0) - fixed.get(part, 0))
        for part in {**prefill, **fixed, **at_one}
    }


def chosen_share(config: ModelConfig, tokens: float) -> float:
    """Return the share of a layer's experts that some tokens choose between them, if by chance."""
    return 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** tokens if config.n_routed_experts else 0.0


def cache_bytes_per_token(config: ModelConfig, *, bytes_per_number: int = 2, mtp: bool = False) -> int:
    """Return what the cache holds per token: latents and index keys, or keys and values.

    Args:
        config: the model's.
        bytes_per_number: 2 for bf16, 4 for fp32; 1 for DeepSeek's FP8 form (FlashMLA's sparse format: e4m3 with a
            scale in fp32 for 128 numbers, rope keys in bf16), which V3.2 caches 48,068 bytes a token in.
        mtp: whether the MTP layer's cache is counted too.
    """
    layers = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
    if bytes_per_number > 1 or config.family.attention == "grouped":
        return layers * (config.cache_width + config.index_head_dim) * bytes_per_number
    scales = -(-config.kv_lora_rank // FP8_BLOCK) + -(-config.index_head_dim // FP8_BLOCK)
    return layers * (config.kv_lora_rank + config.index_head_dim + 4 * scales + 2 * config.qk_rope_head_dim)


def moe_layers(config: ModelConfig) -> int:
    """Return how many main layers have routed experts."""
    return sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))


def _attention_products(config: ModelConfig) -> int:
    """Weights of one layer's attention that a token is multiplied by."""
    dim, heads = config.hidden_size, config.num_attention_heads
    if config.family.attention == "grouped":
        return 2 * dim * (heads + config.num_key_value_heads) * config.head_dim
    if config.q_lora_rank is None:
        query = dim * heads * config.qk_head_dim
    else:
        query = config.q_lora_rank * (dim + heads * config.qk_head_dim)
    key_value = dim * config.cache_width + config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + key_value + heads * config.v_head_dim * dim + _index_products(config)


def _attention_vectors(config: ModelConfig) -> int:
    """Weights of one layer's inner norms and biases."""
    if config.family.attention != "grouped":
        return config.kv_lora_rank + (config.q_lora_rank or 0) + 2 * config.index_head_dim
    norms = 2 * config.head_dim if config.family.query_key_norm else 0
    biases = 0
    if config.attention_bias or config.family.query_bias:
        biases += (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return norms + biases + (config.hidden_size if config.attention_bias else 0)


def _score_products(config: ModelConfig) -> int:
    """Multiplications of one layer for each pair of a query and a key, keys and values expanded."""
    heads = config.num_attention_heads
    if config.family.attention == "grouped":
        return 2 * heads * config.head_dim
    return heads * (config.qk_head_dim + config.v_head_dim) + _index_scores(config)


def _index_products(config: ModelConfig) -> int:
    """Weights of one layer's indexer that a token is multiplied by; 0 without one."""
    query = (config.q_lora_rank or 0) * config.index_n_heads * config.index_head_dim
    return query + config.hidden_size * (config.index_head_dim + config.index_n_heads)


def _index_scores(config: ModelConfig) -> int:
    """Multiplications of one layer's indexer for each pair of a query and a key."""
    return config.index_n_heads * config.index_head_dim


def _mlp_products(config: ModelConfig, layer: int) -> int:
    """Weights of one layer's MLP, or of its router and its token's experts, that a token is multiplied by."""
    dim = config.hidden_size
    if not config.is_moe(layer):
        return 3 * dim * config.intermediate_size
    experts = config.num_experts_per_tok + config.n_shared_experts
    return config.n_routed_experts * dim + 3 * dim * config.moe_intermediate_size * experts


def _token_products(config: ModelConfig) -> dict[str, int]:
    """Weights that a token is multiplied by, by part, the head's too; attention without the indexer's."""
    layers, moe = config.num_hidden_layers, moe_layers(config)
    index = _index_products(config)
    return {
        "attention": layers * (_attention_products(config) - index),
        "indexer": layers * index,
        "dense": (layers - moe) * 3 * config.hidden_size * config.intermediate_size,
        "experts": sum(_mlp_products(config, layer) for layer in range(layers) if config.is_moe(layer)),
        "head": config.vocab_size * config.hidden_size,
    }
