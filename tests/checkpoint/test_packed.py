"""Packed folders: what they hold is what packing gives, they are mapped, and they answer nearly as the plain ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from leanseek.checkpoint import packed as module
from leanseek.checkpoint.convert import Conversion
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.packed import (
    FORMS,
    PackedConversion,
    load_packed,
    open_model,
    packed_bytes,
    random_packed,
)
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, ConfigError, UsageError
from leanseek.kernels.packed import pack, unpack
from leanseek.model.segments import Segments

TOKENS = torch.arange(20) % 300


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "leanseek" / "packed"


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_model, tiny_tokenizer) -> Path:
    """A plain folder: never change it."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    save_model(make_model(), folder, tiny_tokenizer)
    return folder


def logits(model):
    with torch.inference_mode():
        return model.logits(model(TOKENS, Segments.single(len(TOKENS))))


def error(model, plain) -> float:
    """Return the median token's relative error: a token near whose choice of experts there is a tie may jump."""
    found, wanted = logits(model), logits(plain)
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


@pytest.mark.parametrize(("form", "most"), [("int8", 0.04), ("int4", 0.4)])
def test_a_packed_folder_answers_nearly_as_the_plain_one(source, tmp_path, form, most):
    PackedConversion(source, tmp_path / "packed", form).run()
    model, plain = load_packed(tmp_path / "packed", form), load_model(source)
    assert error(model, plain) < most
    query = model.model.layers[0].self_attn.q_proj.packed
    assert torch.equal(unpack(query), unpack(pack(plain.model.layers[0].self_attn.q_proj.weight, FORMS[form])))
    gate_up, down = model.model.layers[1].mlp.experts.packed
    both = plain.model.layers[1].mlp.experts.gate_up_proj
    halves = [unpack(pack(half, FORMS[form])) for half in both[5].chunk(2)]
    assert torch.equal(unpack(gate_up)[5], torch.cat(halves))
    assert torch.equal(unpack(down)[3], unpack(pack(plain.model.layers[1].mlp.experts.down_proj[3], FORMS[form])))
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "leanseek-packed", "layout": 3, "bits": FORMS[form]}
    assert (tmp_path / "packed" / "tokenizer.json").is_file()
    size = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.safetensors"))
    assert packed_bytes(plain.config, form) <= size < packed_bytes(plain.config, form) + 50_000


def test_shards_make_no_difference_and_neither_does_a_break(source, tmp_path, monkeypatch):
    PackedConversion(source, tmp_path / "whole", "int4").run()
    work = PackedConversion(source, tmp_path / "packed", "int4", max_shard_bytes=20_000)
    calls = []

    def stop(count, kept):
        calls.append(count)
        if len(calls) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(stop)
    assert not (tmp_path / "packed").exists()
    kept = []
    PackedConversion(source, tmp_path / "packed", "int4", max_shard_bytes=20_000).run(lambda n, was: kept.append(was))
    assert any(kept) and len(list((tmp_path / "packed").glob("*.safetensors"))) > 3
    whole, again = (load_packed(tmp_path / name, "int4") for name in ("whole", "packed"))
    assert torch.equal(logits(whole), logits(again))


def test_plain_and_fp8_folders_are_packed_once_into_the_cache(source, tmp_path, cache):
    shares = []
    first = load_packed(source, "int8", progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10
    (made,) = cache.iterdir()
    before = made.stat().st_ino
    again = load_packed(source, "int8", progress=shares.clear() or shares.append)
    assert shares == [1.0] and made.stat().st_ino == before
    assert torch.equal(logits(first), logits(again))
    os.utime(source / "config.json", ns=(1, 1))  # other files: made anew, and the old one goes
    load_packed(source, "int8")
    (anew,) = cache.iterdir()
    assert anew.name != made.name
    Conversion(source, tmp_path / "fp8", "fp8").run()
    assert error(load_packed(tmp_path / "fp8", "int8"), load_model(tmp_path / "fp8")) < 0.04
    assert len(list(cache.iterdir())) == 2


def test_a_tied_head_is_packed_beside_its_embedding(tmp_path, make_model):
    plain = make_model(model_type="qwen3", num_nextn_predict_layers=0, head_dim=8, tie_word_embeddings=True)
    save_model(plain, tmp_path / "tied")
    assert error(load_packed(tmp_path / "tied", "int8"), plain) < 0.04


def test_an_engine_serves_packed_weights(source, tmp_path):
    prompts = [[1, 5, 9], [1, 7, 7, 7, 3]]
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
    engine = Engine.load(source, weights="int8")
    together = engine.generate(prompts, params)
    assert all(len(one.token_ids) >= 1 and all(x <= 0 for x in one.logprobs) for one in together)
    alone = [engine.generate([prompt], params)[0] for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    other = Engine.load(source, weights="int4")  # two engines in one process
    assert other.generate(prompts, params)[0].token_ids
    assert [one.token_ids for one in engine.generate(prompts, params)] == [one.token_ids for one in together]


def test_what_cannot_be_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="weights = 'int5' is not known; did you mean"):
        open_model(source, "int5")
    with pytest.raises(ConfigError, match="for device = 'cpu'"):
        open_model(source, "int4", device="cuda")
    with pytest.raises(UsageError, match="give another"):
        PackedConversion(source, source, "int4")
    PackedConversion(source, tmp_path / "packed", "int4").run()
    with pytest.raises(CheckpointError, match="not empty"):
        PackedConversion(source, tmp_path / "packed", "int4")
    with pytest.raises(CheckpointError, match="is packed as int4: ask for int4"):
        load_packed(tmp_path / "packed", "int8")
    with pytest.raises(CheckpointError, match="--weights int4"):
        open_model(tmp_path / "packed", "fp32")
    with pytest.raises(CheckpointError, match="quant_method = 'leanseek-packed'"):
        load_model(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="quant_method = 'leanseek-packed'"):
        PackedConversion(tmp_path / "packed", tmp_path / "again", "int4")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layout"] = 99
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"packed with layout 99.*convert the plain folder again"):
        load_packed(tmp_path / "packed", "int4")


def test_weights_that_are_not_finite_are_refused(tmp_path, make_model, cache):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3, 4] = float("nan")
    save_model(model, tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"experts\.2\.down_proj\.weight cannot be packed"):
        load_packed(tmp_path / "broken", "int4")
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]


def test_a_damaged_packed_folder_is_refused(source, tmp_path, monkeypatch):
    PackedConversion(source, tmp_path / "packed", "int4").run()
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_size": 48}))
    with pytest.raises(CheckpointError, match="is needed"):
        load_packed(tmp_path / "packed", "int4")


@pytest.mark.parametrize("form", FORMS)
def test_random_weights_give_numbers_of_a_usual_size(form, tiny_config):
    model = random_packed(tiny_config, form)
    found = logits(model)
    assert found.isfinite().all() and 1e-4 < float(found.std()) < 100
    assert module.packed_bytes(tiny_config, form) > 0
