"""Memory: bytes that training needs on the fullest device: weights, gradients, optimiser, activations, buffers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from leanseek.cost.layout import Layout
from leanseek.cost.roofline import BYTES, attention_products, mlp_products
from leanseek.model.config import ModelConfig

# AdamW with its moments in bf16 and master weights in fp32 (V3 report, section 3.3.3); both moments in fp32 elsewhere.
LOW_STATE_BYTES, STATE_BYTES = 8.0, 12.0
GRADIENT_BYTES = 4.0
# Of what a device has, kept for the driver, the communication library and fragments: assumed.
RESERVED = 0.06


@dataclass(frozen=True)
class Weights:
    """Numbers of a stage that one device holds.

    Args:
        shared: those that every data-parallel replica has.
        experts: those of routed experts, which `ep` devices share.
    """

    shared: float
    experts: float

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.shared + other.shared, self.experts + other.experts)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        weights: as they are multiplied with.
        gradients: summed in fp32.
        optimiser: master weights and moments.
        activations: kept for backward passes, of as many micro-batches as the schedule keeps.
        buffers: logits, and what is being sent.
        reserved: by driver and libraries.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    buffers: float
    reserved: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.buffers + self.reserved

    def as_dict(self) -> dict[str, float]:
        """Return the parts and their sum."""
        return {**asdict(self), "total": self.total}


def layer_weights(config: ModelConfig, layout: Layout, layer: int) -> Weights:
    """Return the weights of one layer that a device holds; the MTP layer is number `num_hidden_layers`."""
    shared = experts = 0.0
    for one in (*attention_products(config), *mlp_products(config, layer)):
        if one.groups > 1:
            experts += one.weights / layout.ep
        else:
            shared += one.weights / layout.tp
    if layer == config.num_hidden_layers:
        shared += 2 * config.hidden_size**2
    return Weights(shared, experts)


def vocabulary_weights(config: ModelConfig, layout: Layout) -> Weights:
    """Return the weights of an embedding or a head."""
    return Weights(config.vocab_size * config.hidden_size / layout.tp, 0.0)


def device_memory(
    config: ModelConfig, layout: Layout, weights: Weights, activations: float, length: int, has_head: bool, room: float
) -> Memory:
    """Return what one device needs.

    Args:
        config: the model's.
        layout: how the step is spread.
        weights: of all stages that it holds.
        activations: bytes that it keeps at once.
        length: tokens of a text.
        has_head: whether it makes logits.
        room: bytes that the device has.
    """
    replicas = layout.dp * layout.tp
    count = weights.shared + weights.experts
    # Experts are replicated dp x tp / ep times only, so less is there to be shared.
    shares = (layout.dp, max(replicas / layout.ep, 1.0) if layout.ep > 1 else layout.dp)
    spread = weights.shared / shares[0] + weights.experts / shares[1]
    state = LOW_STATE_BYTES if layout.precision == "fp8" else STATE_BYTES
    kept = spread if layout.zero == 3 else count
    size = BYTES[layout.precision]
    tokens = layout.micro * length
    buffers = 4.0 * tokens * config.hidden_size * max(size, 2.0)
    if has_head:
        buffers += 2.0 * tokens * config.vocab_size / layout.tp * max(size, 2.0)
    if config.n_routed_experts and layout.ep > 1:
        buffers += 2.0 * tokens * config.num_experts_per_tok * config.hidden_size * max(size, 2.0)
    if layout.zero == 3:
        # Two layers are gathered whole: one that is computed with, and the next.
        buffers += 2 * count / config.num_hidden_layers * (size + GRADIENT_BYTES)
    # In fp32 the weights are their own masters.
    state -= 4.0 if layout.precision == "fp32" else 0.0
    return Memory(
        weights=kept * size,
        gradients=kept * GRADIENT_BYTES,
        optimiser=(spread if layout.zero else count) * state,
        activations=activations,
        buffers=buffers,
        reserved=RESERVED * room if room else 0.0,
    )
