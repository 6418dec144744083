"""FP8 training: its numbers are the recipe's, what it leaves alone, and that it learns like fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leanseek.data.batches import TokenStream
from leanseek.kernels.experts import experts_reference
from leanseek.sections.training import OptimiserSettings
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.optimisers import Optimiser
from leanseek.train.precision import Fp8Linear, fp8, rounded_blocks, rounded_tiles


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Round to the nearest of all e4m3 numbers, found by listing them."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    numbers = np.unique(codes[np.isfinite(codes)])
    at = np.abs(x[..., None] - numbers).argmin(-1)
    return numbers[at]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of very different size from tile to tile."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 2)


@pytest.mark.parametrize("width", [1, 127, 128, 300])
def test_tiles_are_rounded_each_by_its_own_largest_number(width):
    x = random(3, width)
    x[1] = 0
    got = rounded_tiles(x)
    assert torch.equal(got[1], x[1]) and got.shape == x.shape
    for row in (0, 2):
        for start in range(0, width, 128):
            tile = x[row, start : start + 128].numpy()
            scale = np.float32(np.abs(tile).max()) / np.float32(448)
            # Ties between two neighbours may fall either way here: half a step is what both are off by.
            wanted = nearest_e4m3((tile / scale).astype(np.float64)) * np.float64(scale)
            off = np.abs(got[row, start : start + 128].double().numpy() - tile)
            assert np.all(off <= np.abs(wanted - tile) + 1e-6 * np.abs(tile).max())  # the scale is an fp32 number


@pytest.mark.parametrize("shape", [(5, 200, 130), (129, 128, 64), (1, 7, 3)])
def test_all_three_products_are_of_rounded_numbers(shape):
    tokens, inputs, outputs = shape
    x, weight = random(tokens, inputs).requires_grad_(), random(outputs, inputs, seed=1).requires_grad_()
    gradient = random(tokens, outputs, seed=2)
    out = Fp8Linear.apply(x, weight)
    out.backward(gradient)
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
