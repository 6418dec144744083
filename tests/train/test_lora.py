"""Lora: the model is as it was until it learns, then W0 + alpha / rank B A, with the gradients that this form has."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from leanseek.checkpoint.resume import load_state, save_checkpoint
from leanseek.errors import ConfigError
from leanseek.model.segments import Segments
from leanseek.sections.training import OptimiserSettings
from leanseek.train.lora import Lora

ADAMW = OptimiserSettings(name="adamw", lr=1e-2)
TOKENS = torch.tensor([5, 9, 40, 7, 31])


def loss_of(model, parameters=None) -> torch.Tensor:
    hidden = functional_call(model, parameters or {}, (TOKENS, Segments.single(5)))
    return hidden.square().sum()


def learn(model, lora, steps: int = 3) -> None:
    for _ in range(steps):
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss_of(model), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        lora.clip()
        lora.step(1.0)
        lora.zero_grad()


def test_only_the_chosen_layers_learn_and_by_a_low_rank(make_model):
    model, untouched = make_model(), make_model()
    lora = Lora(model, ADAMW, rank=2, alpha=4.0, targets=["o_proj", "kv_b_proj"])
    assert all(torch.equal(p, untouched.get_parameter(n)) for n, p in model.named_parameters()), "B begins at zero"
    learn(model, lora)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, untouched.get_parameter(n))}
    assert changed == {
        f"model.layers.{i}.self_attn.{kind}.weight" for i in range(3) for kind in ("o_proj", "kv_b_proj")
    }
    for name in changed:
        update = model.get_parameter(name) - untouched.get_parameter(name)
        assert torch.linalg.matrix_rank(update.detach(), rtol=1e-3) == 2, name
    assert all(p.grad is None for p in model.parameters())


def test_the_gradients_are_those_of_the_factored_form(make_model):
    model = make_model()
    lora = Lora(model, ADAMW, rank=3, alpha=6.0, seed=1)
    learn(model, lora, 1)  # so that B is not zero
    pairs = {name: tuple(f.detach().clone().requires_grad_() for f in pair) for name, pair in lora.factors.items()}
    merged = {name: lora.base[name] + 2.0 * b @ a for name, (a, b) in pairs.items()}
    loss = loss_of(model, merged)
    wanted = torch.autograd.grad(loss, [f for pair in pairs.values() for f in pair], allow_unused=True)
    for parameter in lora.weights.values():
        (parameter.grad,) = torch.autograd.grad(loss_of(model), parameter, allow_unused=True)
    lora.inner.settings = ADAMW.model_copy(update={"clip": 1e9})
    lora.clip()
    got = [factor.grad for pair in lora.factors.values() for factor in pair]
    for one, other in zip(wanted, got, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_all_linear_layers_of_the_main_model_but_the_head_are_adapted_by_default(make_model):
    lora = Lora(make_model(), ADAMW, rank=1, alpha=1.0)
    names = set(lora.weights)
    assert {"model.layers.0.mlp.gate_proj.weight", "model.layers.2.self_attn.q_proj.weight"} <= names
    assert not any("lm_head" in n or "layers.3" in n or ".mlp.experts." in n or ".gate.weight" in n for n in names)
    assert "lm_head.weight" in Lora(make_model(), ADAMW, rank=1, alpha=1.0, targets=["lm_head"]).weights


def test_what_cannot_be_adapted_is_told(make_model):
    with pytest.raises(
        ConfigError, match=r"'q_prj', which is not a layer of this model; did you mean q_proj\?; it has"
    ):
        Lora(make_model(), ADAMW, rank=1, alpha=1.0, targets=["q_prj"])
    tied = make_model(model_type="llama", attention_bias=True, tie_word_embeddings=True, num_nextn_predict_layers=0)
    with pytest.raises(ConfigError, match="head is its embedding"):
        Lora(tied, ADAMW, rank=1, alpha=1.0, targets=["lm_head"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_going_on_is_as_if_never_stopped(make_model, tmp_path, name):
    settings = OptimiserSettings(name=name, lr=1e-2)
    whole, parts = make_model(), make_model()
    learn(whole, Lora(whole, settings, rank=2, alpha=4.0), 4)
    first = Lora(parts, settings, rank=2, alpha=4.0)
    learn(parts, first, 2)
    save_checkpoint(tmp_path / "x", parts, None, {"optimiser": first.state_dict()})
    second = Lora(parts, settings, rank=2, alpha=4.0, seed=9)
    second.load_state_dict(load_state(tmp_path / "x")["optimiser"])
    learn(parts, second, 2)
    assert all(torch.equal(p, parts.get_parameter(n)) for n, p in whole.named_parameters())


def test_weights_in_bfloat16_keep_what_is_too_small_for_them(make_model):
    model = make_model().to(torch.bfloat16)
    lora = Lora(model, ADAMW.model_copy(update={"lr": 1e-5}), rank=2, alpha=2.0)
    learn(model, lora, 3)
    a, b = lora.factors["model.layers.0.self_attn.o_proj.weight"]
    assert b.dtype == a.dtype == torch.float32 and float(b.abs().max()) > 0
    assert model.lm_head.weight.dtype == torch.bfloat16
