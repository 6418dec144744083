"""Load balancing: which way the bias moves, and the sequence-wise loss against a loop."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.train.balance import expert_counts, load_factor, sequence_balance_loss, update_bias


def test_under_used_experts_rise_and_over_used_ones_fall(make_model):
    model = make_model()
    before = [layer.gate.e_score_correction_bias.clone() for layer in model.moe_layers]
    counts = [torch.tensor([0, 40, 9, 3, 10, 10, 4, 4]), torch.tensor([10] * 8)]  # both have mean 10
    update_bias(model, counts, 0.01)
    change = model.moe_layers[0].gate.e_score_correction_bias - before[0]
    # Signs are +-+++: re-centred by their mean, so that the mean of all biases stays.
    signs = torch.tensor([1.0, -1, 1, 1, 0, 0, 1, 1])
    assert torch.allclose(change, 0.01 * (signs - signs.mean()), atol=1e-7)
    assert float(change[0]) > 0 > float(change[1]) and float(change.sum()) == pytest.approx(0, abs=1e-7)
    assert torch.equal(model.moe_layers[1].gate.e_score_correction_bias, before[1]), "balanced: nothing moves"


def test_the_mtp_layers_router_is_balanced_where_it_ran(make_model):
    model = make_model()
    gates = [layer.gate for layer in (*model.moe_layers, model.mtp_layer.mlp)]
    even, uneven = torch.tensor([10] * 8), torch.tensor([80, 0, 0, 0, 0, 0, 0, 0])
    for counts, moved in (([even, uneven], [False, True, False]), ([even, even, uneven], [False, False, True])):
        before = [gate.e_score_correction_bias.clone() for gate in gates]
        update_bias(model, counts, 0.01)
        changed = [not torch.equal(gate.e_score_correction_bias, b) for gate, b in zip(gates, before, strict=True)]
        assert changed == moved
    dense = make_model(num_nextn_predict_layers=0)
    with pytest.raises(ValueError):
        update_bias(dense, [even, even, uneven], 0.01)


def test_a_rate_of_zero_changes_nothing(make_model):
    model = make_model()
    before = model.moe_layers[0].gate.e_score_correction_bias.clone()
    update_bias(model, [torch.tensor([80, 0, 0, 0, 0, 0, 0, 0])] * 2, 0.0)
    assert torch.equal(model.moe_layers[0].gate.e_score_correction_bias, before)


def test_updates_even_the_load_out(make_model):
    """The point of it: repeated updates on the same text bring the worst load down."""
    model = make_model()
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.gate.e_score_correction_bias[0] += 1.0
    text, segments = torch.arange(3, 203), Segments.single(200)
    factors = []
    for _ in range(60):
        routing = Routing()
        with torch.no_grad():
            model(text, segments, routing=routing)
        counts = expert_counts(routing, 8)
        factors.append(load_factor(counts))
        update_bias(model, counts, 0.02)
    assert factors[0] > 3.5 and factors[-1] < 1.7


def test_counts_and_load_factor():
    routing = Routing(experts=[torch.tensor([[0, 3], [3, 1]]), torch.tensor([[0, 1], [2, 3]])])
    counts = expert_counts(routing, 5)
    assert [c.tolist() for c in counts] == [[1, 1, 0, 2, 0], [1, 1, 1, 1, 0]]
    assert load_factor(counts) == pytest.approx(2 / 0.8)
    assert load_factor([]) == 1.0


@pytest.mark.parametrize("lengths", [(6, 6, 6), (9, 1, 4)])
def test_the_sequence_loss_is_the_reports(lengths):
    """f_i = E / (K T) x how often i was chosen, P_i = mean share of i's score; sum over i of f_i P_i."""
    generator = torch.Generator().manual_seed(0)
    tokens, experts, per_token = sum(lengths), 5, 2
    scores = [torch.rand(tokens, experts, generator=generator).requires_grad_() for _ in range(2)]
    chosen = [layer.detach().topk(per_token).indices for layer in scores]
    expected = 0.0
    for layer, choice in zip(scores, chosen, strict=True):
        of_sequences, start = [], 0
        for length in lengths:
            loss = 0.0
            for i in range(experts):
                frequency = experts / (per_token * length) * int((choice[start : start + length] == i).sum())
                shares = [layer[t, i] / layer[t].sum() for t in range(start, start + length)]
                loss = loss + frequency * sum(shares) / length
            of_sequences.append(loss)
            start += length
        expected = expected + sum(of_sequences) / len(lengths)
    expected.backward()
    gradients = [layer.grad.clone() for layer in scores]
    for layer in scores:
        layer.grad = None
    got = sequence_balance_loss(Routing(experts=chosen, scores=scores), Segments.packed(lengths))
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    got.backward()
    for layer, gradient in zip(scores, gradients, strict=True):
        assert torch.allclose(layer.grad, gradient, atol=1e-6)


def test_a_balanced_sequence_has_the_least_loss():
    """Equal scores and equal use give exactly 1 a layer; a crowd on one expert gives more."""
    flat = torch.full((4, 4), 0.5)
    even = Routing(experts=[torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])], scores=[flat])
    assert float(sequence_balance_loss(even, Segments.single(4))) == pytest.approx(1.0)
    crowded = torch.tensor([[0.9, 0.8, 0.1, 0.1]] * 4)
    routing = Routing(experts=[torch.tensor([[0, 1]] * 4)], scores=[crowded])
    assert float(sequence_balance_loss(routing, Segments.single(4))) > 1.5
