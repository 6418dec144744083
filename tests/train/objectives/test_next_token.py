"""The loss of pretraining and SFT: what is averaged, what is masked, what is added."""

from __future__ import annotations

import pytest
import torch

from leanseek.data.batches import IGNORED, Batch, TokenStream, packed_examples
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.train.balance import sequence_balance_loss
from leanseek.train.objectives.next_token import NextToken, cross_entropy, mean_loss

EXAMPLES = [
    ([0, 20, 21, 22, 1], [False, False, True, True, True]),
    ([0, 30, 31, 32, 33, 34, 1], [False, False, False, True, True, True, True]),
]


def stream_batch() -> Batch:
    tokens = torch.randint(3, 320, (200,), generator=torch.Generator().manual_seed(0))
    return TokenStream(tokens, 16, 4, seed=0).batch(0)


@torch.no_grad()
def test_the_loss_is_the_mean_over_learnt_targets(make_model):
    model, batch = make_model(), packed_examples(EXAMPLES)
    losses = []
    for ids, learnt in EXAMPLES:
        logits = model.logits(model(torch.tensor(ids), Segments.single(len(ids))))
        logprobs = torch.log_softmax(logits, -1)
        losses += [-float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if learnt[i]]
    loss = NextToken(mtp_weight=0.0, balance_loss=0.0)(model, batch)
    assert float(loss.total) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert loss.metrics == {"loss": pytest.approx(float(loss.total))}
    assert (loss.tokens, loss.head_tokens, loss.mtp) == (10, 7, False)
    assert sum(int(c.sum()) for c in loss.counts) == 2 * 10 * 2


@torch.no_grad()
def test_the_mtp_loss_looks_two_tokens_ahead_and_stops_at_document_ends(make_model):
    model, batch = make_model(), packed_examples(EXAMPLES)
    losses = []
    for ids, learnt in EXAMPLES:
        read, segments = torch.tensor(ids[:-1]), Segments.single(len(ids) - 1)
        ahead = model.mtp(model(read, segments), torch.tensor(ids[1:]), segments)
        logprobs = torch.log_softmax(model.logits(ahead), -1)
        losses += [-float(logprobs[i, ids[i + 2]]) for i in range(len(ids) - 2) if learnt[i + 2]]
    loss = NextToken(mtp_weight=0.3, balance_loss=0.0)(model, batch)
    assert loss.metrics["mtp_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(loss.total) == pytest.approx(loss.metrics["loss"] + 0.3 * loss.metrics["mtp_loss"], rel=1e-5)
    assert loss.mtp


@torch.no_grad()
def test_the_mtp_loss_is_over_targets_within_a_document(make_model):
    model = make_model()
    tokens = torch.randint(0, 320, (66,), generator=torch.Generator().manual_seed(3))
    tokens[::7] = 0
    batch = TokenStream(tokens, 64, 1, seed=0, bos_id=0).batch(0)
    ahead = model.mtp(model(batch.tokens_T, batch.segments), batch.targets_T, batch.segments)
    logprobs = torch.log_softmax(model.logits(ahead), -1)
    inside = [t for t in range(64) if 0 not in tokens[t + 1 : t + 3].tolist()]
    assert 30 < len(inside) < 50
    losses = [-float(logprobs[t, tokens[t + 2]]) for t in inside]
    loss = NextToken(mtp_weight=0.3, balance_loss=0.0)(model, batch)
    assert loss.metrics["mtp_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@torch.no_grad()
def test_the_use_of_experts_is_counted_layer_by_layer_the_mtp_layer_last(make_model):
    model, batch = make_model(), stream_batch()
    plain, ahead = (NextToken(weight, 0.0)(model, batch).counts for weight in (0.0, 0.3))
    assert len(plain) == 2 and len(ahead) == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, ahead, strict=False))
    routing, mtp = Routing(), Routing()
    model.mtp(model(batch.tokens_T, batch.segments, routing=routing), batch.targets_T, batch.segments, routing=mtp)
    assert torch.equal(ahead[2], torch.bincount(mtp.experts[0].reshape(-1), minlength=8))
    assert len(routing.experts) == 2 and len(mtp.experts) == 1


def test_every_part_reaches_the_weights_that_it_should(make_model):
    model, batch = make_model(), stream_batch()
    NextToken(mtp_weight=0.0, balance_loss=0.0)(model, batch).total.backward()
    assert all(p.grad is None for p in model.mtp_layer.parameters())
    without = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    NextToken(mtp_weight=0.3, balance_loss=0.0)(model, batch).total.backward()
    assert all(p.grad is not None for p in model.mtp_layer.parameters())
    assert not torch.allclose(model.lm_head.weight.grad, without["lm_head.weight"]), "the head is shared"


@torch.no_grad()
def test_the_balance_loss_is_added_with_its_weight(make_model):
    model, batch = make_model(), stream_batch()
    routing = Routing(keep_scores=True)
    model(batch.tokens_T, batch.segments, routing=routing)
    extra = float(sequence_balance_loss(routing, batch.segments))
    plain = NextToken(mtp_weight=0.0, balance_loss=0.0)(model, batch)
    added = NextToken(mtp_weight=0.0, balance_loss=0.5)(model, batch)
    assert float(added.total) - float(plain.total) == pytest.approx(0.5 * extra, rel=1e-3)
    assert added.metrics["loss"] == pytest.approx(plain.metrics["loss"])


@torch.no_grad()
def test_models_without_mtp_or_experts_have_the_plain_loss(make_model):
    model = make_model(num_nextn_predict_layers=0, first_k_dense_replace=3)
    loss = NextToken(mtp_weight=0.3, balance_loss=0.5)(model, stream_batch())
    assert set(loss.metrics) == {"loss"} and loss.counts == [] and not loss.mtp


def test_a_batch_without_targets_has_loss_zero_that_can_be_differentiated(make_model):
    model = make_model()
    hidden = model(torch.arange(4), Segments.single(4))
    loss = cross_entropy(model, hidden, torch.full((4,), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_pieces_of_a_batch_have_its_gradient(make_model):
    """Forward passes of bounded size: the weighted sum of the parts is the whole."""
    model, batch = make_model(), packed_examples(EXAMPLES * 3)
    objective = NextToken(mtp_weight=0.0, balance_loss=0.0)
    objective(model, batch).total.backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    pieces = batch.pieces(1, 11)
    assert len(pieces) > 2
    for piece, share in pieces:
        (objective(model, piece).total * share).backward()
    for name, gradient in whole.items():
        assert torch.allclose(dict(model.named_parameters())[name].grad, gradient, atol=1e-5), name


@torch.no_grad()
def test_the_mean_over_batches_weighs_each_target_the_same(make_model):
    model = make_model()
    batches = [packed_examples(EXAMPLES[:1]), packed_examples(EXAMPLES[1:])]
    together = NextToken(mtp_weight=0.0, balance_loss=0.0)(model, packed_examples(EXAMPLES))
    assert mean_loss(model, batches) == pytest.approx(together.metrics["loss"], rel=1e-4)
    assert mean_loss(model, []) == 0.0
