"""The plain layers against their equations."""

from __future__ import annotations

import torch

from leanseek.model.layers import Embedding, Linear, RMSNorm, SwiGLU


def fill(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)


@torch.no_grad()
def test_linear_multiplies_by_the_transposed_weight():
    layer = Linear(3, 5)
    fill(layer)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    assert layer.weight.shape == (5, 3)
    assert torch.allclose(layer(x), x @ layer.weight.T, atol=1e-6)


@torch.no_grad()
def test_embedding_gives_rows():
    layer = Embedding(4, 3)
    fill(layer)
    assert torch.equal(layer(torch.tensor([2, 0, 2])), layer.weight[[2, 0, 2]])


@torch.no_grad()
def test_swiglu_gates_with_silu():
    layer = SwiGLU(3, 6)
    fill(layer)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    gate, up = x @ layer.gate_proj.weight.T, x @ layer.up_proj.weight.T
    assert torch.allclose(layer(x), (gate / (1 + torch.exp(-gate)) * up) @ layer.down_proj.weight.T, atol=1e-5)


@torch.no_grad()
def test_a_new_norm_has_scale_one():
    x = torch.tensor([[3.0, -4.0]])
    assert torch.allclose(RMSNorm(2, 0.0)(x), x / 12.5**0.5)
