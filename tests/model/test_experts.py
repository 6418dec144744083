"""Routing: groups, bias, weights, replay; and the mixture around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanseek.kernels.experts import experts_reference
from leanseek.model.experts import DeepSeekMoE, Router, Routing, choose_experts
from leanseek.model.segments import Segments


def by_hand(scores: list[float], bias: list[float], per_token: int, groups: int, kept: int) -> set[int]:
    """V3's choice for one token, with Python lists."""
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    width = len(scores) // groups
    strength = [sum(sorted(biased[g * width : (g + 1) * width])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=strength.__getitem__)[-kept:]
    allowed = [e for e in range(len(scores)) if e // width in best]
    return set(sorted(allowed, key=biased.__getitem__)[-per_token:])


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (2, 1), (4, 2), (4, 3), (8, 4)])
def test_choice_is_v3s(groups, kept):
    generator = torch.Generator().manual_seed(groups)
    scores = torch.rand(40, 16, generator=generator)
    bias = torch.randn(16, generator=generator)
    chosen = choose_experts(scores, bias, 4, groups, kept)
    for token in range(40):
        expected = by_hand(scores[token].tolist(), bias.tolist(), 4, groups, kept)
        assert set(chosen[token].tolist()) == expected
        assert len(set(chosen[token].tolist())) == 4


def test_groups_left_out_stay_out_even_where_every_biased_score_is_negative():
    """Masking with zero instead of minus infinity would choose from the wrong group here."""
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    bias = torch.full((4,), -5.0)
    assert set(choose_experts(scores, bias, 2, 2, 1)[0].tolist()) == {0, 1}


def test_the_bias_decides_who_is_chosen_and_nothing_else(make_config):
    config = make_config(n_routed_experts=4, num_experts_per_tok=2, routed_scaling_factor=2.5)
    router = Router(config)
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    x_TD = torch.randn(6, config.hidden_size, generator=torch.Generator().manual_seed(1))
    scores_TE = torch.sigmoid(x_TD @ router.weight.T)
    router.e_score_correction_bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0]))
    weights_TK, experts_TK = router(x_TD, None)
    assert all(set(row) == {0, 2} for row in experts_TK.tolist())
    raw = scores_TE.gather(1, experts_TK)
    assert torch.allclose(weights_TK, 2.5 * raw / raw.sum(-1, keepdim=True), atol=1e-6)


def test_without_normalisation_the_weights_are_scaled_scores(make_config):
    config = make_config(norm_topk_prob=False, routed_scaling_factor=16.0)
    router = Router(config)
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    x_TD = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(1))
    weights_TK, experts_TK = router(x_TD, None)
    scores_TE = torch.sigmoid(x_TD @ router.weight.T)
    assert torch.allclose(weights_TK, 16 * scores_TE.gather(1, experts_TK), atol=1e-5)


def test_v2_scores_by_softmax_and_rates_a_group_by_its_best_expert(make_config):
    changes = {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}
    config = make_config(model_type="deepseek_v2", num_nextn_predict_layers=0, num_experts_per_tok=3, **changes)
    router = Router(config)
    assert router.e_score_correction_bias is None and list(router.state_dict()) == ["weight"]
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    x_TD = torch.randn(30, config.hidden_size, generator=torch.Generator().manual_seed(1))
    scores_TE = torch.softmax(x_TD @ router.weight.T, -1)
    weights_TK, experts_TK = router(x_TD, None)
    for scores, experts in zip(scores_TE.tolist(), experts_TK.tolist(), strict=True):
        best = sorted(range(4), key=lambda g: max(scores[2 * g : 2 * g + 2]))[-2:]
        allowed = [e for e in range(8) if e // 2 in best]
        assert set(experts) == set(sorted(allowed, key=scores.__getitem__)[-3:])
    assert torch.allclose(weights_TK, 16 * scores_TE.gather(1, experts_TK), atol=1e-5)
    normed = Router(config.replace(norm_topk_prob=True))  # normalised or scaled, not both
    normed.load_state_dict(router.state_dict())
    assert torch.allclose(normed(x_TD, None)[0].sum(-1), torch.ones(30))


def test_v2_lite_takes_the_best_of_all_whatever_the_groups(make_config):
    config = make_config(model_type="deepseek_v2", num_nextn_predict_layers=0, n_group=4, topk_group=1)
    router = Router(config)
    scores = torch.rand(20, 8, generator=torch.Generator().manual_seed(2))
    expected = scores.topk(2, dim=-1).indices.sort(-1).values
    assert torch.equal(router.choose(scores).sort(-1).values, expected)


def test_no_gradient_reaches_the_bias_and_the_router_learns_from_the_weights(make_config):
    moe = filled(make_config())
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    moe(x_TD).square().sum().backward()
    assert moe.gate.weight.grad is not None and bool((moe.gate.weight.grad != 0).any())
    assert not moe.gate.e_score_correction_bias.requires_grad
    assert "gate.e_score_correction_bias" in moe.state_dict()


def filled(config) -> DeepSeekMoE:
    moe = DeepSeekMoE(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return moe


@pytest.mark.parametrize("shared", [0, 1, 2])
@torch.no_grad()
def test_the_mixture_is_chosen_experts_plus_shared_ones(make_config, shared):
    config = make_config(n_shared_experts=shared)
    moe = filled(config)
    x_TD = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    weights_TK, experts_TK = moe.gate(x_TD, None)
    expected: Tensor = experts_reference(x_TD, weights_TK, experts_TK, moe.experts.gate_up_proj, moe.experts.down_proj)
    if shared:
        mlp = moe.shared_experts
        assert mlp.gate_proj.weight.shape[0] == shared * config.moe_intermediate_size
        gate = x_TD @ mlp.gate_proj.weight.T
        expected = expected + (gate * torch.sigmoid(gate) * (x_TD @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    assert torch.allclose(moe(x_TD), expected, atol=1e-4)


@torch.no_grad()
def test_replayed_routing_uses_old_experts_with_present_scores(make_model):
    old, new = make_model(0), make_model(7)
    tokens, segments = torch.arange(3, 14), Segments.single(11)
    recorded = Routing(keep_scores=True)
    old(tokens, segments, routing=recorded)
    assert recorded.stacked().shape == (11, 2, 2)
    assert [scores.shape for scores in recorded.scores] == [(11, 8)] * 2
    free, forced = Routing(), Routing(replay_TNK=recorded.stacked(), keep_scores=True)
    own = new(tokens, segments, routing=free)
    replayed = new(tokens, segments, routing=forced)
    assert torch.equal(forced.stacked(), recorded.stacked())
    assert not torch.equal(free.stacked(), recorded.stacked()) and not torch.allclose(own, replayed)
    assert forced.agreed == []
    compared = Routing(replay_TNK=recorded.stacked().flip(-1), compare=True)
    assert torch.equal(new(tokens, segments, routing=compared), replayed), "and noting it changes nothing"
    own_TK, dictated_TK = (r.experts[0].sort(-1).values for r in (free, recorded))
    assert torch.equal(compared.agreed[0], (own_TK == dictated_TK).all(-1)), (
        "the order of a token's experts is no matter"
    )
    assert len(compared.agreed) == 2 and not bool(compared.agreed[0].all())
    # Replaying a model's own choice changes nothing.
    assert torch.equal(new(tokens, segments, routing=Routing(replay_TNK=free.stacked())), own)
    assert not torch.allclose(forced.scores[0], recorded.scores[0])
