"""The training state beside a checkpoint: what goes in comes out, and damage is told."""

from __future__ import annotations

import pytest
import torch

from leanseek.checkpoint.directory import load_model
from leanseek.checkpoint.resume import FOLDER, TENSORS, VALUES, load_state, save_checkpoint
from leanseek.errors import CheckpointError
from leanseek.sections.training import OptimiserSettings
from leanseek.train.optimisers import Optimiser


def test_nested_states_come_back(tmp_path, tiny_model):
    weights = torch.arange(4.0)
    state = {"done": 7, "note": None, "optimiser": {"steps": 3, "first": {"a.b": weights}, "flags": [1, True]}}
    save_checkpoint(tmp_path / "pretrain-7", tiny_model, None, state)
    loaded = load_state(tmp_path / "pretrain-7")
    assert torch.equal(loaded["optimiser"].pop("first")["a.b"], weights)
    assert loaded == {"done": 7, "note": None, "optimiser": {"steps": 3, "flags": [1, True]}}
    assert torch.equal(load_model(tmp_path / "pretrain-7").lm_head.weight, tiny_model.lm_head.weight)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_an_optimiser_goes_on_from_a_checkpoint(tmp_path, make_model, name):
    """Saved, loaded and stepped is bit by bit what stepping on gives."""
    whole = make_model()
    optimiser = Optimiser(whole, OptimiserSettings(name=name))

    def step(model, steps) -> None:
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(100 * steps.steps + i)
            )
        steps.step(1.0)

    for _ in range(2):
        step(whole, optimiser)
    save_checkpoint(tmp_path / "sft-2", whole, None, {"optimiser": optimiser.state_dict()})
    resumed = load_model(tmp_path / "sft-2")
    other = Optimiser(resumed, OptimiserSettings(name=name))
    other.load_state_dict(load_state(tmp_path / "sft-2")["optimiser"])
    for _ in range(2):
        step(whole, optimiser)
        step(resumed, other)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_missing_or_damaged_state_is_told(tmp_path, tiny_model):
    save_checkpoint(tmp_path / "a-1", tiny_model, None, {"done": 1, "x": torch.ones(2)})
    for name in (VALUES, TENSORS):
        path = tmp_path / "a-1" / FOLDER / name
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(CheckpointError, match="missing or damaged"):
            load_state(tmp_path / "a-1")
        path.unlink()
        with pytest.raises(CheckpointError, match="missing or damaged"):
            load_state(tmp_path / "a-1")
        path.write_bytes(kept)
    assert load_state(tmp_path / "a-1")["done"] == 1
