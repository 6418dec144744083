"""Roofline: seconds that products, attention and memory traffic take on a device, as near as software gets to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanseek.cost.hardware import Hardware
from leanseek.model.config import ModelConfig

# How near the best software comes to what a device can do at most. These are published measurements; none of them is
# fitted. A row of hardware that was measured as it is used (`measured`) has them in its figures already.
#
# DeepGEMM's README: up to 1,550 TFLOP/s in FP8 on an H800, of 1,979.
FP8_SHARE = 1550 / 1979
# FlashAttention-3 (arXiv 2407.08608) section 1: optimised matrix products reach 80 to 90% of an H100; the lower end.
BF16_SHARE = 0.80
# FlashMLA's README: 640 TFLOP/s of sparse prefill and 660 of dense decoding on an H800, of 989. FlashAttention-3 on
# causal texts of 4,096 tokens reaches 590.
ATTENTION_SHARE = 640 / 989
# FlashMLA's README: 3,000 GB/s of an H800's 3,350.
MEMORY_SHARE = 3000 / 3350
# DeepEP's README, 8 devices over NVLink: dispatch 153 and combine 158 GB/s, of 160.
LINK_SHARE = 153 / 160
# DeepEP's README, 64 devices over InfiniBand: dispatch 46 and combine 45 GB/s, of 50.
NETWORK_SHARE = 45 / 50
# A kernel's tile of a matrix product on GPUs (CUTLASS and DeepGEMM: 128 x 128, and 64 rows where there are few).
TILE, SMALL_TILE = 128, 64
BYTES = {"fp8": 1.0, "bf16": 2.0, "fp32": 4.0}


@dataclass(frozen=True)
class Product:
    """Matrices of one layer that tokens are multiplied by.

    Args:
        name: the checkpoint's name for it, or "experts".
        inner: numbers of a token that go in.
        outer: numbers that come out.
        copies: how many matrices of the kind a token meets.
        groups: how many there are.
        kept: it stays in bf16 where others go to FP8 (V3 report, section 3.3.1).
    """

    name: str
    inner: int
    outer: int
    copies: int = 1
    groups: int = 1
    kept: bool = False

    @property
    def weights(self) -> int:
        """Numbers in all of its matrices."""
        return self.inner * self.outer * self.groups

    @property
    def multiplications(self) -> int:
        """Multiplications for each token."""
        return self.inner * self.outer * self.copies


def layer_products(config: ModelConfig, layer: int) -> tuple[Product, ...]:
    """Return the products of one layer; the MTP layer is number `num_hidden_layers`, without its own joining."""
    return (*attention_products(config), *mlp_products(config, layer))


def attention_products(config: ModelConfig) -> tuple[Product, ...]:
    """Return the projections of one layer's attention."""
    dim, heads = config.hidden_size, config.num_attention_heads
    if config.family.attention == "grouped":
        width, shared = config.head_dim, config.num_key_value_heads
        return (
            Product("qkv_proj", dim, (heads + 2 * shared) * width),
            Product("o_proj", heads * width, dim),
        )
    key_value = heads * (config.qk_nope_head_dim + config.v_head_dim)
    found = [
        Product("kv_a_proj", dim, config.cache_width),
        Product("kv_b_proj", config.kv_lora_rank, key_value),
        Product("o_proj", heads * config.v_head_dim, dim),
    ]
    if config.q_lora_rank is None:
        found.append(Product("q_proj", dim, heads * config.qk_head_dim))
    else:
        found.append(Product("q_a_proj", dim, config.q_lora_rank))
        found.append(Product("q_b_proj", config.q_lora_rank, heads * config.qk_head_dim))
    if config.index_topk:
        found.append(Product("indexer.wq_b", config.q_lora_rank or 0, config.index_n_heads * config.index_head_dim))
        found.append(Product("indexer.wk", dim, config.index_head_dim + config.index_n_heads))
    return tuple(found)


