"""Model folders: opened only when every tensor fits, saved whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanseek.checkpoint.directory import INDEX, WEIGHTS, load_model, save_model
from leanseek.errors import CheckpointError, ConfigError
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    save_model(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def same(a: Transformer, b: Transformer) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rewrite(folder: Path, change) -> None:
    """Let `change` edit the tensors of a folder in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("shape", [{}, {"q_lora_rank": 6, "num_nextn_predict_layers": 0}])
def test_what_is_saved_is_loaded_bit_by_bit(tmp_path, make_model, tiny_tokenizer, shape):
    model = make_model(**shape)
    save_model(model, tmp_path / "model", tiny_tokenizer)
    loaded = load_model(tmp_path / "model")
    assert same(loaded, model) and not loaded.training
    assert loaded.config.replace(extra={}) == model.config
    assert Tokenizer.load(tmp_path / "model").digest_text() == tiny_tokenizer.digest_text()
    save_model(loaded, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "model" / WEIGHTS).read_bytes()
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_files_name_tensors_as_deepseek_does(folder):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / WEIGHTS).items()}
    assert shapes["model.layers.1.mlp.experts.7.gate_proj.weight"] == (16, 32)
    assert shapes["model.layers.1.mlp.experts.0.down_proj.weight"] == (32, 16)
    assert shapes["model.layers.3.embed_tokens.weight"] == shapes["model.layers.3.shared_head.head.weight"] == (320, 32)
    assert shapes["model.layers.2.mlp.gate.e_score_correction_bias"] == (8,)
    assert not any("gate_up_proj" in name for name in shapes)


def test_shards_with_an_index_load_too(folder, tiny_model):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors")
    (folder / WEIGHTS).unlink()
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert same(load_model(folder), tiny_model)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: there is no such file"):
        load_model(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"a": "../model.safetensors"}}']
)
def test_an_index_that_is_none_is_refused(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        load_model(folder)


def test_copies_of_embedding_and_head_are_not_needed(folder, tiny_model):
    def drop(tensors) -> None:
        del tensors["model.layers.3.embed_tokens.weight"], tensors["model.layers.3.shared_head.head.weight"]

    rewrite(folder, drop)
    assert same(load_model(folder), tiny_model)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"):
        load_model(folder)


def test_a_tensor_too_many_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.9.oddity": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"has 1 tensors that the model does not, model\.layers\.9\.oddity"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[5\], the model needs \[32\]"):
        load_model(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_told(folder, share):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged or was cut short"):
        load_model(folder)


def test_folders_devices_and_dtypes_that_are_not_there_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="dtype = 'float16': accepted are float32, bfloat16"):
        load_model(folder, dtype="float16")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(folder)


def test_weights_are_read_in_the_dtype_asked_for_and_the_router_bias_stays_fp32(folder, tiny_model):
    low = load_model(folder, dtype="bfloat16")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(low.moe_layers, tiny_model.moe_layers, strict=True):
        assert torch.equal(ours.gate.e_score_correction_bias, theirs.gate.e_score_correction_bias)


def test_a_save_that_fails_leaves_the_old_folder(folder, tiny_model, make_model, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"cannot be saved \(disk full\); what was there before is untouched"):
        save_model(make_model(seed=5), folder)
    monkeypatch.undo()
    assert same(load_model(folder), tiny_model) and [p.name for p in folder.parent.iterdir()] == ["model"]
