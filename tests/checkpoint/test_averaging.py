"""The mean of model folders: every tensor by the formula, and what is not alike refused before anything is written."""

from __future__ import annotations

import pytest
import torch

from leanseek.checkpoint.averaging import average_folders
from leanseek.checkpoint.convert import Conversion
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.errors import CheckpointError


@pytest.fixture
def folders(tmp_path, make_model, tiny_tokenizer):
    for seed in range(3):
        save_model(make_model(seed=seed), tmp_path / f"m{seed}", tiny_tokenizer)
    return [tmp_path / f"m{seed}" for seed in range(3)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_tensor_is_the_mean(folders, tmp_path, dtype):
    if dtype == "bf16":
        for folder in folders:
            Conversion(folder, folder.with_name(folder.name + "-bf16"), "bf16").run()
        folders = [folder.with_name(folder.name + "-bf16") for folder in folders]
    shares: list[float] = []
    average_folders(folders, tmp_path / "mean", shares.append)
    kind = "bfloat16" if dtype == "bf16" else "float32"
    mean = load_model(tmp_path / "mean", dtype=kind).state_dict()
    models = [load_model(folder, dtype=kind).state_dict() for folder in folders]
    for name, tensor in mean.items():
        stacked = torch.stack([model[name].double() for model in models]).mean(0)
        assert torch.equal(tensor, stacked.to(tensor.dtype)), name
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert (tmp_path / "mean" / "tokenizer.json").read_bytes() == (folders[-1] / "tokenizer.json").read_bytes()


def test_what_is_not_alike_is_refused(folders, tmp_path, make_model, tiny_tokenizer):
    out = tmp_path / "mean"
    save_model(make_model(num_hidden_layers=4), tmp_path / "deeper", tiny_tokenizer)
    with pytest.raises(CheckpointError, match="not alike: num_hidden_layers is 4 and 3"):
        average_folders([tmp_path / "deeper", folders[0]], out)
    Conversion(folders[0], tmp_path / "fp8", "fp8").run()
    with pytest.raises(CheckpointError, match=r"has FP8 weights.*--to bf16"):
        average_folders([tmp_path / "fp8", folders[0]], out)
    with pytest.raises(CheckpointError, match="m1 is not empty"):
        average_folders(folders, folders[1])
    assert not out.exists()
