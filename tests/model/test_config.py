"""ModelConfig: what it reads, what it refuses and what it writes back."""

from __future__ import annotations

import json

import pytest

from leanseek.errors import ConfigError
from leanseek.model.config import ModelConfig, load_preset, preset_names

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def test_unknown_keys_are_kept_and_written_back(make_config):
    values = {**make_config().to_dict(), "ep_size": 1, "quantization_config": {"fmt": "e4m3"}}
    config = ModelConfig.from_dict(values)
    assert config.extra["quantization_config"] == {"fmt": "e4m3"}
    assert config.to_dict() == values
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_is_written_names_the_derived_keys_too(tiny_config):
    values = tiny_config.to_dict()
    assert values["architectures"] == ["DeepseekV3ForCausalLM"]
    assert values["num_key_value_heads"] == tiny_config.num_attention_heads
    assert (tiny_config.qk_head_dim, tiny_config.cache_width) == (12, 16)


def test_layers_after_the_first_dense_ones_are_mixtures(make_config):
    config = make_config(num_hidden_layers=4, first_k_dense_replace=2)
    assert [config.is_moe(layer) for layer in range(5)] == [False, False, True, True, True]


def test_newer_transformers_nested_rope_is_understood(make_config):
    values = make_config().to_dict()
    del values["rope_theta"], values["rope_scaling"]
    nested = ModelConfig.from_dict({**values, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})
    assert (nested.rope_theta, nested.yarn) == (5000.0, None)
    rope = {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    stretched = ModelConfig.from_dict({**values, "rope_parameters": rope})
    assert stretched.rope_theta == 7000.0 and stretched.yarn is not None and stretched.yarn["factor"] == 4.0
    assert "rope_parameters" not in stretched.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size = 0: a positive whole number is needed"),
        ({"hidden_size": 1.5}, "hidden_size = 1.5"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"num_attention_heads": "4"}, "num_attention_heads = '4'"),
        ({"q_lora_rank": 0}, "q_lora_rank = 0"),
        ({"q_lora_rank": "6"}, "q_lora_rank = '6'"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace = -1"),
        ({"first_k_dense_replace": None}, "first_k_dense_replace = None"),
        ({"n_shared_experts": "1"}, "n_shared_experts = '1'"),
        ({"eos_token_id": [1, "2"]}, r"eos_token_id = \(1, '2'\)"),
        ({"eos_token_id": []}, r"eos_token_id = \(\)"),
        ({"eos_token_id": None}, "eos_token_id = None"),
        ({"bos_token_id": -1}, "bos_token_id = -1"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps = 'tiny'"),
        ({"rope_theta": 0}, "rope_theta = 0"),
        ({"routed_scaling_factor": None}, "routed_scaling_factor = None"),
        ({"qk_rope_head_dim": 5}, "qk_rope_head_dim = 5: rope turns pairs"),
        ({"n_group": 3}, "not a multiple of n_group = 3"),
        ({"n_group": 2, "topk_group": 3}, "topk_group = 3 is more than n_group = 2"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "can reach only 2 experts"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers = 2: deepseek_v3 models have 0 or 1"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax': deepseek_v3 models have 'sigmoid'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        ({"num_key_value_heads": 1}, "num_key_value_heads = 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type = 'linear'"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "rope_scaling.factor = 0.5"),
        ({"rope_scaling": {**YARN, "factor": "much"}}, "rope_scaling.factor = 'much'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor = None"),
        ({"rope_scaling": 4}, "rope_scaling = 4"),
        ({"model_type": "deepseek_v33"}, "did you mean deepseek_v3"),
        ({"model_type": "deepseek_v2", "scoring_func": "sigmoid"}, "deepseek_v2 models have 'softmax'"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "'greedy' or 'group_limited_greedy'"),
        ({"model_type": "deepseek_v2", "num_nextn_predict_layers": 1}, "num_nextn_predict_layers = 1"),
        ({"model_type": "deepseek_v32"}, "missing q_lora_rank"),
        ({"model_type": "deepseek_v32", "q_lora_rank": None}, "q_lora_rank = None"),
        ({"model_type": "deepseek_v32", "q_lora_rank": 6, "index_topk": 0}, "index_topk = 0"),
        ({"model_type": "deepseek_v32", "q_lora_rank": 6, "index_head_dim": 2}, "index_head_dim = 2 is less than"),
        (
            {"model_type": "qwen3", "num_nextn_predict_layers": 0, "num_key_value_heads": 3},
            "is not a multiple of num_key_value_heads = 3",
        ),
        ({"model_type": "qwen3", "num_nextn_predict_layers": 0, "head_dim": 3}, "head_dim = 3: rope turns pairs"),
        (
            {"model_type": "qwen2", "num_nextn_predict_layers": 0, "use_sliding_window": True},
            "use_sliding_window = True",
        ),
        ({"model_type": "llama", "num_nextn_predict_layers": 0, "mlp_bias": True}, "mlp_bias = True"),
    ],
)
def test_what_no_model_can_be_is_refused_with_its_value(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_a_family_writes_its_own_keys_only(make_config):
    student = make_config(model_type="qwen3", num_nextn_predict_layers=0, eos_token_id=[1, 2], head_dim=8)
    values = student.to_dict()
    assert values["architectures"] == ["Qwen3ForCausalLM"] and values["eos_token_id"] == [1, 2]
    assert (values["head_dim"], values["num_key_value_heads"], student.cache_width) == (8, 2, 32)
    assert not student.is_moe(2) and "index_topk" not in values
    assert ModelConfig.from_dict(values).replace(extra={}) == student.replace(extra={})
    sparse = make_config(model_type="deepseek_v32", q_lora_rank=6)
    assert (sparse.index_n_heads, sparse.index_head_dim, sparse.index_topk) == (64, 128, 2048)
    assert "head_dim" not in sparse.to_dict()


def test_what_a_file_leaves_out_is_the_familys_default(make_config):
    second = make_config(model_type="deepseek_v2", num_nextn_predict_layers=0, n_group=None, topk_method=None)
    assert (second.scoring_func, second.topk_method, second.norm_topk_prob) == ("softmax", "greedy", False)
    assert second.n_group == 1


def test_a_missing_key_is_named_with_the_file(tmp_path, make_config):
    values = make_config().to_dict()
    del values["kv_lora_rank"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config.json: missing kv_lora_rank"):
        ModelConfig.from_file(path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("{", "not valid JSON"), ("[1]", "object is needed, got list")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_file(path)


def test_presets_are_found_by_name_and_other_files_by_path(tmp_path, tiny_config):
    assert "laptop" in preset_names() and load_preset("laptop").hidden_size == 128
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config.to_dict()))
    assert load_preset(str(path)).replace(extra={}) == tiny_config
    with pytest.raises(ConfigError, match=r"model 'labtop' is not known; did you mean laptop\?; have .*config\.json"):
        load_preset("labtop")
    with pytest.raises(ConfigError, match="no such file"):
        load_preset(str(tmp_path / "none.json"))


def test_a_changed_copy_is_checked_again(tiny_config):
    assert tiny_config.replace(vocab_size=400).vocab_size == 400
    with pytest.raises(ConfigError, match="vocab_size = -1"):
        tiny_config.replace(vocab_size=-1)
