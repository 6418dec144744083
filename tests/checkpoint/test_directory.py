"""Model folders: opened only when every tensor fits, saved whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from leanseek.checkpoint import writer
from leanseek.checkpoint.directory import empty_model, load_model, save_model
from leanseek.checkpoint.quantised import is_quantised, quantise_blocks
from leanseek.checkpoint.shards import INDEX, WEIGHTS
from leanseek.errors import CheckpointError, ConfigError
from leanseek.model.config import ModelConfig
from leanseek.model.initialise import initialise
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


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_folder_with_any_bytes_changed_loads_or_is_refused(folder, data):
    """Numbers may change unnoticed; anything else is a CheckpointError, and nothing else."""
    path = folder / WEIGHTS
    whole = path.with_name("whole")
    if not whole.exists():
        path.rename(whole)
    content = bytearray(whole.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from((len(content), len(content) - 1, header)))])
    try:
        load_model(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)


# Wider than a block, and not by whole blocks.
WIDE = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 136, "n_routed_experts": 3}


def to_fp8(folder: Path, scale_fmt: str | None = None) -> dict[str, torch.Tensor]:
    """Make a folder's files FP8 as DeepSeek has them; return the weights that they stand for, by numpy."""
    meant = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            if is_quantised(name):
                tensors[name], scale = quantise_blocks(tensor, scale_fmt=scale_fmt)
                tensors[f"{name}_scale_inv"] = scale
                bits = tensors[name].view(torch.uint8).numpy().astype(np.int32)
                exponent, mantissa = (bits >> 3) & 15, bits & 7
                size = np.where(exponent > 0, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
                plain = np.where(bits > 127, -size, size).astype(np.float32)
                for row in range(0, plain.shape[0], 128):
                    for column in range(0, plain.shape[1], 128):
                        plain[row : row + 128, column : column + 128] *= scale[row // 128, column // 128].item()
                meant[name] = torch.from_numpy(plain)
            else:
                meant[name] = tensor
                if not name.endswith("e_score_correction_bias"):
                    tensors[name] = tensor.bfloat16()
                    meant[name] = tensors[name].float()

    rewrite(folder, change)
    return meant


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_fp8_files_are_read_as_numpy_reads_them(tmp_path, make_model, scale_fmt):
    save_model(make_model(**WIDE), tmp_path / "fp8")
    meant = to_fp8(tmp_path / "fp8", scale_fmt)
    assert sum(name.endswith("_scale_inv") for name in load_file(tmp_path / "fp8" / WEIGHTS)) > 30
    loaded = load_model(tmp_path / "fp8")
    save_model(loaded, tmp_path / "plain")
    found = load_file(tmp_path / "plain" / WEIGHTS)
    assert found.keys() == meant.keys()
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], meant[name]) for name in meant)
    low = load_model(tmp_path / "fp8", dtype="bfloat16")
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(low.parameters(), loaded.parameters(), strict=True))


def test_a_model_read_from_fp8_is_saved_as_what_it_is(tmp_path, make_model):
    save_model(make_model(**WIDE), tmp_path / "fp8")
    to_fp8(tmp_path / "fp8")
    path = tmp_path / "fp8" / "config.json"
    form = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": form, "dtype": "bfloat16"}))
    save_model(load_model(tmp_path / "fp8"), tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == config["dtype"] == "float32"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="quant_method = 'awq'"):
        load_model(tmp_path / "fp8")


PROJECTION = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(f"{PROJECTION}_scale_inv"), rf"{PROJECTION} is F8_E4M3, but its scale .* is missing"),
        (lambda t: t.pop(PROJECTION), rf"{PROJECTION}_scale_inv is the scale of a weight that is not there"),
        (lambda t: t[f"{PROJECTION}_scale_inv"].fill_(float("nan")), rf"{PROJECTION}_scale_inv has the scale nan"),
        (lambda t: t.update({f"{PROJECTION}_scale_inv": torch.ones(9, 1)}), r"has shape \[9, 1\]"),
        (lambda t: t.update({PROJECTION: t[PROJECTION].float()}), rf"{PROJECTION} is F32 and has a scale"),
        (lambda t: t.update({"model.norm.weight": torch.ones(160).to(torch.float8_e5m2)}), "norm.weight is F8_E5M2"),
        (lambda t: t.update({"model.norm.weight": torch.ones(160).int()}), "norm.weight is I32; accepted are F32"),
        (
            lambda t: t.update(
                {"model.lost.weight": t[PROJECTION].clone(), "model.lost.weight_scale_inv": torch.ones(2, 1)}
            ),
            "has 2 tensors that the model does not, model.lost.weight",
        ),
    ],
)
def test_fp8_files_with_a_flaw_are_refused(tmp_path, make_model, change, reason):
    save_model(make_model(**WIDE), tmp_path / "fp8")
    to_fp8(tmp_path / "fp8")
    rewrite(tmp_path / "fp8", change)
    with pytest.raises(CheckpointError, match=reason):
        load_model(tmp_path / "fp8")


