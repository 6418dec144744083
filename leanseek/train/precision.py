"""FP8 training as DeepSeek-V3 does it: every product of a Linear or an expert on e4m3 numbers, scaled by small tiles.

Activations and gradients are rounded in tiles of 1 x 128 along what is summed over, weights in blocks of 128 x 128;
products are summed in fp32. Embedding, head, router, norms and attention itself stay as they are, and so do the
weights that the optimiser changes. On Hopper GPUs the products are torch's scaled ones, elsewhere they are emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.model.experts import Experts
from leanseek.model.layers import Linear
from leanseek.model.transformer import Transformer
from leanseek.train.scaled import Scaled, product

# Kept in the model's own precision though they are Linear layers. Source: DeepSeek-V3 report section 3.3.1.
KEPT = ("lm_head",)


class Fp8Linear(torch.autograd.Function):
    """y = x W^T and both its gradients, each a product of e4m3 numbers.

    For the weight's gradient, which sums over tokens, both sides are rounded anew in tiles along the tokens.

    Source: DeepSeek-V3 report section 3.3 (fine-grained quantisation; Fprop, Dgrad and Wgrad in FP8).
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply; [T, D] and [O, D] -> [T, O] in x's dtype."""
        weight = Scaled.blocks(weight_OD)
        ctx.save_for_backward(x_TD, weight.codes, weight.scales)
        ctx.shape, ctx.dtype = weight.shape, weight_OD.dtype
        return product(Scaled.tiles(x_TD), weight, x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x_TD, codes, scales = ctx.saved_tensors
        gradient_TO = gradients[0]
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            weight_DO = Scaled(codes, scales, ctx.shape).transposed()
            x_gradient = product(Scaled.tiles(gradient_TO), weight_DO, x_TD.dtype)
        if ctx.needs_input_grad[1]:
            weight_gradient = product(Scaled.tiles(gradient_TO.t()), Scaled.tiles(x_TD.t()), ctx.dtype)
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
