"""Service: seconds that prompts and replies take a device: prefill, and decoding over a cache of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanseek.cost.exchange import direct_exchange_s, exchange_s
from leanseek.cost.layers import vector_bytes
from leanseek.cost.machines import Machines
from leanseek.cost.roofline import BYTES, FP8_SHARE, Product, Roofline, layer_products
from leanseek.cost.step import MOVING
from leanseek.model.config import ModelConfig
from leanseek.model.count import parameters

# Tokens of a prefill step on each device, in two micro-batches; beyond this, time for a token hardly changes.
PREFILL_TOKENS = 16384

# Index scores are in fp32 (DeepGEMM's README: fp8_mqa_logits and its paged twin): they are written, and read twice by
# a radix search for the best: once to count, once to collect.
SCORE_PASSES = 3


@dataclass(frozen=True)
class Service:
    """What is served, and how.

    Args:
        config: the model's.
        prompt, reply: tokens of a request, on the average.
        hits: share of prompt tokens whose cache is there already.
        prefill_ep, decode_ep: devices that share experts while prompts are read, and while replies are written.
        precision: of products.
        accepted: share of the MTP layer's drafts that are right; 0: it is not used.
        overlap: whether two micro-batches take turns, so that one is sent while the other is computed.
    """

    config: ModelConfig
    prompt: int = 4096
    reply: int = 1024
    hits: float = 0.0
    prefill_ep: int = 32
    decode_ep: int = 144
    precision: str = "fp8"
    accepted: float = 0.0
    overlap: bool = True


def prefill_s(service: Service, machines: Machines, length: int, first: int = 0) -> float:
    """Return the seconds of a device for each prompt token that is computed.

    Args:
        service: what is served.
        machines: the devices.
        length: tokens of a prompt.
        first: position of the first one that is computed; those before it come from the cache.
    """
    config, ep = service.config, service.prefill_ep
    shares = service.overlap and ep > 1 and machines.device.units
    roof = Roofline(machines.device, service.precision, 1 - MOVING if shares else 1.0)
    tokens = PREFILL_TOKENS // 2
    compute = sent = 0.0
    for layer, number in _kinds(config):
        compute += number * _layer_s(config, roof, layer, tokens, ep)
        if config.is_moe(layer):
            sent += number * exchange_s(config, roof, tokens, ep)
    position = (first + max(length, 1) - 1) / 2 if first < length else first
    compute += tokens * config.num_hidden_layers * _attend_s(config, roof, position, cached=False)
    return (max(compute, sent) if service.overlap else compute + sent) / tokens


def decode_s(service: Service, machines: Machines, texts: float, context: float) -> float:
    """Return the seconds of one decoding step of so many texts on each device, each over `context` cached tokens."""
    halves = _halves(service, texts)
    compute, sent = _decode_parts_s(service, machines, texts, context)
    return halves * max(compute, sent) if halves == 2 else compute + sent


def decode_at_s(service: Service, machines: Machines, position: float, texts: int = 128) -> float:
    """Return a device's seconds for one token at a position, in a busy batch of texts that are long on the average.

    That is what a token adds to the bill: the weights that are read for all are shared among all, and what is sent
    hides behind computing, as texts of some thousand tokens have enough of it.
    """
    compute, _ = _decode_parts_s(service, machines, texts, position)
    return compute * _halves(service, texts) / texts


def weights_bytes(service: Service) -> float:
    """Return the bytes of weights on a decoding device: its experts, and all that is no expert."""
    config, size = service.config, BYTES[service.precision]
    counted = parameters(config)
    local = counted.routed_experts
    if config.n_routed_experts:
        local = counted.routed_experts * _local(config, service.decode_ep) // config.n_routed_experts
    vocabulary = counted.embedding + counted.head
    rest = counted.total - counted.routed_experts - vocabulary
    return (local + rest) * size + vocabulary * max(size, 2.0)


def _halves(service: Service, texts: float) -> int:
    """Return how many micro-batches take turns in a decoding step."""
    return 2 if service.overlap and service.decode_ep > 1 and texts >= 2 else 1


def _decode_parts_s(service: Service, machines: Machines, texts: float, context: float) -> tuple[float, float]:
    """Return the seconds of computing and of sending of one micro-batch's decoding step."""
    config, ep = service.config, service.decode_ep
    roof = Roofline(machines.device, service.precision)
    each = texts / _halves(service, texts)
    tokens = each * (2 if service.accepted else 1)
    compute = sent = 0.0
    for layer, number in _kinds(config):
        compute += number * _layer_s(config, roof, layer, tokens, ep)
        if config.is_moe(layer):
            sent += number * direct_exchange_s(config, roof, tokens, ep)
    compute += each * config.num_hidden_layers * _attend_s(config, roof, context, cached=True, tokens=tokens / each)
    head = roof.product_s(
        tokens, config.vocab_size, config.hidden_size, 1, "bf16" if service.precision == "fp8" else None
    )
    if service.accepted:
        compute += compute / config.num_hidden_layers + head  # the MTP layer and its logits
    return compute + head, sent


