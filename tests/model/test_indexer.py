"""The lightning indexer: its scores by hand, and that exactly the best tokens are attended to."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels.rope import inverse_frequencies, rotate_halves, rotations
from leanseek.model.attention import LatentAttention
from leanseek.model.config import ModelConfig
from leanseek.model.indexer import Indexer
from leanseek.model.segments import Segments

TOKENS = 9


@pytest.fixture
def config(make_config) -> ModelConfig:
    return make_config(
        model_type="deepseek_v32", q_lora_rank=6, index_n_heads=3, index_head_dim=6, index_topk=4, rope_theta=50.0
    )


def filled(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


def inputs(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_TD = torch.randn(TOKENS, config.hidden_size, generator=generator)
    q_TQ = torch.randn(TOKENS, config.q_lora_rank, generator=generator)
    frequencies = inverse_frequencies(config.qk_rope_head_dim, config.rope_theta, None)
    return x_TD, q_TQ, rotations(torch.arange(TOKENS), frequencies)


def score(indexer: Indexer, x_TD: torch.Tensor, q_TQ: torch.Tensor, turns_TR: torch.Tensor, t: int, s: int) -> float:
    """The report's equation for one pair of tokens."""

    def turned(x: torch.Tensor, at: int) -> torch.Tensor:
        front = rotate_halves(x[:4].view(1, 1, 4), turns_TR[at : at + 1]).view(-1)
        return torch.cat((front, x[4:]))

    raw = indexer.wk.weight @ x_TD[s]
    key = (raw - raw.mean()) / torch.sqrt(raw.var(unbiased=False) + 1e-6)
    key = turned(key * indexer.k_norm.weight + indexer.k_norm.bias, s)
    weights = indexer.weights_proj.weight @ x_TD[t] * 3**-0.5 * 6**-0.5
    queries = (indexer.wq_b.weight @ q_TQ[t]).view(3, 6)
    return sum(float(w * torch.relu(turned(q, t) @ key)) for w, q in zip(weights, queries, strict=True))


@torch.no_grad()
def test_the_best_of_what_came_before_are_kept(config):
    indexer = Indexer(config)
    filled(indexer)
    x_TD, q_TQ, turns_TR = inputs(config)
    segments = Segments.single(TOKENS)
    visible = indexer(x_TD, q_TQ, turns_TR).choose_packed(segments.groups[0])
    assert visible is not None
    for t in range(TOKENS):
        ranked = sorted(range(t + 1), key=lambda s: -score(indexer, x_TD, q_TQ, turns_TR, t, s))
        assert set(visible[0, 0, t].nonzero().flatten().tolist()) == set(ranked[:4])


@torch.no_grad()
def test_texts_no_longer_than_topk_are_attended_to_whole(config):
    sparse, whole = LatentAttention(config), LatentAttention(config.replace(index_topk=TOKENS))
    filled(sparse)
    whole.load_state_dict(sparse.state_dict())
    x_TD, _, turns_TR = inputs(config)
    dense = LatentAttention(config.replace(model_type="deepseek_v3", index_topk=0, index_head_dim=0, index_n_heads=0))
    dense.load_state_dict({k: v for k, v in sparse.state_dict().items() if "indexer" not in k})
    expected = dense(x_TD, turns_TR, Segments.single(TOKENS), None, 0)
    assert torch.allclose(whole(x_TD, turns_TR, Segments.single(TOKENS), None, 0), expected, atol=1e-6)
    got = sparse(x_TD, turns_TR, Segments.single(TOKENS), None, 0)
    assert torch.allclose(got[:4], expected[:4], atol=1e-5)
    assert not torch.allclose(got[4:], expected[4:], atol=1e-2)


def test_no_gradient_reaches_the_indexer_and_the_rest_learns(config):
    attention = LatentAttention(config)
    filled(attention)
    x_TD, _, turns_TR = inputs(config)
    attention(x_TD, turns_TR, Segments.single(TOKENS), None, 0).square().sum().backward()
    learns = {name for name, parameter in attention.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in attention.named_parameters() if not name.startswith("indexer.")}
