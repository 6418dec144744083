"""DPO's loss: by hand, against TRL's, and the same whatever is packed together and however few logits are held."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from leanseek.train.objectives.preference import Dpo, Pair, PairBatch, preference_loss, reply_logprobs

# Log-probabilities of replies: ours of the better and the worse one, then the reference's.
NUMBERS = [
    torch.tensor(row) for row in ([-4.0, -9.5, -2.0], [-6.0, -3.0, -2.5], [-5.0, -9.0, -2.0], [-5.5, -4.0, -2.5])
]
PAIRS = [
    Pair(([5, 9, 40, 7], [False, False, True, True]), ([5, 9, 31], [False, False, True]), -4.0, -6.0),
    Pair(([8, 3, 3], [False, True, True]), ([8, 11, 12, 13, 14], [False, True, True, True, True]), -9.0, -3.0),
]


def test_by_hand():
    loss, better, worse = preference_loss(*NUMBERS, beta=0.1)
    # The first pair: 0.1 x (1 - (-0.5)) = 0.15.
    assert better[0] == pytest.approx(0.1) and worse[0] == pytest.approx(-0.05)
    assert loss[0] == pytest.approx(math.log1p(math.exp(-0.15)))
    assert loss[2] == pytest.approx(math.log(2)), "nothing has changed: neither is preferred"
    smooth, _, _ = preference_loss(*NUMBERS, beta=0.1, label_smoothing=0.25)
    assert smooth[0] == pytest.approx(0.75 * math.log1p(math.exp(-0.15)) + 0.25 * math.log1p(math.exp(0.15)))


def test_the_log_probability_of_a_reply_is_the_sum_of_its_tokens(tiny_model):
    batch = PairBatch(PAIRS).packed
    found = reply_logprobs(tiny_model, batch)
    for at, example in enumerate(reply for one in PAIRS for reply in (one.chosen, one.rejected)):
        alone = PairBatch([Pair(example, example)]).packed
        hidden = tiny_model(alone.tokens_T, alone.segments)[: len(example[0]) - 1]
        shares = tiny_model.logits(hidden).float().log_softmax(-1)
        wanted = sum(shares[i - 1, token] for i, token in enumerate(example[0]) if example[1][i])
        torch.testing.assert_close(found[at], wanted, rtol=1e-5, atol=1e-5)  # fp32 in another order
    torch.testing.assert_close(reply_logprobs(tiny_model, batch, most_logits=640), found, rtol=1e-5, atol=1e-5)


def test_parts_make_up_the_whole(tiny_model):
    objective, whole = Dpo(0.5, 0.1, 640), PairBatch(PAIRS)
    parts = whole.pieces(2, None)
    assert [len(part.pairs) for part, _ in parts] == [1, 1]
    loss = objective(tiny_model, whole)
    joined = sum(objective(tiny_model, part).total * share for part, share in parts)
    torch.testing.assert_close(joined, loss.total, rtol=1e-5, atol=1e-6)  # fp32 in another order
    assert loss.tokens == sum(one.tokens for one in PAIRS) and loss.head_tokens == 9
    assert 0 <= loss.metrics["preferred"] <= 1


def theirs(kind: str, beta: float, smoothing: float, numbers: list[torch.Tensor]) -> float:
    """Return TRL's loss of pairs whose replies are of one token each, with these log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    chosen, rejected, reference_chosen, reference_rejected = numbers
    own = MagicMock()
    own.loss_types, own.loss_weights, own.beta, own.label_smoothing = [kind], [1.0], beta, smoothing
    own.ld_alpha, own.f_divergence_type, own.precompute_ref_logps = None, "reverse_kl", True
    own.use_weighting = own.aux_loss_enabled = False
    own.accelerator.gather_for_metrics = lambda value: value
    own._metrics, own._tp_size, own._total_train_tokens = defaultdict(lambda: defaultdict(list)), 1, 0
    said = torch.cat([chosen, rejected])[:, None]
    outputs = SimpleNamespace(
        log_probs=said, entropy=torch.zeros_like(said), mean_logits=torch.zeros_like(said), is_top1=said > 0
    )
    mask = torch.tensor([[0, 1]]).expand(len(said), 2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    return float(DPOTrainer._compute_loss(own, lambda **_: outputs, inputs, return_outputs=False))


def test_as_trl_has_it():
    pytest.importorskip("trl", reason="TRL is this test's oracle, and is not installed (extra bench)")
    for beta in (0.1, 0.7):
        ours = preference_loss(*NUMBERS, beta=beta)[0].mean()
        assert theirs("sigmoid", beta, 0.0, NUMBERS) == pytest.approx(float(ours), rel=1e-6)
        # Of a single pair its AOT is DPO with label smoothing.
        for at in range(3):
            one = [row[at : at + 1] for row in NUMBERS]
            ours = preference_loss(*one, beta=beta, label_smoothing=0.2)[0].mean()
            assert theirs("aot", beta, 0.2, one) == pytest.approx(float(ours), rel=1e-6)