def mlp_products(config: ModelConfig, layer: int) -> tuple[Product, ...]:
    """Return the MLP's products of one layer: a dense one's, or router, shared and routed experts."""
    dim = config.hidden_size
    if not config.is_moe(layer):
        wide = config.intermediate_size
        return (Product("gate_up_proj", dim, 2 * wide), Product("down_proj", wide, dim))
    narrow = config.moe_intermediate_size
    found = [
        Product("router", dim, config.n_routed_experts, kept=True),
        Product("experts", dim, 2 * narrow, config.num_experts_per_tok, config.n_routed_experts),
        Product("experts", narrow, dim, config.num_experts_per_tok, config.n_routed_experts),
    ]
    if config.n_shared_experts:
        shared = config.n_shared_experts * narrow
        found += [Product("shared_experts", dim, 2 * shared), Product("shared_experts", shared, dim)]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Roofline:
    """A device, and how much of it computes; it is itself alone that it equals, so that what it takes can be kept.

    Args:
        hardware: its row.
        precision: of products: "fp8", "bf16" or "fp32".
        computing: share of its multiprocessors that compute; the others move data.
    """

    hardware: Hardware
    precision: str
    computing: float = 1.0

    def product_s(self, rows: float, outer: int, inner: int, groups: float = 1, precision: str | None = None) -> float:
        """Return the seconds of a product: of its multiplications or of its memory traffic, whichever takes longer.

        Output is cut into tiles, and tiles go to multiprocessors in waves; the last wave is seldom full.

        Args:
            rows: of each group: tokens.
            outer: columns of the output.
            inner: numbers that are summed over.
            groups: how many such products there are on this device; a fraction where devices share one.
            precision: None: the roofline's.
        """
        kind = precision or self.precision
        if rows <= 0 or groups <= 0:
            return 0.0
        padded = 2.0 * groups * rows * outer * inner
        if self.hardware.units:
            height = SMALL_TILE if rows <= SMALL_TILE else TILE
            tiles = groups * math.ceil(rows / height) * math.ceil(outer / TILE)
            units = max(self.hardware.units * self.computing, 1.0)
            waves = math.ceil(tiles / units)
            # Kernels split the sum where there are too few tiles to occupy every unit.
            filled = waves * units if tiles > units else tiles
            padded = 2.0 * height * TILE * inner * filled
        compute = padded / (self.hardware.peak_flops(kind) * self._share(kind) * self.computing)
        size = BYTES[kind]
        traffic = groups * (inner * outer * size + rows * (inner * size + outer * min(max(size, 2.0), 4.0)))
        return max(compute, self.memory_s(traffic))

    def attention_s(self, flops: float) -> float:
        """Return the seconds of attention's scores and values, which stay in bf16 (or fp32)."""
        kind = "fp32" if self.precision == "fp32" else "bf16"
        share = 1.0 if self.hardware.measured else ATTENTION_SHARE
        return flops / (self.hardware.peak_flops(kind) * share * self.computing)

    def memory_s(self, size: float) -> float:
        """Return the seconds of reading or writing so many bytes."""
        return size / (self.hardware.memory_bytes_per_s * (1.0 if self.hardware.measured else MEMORY_SHARE))

    def link_s(self, size: float) -> float:
        """Return the seconds of sending bytes inside a node."""
        rate = self.hardware.link_bytes_per_s
        return size / (rate * LINK_SHARE) if rate else (0.0 if not size else math.inf)

    def network_s(self, size: float) -> float:
        """Return the seconds of sending bytes to other nodes."""
        rate = self.hardware.network_bytes_per_s
        return size / (rate * NETWORK_SHARE) if rate else (0.0 if not size else math.inf)

    def _share(self, kind: str) -> float:
        if self.hardware.measured:
            return 1.0
        return FP8_SHARE if kind == "fp8" and self.hardware.fp8_flops else BF16_SHARE
