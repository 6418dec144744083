"""Each part of the objectives against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from leanseek.train.objectives.forms import FORMS
from leanseek.train.objectives.surrogate import Replies, average, gains, on_policy, ratios, unbiased_kl

# Two replies, of two tokens and of one. Probabilities: old 0.5, 0.5 and 0.25; now 0.75, 0.5 and 0.2.
REPLIES = Replies.of([2, 1])
OLD = torch.tensor([0.5, 0.5, 0.25]).log()
NEW = torch.tensor([0.75, 0.5, 0.2]).log()
ADVANTAGES = torch.tensor([1.0, 1.0, -2.0])
LONGEST = 4


def loss(name: str, old: torch.Tensor = OLD, new: torch.Tensor = NEW) -> torch.Tensor:
    form = FORMS[name]
    ratio = ratios(new, old, REPLIES, form.ratio)
    clipped = ratio.clamp(1 - form.clip_low, 1 + form.clip_high)
    return -average(gains(form.ratio, ratio, clipped, new, ADVANTAGES), REPLIES, form.average, LONGEST)


# Ratios: 1.5, 1 and 0.8. Gains with a clip at 1.2: 1.2, 1 and -1.6; at 1.28: 1.28, 1 and -1.6.
ROOT = math.sqrt(1.5)  # of the first reply, as a whole
BY_HAND = {
    "grpo": -((1.2 + 1) / 2 - 1.6) / 2,  # mean of the replies' means
    "dr_grpo": -(1.2 + 1 - 1.6) / (2 * LONGEST),  # sums over the longest reply
    "dapo": -(1.28 + 1 - 1.6) / 3,  # mean of all tokens
    "gspo": -(1.0004 - 2 * 0.9997) / 2,  # both replies are clipped: ROOT, and 0.8
    "cispo": -(1.5 * math.log(0.75) + math.log(0.5) - 2 * 0.8 * math.log(0.2)) / 3,
}


@pytest.mark.parametrize("name", FORMS)
def test_the_loss_is_what_it_is_by_hand(name):
    assert float(loss(name)) == pytest.approx(BY_HAND[name], abs=1e-6)


def test_on_the_policy_that_sampled_the_gradient_is_the_plain_one_weighted_as_the_form_says():
    weights = {
        "grpo": [1 / 4, 1 / 4, 1 / 2],
        "dr_grpo": [1 / 8] * 3,
        "dapo": [1 / 3] * 3,
        "gspo": [1 / 4, 1 / 4, 1 / 2],
        "cispo": [1 / 3] * 3,
    }
    for name, shares in weights.items():
        new = OLD.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(name, new=new), new)
        assert gradient.tolist() == pytest.approx([-s * a for s, a in zip(shares, [1, 1, -2], strict=True)]), name


def test_what_is_clipped_stops_learning_but_under_a_fixed_weight():
    new = torch.tensor([3.0, 1.0, 0.8], requires_grad=True)  # log-ratios are all that counts
    old = torch.zeros(3)
    (clipped,) = torch.autograd.grad(loss("dapo", old, new), new)
    assert clipped[0] == 0 and clipped[2] != 0
    (weighted,) = torch.autograd.grad(loss("cispo", old, new), new)
    assert weighted.tolist() == pytest.approx([-5 / 3, -math.e / 3, 2 * math.exp(0.8) / 3])


def test_a_replys_ratio_is_the_geometric_mean_of_its_tokens():
    assert ratios(NEW, OLD, REPLIES, "reply").tolist() == pytest.approx([ROOT, ROOT, 0.8])
    assert ratios(NEW, OLD, REPLIES, "token").tolist() == pytest.approx([1.5, 1.0, 0.8])
    assert torch.equal(ratios(NEW, OLD, REPLIES, "weight"), ratios(NEW, OLD, REPLIES, "token"))


def test_bad_replies_that_the_policy_has_left_are_masked_and_good_ones_never():
    replies = Replies.of([2, 2, 1, 1])
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    new = torch.tensor([-1.5, -0.9, -1.5, -0.9, -1.1, -0.2])  # mean distances: 0.2, 0.2, 0.1, -0.8
    advantages = torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    assert on_policy(new, old, advantages, replies, 0.15).tolist() == [0, 0, 1, 1, 1, 1]
    assert on_policy(new, old, advantages, replies, 0.05).tolist() == [0, 0, 1, 1, 0, 1]
    assert on_policy(new, old, advantages, replies, 0.3).tolist() == [1] * 6


def test_the_kl_by_hand():
    # Reference 0.6: ratio 1.5, and 0.6 / 0.75 - ln(0.6 / 0.75) - 1.
    kl = unbiased_kl(torch.tensor([1.5]), torch.tensor([math.log(0.75)]), torch.tensor([math.log(0.6)]))
    assert float(kl) == pytest.approx(1.5 * (0.8 - math.log(0.8) - 1))


def test_the_kl_and_its_gradient_are_right_in_the_mean_over_what_another_policy_samples():
    """Summed over all tokens as often as the old policy draws them: the exact KL, which plain k3 misses."""
    generator = torch.Generator().manual_seed(0)
    logits, old, reference = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    new, old, reference = (torch.log_softmax(x, 0) for x in (logits, old, reference))
    exact = (new.exp() * (new - reference)).sum()
    ratio = torch.exp(new - old)
    found = (old.exp() * unbiased_kl(ratio, new, reference)).sum()
    assert float(found) == pytest.approx(float(exact), rel=1e-9)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (exact, found)]
    assert torch.allclose(*gradients, rtol=1e-9)
    plain = (old.exp() * unbiased_kl(torch.ones_like(ratio), new, reference)).sum()
    assert abs(float(plain - exact)) > 0.05
