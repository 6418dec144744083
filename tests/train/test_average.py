"""The mean of the weights: by formula, shown where it counts, and exact when a stage is gone on with."""

from __future__ import annotations

import pytest
import torch

from leanseek.errors import ConfigError
from leanseek.sections.training import TrainSettings
from leanseek.settings import load_recipe
from leanseek.train.average import Average, share_of_newest

from .test_trainer import STREAM, Diary, fit, same, trainer_of, weights


def test_shares_are_those_of_the_two_means():
    ema, even = TrainSettings(steps=100, ema=0.9), TrainSettings(steps=100, average_from=0.5)
    assert [share_of_newest(step, 100, ema) for step in (1, 8, 200)] == pytest.approx([9 / 11, 0.5, 0.1])
    assert [share_of_newest(step, 100, even) for step in (1, 50, 51, 52, 100)] == [1, 1, 1, 0.5, 1 / 50]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_even_mean_is_the_mean_and_shows_for_a_while(dtype):
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(3, 4, generator=generator).to(dtype) for _ in range(6)]
    weight = torch.zeros(3, 4, dtype=dtype)
    average = Average({"w": weight}, TrainSettings(steps=6, average_from=0.5))
    for step, values in enumerate(steps, 1):
        weight.copy_(values)
        average.update(step, 6)
    expected = torch.stack(steps[3:]).float().mean(0)
    # Three additions in fp32.
    torch.testing.assert_close(average.mean["w"], expected, rtol=1e-6, atol=1e-6)
    with average.shown():
        assert torch.equal(weight, average.mean["w"].to(dtype))
        assert torch.equal(average.state_dict()["weights"]["w"], steps[-1]), "what training goes on from"
    assert torch.equal(weight, steps[-1])
    average.settle()
    assert torch.equal(weight, average.mean["w"].to(dtype))


def test_training_goes_as_it_would_and_ends_with_the_mean(make_model):
    """The mean changes nothing on the way; it is what is validated, what a save sees, and what is left."""
    decay, seen, saved, raw = 0.5, [], [], []
    plain, averaged = trainer_of(make_model(), steps=4), trainer_of(make_model(), steps=4, ema=decay)
    expected = weights(plain.model)
    for step in range(4):
        plain.step(STREAM.batch(step))
        plain.done += 1
        raw.append(weights(plain.model))
        share = 1 - min(decay, (2 + step) / (11 + step))
        expected = [(1 - share) * mean + share * one for mean, one in zip(expected, raw[-1], strict=True)]

    def validate() -> dict[str, float]:
        seen.append(weights(averaged.model))
        return {"validation_loss": 1.0}

    def save(step, state):
        saved.append((weights(averaged.model), [one.clone() for one in state["average"]["weights"].values()]))

    fit(averaged, Diary().hooks(validate=validate, save=save))
    assert same(saved[-1][1], raw[-1]), "bit for bit what a stage without a mean learns"
    for found in (seen[-1], saved[-1][0], weights(averaged.model)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # the formula's own rounding in fp32


def test_two_means_are_refused():
    with pytest.raises(ConfigError, match="ema and average_from are two ways of one mean"):
        load_recipe("laptop", {"pretrain.ema": "0.999", "pretrain.average_from": "0.8"})
