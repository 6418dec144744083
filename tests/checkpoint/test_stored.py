"""Stored folders: bf16 and FP8 weights stay in their files, and the model answers as the fp32 one of these numbers."""

from __future__ import annotations

import pytest
import torch

from leanseek.checkpoint.convert import Conversion
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.packed import open_model
from leanseek.checkpoint.stored import load_stored, mapped_bytes
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, ConfigError
from leanseek.kernels import native
from leanseek.model.segments import Segments

TOKENS = torch.arange(20) % 300
V32 = {"model_type": "deepseek_v32", "q_lora_rank": 24, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
QWEN = {"model_type": "qwen3", "num_nextn_predict_layers": 0, "head_dim": 8, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, tiny_tokenizer):
    """The same weights as fp32, bf16 and FP8 folders: never change them."""
    root = tmp_path_factory.mktemp("folders")
    save_model(make_model(), root / "fp32", tiny_tokenizer)
    for form in ("bf16", "fp8"):
        Conversion(root / "fp32", root / form, form).run()
    return root


def logits(model):
    with torch.inference_mode():
        return model.logits(model(TOKENS, Segments.single(len(TOKENS))))


def error(model, plain):
    """Return the median token's relative error: a token near whose choice of experts there is a tie may jump."""
    found, wanted = logits(model), logits(plain)
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_it_answers_as_the_fp32_model_of_the_same_numbers(folders, form):
    model, plain = load_stored(folders / form, form), load_model(folders / form)
    # Latents are rounded to bf16, as the cache keeps them, and so is what is attended to.
    assert error(model, plain) < 0.01
    head, experts = model.lm_head.stored, model.model.layers[1].mlp.experts.stored
    assert torch.equal(head.plain(), plain.lm_head.weight)
    down = plain.model.layers[1].mlp.experts.down_proj
    assert torch.equal(experts.downs[3].plain(), down[3])
    wanted = torch.bfloat16 if form == "bf16" else torch.float8_e4m3fn
    assert experts.downs[3].numbers.dtype == wanted and head.numbers.dtype == torch.bfloat16
    assert mapped_bytes(model) < sum(path.stat().st_size for path in (folders / form).glob("*.safetensors"))


def test_other_folders_become_bf16(folders):
    for form in ("fp32", "fp8"):
        model, plain = load_stored(folders / form, "bf16"), load_model(folders / form)
        assert model.model.layers[1].mlp.experts.stored.gates[0].numbers.dtype == torch.bfloat16
        assert error(model, plain) < 0.02  # rounded once


@pytest.mark.parametrize("changes", [V32, QWEN], ids=["v32", "qwen3"])
def test_other_families_answer_too(tmp_path, make_model, changes):
    save_model(make_model(**changes), tmp_path / "plain")
    Conversion(tmp_path / "plain", tmp_path / "bf16", "bf16").run()
    assert error(load_stored(tmp_path / "bf16", "bf16"), load_model(tmp_path / "bf16")) < 0.02


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_an_engine_gives_the_same_in_any_company(folders, form):
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    prompts = [[1, 5, 9], [1, 7, 7, 7, 3], list(range(2, 42))]
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
    engine = Engine(open_model(folders / form, form), max_batch=3, invariant=True)
    together = engine.generate(prompts, params)
    alone = [engine.generate([prompt], params)[0] for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.logprobs for one in together] == [one.logprobs for one in alone]


def test_what_cannot_be_is_refused(folders):
    with pytest.raises(CheckpointError, match="has no FP8 weights; make some with `leanseek convert"):
        open_model(folders / "bf16", "fp8")
    with pytest.raises(ConfigError, match="for device = 'cpu'"):
        open_model(folders / "fp8", "fp8", device="cuda")
