"""LayerTimes: seconds that one layer takes a device for one micro-batch, forward and back, and what it must keep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from leanseek.cost.exchange import exchange_s
from leanseek.cost.layout import Layout
from leanseek.cost.roofline import BYTES, Product, Roofline, attention_products, mlp_products
from leanseek.model.config import ModelConfig

# FlashAttention's backward pass makes five products for the forward pass's two, as it makes the scores again.
ATTENTION_BACK = 2.5
# Activations and gradients between layers are in bf16 where products are in FP8 or bf16.
GRADIENT_BYTES = 4.0
# Attention's up-projections, which "selective" recomputes.
UP = ("q_b_proj", "kv_b_proj")


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one layer (or of anything that stands in a stage like one) for one micro-batch.

    Args:
        forward, input, weight: computing: forward, gradient of inputs, gradient of weights.
        again: computing of what is recomputed; part of `input`.
        exchange: of dispatch and combine, in each direction.
        hidden: part of `exchange` that hides behind the shared experts where nothing else overlaps.
        reduce: of tensor parallelism's sums, in each direction; never hidden.
        kept_bytes: activations that are kept for the backward pass.
    """

    forward: float = 0.0
    input: float = 0.0
    weight: float = 0.0
    again: float = 0.0
    exchange: float = 0.0
    hidden: float = 0.0
    reduce: float = 0.0
    kept_bytes: float = 0.0

    def __add__(self, other: LayerTimes) -> LayerTimes:
        return LayerTimes(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def scaled(self, number: float) -> LayerTimes:
        """Return what so many of it take."""
        return LayerTimes(*(number * value for value in self._values()))

    def _values(self) -> tuple[float, ...]:
        return (
            self.forward,
            self.input,
            self.weight,
            self.again,
            self.exchange,
            self.hidden,
            self.reduce,
            self.kept_bytes,
        )


def layer_times(config: ModelConfig, layout: Layout, roof: Roofline, layer: int, length: int) -> LayerTimes:
    """Return what one layer takes.

    Args:
        config: the model's.
        layout: whose micro-batch it is.
        roof: the device.
        layer: its number; the MTP layer is number `num_hidden_layers`, and counts its joining.
        length: tokens of a text.
    """
    return recomputed_times(config, layout, roof, layer, length)[layout.recompute]


def recomputed_times(
    config: ModelConfig, layout: Layout, roof: Roofline, layer: int, length: int
) -> dict[str, LayerTimes]:
    """Return what one layer takes for each of RECOMPUTE in place of the layout's own; otherwise as `layer_times`."""
    tokens = layout.micro * length
    attention, mlp = attention_products(config), mlp_products(config, layer)
    products = [*attention, *mlp]
    if layer == config.num_hidden_layers:
        products.append(Product("eh_proj", 2 * config.hidden_size, config.hidden_size, kept=True))
    forward = input_ = weight = up = shared = 0.0
    for one in products:
        times = _product_times(one, layout, roof, tokens)
        forward, input_, weight = forward + times[0], input_ + times[1], weight + times[2]
        if one.name in UP:
            up += times[0]
        elif one.name == "shared_experts":
            shared += times[0]
    scores = roof.attention_s(2.0 * tokens * (length + 1) / 2 * score_products(config) / layout.tp)
    vectors = roof.memory_s(tokens * vector_bytes(config, layer, roof.precision) / layout.tp)
    forward += scores + vectors
    input_ += ATTENTION_BACK * scores + 2 * vectors
    moe = config.is_moe(layer)
    exchange = exchange_s(config, roof, tokens / layout.tp, layout.ep) if moe else 0.0
    hidden = min(shared, exchange)
    # Megatron's two all-reduces of a layer, forward and back (arXiv 1909.08053): a ring sends everything twice.
    reduce = 0.0
    if layout.tp > 1:
        size = 4.0 * tokens * config.hidden_size * _kept_size(roof.precision) * (layout.tp - 1) / layout.tp
        reduce = roof.link_s(size) if layout.tp <= roof.hardware.per_node else roof.network_s(size)
    found = {}
    for recompute, again in (("none", 0.0), ("selective", up + vectors / 2), ("full", forward)):
        kept = tokens * kept_bytes(config, layer, recompute, roof.precision) / layout.tp
        found[recompute] = LayerTimes(forward, input_ + again, weight, again, exchange, hidden, reduce, kept)
    return found


def head_times(config: ModelConfig, layout: Layout, roof: Roofline, length: int, times: int = 1) -> LayerTimes:
    """Return what the head takes: logits in bf16 and their softmax, once, or twice where an MTP layer needs it too."""
    tokens = layout.micro * length
    head = Product("head", config.hidden_size, config.vocab_size, kept=True)
    forward, input_, weight = _product_times(head, layout, roof, tokens)
    logits = roof.memory_s(3.0 * tokens * config.vocab_size * 4 / layout.tp)
    kept = tokens * config.hidden_size * _kept_size(roof.precision)
    return LayerTimes(
        times * (forward + logits),
        times * (input_ + logits),
        times * weight,
        kept_bytes=times * kept,
    )


def score_products(config: ModelConfig) -> int:
    """Return the multiplications of one layer for each pair of a query and a key, an indexer's included."""
    heads = config.num_attention_heads
    if config.family.attention == "grouped":
        return 2 * heads * config.head_dim
    return heads * (config.qk_head_dim + config.v_head_dim) + config.index_n_heads * config.index_head_dim


def vector_bytes(config: ModelConfig, layer: int, precision: str) -> float:
    """Return the bytes that one token moves in one layer's forward pass outside of products.

    Each operation reads what it needs from memory and writes it back: two norms, two residual sums, queries, keys and
    values put together and rotated, SwiGLU, tokens sorted by expert and summed; and in FP8 each product's input
    is read once more to be quantised.
    """
    size, dim = _kept_size(precision), config.hidden_size
    if config.family.attention == "grouped":
        heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        out = config.num_attention_heads * config.head_dim
    else:
        heads = config.num_attention_heads * (2 * config.qk_head_dim + config.v_head_dim)
        out = config.num_attention_heads * config.v_head_dim
    moved = (4 + 6) * dim + 2 * heads
    wide = config.intermediate_size
    if config.is_moe(layer):
        wide = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
        moved += 2 * (config.num_experts_per_tok + 1) * dim  # in: sorted; out: summed
    moved += 3 * wide
    total = moved * size
    if precision == "fp8":
        total += (2 * dim + out + wide) * (size + 1)
    return float(total)


def kept_bytes(config: ModelConfig, layer: int, recompute: str, precision: str) -> float:
    """Return the activations of one token that one layer keeps for its backward pass.

    Source: what each operation's gradient needs; for FP8 and "selective", V3 report sections 3.2.3 and 3.3.3: what
    goes into products in FP8, attention's output in 12 bits, SwiGLU's input in FP8, its output made again.
    """
    size, dim = _kept_size(precision), config.hidden_size
    if recompute == "full":
        return size * dim
    low = BYTES[precision] if precision == "fp8" else size
    experts = config.num_experts_per_tok + config.n_shared_experts
    moe = config.is_moe(layer)
    wide = experts * config.moe_intermediate_size if moe else config.intermediate_size
    into = (experts if moe else 1) * dim
    if config.family.attention == "grouped":
        latent = 0
        heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        out = config.num_attention_heads * config.head_dim
    else:
        latent = (config.q_lora_rank or 0) + config.cache_width
        heads = config.num_attention_heads * (2 * config.qk_head_dim + config.v_head_dim)
        out = config.num_attention_heads * config.v_head_dim
    kept = size * 2 * dim + low * (dim + into) + 2 * low * wide + size * latent + 4 * config.num_attention_heads
    kept += out * (1.5 if precision == "fp8" else size)
    if recompute == "none" or config.family.attention == "grouped":
        kept += size * heads
    if recompute == "none":
        kept += size * 2 * dim + low * wide
    return float(kept)


def _product_times(one: Product, layout: Layout, roof: Roofline, tokens: float) -> tuple[float, float, float]:
    """Return a product's seconds forward, for the gradient of its input, and for that of its weights."""
    return _shared_product_times(one, *((layout.ep, 1) if one.groups > 1 else (1, layout.tp)), roof, tokens)


@lru_cache(2048)
def _shared_product_times(one: Product, ep: int, tp: int, roof: Roofline, tokens: float) -> tuple[float, float, float]:
    # A search asks for the same product in hundreds of layouts.
    precision = "bf16" if one.kept and roof.precision == "fp8" else None
    groups, outer, inner = 1.0, one.outer, one.inner
    rows = tokens * one.copies
    if one.groups > 1:
        groups = one.groups / ep
        rows /= groups
    elif tp > 1:
        # Columns of the first product and rows of the second are shared; which is which makes no difference here.
        outer = max(outer // tp, 1)
    forward = roof.product_s(rows, outer, inner, groups, precision)
    input_ = roof.product_s(rows, inner, outer, groups, precision)
    weight = roof.product_s(outer, inner, round(rows) or 1, groups, precision)
    # Gradients are summed in fp32 over micro-batches: read and written.
    return forward, input_, weight + roof.memory_s(2 * GRADIENT_BYTES * groups * outer * inner)


def _kept_size(precision: str) -> float:
    return max(BYTES[precision], 2.0)
