"""The whole model: one call trains, prefills and decodes, and all of them agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanseek.model.cache import ContiguousCache
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SHAPES = [
    {},
    {"q_lora_rank": 6, "rope_scaling": YARN},
    {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "first_k_dense_replace": 0},
    {"first_k_dense_replace": 3, "n_shared_experts": 0, "num_nextn_predict_layers": 0},
    {"model_type": "deepseek_v2", "num_nextn_predict_layers": 0, "n_group": 4, "topk_group": 2},
    {"model_type": "deepseek_v32", "q_lora_rank": 6, "index_n_heads": 3, "index_head_dim": 6, "index_topk": 7},
    {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "num_nextn_predict_layers": 0},
    {"model_type": "llama", "attention_bias": True, "num_nextn_predict_layers": 0, "tie_word_embeddings": True},
]
LENGTHS = (9, 1, 30, 4, 4, 17)


def draw(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 320, (tokens,), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-4 * float(b.detach().abs().max()), rtol=0)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@torch.no_grad()
def test_packed_texts_are_each_alone(make_model, shape):
    model = make_model(**SHAPES[shape])
    texts = [draw(n, seed) for seed, n in enumerate(LENGTHS)]
    together = model(torch.cat(texts), Segments.packed(LENGTHS)).split(LENGTHS)
    for text, got in zip(texts, together, strict=True):
        assert close(got, model(text, Segments.single(len(text))))


@torch.no_grad()
def test_equal_lengths_are_each_alone_too(make_model):
    model = make_model()
    texts = [draw(6, seed) for seed in range(4)]
    together = model(torch.cat(texts), Segments.packed((6,) * 4)).split(6)
    for text, got in zip(texts, together, strict=True):
        assert close(got, model(text, Segments.single(6)))


@pytest.mark.parametrize("shape", (0, 1, 5, 6))
@torch.no_grad()
def test_a_shared_prompt_is_a_repeated_prompt(make_model, shape):
    model = make_model(**SHAPES[shape])
    prompts, replies = (draw(11), draw(1, 1)), [(0, draw(n, 9 + n)) for n in (1, 7, 30)]
    replies += [(1, draw(n, 99 + n)) for n in (3, 2)]
    tokens = torch.cat([*prompts, *(reply for _, reply in replies)])
    lengths = (*map(len, prompts), *(len(reply) for _, reply in replies))
    segments = Segments(lengths, prefixes=(-1, -1, *(prompt for prompt, _ in replies)))
    pieces = model(tokens, segments).split(lengths)
    for (prompt, reply), got in zip(replies, pieces[2:], strict=True):
        whole = torch.cat((prompts[prompt], reply))
        assert close(got, model(whole, Segments.single(len(whole)))[len(prompts[prompt]) :])


def test_a_shared_prompt_gets_the_gradient_of_all_its_replies(make_model):
    model = make_model()
    prompt, replies = draw(5), [draw(3, 1), draw(6, 2)]
    shared = Segments((5, 3, 6), prefixes=(-1, 0, 0))
    gradients = []
    for packed in (True, False):
        model.zero_grad()
        if packed:
            hidden = model(torch.cat((prompt, *replies)), shared)[5:].square().sum()
        else:
            hidden = sum(model(torch.cat((prompt, r)), Segments.single(5 + len(r)))[5:].square().sum() for r in replies)
        hidden.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert close(gradient, gradients[1][name]), name


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@torch.no_grad()
def test_prefill_in_chunks_and_decoding_give_what_the_whole_text_gives(make_model, shape):
    model = make_model(**SHAPES[shape])
    text = draw(40)
    whole = model(text, Segments.single(40))
    cache = ContiguousCache(model.cache_specs(), rows=1, capacity=64)
    got = [model(text[:13], Segments.single(13), cache)]
    got.append(model(text[13:30], Segments((17,), cached_lengths=(13,)), cache))
    for at in range(30, 40):
        got.append(model(text[at : at + 1], Segments.decode(torch.tensor([at]), at + 1, level=True), cache))
    assert close(torch.cat(got), whole)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@torch.no_grad()
def test_a_batch_of_uneven_texts_decodes_as_each_alone(make_model, shape):
    model = make_model(**SHAPES[shape])
    texts, lengths = [draw(n + 3, n) for n in (2, 9, 1, 20)], (2, 9, 1, 20)
    cache = ContiguousCache(model.cache_specs(), rows=4, capacity=64)
    model(torch.cat([t[:n] for t, n in zip(texts, lengths, strict=True)]), Segments(lengths), cache)
    for step in range(3):
        at = torch.tensor(lengths) + step
        tokens = torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])
        out = model(tokens, Segments.decode(at, max(lengths) + step + 1, level=False), cache)
        for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            alone = model(text[: n + step + 1], Segments.single(n + step + 1))[-1]
            assert close(out[row], alone)


@torch.no_grad()
def test_the_mtp_layer_joins_embedding_first_and_caches_as_the_last_layer(make_model):
    model = make_model()
    layer = model.mtp_layer
    assert layer is not None
    text, segments = draw(8), Segments.single(8)
    hidden, following = model(text, segments), torch.roll(text, -1)
    embedded = model.model.embed_tokens(following)
    first, second = layer.eh_proj.weight.split(32, dim=1)
    assert torch.allclose(
        layer.join(embedded, hidden), layer.enorm(embedded) @ first.T + layer.hnorm(hidden) @ second.T, atol=1e-5
    )
    whole = model.mtp(hidden, following, segments)
    cache = ContiguousCache(model.cache_specs(), rows=1, capacity=16)
    drafted = [model.mtp(hidden[:5], following[:5], Segments.single(5), cache)]
    for at in range(5, 8):
        step = Segments.decode(torch.tensor([at]), at + 1, level=True)
        drafted.append(model.mtp(hidden[at : at + 1], following[at : at + 1], step, cache))
    assert close(torch.cat(drafted), whole)
    # It is one more block after the main ones, with the head shared.
    x = layer(layer.join(embedded, hidden), model.turns(segments.positions_T, segments.longest), segments)
    assert torch.equal(layer.shared_head.norm(x), whole)


@torch.no_grad()
def test_the_main_model_does_not_depend_on_the_mtp_layer(make_model):
    model, text = make_model(), draw(8)
    before = model(text, Segments.single(8))
    for parameter in model.mtp_layer.parameters():
        parameter.fill_(float("nan"))
    assert torch.equal(model(text, Segments.single(8)), before)


def test_parameter_names_are_the_checkpoints(make_model):
    model = make_model(q_lora_rank=6)
    names = set(model.state_dict())
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.self_attn.q_a_layernorm.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= names
    assert not any("q_proj" in name for name in names)


def test_what_runs_under_inference_does_not_spoil_later_training(make_model):
    """An engine and a trainer share one model: the rope table made by one must serve the other."""
    model = make_model()
    with torch.inference_mode():
        model(draw(4), Segments.single(4))
    loss = model.logits(model(draw(4), Segments.single(4))).square().mean()
    loss.backward()
    assert model.model.embed_tokens.weight.grad is not None


@torch.no_grad()
def test_the_rope_table_grows_with_the_text(make_model):
    fresh, used = make_model(max_position_embeddings=512), make_model(max_position_embeddings=512)
    used(draw(3), Segments.single(3))
    text = draw(300)
    assert torch.equal(used(text, Segments.single(300)), fresh(text, Segments.single(300)))


def test_what_a_model_has_is_told(make_model):
    model = make_model(num_nextn_predict_layers=0)
    assert model.mtp_layer is None and len(model.cache_specs()) == 3
    assert [spec.width for spec in make_model().cache_specs()] == [16] * 4
    assert len(make_model().moe_layers) == 2, "the MTP layer's mixture is not a main one"
    assert make_model(first_k_dense_replace=3).moe_layers == []
    assert isinstance(model, Transformer) and model.device.type == "cpu"
