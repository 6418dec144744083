"""The same as transformers: a saved folder gives its logits, ids and prompts, and its folders load here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from leanseek.checkpoint.directory import load_model, save_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.messages import Message
from leanseek.model.config import ModelConfig
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import EOS, Tokenizer

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
LLAMA = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
V2 = {"model_type": "deepseek_v2", "num_nextn_predict_layers": 0, "n_shared_experts": 2, "norm_topk_prob": False}
# Fewer tokens are kept than the texts have; so many heads that hardly any two scores are equal.
V32 = {"model_type": "deepseek_v32", "q_lora_rank": 10, "index_n_heads": 16, "index_head_dim": 6, "index_topk": 7}
STUDENT = {"num_nextn_predict_layers": 0, "num_attention_heads": 4, "num_key_value_heads": 2}
# Their plainest experts: the others refuse odd widths.
EXPERTS = {"experts_implementation": "eager"}
SHAPES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3, query latent": {"q_lora_rank": 6},
    "v3, groups": {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "num_experts_per_tok": 3},
    "v3, all dense": {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    "v3, all experts": {"first_k_dense_replace": 0, "n_shared_experts": 2},
    "v3, yarn": {"rope_scaling": YARN},
    "v3, yarn without mscale": {"rope_scaling": {k: v for k, v in YARN.items() if "mscale" not in k}},
    "v3, no mtp": {"num_nextn_predict_layers": 0, "norm_topk_prob": False},
    "v3, everything": {
        "q_lora_rank": 10,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 2,
        "rope_scaling": YARN,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-5,
    },
    "v3, odd sizes": {"hidden_size": 27, "kv_lora_rank": 11, "v_head_dim": 7, "num_attention_heads": 3},
    "v2 lite": V2,
    "v2 lite, yarn": {**V2, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "v2": {
        **V2,
        "q_lora_rank": 6,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 16.0,
        "rope_scaling": YARN,
        "first_k_dense_replace": 0,
    },
    "v3.2": V32,
    "v3.2, everything": {**V32, "n_group": 2, "topk_group": 1, "rope_scaling": YARN, "num_nextn_predict_layers": 0},
    "v3.2, all kept": {**V32, "index_topk": 200},
    "qwen 3": {**STUDENT, "model_type": "qwen3", "head_dim": 10},
    "qwen 3, tied": {**STUDENT, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen 2": {**STUDENT, "model_type": "qwen2", "bos_token_id": None, "eos_token_id": [1, 2]},
    "llama": {**STUDENT, "model_type": "llama"},
    "llama, stretched": {**STUDENT, "model_type": "llama", "rope_scaling": LLAMA, "attention_bias": True},
}


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Collect what transformers says while it loads."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    transformers_logging.add_handler(listener)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    yield said
    transformers_logging.set_verbosity(before)
    transformers_logging.remove_handler(listener)


def texts(rows: int = 3, tokens: int = 50) -> torch.Tensor:
    return torch.randint(3, 320, (rows, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(model: Transformer, tokens_ST: torch.Tensor) -> torch.Tensor:
    rows, length = tokens_ST.shape
    return model.logits(model(tokens_ST.reshape(-1), Segments.packed([length] * rows))).view(rows, length, -1)


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert float((a - b).norm() / b.norm()) < 2e-5
    assert float((a - b).abs().max()) < 2e-4 * float(b.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_saved_model_has_the_same_logits_in_transformers(tmp_path, make_model, complaints, shape):
    model = make_model(seed=len(shape), **SHAPES[shape])
    save_model(model, tmp_path / "model")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True, **EXPERTS
    )
    assert [type(theirs).__name__] == model.config.to_dict()["architectures"]
    assert not report["missing_keys"] and not report["mismatched_keys"]
    mtp = f"model.layers.{model.config.num_hidden_layers}."
    assert all(key.startswith(mtp) for key in report["unexpected_keys"])
    assert bool(report["unexpected_keys"]) <= bool(model.config.num_nextn_predict_layers)
    assert not [text for text in complaints if mtp not in text], complaints
    assert_close(ours(model, texts()), theirs(texts()).logits)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_64_greedy_tokens_over_the_cache_are_the_same(tmp_path, make_model, shape):
    model = make_model(seed=1, initializer_range=0.4, **SHAPES[shape])
    save_model(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, **EXPERTS)
    prompts = texts(2, 9)
    whole = theirs.generate(prompts, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=2)
    params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
    got = Engine(model).generate(prompts.tolist(), params)
    assert [output.token_ids for output in got] == whole[:, 9:].tolist()


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_folder_that_transformers_saved_loads_here(tmp_path, make_config, shape):
    """Its config nests the rope settings and has keys of its own; it stores no MTP layer."""
    config = make_config(**{**SHAPES[shape], "num_nextn_predict_layers": 0})
    values = config.to_dict()
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.float32, **EXPERTS).eval()
    for name, tensor in [*theirs.named_buffers(), *theirs.named_parameters()]:
        if name.endswith(("e_score_correction_bias", ".bias", "norm.weight")):
            tensor += 0.2 * torch.randn(tensor.shape)
    theirs.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "rope_parameters" in saved
    model = load_model(tmp_path / "model")
    assert model.config.rope_kind == config.rope_kind
    assert (
        config.rope_scaling is None
        or config.rope_scaling.items() - {("type", "yarn")} <= (model.config.rope_scaling or {}).items()
    )
    assert_close(ours(model, texts()), theirs(texts()).logits)


@torch.no_grad()
def test_saving_in_bfloat16_keeps_the_router_bias_in_fp32_on_both_sides(tmp_path, make_model):
    model = make_model()
    bias = model.moe_layers[0].gate.e_score_correction_bias.clone()
    save_model(model, tmp_path / "wide")
    low = load_model(tmp_path / "wide", dtype="bfloat16")
    save_model(low, tmp_path / "low")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "low")
    assert theirs.lm_head.weight.dtype == torch.bfloat16
    again = load_model(tmp_path / "low", dtype="bfloat16")
    assert torch.equal(again.moe_layers[0].gate.e_score_correction_bias, bias)
    assert torch.equal(theirs.model.layers[1].mlp.gate.e_score_correction_bias, bias)
    a, b = ours(again, texts()).float(), theirs(texts()).logits.float()
    errors = (a - b).norm(dim=-1) / b.norm(dim=-1)  # of a token; where a near tie is routed the other way it is large
    assert float(errors.median()) < 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(tiny_model, folder, tiny_tokenizer)
    return folder


def test_auto_tokenizer_gives_the_same_ids(folder, tiny_tokenizer):
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in (
        "",
        "start 5 step +7\n",
        "größer 的 😀 e\u0301",
        " two  spaces\r\n\ttab",
        "1234567890 12.5",
        "don't!? (x)",
    ):
        ids = theirs(text)["input_ids"]
        assert ids == tiny_tokenizer.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert theirs(EOS)["input_ids"] == [1] and tiny_tokenizer.encode(EOS) != [1], "text is never a special token here"


CONVERSATIONS = {
    "question": [Message("user", "start 5")],
    "system": [Message("system", "Be brief."), Message("user", "start 5")],
    "turns": [
        Message("system", "Be brief."),
        Message("user", "start 5\nstep +2"),
        Message("assistant", "7", "5 +2 =7"),
        Message("user", "again\n"),
        Message("assistant", "9"),
        Message("user", ""),
    ],
}


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_chat_template_gives_the_same_prompt(folder, tiny_tokenizer, name, thinking):
    theirs, messages = AutoTokenizer.from_pretrained(folder), CONVERSATIONS[name]
    plain = [
        {
            "role": m.role,
            "content": m.content if m.reasoning_content is None else f"{m.reasoning_content}</think>{m.content}",
        }
        for m in messages
    ]
    ids = ChatFormat(tiny_tokenizer).prompt(messages, thinking=thinking)
    options = {"add_generation_prompt": True, "thinking": thinking}
    text = theirs.apply_chat_template(plain, tokenize=False, **options)
    assert text == tiny_tokenizer.decode(ids, skip_special=False)
    assert theirs.apply_chat_template(plain, tokenize=True, return_dict=False, **options) == ids


def test_the_template_thinks_unless_told_not_to_and_prompts_only_when_asked(folder, tiny_tokenizer):
    theirs = AutoTokenizer.from_pretrained(folder)
    chat, question = ChatFormat(tiny_tokenizer), CONVERSATIONS["question"]
    plain = [{"role": "user", "content": "start 5"}]
    shown = theirs.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert shown == tiny_tokenizer.decode(chat.prompt(question), skip_special=False)
    closed = theirs.apply_chat_template(plain, tokenize=False)
    assert shown.startswith(closed) and closed.endswith("start 5")


def test_a_tokenizer_that_transformers_saved_loads_here(folder, tmp_path, tiny_tokenizer):
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("start 5 größer\n") == tiny_tokenizer.encode("start 5 größer\n")
    assert loaded.is_special(loaded.id_of(EOS))


def test_the_config_says_the_same_to_transformers(folder, tiny_config):
    theirs = AutoModelForCausalLM.from_pretrained(folder).config
    for name, value in tiny_config.to_dict().items():
        if name not in ("architectures", "rope_scaling", "rope_theta", "moe_layer_freq", "scoring_func", "topk_method"):
            assert getattr(theirs, name) == value, name
    assert theirs.rope_parameters["rope_theta"] == tiny_config.rope_theta
    assert ModelConfig.from_file(folder / "config.json").replace(extra={}) == tiny_config
