"""The objectives against TRL: its GRPOTrainer's `_compute_loss`, given the same log-probabilities and advantages."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from leanseek.train.objectives.surrogate import Replies, average, gains, on_policy, ratios, unbiased_kl

pytest.importorskip("trl", reason="TRL is this test's oracle, and is not installed (extra bench)")

LENGTHS, LONGEST = [1, 7, 3, 4, 12, 2], 16
# Ours -> TRL's loss_type, its level of importance sampling, our average and clips.
CASES = {
    "grpo": ("grpo", "token", "token", "replies", 0.2, 0.2),
    "dr_grpo": ("dr_grpo", "token", "token", "constant", 0.2, 0.2),
    "dapo": ("dapo", "token", "token", "tokens", 0.2, 0.28),
    "bnpo": ("bnpo", "token", "token", "tokens", 0.2, 0.28),
    "gspo": ("grpo", "sequence", "reply", "replies", 3e-4, 4e-4),
    "gspo, wide": ("grpo", "sequence", "reply", "replies", 0.1, 0.3),
    "cispo": ("cispo", "token", "weight", "tokens", 1.0, 4.0),
    "cispo, narrow": ("cispo", "token", "weight", "tokens", 1.0, 0.1),
}


def numbers() -> tuple[torch.Tensor, ...]:
    """Return new, old and reference log-probabilities, and advantages, of tokens one after the other."""
    generator = torch.Generator().manual_seed(3)
    count = sum(LENGTHS)
    old = -3 * torch.rand(count, generator=generator)
    new = old + 0.8 * (2 * torch.rand(count, generator=generator) - 1)
    reference = old + 0.5 * torch.randn(count, generator=generator)
    return new, old, reference, torch.randn(len(LENGTHS), generator=generator)


def padded(values: torch.Tensor, fill: float = -1.5) -> torch.Tensor:
    """Return values as rows, each filled up to the longest."""
    return torch.nn.utils.rnn.pad_sequence(values.split(LENGTHS), batch_first=True, padding_value=fill)


def theirs(kind: str, level: str, clips: tuple[float, float], beta: float, delta: float | None) -> torch.Tensor:
    """Return TRL's loss and its gradient by the new log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    new, old, reference, advantages = numbers()
    new.requires_grad_()
    mask = padded(torch.ones(len(new)), 0.0)
    logprobs = padded(new)
    own = SimpleNamespace(
        loss_type=kind,
        importance_sampling_level=level,
        epsilon_low=clips[0],
        # Its CISPO has the bound itself, where all others have its distance from 1.
        epsilon_high=1 + clips[1] if kind == "cispo" else clips[1],
        beta=beta,
        off_policy_mask_threshold=delta,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        max_completion_length=LONGEST,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.int64),
        "completion_ids": torch.zeros_like(mask, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(reference),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(own, None, inputs)
    return loss, torch.autograd.grad(loss, new)[0]


def ours(ratio: str, mean: str, clips: tuple[float, float], beta: float, delta: float | None) -> torch.Tensor:
    """Return the same of our parts, put together as `Grpo` does."""
    new, old, reference, advantages = numbers()
    new.requires_grad_()
    replies = Replies.of(LENGTHS)
    advantages = advantages[replies.reply_M]
    ratio_M = ratios(new, old, replies, ratio)
    gained = gains(ratio, ratio_M, ratio_M.clamp(1 - clips[0], 1 + clips[1]), new, advantages)
    if delta is not None:
        gained = gained * on_policy(new, old, advantages, replies, delta)
    loss = -average(gained, replies, mean, LONGEST)
    if beta:  # with a reply's ratio TRL weighs the KL by that; `Grpo` stays with the token's, as V3.2 has it
        loss = loss + beta * average(unbiased_kl(ratio_M, new, reference), replies, mean, LONGEST)
    return loss, torch.autograd.grad(loss, new)[0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("delta", [None, 0.05])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name, delta, beta):
    kind, level, ratio, mean, low, high = CASES[name]
    expected, wanted = theirs(kind, level, (low, high), beta, delta)
    found, gradient = ours(ratio, mean, (low, high), beta, delta)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3 or (name == "gspo" and not beta), "its clips are narrow: all are at them"


def test_the_numbers_tell_the_cases_apart():
    """Or agreement would say little: clips bite, and a reply is masked."""
    found = {float(ours(r, m, (low, high), 0.0, None)[0].detach()) for _, _, r, m, low, high in CASES.values()}
    assert len(found) == len(CASES) - 1, "dapo and bnpo are one where nothing is accumulated"
    new, old, _, advantages = numbers()
    replies = Replies.of(LENGTHS)
    kept = on_policy(new, old, advantages[replies.reply_M], replies, 0.05)
    assert 0 < float(kept.mean()) < 1
