"""FP8 training as DeepSeek-V3 does it: every product of a Linear or an expert on e4m3 numbers, scaled by small tiles.

Activations and gradients are rounded in tiles of 1 x 128 along what is summed over, weights in blocks of 128 x 128;
products are summed in fp32. Embedding, head, router, norms and attention itself stay as they are, and so do the
weights that the optimiser changes. Products of two e4m3 numbers are exact in fp32: multiplying the rounded values as
fp32 numbers, as is done here, is the recipe itself on any machine, only without its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.checkpoint.quantised import LARGEST_E4M3, dequantise_blocks, quantise_blocks
from leanseek.model.experts import Experts
from leanseek.model.layers import Linear
from leanseek.model.transformer import Transformer

TILE = 128
# Kept in the model's own precision though they are Linear layers. Source: DeepSeek-V3 report section 3.3.1.
KEPT = ("lm_head",)


def rounded_tiles(x: Tensor) -> Tensor:
    """Round numbers to e4m3 with one scale for each 128 along the last dimension, and give them back as fp32.

    The scale takes a tile's largest number to 448; a tile of zeros stays zeros.
    """
    *rows, width = x.shape
    padded = F.pad(x.float(), (0, -width % TILE)).view(*rows, -1, TILE)
    scale = padded.abs().amax(dim=-1, keepdim=True) / LARGEST_E4M3
    scale = torch.where(scale == 0, 1.0, scale)
    rounded = (padded / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.view(*rows, -1)[..., :width]


def rounded_blocks(weight: Tensor) -> Tensor:
    """Round a weight to e4m3 with one scale for each 128 x 128 block, and give it back as fp32."""
    return dequantise_blocks(*quantise_blocks(weight.float()))


class Fp8Linear(torch.autograd.Function):
    """y = x W^T and both its gradients, each a product of e4m3 numbers.

    For the weight's gradient, which sums over tokens, both sides are rounded anew in tiles along the tokens.

    Source: DeepSeek-V3 report section 3.3 (fine-grained quantisation; Fprop, Dgrad and Wgrad in FP8).
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply; [..., D] and [O, D] -> [..., O] in x's dtype."""
        weight = rounded_blocks(weight_OD)
        ctx.save_for_backward(x_TD, weight)
        ctx.dtype = weight_OD.dtype
        return F.linear(rounded_tiles(x_TD), weight).to(x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x_TD, weight_OD = ctx.saved_tensors
        gradient_TO = gradients[0]
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (rounded_tiles(gradient_TO) @ weight_OD).to(x_TD.dtype)
        if ctx.needs_input_grad[1]:
            gradient_OT = rounded_tiles(gradient_TO.reshape(-1, gradient_TO.shape[-1]).t())
            x_DT = rounded_tiles(x_TD.reshape(-1, x_TD.shape[-1]).t())
            weight_gradient = (gradient_OT @ x_DT.t()).to(ctx.dtype)
        return x_gradient, weight_gradient


@contextmanager
def fp8(model: Transformer) -> Iterator[None]:
    """Have a model's Linear layers and experts multiply in FP8 inside the block; the model itself does not know."""
    changed: list[nn.Module] = []
    for name, module in model.named_modules():
        forward: Callable[..., Tensor]
        if isinstance(module, Linear) and name not in KEPT:
            forward = partial(_linear, module)
        elif isinstance(module, Experts):
            forward = partial(_experts, module)
        else:
            continue
        module.forward = forward
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own shows again


def _multiply(x_TD: Tensor, weight_OD: Tensor) -> Tensor:
    out: Tensor = Fp8Linear.apply(x_TD, weight_OD)
    return out


def _linear(layer: Linear, x_TD: Tensor) -> Tensor:
    out_TO = _multiply(x_TD, layer.weight)
    return out_TO + layer.bias if hasattr(layer, "bias") else out_TO


def _experts(experts: Experts, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
    """Apply each expert to its tokens, as `experts_reference` defines it."""
    out_TD = torch.zeros_like(x_TD)
    for expert in experts_TK.unique().tolist():
        token_M, choice_M = (experts_TK == expert).nonzero(as_tuple=True)
        gate, up = _multiply(x_TD[token_M], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        down_MD = _multiply(F.silu(gate) * up, experts.down_proj[expert])
        out_TD = out_TD.index_add(0, token_M, down_MD * weights_TK[token_M, choice_M, None].to(down_MD.dtype))
    return out_TD
