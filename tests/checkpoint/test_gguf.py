"""GGUF files: read back by the gguf package, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from leanseek.checkpoint.directory import save_model
from leanseek.checkpoint.gguf import pieces, write_gguf
from leanseek.checkpoint.names import entries
from leanseek.cli.app import main
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, UsageError
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
# Widths that blocks of 32 divide; few layers would be enough, but llama.cpp knows V2-Lite by their number.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "kv_lora_rank": 32, "v_head_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "v3": {**WIDE, "q_lora_rank": 32, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "v3, yarn": {**WIDE, "q_lora_rank": 32, "rope_scaling": YARN, "routed_scaling_factor": 2.5},
    "v2 lite": {
        **WIDE,
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "num_nextn_predict_layers": 0,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        # llama.cpp rounds activations to fp16. 27 layers of livelier random weights let near ties of its router fall
        # otherwise (2% of the logits' norm at 0.1, 0.07% here); trained ones are not so close to ties.
        "initializer_range": 0.05,
    },
}


def file_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    return {entry.name: entry.target.detach() for entry in entries(model) if not entry.copy}


def write(model: Transformer, tokenizer, folder: Path, kind: str) -> Path:
    tokenizer.save(folder)
    tensors = file_tensors(model)
    write_gguf(folder / "model.gguf", model.config, tensors.__getitem__, folder, kind)
    return folder / "model.gguf"


def field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.13)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_comes_back(tmp_path, make_model, tiny_tokenizer, shape, kind, error):
    model = make_model(**SHAPES[shape])
    reader = GGUFReader(write(model, tiny_tokenizer, tmp_path, kind))
    found = {t.name: t for t in reader.tensors}
    plan = {piece.name: piece for piece in pieces(model.config)}
    assert found.keys() == plan.keys()
    mtp = f"model.layers.{model.config.num_hidden_layers}."
    files = {name: tensor for name, tensor in file_tensors(model).items() if not name.startswith(mtp)}
    assert {source for piece in plan.values() for source in piece.sources} == files.keys()
    config = model.config
    for name, piece in plan.items():
        got = torch.from_numpy(np.array(dequantize(found[name].data, found[name].tensor_type), dtype=np.float32))
        assert tuple(got.shape) == piece.shape, name
        expected = torch.stack([files[source] for source in piece.sources]).squeeze(0)
        if piece.part is not None:
            split = (config.qk_nope_head_dim, config.v_head_dim)
            keys, values = expected.view(config.num_attention_heads, sum(split), -1).split(split, dim=1)
            expected = keys.transpose(1, 2) if piece.part == "k" else values
        assert float((got - expected).norm() / expected.norm()) < error, name
        if len(piece.shape) == 1 or "gate_inp" in name:
            assert torch.equal(got, expected)


def test_what_llama_cpp_must_know_is_in_the_header(tmp_path, make_model, tiny_tokenizer):
    model = make_model(**SHAPES["v3, yarn"], norm_topk_prob=True)
    reader = GGUFReader(write(model, tiny_tokenizer, tmp_path, "f16"))
    config = model.config
    assert field(reader, "general.architecture") == "deepseek2"
    expected = {
        "block_count": 3,
        "attention.key_length": config.cache_width,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.head_count_kv": 1,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "leading_dense_block_count": 1,
    }
    for name, value in expected.items():
        assert field(reader, f"deepseek2.{name}") == value, name
    assert field(reader, "deepseek2.rope.scaling.yarn_log_multiplier") == pytest.approx(0.1)
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == config.vocab_size and tokens[tiny_tokenizer.eos_id] == "<｜end▁of▁sentence｜>"
    assert field(reader, "tokenizer.ggml.pre") == "deepseek-v3"
    assert "<｜User｜>" in field(reader, "tokenizer.chat_template")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3", "num_nextn_predict_layers": 0}, "'qwen3' has no GGUF export"),
        ({"q_lora_rank": None}, "only if they have 26 or 27 layers"),
        ({"q_lora_rank": 6, "n_shared_experts": 0}, "needs a shared expert"),
        (
            {
                "model_type": "deepseek_v2",
                "q_lora_rank": 6,
                "num_nextn_predict_layers": 0,
                "n_group": 2,
                "topk_method": "group_limited_greedy",
            },
            "another function",
        ),
    ],
)
def test_what_llama_cpp_would_run_as_something_else_is_refused(make_config, changes, message):
    with pytest.raises(UsageError, match=message):
        list(pieces(make_config(**changes)))


def test_a_failure_leaves_no_file_and_the_old_one_whole(tmp_path, make_model, tiny_tokenizer):
    model = make_model(**SHAPES["v3"])
    path = write(model, tiny_tokenizer, tmp_path, "f16")
    before = path.read_bytes()

    def broken(name: str) -> torch.Tensor:
        raise CheckpointError(f"{name} is damaged")

    with pytest.raises(CheckpointError, match="is damaged"):
        write_gguf(path, model.config, broken, tmp_path, "q8_0")
    assert path.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]
    with pytest.raises(UsageError, match="'q8' is not known; did you mean q8_0"):
        write_gguf(path, model.config, broken, tmp_path, "q8")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"vocab": 3, "merges": []}}', '{"model": {}}'])
def test_a_tokenizer_that_is_none_is_named(tmp_path, make_model, content):
    model = make_model(**SHAPES["v3"])
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        write_gguf(tmp_path / "model.gguf", model.config, file_tensors(model).__getitem__, tmp_path, "f16")


def test_other_splits_have_no_name_there(tmp_path, make_model, tiny_tokenizer):
    model = make_model(**SHAPES["v3"])
    tiny_tokenizer.save(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "x"
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="splits are not DeepSeek's"):
        write_gguf(tmp_path / "model.gguf", model.config, file_tensors(model).__getitem__, tmp_path, "f16")


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_a_folder_is_converted_from_the_command_line(tmp_path, make_model, tiny_tokenizer, capsys, kind):
    model = make_model(**SHAPES["v3"])
    save_model(model, tmp_path / "model", tiny_tokenizer)
    out = tmp_path / "new" / "model.gguf"
    command = ["convert", str(tmp_path / "model"), str(out), "--to", "gguf", "--gguf-type", kind]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{out}: gguf, ")
    reader = GGUFReader(out)
    assert {t.name for t in reader.tensors} == {piece.name for piece in pieces(model.config)}
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "x"), "--to", "fp8", "--gguf-type", "q8_0"]) == 2


def test_fp8_files_are_read_too(tmp_path, make_model, tiny_tokenizer):
    model = make_model(**SHAPES["v3"])
    save_model(model, tmp_path / "model", tiny_tokenizer)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "fp8"), "--to", "fp8"]) == 0
    assert main(["convert", str(tmp_path / "fp8"), str(tmp_path / "model.gguf"), "--to", "gguf"]) == 0
    found = {t.name: t for t in GGUFReader(tmp_path / "model.gguf").tensors}
    got = torch.from_numpy(np.array(found["blk.1.attn_output.weight"].data, dtype=np.float32))
    expected = model.model.layers[1].self_attn.o_proj.weight.detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_says_the_same_32_greedy_tokens(tmp_path, make_model, tiny_tokenizer, shape):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from its source package")
    model = make_model(seed=2, **SHAPES[shape])
    prompt = [5, 17, 99, 203, 64, 31, 7, 150]
    params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
    # fp16 is what the file holds: round first, so that both sides have the same weights.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gate.weight"):
                parameter.copy_(parameter.half().float())
    expected = Engine(model).generate([prompt], params)[0].token_ids
    path = write(model, tiny_tokenizer, tmp_path, "f16")
    theirs = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    theirs.eval(prompt)
    with torch.no_grad():
        wanted = model.logits(model(torch.tensor(prompt), Segments.single(len(prompt))))
    logits = torch.tensor(np.array(theirs.scores[: len(prompt)]))
    assert float((logits - wanted).norm() / wanted.norm()) < 5e-3
    got = []
    for token in theirs.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        got.append(token)
        if len(got) == 32:
            break
    assert got == expected
