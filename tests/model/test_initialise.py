"""Initialisation: one standard deviation, norms at one, the same from the same seed."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer


def test_every_weight_is_drawn_once_and_norms_are_one(make_config):
    model = Transformer(make_config(q_lora_rank=6, initializer_range=0.02))
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    initialise(model, 0)
    norms = 0
    for name, parameter in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            continue
        assert bool(torch.isfinite(parameter).all()), name
        if parameter.ndim == 1:
            norms += 1
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif parameter.numel() > 500:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.15), name
            assert abs(float(parameter.mean())) < 0.003, name
    # Per layer: two norms, the query's and the latent's; the MTP layer has three more; one at the end.
    assert norms == 4 * 4 + 3 + 1
    assert all(float(layer.gate.e_score_correction_bias.abs().sum()) == 0 for layer in model.moe_layers)


def test_the_seed_decides(tiny_config):
    first, again, other = (initialise(Transformer(tiny_config), seed) for seed in (3, 3, 4))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name
