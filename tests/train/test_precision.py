"""FP8 training: its numbers are the recipe's, what it leaves alone, and that it learns like fp32."""

from __future__ import annotations

import pytest
import torch

from leanseek.data.batches import TokenStream
from leanseek.kernels.experts import experts_reference
from leanseek.sections.training import OptimiserSettings
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.optimisers import Optimiser
from leanseek.train.precision import Fp8Linear, fp8
from leanseek.train.scaled import Scaled


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of very different size from tile to tile."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 2)


@pytest.mark.parametrize("shape", [(5, 200, 130), (129, 128, 64), (1, 7, 3)])
def test_all_three_products_are_of_rounded_numbers(shape):
    tokens, inputs, outputs = shape
    x, weight = random(tokens, inputs).requires_grad_(), random(outputs, inputs, seed=1).requires_grad_()
    gradient = random(tokens, outputs, seed=2)
    out = Fp8Linear.apply(x, weight)
    out.backward(gradient)

    def rounded_tiles(matrix: torch.Tensor) -> torch.Tensor:
        return Scaled.tiles(matrix).numbers()

    def rounded_blocks(matrix: torch.Tensor) -> torch.Tensor:
        return Scaled.blocks(matrix).numbers()

    product = rounded_tiles(x.detach()).double() @ rounded_blocks(weight.detach()).double().t()
    x_gradient = rounded_tiles(gradient).double() @ rounded_blocks(weight.detach()).double()
    weight_gradient = rounded_tiles(gradient.t()).double() @ rounded_tiles(x.detach().t()).double().t()
    # fp32 sums of some hundred products of about equal size.
    for got, wanted in ((out, product), (x.grad, x_gradient), (weight.grad, weight_gradient)):
        scale = wanted.abs().max()
        assert torch.allclose(got.detach().double() / scale, wanted / scale, atol=1e-5)


def test_only_what_v3_puts_into_fp8_changes_and_only_inside(make_model):
    model = make_model()
    tokens, x = torch.arange(6), torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    attention, moe = model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp
    x_o = torch.randn(6, attention.weight.shape[1], generator=torch.Generator().manual_seed(1))
    weights, experts = (
        torch.rand(6, 2, generator=torch.Generator().manual_seed(2)),
        torch.tensor([[0, 1], [2, 3], [1, 0], [7, 2], [4, 5], [3, 6]]),
    )
    before = attention(x_o)
    with fp8(model):
        assert not torch.equal(attention(x_o), before)
        assert torch.equal(model.logits(x), x @ model.lm_head.weight.t())
        assert torch.equal(model.model.embed_tokens(tokens), model.model.embed_tokens.weight[:6])
        got = moe.experts(x, weights, experts)
    plain = experts_reference(x, weights, experts, moe.experts.gate_up_proj, moe.experts.down_proj)
    # Three roundings with three bits of mantissa behind the first: some per cent of the largest number.
    assert 0 < float((got - plain).abs().max() / plain.abs().max()) < 0.15
    assert torch.equal(attention(x_o), before) and "forward" not in vars(attention)


def test_it_learns_as_without(make_model):
    """Forty steps on counting with jumps; V3's 0.25% is of a real run (bench/fp8.py): these layers are 32 wide."""
    jumps = torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.3
    stream = TokenStream((torch.arange(4000) + 17 * jumps.cumsum(0)) % 97, 16, 16, 0)
    losses = {}
    for precise in (True, False):
        model = make_model()
        optimiser = Optimiser(model, OptimiserSettings(lr=0.01))
        seen = []
        for step in range(40):
            batch = stream.batch(step)
            if precise:
                loss = NextToken(0.3, 1e-3)(model, batch)
                loss.total.backward()
            else:
                with fp8(model):
                    loss = NextToken(0.3, 1e-3)(model, batch)
                    loss.total.backward()
            optimiser.clip()
            optimiser.step(1.0)
            optimiser.zero_grad()
            seen.append(loss.metrics["loss"])
        losses[precise] = sum(seen[-10:]) / 10
    assert losses[True] < 3.5, "it has learnt: 5.8 is knowing nothing"
    assert losses[False] == pytest.approx(losses[True], rel=0.01)
