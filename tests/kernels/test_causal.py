"""Latent attention with its gradients by native kernels: against autograd of the definition, and when there is none."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels import causal, registry
from leanseek.kernels.causal import causal_attention_reference, learns_natively
from leanseek.kernels.invariance import invariant
from leanseek.kernels.rope import inverse_frequencies, rotations
from leanseek.model.attention import LatentAttention
from leanseek.model.config import ModelConfig
from leanseek.model.segments import Segments
from tests.conftest import TINY
from tests.kernels.threads import assert_threads_change_no_bit

KERNELS = [one for one in registry.implementations("causal_attention") if one.name != "reference"]
# One token; blocks of queries that are whole and not, with and without a prefix; texts that share one.
SEGMENTS = {
    "one token": Segments((1,)),
    "some texts": Segments((5, 64, 17)),
    "long": Segments((200,)),
    "shared": Segments((30, 9, 70, 4, 20, 3), (-1, 0, 0, 0, -1, 4)),
}


def inputs(segments, heads=3, nope=8, turned=24, value=16):
    """Return the arguments of the op."""
    generator = torch.Generator().manual_seed(0)
    tokens = segments.tokens
    turns = rotations(segments.positions_T, inverse_frequencies(turned, 100.0, None), 1.1)
    shapes = ((tokens, heads, nope + turned), (tokens, heads, nope + value), (tokens, turned))
    return *(torch.randn(shape, generator=generator) for shape in shapes), turns, segments.spans_S4, 0.4


def gradients(function, *given):
    """Return what a function gives, and the gradients of all that goes in."""
    leaves = [t.clone().requires_grad_() for t in given[:3]]
    out = function(*leaves, *given[3:])
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out.detach(), *torch.autograd.grad(out, leaves, slope)


@pytest.mark.parametrize("value", [16, 48])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_every_gradient_is_that_of_the_definition(one, segments, value):
    if one.missing:
        pytest.skip(one.missing)
    given = inputs(segments, value=value)
    wanted = gradients(causal_attention_reference, *given)
    for name, want, got in zip(("out", "q", "kv", "rope"), wanted, gradients(one.function, *given), strict=True):
        assert float((got - want).abs().max()) < 4e-6 * max(1.0, float(want.abs().max())), name


def kernel():
    function = registry.chosen("causal_attention")
    if function is None:
        pytest.skip(registry.choose("causal_attention").reason)
    return function


def test_threads_change_no_bit():
    function, given = kernel(), inputs(SEGMENTS["shared"])
    assert_threads_change_no_bit(lambda: gradients(function, *given))


def test_scores_may_be_large():
    function, given = kernel(), inputs(SEGMENTS["some texts"])
    given = (given[0] * 100, *given[1:])
    wanted = gradients(causal_attention_reference, *given)
    for want, got in zip(wanted, gradients(function, *given), strict=True):
        assert torch.isfinite(got).all()
        assert float((got - want).norm()) < 2e-3 * float(want.norm())


def test_it_is_left_alone_where_it_does_not_suit():
    kernel()
    q, _, rope = (t.requires_grad_() for t in inputs(SEGMENTS["some texts"])[:3])
    assert learns_natively(q, rope, 16)
    assert not learns_natively(q.detach(), rope, 16) and not learns_natively(q, rope.double(), 16)
    assert not learns_natively(q[..., :-8], rope, 16) and not learns_natively(q, rope, 24)
    with torch.no_grad():
        assert not learns_natively(q, rope, 16)
    with invariant():
        assert not learns_natively(q, rope, 16)


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_a_layer_learns_as_it_does_in_plain_torch(segments, monkeypatch):
    kernel()
    torch.manual_seed(0)
    shape = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
    layer = LatentAttention(ModelConfig.from_dict({**TINY, **shape}))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    turns = rotations(segments.positions_T, inverse_frequencies(8, 100.0, None))
    x = torch.randn(segments.tokens, layer.o_proj.shape[0], requires_grad=True)
    leaves = [x, *layer.parameters()]
    results, calls = [], []
    monkeypatch.setattr(causal, "chosen", lambda op: calls.append(op) or registry.chosen(op))
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("leanseek.model.attention.learns_natively", lambda *_: False)
        out = layer(x, turns, segments, None, 0)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        assert calls
    for got, want in zip(*results, strict=True):
        assert float((got - want).detach().abs().max()) < 1e-5 * max(1.0, float(want.detach().abs().max()))