def test_names_nearly_right_are_told_with_the_right_ones(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.wieght": tensors.pop("model.norm.weight")}))
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors, model\.norm\.weight; did you mean model\.norm\.wieght"
    ):
        load_model(folder)


def test_tensors_that_say_nothing_new_are_passed_over(folder, tiny_model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    assert same(load_model(folder), tiny_model)


def test_an_mtp_layer_that_config_does_not_have_is_unexpected(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match=r"tensors that the model does not, model\.layers\.3\."):
        load_model(folder)


def test_halves_and_doubles_are_read_too(folder, tiny_model):
    wide = {"model.norm.weight": torch.float64, "lm_head.weight": torch.float16}
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(kind) for name, kind in wide.items()}))
    loaded = load_model(folder)
    assert torch.equal(loaded.model.norm.weight, tiny_model.model.norm.weight)
    assert torch.equal(loaded.lm_head.weight, tiny_model.lm_head.weight.half().float())


def test_a_large_model_is_saved_in_shards_that_load(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "sharded", tiny_tokenizer, max_shard_bytes=40_000)
    save_model(tiny_model, tmp_path / "whole")
    index = json.loads((tmp_path / "sharded" / INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 3 and files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    tensors = {}
    for name in files:
        held = load_file(tmp_path / "sharded" / name)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 40_000
        tensors |= held
    whole = load_file(tmp_path / "whole" / WEIGHTS)
    assert tensors.keys() == whole.keys() and all(torch.equal(tensors[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert same(load_model(tmp_path / "sharded"), tiny_model)
    save_model(tiny_model, tmp_path / "sharded")  # one file again, and nothing of the shards is left
    assert [path.name for path in (tmp_path / "sharded").glob("*.safetensors*")] == [WEIGHTS]
    with pytest.raises(ConfigError, match="max_shard_bytes = 0"):
        save_model(tiny_model, tmp_path / "none", max_shard_bytes=0)
    assert not (tmp_path / "none").exists()


def test_saving_copies_one_tensor_at_a_time(tmp_path, tiny_model, monkeypatch):
    sizes = []

    def noted(self, name, data) -> None:
        sizes.append(memoryview(data).nbytes)
        append(self, name, data)

    append = writer.ShardWriter.append
    monkeypatch.setattr(writer.ShardWriter, "append", noted)
    save_model(tiny_model, tmp_path / "model")
    assert len(sizes) > 50 and max(sizes) == tiny_model.lm_head.weight.nbytes


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_folders_that_transformers_saved_in_shards_load_and_ours_there(tmp_path, make_model, kind):
    model = make_model(num_nextn_predict_layers=0, q_lora_rank=6)
    save_model(model, tmp_path / "ours", max_shard_bytes=40_000)  # and ours load there
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=getattr(torch, kind))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    loaded = load_model(tmp_path / "theirs", dtype=kind)
    expected = load_model(tmp_path / "ours", dtype=kind)
    assert same(loaded, expected)


MEASURE = """
import sys
from pathlib import Path
import torch
from leanseek.checkpoint.directory import load_model
def memory(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) * 1024
torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmHWM")
model = load_model(sys.argv[1], dtype=sys.argv[2])
print(memory("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""
SHAPE = {"vocab_size": 1000, "intermediate_size": 1024, "n_routed_experts": 16, "num_attention_heads": 4}


def peak_over_weights(folder: Path, dtype: str) -> float:
    """Return the memory that loading takes at most in a process of its own, over that of the weights."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype], capture_output=True, text=True, timeout=100, check=True
    )
    peak, weights = map(int, done.stdout.split())
    return peak / weights


def write_random(folder: Path, config: ModelConfig, *, fp8: bool = False) -> None:
    save_model(initialise(empty_model(config), 0), folder, max_shard_bytes=10**9 if fp8 else 50_000_000)
    if fp8:
        tensors = load_file(folder / WEIGHTS)
        for name in [name for name in tensors if is_quantised(name)]:
            tensors[name], tensors[f"{name}_scale_inv"] = quantise_blocks(tensors[name])
        save_file(tensors, folder / WEIGHTS)


def test_loading_needs_little_more_than_the_weights(tmp_path, make_config):
    write_random(tmp_path / "model", make_config(**SHAPE, hidden_size=256, moe_intermediate_size=512))
    assert 60e6 < sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")) < 120e6
    # A few MB beside the weights; of a small model they are more than a tenth.
    assert peak_over_weights(tmp_path / "model", "float32") < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fp8", [False, True])
def test_loading_a_larger_model_needs_a_tenth_more_than_the_weights(tmp_path, make_config, dtype, fp8):
    width = 640 if dtype == "float32" else 1280  # about 200 MB of weights in memory
    write_random(tmp_path / "model", make_config(**SHAPE, hidden_size=512, moe_intermediate_size=width), fp8=fp8)
    assert peak_over_weights(tmp_path / "model", dtype) < 1.1