def _kinds(config: ModelConfig) -> list[tuple[int, int]]:
    """Return a layer of each kind and how many there are of it."""
    moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    dense = config.num_hidden_layers - moe
    return [(layer, number) for layer, number in ((0, dense), (config.num_hidden_layers - 1, moe)) if number]


def _local(config: ModelConfig, ep: int) -> int:
    """Return the experts on each device; where they do not divide evenly, some are there twice."""
    return math.ceil(config.n_routed_experts / ep)


def _layer_s(config: ModelConfig, roof: Roofline, layer: int, tokens: float, ep: int) -> float:
    """Return the seconds of one layer's products and vectors."""
    total = roof.memory_s(tokens * vector_bytes(config, layer, roof.precision))
    for one in layer_products(config, layer):
        total += _product_s(one, config, roof, tokens, ep)
    return total


def _product_s(one: Product, config: ModelConfig, roof: Roofline, tokens: float, ep: int) -> float:
    precision = "bf16" if one.kept and roof.precision == "fp8" else None
    if one.groups == 1:
        return roof.product_s(tokens, one.outer, one.inner, 1, precision)
    # Experts that no token has chosen are not read.
    local = _local(config, ep)
    rows = tokens * one.copies
    met = local * (1 - (1 - 1 / local) ** rows) if local > 1 else min(rows, 1.0)
    return roof.product_s(rows / met, one.outer, one.inner, met, precision) if met else 0.0


def _attend_s(config: ModelConfig, roof: Roofline, position: float, *, cached: bool, tokens: float = 1.0) -> float:
    """Return the seconds of one layer's attention of one text (decoding) or token (prefill) over `position` tokens."""
    heads = config.num_attention_heads
    if config.family.attention == "grouped":
        flops = 4.0 * heads * config.head_dim * position
        read = position * config.cache_width * 2.0
    else:
        wide = 2.0 * heads * (config.cache_width + config.kv_lora_rank)
        narrow = 2.0 * heads * (config.qk_head_dim + config.v_head_dim)
        seen = min(position, config.index_topk) if config.index_topk else position
        flops = seen * wide
        if not cached:
            # Prefill takes whichever form is cheaper: all keys expanded, or the chosen ones absorbed.
            flops = min(position * narrow, flops) if config.index_topk else position * narrow
        entry = config.kv_lora_rank + 2 * config.qk_rope_head_dim if config.index_topk else 2 * config.cache_width
        read = seen * float(entry)
    if config.index_topk:
        index = 2.0 * config.index_n_heads * config.index_head_dim * position
        fast = roof.hardware.peak_flops("fp8") * (1.0 if roof.hardware.measured else FP8_SHARE) * roof.computing
        keys = position * (config.index_head_dim + 4.0)
        indexed = max(tokens * index / fast, roof.memory_s(keys) if cached else 0.0)
        # The few rows of a decoding step stay in the device's own cache; a prompt's do not.
        indexed += 0.0 if cached else roof.memory_s(tokens * SCORE_PASSES * 4.0 * position)
    else:
        indexed = 0.0
    return max(roof.attention_s(tokens * flops), roof.memory_s(read) if cached else 0.0) + indexed
